"""Distillation: what the estimators estimate, what the teacher keeps, what the report sees, and the command."""

import copy
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import diffeo
from cases import randomise
from diffeo import commands
from diffeo.bases import GaussianMixture, StandardLogistic, StandardNormal
from diffeo.cli import main
from diffeo.commands.distill import pace_warnings
from diffeo.distillation import density
from diffeo.flow import Flow
from diffeo.objectives import Distillation, WarmStart
from diffeo.objectives.distillation import path_gradient, reparameterized
from diffeo.report import words
from diffeo.report.distillation import compare_draws, draw_both, generate_naively, mode_recall, pace, warnings
from diffeo.training import checkpoint as checkpoints
from diffeo.training.checkpoint import trained
from diffeo.training.sampled import SampleStream
from diffeo.transforms import Affine, Elementwise

ESTIMATORS = [reparameterized, path_gradient]


def small(recipe, context=0, **arguments):
    """A flow of three columns, away from its start, which is the identity."""
    flow = diffeo.recipes.build(
        recipe, {"features": 3, "context": context, "transforms": 2, "hidden": [8], "preprocess": [], **arguments}
    )
    randomise(flow, 0.3)
    return flow


def gaussian():
    """A normal density in the plane with random means and standard deviations."""
    flow = Flow(StandardNormal(2), Elementwise(Affine(), (2,))).double()
    randomise(flow)
    return flow


def moments(flow):
    """Mean and standard deviation of each element of an elementwise affine flow, differentiable."""
    zero = flow.decode(torch.zeros(1, *flow.event_shape, dtype=torch.float64))[0]
    one = flow.decode(torch.ones(1, *flow.event_shape, dtype=torch.float64))[0]
    return zero, one - zero


def closed_form(student, teacher):
    """KL between normal densities with independent elements."""
    (m, s), (n, t) = moments(student), moments(teacher)
    return (t.log() - s.log() + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5).sum()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_agree_with_the_closed_form(estimator):
    """The mean of the estimates is the KL of two normal densities, and its gradient the KL's."""
    student, teacher = gaussian(), gaussian()
    x = torch.zeros(20_000, 2)
    draw, estimates = estimator(student, teacher, x, None)
    exact = closed_form(student, teacher)
    assert draw.shape == x.shape
    assert abs(estimates.mean() - exact) < 5 * estimates.std() / len(x) ** 0.5
    names = [name for name, _ in student.named_parameters()]
    wanted = torch.autograd.grad(exact, list(student.parameters()))
    # Gradients of blocks of draws give the error of their mean.
    blocks = [
        torch.autograd.grad(b.mean(), list(student.parameters()), retain_graph=True) for b in estimates.split(500)
    ]
    for i, name in enumerate(names):
        each = torch.stack([block[i] for block in blocks])
        error = each.std(0) / len(blocks) ** 0.5
        assert ((each.mean(0) - wanted[i]).abs() < 5 * error + 1e-9).all(), name


@pytest.mark.parametrize("recipe", ["iaf", "realnvp"])
def test_a_teacher_has_no_divergence_from_itself(recipe):
    """Every single estimate is 0, and every path gradient: that is what it is for. The plain gradient is noise."""
    teacher = small(recipe).double()
    x = teacher.sample(50)
    sizes = {}
    for estimator in ESTIMATORS:
        objective = Distillation(copy.deepcopy(teacher), teacher, estimator=estimator)
        loss = objective(x)
        assert loss.shape == (50,)
        assert loss.abs().max() < 1e-9
        reverse = Distillation(objective.flow, teacher, estimator=estimator, forward_share=0.0)(x)
        grads = torch.autograd.grad(reverse.mean(), [p for p in objective.flow.parameters()])
        sizes[estimator] = max(float(grad.abs().max()) for grad in grads)
    assert sizes[path_gradient] < 1e-8
    assert sizes[reparameterized] > 1e-2


def test_gradients_reach_the_student_through_the_teacher():
    student, teacher = small("iaf", context=2), small("maf", context=2)
    objective = Distillation(student, teacher, forward_share=0.0)
    objective(torch.randn(20, 3), torch.randn(20, 2)).mean().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())


