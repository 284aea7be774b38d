"""Few steps: what a stream draws again, distances that a shrunken set cannot fool, and `diffeo distill`."""

import copy
import importlib
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import diffeo
from cases import randomise
from diffeo import commands
from diffeo.bases import StandardNormal
from diffeo.cli import main
from diffeo.distillation import density
from diffeo.distillation import steps as steps_module
from diffeo.distillation.steps import ImageSteps, TableSteps
from diffeo.flow import Flow
from diffeo.objectives import StepMatching, few_steps, guided, reflow_pairs, trajectories
from diffeo.report.step_distillation import compare_flows, warnings
from diffeo.report.transport import in_steps, paths, squared_wasserstein, straightness
from diffeo.training import checkpoint as checkpoints
from diffeo.training.sampled import SampleStream
from diffeo.transforms import ODE, Chain


def moving(context=0, **options):
    """A flow of two columns whose velocity is not at its start."""
    flow = diffeo.flow_matching(2, context, **{"hidden": (16, 16), "preprocess": [], **options})
    randomise(flow.ode.velocity.net, 0.3)
    return flow.eval()


# draws that are used again


@pytest.mark.parametrize("context", [0, 3])
def test_draws_are_used_again_in_other_orders(context):
    flow, contexts = moving(context), torch.randn(20, context) if context else None

    def stream():
        return SampleStream(flow, contexts, batch_size=8, batches=3, seed=1, draw=reflow_pairs, reused=2)

    def epoch(source, number):
        source.set_epoch(number)
        return [x if c is None else torch.cat([x.flatten(1), c], 1) for x, c in source]

    def as_set(batches):
        return sorted(map(tuple, torch.cat(batches).flatten(1).tolist()))

    whole = stream()
    epochs = [epoch(whole, number) for number in range(4)]
    assert all(len(batches) == 3 and len(batches[0]) == 8 for batches in epochs)
    assert as_set(epochs[0]) == as_set(epochs[1])
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert set(as_set(epochs[0])).isdisjoint(as_set(epochs[2]))
    for number in (1, 2, 3):  # whoever resumes there finds the same
        assert all(torch.equal(*pair) for pair in zip(epochs[number], epoch(stream(), number), strict=True))
    if not context:
        assert torch.allclose(flow.decode(epochs[3][0][:, 0]), epochs[3][0][:, 1], atol=1e-6)


def test_steps_can_withhold_their_context():
    flow = moving(3, droppable=True)
    objective = StepMatching(few_steps(flow, 2), dropout=0.5)
    kept = []
    velocity = objective.flow.ode.velocity
    velocity.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[3] if len(inputs) > 3 else None))
    context = torch.randn(400, 3)
    x = trajectories(flow, 400, 2, context)
    objective.train()(x, context)
    objective.eval()(x, context)
    assert abs(kept[0].mean().item() - 0.5) < 0.1
    assert kept[1] is None
    with pytest.raises(ValueError, match="expected a velocity whose context can be withheld"):
        StepMatching(few_steps(moving(3), 2), dropout=0.5)


# what is measured


def test_few_steps_are_fast_and_have_no_likelihood():
    flow = moving(3, droppable=True)
    ode = flow.ode
    assert (ode.fast, ode.has_log_det) == (set(), True)
    assert (in_steps(flow, 4).fast, in_steps(flow, 4).has_log_prob) == ({"sample"}, False)
    assert (in_steps(flow, 32).fast, in_steps(flow, 32).has_log_prob) == (set(), True)
    assert not guided(flow, 2.0).has_log_prob


class Turning(torch.nn.Module):
    """v = A x: a rotation by ``angle`` in all."""

    def __init__(self, angle):
        super().__init__()
        self.angle = angle

    def forward(self, x, t, context=None):
        return self.angle * torch.stack([-x[:, 1], x[:, 0]], 1)


def turning(angle, **options):
    return Flow(StandardNormal(2), ODE(Turning(angle), (2,), **options)).double()


def test_straightness_of_a_rotation():
    """|dx/dt - chord|^2 over |chord|^2, on a circle: (w^2 - |chord|^2) / |chord|^2, the chord being 2 sin(w / 2)."""
    angle, chord = 1.0, 2 * np.sin(0.5)
    assert straightness(turning(angle), steps=400) == pytest.approx((angle**2 - chord**2) / chord**2, rel=1e-3)
    assert straightness(turning(angle, solver="euler", steps=1)) == pytest.approx(0, abs=1e-12)
    # Two Euler steps of v = A x: h A x, then h A (1 + h A) x; each is off the half of their sum by the same.
    z = torch.randn(7, 2).double()
    coarse = turning(angle, solver="euler", steps=2)
    passed = paths(coarse, z)
    assert passed.shape == (3, 7, 2)
    assert torch.allclose(passed[-1], coarse.decode(z))
    assert torch.allclose(passed[1], z + angle / 2 * torch.stack([-z[:, 1], z[:, 0]], 1))
    first, second = passed.diff(dim=0)
    expected = (first - second).square().sum() / (first + second).square().sum()
    torch.manual_seed(1)
    assert straightness(coarse) == pytest.approx(float(expected), rel=1e-6)


