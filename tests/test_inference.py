"""Densities known up to a constant: gradients by hand, weights of known integrals, and doubts where there is reason."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import diffeo
from cases import randomise
from diffeo.bases import StandardNormal
from diffeo.errors import UserError
from diffeo.inference import fit_target, importance
from diffeo.inference.importance import Importance, pareto_k
from diffeo.inference.tempering import temper
from diffeo.objectives import AlphaDivergence, MaximumLikelihood, ReverseKL, Target
from diffeo.objectives.moves import Moves, State
from diffeo.transforms import Elementwise, Shift, Standardize, as_support

LOG_Z = math.log(7.0)


def normal(mean=0.0, scale=1.0):
    """log of 7 times a normal density of points (n, D)."""

    def log_density(x):
        z = (x - mean) / scale
        return (-0.5 * z.square() - math.log(scale) - 0.5 * math.log(2 * math.pi)).sum(-1) + LOG_Z

    return log_density


def two_modes(x):
    """Normals at -4 and 4 in the first column, of weights 0.3 and 0.7; log Z = 0."""
    first = torch.stack([math.log(0.3) - 0.5 * (x[:, 0] + 4) ** 2, math.log(0.7) - 0.5 * (x[:, 0] - 4) ** 2])
    rest = 0.5 * x[:, 1:].square().sum(1)
    return torch.logsumexp(first, 0) - rest - 0.5 * x.shape[1] * math.log(2 * math.pi)


class Normal(diffeo.Flow):
    """N(mu, sigma^2) of one number, by a shift and a scale that are learned."""

    def __init__(self, mu=0.5, log_sigma=-0.3):
        super().__init__(StandardNormal(1), [Elementwise(diffeo.transforms.Scale(), 1), Elementwise(Shift(), 1)])
        scale, shift = self.parameters()
        nn.init.constant_(scale, log_sigma)
        nn.init.constant_(shift, mu)


# ---- the user's function --------------------------------------------------------------------------------------------


def test_functions_of_batches_of_points_and_of_numpy_are_alike():
    x = torch.randn(5, 3)
    expected = normal()(x)

    def one(point):
        return normal()(point).sum()

    def by_numpy(points):
        return stats.norm.logpdf(np.asarray(points)).sum(-1) + LOG_Z

    def one_by_index(point):
        a, b, c = point
        return -0.5 * (a**2 + b**2 + c**2) - 1.5 * math.log(2 * math.pi) + LOG_Z

    def one_by_numpy(point):
        return float(by_numpy(point).sum() if point.ndim > 1 else by_numpy(point))

    for function, vectorized, differentiable in (
        (normal(), True, True),
        (one, False, True),
        (one_by_index, False, True),
        (by_numpy, True, False),
        (one_by_numpy, False, False),
    ):
        target = Target(function)
        assert torch.allclose(target(x).float(), expected, atol=1e-5)
        assert (target.vectorized, target.differentiable) == (vectorized, differentiable)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x, r"expected a log-density that returns shape \(3,\) for points \(3, 2\), or a number for one"),
        (lambda x: x.sum(-1, keepdim=True), r"got shape \(3, 1\)"),
        (lambda x: 1 / 0, "got ZeroDivisionError"),
        (lambda x: torch.full((len(x),), math.nan), "got nan at 4 of 4 points, first at"),
        (lambda x: torch.full((len(x),), math.inf), "got inf at 4 of 4 points"),
        (lambda x: x.sum(-1) - x.mean(), "of each point by itself, got one that changes with the points beside it"),
    ],
)
def test_a_function_that_is_no_log_density_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        Target(function)(torch.randn(4, 2))


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_function_may_write_into_its_points(vectorized):
    def clipping(x):
        return -x.clamp_(-1, 1).square().sum(-1)

    x = 3 * torch.randn(50, 2)
    before = x.clone()
    values = Target(clipping, vectorized)(x)
    assert torch.equal(x, before)
    assert torch.equal(values, clipping(before))


def test_a_function_that_makes_a_float_of_each_point_is_called_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target = Target(lambda point: -(float(point[0]) ** 2))
        assert torch.equal(target(torch.tensor([[1.0], [2.0]])), torch.tensor([-1.0, -4.0]))
    assert target.differentiable is False


def test_double_precision_of_a_log_density_is_kept():
    x = torch.randn(100, 1)
    shifted = Target(lambda x: normal()(x.double()) - 3e7)(x)
    assert torch.allclose(shifted + 3e7, normal()(x.double()), atol=1e-6)


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="got Normal; pass its log_prob"):
        Target(torch.distributions.Normal(0.0, 1.0))
    with pytest.raises(TypeError, match="expected a log-density as a function of points, got int"):
        Target(3)


# ---- reverse KL -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [False, True])
def test_the_gradient_of_reverse_kl_is_that_of_two_gaussians(path):
    """KL(N(m, s^2) || N(0, 2^2)): d/dm = m / 4, d/d log s = s^2 / 4 - 1."""
    torch.manual_seed(0)
    flow = Normal()
    objective = ReverseKL(flow, normal(0.0, 2.0), path_gradients=path)
    losses = objective(torch.empty(200_000, 0))
    losses.mean().backward()
    scale, shift = (parameter.grad.item() for parameter in flow.parameters())
    sigma = math.exp(-0.3)
    assert shift == pytest.approx(0.5 / 4, abs=0.01)
    assert scale == pytest.approx(sigma**2 / 4 - 1, abs=0.01)
    exact = math.log(2) + 0.3 + (sigma**2 + 0.25) / 8 - 0.5
    assert losses.mean().item() == pytest.approx(exact - LOG_Z, abs=0.01)


def test_path_gradients_vanish_at_the_optimum():
    """There every draw has the same weight, and the gradient no variance: not so with the score's part."""
    for path in (True, False):
        flow = Normal(1.0, math.log(2.0))
        objective = ReverseKL(flow, normal(1.0, 2.0), path_gradients=path)
        objective(torch.empty(10, 0)).mean().backward()
        largest = max(parameter.grad.abs().max().item() for parameter in flow.parameters())
        assert (largest < 1e-5) is path


