"""Audio: what is read is what was written, what is bad is named, crops lose nothing, runs score and draw sound."""

import csv
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import diffeo
from diffeo import commands
from diffeo.cli.main import main
from diffeo.data import Audio, open_audio, save_wavs
from diffeo.errors import UserError
from diffeo.modalities import storage
from diffeo.modalities.audio import fsdd
from diffeo.modalities.audio.check import check_sound
from diffeo.modalities.audio.dataset import Crops, SoundFormat

RATE, HOP = 1000, 10
SMALL = {"channels": 4, "layers": 3, "cycles": 1, "skip": 8, "hop": HOP}


def tone(seconds=0.5, pitch=100.0, rate=RATE, seed=0):
    """A noisy tone (n,), floats that are whole 16-bit steps."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    sound = 0.2 * np.sin(2 * np.pi * pitch * time) + 0.01 * generator.standard_normal(len(time))
    return np.rint(sound * 2**15) / 2**15


def write(path, sound, rate=RATE, subtype="PCM_16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, subtype=subtype)
    return path


def many(folder, count=120):
    """A folder of good recordings, so many that one bad file is tolerated; labels "low" and "high"."""
    for i in range(count):
        write(folder / f"{'low' if i % 2 else 'high'}_{i:03}.wav", tone(0.05 + 0.001 * i, 50 if i % 2 else 200, seed=i))
    return folder


def refused(source, *gist, **options):
    with pytest.raises(UserError) as caught:
        open_audio(source, **options)
    line = str(caught.value)
    assert "\n" not in line
    for piece in gist:
        assert piece in line, line


# Reading


def test_a_folder_reads_back(tmp_path):
    sounds = [tone(0.1 * (i + 1), seed=i) for i in range(3)]
    for i, sound in enumerate(sounds):
        write(tmp_path / "set" / "ab"[i % 2] / f"{i}.{'flac' if i == 1 else 'wav'}", sound)
    (tmp_path / "set" / "notes.txt").write_text("no sound")
    write(tmp_path / "set" / "a" / "._0.wav", sounds[0])
    audio = open_audio(tmp_path / "set")
    assert audio.files == ("a/0.wav", "a/2.wav", "b/1.flac")
    assert (len(audio), audio.rate, audio.notes, audio.skipped) == (3, RATE, (), ())
    for i, j in enumerate((0, 2, 1)):
        np.testing.assert_array_equal(audio.scaled(i), sounds[j].astype(np.float32))
    assert audio.samples.dtype == np.int16
    assert audio.seconds == pytest.approx(0.6)
    assert open_audio(str(tmp_path / "set")).sha256 == audio.sha256
    assert open_audio(tmp_path / "set" / "a").sha256 != audio.sha256
    assert audio.labelled().classes == ("a", "b")
    np.testing.assert_array_equal(audio.labelled().labels, [0, 0, 1])
    assert "2 classes" in repr(audio.labelled())


def test_one_file_and_a_pattern(tmp_path):
    many(tmp_path, 6)
    assert open_audio(tmp_path / "low_001.wav").files == ("low_001.wav",)
    assert open_audio(str(tmp_path / "high_*.wav")).files == ("high_000.wav", "high_002.wav", "high_004.wav")
    assert open_audio(open_audio(tmp_path), rate=RATE).rate == RATE


def test_rates_channels_and_widths_are_made_one(tmp_path):
    base = tone(1.0)
    write(tmp_path / "0.wav", base)
    write(tmp_path / "1.wav", base)
    write(tmp_path / "2.wav", tone(1.0, rate=2 * RATE), 2 * RATE)
    write(tmp_path / "3.wav", np.stack([base, 3 * base], 1))
    write(tmp_path / "4.wav", base / 3, subtype="PCM_24")
    write(tmp_path / "5.wav", base, subtype="FLOAT")
    write(tmp_path / "6.wav", base, subtype="DOUBLE")
    audio = open_audio(tmp_path)
    np.testing.assert_array_equal(audio.lengths, [RATE] * 7)
    np.testing.assert_allclose(audio.scaled(2)[100:900], base[100:900], atol=0.06)
    np.testing.assert_allclose(audio.scaled(3), 2 * base, atol=2**-15)
    np.testing.assert_allclose(audio.scaled(4), base / 3, atol=2**-15)
    np.testing.assert_array_equal(audio.scaled(5), base.astype(np.float32))
    assert audio.notes == (
        "1 of 7 recordings were resampled to 1000 Hz, from 2000 Hz",
        "1 of 7 recordings have several channels: their average is used",
        "3 of 7 recordings have more than 16 bits: they are rounded to 16",
    )
    assert open_audio(tmp_path, rate=500).lengths.tolist() == [500] * 7


def test_full_scale_does_not_wrap_around(tmp_path):
    loud = tone(1.0)
    loud[:3] = [1.0, 1.5, -1.5]
    audio = open_audio(write(tmp_path / "loud.wav", loud, subtype="FLOAT"))
    assert audio.clip(0)[:3].tolist() == [32767, 32767, -32768]
    assert "2 samples beyond full scale were cut off" in audio.notes


def text(path):
    path.write_text("hello, this is no sound")


BAD = {
    "text": (text, "damaged, empty, or no sound"),
    "empty": (lambda path: path.write_bytes(b""), "damaged, empty, or no sound"),
    "header alone": (lambda path: write(path, np.zeros(0)), "holds no samples"),
    "nan": (lambda path: write(path, np.array([0.0, np.nan] * 50), subtype="FLOAT"), "holds NaN or infinity"),
    "infinity": (lambda path: write(path, np.array([0.0, np.inf] * 50), subtype="FLOAT"), "holds NaN or infinity"),
    "silent": (lambda path: write(path, np.zeros(100)), "silent throughout"),
    "constant": (lambda path: write(path, np.full(100, 0.5)), "silent throughout"),
    "whole numbers": (lambda path: write(path, 30000 * tone(), subtype="FLOAT"), "expected [-1, 1]"),
}


@pytest.mark.parametrize(("make", "reason"), BAD.values(), ids=BAD)
def test_a_bad_file_is_named(tmp_path, make, reason):
    bad = tmp_path / "set" / "bad.wav"
    bad.parent.mkdir()
    make(bad)
    refused(bad, "bad.wav: ", reason)
    for i in range(4):
        write(tmp_path / "set" / f"{i}.wav", tone())
    refused(tmp_path / "set", "1 of 5 recordings cannot be used", f"bad.wav: {reason}" if "[" not in reason else reason)


def test_a_bad_file_among_many_is_skipped(tmp_path):
    many(tmp_path)
    text(tmp_path / "bad.wav")
    audio = open_audio(tmp_path)
    assert len(audio) == 120
    assert audio.skipped == (("bad.wav", "damaged, empty, or no sound"),)
    (tmp_path / "other.mp3").write_bytes(b"ID3")
    refused(tmp_path, "2 of 122", "convert it to wav or flac")


def test_what_is_no_audio_is_refused(tmp_path):
    refused(tmp_path, "holds no recordings (.wav .flac .ogg)")
    refused(tmp_path / "absent", "no such file, folder or built-in set", "fsdd")
    refused(str(tmp_path / "*.wav"), "no such file")
    text(tmp_path / "x.txt")
    refused(tmp_path / "x.txt", "unknown extension '.txt'")
    refused(tmp_path, "at least 1 Hz", rate=0)
    with pytest.raises(TypeError, match="expected a path"):
        open_audio(3)


def test_labels(tmp_path):
    audio = open_audio(many(tmp_path, 6))
    assert audio.labelled().classes == ("high", "low")
    for pattern, gist in (
        ("[", "no regular expression"),
        ("mid", "no label in the name of 6 of 6"),
        (r"_(\d+)", "a different label for each"),
        ("0", "a single label"),
    ):
        with pytest.raises(UserError, match=gist):
            audio.labelled(pattern)
    with pytest.raises(UserError, match=r"high_000.wav has the label 'high', expected one of low, mid"):
        audio.labelled(None, ("low", "mid"))
    many(tmp_path / "a_folder", 6)
    assert open_audio(tmp_path).labelled(audio.labelled().pattern).classes == ("high", "low")
    part = audio.labelled().part(np.array([4, 1]))
    np.testing.assert_array_equal(part.clip(1), audio.clip(1))
    assert part.files == (audio.files[4], audio.files[1])


def test_much_sound_is_mapped_from_a_file(tmp_path, monkeypatch):
    audio = open_audio(many(tmp_path / "set", 6))
    monkeypatch.setattr(storage, "MEMORY", 100)
    mapped = open_audio(tmp_path / "set", cache=tmp_path)
    assert isinstance(mapped.samples.base, np.memmap)
    assert mapped.sha256 == audio.sha256


def test_wavs_are_written_safely(tmp_path):
    sounds = [tone(), np.array([0.5, 2.0, -3.0, np.nan, 32767 / 32768])]
    assert save_wavs(tmp_path / "out", sounds, RATE) == {"cut": 2, "non_finite": 1}
    values, rate = soundfile.read(tmp_path / "out" / "0001.wav", dtype="int16")
    assert values.tolist() == [2**14, 32767, -32768, 0, 32767]
    assert rate == RATE
    np.testing.assert_array_equal(open_audio(tmp_path / "out" / "0000.wav").scaled(0), sounds[0].astype(np.float32))
    with pytest.raises(UserError, match="holds files already"):
        save_wavs(tmp_path / "out", (pytest.fail("work before the folder is claimed") for _ in sounds), RATE)
    save_wavs(tmp_path / "out", sounds[:1], RATE, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0000.wav"]
    text(tmp_path / "out" / "mine.txt")
    with pytest.raises(UserError, match=r"holds 'mine.txt'"):
        save_wavs(tmp_path / "out", sounds, RATE, force=True)


def test_fsdd_is_verified_and_split(tmp_path, monkeypatch):
    folder = tmp_path / "fsdd" / "recordings"
    for digit in range(10):
        for take in range(50):
            write(folder / f"{digit}_lucas_{take}.wav", tone(0.02, seed=take), 8000)
    monkeypatch.setenv("DIFFEO_DATA", str(tmp_path))
    refused("fsdd-lucas", "lucas are not those of fsdd (by SHA-256)")
    digest = fsdd._sha256(folder, [f"{d}_lucas_{t}.wav" for d in range(10) for t in range(50)])
    monkeypatch.setitem(fsdd.SPEAKERS, "lucas", digest)
    audio = open_audio("fsdd-lucas").labelled()
    assert (len(audio), len(audio.test)) == (450, 50)
    assert audio.classes == audio.test.classes == tuple("0123456789")
    assert {name.split("_")[2] for name in audio.test.files} == {f"{take}.wav" for take in range(5)}
    monkeypatch.setenv("DIFFEO_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(fsdd, "HOME", (tmp_path / "absent.tar.gz").as_uri())
    refused("fsdd-lucas", "cannot be downloaded", "DIFFEO_DATA", cache=tmp_path / "cache")


# Crops


def ramps(lengths, labels=None):
    """Clips whose samples are all different: 0, 1, 2, ..."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Audio(
        np.arange(starts[-1], dtype=np.int16), starts, RATE, tuple(f"{i}.wav" for i in range(len(lengths))),
        labels=None if labels is None else np.array(labels), classes=() if labels is None else ("a", "b"),
    )  # fmt: skip


