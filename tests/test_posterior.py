"""Posteriors from simulations: exact where the answer is known, calibrated, within their support, and stored."""

import importlib
import io
import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, Uniform, constraints

import diffeo
from diffeo import commands
from diffeo.cli import main
from diffeo.inference import calibration_of
from diffeo.nets import CNN, Reader
from diffeo.structure import described, rebuilt
from diffeo.training.folds import assign_folds
from diffeo.training.seeding import derive

posteriors = importlib.import_module("diffeo.inference.posterior")  # the function has its name
NOISE = 0.5
SHRUNK = 1 / (1 + NOISE**2)  # theta ~ N(0, I), x ~ N(theta, NOISE^2 I): theta | x ~ N(SHRUNK x, NOISE^2 SHRUNK I)
QUICK = {"epochs": 2, "folds": 2, "jobs": 1}


def prior(features=2):
    return Independent(Normal(torch.zeros(features), torch.ones(features)), 1)


def exact(x):
    return Independent(Normal(SHRUNK * x, NOISE * SHRUNK**0.5 * torch.ones_like(x)), 1)


def conjugate(count, features=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(count, features, generator=generator)
    return theta, theta + NOISE * torch.randn(count, features, generator=generator)


def uniform(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(count, 2, generator=generator)
    return theta, theta + 0.1 * torch.randn(count, 2, generator=generator)


@pytest.fixture(scope="module")
def learned():
    return diffeo.posterior(*conjugate(1000), prior(), folds=2, jobs=1, epochs=20)


# ---- Laws ------------------------------------------------------------------------------------------------------------


def test_a_conjugate_posterior_is_learned(learned):
    theta, x = conjugate(500, seed=1)
    gap = exact(x).log_prob(theta) - learned.log_prob(theta, x)
    assert 0 <= gap.mean() < 0.1
    x_o = torch.tensor([0.8, -0.4])
    drawn = learned.sample(x_o, 4000, seed=0)
    assert drawn.shape == (4000, 2)
    torch.testing.assert_close(drawn.mean(0), SHRUNK * x_o, atol=0.12, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.full((2,), NOISE * SHRUNK**0.5), atol=0.06, rtol=0)
    assert learned.facts["beyond_prior"]["mean"] > 0.5  # of 0.80 per parameter that x tells


@pytest.mark.slow
def test_few_simulations_of_a_linear_model_are_enough():
    generator = torch.Generator().manual_seed(0)

    def simulated(count):
        theta = torch.randn(count, 6, generator=generator)
        return theta, theta + torch.randn(count, 6, generator=generator)

    posterior = diffeo.posterior(*simulated(300), folds=2, jobs=1, epochs=30)
    theta, x = simulated(2000)
    exact = torch.distributions.Independent(torch.distributions.Normal(x / 2, 0.5**0.5), 1)
    gap = exact.log_prob(theta) - posterior.log_prob(theta, x)
    assert 0 < gap.mean() < 0.45  # without the linear layer .58, one flow of splines .85


def test_several_observations_at_once(learned):
    theta, x = conjugate(6)
    assert learned.sample(x, 5).shape == (5, 6, 2)
    assert learned.sample(x.reshape(2, 3, 2).numpy(), 5).shape == (5, 2, 3, 2)
    together = learned.log_prob(theta, x)
    torch.testing.assert_close(together[3], learned.log_prob(theta[3].tolist(), x[3].tolist()))


@pytest.mark.parametrize(("scale", "calibrated"), [(1.0, True), (1.3, False), (1 / 1.3, False)])
def test_calibration_tells_an_exact_posterior_from_one_that_is_scaled(scale, calibrated):
    torch.manual_seed(0)
    theta, x = conjugate(1000, features=3)
    posterior = exact(x)
    drawn = posterior.mean + scale * (posterior.sample((100,)) - posterior.mean)
    found = calibration_of(theta, drawn, ["a", "b", "c"])
    assert found.calibrated is calibrated
    assert (min(found.p_values.values()) > 0.01 / 3) is calibrated
    assert (found.tarp_p > 0.01) is calibrated
    wide = {1.0: "as far as these tell", 1.3: "too wide", 1 / 1.3: "too narrow"}[scale]
    assert wide in str(found)
    coverage = found.coverage([0.5, 0.9])
    if calibrated:
        np.testing.assert_allclose(coverage, [0.5, 0.9], atol=0.05)
    assert found.coverage(0) == 0
    assert found.coverage(1) == 1


def test_calibration_finds_the_parameter_that_is_shifted():
    torch.manual_seed(0)
    theta, x = conjugate(1000)
    found = calibration_of(theta, exact(x).sample((100,)) + torch.tensor([0.0, 0.2]), ["a", "b"])
    assert found.worst == "b"
    assert "mostly b: too high" in str(found)
    assert found.to_json()["sbc"]["a"]["p"] > 0.01 > found.to_json()["sbc"]["b"]["p"]


def test_ranks_of_parameters_on_a_grid_are_uniform():
    theta = torch.randint(0, 3, (2000, 1)).double()
    found = calibration_of(theta, torch.randint(0, 3, (50, 2000, 1)).double())
    assert found.p_values["theta1"] > 0.001
    assert found.tarp_p > 0.001


def test_a_plot_of_the_calibration(tmp_path, learned):
    found = learned.calibration(draws=20)
    assert found.ranks.shape == (1000, 2)
    assert found.ranks.max() == 20
    assert found.plot(tmp_path / "calibration.png").stat().st_size > 5000


@pytest.mark.parametrize("method", ["npe", "fmpe"])
def test_no_draw_leaves_the_support(method):
    theta, x = uniform(200)
    box = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)
    learned = diffeo.posterior(theta, x, box, method=method, **{**QUICK, "folds": 1})
    far = torch.tensor([3.0, -2.0])
    drawn = learned.sample(far, 20_000 if method == "npe" else 500)
    assert bool(((drawn > 0) & (drawn < 1)).all())
    outside = learned.log_prob(torch.tensor([[0.5, 1.2], [0.5, 0.5], [-0.1, 0.5]]), far)
    assert torch.isneginf(outside).tolist() == [True, False, True]


def test_the_support_alone_is_enough_of_a_prior():
    class Known:
        support = constraints.independent(constraints.positive, 1)

    theta, x = uniform(100)
    for given in ({"support": (0.0, None)}, {"support": [(0, None), "real"]}, {"support": constraints.positive}):
        drawn = diffeo.posterior(theta, x, **given, **QUICK).sample(x[0] - 5, 1000)
        assert bool((drawn[:, 0] > 0).all())
    learned = diffeo.posterior(theta, x, prior=torch.distributions.HalfNormal(torch.ones(2)), **QUICK)
    assert bool((learned.sample(x[0] - 5, 1000) > 0).all())


def test_a_prior_may_be_any_object_that_has_what_is_asked_of_it():
    theta, x = uniform(100)
    box = constraints.independent(constraints.interval(0.0, 1.0), 1)
    density = {"log_prob": lambda self, theta: 0 * theta.sum(-1)}
    for parts, bounded in (
        ({"support": box, **density}, True), (density, False), ({"sample": lambda self, shape: None}, False),
        ({"support": box, "event_shape": (2,), **density}, True),
    ):  # fmt: skip
        learned = diffeo.posterior(theta, x, type("Own", (), parts)(), **{**QUICK, "folds": 1})
        drawn = learned.sample(x[0] - 5, 1000)
        assert bool(((drawn > 0) & (drawn < 1)).all()) == bounded
        assert ("beyond_prior" in learned.facts) == ("log_prob" in parts)


def test_a_prior_may_know_its_support_in_its_own_way():
    theta, x = uniform(100)
    theta[0, 0] = 0.0  # on the bound, which a closed support holds

    class Unknown(torch.distributions.Distribution):
        def __init__(self):
            super().__init__(event_shape=torch.Size((2,)), validate_args=False)

        def log_prob(self, value):
            return torch.zeros(len(value))

    box = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)
    own = type("Own", (), {"log_prob": lambda self, theta: 0 * theta.sum(-1), "event_shape": None, "support": None})()
    method = type("Own", (), {"log_prob": lambda self, theta: 0 * theta.sum(-1), "support": lambda self: None})()
    for known in (Unknown(), box, own, method):
        learned = diffeo.posterior(theta, x, known, support="real", epochs=1, folds=1)
        assert np.isfinite(learned.facts["beyond_prior"]["mean"])
        assert learned.importance(x[0], lambda theta: -theta.square().sum(-1), 50).samples.shape == (50, 2)