def test_distances_are_those_of_the_best_pairing():
    x, y = torch.randn(60, 3), torch.randn(60, 3) + 1
    cost = torch.cdist(x.double(), y.double()).square().numpy()
    assert squared_wasserstein(x, y) == pytest.approx(cost[linear_sum_assignment(cost)].mean(), rel=1e-6)
    with pytest.raises(ValueError, match="expected two samples of one shape"):
        squared_wasserstein(x, y[:50])


@pytest.mark.parametrize("context", [0, 3])
def test_a_copy_is_no_farther_than_chance_and_a_shrunken_flow_is(context):
    size, contexts = 16, torch.eye(3) if context else None

    class Moving(torch.nn.Module):
        def __init__(self, growth):
            super().__init__()
            self.growth = growth

        def forward(self, x, t, context=None):
            return self.growth * x + (1.0 if context is None else context.argmax(1, keepdim=True))

    def made(growth, **options):
        ode = ODE(Moving(growth), (size,), **options)
        return Flow(StandardNormal(size), Chain([ode]), None, (3,) if context else ())

    flow, shrunken = made(0.0), made(-0.5, solver="euler", steps=1)
    report = compare_flows({"teacher": flow, "student": copy.deepcopy(flow)}, contexts, 300, 0)
    chance = report["chance"]
    for by_steps in report["distances"].values():
        for each in by_steps.values():  # this velocity is straight, so any number of steps will do
            assert abs(each["distance"]) < 6 * chance["std"] + 0.01 * size
    assert abs(report["classifier"]["auc"] - 0.5) < 5 * report["classifier"]["stderr"]
    assert report["evaluations"]["teacher"] > 6
    assert report["steps"] is None
    assert warnings(report) == []
    report = compare_flows({"teacher": flow, "student": shrunken}, contexts, 300, 0)
    student = report["distances"]["student"]["1"]
    assert student["raw"] < chance["mean"], "nearer than the teacher's own draws are to each other ..."
    assert student["distance"] > 5 * chance["std"] + 0.05 * size, "... and yet found out"
    assert report["evaluations"]["student"] == 1
    assert "more steps than 1" in warnings(report)[0]


# the command


