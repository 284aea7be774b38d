"""Distilling audio: the command, what the student has from its teacher, the report in words, and mistakes."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import diffeo
from cases import randomise
from diffeo import commands
from diffeo.cli.main import main
from diffeo.distillation import sequence
from diffeo.modalities import open_run
from diffeo.modalities.audio.distillation import generate_end_naively, warnings
from diffeo.training import checkpoint as checkpoints

RATE, HOP = 1000, 10
SMALL = {"channels": 4, "layers": 3, "cycles": 1, "skip": 8, "hop": HOP}
TINY = {"epochs": 2, "arguments": {"channels": 4, "layers": 2, "cycles": [1, 1], "skip": 8}}
GIVEN = ["--epochs", "2", "--set", "channels=4", "--set", "layers=2", "--set", "cycles=[1,1]", "--set", "skip=8"]


def tones(folder, count=40):
    """Noisy tones of two pitches, labelled by their files' names."""
    folder.mkdir()
    for i in range(count):
        generator, time = np.random.default_rng(i), np.arange(180 + i) / RATE
        sound = 0.2 * np.sin(2 * np.pi * (50 if i % 2 else 200) * time) + 0.01 * generator.standard_normal(len(time))
        soundfile.write(folder / f"{'low' if i % 2 else 'high'}_{i:03}.wav", sound, RATE, subtype="PCM_16")
    return folder


@pytest.fixture(scope="module", autouse=True)
def brief():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"BATCH_SIZE": 8, "REPORTED": 4, "VALIDATED": 4, "NAIVE": 5, "KEPT": 2}.items():
            patch.setattr(sequence, name, value)
        yield


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    data = tones(folder / "tones")
    options = {"epochs": 2, "crop": 0.15, "batch_size": 8, "figures": False}
    commands.fit(data, folder / "run", context=["mel", "label"], mels=4, arguments=SMALL, **options)
    mixture = {**SMALL, "head": "logistics", "components": 2}
    commands.fit(data, folder / "plain", model="wavenet", arguments=mixture, **options)
    commands.distill(folder / "run", folder / "student", **TINY)
    return SimpleNamespace(
        data=data, run=folder / "run", plain=folder / "plain", student=folder / "student", folder=folder
    )


def test_a_student_of_sound(teachers, tmp_path, capsys):
    student, teacher = diffeo.training.load_run(teachers.student), diffeo.training.load_run(teachers.run)
    assert (student.flow.fast, student.schema) == ({"sample"}, teacher.schema)
    for copied, original in zip(student.flow.preprocessing, teacher.flow.preprocessing, strict=True):
        assert all(torch.equal(value, original.state_dict()[name]) for name, value in copied.state_dict().items())
    metrics = student.metrics
    report = metrics["distillation"]
    assert metrics["stages"].keys() == {"encoded", "reverse"}
    assert (report["dimensions"], report["rows"], report["non_finite"]) == (150, 4, 0)
    for key in ("reverse_kl", "forward_kl"):
        assert report[key]["stderr"] > 0
    assert report["real_rows"]["which"] == "recordings held out of training"
    assert report["sound"].keys() == {"real", "teacher", "student"}
    assert math.isclose(report["sound"]["real"]["rms"]["mean"], 0.2 / 2**0.5, rel_tol=0.05)
    assert report["sound"]["student"]["log_spectral_distance"]["mean"] > 0
    assert report["samples_per_second"].keys() == {"student", "teacher", "teacher_naive"}
    assert sorted(path.name for path in (teachers.student / "figures").iterdir()) == [
        "kl.png", "likelihoods.png", "sounds.png",
    ]  # fmt: skip
    for who in ("real", "teacher", "student"):
        sound, rate = soundfile.read(teachers.student / "sounds" / who / "0001.wav")
        assert (len(sound), rate) == (150, RATE)

    capsys.readouterr()
    assert main(["info", str(teachers.student)]) == 0
    assert "distilled" in capsys.readouterr().out
    wavs = ["--given-file", str(teachers.data), "--out", str(tmp_path / "wavs")]
    assert main(["sample", str(teachers.student), *wavs]) == 0
    assert len(list((tmp_path / "wavs").iterdir())) == 40


