"""Images from the command line to the run directory and back."""

import csv
import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import diffeo
from diffeo import commands
from diffeo.cli.main import main
from diffeo.errors import UserError
from diffeo.modalities.images.dataset import ImageDataset

SMALL = {"hidden": [8], "transforms": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small RealNVP of the digits and a conditional NICE of bright and dark squares."""
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:  # all figures, however slow the machine
        patch.setattr(sys.modules["diffeo.commands.fit"], "FIGURES_SECONDS", 600.0)
        patch.setattr("diffeo.modalities.images.figures.STEPS", 20)
        commands.fit("digits", folder / "digits", model="realnvp", epochs=2, arguments={"hidden": [8]})
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 2
    pixels = (generator.integers(0, 100, (400, 6, 6)) + 150 * labels[:, None, None]).astype(np.uint8)
    np.savez(folder / "squares.npz", x=pixels, y=labels)
    commands.fit(
        folder / "squares.npz", folder / "squares", model="nice", context=["label"], epochs=30, batch_size=100,
        arguments={"hidden": [32]}, figures=False,
    )  # fmt: skip
    return folder


def saved(path):
    """The pictures of an archive."""
    with np.load(path) as archive:
        return archive["x"]


def test_a_run_of_images(runs):
    facts = commands.info(runs / "digits")
    assert facts["shape"] == [1, 8, 8]
    assert facts["levels"] == 17
    assert facts["model"] == "realnvp"
    part = facts["metrics"]["validation"]
    assert part["bits_per_dim"] == pytest.approx(part["nll"] / (64 * math.log(2)))
    assert {path.name for path in (runs / "digits" / "figures").iterdir()} >= {
        "learning_curve.png", "samples.png", "between.png", "inpainting.png", "scales.png",
    }  # fmt: skip


@pytest.mark.parametrize(("side", "count", "name"), [(8, 40, "nsf"), (16, 4000, "nsf"), (18, 40, "realnvp")])
def test_small_images_are_learned_element_by_element(side, count, name):
    """And the fewer there are, the more is done against overfitting."""
    data = ImageDataset(np.random.default_rng(0).integers(0, 256, (count, side, side)).astype(np.uint8), {}, 0)
    model, arguments = data.default_model()
    training = data.training(diffeo.recipes.build(model, {"features": data.features, **SMALL}))
    assert model == name
    if name == "nsf":
        assert arguments["dropout"] == pytest.approx(min(0.1, 160 / data.rows), abs=1e-4)
        assert training["weight_decay"] == pytest.approx(1300 / data.rows)
    else:
        assert "weight_decay" not in training


def test_scores_have_a_line_per_image(runs, tmp_path):
    summary = commands.score(runs / "digits", "digits", tmp_path / "s.csv")
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert len(rows) == summary["rows"] == 1797
    assert [int(row["image"]) for row in rows] == list(range(1, 1798))
    bits = np.array([float(row["bits_per_dim"]) for row in rows])
    assert np.isfinite(bits).all()
    assert summary["bits_per_dim"] == pytest.approx(bits.mean())
    again = commands.score(runs / "digits", "digits", tmp_path / "t.csv")
    assert again["mean"] == summary["mean"], "the same noise"


def test_samples_as_grid_array_and_folder(runs, tmp_path):
    for name in ("x.png", "x.npz", "folder"):
        commands.sample(runs / "digits", 5, tmp_path / name)
    with Image.open(tmp_path / "x.png") as grid:
        assert grid.size[0] > 8
    pixels = saved(tmp_path / "x.npz")
    assert pixels.shape[0] == 5
    assert pixels.max() <= 16
    assert len(list((tmp_path / "folder").glob("*.png"))) == 5
    commands.sample(runs / "digits", 5, tmp_path / "y.npz")
    assert np.array_equal(pixels, saved(tmp_path / "y.npz")), "the same seed, the same images"


def test_a_label_decides(runs, tmp_path):
    for label in "01":
        commands.sample(runs / "squares", 50, tmp_path / f"{label}.npz", given={"label": label})
    dark, bright = (saved(tmp_path / f"{label}.npz").mean() for label in "01")
    assert dark + 30 < bright


def test_inpainting_climbs_and_keeps_what_is_shown(runs, tmp_path):
    flow = diffeo.load(runs / "digits")
    x = torch.from_numpy(diffeo.data.open_images("digits").pixels[:4]).float()
    hidden = torch.zeros(1, 8, 8, dtype=torch.bool)
    hidden[:, 4:] = True
    result = diffeo.inpaint(flow, x, hidden, high=16.0, steps=50)
    assert torch.equal(result.x[:, :, :4].round(), x[:, :, :4])
    assert (result.after > result.before).all()
    assert ((result.x >= 0) & (result.x <= 16)).all()
    with pytest.raises(ValueError, match="boolean mask"):
        diffeo.inpaint(flow, x, hidden.float(), high=16.0)


def test_inpaint_from_the_command_line(runs, tmp_path):
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.savez(tmp_path / "one.npz", x=diffeo.data.open_images("digits").pixels[:3], levels=17)
    paths = [str(tmp_path / name) for name in ("one.npz", "mask.png")]
    assert main(["inpaint", str(runs / "digits"), *paths, "--steps", "20", "-o", str(tmp_path / "out.npz")]) == 0
    done, was = saved(tmp_path / "out.npz"), saved(tmp_path / "one.npz")
    assert np.array_equal(done[..., :4], was[..., :4])


def test_commands(runs, tmp_path, capsys):
    run = str(runs / "squares")
    assert main(["score", run, str(runs / "squares.npz"), "-o", str(tmp_path / "s.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 400
    assert main(["sample", run, "-n", "4", "--given", "label=1", "-o", str(tmp_path / "x.png")]) == 0
    assert main(["info", run]) == 0
    assert "1 x 6 x 6" in capsys.readouterr().out


def test_a_folder_of_pictures(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for number in range(60):
        folder = tmp_path / "photos" / ("even" if number % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        shape = (10, 10, 3) if number % 3 else (12, 16, 3)
        Image.fromarray(generator.integers(0, 255, shape).astype(np.uint8)).save(folder / f"{number}.png")
    photos, run = str(tmp_path / "photos"), str(tmp_path / "run")
    assert main(["fit", photos, "--out", run, "--epochs", "1"]) == 2
    assert "--size" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    options = ["--size", "8", "--context", "label", "--hidden", "8", "--set", "transforms=1", "--no-figures"]
    assert main(["fit", photos, "--out", run, "--epochs", "1", *options]) == 0
    facts = commands.info(run)
    assert facts["shape"] == [3, 8, 8]
    assert facts["classes"] == ["even", "odd"]
    assert main(["score", run, photos, "--out", str(tmp_path / "s.csv")]) == 0
    assert main(["sample", run, "-n", "3", "--given", "label=odd", "--out", str(tmp_path / "x.npz")]) == 0
    assert saved(tmp_path / "x.npz").shape == (3, 3, 8, 8)
    capsys.readouterr()
    assert main(["check", run, photos, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["which"] == "the images of training"
    assert report["round_trip"]["rows"]["max"] < 1e-3
    assert report["log_det"]["max"] < 1e-9


def complete(runs, folder, mask):
    return commands.inpaint(runs / "digits", "digits", mask, folder / "o.npz")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda runs, tmp: commands.score(runs / "digits", runs / "squares.npz"), "8 x 8 grey, got 6 x 6"),
        (lambda runs, tmp: commands.score(runs / "digits", np.zeros((20, 8, 8), np.uint8)), "got 256; an .npz says"),
        (lambda runs, tmp: commands.sample(runs / "digits", 0, tmp / "x.png"), "at least 1"),
        (lambda runs, tmp: commands.sample(runs / "digits", 3, None), "need a place"),
        (lambda runs, tmp: commands.sample(runs / "digits", 3, tmp / "x.jpg"), "unknown extension '.jpg'; images are"),
        (
            lambda runs, tmp: commands.inpaint(runs / "digits", "digits", np.ones((1, 8, 8), np.uint8), tmp / "x.csv"),
            "unknown extension '.csv'",
        ),
        (lambda runs, tmp: commands.fit(np.zeros((20, 7, 9), np.uint8), tmp / "r", model="glow"), "even sides for"),
        (lambda runs, tmp: commands.sample(runs / "squares", 3, tmp / "x.png", given={"label": "7"}), "label=0|1"),
        (lambda runs, tmp: commands.sample(runs / "digits", 3, tmp / "x.png", given={"label": "7"}), "not conditional"),
        (lambda runs, tmp: commands.fit(runs / "squares.npz", tmp / "r", context=["x"]), "label alone"),
        (lambda runs, tmp: commands.fit(np.zeros((20, 8, 8), np.uint8), tmp / "r", context=["label"]), "no labels"),
        (lambda runs, tmp: commands.fit("digits", tmp / "r", drop=["x"]), "is for tables, and these data are images"),
        (lambda runs, tmp: complete(runs, tmp, np.ones((1, 8, 8), np.uint8)), "hides"),
        (lambda runs, tmp: complete(runs, tmp, np.ones((1, 6, 6), np.uint8)), "mask of"),
    ],
)
def test_mistakes_get_one_line(runs, tmp_path, call, message):
    with pytest.raises(UserError, match=message.replace("|", r"\|")) as caught:
        call(runs, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_options_of_other_kinds_are_refused_not_ignored(runs, tmp_path, capsys):
    run, data, out = str(runs / "squares"), str(runs / "squares.npz"), str(tmp_path / "x.csv")
    for argv, option in (
        (["score", run, data, "--out", out, "--keep", "id"], "--keep"),
        (["score", run, data, "--out", out, "--drop-missing"], "--drop-missing"),
        (["check", run, data, "--drop-missing"], "--drop-missing"),
        (["sample", run, "-n", "2", "--out", str(tmp_path / "x.png"), "--given-file", data], "--given-file"),
        (["sample", run, "-n", "2", "--out", str(tmp_path / "x.png"), "--seconds", "1"], "--seconds"),
    ):
        capsys.readouterr()
        assert main(argv) == 2
        said = capsys.readouterr().err
        assert said == f"diffeo: {option} is not for {run}, which was trained on images; leave it out\n"
    assert not list(tmp_path.iterdir())


def test_a_grey_model_does_not_score_colour(runs, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="grey, got 8 x 8 RGB"):
        commands.score(runs / "digits", tmp_path / "x.npy")