def test_every_frame_comes_once_an_epoch():
    audio = ramps([57, 23, 101, 8, 40])  # 5 + 2 + 10 + 0 + 4 frames
    crops = Crops(audio, np.arange(5), None, SoundFormat(RATE, HOP), frames=3, batch_size=2, seed=0)
    assert len(crops) == 3
    seen = {}
    for epoch in range(3):
        crops.set_epoch(epoch)
        batches = [x for x, context in crops if context is None]
        assert all(torch.equal(x, y) for x, (y, _) in zip(batches, crops, strict=True)), "re-iterable"
        values = (torch.cat(batches) * 2**15).round().long()
        assert values.shape == (6, 30)
        assert len(set(values.flatten().tolist())) == 6 * 30
        assert (values.reshape(-1, HOP).diff(dim=1) == 1).all(), "frames are whole"
        seen[epoch] = values
    assert not torch.equal(seen[0], seen[1])
    other = Crops(audio, np.arange(5), None, SoundFormat(RATE, HOP), frames=3, batch_size=2, seed=1)
    assert other.fingerprint != crops.fingerprint
    x, context = crops.in_order()
    assert context is None
    assert x.shape == (7, 30)
    assert crops.in_order(2)[0].shape == (2, 30)
    longer = Crops(ramps([25, 12]), np.arange(2), None, SoundFormat(RATE, HOP), frames=7, batch_size=8, seed=0)
    assert next(iter(longer))[0].shape == (1, 70), "what is shorter than a crop is repeated"