@pytest.fixture(scope="module", autouse=True)
def brief():
    """Fewer steps in an epoch, fewer rows in a report."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (TableSteps, ImageSteps):
            for name, value in {"batch_size": 32, "batches": 5, "validated": 64, "scored": 40, "reported": 60}.items():
                patch.setattr(kind, name, value)
        patch.setattr(TableSteps, "plotted", 200)
        for name, value in {"batch_size": 32, "batches": 2, "validated": 32}.items():
            patch.setattr(density.DensityMethod, name, value)
        for name, value in {"REPORTED": 200, "TIMED": 20}.items():
            patch.setattr(density, name, value)
        yield


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """A folder with a table and images, and continuous flows of them: unconditional, conditional, of images; a MAF."""
    folder = tmp_path_factory.mktemp("teachers")
    generator = np.random.default_rng(0)
    label = generator.integers(2, size=400)
    x = generator.normal(size=(400, 2)) * [1, 3] + 3 * label[:, None]
    data = str(folder / "two.csv")
    pd.DataFrame({"x": x[:, 0], "y": x[:, 1], "label": label}).to_csv(data, index=False)
    argv = ["fit", data, "--model", "flow-matching", "--epochs", "3", "--hidden", "8", "--set", "tolerance=1e-3"]
    argv += ["--batch-size", "64", "--no-figures", "--folds", "1"]
    assert main([*argv, "--out", str(folder / "plain"), "--drop", "label"]) == 0
    options = ["--context", "label", "--set", "dropout=0.2", "--set", "path=cosine", "--set", "coupling=optimal"]
    assert main([*argv, "--out", str(folder / "given"), *options]) == 0
    maf = ["--model", "maf", "--epochs", "1", "--hidden", "8", "--folds", "1", "--no-figures", "--drop", "label"]
    assert main(["fit", data, *maf, "--out", str(folder / "maf")]) == 0

    pixels = generator.integers(0, 17, (80, 6, 5)).astype(np.uint8)
    images = str(folder / "images.npz")
    np.savez(images, pixels=pixels, labels=np.arange(80) % 2)
    argv = ["fit", images, "--epochs", "1", "--batch-size", "20", "--no-figures", "--context", "label"]
    quick = ["--model", "flow_matching", "--hidden", "4,4", "--set", "tolerance=1e-2"]
    assert main([*argv, *quick, "--out", str(folder / "images")]) == 0
    assert main([*argv, "--model", "realnvp", "--hidden", "4", "--out", str(folder / "realnvp")]) == 0
    return folder


TINY = ["--epochs", "4", "--json"]


def distilled(capsys, *argv):
    capsys.readouterr()
    assert main(["distill", *map(str, argv), *TINY]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("run", "steps"), [("plain", None), ("given", 1)])
def test_a_student_of_few_steps(run, steps, teachers, tmp_path, capsys):
    """By default a continuous flow's student: a run like any other, that samples and says that it has no likelihood."""
    out = tmp_path / "student"
    chosen = [] if steps is None else ["--set", f"steps={steps}"]
    summary = distilled(capsys, teachers / run, "--out", out, *chosen)
    report = summary["distillation"]
    assert (summary["student"], report["steps"]) == ("few-steps", steps or 4)
    assert list(summary["stages"]) == ["reflow", "steps"]
    assert report["straightness"].keys() == report["distances"].keys() == {"teacher", "reflowed", "student"}
    assert report["distances"]["student"].keys() == {"1", "2", "4", "8"}
    assert report["evaluations"]["student"] == (steps or 4) < report["evaluations"]["teacher"]
    assert "validation" not in summary
    assert {path.name for path in (out / "figures").iterdir()} == {"distances.png", "pairs.png"} | (
        {"trajectories.png"} if run == "plain" else set()
    )

    student, teacher = diffeo.training.load_run(out), diffeo.training.load_run(teachers / run)
    ode = student.flow.ode
    assert (ode.solver, ode.steps) == ("euler", steps or 4)
    assert student.flow.context_shape == teacher.flow.context_shape
    assert student.metrics["distillation"] == report
    moved = [
        name for name, value in teacher.flow.state_dict().items() if not value.equal(student.flow.state_dict()[name])
    ]
    assert moved
    assert all("velocity.net" in name for name in moved), "only what is learned may differ"

    options = ["--given", "label=1"] if run == "given" else []
    assert main(["sample", str(out), "-n", "30", "--out", str(tmp_path / "new.csv"), *options]) == 0
    assert np.isfinite(pd.read_csv(tmp_path / "new.csv").to_numpy()).all()
    if run == "given":  # it can still be guided
        assert guided(student.flow, 2.0).sample((), torch.ones(5, 1)).isfinite().all()
    capsys.readouterr()
    assert main(["info", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"steps={steps or 4}" in said
    assert re.search(r"fast +sample", said)
    data = str(teachers / "two.csv")
    for argv in (
        ["score", out, data, "--out", tmp_path / "s.csv"],
        ["check", out, data],
        ["distill", out, "--out", "x"],
    ):
        line = complaint(capsys, *argv)
        assert "samples in a few steps and has no likelihood" in line
        assert f"use the run that it was distilled from, {teachers / run}" in line


def test_a_student_of_images_keeps_its_classes(teachers, tmp_path, capsys):
    out = tmp_path / "student"
    summary = distilled(capsys, teachers / "images", "--out", out, "--set", "steps=2")
    assert summary["context"] == ["label"]
    assert {path.name for path in (out / "figures").iterdir()} == {"distances.png", "samples.png"}
    assert summary["distillation"]["dimensions"] == 30
    assert main(["sample", str(out), "-n", "4", "--given", "label=1", "--out", str(tmp_path / "new.png")]) == 0
    images = str(teachers / "images.npz")
    assert "has no likelihood; use the run" in complaint(capsys, "score", out, images, "--out", tmp_path / "s.csv")
    assert "has no likelihood; use the run" in complaint(capsys, "check", out, images)
    mask = ["inpaint", out, images, images, "--out", tmp_path / "done.png"]
    assert "has no likelihood; use the run" in complaint(capsys, *mask)


@pytest.mark.parametrize("run", ["plain", "images"])
def test_a_reflowed_flow_keeps_its_likelihood(run, teachers, tmp_path, capsys):
    out = tmp_path / "student"
    summary = distilled(capsys, teachers / run, "--out", out, "--student", "reflow")
    report = summary["distillation"]
    assert list(summary["stages"]) == ["reflow"]
    assert report["distances"].keys() == {"teacher", "student"}
    assert report["real_rows"]["rows"] >= 20
    assert np.isfinite(summary["validation"]["nll"])
    data = str(teachers / ("two.csv" if run == "plain" else "images.npz"))
    assert main(["score", str(out), data, "--out", str(tmp_path / "s.csv")]) == 0
    assert (out / "figures" / "distances.png").exists()


def test_a_density_can_learn_from_a_continuous_flow(teachers, tmp_path, capsys):
    out = tmp_path / "student"
    tiny = ["--set", "hidden=[8]", "--set", "transforms=1", "--no-figures"]
    summary = distilled(capsys, teachers / "plain", "--out", out, "--student", "iaf", *tiny)
    assert np.isfinite(summary["distillation"]["forward_kl"]["mean"])
    assert diffeo.load(out).fast == {"sample"}


def test_the_report_in_words(teachers, tmp_path, capsys):
    out = tmp_path / "student"
    assert main(["distill", str(teachers / "plain"), "--out", str(out), "--epochs", "2", "--no-figures"]) == 0
    said = capsys.readouterr().out
    for word in ("straightness", "squared W2", "in Euler steps", "evaluations", "none: a few steps", "sampling"):
        assert word in said
    assert main(["distill", str(teachers / "plain"), "--out", str(out), "--epochs", "2", "--no-figures", "--force",
                 "--student", "reflow"]) == 0  # fmt: skip
    assert "the student's is valid" in capsys.readouterr().out


def complaint(capsys, *argv):
    """Run a command that must fail, and return its one line."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_bad_input(teachers, tmp_path, capsys):
    out = tmp_path / "student"

    def refused(run, *argv):
        return complaint(capsys, "distill", teachers / run, "--out", out, *argv)

    assert "student 'few-steps' is for continuous flows; expected one of nsf-inverse" in refused(
        "maf", "--student", "few-steps"
    )
    assert "student 'iaf' is for tables; expected one of few-steps, reflow" in refused("images", "--student", "iaf")
    assert "unknown student 'maf'; expected one of few-steps, reflow, nsf-inverse" in refused(
        "plain", "--student", "maf"
    )
    assert "expected at least one step, got 0" in refused("plain", "--set", "steps=0")
    assert "takes 1 to 16 steps (--set steps), got 17" in refused("plain", "--set", "steps=17")
    assert "expected a whole number from 1 on or null as steps, got 2.5" in refused("plain", "--set", "steps=2.5")
    assert "student 'few-steps'" in refused("plain", "--set", "steps=four")
    assert "has solver 'euler', got 'rk4'" in refused("plain", "--set", "solver=rk4")
    assert "a student has its teacher's hidden ([8]), got [9]" in refused("plain", "--set", "hidden=[9]")
    assert "a student has its teacher's steps (None), got 4" in refused(
        "plain", "--student", "reflow", "--set", "steps=4"
    )
    assert "samples in one pass already" in refused("realnvp")
    assert "of images, only continuous flows can be distilled" in refused("realnvp", "--force")
    assert "--drop-missing is for tables" in refused("images", "--drop-missing")
    assert "--power is for audio" in refused("plain", "--power", "1")
    assert not out.exists()
    few = ["--model", "flow-matching", "--set", "solver=euler", "--set", "steps=4", "--out", tmp_path / "few"]
    assert main([str(word) for word in ("fit", teachers / "two.csv", *few)]) == 2
    assert "few fixed steps have no likelihood to report" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "few").exists()


@pytest.mark.parametrize("killed", ["reflow", "steps"])
def test_an_interrupted_distillation_goes_on(killed, teachers, tmp_path, monkeypatch):
    """Killed in either stage, in the middle of draws that are used again, it ends with the same bits."""
    monkeypatch.setattr(steps_module, "REUSED", 2)
    original = checkpoints.save_checkpoint
    written = []

    def dying(path, *rest):
        original(path, *rest)
        written.append(path.parent.parent.name)
        if written.count(killed) == 3:
            raise KeyboardInterrupt

    def often(*arguments, **options):
        return fit(*arguments, **options, checkpoint_every=0.0)

    command = importlib.import_module("diffeo.commands.distill")  # the name of the package's is the function
    fit = command.fit
    monkeypatch.setattr(command, "fit", often)
    options = {"epochs": 6, "figures": False}
    commands.distill(teachers / "given", tmp_path / "whole", **options)
    monkeypatch.setattr(checkpoints, "save_checkpoint", dying)
    with pytest.raises(KeyboardInterrupt):
        commands.distill(teachers / "given", tmp_path / "cut", **options)
    monkeypatch.setattr(checkpoints, "save_checkpoint", original)
    commands.distill(teachers / "given", tmp_path / "cut", resume=True, figures=False)
    whole, resumed = (diffeo.load(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert written[-1] == killed