def test_the_teacher_is_not_trained_nor_stored():
    student, teacher = small("iaf"), small("maf")
    objective = Distillation(student, teacher)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    result = diffeo.fit(objective, SampleStream(teacher, batches=5), validation=0, epochs=1)
    assert result.steps == 5
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in objective.teacher.state_dict().items())
    learned = {name for name, _ in objective.named_parameters()}
    assert not [name for name in trained(objective) if name.startswith("teacher.") and name in learned]
    objective.train()
    assert student.training
    assert not objective.teacher.training


def test_forward_share_is_maximum_likelihood():
    """All of it: the gradient is that of the likelihood, though the loss is a KL; a part of it: the two KLs mixed."""
    student, teacher = small("iaf"), small("maf")
    x = teacher.sample(40)
    parameters = list(student.parameters())
    loss = Distillation(student, teacher, forward_share=1.0)(x)
    with torch.no_grad():
        assert torch.allclose(loss, teacher.log_prob(x) - student.log_prob(x), atol=1e-5)
    ours = torch.autograd.grad(loss.mean(), parameters)
    likelihood = torch.autograd.grad(diffeo.MaximumLikelihood(student)(x).mean(), parameters)
    for one, other in zip(ours, likelihood, strict=True):
        assert torch.allclose(one, other, atol=1e-5)

    def seeded(share):
        torch.manual_seed(3)
        return Distillation(student, teacher, forward_share=share)(x)

    assert torch.allclose(seeded(0.25), 0.75 * seeded(0.0) + 0.25 * seeded(1.0), atol=1e-5)


def test_without_a_forward_estimator_the_other_gives_both():
    x = torch.randn(30, 3)
    with pytest.raises(ValueError, match="expected an estimator of both KLs"):
        Distillation(small("iaf"), small("maf"), forward_estimator=None)(x)
    assert Distillation(small("iaf"), small("maf"), forward_estimator=None, forward_share=0.0)(x).shape == (30,)


def test_contrast_is_a_divergence_from_the_wrong_context():
    student, teacher = small("iaf", context=2), small("maf", context=2)
    x, context = torch.randn(30, 3), torch.randn(30, 2)
    torch.manual_seed(1)
    draw, log_q = student.sample_and_log_prob((), context)
    right = log_q - teacher.log_prob(draw, context)
    wrong = log_q - teacher.log_prob(draw, context.roll(1, 0))
    torch.manual_seed(1)
    objective = Distillation(student, teacher, estimator=reparameterized, forward_share=0.0, contrast=0.3)
    assert torch.allclose(objective(x, context), right - 0.3 * wrong, atol=1e-5)
    torch.manual_seed(1)
    draw, log_q = student.sample_and_log_prob((), context[:1])
    torch.manual_seed(1)
    alone = objective(x[:1], context[:1])
    assert torch.allclose(alone, log_q - teacher.log_prob(draw, context[:1]), atol=1e-5), "no other to be told from"


def test_auxiliary_losses_see_draws_rows_and_context():
    class Apart(nn.Module):
        def forward(self, draw, x, context):
            seen.append((draw.requires_grad, context))
            return (draw - x).square().sum(1)

    seen = []
    student, teacher = small("iaf"), small("maf")
    x = torch.randn(10, 3)

    def seeded(auxiliary=(), share=0.0):
        torch.manual_seed(2)
        return Distillation(student, teacher, forward_share=share, auxiliary=auxiliary)(x)

    torch.manual_seed(2)
    distance = (student.sample(10) - x).square().sum(1)
    assert torch.allclose(seeded([(0.5, Apart())]) - seeded(), 0.5 * distance, atol=1e-4)
    assert torch.allclose(seeded([(0.5, Apart())], 1.0) - seeded(share=1.0), 0.5 * distance, atol=1e-4)
    assert seen == [(True, None), (True, None)]


def test_layers_that_set_themselves_see_the_rows():
    """A student's own draws would tell its Standardize nothing: without being shown it would stay the identity."""
    teacher = diffeo.maf(2, transforms=1, hidden=(4,))
    rows = 100 + 5 * torch.randn(500, 2)
    with torch.no_grad():
        teacher.train().log_prob(rows)
    student = diffeo.iaf(2, transforms=1, hidden=(4,))
    Distillation(student, teacher, forward_share=0.0).train()(rows)
    assert torch.allclose(student.transform.transforms[-1].mean, rows.mean(0), atol=1e-2)