def test_a_student_is_drawn_what_its_teacher_draws(teachers):
    """In the contexts of the training recordings; the noise follows from the place in the training."""
    method = sequence.SequenceMethod(open_run(teachers.run), "parallel_wavenet")
    method.read(None, {}, 0, lambda text: None)
    stream, (held_out, contexts) = method.training_data(method.stages[0], method.flow, 3)
    assert held_out.shape == (4, 150)
    assert contexts.shape == (4, *method.core.context_shape)
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        method.dataset.x.set_epoch(epoch)
        drawn, real = list(stream), list(method.dataset.x)
        assert len(drawn) == len(stream) == len(real)
        for (x, context), (recording, same) in zip(drawn, real, strict=True):
            assert torch.equal(context, same)
            assert x.shape == recording.shape
            assert torch.isfinite(method.core.log_prob(x, context)).all()
        again = [x for x, _ in stream]
        assert all(torch.equal(x, other) for (x, _), other in zip(drawn, again, strict=True))


def test_a_contrast_takes_two_sounds_at_a_time(teachers, monkeypatch):
    monkeypatch.setattr(sequence, "BATCH_SIZE", 1)
    method = sequence.SequenceMethod(open_run(teachers.run), "parallel_wavenet")
    for settings, rows in (({}, 1), ({"contrast": 0.3}, 2)):
        method.read(None, settings, 0, lambda text: None)
        x, _ = next(iter(method.training_data(method.stages[0], method.flow, 3)[0]))
        assert len(x) == rows


def test_bits_lost_are_those_that_scoring_finds(teachers):
    """The report's likelihood, within the preprocessing, and that of the whole flows differ by noise alone."""
    bits = [
        diffeo.training.load_run(run).metrics["validation"]["bits_per_sample"]
        for run in (teachers.student, teachers.run)
    ]
    lost = diffeo.training.load_run(teachers.student).metrics["distillation"]["real_rows"]
    # of four crops here, of all held-out ones there
    assert abs(bits[0] - bits[1] - lost["mean"]) < 0.5


def test_a_mixture_has_a_student_of_logistic_noise(teachers, tmp_path, capsys):
    """Unconditional, by the command, with the power loss."""
    out = tmp_path / "student"
    assert main(["distill", str(teachers.plain), "--out", str(out), *GIVEN, "--power", "0.5", "--no-figures"]) == 0
    said = capsys.readouterr().out
    for text in (
        "KL(student || teacher)",
        "nats per sample",
        "log-spectral distance",
        "voiced share",
        "without memory",
    ):
        assert text in said
    recipe = diffeo.load(out).recipe
    assert recipe["arguments"]["noise"] == "logistic"
    assert not (out / "sounds").exists()


