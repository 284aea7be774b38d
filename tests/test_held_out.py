"""Which rows a run is judged by: those kept for the test, else those for validation, and in sample no trust."""

import hashlib

import numpy as np
import pytest
import torch

from diffeo import commands
from diffeo.cli.main import main
from diffeo.commands.check import IN_SAMPLE
from diffeo.data import infer_schema, open_images, open_table
from diffeo.errors import UserError
from diffeo.modalities.images.dataset import hold_out
from diffeo.modalities.tables import rows as rows_module
from diffeo.training.batches import split
from diffeo.training.splitting import held_out_of_stream, split_evenly, split_rows

SMALL = {"folds": 1, "epochs": 3, "arguments": {"hidden": [16], "transforms": 1}, "figures": False}
PICTURES = {name: value for name, value in SMALL.items() if name != "folds"}
TEST = "test rows, held out of training and of early stopping"


def correlated(rows, seed=0):
    """Rows of a Gaussian."""
    return np.random.default_rng(seed).normal(size=(rows, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]])


def pictures(count=300):
    """Noise of 6 x 6 grey pixels."""
    return np.random.default_rng(0).integers(0, 256, (count, 6, 6)).astype(np.uint8)


@pytest.mark.parametrize(("count", "test"), [(1500, 0), (1500, 300), (10, 1), (3, 1), (2, 0)])
def test_the_parts_are_disjoint_and_complete(count, test):
    parts = split_rows(count, 3, test)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(count))
    train, valid, tested = map(len, parts)
    assert tested == test
    assert valid == max(1, round(0.1 * (count - test)))
    assert train >= 1


def of_fit(count, fraction, seed):
    """The rows that ``fit`` trains on and those that it holds out."""
    parts = split(
        torch.zeros(count, 1), None, fraction, batch_size=9, seed=seed, device=torch.device("cpu"), dtype=None
    )
    return [part.rows for part in parts]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (split_rows(1500, 0), "0c156e921fec4e94"),
        (split_rows(1500, 7, 300), "0e0ce3007a166a9e"),
        (split_rows(10, 3, 1), "3c4be9122ba1c34d"),
        (split_rows(3, 1, 1), "b1b4b82c7364c1cc"),
        (split_rows(2, 0), "6b8ce218ae16018b"),
        (split_evenly(100, 0)[:2], "d04114fd584222ea"),
        (split_evenly(100, 0, np.arange(100) % 5)[:2], "2d8dbd802db02a84"),
        (split_evenly(37, 2, np.arange(37) % 3)[:2], "e43296fa7f52fae4"),
        (split_evenly(2, 1, np.arange(2))[:2], "115c5dc81dcdefc5"),
        (of_fit(400, 0.1, 0), "e0cb3bb08e72d810"),
        (of_fit(1001, 0.25, 3), "81aa17f9e711cef9"),
        (of_fit(2, 0.1, 0), "95d780494ecacc5a"),
    ],
)
def test_a_seed_divides_as_it_always_did(parts, expected):
    """Runs store their seed alone; whoever looks at one again must find the rows that were held out then."""
    numbers = b"|".join(part.numpy().astype("<i8").tobytes() for part in parts)
    assert hashlib.sha256(numbers).hexdigest()[:16] == expected


def test_a_stream_holds_out_a_tenth_or_what_suffices():
    numbers = np.arange(1, 5001)
    drawn = [held_out_of_stream(numbers, 10_000, key) for key in (3, 4)]
    for valid, tested in drawn:
        assert 400 < valid.sum() < 600
        assert not tested.any()
    assert 20 < (drawn[0][0] & drawn[1][0]).sum() < 90  # one has nothing to do with the other
    valid, tested = held_out_of_stream(np.arange(1, 10_001), 200_000 * 100, 3, test=0.5)
    assert all(60 < part.sum() < 140 for part in (valid, tested))
    assert not (valid & tested).any()