def test_importance_with_a_mixture_for_a_prior():
    """torch takes the support of a mixture for the intersection of its components'."""
    parts = Uniform(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]), validate_args=False)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(2)), parts, validate_args=False
    )
    torch.manual_seed(0)
    theta = mixture.sample((500,))[:, None]
    learned = diffeo.posterior(theta, theta + 0.3 * torch.randn(500, 1), mixture, folds=1, epochs=20)
    assert np.isfinite(learned.facts["beyond_prior"]["mean"])
    x_o, grid = torch.tensor([0.7]), torch.linspace(0, 3, 30_001).double()
    weighted = learned.importance(x_o, lambda theta: Normal(theta[..., 0], 0.3).log_prob(x_o[0]), 4000)
    exact = (mixture.log_prob(grid) + Normal(grid, 0.3).log_prob(x_o[0].double())).exp()
    assert weighted.log_z == pytest.approx(float(torch.trapezoid(exact, grid).log()), abs=0.03)


@pytest.mark.parametrize("unit", [2.0**-110, 2.0**-80, 2.0**100])
@pytest.mark.parametrize("of", ["theta", "x"])
def test_units_do_not_matter(unit, of):
    """To the bit, of powers of two; the least and the largest are beyond what float32 can square."""
    given = dict(zip(("theta", "x"), conjugate(60), strict=True))
    scaled = {**given, of: given[of] * unit}
    usual, other = (diffeo.posterior(**each, epochs=2, folds=1) for each in (given, scaled))
    drawn, same = (made.sample(each["x"][:5], 50, seed=0) for made, each in ((usual, given), (other, scaled)))
    assert torch.equal(same, drawn * unit if of == "theta" else drawn)


