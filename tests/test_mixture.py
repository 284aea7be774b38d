"""Mixtures of flows, and the simple densities that stand beside them."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.distributions import StudentT as ReferenceT

import diffeo
from diffeo import Flow, Mixture
from diffeo.bases import Gaussians, StandardNormal, StudentT
from diffeo.modalities.tables.seen import looks, noise_of
from diffeo.recipes import mixed, nsf
from diffeo.transforms import Dequantize, Standardize


def _randomised(flow, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for part in flow.modules():
            if hasattr(part, "initialized"):
                part.initialized.fill_(True)
    return flow.eval()


def _gaussians(components, seed, features=2):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(components, features, features, generator=generator, dtype=torch.float64)
    means = torch.randn(components, features, generator=generator, dtype=torch.float64)
    weights = torch.rand(components, generator=generator, dtype=torch.float64) + 0.1
    covariances = root @ root.mT + 0.3 * torch.eye(features)
    return Gaussians.of(means, covariances, weights), means, covariances, weights / weights.sum()


@pytest.fixture
def nested():
    """Two folds of a flow, Gaussians and a broad density."""
    flows = [_randomised(nsf(2, transforms=2, hidden=[8]), seed) for seed in range(2)]
    others = [
        Flow(_gaussians(3, 5)[0], [Standardize(2)]).eval(),
        Flow(StudentT(2), [Standardize(2)]).eval(),
    ]
    return Mixture(Mixture([flow, *others], [0.6, 0.3, 0.1]) for flow in flows).eval()


def _weighed(mixture):
    return zip(mixture.members, mixture.log_weights, strict=True)


def _grid(low, high, count):
    axis = torch.linspace(low, high, count, dtype=torch.float64)
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2), (axis[1] - axis[0]) ** 2


def test_a_mixture_is_the_weighted_mean_of_its_members(nested):
    x = 2 * torch.randn(50, 2)
    expected = torch.stack(
        [
            torch.stack([flow.log_prob(x).double() + weight for flow, weight in _weighed(each)])
            for each in nested.members
        ]
    )
    expected = torch.logsumexp(expected.flatten(0, 1), 0) - math.log(2)
    torch.testing.assert_close(nested.log_prob(x).double(), expected, rtol=0, atol=1e-5)
    assert nested.weights == pytest.approx([0.5, 0.5])
    assert nested.members[0].weights == pytest.approx([0.6, 0.3, 0.1])


def test_a_mixture_integrates_to_one_and_its_samples_have_its_density(nested):
    points, cell = _grid(-12, 12, 1200)
    with torch.no_grad():
        density = nested.double().log_prob(points).exp() * cell
    assert float(density.sum()) == pytest.approx(1, abs=3e-3)  # the broad tails reach further
    torch.manual_seed(0)
    x = nested.sample(40_000)
    for inside in (lambda p: p[:, 0] < 0.3, lambda p: p.norm(dim=1) < 1, lambda p: (p[:, 0] > 1) & (p[:, 1] > 0)):
        share = float(density[inside(points)].sum())
        assert abs(float(inside(x).double().mean()) - share) < 4 * math.sqrt(share / len(x)) + 2e-3


def test_what_a_mixture_says_of_a_row_depends_on_no_other_row(nested):
    x = torch.randn(30, 2)
    whole, part = nested.log_prob(x), nested.log_prob(x[7:9])
    torch.testing.assert_close(whole[7:9], part, rtol=0, atol=1e-6)
    x[7] = torch.nan
    propagated = nested.log_prob(x, nan="propagate")
    assert propagated.isnan().nonzero()[:, 0].tolist() == [7]


def test_a_mixture_has_gradients_in_rows_and_parameters(nested):
    x = torch.randn(5, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(nested.double().log_prob, (x,))
    nested.log_prob(x).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in nested.parameters())


def test_noise_goes_through_the_principal_member(nested):
    principal = nested.principal
    assert principal is nested.members[0].members[0]
    x = torch.randn(6, 2)
    torch.testing.assert_close(nested.encode(x), principal.encode(x))
    torch.testing.assert_close(nested.decode(nested.encode(x)), x, rtol=0, atol=1e-4)
    assert nested.fast == {"log_prob"}
    assert not nested.has_rsample
    with pytest.raises(NotImplementedError):
        nested.distribution().rsample()
    assert nested.distribution().sample((4, 3)).shape == (4, 3, 2)


def test_a_mixture_survives_pickle_and_a_run_directory(nested, tmp_path):
    x = torch.randn(9, 2)
    nested.save(tmp_path / "run")
    for again in (pickle.loads(pickle.dumps(nested)), diffeo.load(tmp_path / "run")):
        assert torch.equal(again.log_prob(x), nested.log_prob(x))
        assert again.members[0].weights == nested.members[0].weights
        assert again.principal.recipe == nested.principal.recipe
    torch.manual_seed(3)
    drawn = nested.sample(7)
    torch.manual_seed(3)
    assert torch.equal(diffeo.load(tmp_path / "run").sample(7), drawn)


def test_contexts_broadcast_in_a_mixture():
    mixture = Mixture([_randomised(nsf(2, 1, transforms=1, hidden=[8]), seed) for seed in range(2)], [0.2, 0.8]).eval()
    context = torch.randn(3, 1)
    x, log_prob = mixture.sample_and_log_prob(4, context)
    assert x.shape == (4, 3, 2)
    each = torch.stack([mixture.log_prob(x[:, i], context[i]) for i in range(3)], 1)
    torch.testing.assert_close(log_prob, each, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="expected a context"):
        mixture.sample(2)


@pytest.mark.parametrize(
    ("members", "weights"),
    [
        ([], None),
        ("ab", [1.0]),
        ("a", [-1.0]),
        ("a", [math.nan]),
        ("ab", [0.0, 0.0]),
        ("ac", None),
    ],
)
def test_bad_members_and_weights_are_refused(members, weights):
    flows = {"a": nsf(2, transforms=1, hidden=[4]), "b": nsf(2, transforms=1, hidden=[4]), "c": nsf(3)}
    with pytest.raises(ValueError, match="expected"):
        Mixture([flows[name] for name in members], weights)


# ---- Members of any order -------------------------------------------------------------------------------------------

COLUMNS = [{"values": [0.0, 1.0, 2.0], "gaps": True}, {"values": [0.0, 1.0]}, {"steps": [0.0]}]


@pytest.fixture
def any_order():
    return (
        Mixture(
            [_randomised(mixed(3, columns=COLUMNS, hidden=16, layers=1, orders=2), seed) for seed in range(2)],
            [0.3, 0.7],
        )
        .double()
        .eval()
    )


def _rows():
    first, second = torch.meshgrid(torch.tensor([0.0, 1, 2, torch.nan]), torch.tensor([0.0, 1]), indexing="ij")
    return torch.stack([first.flatten(), second.flatten(), torch.zeros(8)], 1).double()


@torch.no_grad()
def test_marginals_are_sums_of_the_joint(any_order):
    """In one order that begins with the wanted columns, what is left out is summed over exactly."""
    flow = mixed(3, columns=COLUMNS, hidden=16, layers=1, orders=1)
    flow = _randomised(flow, 3).double()
    rows = _rows()
    wanted = torch.tensor([True, True, False])
    assert float(flow.log_prob_of(rows, wanted).exp().sum()) == pytest.approx(1, abs=1e-9)
    assert float(any_order.log_prob_of(rows, wanted).exp().sum()) == pytest.approx(1, abs=1e-9)
    nothing, everything = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    assert torch.equal(any_order.log_prob_of(rows, nothing), torch.zeros(8, dtype=torch.float64))
    torch.testing.assert_close(any_order.log_prob_of(rows, everything), any_order.log_prob(rows))
    changed = rows.clone()
    changed[:, 2] = 5.0  # what is not wanted does not matter
    assert torch.equal(any_order.log_prob_of(changed, wanted), any_order.log_prob_of(rows, wanted))


def test_members_weigh_by_how_much_they_expect_what_is_known(any_order):
    rows = _rows()[:6]
    known = torch.tensor([False, True, False])
    given = any_order.log_prob_given(rows, known)
    each = torch.stack(
        [
            member.log_prob_of(rows, known) + member.log_prob_given(rows, known) + weight
            for member, weight in _weighed(any_order)
        ]
    )
    torch.testing.assert_close(given, torch.logsumexp(each, 0) - any_order.log_prob_of(rows, known))


def test_completions_are_drawn_from_the_conditional(any_order):
    torch.manual_seed(0)
    x = torch.tensor([[0.0, 1.0, 0.7]]).double().repeat(20_000, 1)
    known = torch.tensor([False, True, True])
    drawn = any_order.complete(x, known)
    assert (drawn[:, 1:] == x[:, 1:]).all()
    options = torch.tensor([[0.0, 1, 0.7], [1, 1, 0.7], [2, 1, 0.7]]).double()
    expected = any_order.log_prob_given(options, known).exp()
    for value, share in enumerate(expected.tolist()):
        assert abs(float((drawn[:, 0] == value).double().mean()) - share) < 4 * math.sqrt(share / len(x))


# ---- Bases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [1, 3])
def test_gaussians_are_those_of_pytorch(components):
    base, means, covariances, weights = _gaussians(components, 1)
    z = 2 * torch.randn(40, 2, dtype=torch.float64)
    each = torch.stack([MultivariateNormal(m, c).log_prob(z) for m, c in zip(means, covariances, strict=True)])
    torch.testing.assert_close(base.log_prob(z), torch.logsumexp(each + weights.log()[:, None], 0))
    torch.manual_seed(0)
    drawn = base.sample((50_000,)).double()
    mean = weights @ means
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.05)
    second = (weights[:, None, None] * (covariances + means[:, :, None] * means[:, None])).sum(0)
    torch.testing.assert_close(drawn.mT @ drawn / len(drawn), second, rtol=0.05, atol=0.1)


def test_a_kernel_density_is_a_gaussian_at_each_point():
    points = torch.randn(30, 3, dtype=torch.float64)
    base = Gaussians.of(points, 0.04 * torch.eye(3, dtype=torch.float64)[None])
    assert base.whitening.shape == (1, 3, 3)
    x = torch.randn(10, 3, dtype=torch.float64)
    each = torch.stack([MultivariateNormal(p, 0.04 * torch.eye(3).double()).log_prob(x) for p in points])
    torch.testing.assert_close(base.log_prob(x), torch.logsumexp(each, 0) - math.log(30))
    assert base.log_prob(x[:0]).shape == (0,)
    assert base.sample((2, 5)).shape == (2, 5, 3)


def test_student_t_is_that_of_scipy_and_of_pytorch():
    from scipy.stats import multivariate_t

    z = 5 * torch.randn(20, 3, dtype=torch.float64)
    expected = multivariate_t(np.zeros(3), np.eye(3), df=2).logpdf(z.numpy())
    torch.testing.assert_close(StudentT(3).double().log_prob(z), torch.from_numpy(expected))
    torch.manual_seed(0)
    drawn, reference = StudentT(1).sample((50_000,))[:, 0], ReferenceT(2.0).sample((50_000,))
    for level in (0.1, 0.5, 0.9, 0.99):
        cut = torch.quantile(reference, level)
        assert float((drawn < cut).double().mean()) == pytest.approx(level, abs=0.01)


def test_bad_covariances_are_refused():
    with pytest.raises(ValueError, match="positive definite"):
        Gaussians.of(torch.zeros(1, 2), -torch.eye(2)[None])


# ---- Discrete values ------------------------------------------------------------------------------------------------


def test_the_mass_of_a_discrete_value_is_the_integral_over_its_cell():
    """And always the same, whatever the seed and whatever rows are with it."""
    flow = Flow(StandardNormal(1), [Standardize(1), Dequantize(1, 1.0)]).eval()
    x = torch.arange(-3.0, 3.0)[:, None]
    normal = torch.distributions.Normal(0.0, 1.0)
    exact = (normal.cdf(x + 1) - normal.cdf(x)).log()[:, 0]
    torch.testing.assert_close(flow.log_mass(x, draws=64), exact, rtol=0, atol=0.02)
    torch.manual_seed(1)
    first = flow.log_mass(x)
    torch.manual_seed(2)
    torch.testing.assert_close(flow.log_mass(x[2:4]), first[2:4], rtol=0, atol=1e-6)
    assert not torch.equal(flow.log_prob(x), flow.log_prob(x))  # whose noise is drawn
    with pytest.raises(ValueError, match="draws >= 1"):
        flow.log_mass(x, draws=0)


def test_of_continuous_values_the_mass_is_the_density(nested):
    x = torch.randn(5, 2)
    assert torch.equal(nested.log_mass(x), nested.log_prob(x))


# ---- Smoothed log-densities -----------------------------------------------------------------------------------------


def test_a_smoothed_log_density_is_its_mean_over_noise():
    """Of a normal one exactly: the mean of -(x + s e)^2 / 2 is lower by s^2 / 2 for each column."""
    flow = Flow(StandardNormal(2), [Standardize(2)]).eval()
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    exact = flow.log_prob(x) - (0.2**2 + 0.5**2) / 2
    scale = torch.tensor([0.2, 0.5])
    torch.testing.assert_close(flow.smoothed_log_prob(x, scale, draws=4096), exact, rtol=0, atol=0.02)
    torch.testing.assert_close(flow.smoothed_log_prob(x, 0.0), flow.log_prob(x))
    first = flow.smoothed_log_prob(x, scale)
    torch.manual_seed(1)
    torch.testing.assert_close(flow.smoothed_log_prob(x[2:4], scale), first[2:4], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="draws >= 1"):
        flow.smoothed_log_prob(x, scale, draws=0)


def test_noise_and_the_place_in_a_cell_are_independent():
    """A discrete value is spread over its cell, then moved: the mean of both at once."""
    flow = Flow(StandardNormal(2), [Standardize(2), Dequantize(2, [1.0, 0.0])]).eval()
    x = torch.tensor([[-1.0, 0.3], [2.0, -0.7]])
    g = torch.Generator().manual_seed(0)
    moved = x[:, None] + torch.rand(2, 100_000, 2, generator=g) * torch.tensor([1.0, 0.0])
    moved = moved + 0.4 * torch.randn(moved.shape, generator=g)
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(moved).sum(-1).mean(1)
    torch.testing.assert_close(flow.smoothed_log_prob(x, 0.4, draws=4096), exact, rtol=0, atol=0.02)


def test_a_mixture_is_smoothed_as_a_whole(nested):
    x = torch.randn(20, 2)
    log_prob = nested.smoothed_log_prob(x, 0.3)
    apart = torch.stack([member.smoothed_log_prob(x, 0.3) for member in nested.members])
    assert (log_prob >= torch.logsumexp(apart, 0) - math.log(2) - 1e-5).all()  # the mean of a convex function


@pytest.mark.parametrize("any_order", [True, False])
def test_masses_at_points_are_not_smoothed(any_order):
    flow = _randomised(mixed(3, columns=COLUMNS, hidden=8, layers=1, orders=1, any_order=any_order), 0)
    x = torch.zeros(5, 3)
    assert noise_of(flow, x).shape == (0, 3)
    assert looks(flow, x, None, noise_of(flow, x)).shape == (5, 1)
    with pytest.raises(ValueError, match="complete numbers"):
        flow.smoothed_log_prob(x, 0.1)