@pytest.mark.parametrize("structure", ["coupling", "inverse", "autoregressive"])
def test_path_and_plain_gradients_agree_on_average(structure):
    flow = diffeo.nsf(2, structure=structure, transforms=2, hidden=(8,), preprocess=())
    randomise(flow)
    gradients = []
    for path in (True, False):
        torch.manual_seed(1)
        flow.zero_grad()
        ReverseKL(flow, normal(0.5, 1.5), path_gradients=path)(torch.empty(100_000, 0)).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in flow.parameters()]))
    assert torch.allclose(*gradients, atol=0.05 * gradients[0].abs().max().item())


def test_fit_trains_without_data():
    flow = Normal()
    result = diffeo.fit(ReverseKL(flow, normal(3.0, 0.5)), steps=250, batch_size=64, lr=0.05, ema=0, weight_decay=0)
    assert (result.steps, result.epochs, result.skipped) == (250, 2, 0)
    scale, shift = (parameter.item() for parameter in flow.parameters())
    assert shift == pytest.approx(3.0, abs=0.02)
    assert scale == pytest.approx(math.log(0.5), abs=0.02)


def test_a_training_without_data_is_resumed_to_the_bit(tmp_path):
    def objective():
        torch.manual_seed(0)
        flow = diffeo.nsf(2, transforms=1, hidden=(8,), preprocess=())
        return AlphaDivergence(flow, two_modes, buffer=500, reuse=3)

    whole, stopped = objective(), objective()
    diffeo.fit(whole, steps=120, batch_size=16, out=tmp_path / "whole")
    calls = iter(range(200))

    def interrupting(x):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return two_modes(x)

    stopped.target = Target(interrupting)
    with pytest.raises(KeyboardInterrupt):
        diffeo.fit(stopped, steps=120, batch_size=16, out=tmp_path / "stopped", checkpoint_every=0)
    again = objective()
    diffeo.fit(again, steps=120, batch_size=16, out=tmp_path / "stopped", checkpoint_every=0, resume=True)
    for a, b in zip(whole.flow.parameters(), again.flow.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_needs_data_and_what_does_not_are_told_apart():
    flow = Normal()
    with pytest.raises(ValueError, match="expected data to train MaximumLikelihood on, got none"):
        diffeo.fit(MaximumLikelihood(flow), steps=10)
    with pytest.raises(ValueError, match="expected steps, or contexts, to train without data"):
        diffeo.fit(ReverseKL(flow, normal()))
    with pytest.raises(ValueError, match="expected steps for a training without data, got data"):
        diffeo.fit(ReverseKL(flow, normal()), torch.zeros(5, 0), steps=10)
    with pytest.raises(ValueError, match="expected a log-density with gradients"):
        diffeo.fit(ReverseKL(flow, lambda x: normal()(x.detach())), steps=10)


def half(x):
    """A normal density of points (n, D) whose first number is positive."""
    return torch.where(x[:, 0] > 0, -0.5 * x.square().sum(-1), -math.inf)


@pytest.mark.parametrize("seed", range(4))
def test_the_alpha_divergence_bears_draws_where_the_density_is_zero(seed):
    flow = diffeo.nsf(2, transforms=1, hidden=(8,), preprocess=())
    assert diffeo.fit(AlphaDivergence(flow, half), steps=5, batch_size=64, seed=seed).skipped == 0


def test_the_reverse_kl_of_a_density_that_is_zero_somewhere_is_said_to_be_infinite():
    flow = diffeo.nsf(2, transforms=1, hidden=(8,), preprocess=())
    with pytest.raises(UserError, match=r"arose in ReverseKL.*; where the density is zero the reverse KL is infinite"):
        diffeo.fit(ReverseKL(flow, half), steps=200, batch_size=64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda flow: AlphaDivergence(flow, half, clip=-1.0), "expected clip > 0, got -1"),
        (lambda flow: AlphaDivergence(flow, half, alpha=0.0), "expected alpha > 0, got 0"),
        (lambda flow: AlphaDivergence(flow, half, alpha=math.nan), "expected alpha > 0, got nan"),
        (lambda flow: AlphaDivergence(flow, half, reuse=1.5), "expected reuse >= 1, got 1.5; give a whole number"),
        (lambda flow: AlphaDivergence(flow, half, buffer=True), "expected buffer >= 1, got True"),
        (lambda flow: ReverseKL(flow, half, tempering=math.nan), "expected tempering >= 0, got nan"),
        (lambda flow: ReverseKL(diffeo.vae((1, 4, 4)), half), "expected a flow with a density, got a VAE"),
        (lambda flow: ReverseKL(nn.Linear(2, 2), half), "expected a flow, got Linear"),
        (lambda flow: diffeo.fit(AlphaDivergence(flow, half), steps=1.5), "expected steps >= 1, got 1.5"),
        (lambda flow: importance(flow, half, 1.5), "expected n >= 2, got 1.5"),
        (lambda flow: importance(flow, half, moves=-1), "expected moves >= 0, got -1"),
        (lambda flow: importance(None, half), "expected a flow, with sample_and_log_prob and log_prob, got NoneType"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(diffeo.nsf(2, transforms=1, hidden=(8,), preprocess=()))


def test_reverse_kl_of_a_conditional_flow_is_given_the_contexts():
    """x | c ~ N(c, 1): the flow learns to follow its context."""
    torch.manual_seed(0)
    flow = diffeo.maf(1, context=1, transforms=1, hidden=(16,), preprocess=())
    contexts = torch.randn(2000, 1)
    objective = ReverseKL(flow, lambda x, c: normal()(x - c))
    diffeo.fit(objective, context=contexts, epochs=30, batch_size=200, lr=0.02, validation=0)
    at = torch.tensor([[-1.0], [1.0]])
    assert torch.allclose(flow.sample(2000, at).mean(0), at, atol=0.15)


def test_tempering_begins_flat_and_is_off_in_evaluation():
    flow = Normal(0.0, 0.0)
    objective = ReverseKL(flow, lambda x: -1e3 * x.square().sum(-1), tempering=10)
    torch.manual_seed(0)
    first = objective.train()(torch.empty(1000, 0)).mean().item()
    torch.manual_seed(0)
    assert objective.eval()(torch.empty(1000, 0)).mean().item() > 50 * first
    for _ in range(10):
        objective.train()(torch.empty(2, 0))
    torch.manual_seed(0)
    last = objective(torch.empty(1000, 0)).mean().item()
    torch.manual_seed(0)
    assert last == pytest.approx(objective.eval()(torch.empty(1000, 0)).mean().item(), rel=1e-6)


# ---- importance -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_weights_give_a_known_integral_within_their_error():
    torch.manual_seed(0)
    results = [importance(Normal(0.0, math.log(2.0)), normal(0.5), 2000, moves=0) for _ in range(200)]
    errors = torch.tensor([(each.log_z - LOG_Z) / each.log_z_stderr for each in results])
    assert errors.mean().abs() < 0.3
    assert 0.8 < errors.std() < 1.2
    first = results[0]
    weights = first.log_weights.double().exp()
    assert first.ess == pytest.approx((weights.sum() ** 2 / (2000 * weights.square().sum())).item())
    assert first.mean().item() == pytest.approx(0.5, abs=0.1)
    assert first.resample(20_000).mean().item() == pytest.approx(0.5, abs=0.1)


def test_pareto_k_finds_the_shape_of_a_tail():
    for shape in (0.2, 0.5, 1.0):
        weights = stats.genpareto.rvs(shape, size=50_000, random_state=0)
        assert pareto_k(torch.from_numpy(np.log(weights))) == pytest.approx(shape, abs=0.12)
    assert pareto_k(torch.zeros(1000)) < 0
    assert pareto_k(torch.zeros(20)) == math.inf


@torch.no_grad()
def test_weights_that_differ_by_rounding_or_take_two_values_are_bounded():
    torch.manual_seed(0)
    rounding = 1e-6 * torch.randn(4000)
    assert pareto_k(rounding) < 0
    for share in (0.0005, 0.01, 0.03, 0.1, 0.5):
        heavier = torch.arange(4000) < 4000 * share
        for noise in (0, rounding):
            assert pareto_k(torch.where(heavier, math.log(2), 0.0) + noise) < 0.5, share
    assert pareto_k(torch.where(torch.arange(4000) < 1, 10.0, 0.0)) == math.inf  # one sample decides
    flow = diffeo.maf(3, hidden=(8,), preprocess=())
    randomise(flow)
    same = importance(flow, lambda x: flow.log_prob(x, nan="propagate"), 4000)
    assert same.doubts == []


def test_weights_of_zero_have_no_mean():
    nowhere = Importance(torch.zeros(5, 1), torch.full((5,), -math.inf))
    for asks in (nowhere.mean, lambda: nowhere.resample(3)):
        with pytest.raises(ValueError, match="expected a sample where the density is not zero, got none"):
            asks()
    some = Importance(torch.ones(5, 1), torch.zeros(5))
    with pytest.raises(ValueError, match="expected n >= 1, got 0"):
        some.resample(0)
    with pytest.raises(ValueError, match=r"expected values \(5, ...\) of samples, got \(\)"):
        some.mean(lambda x: x.sum())


def test_a_good_flow_has_no_doubts_and_a_narrow_one_has():
    torch.manual_seed(0)
    good = importance(Normal(1.0, math.log(2.2)), normal(1.0, 2.0))
    assert good.doubts == []
    assert good.forward_ess == pytest.approx(good.ess, rel=0.1)
    narrow = importance(Normal(1.0, math.log(0.5)), normal(1.0, 2.0))
    assert any("k-hat" in doubt for doubt in narrow.doubts)
    nothing = importance(Normal(), lambda x: torch.full((len(x),), -math.inf))
    assert nothing.doubts == ["every sample lies where the density is zero"]


@torch.no_grad()
def test_a_base_that_cuts_off_a_tail_is_noticed():
    """Uniform noise in [-1, 1] for a normal density: all weights are alike, and a third of the mass is missing."""
    torch.manual_seed(0)
    cut = diffeo.Flow(diffeo.bases.Uniform(2, -1.0, 1.0), Standardize(2))
    result = importance(cut, normal())
    assert result.ess > 0.9
    assert result.log_z < LOG_Z - 0.5
    assert any("leaves out mass near its samples" in doubt for doubt in result.doubts)
    assert "warning" in str(result)


@torch.no_grad()
def test_moves_keep_to_the_support_of_a_flow():
    """A density that is written for its support alone, and one that torch refuses to evaluate outside."""
    torch.manual_seed(0)
    layers = Elementwise(Shift(), 2)
    for prior in (torch.distributions.Beta(torch.full((2,), a), torch.full((2,), 3.0)) for a in (1.5, 2.0)):
        flow = diffeo.Flow(StandardNormal(2), layers).with_support(prior)
        result = importance(flow, lambda x, prior=prior: prior.log_prob(x).sum(1), 4000)
        assert result.log_z == pytest.approx(0.0, abs=4 * result.log_z_stderr)
        assert result.doubts == []
    simplex = torch.distributions.Dirichlet(torch.tensor([2.0, 3.0, 4.0]))
    flow = diffeo.Flow(StandardNormal(2), layers).with_support(as_support(simplex))
    result = importance(flow, simplex.log_prob, 4000)
    assert result.log_z == pytest.approx(0.0, abs=4 * result.log_z_stderr)
    assert result.doubts == []


# ---- moves, annealing, the alpha-divergence -------------------------------------------------------------------------


@pytest.mark.parametrize("differentiable", [True, False])
def test_moves_leave_a_density_as_it_is(differentiable):
    torch.manual_seed(0)
    density = Target(two_modes)
    x = torch.randn(20_000, 2)
    x[:, 0] += torch.where(torch.rand(20_000) < 0.3, -4.0, 4.0)
    moves = Moves(differentiable, 0.5)
    state = moves(State.at(x, density, differentiable), density, 20, adapt=False)
    assert 0.2 < moves.accepted < 1
    assert (state.x - x).abs().median() > 0.1, "they have moved"
    for column in range(2):
        assert stats.ks_2samp(state.x[:, column], x[:, column]).pvalue > 1e-4


def test_annealing_finds_modes_in_proportion_and_the_integral():
    torch.manual_seed(0)
    start = torch.distributions.Normal(torch.zeros(4), torch.full((4,), 3.0))
    found = temper(two_modes, start.sample((4000,)), lambda x: start.log_prob(x).sum(1), differentiable=True)
    assert (found.x[:, 0] > 0).double().mean().item() == pytest.approx(0.7, abs=0.05)
    assert found.log_z == pytest.approx(0.0, abs=0.1)


def test_annealed_weights_are_unbiased():
    """E w = integral of p~^2 / q: of N(0.5, 1) from N(0, 1.5^2), by quadrature, times 7^2."""
    torch.manual_seed(0)
    flow = Normal(0.0, math.log(1.5)).double()
    grid = torch.linspace(-30, 30, 60_001, dtype=torch.float64)[:, None]
    target = normal(0.5)
    with torch.no_grad():
        exact = torch.logsumexp(2 * target(grid) - flow.log_prob(grid), 0).item() + math.log(60 / 60_000)
    for differentiable in (True, False):
        function = target if differentiable else lambda x: target(x.detach())
        objective = AlphaDivergence(flow, function, buffer=100_000, temperatures=2, moves=2)
        objective.step.fill_(0.5)
        objective.refresh(100_000)
        weights = objective.log_weights
        estimate = torch.logsumexp(weights, 0).item() - math.log(len(weights))
        assert estimate == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("mu", [0.0, 0.2])
def test_the_gradient_of_the_alpha_divergence_is_that_of_gaussians(mu):
    """g = p^2 / q of p = N(1/2, 1) and q = N(mu, s^2) is normal; also where q has moved since the points were drawn."""
    torch.manual_seed(0)
    spread = 1.5
    flow = Normal(0.0, math.log(spread))
    objective = AlphaDivergence(flow, normal(0.5), buffer=200_000, temperatures=2, reuse=10**6).train()
    objective.step.fill_(0.5)
    objective.refresh(200_000)
    objective.calls += 1
    scale, shift = flow.parameters()
    nn.init.constant_(shift, mu)
    objective(torch.empty(200_000, 0)).mean().backward()
    # the loss of a draw is weighed by the change of its weight, whose mean is that of the integral of p^2 / q
    before, after = (_squared_over(m, spread)[2] for m in (0.0, mu))
    mean, variance, _ = _squared_over(mu, spread)
    factor = math.exp(after - before)
    assert shift.grad.item() == pytest.approx(-factor * (mean - mu) / spread**2, abs=0.01)
    exact = -factor * ((variance + (mean - mu) ** 2) / spread**2 - 1)
    assert scale.grad.item() == pytest.approx(exact, abs=0.02)


def _squared_over(mu, spread):
    """Mean and variance of N(1/2, 1)^2 / N(mu, s^2), and the logarithm of its integral, but for a constant."""
    variance = 1 / (2 - 1 / spread**2)
    mean = variance * (1 - mu / spread**2)
    return mean, variance, 0.5 * (mean**2 / variance - 0.5 + mu**2 / spread**2)


def test_weights_in_the_buffer_follow_the_flow():
    """A point's weight is of p^2 / q: as q at it rises by a factor, the weight falls by the same."""
    torch.manual_seed(0)
    objective = AlphaDivergence(Normal(), normal(), buffer=64, reuse=10**6)
    objective.train()
    objective.refresh(64)
    before = objective.log_weights + objective.log_q
    nn.init.constant_(next(objective.flow.parameters()), 0.4)
    objective.calls += 1
    for _ in range(50):
        objective(torch.empty(64, 0))
    now = objective.layers.log_prob(objective.points)
    assert torch.allclose(objective.log_q, now, atol=1e-5), "every point was drawn once, or the test is too short"
    assert torch.allclose(objective.log_weights + objective.log_q, before, atol=1e-4)


def test_the_buffer_keeps_the_newest_points():
    objective = AlphaDivergence(Normal(), normal(), buffer=10)
    for start in (0, 8, 16):
        y = torch.arange(start, start + 8.0)[:, None]
        objective.add(y, torch.zeros(8), torch.zeros(8))
    assert sorted(objective.points[:, 0].tolist()) == list(range(14, 24))
    objective.add(torch.arange(25.0)[:, None], torch.zeros(25), torch.zeros(25))
    assert sorted(objective.points[:, 0].tolist()) == list(range(15, 25))


@pytest.mark.parametrize("differentiable", [True, False])
def test_a_target_of_two_modes_is_learned(differentiable):
    """Reverse KL alone would take one of them, with a fine effective sample size."""
    function = two_modes if differentiable else lambda x: two_modes(x.detach())
    flow = diffeo.nsf(2, transforms=2, hidden=(32,), preprocess=())
    result = fit_target(function, 2, flow=flow, particles=2000, steps=100, samples=4000)
    assert (result.samples[:, 0] > 0).double().mean().item() == pytest.approx(0.7, abs=0.06)
    assert abs(result.log_z) < max(0.05, 4 * result.log_z_stderr)
    assert result.ess > 0.6
    assert result.doubts == []
    assert result.importance.forward_ess > 0.6


def test_a_missing_mode_shows_in_the_other_direction():
    """Samples of one mode of two have perfect weights; points that were annealed know of the other."""
    torch.manual_seed(0)
    one = diffeo.Flow(StandardNormal(2), Elementwise(Shift(), 2))
    with torch.no_grad():
        next(one.parameters()).copy_(torch.tensor([[4.0, 0.0]]))
        alone = importance(one, two_modes)
        assert alone.ess > 0.99
        everywhere = torch.randn(1000, 2)
        everywhere[:, 0] += torch.where(torch.rand(1000) < 0.3, -4.0, 4.0)
        moved = two_modes(everywhere) - one.log_prob(everywhere)
    doubtful = Importance(alone.samples, alone.log_weights, moved)
    assert doubtful.unseen == pytest.approx(0.3, abs=0.06)
    assert doubtful.doubts


def test_a_support_is_never_left():
    """A beta density, by its logarithm inside (0, 1) alone."""

    def log_density(x):
        assert ((x > 0) & (x < 1)).all()
        return (2.0 * x.log() + 4.0 * torch.log1p(-x)).sum(1)

    flow = diffeo.nsf(1, transforms=1, hidden=(16,), preprocess=())
    result = fit_target(
        log_density,
        support=torch.distributions.Beta(torch.ones(1), torch.ones(1)),
        flow=flow,
        particles=1000,
        steps=50,
        samples=2000,
        scale=2.0,
    )
    exact = math.lgamma(3) + math.lgamma(5) - math.lgamma(8)
    assert result.log_z == pytest.approx(exact, abs=0.02)
    assert result.importance.mean().item() == pytest.approx(3 / 8, abs=0.02)


def test_angles_are_weighed_once_though_they_are_reached_twice():
    """Von Mises, with its mode at the cut; log Z = log 2 pi I_0(2)."""
    flow = diffeo.nsf(1, transforms=1, hidden=(16,), preprocess=())
    result = fit_target(
        lambda x: -2.0 * x[:, 0].cos(), support=("circle", 1), flow=flow, particles=1000, steps=50, samples=2000
    )
    exact = math.log(2 * math.pi * np.i0(2.0))
    assert result.log_z == pytest.approx(exact, abs=0.03)
    assert result.annealed.log_z == pytest.approx(exact, abs=0.1)
    assert result.doubts == []


def test_the_seed_decides():
    def once(seed):
        flow = diffeo.nsf(1, transforms=1, hidden=(8,), preprocess=())
        torch.manual_seed(0)
        for parameter in flow.parameters():
            nn.init.normal_(parameter, std=0.1)
        return fit_target(normal(), 1, flow=flow, particles=200, steps=5, samples=50, seed=seed).samples

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected features, how many numbers a point has, or a support"),
        ({"features": 0}, "expected features >= 1, got 0"),
        ({"features": 2, "particles": 5}, "expected particles >= 100, got 5"),
        ({"features": 2, "scale": -1.0}, "expected scale > 0, got -1"),
        ({"features": 3, "flow": diffeo.nsf(2, preprocess=())}, "expected a flow of 3 features, got 2"),
        ({"flow": diffeo.nsf(2)}, r"expected a flow without preprocessing \(preprocess=\(\)\)"),
        ({"features": 2, "location": torch.zeros(3)}, "expected location as a number or 2 of them"),
        ({"features": 2, "steps": 0}, "expected steps >= 1, got 0"),
        ({"features": 2, "lr": -1.0}, "expected lr > 0, got -1"),
        ({"flow": diffeo.nsf(2, context=1)}, "expected a flow of vectors without context"),
        ({"flow": "nsf"}, "expected a flow, got str"),
        ({"features": 1.5}, "expected features >= 1, got 1.5"),
        ({"features": 2, "location": math.nan}, "expected a finite location, got nan"),
        ({"features": 2, "lr": math.inf}, "expected lr > 0, got inf"),
        ({"support": (0, None), "features": (2, 2)}, r"expected a support of vectors, got one of shape \(2, 2\)"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fit_target(normal(), **options)


@pytest.mark.parametrize("scale", [1e-3, 1e-6])
def test_annealing_says_the_integral_of_a_narrow_density(scale):
    torch.manual_seed(0)
    start = torch.distributions.Normal(torch.zeros(2), 3 * torch.ones(2))
    carried = temper(normal(1.0, scale), start.sample((2000,)), lambda x: start.log_prob(x).sum(1), differentiable=True)
    assert carried.log_z == pytest.approx(LOG_Z, abs=0.5)


@pytest.mark.parametrize("lighter", [5.0, 2000.0])
def test_points_moved_along_a_density_that_weigh_less_than_samples_are_doubted(lighter):
    """E_p[w] >= E_q[w]: such points are not the density's, which may have no integral."""
    result = Importance(torch.zeros(100, 1), torch.linspace(-0.1, 0.1, 100), torch.full((50,), -lighter))
    assert any("integral may be infinite" in doubt for doubt in result.doubts)
    assert "integral may be infinite" in f"{result} {result!r}"


def test_too_few_temperatures_are_said():
    start = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"that 2 temperatures reach .* if its integral is infinite, by a support"):
        temper(normal(50.0, 0.1), start.sample((500,)), lambda x: start.log_prob(x).sum(1), differentiable=True, most=2)


def test_a_flow_of_double_precision_stays_so():
    flow = diffeo.nsf(1, transforms=1, hidden=(8,), preprocess=()).double()
    result = fit_target(normal(), 1, flow=flow, particles=200, steps=2, samples=50)
    assert result.samples.dtype == torch.float64


def test_a_density_that_is_nowhere_to_be_found_is_said():
    with pytest.raises(ValueError, match="finite somewhere near the start, got -inf at all of 500 points"):
        fit_target(lambda x: torch.full((len(x),), -math.inf), 2, particles=500)