def test_importance_gives_the_exact_posterior_and_its_evidence(learned):
    x_o = torch.tensor([0.8, -0.4])

    def log_likelihood(theta):
        return Normal(theta, NOISE).log_prob(x_o).sum(-1)

    weighted = learned.importance(x_o, log_likelihood, 4000)
    evidence = Normal(0.0, (1 + NOISE**2) ** 0.5).log_prob(x_o).sum()
    assert weighted.ess > 0.7
    assert abs(weighted.log_z - evidence) < 0.05
    torch.testing.assert_close(weighted.mean(), SHRUNK * x_o, atol=0.03, rtol=0)


def test_held_out_simulations_are_judged_by_the_member_that_has_not_seen_them():
    theta, x = conjugate(120)
    learned = diffeo.posterior(theta, x, **QUICK)
    fold = assign_folds(theta, x, 2, derive(0, "folds"))
    place = [int((theta == row).all(1).nonzero()) for row in learned.theta]
    assert sorted(place) == list(range(120))
    assert torch.equal(learned.fold, fold[place])
    with torch.no_grad():
        members = torch.stack([member.log_prob(theta, x) for member in learned.flow.members], 1)
    held_out = members[torch.arange(120), fold].double().mean()
    assert learned.facts["log_prob"]["mean"] == pytest.approx(float(held_out), abs=1e-4)

    single = diffeo.posterior(theta, x, **{**QUICK, "folds": 1})
    assert len(single.theta) == single.facts["held_out"] == 12
    assert bool((single.fold == -1).all())


def test_calibration_of_new_simulations(learned):
    found = learned.calibration(*conjugate(300, seed=2), draws=50)
    assert found.ranks.shape == (300, 2)
    assert "300 new simulations" in str(found)
    assert found.to_json() == learned.calibration(*conjugate(300, seed=2), draws=50).to_json()


# ---- Observations that a network reads first -------------------------------------------------------------------------


def series(count, length=24):
    theta = torch.rand(count, 1, generator=torch.Generator().manual_seed(0))
    time = torch.arange(length)
    return theta, torch.sin(time * theta * 3)[:, None] + 0.1 * torch.randn(count, 1, length)


@pytest.mark.parametrize("embedding", ["cnn", "mlp"])
def test_a_long_observation_is_embedded(embedding, tmp_path):
    torch.manual_seed(0)
    theta, x = series(200)
    learned = diffeo.posterior(theta, x, support=(0, 1), embedding=embedding, jobs=1, folds=2, epochs=8, names=["f"])
    assert learned.facts["log_prob"]["mean"] > 0.5  # the prior has 0
    learned.save(tmp_path / "run")
    again = diffeo.load(tmp_path / "run")
    assert torch.equal(again.log_prob(theta[:5], x[:5]), learned.log_prob(theta[:5], x[:5]))
    assert again.calibration(draws=10).to_json() == learned.calibration(draws=10).to_json()


@pytest.mark.parametrize(
    ("shape", "method", "embedding", "expected", "rate"),
    [
        ((4,), "npe", None, [Reader, Reader, type(None)], 1.5e-2),
        ((4,), "npe", (), [type(None)] * 3, 1.5e-2),
        ((4,), "npe", [6, 5], [Reader, Reader, type(None)], 1.5e-2),
        ((4,), "npe", "mlp", [Reader] * 3, 1.5e-2),
        ((4,), "npe", nn.Linear(4, 3), [nn.Linear] * 3, 3e-3),
        ((1, 9), "npe", None, [CNN] * 3, 3e-3),
        ((1, 9), "npe", "mlp", [Reader] * 3, 1.5e-2),
        ((4,), "fmpe", None, [type(None)], 3e-3),
    ],
    ids=str,
)
def test_what_reads_an_observation(shape, method, embedding, expected, rate, monkeypatch):
    """Vectors are read before the splines, not before the linear layer; what is given is before all."""
    asked = {}

    def fit_folds(flows, theta, x, **training):
        asked.update(training, flows=flows)
        raise KeyboardInterrupt

    monkeypatch.setattr(posteriors, "fit_folds", fit_folds)
    with pytest.raises(KeyboardInterrupt):
        diffeo.posterior(torch.randn(60, 2), torch.randn(60, *shape), method=method, embedding=embedding)
    assert [type(flow.embedding) for flow in asked["flows"].values()] == expected
    assert asked["lr"] == rate
    linear = method == "npe" and expected[-1] is type(None)
    assert asked["most_epochs"] == ({"npe linear": 30} if linear else {})
    for flow in asked["flows"].values():
        assert flow.context_shape == shape
        assert flow.log_prob(torch.randn(3, 2), torch.randn(3, *shape)).shape == (3,)


