"""Flow matching: paths, couplings, training, guidance, few steps, and the command line."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

import diffeo
from cases import randomise
from diffeo.cli import main
from diffeo.objectives import FlowMatching, StepMatching, few_steps, guided, objective_of, reflow_pairs, trajectories
from diffeo.objectives.couplings import assign
from diffeo.objectives.paths import PATHS
from diffeo.report.transport import in_steps, squared_wasserstein, straightness
from diffeo.training.batches import Rows, Stream
from diffeo.training.pairs import REUSED, Pairs


def small(features=2, context=0, **options):
    return diffeo.flow_matching(features, context, **{"hidden": (16, 16), **options})


def moving(features=2, context=0, **options):
    """A flow whose velocity is not at its start."""
    flow = small(features, context, **options)
    randomise(flow.ode.velocity.net)
    return flow.eval()


def two_moons(rows=2000):
    generator = np.random.default_rng(0)
    label, t = generator.integers(2, size=rows), generator.uniform(0, math.pi, rows)
    x = np.stack([np.where(label, 1 - np.cos(t), np.cos(t)), np.where(label, 0.5 - np.sin(t), np.sin(t))], 1)
    return torch.from_numpy(x + 0.1 * generator.standard_normal(x.shape)).float(), torch.from_numpy(label)


@pytest.mark.parametrize("name", PATHS)
def test_rates_of_paths_are_derivatives(name):
    t = torch.linspace(0.01, 0.98, 50, dtype=torch.float64, requires_grad=True)
    point = PATHS[name](t)
    for value, rate in ((point.data, point.data_rate), (point.noise, point.noise_rate)):
        (derivative,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        assert torch.allclose(derivative, rate, atol=1e-9)
    ends = PATHS[name](torch.tensor([0.0, 1.0], dtype=torch.float64))
    slack = 0.01 if name == "vp" else 1e-9
    assert torch.allclose(ends.data, torch.tensor([0.0, 1.0]).double(), atol=slack)
    assert torch.allclose(ends.noise, torch.tensor([1.0, 0.0]).double(), atol=slack)
    if name != "linear":
        assert torch.allclose(point.data**2 + point.noise**2, torch.ones(50).double())


@pytest.mark.parametrize("path", PATHS)
def test_the_loss_is_the_squared_distance_from_the_path_s_velocity(path, monkeypatch):
    flow = moving().double()
    x, z = torch.randn(20, 2).double(), torch.randn(20, 2).double()
    objective = FlowMatching(flow, path).eval()
    t = torch.linspace(0.05, 0.9, 20).double()
    monkeypatch.setattr(objective, "_times", lambda count, like: t)
    losses = objective(torch.stack([z, x], 1))

    def between(t):
        point = PATHS[path](t)
        return point.data[:, None] * x + point.noise[:, None] * z

    target = torch.autograd.functional.jvp(between, t, torch.ones_like(t))[1]
    velocity = flow.ode.velocity
    assert torch.allclose(losses, (velocity(between(t), t) - target).square().sum(1))


def test_the_path_starts_from_the_base_and_from_normalized_data():
    x = 5 + 3 * torch.randn(4000, 2)
    flow = small()
    objective = FlowMatching(flow).train()
    objective(x)
    ode, (standardize,) = flow.ode, flow.preprocessing
    assert torch.allclose(standardize.mean, x.mean(0), atol=1e-3)
    assert ode.velocity.initialized
    for name, value in (("data_mean", 0.0), ("noise_mean", 0.0), ("data_std", 1.0), ("noise_std", 1.0)):
        assert (getattr(ode.velocity, name) - value).abs().max() < 0.1, name
    # the closed form is the least loss there is for Gaussian data: E var(u | x_t)
    flow.eval()
    expected = sum(float(1 / (s**2 + (1 - s) ** 2)) for s in torch.linspace(0.005, 0.995, 100)) / 100 * 2
    assert abs(objective.eval()(x.repeat(5, 1)).mean().item() - expected) < 0.1


def test_times_are_uniform_or_logit_normal():
    x = torch.zeros(1)
    uniform = FlowMatching(small())._times(1000, x)
    assert (uniform.sort().values - (torch.arange(1000) + 0.5) / 1000).abs().max() < 1e-3
    middle = FlowMatching(small(), time="logit-normal")._times(2000, x)
    assert abs(torch.logit(middle.double()).std().item() - 1) < 0.02
    assert FlowMatching(small(), "vp")._times(1000, x).max() < 0.9991


@pytest.mark.parametrize("classes", [0, 2])
def test_assignments_are_those_of_brute_force(classes):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        z, x = torch.randn(6, 3, generator=generator), torch.randn(6, 3, generator=generator)
        context = torch.eye(2)[torch.tensor([0, 1, 0, 1, 1, 0])] if classes else None
        chosen = assign(z, x, context, 3.0)
        assert sorted(chosen.tolist()) == list(range(6))

        def cost(order, z=z, x=x, context=context):
            order = list(order)
            extra = 0 if context is None else 3.0 * (context - context[order]).square().sum(1)
            return float(((z[order] - x).square().mean(1) + extra).sum())

        best = min(itertools.permutations(range(6)), key=cost)
        assert cost(chosen.tolist()) == pytest.approx(cost(best))


def test_couplings_given_a_class_stay_within_it():
    """Else noise given a class would not be the base, and the conditional model biased."""
    z, x = torch.randn(60, 2), torch.randn(60, 2)
    label = torch.arange(60) % 2
    x[:, 0] += 4 * label
    chosen = assign(z, x, torch.eye(2)[label])
    assert torch.equal(label[chosen], label)
    assert not torch.equal(label[assign(z, x)], label)


def rows(count, batch_size, x=None):
    x = torch.arange(2.0 * count).reshape(count, 2) if x is None else x
    return Rows(x, None, torch.arange(5, count), batch_size, torch.device("cpu"), torch.float32)


def test_pairs_use_each_row_once_and_are_found_again():
    drawn = []

    def couple(x, context):
        drawn.append(torch.randn_like(x))
        return drawn[-1]

    pairs = Pairs(rows(105, 20), couple, 40)
    epoch = torch.cat([batch.x for batch in pairs.shuffled(1, 0)])
    assert epoch.shape == (100, 2, 2)
    assert [len(each) for each in drawn] == [40, 40, 20]
    noise = torch.cat(drawn)
    assert torch.equal(epoch[:, 0].sort(0).values, noise.sort(0).values)
    assert sorted(epoch[:, 1, 0].tolist()) == [2.0 * row for row in range(5, 105)]

    def as_dict(batches):
        return {float(x[1, 0]): x[0].tolist() for batch in batches for x in batch.x}

    first = as_dict(pairs.shuffled(1, 0))
    assert as_dict(pairs.shuffled(1, REUSED - 1)) == first
    later = as_dict(pairs.shuffled(1, REUSED, 2))
    assert all(later[key] != first[key] for key in later)
    torch.manual_seed(77)
    resumed = Pairs(rows(105, 20), couple, 40)
    assert as_dict(resumed.shuffled(1, REUSED, 2)) == later
    assert as_dict(resumed.in_order()) == as_dict(pairs.in_order())


def test_optimal_pairs_are_shorter_and_training_repeats_itself():
    x, _ = two_moons(600)
    weights, lengths = [], []
    for _ in range(2):
        torch.manual_seed(0)
        flow = small()
        objective = FlowMatching(flow, coupling="optimal", pool=200)
        diffeo.fit(objective, x, epochs=2, batch_size=100, lr=1e-2)
        weights.append(torch.cat([p.detach().flatten() for p in flow.parameters()]))
        z = objective.couple(x[:200])
        normal = flow.preprocessing[0].inverse(x[:200])
        lengths = [(each - normal).square().sum(1).mean().item() for each in (z, flow.base.sample((200,)))]
    assert torch.equal(*weights)
    assert lengths[0] < 0.6 * lengths[1]


def test_a_killed_training_resumes_with_the_same_pairs(tmp_path, monkeypatch):
    x, _ = two_moons(300)
    few = 3
    monkeypatch.setattr("diffeo.training.pairs.REUSED", few)

    def train(folder, resume=False):
        torch.manual_seed(0)
        flow = small(hidden=(8,))
        objective = FlowMatching(flow, coupling="optimal", pool=100)
        options = {"epochs": few + 2, "batch_size": 90, "checkpoint_every": 0.0, "out": tmp_path / folder}
        diffeo.fit(objective, x, resume=resume, **options)
        return torch.cat([p.detach().flatten() for p in flow.parameters()])

    whole = train("whole")
    forward, calls = FlowMatching.forward, []

    def failing(self, *arguments):
        calls.append(self.training)
        if sum(calls) == 3 * few + 4:  # within the second round of pairs
            raise RuntimeError("killed")
        return forward(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(FlowMatching, "forward", failing)
        with pytest.raises(RuntimeError, match="killed"):
            train("killed")
    assert torch.equal(train("killed", resume=True), whole)


def test_training_learns_a_density_that_integrates_to_one():
    x, _ = two_moons()
    flow = small(hidden=(32, 32))
    result = diffeo.fit(FlowMatching(flow), x, epochs=40, batch_size=200, lr=1e-2)
    assert result.history[-1]["val_loss"] < result.history[0]["val_loss"]
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.mT.cov())
    with torch.no_grad():
        assert flow.log_prob(x[:300]).mean() > gaussian.log_prob(x[:300]).mean() + 0.1
        side = torch.linspace(-3, 4, 121)
        total = flow.log_prob(torch.cartesian_prod(side, side)).logsumexp(0).exp() * (side[1] - side[0]) ** 2
        assert abs(total.item() - 1) < 0.01
        drawn, log_prob = flow.sample_and_log_prob(200)
        assert torch.allclose(flow.log_prob(drawn), log_prob, atol=2e-3)


def test_maximum_likelihood_trains_the_same_flow():
    x, _ = two_moons(400)
    flow = small(hidden=(8,), tolerance=1e-3)
    before = diffeo.MaximumLikelihood(flow)(x).mean().item()
    result = diffeo.fit(diffeo.MaximumLikelihood(flow), x, epochs=4, batch_size=100, lr=2e-2, validation=0)
    assert result.best_loss < before


def test_guidance_interpolates_and_has_no_likelihood():
    flow = moving(2, 3, droppable=True)
    velocity = flow.ode.velocity
    x, t, context = torch.randn(6, 2), torch.rand(6), torch.randn(6, 3)
    with torch.no_grad():
        conditional, unconditional = velocity(x, t, context), velocity(x, t, context, torch.zeros(6))
        assert not torch.allclose(conditional, unconditional)
        assert torch.equal(unconditional, velocity(x, t, 2 * context, torch.zeros(6))), (
            "what is withheld must not matter"
        )
        for weight, expected in (
            (0.0, unconditional),
            (1.0, conditional),
            (3.0, unconditional + 3 * (conditional - unconditional)),
        ):
            result = guided(flow, weight).ode.velocity(x, t, context)
            assert torch.allclose(result, expected, atol=1e-5)
        assert torch.isfinite(guided(flow, 2.0).sample((), context)).all()
    with pytest.raises(ValueError, match="expected a velocity that has a likelihood, got Guided"):
        guided(flow, 2.0).log_prob(x, context)


def test_dropout_withholds_contexts_in_training_alone(monkeypatch):
    flow = moving(2, 3, droppable=True)
    objective = FlowMatching(flow, dropout=0.5)
    kept = []
    velocity = flow.ode.velocity
    squared_error = velocity.squared_error
    monkeypatch.setattr(velocity, "squared_error", lambda *args: kept.append(args[4]) or squared_error(*args))
    objective.train()(torch.randn(1000, 2), torch.randn(1000, 3))
    objective.eval()(torch.randn(10, 2), torch.randn(10, 3))
    assert abs(kept[0].mean().item() - 0.5) < 0.1
    assert kept[1] is None


def test_students_follow_their_teacher_and_refuse_likelihoods():
    teacher = moving()
    x = trajectories(teacher, 400, 2)
    assert x.shape == (400, 3, 2)
    assert torch.allclose(teacher.ode.forward(x[:, 0]), x[:, 2], atol=1e-4)
    student = few_steps(teacher, 2)
    objective = StepMatching(student)
    before = objective(x).mean().item()
    diffeo.fit(objective, x, epochs=60, batch_size=100, lr=5e-3, validation=0)
    assert objective(x).mean().item() < 0.3 * before
    z = x[:, 0]
    error = (student.ode.forward(z) - x[:, 2]).square().mean()
    naive = (few_steps(teacher, 2).ode.forward(z) - x[:, 2]).square().mean()
    assert error < naive
    with pytest.raises(ValueError, match="expected at least 32 evaluations"):
        student.log_prob(torch.randn(2, 2))


def test_reflow_pairs_and_reports():
    flow = moving()
    pairs = reflow_pairs(flow, 300)
    assert pairs.shape == (300, 2, 2)
    with torch.no_grad():
        assert torch.allclose(flow.decode(pairs[:, 0]), pairs[:, 1])
    assert FlowMatching(flow)(pairs).shape == (300,)
    assert straightness(flow) > 0.01
    x = torch.randn(50, 2)
    assert squared_wasserstein(x, x.flip(0)) == pytest.approx(0, abs=1e-9)
    assert squared_wasserstein(x, x + 2) == pytest.approx(8, rel=1e-4)
    x = flow.sample(200)
    coarse, fine = (squared_wasserstein(x, in_steps(flow, steps).sample(200)) for steps in (1, 32))
    assert coarse > fine


def test_objectives_follow_the_recipe():
    flow = small(2, 3, path="cosine", droppable=True)
    objective = objective_of(flow, coupling="optimal", pool=64, dropout=0.1)
    assert flow.default_objective().path == objective.path
    assert isinstance(objective, FlowMatching)
    assert (objective.pool, objective.dropout) == (64, 0.1)
    assert isinstance(objective_of(diffeo.maf(2)), diffeo.MaximumLikelihood)
    rebuilt = diffeo.recipes.build(flow.recipe["name"], flow.recipe["arguments"])
    rebuilt.load_state_dict(flow.state_dict())


@pytest.mark.parametrize("path", PATHS)
def test_the_start_is_exact_for_gaussian_data(path):
    """Whatever their covariance, once they are whitened: before the first step the flow is the Gaussian fit."""
    x = torch.randn(4000, 3) @ torch.tensor([[3.0, 0.0, 1.0], [0.5, 0.1, 2.0], [0.0, 4.0, 0.1]]) + 7
    flow = diffeo.flow_matching(3, hidden=(8,), path=path, preprocess=("standardize", "whiten"))
    FlowMatching(flow.train(), path)(x)  # the first batch
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.mT.cov())
    with torch.no_grad():
        log_prob = flow.eval().log_prob(x[:100])
    assert torch.allclose(log_prob, gaussian.log_prob(x[:100]), atol=2e-3)


def test_a_flow_knows_its_ode():
    flow = moving()
    assert flow.ode is flow.transform.transforms[0] is flow.core.ode
    assert diffeo.maf(2).ode is None
    coarse = flow.with_ode(solver="euler", steps=2)
    assert (coarse.ode.solver, coarse.ode.steps, coarse.recipe) == ("euler", 2, None)
    assert coarse.ode.velocity is flow.ode.velocity
    assert coarse.preprocessing == flow.preprocessing
    assert not coarse.has_log_prob
    assert flow.has_log_prob, "the flow itself stays as it is"
    exact = flow.with_ode(rtol=1e-9)
    assert (exact.ode.rtol, exact.ode.atol) == (1e-9, flow.ode.atol)
    z = torch.randn(50, 2)
    x = z
    for t in (0.0, 0.5):
        x = x + 0.5 * flow.ode.velocity(x, torch.full((50,), t))
    assert torch.allclose(coarse.core.decode(z), x, atol=1e-6)


def test_only_a_continuous_flow_is_solved_otherwise():
    for flow in (diffeo.maf(2), diffeo.Flow(diffeo.StandardNormal(2), [diffeo.transforms.LU(2), moving().ode])):
        with pytest.raises(ValueError, match="expected a flow whose transform is one ODE behind its preprocessing"):
            flow.with_ode(rtol=1e-3)


class Narrow(torch.nn.Module):
    """A velocity that has forgotten a column: without a check it would be broadcast."""

    def forward(self, x, t, context=None):
        return x[:, :1]


def test_mistakes_are_named():
    flow = small()
    narrow = small().with_ode(Narrow())
    for make, message in (
        (lambda: FlowMatching(flow, "straight"), "expected a path among linear, cosine, vp, got 'straight'"),
        (lambda: FlowMatching(flow, coupling="best"), "expected coupling among independent, optimal, got 'best'"),
        (lambda: FlowMatching(flow, time="late"), "expected time among uniform, logit-normal, got 'late'"),
        (lambda: FlowMatching(flow, coupling="optimal", pool=1), "expected a pool of at least 2 rows"),
        (lambda: FlowMatching(flow, dropout=1.0), r"expected dropout in \[0, 1\)"),
        (lambda: FlowMatching(flow, dropout=0.1), "expected a velocity whose context can be withheld"),
        (lambda: FlowMatching(diffeo.maf(2)), "expected a flow whose transform is one ODE"),
        (lambda: guided(small(2, 3), 2.0), "expected a conditional velocity that knows its context withheld"),
        (lambda: guided(flow, 2.0), "expected a conditional velocity that knows its context withheld"),
        (lambda: guided(small(2, 3, droppable=True), math.nan), "expected a finite weight of guidance"),
        (lambda: small(droppable=True), "expected a context that can be withheld"),
        (lambda: StepMatching(flow), "expected a student that samples in Euler steps"),
        (lambda: few_steps(flow, 0), "expected at least one step, got 0"),
        (lambda: FlowMatching(narrow)(torch.randn(5, 2)), r"velocity of the shape of its input \(5, 2\), got \(5, 1\)"),
        (lambda: StepMatching(few_steps(narrow, 2))(torch.zeros(5, 3, 2)), "velocity of the shape of its input"),
        (lambda: StepMatching(few_steps(flow, 2))(torch.zeros(5, 2, 2)), r"expected trajectories \(N, 3, "),
        (lambda: Pairs(rows(60, 20), None, 10), "expected a pool of at least a batch of 20 rows to couple, got 10"),
        (
            lambda: Pairs(Stream([torch.zeros(4, 2)], torch.device("cpu"), None), None, 10),
            "expected data in memory to couple with noise, got a stream",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match="expected a pool of at least a batch of 50"):
        diffeo.fit(FlowMatching(flow, coupling="optimal", pool=20), torch.randn(200, 2), batch_size=50)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"solver": "euler", "steps": 0}, "expected at least one step, got 0"),
        ({"solver": "euler", "steps": 4}, "few fixed steps have no likelihood to report; leave steps out"),
        ({"tolerance": 0}, "expected rtol above 0, got 0"),
        ({"max_evaluations": 0}, "expected max_evaluations above 0, got 0"),
        ({"path": "straight"}, "expected a path among linear, cosine, vp"),
        ({"coupling": "best"}, "expected coupling among independent, optimal"),
        ({"coupling": "optimal", "pool": 20}, "a batch of 90 to couple with noise, got 20; give --set pool=90"),
        ({"time": "late"}, "expected time among uniform, logit-normal"),
        ({"dropout": 0.1}, "expected a context that can be withheld"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_refused_before_a_run_is_made(tmp_path, capsys, chosen, message):
    np.savetxt(tmp_path / "x.csv", np.random.default_rng(0).normal(size=(100, 2)), delimiter=",")
    words = [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]
    argv = ["fit", str(tmp_path / "x.csv"), "--model", "flow-matching", "--hidden", "8", "--folds", "1", *words]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(said) == 1
    assert message in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_bad_rows_cost_a_step():
    x = torch.randn(300, 2)
    x[7, 1] = math.nan
    flow = small()
    result = diffeo.fit(FlowMatching(flow), x, epochs=2, batch_size=50, validation=0)
    assert result.skipped == 2
    assert torch.isfinite(flow.ode.velocity.data_std).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("continuous")
    x, label = two_moons(300)
    table = folder / "moons.csv"
    np.savetxt(table, np.column_stack([x, label]), delimiter=",", header="x,y,label", comments="")
    argv = ["fit", str(table), "--model", "flow-matching", "--epochs", "2", "--hidden", "8", "--folds", "1"]
    argv += ["--set", "solver=euler", "--set", "steps=32"]
    conditional = ["--context", "label", "--set", "dropout=0.2", "--set", "coupling=optimal", "--no-figures"]
    assert main([*argv, "--out", str(folder / "given"), *conditional]) == 0
    with pytest.MonkeyPatch.context() as patch:  # small figures are figures
        patch.setattr("diffeo.report.trajectories.FRAMES", 4)
        patch.setattr("diffeo.modalities.tables.figures.ROWS", 400)
        assert main([*argv, "--out", str(folder / "run"), "--drop", "label"]) == 0
    return folder


def test_the_life_of_a_run(run, capsys):
    table = str(run / "moons.csv")
    figures = {each.name for each in (run / "run" / "figures").iterdir()}
    assert {"trajectories.png", "trajectories.gif", "density.png", "learning_curve.png"} <= figures
    capsys.readouterr()
    assert main(["score", str(run / "run"), table, "--out", str(run / "scores.csv")]) == 0
    assert "evaluations of the velocity for each, of unknown error" in capsys.readouterr().out  # in fixed steps
    scores = np.genfromtxt(run / "scores.csv", delimiter=",", skip_header=1)
    assert scores.shape == (300, 2)
    assert np.isfinite(scores).all()
    assert main(["sample", str(run / "given"), "-n", "20", "--given", "label=1", "--out", str(run / "new.csv")]) == 0
    assert main(["sample", str(run / "run"), "-n", "20", "--out", str(run / "fake.csv")]) == 0
    assert main(["info", str(run / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))["fast"] == []
    assert main(["check", str(run / "run"), table]) == 0


def test_samples_are_guided(run, capsys):
    argv = ["sample", str(run / "given"), "-n", "40", "--given", "label=1"]
    for name, more in (("plain", []), ("one", ["--guidance", "1"]), ("more", ["--guidance", "3"])):
        assert main([*argv, "--out", str(run / f"{name}.csv"), *more]) == 0
    plain, one, more = (np.genfromtxt(run / f"{n}.csv", delimiter=",", skip_header=1) for n in ("plain", "one", "more"))
    assert np.allclose(plain, one, atol=1e-4)
    assert np.isfinite(more).all()
    assert not np.allclose(plain, more, atol=1e-4)
    for name, options, weight, said in (
        ("run", [], "2", "run: guidance (--guidance) takes a conditional flow-matching run"),
        ("given", ["--given", "label=1"], "nan", "expected a finite weight of guidance"),
    ):
        capsys.readouterr()
        assert main(["sample", str(run / name), "-n", "5", *options, "--guidance", weight]) == 2
        assert said in capsys.readouterr().err


def test_images_train_sample_and_score(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 17, (60, 6, 5)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", pixels)
    argv = ["fit", str(tmp_path / "images.npz"), "--model", "flow_matching", "--epochs", "1", "--hidden", "4,4"]
    quick = ["--set", "tolerance=1e-2", "--batch-size", "20"]
    assert main([*argv, *quick, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["score", str(tmp_path / "run"), str(tmp_path / "images.npz"), "--out", str(tmp_path / "s.csv")]) == 0
    assert "evaluations of the velocity for each, estimated error at most" in capsys.readouterr().out
    assert np.isfinite(np.genfromtxt(tmp_path / "s.csv", delimiter=",", skip_header=1)).all()
    assert main(["sample", str(tmp_path / "run"), "-n", "4", "--out", str(tmp_path / "new.png")]) == 0
    assert (tmp_path / "run" / "figures" / "samples.png").exists()
