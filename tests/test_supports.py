"""Supports: no sample leaves them, no density is outside, densities integrate to one, and every prior has one."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import distributions as d
from torch.distributions import constraints as c

import diffeo
from cases import randomise
from diffeo.bases import StandardNormal
from diffeo.report.numerics import off_data
from diffeo.structure import described, rebuilt
from diffeo.transforms import (
    Affine,
    Bounded,
    Chain,
    Circle,
    Concatenated,
    Elementwise,
    Flattened,
    Increasing,
    Simplex,
    Standardize,
    as_support,
)

INF = math.inf

SUPPORTS = {
    "positive": lambda: Bounded(3, low=0.0),
    "negative": lambda: Bounded(3, high=0.0),
    "above": lambda: Bounded(3, low=1e6),
    "below": lambda: Bounded(3, high=-0.1),
    "unit": lambda: Bounded(3, 0.0, 1.0),
    "far": lambda: Bounded(3, 1e6, 1e6 + 1),
    "box": lambda: Bounded(3, [-1.0, 0.1, None], [0.7, None, None]),
    "simplex": lambda: Simplex(4),
    "ordered": lambda: Increasing(3),
    "ordered-above": lambda: Increasing(3, low=0.1),
    "circle": lambda: Circle(3),
    "several": lambda: as_support([(0, 1), "circle", ("simplex", 3), ("ordered", 2), (None, 0)]),
}


def inside(support, x):
    """Whether points lie strictly inside, in exact arithmetic; ``(n,)``."""
    x = x.double()
    if isinstance(support, Bounded):
        return ((x > support.low) & (x < support.high)).all(-1)
    if isinstance(support, Simplex):
        return (x > 0).all(-1) & ((x.sum(-1) - 1).abs() < 1e-6)
    if isinstance(support, Increasing):
        return (x.diff(dim=-1) > 0).all(-1) & (x[..., 0] > support.low)
    if isinstance(support, Circle):
        return ((x >= support.low) & (x < support.low + support.period)).all(-1)
    pieces = x.split([part.event_shape[0] for part in support.parts], -1)
    return torch.stack([inside(part, piece) for part, piece in zip(support.parts, pieces, strict=True)]).all(0)


def flow_on(support, scale=0.35, **arguments):
    """A randomised flow of some layers on a support; a larger scale is a wilder one."""
    flow = diffeo.nsf(support.noise_shape[0], hidden=(16,), transforms=2, affine=True, **arguments)
    randomise(flow, scale)
    return flow.with_support(support).eval()


@pytest.mark.parametrize("name", SUPPORTS)
def test_no_sample_leaves_the_support(name):
    """A million, in float32, of flows that put much of their mass at the edges and beyond what float32 resolves."""
    support = SUPPORTS[name]()
    for scale, rows in ((0.35, 500_000), (6.0, 500_000)):
        flow = flow_on(support, scale)
        x = flow.sample(rows)
        assert x.shape == (rows, *support.event_shape)
        assert torch.isfinite(x).all()
        assert inside(support, x).all()
        assert torch.isfinite(flow.log_prob(x[:50_000])).all()


@pytest.mark.parametrize("name", SUPPORTS)
def test_extreme_noise_stays_inside(name):
    support = SUPPORTS[name]()
    steps = torch.tensor([-1e30, -1e3, -20.0, 0.0, 20.0, 80.0])
    z = torch.cartesian_prod(*[steps] * support.noise_shape[0]) if name != "several" else steps[:, None].expand(-1, 7)
    assert inside(support, support.forward(z)).all()


def points(low, high, count=20_001):
    return torch.linspace(low, high, count, dtype=torch.float64)[:, None]


def closer(low, high, count):
    """Points between two ends, ever closer to those that are finite, where a density may have a pole."""
    if math.isinf(high):
        return low + points(-60, 30, count).exp()
    return (
        -closer(-high, INF, count).flip(0) if math.isinf(low) else low + (high - low) * points(-60, 30, count).sigmoid()
    )


@pytest.mark.parametrize("seed", range(3))
def test_densities_of_one_element_integrate_to_one(seed):
    torch.manual_seed(seed)
    for support, x in (
        (Bounded(1, 0.0, 2.0), closer(0.0, 2.0, 20_000)),
        (Bounded(1, low=0.0), closer(0.0, INF, 20_000)),
        (Bounded(1, high=0.0), closer(-INF, 0.0, 20_000)),
        (Circle(1), points(-math.pi, math.pi)),
        (Circle(1, low=5.0, period=0.1), points(5.0, 5.1)),
    ):
        flow = flow_on(support).double()
        samples = flow.sample(50_000)
        beyond = ((samples < x[0]) | (samples > x[-1])).double().mean()  # so near an end that float64 has no points
        assert beyond < 0.05
        total = torch.trapezoid(flow.log_prob(x).exp(), x[:, 0]) + beyond
        assert total.item() == pytest.approx(1, abs=3e-3)


@pytest.mark.slow
def test_densities_of_several_elements_integrate_to_one():
    def integral(support, *axes):
        p = flow_on(support).double().log_prob(torch.cartesian_prod(*axes)).exp().reshape([len(axis) for axis in axes])
        return torch.trapezoid(torch.trapezoid(p, axes[1], dim=1), axes[0]).item()

    angles, ends = points(-math.pi, math.pi, 201)[:, 0], closer(0.0, 2.0, 400)[:, 0]
    assert integral(Circle(2), angles, angles) == pytest.approx(1, abs=0.01)
    assert integral(as_support(["circle", (0, 2)]), angles, ends) == pytest.approx(1, abs=0.01)
    # The first two elements of a simplex: a, and of the rest the share b, da db' = (1 - a) da db.
    a, b = torch.cartesian_prod(ends / 2, ends / 2).unbind(-1)
    x = torch.stack([a, (1 - a) * b, (1 - a) * (1 - b)], -1)
    p = (flow_on(Simplex(3)).double().log_prob(x).exp() * (1 - a)).reshape(len(ends), -1)
    assert torch.trapezoid(torch.trapezoid(p, ends / 2, dim=1), ends / 2).item() == pytest.approx(1, abs=0.01)


def test_log_determinants_are_those_of_torch():
    z = torch.randn(50, 3, dtype=torch.float64)
    half_line = d.ComposeTransform([d.AffineTransform(0, -1), d.biject_to(c.less_than(2.0))])  # ours increases
    normal = d.transforms.CumulativeDistributionTransform(d.Normal(z.new_zeros(()), 1))
    for support, theirs in (
        (Bounded(3), d.biject_to(c.real)),
        (Bounded(3, low=0.0), d.biject_to(c.positive)),
        (Bounded(3, low=2.0), d.biject_to(c.greater_than(2.0))),
        (Bounded(3, high=2.0), half_line),
        (Bounded(3, -1.0, 3.0), d.ComposeTransform([normal, d.AffineTransform(-1, 4)])),
    ):
        x, log_det = support.forward_and_log_det(z)
        assert torch.allclose(x, theirs(z))
        assert torch.allclose(log_det, theirs.log_abs_det_jacobian(z, x).sum(-1))
    x, log_det = Simplex(4).forward_and_log_det(z)
    theirs = d.biject_to(c.simplex)
    assert torch.allclose(x, theirs(z))
    assert torch.allclose(log_det, theirs.log_abs_det_jacobian(z, x))


def test_densities_on_the_simplex_are_in_the_convention_of_dirichlet():
    """log p(x) of one is that of the other, up to the change of the noise's density."""
    prior = d.Dirichlet(torch.tensor([2.0, 3.0, 1.5], dtype=torch.float64))
    x = prior.sample((20_000,))
    simplex = Simplex(3)
    z, log_det = simplex.inverse_and_log_det(x)
    q = d.MultivariateNormal(z.mean(0), z.mT.cov())
    ratio = q.log_prob(z) + log_det - prior.log_prob(x)
    assert ratio.exp().mean().item() == pytest.approx(1, abs=0.03), "an importance weight has the mean 1"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_standard_normal_noise_is_uniform_on_an_interval_and_nearly_on_a_circle(dtype):
    flow = diffeo.Flow(StandardNormal(2), Bounded(2, [-1.0, 0.0], [3.0, 0.5])).to(dtype)
    x = flow.sample(1000)
    assert torch.allclose(flow.log_prob(x), x.new_tensor(-math.log(2)), atol=1e-4)
    edges = torch.tensor([[-1 + 1e-6, 1e-30], [3 - 1e-6, 0.5 - 1e-7]], dtype=dtype)
    assert torch.allclose(flow.log_prob(edges), x.new_tensor(-math.log(2)), atol=1e-4)
    circle = diffeo.Flow(StandardNormal(1), Circle(1)).to(dtype)
    density = circle.log_prob(points(-math.pi, math.pi)).exp() * 2 * math.pi
    assert (density - 1).abs().max() < 0.05