@pytest.mark.parametrize(
    ("count", "asked", "batch", "patience"),
    [
        (60, {}, 16, 30),
        (9_999, {}, 256, 30),
        (10_000, {}, 256, 15),
        (10_000, {"method": "fmpe"}, 256, 30),
        (10_000, {"embedding": nn.Linear(4, 3)}, 256, 30),
        (10_000, {"patience": 7, "batch_size": 50}, 50, 7),
    ],
    ids=str,
)
def test_the_training_follows_the_number_of_simulations(count, asked, batch, patience, monkeypatch):
    settings = {}

    def fit_folds(flows, theta, x, **training):
        settings.update(training)
        raise KeyboardInterrupt

    monkeypatch.setattr(posteriors, "fit_folds", fit_folds)
    with pytest.raises(KeyboardInterrupt):
        diffeo.posterior(torch.randn(count, 2), torch.randn(count, 4), **asked)
    assert (settings["batch_size"], settings["patience"]) == (batch, patience)


@pytest.mark.parametrize(("asked", "steps"), [({}, 6), ({"batch_size": 40}, 2)], ids=str)
def test_a_batch_size_is_kept_on_the_command_line(tmp_path, asked, steps):
    commands.posterior(
        table(108), tmp_path / "run", parameters=["a"], observed=["x1"], epochs=1, folds=1, figures=False, **asked
    )
    (epoch,) = (tmp_path / "run" / "train" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(epoch)["step"] == steps


@pytest.mark.parametrize(("shape", "method"), [((1, 9), "npe"), ((4,), "fmpe")])
def test_widths_are_for_the_vectors_of_npe(shape, method):
    with pytest.raises(ValueError, match=r"expected widths as an embedding of vectors for npe alone, got \[6, 5\]"):
        diffeo.posterior(torch.randn(60, 2), torch.randn(60, *shape), method=method, embedding=[6, 5])


class Own(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.linear = nn.Linear(features, 3)

    def forward(self, x):
        return self.linear(x.flatten(1))


def test_an_own_embedding_is_trained_but_not_stored(tmp_path):
    theta, x = series(60)
    net = Own(24)
    before = net.linear.weight.clone()
    learned = diffeo.posterior(theta, x, embedding=net, **QUICK)
    assert torch.equal(net.linear.weight, before)
    first, second = (member.principal.embedding.linear.weight for member in learned.flow.members)
    assert (first - second).abs().max() > 0.05  # each has initial weights of its own
    with pytest.raises(ValueError, match="got Own as embedding"):
        learned.save(tmp_path / "run")


class Flat(nn.Module):
    def forward(self, x):
        return x.reshape(-1, 2)


class Mixed(nn.Module):
    def forward(self, x):
        return (x - x.mean(0)).flatten(1)


def test_an_embedding_that_changes_the_batch_is_refused():
    theta, x = series(60)
    with pytest.raises(ValueError, match=r"expected an embedding from \(3, 1, 24\) to \(3, C\), got shape \(36, 2\)"):
        diffeo.posterior(theta, x, embedding=Flat(), **QUICK)
    with pytest.raises(ValueError, match="each observation by itself, got one that depends on the batch"):
        diffeo.posterior(theta, x, embedding=Mixed(), **QUICK)
    with pytest.raises(TypeError, match="expected an embedding as a module or a name, got int"):
        diffeo.posterior(theta, x, embedding=3, **QUICK)
    with pytest.raises(ValueError, match="expected an embedding among mlp, cnn, or a module, got 'rnn'"):
        diffeo.posterior(theta, x, embedding="rnn", **QUICK)


@pytest.mark.parametrize("shape", [(30,), (2, 30), (3, 9, 14), (1, 2, 2)])
def test_a_cnn_reads_each_input_by_itself(shape):
    net = CNN([*shape], 5)
    x = torch.randn(4, *shape)
    assert net(x).shape == (4, 5)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))
    assert (net(x)[0] - net(x)[1]).abs().max() > 1e-4
    flow = diffeo.maf(2, context=5).with_embedding(net, shape)
    assert rebuilt(described(flow)).embedding.arguments() == net.arguments()
    with pytest.raises(ValueError, match="expected inputs of shape"):
        CNN((1, 2, 3, 4), 5)
    with pytest.raises(ValueError, match="expected positive sizes"):
        CNN(shape, 0)


# ---- Storing ---------------------------------------------------------------------------------------------------------