def test_an_interrupted_distillation_goes_on(teachers, tmp_path, monkeypatch):
    """Draws and the order of the crops depend on the place in the training alone."""
    original, written = checkpoints.save_checkpoint, []

    def dying(path, *rest):
        original(path, *rest)
        written.append(path.parent.parent.name)
        if written[-1] == "reverse":
            raise KeyboardInterrupt

    out = tmp_path / "student"
    monkeypatch.setattr(checkpoints, "save_checkpoint", dying)
    with pytest.raises(KeyboardInterrupt):
        commands.distill(teachers.run, out, figures=False, **TINY)
    monkeypatch.setattr(checkpoints, "save_checkpoint", original)
    commands.distill(teachers.run, out, resume=True, figures=False)
    whole, resumed = (diffeo.load(path).state_dict() for path in (teachers.student, out))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_mistakes_get_one_line(teachers, tmp_path, capsys):
    def refused(run, *argv):
        capsys.readouterr()
        assert main(["distill", str(run), "--out", str(tmp_path / "out"), *map(str, argv)]) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
        assert len(said) == 1, said
        return said[0]

    run = teachers.run
    assert "student 'iaf' is for tables; expected one of parallel_wavenet" in refused(run, "--student", "iaf")
    assert "unknown student 'maf'" in refused(run, "--student", "maf")
    assert "a student has its teacher's noise ('logistic')" in refused(teachers.plain, "--set", "noise=normal")
    assert "a student has its teacher's context (6)" in refused(run, "--set", "context=3")
    assert "--drop-missing is for tables, and these data are audio" in refused(run, "--drop-missing")
    assert "expected contrast in [0, 1), got 1" in refused(run, "--contrast", 1)
    assert "expected forward share in [0, 1), got 1" in refused(run, "--forward-share", 1)
    assert "expected power of at least 0" in refused(run, "--power", -1)
    assert "expected a student of affine autoregressive maps" in refused(run, "--set", "univariate=spline")
    assert "has no context to tell apart" in refused(teachers.plain, "--contrast", 0.3)
    assert "samples in one pass already" in refused(teachers.student)
    assert "only a wavenet can be distilled" in refused(teachers.student, "--force")
    assert "no such file" in refused(run, "--data", tmp_path / "none")
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    model = json.loads((moved / "model.json").read_text())
    model["provenance"]["data"]["name"] = str(tmp_path / "gone")
    (moved / "model.json").write_text(json.dumps(model))
    assert "recordings are needed to distil it" in refused(moved)
    other = tmp_path / "other"
    other.mkdir()
    for i in range(3):
        shutil.copy(teachers.data / "low_001.wav", other / f"loud_{i}.wav")
    assert "has the label 'loud', expected one of high, low" in refused(run, "--data", other)
    model["schema"]["kind"] = "images"
    (moved / "model.json").write_text(json.dumps(model))
    assert "of its images expected a list of 3 as shape, got none" in refused(moved)


def test_warnings_in_words():
    def one(mean, stderr=0.001):
        return {"mean": mean, "stderr": stderr}

    def sound(**changed):
        return {"rms": one(0.1), "flatness": one(0.05), "voiced_share": one(0.7)} | changed

    near = {"mean": 10.0, "stderr": 1.0, "per_dimension": 0.01, "stderr_per_dimension": 0.001}
    good = {
        "dimensions": 1000, "non_finite": 0, "reverse_kl": near, "forward_kl": near,
        "entropy": {"student": one(-500, 5), "teacher": one(-500, 5)},
        "sound": {"real": sound(), "teacher": sound(), "student": sound()},
    }  # fmt: skip
    assert warnings(good) == []
    wide = good | {"entropy": {"student": one(-300, 5), "teacher": one(-500, 5)}}
    assert "hisses" in warnings(wide)[0]
    flat = good | {"sound": good["sound"] | {"student": sound(flatness=one(0.1))}}
    assert "hisses" in warnings(flat)[0]
    narrow = good | {"entropy": {"student": one(-700, 5), "teacher": one(-500, 5)}}
    assert "buzzes" in warnings(narrow)[0]
    quiet = good | {"sound": good["sound"] | {"student": sound(rms=one(0.05))}}
    assert "50% of the loudness" in warnings(quiet)[0]
    far = good | {"forward_kl": near | {"per_dimension": 0.5}}
    assert "KL(teacher || student) is 0.50 nats per sample" in warnings(far)[0]
    assert "not finite" in warnings(good | {"non_finite": 1})[0]


def test_naive_generation_is_the_incremental_one():
    flow = diffeo.wavenet(120, channels=4, layers=3, cycles=1, skip=8, hop=HOP, preprocess=["standardize"]).double()
    randomise(flow.eval(), 0.3)
    z = flow.base.sample((2,))
    with torch.no_grad():
        x = flow.decode(z)
        assert torch.allclose(generate_end_naively(flow, x.clone(), z, None, 20), x[:, -20:], atol=1e-10)