def test_tails_are_accurate_in_float32():
    z = torch.linspace(-12, 12, 2001)[:, None]
    support = Bounded(1, 0.0, 1.0)
    log_det = support.forward_and_log_det(z)[1]
    assert torch.allclose(log_det.double(), support.forward_and_log_det(z.double())[1], rtol=1e-5)
    below = z[z <= 0]
    assert torch.allclose(
        support.forward(below[:, None])[:, 0].double(),
        torch.from_numpy(ndtr(below.double().numpy())),
        rtol=2e-5,
        atol=0,
    )
    assert torch.allclose(Bounded(1, -1.0, 0.0).forward(-z), -support.forward(z), rtol=1e-5)
    x = torch.logspace(-37, -1, 100)[:, None]
    for bounds in ((0.0, 1.0), (0.0, None), (None, 0.0), (-1.0, 0.0)):
        support = Bounded(1, *bounds)
        value = -x if bounds[1] == 0 else x
        for ours, exact in zip(
            support.inverse_and_log_det(value), support.inverse_and_log_det(value.double()), strict=True
        ):
            assert torch.allclose(ours.double(), exact, rtol=1e-4), bounds


OUTSIDE = [
    (Bounded(1, 0.0, 1.0), [[0.0], [1.0], [-1e-30], [2.0], [-1e30], [1e30]]),
    (Bounded(1, low=0.0), [[0.0], [-1e-30], [-5.0], [-1e30]]),
    (Bounded(1, high=2.0), [[2.0], [2.001], [1e30]]),
    (Bounded(1, 1e6, 1e6 + 1), [[1e6], [1e6 + 1], [0.0]]),
    (Simplex(3), [[0.5, 0.5, 0.0], [0.6, 0.6, -0.2], [0.5, 0.2, 0.2], [1.0, 0.0, 0.0], [1e30, 0.0, 0.0]]),
    (Increasing(3), [[1.0, 1.0, 2.0], [3.0, 2.0, 4.0], [0.0, 1e30, -1e30]]),
    (Increasing(3, low=0.0), [[0.0, 1.0, 2.0], [-1.0, 1.0, 2.0]]),
    (as_support(["circle", (0, 1)]), [[0.0, 0.0], [1.0, 2.0], [40.0, -1.0]]),
]