def test_a_round_trip(tmp_path, learned):
    learned.save(tmp_path / "run")
    again = diffeo.load(tmp_path / "run")
    theta, x = conjugate(10)
    assert torch.equal(again.log_prob(theta, x), learned.log_prob(theta, x))
    assert torch.equal(again.sample(x, 3, seed=1), learned.sample(x, 3, seed=1))
    assert repr(again) == repr(learned)
    assert again.calibration().to_json() == learned.calibration().to_json()
    assert not [path for path in (tmp_path / "run").rglob("*") if path.suffix in (".pkl", ".pt")]
    with pytest.raises(ValueError, match=r"expected a prior with log_prob to weigh by, got none; give prior="):
        again.importance(x[0], lambda theta: theta.sum(1))
    assert (
        again.importance(x[0], lambda theta: Normal(theta, NOISE).log_prob(x[0]).sum(1), 200, prior=prior()).ess > 0.5
    )


def test_a_run_directory_is_made_or_refused_before_the_training(tmp_path):
    theta, x = conjugate(60)
    made = diffeo.posterior(theta, x, out=tmp_path / "run", **QUICK)
    assert repr(diffeo.load(tmp_path / "run")) == repr(made)
    with pytest.raises(diffeo.UserError, match="holds a run"):
        diffeo.posterior(theta, x, out=tmp_path / "run", **QUICK)
    diffeo.posterior(theta, x, out=tmp_path / "run", force=True, **QUICK)


def test_a_damaged_run_is_refused(tmp_path, learned):
    learned.save(tmp_path / "run")
    (tmp_path / "run" / "simulations.safetensors").unlink()
    with pytest.raises(diffeo.UserError, match="is missing"):
        diffeo.load(tmp_path / "run")


def test_the_same_call_gives_the_same_posterior():
    theta, x = conjugate(60)
    first, second = (diffeo.posterior(theta, x, **QUICK, seed=3) for _ in range(2))
    assert torch.equal(first.log_prob(theta, x), second.log_prob(theta, x))


def test_what_it_says_of_itself(learned):
    text = repr(learned)
    assert "Posterior of theta1, theta2 given observations of shape (2,)" in text
    assert "npe of 1,000 simulations, 2 folds" in text
    assert "more than the prior" in text


# ---- Bad input -------------------------------------------------------------------------------------------------------


def test_parameters_outside_the_support_are_named():
    theta, x = uniform(100)
    theta[17, 1] = 1.5
    theta[40, 0] = -1.0
    box = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)
    message = r"got 2 of 100 outside, first theta\[17\]: b = 1.5, the nearest inside is 1;"
    with pytest.raises(ValueError, match=message):
        diffeo.posterior(theta, x, box, names=["a", "b"], **QUICK)


def test_parameters_on_the_boundary_are_taken():
    theta, x = uniform(100)
    theta[5, 0], theta[6, 1] = 0.0, 1.0
    learned = diffeo.posterior(theta, x, support=(0.0, 1.0), **QUICK)
    assert np.isfinite(learned.facts["log_prob"]["mean"])


def test_simulations_that_are_not_finite_are_counted():
    theta, x = conjugate(100)
    x[7, 1], x[9, 0], theta[20, 0] = torch.nan, torch.inf, torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in 3 of 100, first in x\[7\]\[1\]; missing='drop' leaves"):
        diffeo.posterior(theta, x, **QUICK)
    notes = []
    learned = diffeo.posterior(theta, x, missing="drop", say=notes.append, **QUICK)
    assert learned.facts["simulations"] == 97
    assert "3 simulations with NaN or infinity were left out" in notes
    with pytest.raises(ValueError, match="expected missing='error' or 'drop', got 'keep'"):
        diffeo.posterior(theta, x, missing="keep", **QUICK)


@pytest.mark.parametrize(
    ("theta", "x", "message"),
    [
        (2_459_000.0, 0.0, r"theta\[0\] \(and 1 more\) of about 245.* subtract an offset from it"),
        (0.0, 1.7e9, r"x\[0\] \(and 1 more\) of about 1.7e\+09 with a spread of .*; subtract"),
    ],
)
def test_numbers_that_float32_does_not_tell_apart_are_refused(theta, x, message):
    parameters, observed = (each.double() for each in conjugate(100))
    with pytest.raises(ValueError, match=message):
        diffeo.posterior(parameters + theta, observed + x, **QUICK)
    tenth = torch.full((100, 1), 0.1, dtype=torch.double)  # of one value, whatever float32 makes of it
    learned = diffeo.posterior(parameters, torch.cat([observed, tenth], 1), epochs=1, folds=1)
    assert "note: x[2] is the same in all simulations" in repr(learned)
    exact = torch.round(64 * parameters) / 64  # of which float32 loses nothing
    diffeo.posterior(exact + 1024 * (theta > 0), observed, epochs=1, folds=1)