def test_contexts_belong_to_their_frames():
    audio = ramps([50, 70, 30], labels=[0, 1, 0])
    form = SoundFormat(RATE, HOP, mels=2, window=40, classes=("a", "b"))
    mel = np.stack([np.arange(15), -np.arange(15)], 1).astype(np.float32)  # frame i has (i, -i)
    crops = Crops(audio, np.arange(3), mel, form, frames=4, batch_size=2, seed=3)
    for x, context in crops:
        assert context.shape == (2, 4, 4)
        first = (x.reshape(2, 4, HOP)[..., 0] * 2**15).round()  # a frame's first sample, which tells which it is
        torch.testing.assert_close(context[:, 0], first / HOP)
        torch.testing.assert_close(context[:, 1], -first / HOP)
        label = ((first >= 50) & (first < 120)).float()
        torch.testing.assert_close(context[:, 3], label)
        torch.testing.assert_close(context[:, 2], 1 - label)


# Runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of low and high tones, and a run of them given mel and label."""
    folder = tmp_path_factory.mktemp("audio")
    many(folder / "tones", 40)
    options = {"epochs": 2, "crop": 0.1, "batch_size": 4, "arguments": SMALL}
    notes = []
    commands.fit(folder / "tones", folder / "run", context=["mel", "label"], mels=4, say=notes.append, **options)
    commands.fit(folder / "tones", folder / "plain", figures=False, **options)
    return SimpleNamespace(
        folder=folder, tones=folder / "tones", run=folder / "run", plain=folder / "plain", notes=notes
    )