@pytest.mark.parametrize(("support", "x"), OUTSIDE, ids=lambda value: type(value).__name__)
def test_outside_the_density_is_zero(support, x):
    flow = flow_on(support)
    x = torch.tensor(x, requires_grad=True)
    log_prob = flow.log_prob(x)
    assert (log_prob == -torch.inf).all()
    good = flow.sample(3)
    assert torch.isfinite(flow.log_prob(torch.cat([good, x.detach()]))[:3]).all()


def test_what_lies_on_a_bound_is_moved_off_it():
    support = as_support([(0.1, 2), ("simplex", 2), (None, -3)])
    x = torch.tensor([[0.1, 0.5, 0.5, -3.0], [2.0, 0.5, 0.5, -4.0], [1.0, 0.5, 0.5, -2.0]])
    moved = support.off_bounds(x)
    assert torch.allclose(moved, x)
    assert torch.isfinite(support.inverse_and_log_det(moved)[1]).tolist() == [True, True, False]
    assert torch.equal(moved[2], x[2])


def test_gradients_of_rows_outside_are_none_and_spoil_no_others():
    flow = flow_on(Bounded(2, 0.0, 1.0))
    x = torch.cat([flow.sample(3), torch.tensor([[0.5, 1.0], [2.0, 0.5]])]).requires_grad_()
    log_prob = flow.log_prob(x)
    torch.where(torch.isfinite(log_prob), log_prob, 0).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad[:3] != 0).all()
    assert all(torch.isfinite(each.grad).all() for each in flow.parameters())