def test_a_posterior_of_few_simulations_is_stored(tmp_path):
    """One is held out, of which there is no standard error."""
    made = diffeo.posterior(*conjugate(10), prior(), folds=1, epochs=1, out=tmp_path / "run")
    assert made.facts["held_out"] == 1
    assert "±" not in repr(made)
    assert repr(diffeo.load(tmp_path / "run")) == repr(made)


def test_a_training_that_breaks_down_is_said(tmp_path):
    with pytest.raises(diffeo.UserError, match=r"no epoch has a finite validation loss; .* lower the learning rate"):
        diffeo.posterior(*conjugate(200), lr=1e9, folds=1, epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_constant_statistics_are_harmless():
    theta, x = conjugate(100)
    x = torch.cat([x, torch.full((100, 1), 4.0)], 1)
    learned = diffeo.posterior(theta, x, **QUICK)
    assert "note: x[2] is the same in all simulations, and tells nothing" in repr(learned)
    other = torch.tensor([0.5, 0.5, 1e6])
    with pytest.warns(
        UserWarning, match=r"x\[2\] was the same in all simulations and is another one in this observation"
    ):
        odd = learned.log_prob(theta[:3], other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(odd, learned.log_prob(theta[:3], torch.tensor([0.5, 0.5, 4.0])))


def test_an_observation_of_another_shape_is_refused(learned):
    for bad in (torch.zeros(3), torch.zeros(2, 1), torch.zeros(())):
        with pytest.raises(ValueError, match=r"expected observations of shape \(2,\), as in the simulations, got"):
            learned.sample(bad)
    with pytest.raises(ValueError, match="expected finite observations"):
        learned.sample([0.0, float("nan")])
    with pytest.raises(ValueError, match=r"expected one observation of shape \(2,\), got \(4, 2\)"):
        learned.importance(torch.zeros(4, 2), lambda theta: theta.sum(1))


def test_fifty_simulations_say_how_little_they_are():
    notes = []
    learned = diffeo.posterior(*conjugate(50), folds=5, jobs=1, epochs=2, say=notes.append)
    assert "50 simulations are few" in notes[0]
    assert "50 simulations are few" in repr(learned)
    assert learned.calibration(draws=20).ranks.shape == (50, 2)


def test_other_bad_input(learned):
    theta, x = conjugate(100)
    with pytest.raises(ValueError, match="expected method among npe, fmpe, got 'nle'"):
        diffeo.posterior(theta, x, method="nle")
    with pytest.raises(ValueError, match="expected an observation for each of 100 parameters, got 90"):
        diffeo.posterior(theta, x[:90])
    with pytest.raises(ValueError, match="expected at least 10 simulations for 5 folds, got 9"):
        diffeo.posterior(theta[:9], x[:9])
    with pytest.raises(ValueError, match="expected a name for each of 2 parameters, got 1"):
        diffeo.posterior(theta, x, names=["a"])
    with pytest.raises(TypeError, match="expected numbers in x"):
        diffeo.posterior(theta, np.array([["a"]] * 100))
    with pytest.raises(ValueError, match="expected a prior of 2 parameters, as theta has, got one of 3"):
        diffeo.posterior(theta, x, prior(3))
    with pytest.raises(ValueError, match="expected a prior of 2 parameters, as theta has, got one of 1"):
        diffeo.posterior(theta, x, torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1)))
    with pytest.raises(ValueError, match=r"a prior whose log_prob takes parameters .*, got Value is not broadcastable"):
        diffeo.posterior(theta, x, torch.distributions.MultivariateNormal(torch.zeros(4, 2), torch.eye(2)))
    unknown = type("Unknown", (), {"log_prob": lambda self, theta: theta.sum(-1) * torch.nan})()
    with pytest.raises(ValueError, match=r"log-density under the prior, got nan in 100 of 100, first theta\[0\]"):
        diffeo.posterior(theta, x, unknown)
    with pytest.raises(ValueError, match=r"expected parameters that vary, got theta3 = 1 in all simulations"):
        diffeo.posterior(torch.cat([theta, torch.ones(100, 1)], 1), x)
    with pytest.raises(ValueError, match="expected names that differ, got 'a' twice"):
        diffeo.posterior(theta, x, names=["a", "a"])
    with pytest.raises(TypeError, match="expected a sequence of names, got 'ab'"):
        diffeo.posterior(theta, x, names="ab")
    with pytest.raises(ValueError, match=r"expected an embedding of observations \(3, 2\), got mat1"):
        diffeo.posterior(theta, x, embedding=nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"expected folds >= 1, got 2\.5"):
        diffeo.posterior(theta, x, folds=2.5)
    for one in ({"theta": theta}, {"x": x}):
        with pytest.raises(ValueError, match="expected parameters and their observations, got one of both"):
            learned.calibration(**one)
    for few in (x[:30], x[0]):
        with pytest.raises(ValueError, match="and an observation for each, got"):
            learned.calibration(theta[:40], few)
    with pytest.raises(ValueError, match="expected draws >= 1, got 0"):
        learned.calibration(draws=0)
    with pytest.raises(ValueError, match="expected at least 20 simulations, got 5"):
        learned.calibration(theta[:5], x[:5])
    with pytest.raises(ValueError, match=r"expected theta \(n, D\) and draws \(L, n, D\)"):
        calibration_of(theta, theta)