def test_a_run_of_audio(runs):
    facts = commands.info(runs.run)
    assert facts["model"] == "wavenet"
    assert (facts["rate"], facts["hop"], facts["mels"], facts["window"], facts["crop"]) == (RATE, HOP, 4, 40, 100)
    assert facts["classes"] == ["high", "low"]
    assert facts["context"] == ["mel", "label"]
    part = facts["metrics"]["validation"]
    assert part["bits_per_sample"] == pytest.approx(part["nll"] / (100 * math.log(2)) + 15)
    assert {path.name for path in (runs.run / "figures").iterdir()} == {
        "learning_curve.png", "sounds.png", "likelihoods.png",
    }  # fmt: skip
    assert any("2 labels from the files' names" in note for note in runs.notes)


def test_whole_files_are_scored(runs, tmp_path):
    summary = commands.score(runs.run, runs.tones, tmp_path / "s.csv")
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert [row["file"] for row in rows[:2]] == ["high_000.wav", "high_002.wav"]
    bits = np.array([float(row["bits_per_sample"]) for row in rows])
    nats = np.array([float(row["log_likelihood"]) for row in rows])
    samples = np.array([float(row["seconds"]) for row in rows]) * RATE
    np.testing.assert_allclose(bits, -nats / (samples * math.log(2)) + 15)
    assert summary["bits_per_sample"] == pytest.approx(-nats.sum() / (samples.sum() * math.log(2)) + 15)
    assert commands.score(runs.run, runs.tones, tmp_path / "t.csv")["mean"] == summary["mean"], "the same noise"
    with pytest.raises(UserError, match="'file' is text"):
        commands.score(runs.run, runs.tones, tmp_path / "s.npy")