def test_a_row_of_a_stream_is_held_out_whatever_is_read_with_it():
    numbers = np.arange(1, 5001)
    together = held_out_of_stream(numbers, 5000, 3, test=0.2)
    backwards = held_out_of_stream(numbers[::-1], 5000, 3, test=0.2)
    for part, other, low in zip(together, backwards, (300, 900), strict=True):
        assert np.array_equal(part, other[::-1])
        assert low < part.sum() < low + 200  # a tenth of what the test leaves, and a fifth
    known = b"|".join(np.flatnonzero(part).astype("<i8").tobytes() for part in together)
    assert hashlib.sha256(known).hexdigest()[:16] == "013afe95e1ef9961"


@pytest.mark.parametrize(("count", "labels"), [(100, None), (100, 5), (37, 3), (2, None), (10, 10)])
def test_recordings_are_held_out_evenly_over_their_labels(count, labels):
    labels = None if labels is None else np.arange(count) % labels
    train, valid, test = split_evenly(count, 5, labels)
    assert torch.equal(torch.cat([train, valid]).sort().values, torch.arange(count))
    assert len(test) == 0
    assert len(valid) == max(1, round(0.1 * count))
    assert all(torch.equal(part, part.sort().values) for part in (train, valid))
    if labels is not None:
        held = np.bincount(labels[valid.numpy()], minlength=labels.max() + 1)
        assert np.ptp(held) <= 1


def test_test_rows_leave_no_trace(tmp_path):
    """Whatever the test rows are, the weights are the same to the bit, and so are the likelihoods of the others."""
    x = correlated(1500)
    other = x.copy()
    other[split_rows(1500, 0, 300)[2]] *= 3.0
    for name, table in (("a", x), ("b", other)):
        commands.fit(table, tmp_path / name, test=0.2, **SMALL)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b
    a, b = (commands.info(tmp_path / name)["metrics"] for name in "ab")
    assert a["rows"] == b["rows"] == {"train": 1080, "validation": 120, "test": 300}
    assert a["validation"] == b["validation"]
    assert a["test"]["nll"] + 1 < b["test"]["nll"]


def test_check_takes_the_test_rows(tmp_path, capsys):
    x = correlated(1500)
    commands.fit(x, tmp_path / "run", test=0.2, **SMALL)
    report = commands.check(tmp_path / "run", x)
    assert (report["which"], report["rows"], report["in_sample"]) == (TEST, 300, False)
    expected = commands.info(tmp_path / "run")["metrics"]["test"]["nll"]
    assert -report["likelihood"]["flow"]["mean"] == pytest.approx(expected, rel=1e-6)
    assert main(["info", str(tmp_path / "run")]) == 0
    assert f"test        {expected:.3f} ± " in capsys.readouterr().out
    report = commands.check(tmp_path / "run", x, rows=50)
    assert (report["which"], report["rows"]) == (f"50 of {TEST}", 50)
    commands.distill(tmp_path / "run", tmp_path / "fast", x, student="realnvp", epochs=1, figures=False)
    assert commands.check(tmp_path / "fast", x)["which"] == TEST
    assert commands.info(tmp_path / "fast")["metrics"]["distillation"]["real_rows"]["which"] == TEST
    np.save(tmp_path / "x.npy", x)
    argv = ["fit", tmp_path / "x.npy", "--out", tmp_path / "other", "--test", "0.2", "--epochs", "1", "--no-figures"]
    argv += ["--folds", "1"]
    assert main([str(word) for word in argv]) == 0
    assert "1,080 for training, 120 for validation, 300 for the test" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "other"), str(tmp_path / "x.npy")]) == 0
    assert f"x.npy: {TEST} (300)" in capsys.readouterr().out


def test_test_rows_are_taken_however_few_they_are(tmp_path):
    x = correlated(150)
    commands.fit(x, tmp_path / "run", test=0.2, **SMALL)
    report = commands.check(tmp_path / "run", x)
    assert (report["which"], report["rows"]) == (TEST, 30)
    commands.fit(x, tmp_path / "run", test=0.1, force=True, **SMALL)
    with pytest.raises(UserError, match="has 15 usable rows, expected at least 20 to check by"):
        commands.check(tmp_path / "run", x)