# ---- The command line ------------------------------------------------------------------------------------------------


def table(count=200, seed=0):
    generator = np.random.default_rng(seed)
    a, b = generator.uniform(-1, 1, count), generator.gamma(2, 1, count)
    x = np.stack([a, np.log(b)], 1) + 0.3 * generator.normal(size=(count, 2))
    return pd.DataFrame({"a": a, "b": b, "x1": x[:, 0], "x2": x[:, 1], "note": "text"})


BOUNDS = ["--bounds", "a=-1:1", "--bounds", "b=0:"]
FEW = ["--epochs", "2", "--folds", "2", "--hidden", "16", "--transforms", "2", "--no-figures"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("posterior")
    table().to_parquet(folder / "sims.parquet", index=False)
    code = main(
        ["posterior", str(folder / "sims.parquet"), "--parameters", "a,b", "--out", str(folder / "run"), *BOUNDS, *FEW]
    )
    assert code == 0
    return folder / "run"


def test_a_run_of_the_command_line_is_used_as_any(run, capsys):
    data = str(run.parent / "sims.parquet")
    model = json.loads((run / "model.json").read_text())
    assert model["schema"]["context"] == ["x1", "x2"]
    assert model["metrics"]["calibration"]["sbc"].keys() == {"a", "b"}
    assert main(["sample", str(run), "-n", "500", "--given", "x1=3", "--given", "x2=-9"]) == 0
    drawn = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert bool(drawn["a"].between(-1, 1).all() and (drawn["b"] > 0).all())
    assert main(["score", str(run), data]) == 0
    scored = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert len(scored) == 200
    assert bool(np.isfinite(scored["log_likelihood"]).all())
    assert main(["predict", str(run), data]) == 0
    assert "a_q0.5" in capsys.readouterr().out
    report = commands.check(run, data)
    assert report["calibration"]["simulations"] == 200
    assert report["calibration"]["draws"] == 200
    assert main(["check", str(run), data]) == 0
    said = capsys.readouterr().out
    assert "ranks (SBC)" in said
    assert "coverage (TARP)" in said


def test_no_draw_of_a_table_run_leaves_its_bounds(run):
    flow = diffeo.load(run)
    drawn = flow.sample(100_000, torch.tensor([9.0, -20.0]))
    assert bool(((drawn[:, 0] > -1) & (drawn[:, 0] < 1) & (drawn[:, 1] > 0)).all())
    assert torch.isneginf(flow.log_prob(torch.tensor([1.01, 0.5]), torch.zeros(2)))


def test_check_distrusts_a_posterior_that_is_not_calibrated(run):
    moved = table(seed=1)
    moved["a"] = (moved["a"] + 2) / 3
    report = commands.check(run, moved)
    assert report["verdict"] == "not trustworthy"
    assert any("the posterior of 'a' is too low" in reason for reason in report["reasons"])


def test_the_calibration_of_a_run_is_plotted(tmp_path):
    made = commands.posterior(
        table(60), tmp_path / "run", parameters=["a", "b"], observed=["x2"], method="fmpe", epochs=1, folds=1,
        arguments={"hidden": [8], "tolerance": 1e-3}, lr=1e-3,
    )  # fmt: skip
    assert (tmp_path / "run" / "figures" / "calibration.png").is_file()
    assert made["model"] == "flow_matching"
    assert made["context"] == ["x2"]


@pytest.mark.parametrize(("count", "said"), [(3, None), (60, "in sample")])
def test_few_rows_are_judged_in_sample_or_not_at_all(tmp_path, count, said, capsys):
    table(count).to_csv(tmp_path / "sims.csv", index=False)
    words = ["--out", str(tmp_path / "run"), "--parameters", "a,b", "--folds", "1", "--epochs", "1", "--no-figures"]
    assert main(["posterior", str(tmp_path / "sims.csv"), *words]) == 0
    shown = capsys.readouterr().out
    assert ("ranks (SBC)" in shown) == (said is not None)
    if said:
        assert said in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give the columns of the parameters (--parameters COLS); it has 'a', 'b', 'x1', 'x2', 'note'"),
        (["--parameters", "a,c"], "has no column 'c' for --parameters"),
        (["--parameters", "a,a"], "column 'a' is there twice in --parameters; name each once"),
        (["--parameters", "a", "--observed", "x3"], "has no column 'x3' for --observed"),
        (["--parameters", "a", "--observed", "a"], "column 'a' is a parameter and observed; choose one"),
        (["--parameters", "a,b,x1,x2"], "no column of numbers is left as the observation"),
        (["--parameters", "a", "--method", "nle"], "unknown method 'nle'; expected one of npe, fmpe"),
        (["--parameters", "a", "--bounds", "a=1"], "expected --bounds COLUMN=LOW:HIGH, such as size=0:, got 'a=1'"),
        (["--parameters", "a", "--bounds", "a=1:-1"], "column 'a': expected bounds LOW:HIGH, got '1:-1'"),
        (["--parameters", "a", "--bounds", "x1=0:"], "column 'x1' is not modelled"),
        (["--parameters", "a,b", "--bounds", "b=0.01:2"], "which is not within its bounds 0.01:2; give wider ones"),
        (["--parameters", "a,note"], "'note'"),
    ],
)
def test_bad_input_on_the_command_line(words, message, tmp_path, capsys):
    table(40).to_csv(tmp_path / "sims.csv", index=False)
    assert main(["posterior", str(tmp_path / "sims.csv"), "--out", str(tmp_path / "run"), *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert not (tmp_path / "run").exists()


def test_the_row_that_is_outside_its_bounds_is_named(tmp_path, capsys):
    rows = table(40)
    rows.loc[16, "a"] = 1.5
    rows.to_csv(tmp_path / "sims.csv", index=False)
    words = ["posterior", str(tmp_path / "sims.csv"), "--out", str(tmp_path / "run"), "--parameters", "a,b", *BOUNDS]
    assert main(words) == 2
    assert "column 'a' holds 1.5 in row 17 (line 18), which is not within its bounds -1:1" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "folds"), [(False, 1), (True, 2)], ids=["numbers", "with text"])
