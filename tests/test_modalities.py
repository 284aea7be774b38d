"""Kinds of data: each is one folder and one line, and every command works on a new one."""

import json

import numpy as np
import pytest

from diffeo import commands, modalities
from diffeo.cli.main import main
from diffeo.errors import UserError
from diffeo.modalities.base import held_out


@pytest.fixture
def points(monkeypatch, tmp_path):
    """A file of JSON lines, and the line that makes diffeo know them."""
    monkeypatch.setattr(modalities, "MODALITIES", ["jsonlines.modality", *modalities.MODALITIES])
    x = np.random.default_rng(0).normal(size=(500, 2)) @ np.array([[1.0, 0.9], [0.0, 0.3]]) + 5.0
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in x.tolist()))
    return path


def test_a_new_kind_of_data_is_one_folder_and_one_line(points, tmp_path, capsys):
    run, drawn = tmp_path / "run", tmp_path / "drawn.jsonl"
    assert main(["fit", str(points), "--out", str(run), "--epochs", "30", "--seed", "1"]) == 0
    assert main(["score", str(run), str(points), "--out", str(tmp_path / "s.csv")]) == 0
    assert "500 points in" in capsys.readouterr().out
    assert main(["sample", str(run), "-n", "400", "--out", str(drawn)]) == 0
    assert main(["info", str(run)]) == 0
    x = np.array([json.loads(line) for line in points.read_text().splitlines()])
    samples = np.array([json.loads(line) for line in drawn.read_text().splitlines()])
    assert samples.shape == (400, 2)
    np.testing.assert_allclose(samples.mean(0), x.mean(0), atol=0.2)
    scores = np.genfromtxt(tmp_path / "s.csv", skip_header=1)
    assert commands.score(run, points, tmp_path / "t.csv")["mean"] == pytest.approx(scores.mean())
    assert commands.check(run, points)["verdict"] in ("trustworthy", "usable with care")


def test_what_a_kind_of_data_cannot_do_is_refused(points, tmp_path):
    commands.fit(points, tmp_path / "run", epochs=1)
    for call, match in (
        (lambda: commands.score(tmp_path / "run", points, tmp_path / "s.csv", keep=["x"]), "--keep is not for"),
        (lambda: commands.sample(tmp_path / "run", 3, tmp_path / "x", length=2.0), "--seconds is not for"),
        (lambda: commands.distill(tmp_path / "run", tmp_path / "fast"), "of points, nothing can be distilled"),
        (lambda: commands.inpaint(tmp_path / "run", "a.png", "b.png", tmp_path / "c.png"), "not trained on images"),
        (lambda: commands.fit(points, tmp_path / "other", size=[8]), "--size is for images, and these data are points"),
    ):
        with pytest.raises(UserError, match=match):
            call()
    assert not (tmp_path / "other").exists()


def test_a_run_of_an_unknown_kind_is_named(points, tmp_path, monkeypatch):
    commands.fit(points, tmp_path / "run", epochs=1)
    monkeypatch.undo()
    with pytest.raises(UserError, match="was trained on 'points', which this diffeo does not know"):
        commands.info(tmp_path / "run")


@pytest.mark.parametrize(
    ("source", "model", "name"),
    [("moons", None, "table"), ("digits", None, "images"), ("fsdd", None, "audio"), ("x.csv", None, "table"),
     ("x.wav", None, "audio"), ("x.png", None, "images"), ("x.npy", "wavenet", "audio")],
)  # fmt: skip
def test_data_are_recognized(source, model, name):
    assert modalities.recognize(source, model).name == name


def test_test_rows_come_before_those_for_validation():
    assert held_out(1000, 5, "rows")[0] == "test"
    assert held_out(1000, 0, "rows")[0] == "valid"
    assert held_out(99, 0, "rows") == (None, "the rows of training")