def test_a_density_on_the_circle_does_not_see_the_cut():
    """Nor the opposite angle, where turns change: values and slopes from both sides agree, and angles are periodic."""
    flow = flow_on(Circle(2, low=[0.0, -math.pi])).double()
    step = 1e-6
    for angle, other in itertools.product((0.0, math.pi, 2 * math.pi), (0.3, math.pi)):
        x = torch.tensor([[angle - step, other], [angle + step, other]], dtype=torch.float64, requires_grad=True)
        below, above = flow.log_prob(x)
        assert abs((below - above).item()) < 1e-4
        (slope,) = torch.autograd.grad(below + above, x)
        assert torch.allclose(slope[0], slope[1], atol=1e-3)
    x = flow.sample(100)
    for turns in (-3, 1, 2):
        assert torch.allclose(flow.log_prob(x + turns * 2 * math.pi), flow.log_prob(x), atol=1e-8)


def test_all_that_noise_wraps_to_counts():
    """A density that is drawn is the one that is scored, and the histogram of the samples is it, too."""
    flow = flow_on(as_support(["circle", (0, 1)]))
    x, log_prob = flow.sample_and_log_prob(2000)
    assert torch.allclose(log_prob, flow.log_prob(x), atol=1e-4)
    circle = flow_on(Circle(1))
    angles = circle.sample(200_000)[:, 0]
    shares = torch.histc(angles, 40, -math.pi, math.pi) / len(angles)
    fine = (circle.log_prob(points(-math.pi, math.pi, 4001)[:-1]).exp() * 2 * math.pi / 4000).reshape(40, 100).sum(1)
    assert torch.allclose(shares.double(), fine.double(), atol=3e-3)
    with torch.no_grad():
        z, log_det = circle.transform.preimages(angles[:5, None])
        assert z.shape == (2, 5, 1)
        assert log_det.shape == (2, 5)
        for each in z:
            assert torch.allclose(circle.transform.forward(each), angles[:5, None], atol=1e-4)
        assert (z[0] - z[1]).abs().min() > 1e-2


@pytest.mark.slow
def test_a_circle_is_learned_with_a_context():
    """A von Mises distribution that lies across the cut, its place given: within .05 nats of its entropy."""
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(4000, 1, generator=generator) * 2 * math.pi
    angles = d.VonMises(places[:, 0] + math.pi, 4.0).sample()[:, None]
    features = torch.cat([places.cos(), places.sin()], 1)
    flow = diffeo.nsf(1, context=2, hidden=(32, 32), transforms=2, affine=True).with_support("circle")
    diffeo.fit(flow, angles, context=features, epochs=30, seed=0)
    truth = d.VonMises(places[:, 0] + math.pi, 4.0).log_prob(angles[:, 0]).mean()
    with torch.no_grad():
        assert abs((flow.log_prob(angles, features).mean() - truth).item()) < 0.05


@pytest.mark.parametrize("name", SUPPORTS)
def test_supports_are_stored_with_their_flow(name, tmp_path):
    flow = flow_on(SUPPORTS[name]())
    again = rebuilt(described(flow))
    again.load_state_dict(flow.state_dict())
    x = flow.sample(20)
    assert torch.equal(again.eval().log_prob(x), flow.log_prob(x))
    flow.save(tmp_path / "run")
    assert torch.equal(diffeo.load(tmp_path / "run").log_prob(x), flow.log_prob(x))


def test_bounds_keep_their_precision():
    """0.7 is not rounded to float32 for good: a flow in float64 would leak."""
    support = Bounded(1, low=0.7).float()
    assert support.double().low.item() == 0.7
    assert support.forward(torch.full((1,), -1e3, dtype=torch.float64)).item() > 0.7


def test_the_core_has_the_shape_of_the_noise():
    flow = flow_on(Simplex(4))
    assert flow.event_shape == (4,)
    assert flow.core.event_shape == (3,)
    assert flow.core.log_prob(torch.randn(5, 3)).shape == (5,)
    assert [type(part) for part in flow.preprocessing] == [Standardize, Simplex]
    assert flow.encode(flow.sample(5)).shape == (5, 3)