def test_columns_of_any_table_keep_within_bounds(tmp_path, text, folds):
    generator = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "share": generator.beta(0.5, 2, 300), "count": generator.poisson(3, 300) + 1000,
            "level": generator.choice([0.1, 2.71, 7.3], 300), "free": generator.normal(size=300),
            "tenths": generator.exponential(1, 300).round(1),
        }
    )  # fmt: skip
    if text:  # beside it gaps, which make a table a mixed one as well
        rows = rows.assign(text=generator.choice(["a", "b", "c"], 300), share=rows["share"].where(rows["free"] < 1))
    bounds = {"share": [0.0, 1.0], "count": [1000.0, None], "level": [0.0, 10.0], "tenths": [0.0, 8.0]}
    sizes = {"hidden": [8]} if text else {"hidden": [8], "transforms": 2}
    commands.fit(rows, tmp_path / "run", bounds=bounds, epochs=2, folds=folds, figures=False, arguments=sizes)
    drawn = diffeo.load(tmp_path / "run").sample(20_000)
    share = drawn[:, 0][~drawn[:, 0].isnan()]
    assert bool(((share > 0) & (share < 1)).all())
    out = tmp_path / "drawn.csv"
    commands.sample(tmp_path / "run", 2000, out)
    cells = pd.read_csv(out)
    assert cells["count"].min() >= 1000
    assert cells["tenths"].min() >= 0
    assert cells["tenths"].max() <= 8
    assert set(cells["level"]) <= {0.1, 2.71, 7.3}
    beyond = {"tenths": rows["tenths"].where(rows.index != 0, 8.1), "count": rows["count"].where(rows.index != 1, 999)}
    commands.score(tmp_path / "run", rows.assign(**beyond), tmp_path / "scores.csv")
    scores = pd.read_csv(tmp_path / "scores.csv")["log_likelihood"]
    assert list(np.isfinite(scores)) == [False, False, *[True] * 298]


def test_simulations_with_gaps_are_refused_or_dropped(tmp_path, capsys):
    rows = table(60)
    rows.loc[[3, 8], "x1"] = np.nan
    rows.to_csv(tmp_path / "sims.csv", index=False)
    words = ["posterior", str(tmp_path / "sims.csv"), "--out", str(tmp_path / "run"), "--parameters", "a,b", *FEW]
    assert main(words) == 2
    assert "x1" in capsys.readouterr().err
    assert main([*words, "--drop-missing"]) == 0
    assert "2 rows with missing or infinite values were left out" in capsys.readouterr().err


def test_simpler_flows_are_stacked_unless_the_model_is_chosen_otherwise(run, tmp_path):
    stacked = commands.posterior(table(60), tmp_path / "run", parameters=["a"], observed=["x1"], epochs=1, folds=2)
    assert {"nsf", "small", "linear"} <= {name.split(" (")[0] for name in stacked["weights"]}
    alone = commands.info(run)["metrics"]["weights"]
    assert "nsf" in alone
    assert not {"small", "linear"} & alone.keys()


def test_a_python_posterior_is_no_run_of_the_command_line(tmp_path):
    diffeo.posterior(*conjugate(60), out=tmp_path / "run", **QUICK)
    with pytest.raises(diffeo.UserError, match=r"is a posterior that was made in Python; take it by diffeo.load"):
        commands.check(tmp_path / "run", table())