def test_nothing_is_trustworthy_in_sample(tmp_path, monkeypatch):
    """The same model, rows of the same distribution: it depends on whether it was trained on them."""
    x = correlated(600)
    commands.fit(x, tmp_path / "run", **{**SMALL, "epochs": 30})
    report = commands.check(tmp_path / "run", x)
    assert (report["which"], report["rows"], report["in_sample"]) == ("the rows of training", 600, True)
    assert report["verdict"] == IN_SAMPLE
    assert commands.check(tmp_path / "run", correlated(600, seed=1))["verdict"] == "trustworthy"
    monkeypatch.setattr(rows_module, "LARGE", 0)  # too many to be read, but not to be known
    report = commands.check(tmp_path / "run", x)
    assert (report["in_sample"], report["verdict"]) == (True, IN_SAMPLE)


def test_what_is_bad_in_sample_stays_bad(tmp_path):
    x = correlated(600)
    x[:300] += 40.0
    commands.fit(x, tmp_path / "run", model="nice", **{**SMALL, "epochs": 1})
    report = commands.check(tmp_path / "run", x)
    assert (report["in_sample"], report["verdict"]) == (True, "not trustworthy")
    assert report["reasons"]


def test_images(tmp_path):
    x = pictures()
    commands.fit(x, tmp_path / "run", model="nice", test=0.2, **PICTURES)
    assert commands.info(tmp_path / "run")["metrics"]["rows"] == {"train": 216, "validation": 24, "test": 60}
    report = commands.check(tmp_path / "run", x)
    assert (report["which"], report["rows"]) == ("test images, held out of training and of early stopping", 60)
    train, valid, test = hold_out(open_images(x), 0, 60)
    assert (len(train), len(valid), len(test)) == (216, 24, 60)


def test_images_with_a_test_part_are_judged_by_it(tmp_path):
    np.savez(tmp_path / "x.npz", x=pictures(), x_test=pictures(40))
    commands.fit(tmp_path / "x.npz", tmp_path / "run", model="nice", **PICTURES)
    assert commands.check(tmp_path / "run", tmp_path / "x.npz")["rows"] == 40
    with pytest.raises(UserError, match="has test images of its own; leave --test out"):
        commands.fit(tmp_path / "x.npz", tmp_path / "other", model="nice", test=0.1, **PICTURES)


@pytest.mark.parametrize("test", [0.0, 1.0, -0.1, 1.5])
def test_a_fraction_that_is_none(tmp_path, test):
    with pytest.raises(UserError, match=r"expected a fraction of the rows for the test in \(0, 1\), got"):
        commands.fit(correlated(50), tmp_path / "run", test=test, **SMALL)
    assert not (tmp_path / "run").exists()


def test_rows_must_be_left(tmp_path):
    with pytest.raises(UserError, match=r"expected at least 2 rows beside those of the test \(--test 0.99\), got 50"):
        commands.fit(correlated(50), tmp_path / "run", test=0.99, **SMALL)


def test_a_table_that_is_streamed_has_test_rows(tmp_path, monkeypatch):
    """No more than suffice, and in no batch."""
    monkeypatch.setattr(rows_module, "LARGE", 0)
    x = correlated(1000)
    summary = commands.fit(x, tmp_path / "run", test=0.2, **{**SMALL, "epochs": 1})
    sizes = summary["rows"]
    assert sum(sizes.values()) == 1000
    assert 150 < sizes["test"] < 250
    assert 40 < sizes["validation"] < 120
    assert summary["test"]["nll"] > 0
    stream = rows_module.split_table(table := open_table(x), infer_schema(table), 50, 0, 0.2).x
    seen = {row.tobytes() for batch, _ in stream for row in batch.numpy()}
    for held in (stream.valid_x, stream.test_x):
        assert seen.isdisjoint(row.tobytes() for row in held.numpy())
    monkeypatch.setattr("diffeo.modalities.tables.stream.MOST_HELD_OUT", 30)
    stream = rows_module.split_table(table, infer_schema(table), 50, 0, 0.2).x
    assert 10 < len(stream.test_x) < 60