def test_bits_are_those_of_16_bit_values(tmp_path):
    """Of white noise of deviation 1000 steps, a fitted Gaussian has log2(1000 sqrt(2 pi e)) bits."""
    generator = np.random.default_rng(0)
    for i in range(12):
        write(tmp_path / "noise" / f"{i}.wav", np.rint(1000 * generator.standard_normal(400)) / 2**15)
    commands.fit(tmp_path / "noise", tmp_path / "run", epochs=1, lr=1e-6, crop=0.2, arguments=SMALL, figures=False)
    flow = diffeo.load(tmp_path / "run")
    expected = math.log2(1000 * math.sqrt(2 * math.pi * math.e))
    scores = commands.score(tmp_path / "run", tmp_path / "noise", tmp_path / "s.csv")
    assert scores["bits_per_sample"] == pytest.approx(expected, abs=0.1)
    assert flow.sample(3).mul(2**15).frac().abs().max() == 0, "samples are 16-bit values"


def test_drawing(runs, tmp_path):
    summary = commands.sample(runs.plain, 3, tmp_path / "a", length=0.05)
    assert (summary["rows"], summary["duration"]) == (3, pytest.approx(0.15))
    first = open_audio(tmp_path / "a")
    assert (first.rate, first.lengths.tolist()) == (RATE, [50, 50, 50])
    commands.sample(runs.plain, 3, tmp_path / "b", length=0.05)
    assert open_audio(tmp_path / "b").sha256 == first.sha256, "the same seed, the same sounds"
    assert commands.sample(runs.plain, 1, tmp_path / "c")["duration"] == pytest.approx(0.1), "as long as a crop"
    one = runs.tones / "low_005.wav"
    copied = commands.sample(runs.run, 2, tmp_path / "d", given_from=one)
    assert (copied["rows"], copied["duration"]) == (2, pytest.approx(2 * 0.055))
    other = commands.sample(runs.run, None, tmp_path / "e", given_from=one, given={"label": "high"}, length=0.02)
    assert (other["rows"], other["duration"]) == (1, pytest.approx(0.02))