def test_a_bad_row_spoils_no_other():
    student, teacher = small("iaf"), small("maf")
    x = torch.randn(5, 3)
    x[2, 1] = math.nan
    assert Distillation(student, teacher)(x).isfinite().tolist() == [True, True, False, True, True]


def test_warm_start():
    """The student that maps the teacher's latents to its rows has no error; latents beyond the noise are clamped."""
    teacher = small("iaf")
    x = teacher.sample(200)
    same = WarmStart(copy.deepcopy(teacher), teacher)
    assert same(x).shape == (200,)
    assert same(x).median() < 1e-8
    far = teacher.decode(torch.full((1, 3), 30.0)).detach()
    assert same(torch.cat([x, far]))[-1] > 1
    student = small("iaf")
    with torch.no_grad():
        before = float(WarmStart(student, teacher).train()(x).mean())
    result = diffeo.fit(WarmStart(student, teacher), SampleStream(teacher, batches=60), validation=0, epochs=1)
    assert result.best_loss < before


@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"),
    [
        (lambda: small("iaf"), lambda: nn.Linear(3, 3), {}, r"expected a teacher with a density .*, got Linear"),
        (
            lambda: small("iaf", features=2),
            lambda: small("maf"),
            {},
            r"student of events \(3,\).*got \(2,\)",
        ),
        (lambda: small("iaf"), lambda: small("maf", context=2), {}, r"student of contexts \(2,\).*got \(\)"),
        (lambda: small("iaf"), lambda: small("maf"), {"forward_share": 1.5}, r"expected a forward share in \[0, 1\]"),
        (lambda: small("iaf"), lambda: small("maf"), {"contrast": 1.0}, r"expected a contrast in \[0, 1\)"),
        (lambda: small("iaf"), lambda: small("maf"), {"contrast": 0.3}, r"expected flows with a context"),
        (
            lambda: Flow(GaussianMixture(3), small("iaf").transform),
            lambda: small("maf"),
            {},
            r"expected a student with differentiable draws, got GaussianMixture",
        ),
        (
            lambda: small("iaf", preprocess=[["dequantize", {"step": [1, 0, 0]}]]),
            lambda: small("maf"),
            {},
            r"expected densities of continuous values",
        ),
    ],
)
def test_what_cannot_be_distilled(student, teacher, options, message):
    with pytest.raises(ValueError, match=message):
        Distillation(student(), teacher(), **options)


def test_warm_start_needs_the_same_noise():
    student = Flow(StandardLogistic(3), small("iaf").transform)
    with pytest.raises(ValueError, match=r"expected the same noise .* got StandardLogistic and StandardNormal"):
        WarmStart(student, small("maf"))


def test_sample_stream():
    flow, contexts = small("maf", context=2), torch.randn(7, 2)
    stream = SampleStream(flow, contexts, batch_size=16, batches=3, seed=1)
    state = torch.random.get_rng_state()
    first, again = list(stream), list(stream)
    assert torch.equal(state, torch.random.get_rng_state())  # nobody else's randomness is touched
    assert len(stream) == len(first) == 3
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert not torch.equal(first[0][0], first[1][0])
    assert all(any(torch.equal(c, known) for known in contexts) for c in first[0][1])
    stream.set_epoch(1)
    assert not torch.equal(next(iter(stream))[0], first[0][0])
    assert SampleStream(flow, contexts, seed=2).fingerprint != SampleStream(flow, contexts, seed=1).fingerprint
    assert next(iter(SampleStream(small("maf"))))[1] is None