TWO = torch.tensor([1.0, 2.0])
BOUNDS = [
    ("real", [-INF], [INF]),
    ("positive", [0], [INF]),
    ("unit", [0], [1]),
    ((None, 3), [-INF], [3]),
    ((0, 1.5), [0], [1.5]),
    ((TWO, None), [1, 2], [INF, INF]),
    ((-TWO, TWO), [-1, -2], [1, 2]),
    ([(0, 1), [2, None], "real"], [0, 2, -INF], [1, INF, INF]),
    ((c.positive, 2), [0, 0], [INF, INF]),
    (c.real, [-INF], [INF]),
    (c.positive, [0], [INF]),
    (c.nonnegative, [0], [INF]),
    (c.greater_than(2.0), [2], [INF]),
    (c.greater_than_eq(TWO), [1, 2], [INF, INF]),
    (c.less_than(-1.0), [-INF], [-1]),
    (c.interval(-1.0, 4.0), [-1], [4]),
    (c.half_open_interval(0.0, TWO), [0, 0], [1, 2]),
    (c.unit_interval, [0], [1]),
    (c.independent(c.interval(-TWO, TWO), 1), [-1, -2], [1, 2]),
    (c.cat([c.positive, c.unit_interval], lengths=[2, 1]), [0, 0, 0], [INF, INF, 1]),
    (c.stack([c.real, c.less_than(0.0)]), [-INF, -INF], [INF, 0]),
    (d.Normal(0.0, 1.0), [-INF], [INF]),
    (d.StudentT(3.0), [-INF], [INF]),
    (d.Gumbel(0.0, 1.0), [-INF], [INF]),
    (d.MultivariateNormal(torch.zeros(2), torch.eye(2)), [-INF] * 2, [INF] * 2),
    (d.Uniform(-1.0, 2.0), [-1], [2]),
    (d.Uniform(-TWO, TWO), [-1, -2], [1, 2]),
    (d.Independent(d.Uniform(-TWO, TWO), 1), [-1, -2], [1, 2]),
    (d.Beta(2.0, 3.0), [0], [1]),
    (d.Kumaraswamy(2.0, 3.0), [0], [1]),
    (d.Gamma(TWO, TWO), [0, 0], [INF, INF]),
    (d.LogNormal(0.0, 1.0), [0], [INF]),
    (d.HalfNormal(1.0), [0], [INF]),
    (d.HalfCauchy(1.0), [0], [INF]),
    (d.Exponential(1.0), [0], [INF]),
    (d.InverseGamma(2.0, 1.0), [0], [INF]),
    (d.Pareto(2.0, 1.0), [2], [INF]),
    (d.Weibull(2.0, 1.0), [0], [INF]),
    ([d.Uniform(0.0, 3.0), d.Gamma(2.0, 1.0), d.Normal(0.0, 1.0)], [0, 0, -INF], [3, INF, INF]),
    (d.TransformedDistribution(d.Uniform(0.0, 1.0), [d.AffineTransform(0.0, 10.0)]), [0], [10]),
    (d.TransformedDistribution(d.Normal(0.0, 1.0), [d.ExpTransform(), d.AffineTransform(3.0, -2.0)]), [-INF], [3]),
    (d.MixtureSameFamily(d.Categorical(torch.ones(2)), d.Uniform(-TWO, TWO)), [-2], [2]),
    (d.MixtureSameFamily(d.Categorical(torch.ones(3)), d.Gamma(torch.ones(3), torch.ones(3))), [0], [INF]),
    (
        d.MixtureSameFamily(
            d.Categorical(torch.ones(2)),
            d.Independent(d.Uniform(torch.zeros(2, 3), torch.arange(1.0, 7).view(2, 3)), 1),
        ),
        [0, 0, 0],
        [4, 5, 6],
    ),
    (
        d.MixtureSameFamily(d.Categorical(torch.ones(2)), d.MultivariateNormal(torch.zeros(2, 3), torch.eye(3))),
        [-INF] * 3,
        [INF] * 3,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("what", "low", "high"), BOUNDS, ids=lambda value: str(value)[:40])
def test_bounds_of_names_constraints_and_priors(what, low, high):
    support = as_support(what)
    assert isinstance(support, Bounded)
    assert support.event_shape == support.noise_shape == (len(low),)
    assert support.low.tolist() == pytest.approx(low)
    assert support.high.tolist() == pytest.approx(high)
    if isinstance(what, d.Distribution):
        x = what.sample((100,)).reshape(100, -1)
        assert inside(support, x).float().mean() > 0.95, "a sample may lie on a bound by rounding"


@pytest.mark.parametrize(
    ("what", "kind", "size"),
    [
        ("circle", Circle, 1), (("circle", 2), Circle, 2), (d.VonMises(0.0, 1.0), Circle, 1),
        (d.VonMises(TWO, TWO), Circle, 2), (d.Independent(d.VonMises(TWO, TWO), 1), Circle, 2),
        (d.MixtureSameFamily(d.Categorical(torch.ones(2)), d.VonMises(TWO, TWO)), Circle, 1),
        (("simplex", 3), Simplex, 3), ((c.simplex, 3), Simplex, 3), (d.Dirichlet(torch.ones(4)), Simplex, 4),
        (d.LogisticNormal(torch.zeros(3), torch.ones(3)), Simplex, 4),
        (("ordered", 3), Increasing, 3),
        ([d.Gamma(1.0, 1.0), d.Dirichlet(torch.ones(3)), d.VonMises(0.0, 1.0)], Concatenated, 5),
        (c.cat([c.positive, c.simplex], lengths=[2, 3]), Concatenated, 5),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_other_supports_of_names_constraints_and_priors(what, kind, size):
    support = as_support(what)
    assert type(support) is kind
    assert support.event_shape == (size,)
    if isinstance(what, d.Distribution):
        assert torch.isfinite(flow_on(support).log_prob(what.sample((50,)).reshape(50, -1))).all()


def test_a_shape_is_taken_from_the_features():
    assert as_support("positive", 3).event_shape == (3,)
    assert as_support(d.Gamma(1.0, 1.0), 4).event_shape == (4,)
    assert as_support((0, 255), (1, 8, 8)).event_shape == (1, 8, 8)
    assert as_support(c.simplex, 3).noise_shape == (2,)
    support = Bounded(2, low=0.0)
    assert as_support(support) is support
    joined = as_support([(0, 1), d.Uniform(-TWO, TWO), "circle", "positive"])
    assert [type(part) for part in joined.parts] == [Bounded, Circle, Bounded], "neighbouring bounds are one map"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: as_support(d.Poisson(2.0)), ValueError, "expected a continuous support, got IntegerGreaterThan"),
        (lambda: as_support(d.Categorical(torch.ones(3))), ValueError, "expected a continuous support"),
        (lambda: as_support([d.Gamma(1.0, 1.0), d.Bernoulli(0.5)]), ValueError, "expected a continuous support"),
        (lambda: as_support(c.integer_interval(0, 3)), ValueError, "expected a continuous support"),
        (lambda: as_support(c.dependent), ValueError, "expected a constraint with values, got Dependent"),
        (lambda: as_support(c.lower_cholesky), ValueError, "expected a constraint of bounds.*got LowerCholesky"),
        (lambda: as_support("simplex"), ValueError, "expected the number of elements of a simplex"),
        (lambda: as_support("sphere"), ValueError, "expected a support among real, .*, got 'sphere'"),
        (lambda: as_support(3), TypeError, "expected a support: a name, bounds"),
        (lambda: as_support([]), TypeError, "expected a support: a name, bounds"),
        (lambda: as_support((1, 0)), ValueError, "expected low < high, .*got 1.0 and 0.0"),
        (lambda: as_support((0, math.nan)), ValueError, "expected low < high, .*got 0.0 and nan"),
        (lambda: Bounded(1, 1e9, 1e9 + 1), ValueError, "as far apart as torch.float32 can tell"),
        (lambda: as_support((TWO, None), 3), ValueError, r"expected a number or numbers of shape \(3,\), got \(2,\)"),
        (lambda: as_support((TWO, torch.full((3,), 9.0))), ValueError, r"of shape \(3,\), got \(2,\)"),
        (lambda: as_support(["positive"] * 2, 3), ValueError, r"expected a support of events of shape \(3,\), got"),
        (lambda: Increasing((2, 3)), ValueError, "expected increasing vectors, got events of shape"),
        (lambda: Simplex(1), ValueError, "expected a simplex of at least 2 elements, got 1"),
        (lambda: Circle(9), ValueError, "expected at most 8 angles"),
        (lambda: Circle(1, period=0.0), ValueError, "expected finite angles and positive periods"),
        (lambda: Concatenated([Circle(5), Circle(5)]), ValueError, "expected at most 8 angles"),
        (lambda: Concatenated([]), ValueError, "expected at least one support"),
        (lambda: Concatenated([Standardize(1)]), TypeError, "expected supports such as"),
        (lambda: Concatenated([Bounded((1, 2, 2))]), ValueError, "expected supports of vectors"),
        (lambda: Flattened(Chain([Circle(4)]), 3), ValueError, "expected a transform that is one-to-one, got Chain"),
        (lambda: diffeo.nsf(3).with_support(("simplex", 3)), ValueError, "expected a flow of events of shape"),
        (lambda: diffeo.nsf(3).with_support((TWO, None)), ValueError, "expected a number or numbers of shape"),
    ],
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_encoded_angles_have_the_distribution_of_the_noise():
    """Of the two z that come to an angle, each as often as it is likely: z then is as normal as what was drawn."""
    flow = flow_on(Circle(2))
    z = flow.encode(flow.sample(100_000))
    assert torch.allclose(z.mean(0), torch.zeros(2), atol=0.02)
    assert torch.allclose(z.mT.cov(), torch.eye(2), atol=0.02)
    assert torch.allclose(flow.decode(z[:100]), flow.decode(flow.encode(flow.decode(z[:100]))), atol=1e-3)
    outside = torch.tensor([[0.0, 2.0]])
    assert torch.isfinite(flow_on(as_support(["circle", (0, 1)])).encode(outside)).all()


@pytest.mark.parametrize("name", SUPPORTS)
def test_the_distribution_says_its_support(name):
    flow = flow_on(SUPPORTS[name]()).double()
    constraint = flow.distribution().support
    assert constraint.event_dim == 1
    x = flow.sample(50)
    assert constraint.check(x).shape == (50,)
    assert constraint.check(x).all()
    if name in ("several", "ordered", "ordered-above"):  # of which torch has none
        return
    assert not constraint.check(torch.full((1, x.shape[1]), -1e9 if name not in ("negative", "below") else 1e9)).any()
    assert not isinstance(constraint.base_constraint if name != "simplex" else constraint, type(c.real))
    if name == "simplex":
        assert constraint is c.simplex
    elif name != "circle":
        again = as_support(constraint, 3)
        assert torch.allclose(again.low, flow.parts[-1].low)
        assert torch.allclose(again.high, flow.parts[-1].high)
    noise = torch.randn(5, flow.base.event_shape.numel(), dtype=torch.float64)
    assert constraint.check(d.biject_to(constraint)(noise)).all()


@pytest.mark.parametrize("name", SUPPORTS)
def test_points_far_off_the_data_are_brought_within(name):
    """Beyond the support there is no image to come back from, which is no fault of the inverse."""
    flow = flow_on(SUPPORTS[name](), scale=0.1)
    x = flow.sample(500)
    mean, std = x.mean(0), x.std(0)
    box = (mean - 10 * std, mean + 10 * std)
    far = off_data(flow, None, mean, std, box, 200, np.random.default_rng(0))
    assert far["rows"] == 200
    assert far["max"] < 1e-2


def test_supports_are_steps_of_preprocessing_in_recipes():
    bounds = ["bounded", {"low": [0, None, -1], "high": [1, 5, None]}]
    flow = diffeo.nsf(3, hidden=(8,), preprocess=[bounds, "standardize"])
    again = diffeo.recipes.build(flow.recipe["name"], flow.recipe["arguments"])
    for each in (flow, again):
        assert inside(Bounded(3, bounds[1]["low"], bounds[1]["high"]), each.sample(1000)).all()
    circle = diffeo.maf(3, preprocess=[["support", {"of": ["degrees", [0, None], "real"]}], "standardize"])
    assert circle.log_prob(torch.tensor([0.0, 1, 1])) == circle.log_prob(torch.tensor([360.0, 1, 1]))
    assert (diffeo.maf(3, preprocess=[["support", {"of": "ordered"}]]).sample(100).diff(dim=1) > 0).all()
    with pytest.raises(ValueError, match="expected a support whose noise has its shape"):
        diffeo.maf(3, preprocess=[["support", {"of": "simplex"}]])
    image = diffeo.realnvp((1, 4, 4), preprocess=[["bounded", {"low": 0, "high": 255, "shared": True}]])
    assert inside(Bounded(16, 0, 255), image.sample(100).flatten(1)).all()


def test_a_flow_with_support_shares_its_parts():
    flow = diffeo.Flow(StandardNormal(2), Elementwise(Affine(), 2))
    positive = flow.with_support("positive")
    assert positive.parts[0] is flow.parts[0]
    assert positive.event_shape == (2,)
    assert (positive.sample(100) > 0).all()
    assert positive.recipe is None