def test_commands(runs, tmp_path, capsys):
    run, tones = str(runs.run), str(runs.tones)
    assert main(["score", run, tones, "--out", str(tmp_path / "s.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 40
    words = ["sample", run, "--given-file", f"{tones}/low_001.wav", "--given", "label=low", "--seconds", "0.02"]
    assert main([*words, "--out", str(tmp_path / "wavs")]) == 0
    assert main(["info", run]) == 0
    assert "given mel and label" in capsys.readouterr().out
    assert main(["check", run, tones]) == 0
    assert "log-spectral distance" in capsys.readouterr().out
    options = [
        "--context",
        "label",
        "--label-pattern",
        "^(low|high)",
        "--crop",
        "0.05",
        "--epochs",
        "1",
        "--no-figures",
    ]
    sizes = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    assert main(["fit", tones, "--rate", "500", "--out", str(tmp_path / "run"), *options, *sizes, "--no-figures"]) == 0
    captured = capsys.readouterr()
    assert "bits per 16-bit sample" in captured.out
    assert captured.err.count("resampled to 500 Hz") == 1
    assert (
        main(["sample", str(tmp_path / "run"), "-n", "3", "--out", str(tmp_path / "three"), "--seconds", "0.02"]) == 0
    )
    assert main(["fit", tones, "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert commands.info(tmp_path / "run")["pattern"] == "^(low|high)"


def test_check_examines_numerics_latents_and_sound(runs, tmp_path):
    report = commands.check(runs.run, runs.tones)
    assert report["which"] == "crops of recordings held out of training"
    for where in ("rows", "samples", "off_data"):
        assert report["round_trip"][where]["max"] < 1e-4
        assert report["round_trip"][where]["non_finite"] == 0
    assert report["log_det"]["max"] < 1e-9
    assert report["sound"]["real"]["rms"]["mean"] == pytest.approx(0.2 / math.sqrt(2), rel=0.05)
    assert report["sound"]["drawn"]["log_spectral_distance"]["mean"] > 5
    bits = commands.score(runs.run, runs.tones, tmp_path / "s.csv")["bits_per_sample"]
    assert report["likelihood"]["bits_per_sample"]["mean"] == pytest.approx(bits, abs=0.5)
    assert any("spectral flatness of the recordings" in text for text in report["reasons"]), "two epochs: noise"
    json.dumps(report, allow_nan=False)
    for i in range(4):
        write(tmp_path / "new" / f"low_{i}.wav", tone(0.2, 50, seed=i))
    assert commands.check(runs.plain, tmp_path / "new")["which"] == "crops of all recordings"
    write(tmp_path / "short" / "low_0.wav", tone(0.12, 50))
    with pytest.raises(UserError, match=r"short: has less than the 0\.2 seconds of sound that a check takes"):
        commands.check(runs.plain, tmp_path / "short")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda flow, x: x.mul_(3), "of the loudness (RMS) of the recordings"),
        (lambda flow, x: flow.transform.transforms[1].std.mul_(0.1), "away from the base's distribution"),
        (lambda flow, x: flow.transform.transforms[1].std.mul_(math.inf), "not finite"),
    ],
    ids=["loudness", "scale", "infinite"],
)
def test_faults_of_models_of_sound_are_found(fault, reason):
    """White noise and the flow that knows it."""
    x = 0.05 * torch.randn(20, 400)
    flow = diffeo.wavenet(400, **SMALL).train()
    with torch.no_grad():
        flow.log_prob(x)
        good = check_sound(flow, x, None, RATE, HOP, 2.0**-15)
        assert (good["verdict"], good["reasons"]) == ("trustworthy", [])
        fault(flow, x)
    report = check_sound(flow, x, None, RATE, HOP, 2.0**-15)
    assert report["verdict"] != "trustworthy"
    assert any(reason in text for text in report["reasons"]), report["reasons"]


def test_another_rate_is_resampled(runs, tmp_path):
    write(tmp_path / "low_fast.wav", tone(0.2, rate=4 * RATE), 4 * RATE)
    summary = commands.score(runs.run, tmp_path / "low_fast.wav", tmp_path / "s.csv")
    assert summary["notes"] == ["1 of 1 recordings were resampled to 1000 Hz, from 4000 Hz"]
    assert summary["duration"] == pytest.approx(0.2)


def test_clips_shorter_than_the_receptive_field(runs, tmp_path):
    reach = next(m.receptive_field for m in diffeo.load(runs.run).modules() if hasattr(m, "receptive_field"))
    write(tmp_path / "low_short.wav", tone(0.004))
    assert reach > 4
    summary = commands.score(runs.run, tmp_path / "low_short.wav", tmp_path / "s.csv")
    assert math.isfinite(summary["bits_per_sample"])
    notes = []
    commands.fit(
        runs.tones,
        tmp_path / "r",
        epochs=1,
        crop=0.01,
        arguments={**SMALL, "layers": 5},
        figures=False,
        say=notes.append,
    )
    kept = commands.info(tmp_path / "r")["metrics"]["notes"]
    assert any("shorter than the" in note for note in [*notes, *kept])


def test_digital_silence_has_a_finite_likelihood(runs, tmp_path):
    sound = tone(0.3)
    sound[:200] = 0
    write(tmp_path / "low_quiet.wav", sound)
    for run in (runs.run, runs.plain):
        bits = commands.score(run, tmp_path / "low_quiet.wav", tmp_path / "s.csv", force=True)["bits_per_sample"]
        assert 0 < bits < 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, tmp: commands.fit(r.tones, tmp / "r", context=["speaker"]), "mel, label or both"),
        (lambda r, tmp: commands.fit(r.tones, tmp / "r", model="maf"), "'maf' is not for audio; expected one of"),
        (lambda r, tmp: commands.fit(r.tones, tmp / "r", size=[8]), "--size is for images, and these data are audio"),
        (lambda r, tmp: commands.fit("moons", tmp / "r", rate=100), "--rate is for audio, and these data are tables"),
        (lambda r, tmp: commands.fit(r.tones / "low_001.wav", tmp / "r"), "at least two are needed"),
        (lambda r, tmp: commands.fit(r.tones, tmp / "r", arguments={"hop": 1000}), "shorter than a frame"),
        (lambda r, tmp: commands.fit(r.tones, tmp / "r", arguments={"hop": "x"}), "expected a hop"),
        (lambda r, tmp: commands.fit(r.tones, tmp / "r", context=["mel"], mels=90), "fewer than 90 mel"),
        (lambda r, tmp: commands.fit(tmp, tmp / "r", model="wavenet"), "holds no recordings"),
        (lambda r, tmp: commands.fit(r.tones, tmp / "r", crop=0.0), "expected crop above 0"),
        (lambda r, tmp: commands.sample(r.plain, 0, tmp / "w"), "at least 1"),
        (lambda r, tmp: commands.sample(r.plain, 3, None), "need a place"),
        (lambda r, tmp: commands.sample(r.plain, None, tmp / "w"), "how many"),
        (lambda r, tmp: commands.sample(r.plain, 1, tmp / "w", length=-1.0), "above 0 seconds"),
        (lambda r, tmp: commands.sample(r.plain, 1, tmp / "w", given={"label": "low"}), "not conditional on labels"),
        (lambda r, tmp: commands.sample(r.plain, 1, tmp / "w", given_from=r.tones), "not conditional on log-mel"),
        (lambda r, tmp: commands.sample(r.run, 1, tmp / "w"), "conditional on log-mel features; give a recording"),
        (
            lambda r, tmp: commands.sample(r.run, 1, tmp / "w", given={"label": "mid"}, given_from=r.tones),
            "expected label=high|low",
        ),
    ],
)
def test_mistakes_get_one_line(runs, tmp_path, call, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")) as caught:
        call(runs, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_unknown_label_is_named(runs, tmp_path):
    write(tmp_path / "none.wav", tone())
    with pytest.raises(UserError, match=r"no label in the name of 1 of 1 recordings"):
        commands.score(runs.run, tmp_path / "none.wav", tmp_path / "s.csv")
    write(tmp_path / "mid_0.wav", tone())
    with pytest.raises(UserError, match=r"mid_0\.wav has the label 'mid', expected one of high, low"):
        commands.score(runs.run, tmp_path / "mid_0.wav", tmp_path / "s.csv")


def test_a_damaged_description_is_refused(runs, tmp_path):
    model = json.loads((runs.plain / "model.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((runs.plain / "model.safetensors").read_bytes())
    for change in ({"hop": 0}, {"hop": 20, "mels": 4}, {"crop": 7}, {"surprise": 1}):
        (tmp_path / "model.json").write_text(json.dumps({**model, "schema": {**model["schema"], **change}}))
        with pytest.raises(UserError, match=r"model\.json is damaged"):
            commands.score(tmp_path, runs.tones)