def test_a_killed_distillation_resumes_to_the_same_weights(tmp_path):
    teacher = small("maf")

    def train(estimator, out, resume=False):
        torch.manual_seed(5)
        student = small("iaf")
        diffeo.fit(
            Distillation(student, teacher, estimator=estimator), SampleStream(teacher, batch_size=64, batches=5),
            validation=teacher_rows, epochs=3, out=out, resume=resume, checkpoint_every=0,
        )  # fmt: skip
        return student.state_dict()

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 12:
            raise RuntimeError("killed")
        return path_gradient(*arguments)

    calls = []
    teacher_rows = teacher.sample(50)
    whole = train(path_gradient, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        train(dying, tmp_path / "cut")
    resumed = train(path_gradient, tmp_path / "cut", resume=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_core_and_preprocessing():
    flow = diffeo.maf(2, context=1, transforms=1, hidden=(4,), preprocess=["standardize", "gaussianize"])
    x, context = 3 + torch.randn(200, 2), torch.randn(200, 1)
    with torch.no_grad():
        flow.train().log_prob(x, context)
        flow.eval()
        core, steps = flow.core, flow.preprocessing
        assert [type(step).__name__ for step in steps] == ["Gaussianize", "Standardize"]
        y, total = x, 0
        for step in reversed(steps):
            y, log_det = step.inverse_and_log_det(y)
            total = total + log_det
        assert torch.allclose(core.log_prob(y, context) + total, flow.log_prob(x, context), atol=1e-5)
    assert core.transform.transforms[0] is flow.transform.transforms[0]


# the report


def test_report_of_a_perfect_student():
    teacher = small("maf").eval()
    draws = draw_both(teacher, teacher, None, 500, 0)
    report = compare_draws(draws, 0)
    for name in ("reverse_kl", "forward_kl"):
        assert abs(report[name]["mean"]) < 1e-5
    assert report["effective_sample_size"] > 0.999
    assert abs(report["classifier"]["auc"] - 0.5) < 4 * report["classifier"]["stderr"]
    assert report["modes"]["kept"] == report["modes"]["modes"]
    assert report["non_finite"] == 0
    assert warnings(report) == []


def test_report_knows_the_divergences_of_normal_densities():
    student, teacher = gaussian().requires_grad_(False), gaussian().requires_grad_(False)
    report = compare_draws(draw_both(student, teacher, None, 20_000, 0), 0)
    for name, exact in (("reverse_kl", closed_form(student, teacher)), ("forward_kl", closed_form(teacher, student))):
        assert abs(report[name]["mean"] - float(exact)) < 5 * report[name]["stderr"]
        assert math.isclose(report[name]["per_dimension"], report[name]["mean"] / 2)
    for name, flow in (("student", student), ("teacher", teacher)):
        exact = float(moments(flow)[1].log().sum() + math.log(2 * math.pi * math.e))
        assert abs(report["entropy"][name]["mean"] - exact) < 5 * report["entropy"][name]["stderr"]


def test_mode_recall():
    generator = np.random.default_rng(0)
    centres = 10 * np.eye(4)
    real = centres[generator.integers(4, size=4000)] + generator.normal(size=(4000, 4))
    share = generator.choice(4, p=[0.1, 0.4, 0.5, 0.0], size=4000)
    fake = centres[share] + generator.normal(size=(4000, 4))
    known = mode_recall(real, fake, 0, centres)
    assert (known["modes"], known["kept"]) == (4, 2)
    assert known["lowest"] == 0
    assert np.allclose(known["recall"], [0.4, 1.6, 2.0, 0.0], atol=0.15)
    clustered = mode_recall(real, fake, 0)
    assert clustered["lowest"] < 0.05
    assert mode_recall(real, real, 0)["kept"] == mode_recall(real, real, 0)["modes"]


def test_a_student_that_is_no_faster_is_reported():
    assert pace_warnings({"rows_per_second": {"student": 10.0, "teacher": 1.0}}) == []
    speed = {"student": 50.0, "teacher": 100.0, "teacher_naive": 2.0}
    (warning,) = pace_warnings({"samples_per_second": speed})
    assert "no faster than its teacher (50 a second to 100)" in warning
    assert words.paces(speed, "rows", "naively") == (
        "student 50 rows/s, teacher 100 (2 times faster), teacher naively 2 (25.00 times slower)"
    )


def test_warnings_in_words():
    good = {
        "dimensions": 2, "non_finite": 0,
        "reverse_kl": {"mean": 0.02, "stderr": 0.01, "per_dimension": 0.01, "stderr_per_dimension": 0.005},
        "forward_kl": {"mean": 0.03, "stderr": 0.01, "per_dimension": 0.015, "stderr_per_dimension": 0.005},
        "entropy": {"student": {"mean": 1.0, "stderr": 0.01}, "teacher": {"mean": 1.0, "stderr": 0.01}},
        "modes": {"lowest": 0.9, "stderr": 0.02, "modes": 10},
    }  # fmt: skip
    assert warnings(good) == []
    dropped = good | {"modes": {"lowest": 0.1, "stderr": 0.02, "modes": 10}}
    assert "drops modes" in warnings(dropped)[0]
    lopsided = good | {"forward_kl": good["forward_kl"] | {"mean": 2.0, "per_dimension": 1.0}}
    assert "leaves out" in warnings(lopsided)[0]
    blurred = good | {"entropy": good["entropy"] | {"student": {"mean": 2.0, "stderr": 0.01}}}
    assert "over-dispersed" in warnings(blurred)[0]
    far = {"mean": 1.0, "stderr": 0.01, "per_dimension": 0.5, "stderr_per_dimension": 0.005}
    assert "away from its teacher" in warnings(good | {"reverse_kl": far, "forward_kl": far})[0]
    assert "not finite" in warnings(good | {"non_finite": 3})[0]


@pytest.mark.parametrize("context", [0, 2])
def test_naive_generation_is_the_incremental_one(context):
    flow = small("nsf", context=context).double()
    z = torch.randn(20, 3, dtype=torch.float64)
    contexts = torch.randn(20, 2, dtype=torch.float64) if context else None
    with torch.no_grad():
        naive = generate_naively(flow.transform, z, flow.normalize_context(contexts))
        assert torch.allclose(naive, flow.decode(z, contexts), atol=1e-10)
    assert pace(lambda rows: flow.sample((rows,), contexts[:1] if context else None), 20, seconds=0.01) > 0


# the command


@pytest.fixture(scope="module", autouse=True)
def brief():
    """Fewer steps in an epoch, fewer rows in a report."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"batches": 10, "validated": 256}.items():
            patch.setattr(density.DensityMethod, name, value)
        for name, value in {"REPORTED": 300, "TIMED": 50}.items():
            patch.setattr(density, name, value)
        yield


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """A folder with a table of whole numbers and others, a MAF of it, and one that is conditional."""
    folder = tmp_path_factory.mktemp("teachers")
    generator = np.random.default_rng(0)
    age = generator.integers(18, 60, 1500)
    table = pd.DataFrame(
        {"age": age, "height": generator.normal(170, 8, 1500), "weight": generator.normal(1.5 * age, 5, 1500)}
    )
    data = str(folder / "people.csv")
    table.to_csv(data, index=False)
    argv = ["fit", data, "--model", "maf", "--epochs", "4", "--hidden", "16", "--transforms", "2", "--no-figures"]
    argv += ["--folds", "1"]
    assert main([*argv, "--out", str(folder / "run")]) == 0
    assert main([*argv, "--out", str(folder / "given"), "--context", "age"]) == 0
    assert main([*argv, "--out", str(folder / "fast"), "--model", "realnvp"]) == 0
    return folder


TINY = ["--epochs", "2", "--set", "hidden=[16]", "--set", "transforms=2"]


@pytest.mark.parametrize("run", ["run", "given"])
def test_the_command(run, teachers, tmp_path, capsys):
    """A student is a run like any other, which knows where it comes from and what it lost."""
    out = tmp_path / "student"
    assert main(["distill", str(teachers / run), "--out", str(out), *TINY, "--student", "iaf", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    report = summary["distillation"]
    assert report["dimensions"] == (3 if run == "run" else 2)
    assert report["real_rows"]["which"] == "rows held out of training"
    assert report["real_rows"]["rows"] == 150
    assert report["rows_per_second"].keys() == {"student", "teacher", "teacher_naive"}
    assert sorted(path.name for path in (out / "figures").iterdir()) == ["kl.png", "likelihoods.png", "pairs.png"]

    student, teacher = diffeo.training.load_run(out), diffeo.training.load_run(teachers / run)
    assert student.flow.fast == {"sample"}
    assert student.schema == teacher.schema
    assert student.metrics["distillation"] == report
    assert student.provenance["distillation"]["teacher"]["model"] == "maf"
    for part, original in zip(student.flow.preprocessing, teacher.flow.preprocessing, strict=True):
        assert part.state_dict().keys() == original.state_dict().keys()
        assert all(torch.equal(value, original.state_dict()[name]) for name, value in part.state_dict().items())

    assert main(["score", str(out), str(teachers / "people.csv"), "--out", str(tmp_path / "scores.csv")]) == 0
    context_option = ["--given", "age=30"] if run == "given" else []
    assert main(["sample", str(out), "-n", "50", "--out", str(tmp_path / "rows.csv"), *context_option]) == 0
    assert list(pd.read_csv(tmp_path / "rows.csv").columns) == ["age", "height", "weight"]
    assert commands.info(out)["fast"] == ["sample"]
    assert commands.check(out, str(teachers / "people.csv"))["which"] == "rows held out of training"
    capsys.readouterr()
    assert main(["info", str(out)]) == 0
    assert "iaf" in capsys.readouterr().out


@pytest.fixture(scope="module")
def distilled(teachers, tmp_path_factory):
    out = tmp_path_factory.mktemp("distilled") / "student"
    commands.distill(teachers / "run", out, epochs=2, arguments={"hidden": [16], "transforms": 2}, figures=False)
    return out


def complaint(capsys, *argv):
    """Run a command that must fail, and return its one line."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_bad_input_of_the_command(teachers, distilled, tmp_path, capsys):
    def refused(*argv):
        return complaint(capsys, "distill", *argv)

    out = tmp_path / "student"
    run = teachers / "run"
    assert "samples in one pass already" in refused(teachers / "fast", "--out", out)
    assert "samples in one pass already" in refused(distilled, "--out", out)
    assert "the teacher's own folder" in refused(run, "--out", run, "--force")
    assert "unknown student 'maf'" in refused(run, "--out", out, "--student", "maf")
    assert "takes no argument 'depth'" in refused(run, "--out", out, "--set", "depth=3")
    assert "does not sample in one pass" in refused(
        run, "--out", out, "--student", "nsf-coupling", "--set", "structure=autoregressive"
    )
    assert "minutes above 0" in refused(run, "--out", out, "--minutes", "0")
    assert "epochs of at least 1" in refused(run, "--out", out, "--epochs", "0")
    assert "not a run directory" in refused(teachers, "--out", out)
    assert "holds a run" in refused(run, "--out", distilled)
    assert "no such file" in refused(run, "--out", out, "--data", tmp_path / "none.csv")
    assert "not made by diffeo distill" in refused(run, "--out", teachers / "fast", "--resume")
    assert not out.exists()


def test_without_the_table(teachers, tmp_path, capsys):
    """Where the table has gone, the report is of the teacher's rows alone; a conditional teacher has no contexts."""
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("run", "given"):
        shutil.copytree(teachers / name, moved / name)
        model = json.loads((moved / name / "model.json").read_text())
        model["provenance"]["data"]["name"] = str(tmp_path / "gone.csv")
        (moved / name / "model.json").write_text(json.dumps(model))
    assert main(["distill", str(moved / "run"), "--out", str(tmp_path / "student"), *TINY, "--no-figures"]) == 0
    said = capsys.readouterr()
    assert "no real rows to judge by" in said.err
    assert "log-likelihood" not in said.out
    assert main(["distill", str(moved / "given"), "--out", str(tmp_path / "other"), *TINY]) == 2
    assert "is conditional: give the table" in capsys.readouterr().err


def test_force_distils_what_is_fast(teachers, tmp_path, capsys):
    assert (
        main(["distill", str(teachers / "fast"), "--out", str(tmp_path / "out"), *TINY, "--force", "--no-figures"]) == 0
    )
    said = capsys.readouterr().out
    assert "KL(student || teacher)" in said
    assert "one pass per column" not in said


def test_an_interrupted_command_goes_on(teachers, distilled, tmp_path, monkeypatch):
    """Killed in its last stage, a distillation leaves a folder that says so, and --resume ends with the same bits."""
    original = checkpoints.save_checkpoint
    written = []

    def dying(path, *rest):
        original(path, *rest)
        written.append(path.parent.parent.name)
        if len(written) == 3:
            raise KeyboardInterrupt

    out = tmp_path / "student"
    options = {"epochs": 2, "arguments": {"hidden": [16], "transforms": 2}, "figures": False}
    monkeypatch.setattr(checkpoints, "save_checkpoint", dying)
    with pytest.raises(KeyboardInterrupt):
        commands.distill(teachers / "run", out, **options)
    monkeypatch.setattr(checkpoints, "save_checkpoint", original)
    assert written == ["forward", "forward", "both"]
    with pytest.raises(diffeo.UserError, match="has no weights yet"):
        diffeo.training.load_run(out)
    commands.distill(teachers / "run", out, resume=True, figures=False)
    whole, resumed = (diffeo.load(path).state_dict() for path in (distilled, out))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
