"""Continuous flows: solvers against closed forms and scipy, rows on their own, traces, and what is refused."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

import diffeo
from cases import Swirl, needs_compiler, randomise
from diffeo.bases import StandardNormal
from diffeo.nets import MLP, Velocity
from diffeo.nets.activations import ACTIVATIONS, soften, with_slope
from diffeo.nets.trace import estimated_trace, exact_trace
from diffeo.nets.unet import UNet
from diffeo.nets.velocity import embedding_size
from diffeo.objectives.paths import PATHS
from diffeo.ops.reference.network import derivative, soft_bound
from diffeo.ops.reference.solvers import FIXED
from diffeo.transforms import ODE
from diffeo.transforms.ode import watched_solves


class Affine(nn.Module):
    """v = A x + t b, whose solution is known; optionally broken in one row or after some time."""

    def __init__(self, matrix, shift=None, broken=None):
        super().__init__()
        self.matrix = nn.Parameter(torch.as_tensor(matrix, dtype=torch.float64))
        self.shift = torch.zeros(len(self.matrix), dtype=torch.float64) if shift is None else torch.as_tensor(shift)
        self.broken = broken

    def forward(self, x, t, context=None):
        v = x @ self.matrix.to(x).mT + t[:, None] * self.shift.to(x)
        if self.broken is not None:
            v = torch.where((t[:, None] > self.broken) & (x[:, :1] > 0), torch.nan, v)
        return v


class Stretch(nn.Module):
    """v = rate x, with a rate of each row's own (its context): the larger, the harder."""

    def forward(self, x, t, context=None):
        return context * x * torch.cos(3 * t[:, None])


def velocity(features=2, context=0, hidden=(12, 12), **options):
    net = MLP(features, features, hidden, embedding_size(context, options.get("droppable", False)), "silu", True)
    made = Velocity(net, (features,), PATHS["linear"], context, **options)
    randomise(made)
    return made.double()


MATRIX = [[0.3, -1.1], [0.8, -0.5]]


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_affine_fields_have_their_closed_form(batch):
    ode = ODE(Affine(MATRIX), (2,), rtol=1e-10, atol=1e-10)
    z = torch.randn(*batch, 2, dtype=torch.float64)
    x, log_det = ode.forward_and_log_det(z)
    matrix = torch.tensor(MATRIX, dtype=torch.float64)
    assert torch.allclose(x, z @ torch.linalg.matrix_exp(matrix).mT, atol=1e-8)
    assert log_det.shape == batch
    assert torch.allclose(log_det, matrix.trace().expand(batch), atol=1e-8)


@pytest.mark.parametrize("direction", [(0.0, 1.0), (1.0, 0.0), (0.2, 0.7)])
def test_solutions_are_those_of_scipy(direction):
    field = Swirl(3).double()
    randomise(field, 2.0)
    z = torch.randn(4, 3, dtype=torch.float64)
    solution = ODE(field, (3,), rtol=1e-9, atol=1e-9).solve(z, *direction).value.detach()

    def f(t, y):
        with torch.no_grad():
            return field(torch.from_numpy(y)[None], torch.tensor([t], dtype=torch.float64))[0].numpy()

    for row, start in zip(solution, z, strict=True):
        truth = solve_ivp(f, direction, start.numpy(), rtol=1e-11, atol=1e-12).y[:, -1]
        assert np.abs(row.numpy() - truth).max() < 1e-7


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_fixed_steps_converge_at_their_order(name, order):
    field = Swirl(2).double()
    randomise(field, 1.0)
    z = torch.randn(6, 2, dtype=torch.float64)
    truth = ODE(field, (2,), rtol=1e-12, atol=1e-12).forward(z)
    coarse, fine = (
        (ODE(field, (2,), solver=name, steps=steps).forward(z) - truth).abs().max().item() for steps in (8, 16)
    )
    assert abs(math.log2(coarse / fine) - order) < 0.4
    assert ODE(field, (2,), solver=name, steps=3).solve(z, 0.0, 1.0).evaluations.tolist() == [
        3 * len(FIXED[name].times)
    ] * len(z)


def test_no_row_hides_behind_others_and_none_pays_for_them():
    ode = ODE(Stretch(), (1,), rtol=1e-6, atol=1e-6)
    rates = torch.full((200, 1), 0.1, dtype=torch.float64)
    rates[17] = 40.0
    z = torch.ones(200, 1, dtype=torch.float64)
    together = ode.solve(z, 0.0, 1.0, rates)
    truth = torch.exp(rates * math.sin(3.0) / 3)
    assert ((together.value - truth).abs() / (1 + truth)).max() < 1e-4
    alone = ode.solve(z[:1], 0.0, 1.0, rates[:1])
    assert torch.equal(together.evaluations[:17], alone.evaluations.expand(17))
    assert together.evaluations[17] > 4 * together.evaluations[0]
    assert torch.allclose(together.value[:1], alone.value, rtol=0, atol=0)
    assert (together.error >= 0).all()


def test_the_log_det_is_under_the_tolerance_too():
    """A field that moves nothing here and yet has a divergence that varies with time."""

    class Still(nn.Module):
        def forward(self, x, t, context=None):
            return 50 * x * torch.sin(40 * t[:, None])

    x, log_det = ODE(Still(), (1,), rtol=1e-7, atol=1e-7).forward_and_log_det(torch.zeros(3, 1, dtype=torch.float64))
    assert torch.equal(x, torch.zeros_like(x))
    assert torch.allclose(log_det, torch.tensor(50 * (1 - math.cos(40)) / 40, dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
def test_the_error_that_is_reported_is_of_the_order_of_the_true_one(tolerance):
    """Nothing grows in this field, so the steps' errors add up at most."""
    turning = Affine([[0.0, -3.0], [3.0, 0.0]])
    z = torch.randn(20, 2, dtype=torch.float64)
    solution = ODE(turning, (2,), rtol=tolerance, atol=tolerance).solve(z, 0.0, 1.0)
    truth = z @ torch.linalg.matrix_exp(turning.matrix.detach()).mT
    worst = (solution.value.detach() - truth).abs().amax(1)
    assert (worst < 3 * solution.error).all()
    assert (solution.error < 100 * tolerance).all()


def test_generating_takes_no_divergence():
    class Counting(Swirl):
        asked = 0

        def with_divergence(self, *arguments):
            Counting.asked += 1
            return super().with_divergence(*arguments)

    ode = ODE(Counting(2), (2,))
    ode.inverse(ode.forward(torch.randn(3, 2)))
    assert Counting.asked == 0
    ode.forward_and_log_det(torch.randn(3, 2))
    assert Counting.asked > 0


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_of_activations(name):
    at = torch.randn(50, dtype=torch.float64, requires_grad=True)
    for function in (ACTIVATIONS[name], soften):
        value, slope = with_slope(function, at)
        assert torch.equal(value, function(at)) or torch.allclose(value, function(at), rtol=1e-14)
        assert torch.allclose(slope, derivative(function, at))
        with torch.no_grad():
            assert torch.allclose(with_slope(function, at)[1], slope)
        if name != "relu":
            assert torch.autograd.gradcheck(lambda x, f=function: with_slope(f, x)[1], at)


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("hidden", [(), (7,), (8, 8), (8, 8, 5)], ids=str)
@pytest.mark.parametrize("bound", [None, 0.7])
def test_traces_of_perceptrons(hidden, context, bound):
    net = MLP(4, 4, hidden, context, "silu", residual=True).double()
    randomise(net, 1.0)

    def bounded(x, contexts):
        return net(x, contexts) if bound is None else soft_bound(net(x, contexts), bound)

    x = torch.randn(3, 5, 4, dtype=torch.float64)
    contexts = torch.randn(3, 5, context, dtype=torch.float64) if context else None
    y, trace = net.with_trace(x, contexts, bound)
    assert torch.allclose(y, bounded(x, contexts))
    with torch.no_grad():
        assert torch.allclose(net.with_trace(x, contexts, bound)[1], trace)
    rows = None if contexts is None else contexts.flatten(0, 1)
    other = exact_trace(lambda x: bounded(x, rows), x.flatten(0, 1))
    assert torch.allclose(other[0], y.flatten(0, 1))
    assert torch.allclose(other[1], trace.flatten())
    full = torch.autograd.functional.jacobian(
        lambda x: bounded(x, None if contexts is None else contexts[1, 2]), x[1, 2]
    )
    assert torch.allclose(full.trace(), trace[1, 2])


def test_traces_are_split_where_they_are_large(monkeypatch):
    net = MLP(6, 6, (9, 9), 0, "silu", residual=True).double()
    randomise(net, 1.0)
    x = torch.randn(10, 6, dtype=torch.float64)
    whole, generic = net.with_trace(x, bound=0.7)[1], exact_trace(net, x)[1]
    monkeypatch.setattr("diffeo.nets.mlp._TANGENTS", 200)
    monkeypatch.setattr("diffeo.nets.trace._ELEMENTS", 120)
    assert torch.allclose(net.with_trace(x, bound=0.7)[1], whole)
    assert torch.allclose(exact_trace(net, x)[1], generic)


def test_traces_of_image_networks_are_exact():
    net = UNet(2, (4, 6), embedding_size(0)).double()
    randomise(net, 1.0)
    field = Velocity(net, (2, 4, 3), PATHS["linear"], bound=0.7).double()
    x, t = torch.randn(2, 2, 4, 3, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    v, divergence = field.with_divergence(x, t)
    assert v.shape == x.shape
    for row in range(2):
        full = torch.autograd.functional.jacobian(lambda x, row=row: field(x[None], t[row : row + 1])[0], x[row])
        assert torch.allclose(full.reshape(24, 24).trace(), divergence[row])


def test_hutchinson_is_unbiased_and_fixed_within_a_solve():
    field = velocity(3)
    ode = ODE(field, (3,), divergence="hutchinson", rtol=1e-7, atol=1e-7)
    exact = ODE(field, (3,), rtol=1e-7, atol=1e-7)
    z = torch.randn(1, 3, dtype=torch.float64)
    with torch.no_grad():
        truth = exact.forward_and_log_det(z)[1]
        estimates = ode.forward_and_log_det(z.expand(400, 3))[1]
    stderr = estimates.std() / 20
    assert stderr > 0
    assert abs(estimates.mean() - truth) < 4 * stderr
    torch.manual_seed(5)
    first = ode.forward_and_log_det(z)[1]
    torch.manual_seed(5)
    assert torch.equal(ode.forward_and_log_det(z)[1], first)
    x = torch.randn(4, 3, dtype=torch.float64)
    t = torch.rand(4, dtype=torch.float64)
    probe = torch.ones_like(x)
    y, estimate = estimated_trace(lambda x: field(x, t), x, probe)
    jacobian = torch.autograd.functional.jacobian(lambda x: field(x, t), x)  # (rows, 3, rows, 3)
    assert torch.allclose(y, field(x, t))
    assert torch.allclose(estimate, jacobian.sum((1, 2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_gradients_of_likelihoods(divergence):
    """Adaptive against many fixed steps: the same function, so the same gradient."""
    field = velocity(2, hidden=(6,))
    x = torch.randn(3, 2, dtype=torch.float64)
    gradients = []
    for options in ({"rtol": 1e-8, "atol": 1e-8}, {"solver": "rk4", "steps": 400}):
        torch.manual_seed(3)
        flow = diffeo.Flow(StandardNormal(2), ODE(field, (2,), divergence=divergence, **options)).double()
        field.zero_grad()
        diffeo.MaximumLikelihood(flow)(x).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in field.parameters()]))
    assert gradients[0].abs().max() > 0.1
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_the_gaussian_start_is_exact_for_gaussian_data(path):
    field = Velocity(MLP(3, 3, (8,), embedding_size(0)), (3,), PATHS[path]).double()
    mean, std = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.3, 1.0, 4.0]).double()
    field.data_mean.copy_(mean)
    field.data_std.copy_(std)
    flow = diffeo.Flow(StandardNormal(3), ODE(field, (3,), rtol=1e-9, atol=1e-9)).double()
    z = torch.randn(50, 3, dtype=torch.float64)
    assert torch.allclose(flow.decode(z), mean + std * z, atol=1e-6)
    x = mean + 2 * std * torch.randn(50, 3, dtype=torch.float64)
    truth = torch.distributions.Normal(mean, std).log_prob(x).sum(1)
    assert torch.allclose(flow.log_prob(x), truth, atol=1e-6)


FAR = torch.tensor([[45.0, 0.0, 0.0], [-300.0, 2.0, 0.5], [1.0, -60.0, 1e4], [0.3, -0.2, 1.0]])


def pushing(bound, strength=200.0):
    """A velocity of three columns, whose network's outputs are far larger than anything that the data ask for."""
    field = velocity(3, hidden=(8,), bound=bound)
    with torch.no_grad():
        field.data_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
        field.data_std.copy_(torch.tensor([0.3, 1.0, 4.0]))
        for parameter in field.net.layers[-1].parameters():
            parameter.mul_(strength)
    return field


def test_the_noise_of_points_far_from_the_data_is_near_that_of_the_gaussian():
    field = pushing(2.0)
    x = field.data_mean + field.data_std * FAR
    with torch.no_grad():
        z, log_det = ODE(field, (3,)).inverse_and_log_det(x)
        loose = ODE(pushing(None), (3,)).inverse(x)
    assert torch.isfinite(log_det).all()
    assert ((z - FAR).abs() <= 2.0 + 1e-4 + 1e-6 * FAR.abs()).all()  # what the solver may miss by
    assert (z - FAR).abs().max() > 1.0, "the correction is large"
    assert (loose - FAR).abs().max() > 4.0, "without a bound it would be larger yet"


def test_far_from_the_data_log_dets_are_exact_and_trajectories_return():
    ode = ODE(pushing(2.0, 5.0), (3,), rtol=1e-7, atol=1e-7)
    x = ode.velocity.data_mean + ode.velocity.data_std * FAR
    with torch.no_grad():
        z, log_det = ode.inverse_and_log_det(x)
        assert torch.allclose(ode.forward(z), x, rtol=1e-5, atol=1e-4)
    jacobian = torch.autograd.functional.jacobian(lambda x: ode.inverse(x).sum(0), x).transpose(0, 1)
    assert torch.allclose(torch.linalg.slogdet(jacobian).logabsdet, log_det, atol=1e-4)
    assert (log_det + ode.velocity.data_std.log().sum()).abs().max() > 0.05, "the correction has a part in it"


def test_gradients_of_bounded_corrections():
    field, t = pushing(2.0, 5.0), torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    x = (field.data_mean + field.data_std * FAR).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: field.with_divergence(x, t), x, atol=1e-4)
    _, divergence = field.with_divergence(x, t)
    gradients = torch.autograd.grad(divergence.sum(), list(field.net.parameters()), allow_unused=True)
    assert all(torch.isfinite(each).all() for each in gradients if each is not None)
    for bound in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a bound above 0, or None"):
            velocity(bound=bound)


def test_trajectories_pass_through_the_solution():
    ode = ODE(velocity(2), (2,), rtol=1e-9, atol=1e-9)
    z = torch.randn(4, 2, dtype=torch.float64)
    passed = ode.trajectory(z, [0.0, 0.5, 1.0])
    assert passed.shape == (3, 4, 2)
    assert torch.equal(passed[0], z)
    assert torch.allclose(passed[2], ode.forward(z), atol=1e-7)


def test_float32_round_trips_and_empty_batches():
    ode = ODE(velocity(2, 3).float(), (2,), rtol=1e-8, atol=1e-8)  # leaves rounding errors only
    z, context = torch.randn(40, 2), torch.randn(1, 3)
    with torch.no_grad():
        assert (ode.inverse(ode.forward(z, context), context) - z).abs().max() < 1e-4
        assert ode.forward(z[:0], context[:0]).shape == (0, 2)
        assert ode.forward_and_log_det(z[:0], context[:0])[1].shape == (0,)
    assert ode.fast == set()


def known(path="linear", features=3, context=0, hidden=(16, 16), activation="silu", **options):
    """A velocity that the kernels know, of moments and weights that are not those of its start."""
    size = embedding_size(context, options.get("droppable", False))
    net = MLP(features, features, hidden, size, activation, True)
    made = Velocity(net, (features,), PATHS[path], context, **options)
    randomise(made)
    with torch.no_grad():
        for layer in made.net.layers:
            layer.weight.normal_(std=0.6 / math.sqrt(layer.in_features))
        for name in ("data_std", "noise_std"):
            getattr(made, name).uniform_(0.5, 2)
    return made


NETWORKS = [
    (2, 0, (24, 24, 24), "silu", 0.5),
    (5, 3, (20, 20, 9), "silu", None),
    (9, 1, (8, 30), "tanh", 2.0),
    (1, 0, (), "silu", 0.3),
    (3, 2, (7,), "elu", None),
]
DIRECTIONS = [(0.0, 1.0), (0.95, 0.0), (0.2, 0.7)]
# A Latin square: each network meets each path and each direction, each path each direction. The reference is slow.
SOLVES = [
    (path, DIRECTIONS[(i + k) % 3], *network) for i, network in enumerate(NETWORKS) for k, path in enumerate(PATHS)
]


@needs_compiler
@pytest.mark.parametrize(("path", "direction", "features", "context", "hidden", "activation", "bound"), SOLVES, ids=str)
def test_solves_in_one_call_equal_the_reference(plain, path, direction, features, context, hidden, activation, bound):
    if path == "vp":  # whose velocity has a pole at the data
        direction = tuple(min(t, 0.9) for t in direction)
    field = known(path, features, context, hidden, activation, droppable=bool(context), bound=bound)
    z = torch.randn(70, features)
    z += z.sign()  # a state near zero would make the first step short
    contexts = torch.randn(70, context) if context else None
    exact = ODE(copy.deepcopy(field).double(), (features,), rtol=1e-9, atol=1e-9)
    start, stop = direction
    near = start + 0.02 * (stop - start)  # so near that one step leads there, however its length is chosen
    ode = ODE(field, (features,), rtol=1e-5, atol=1e-5)

    def error(solution, truth):
        parts = [solution.value - truth.value]
        if solution.log_det is not None:
            parts.append((solution.log_det - truth.log_det)[:, None])
        return torch.cat(parts, 1).abs().amax(1).median()

    with torch.no_grad():
        truth = exact.solve(z.double(), start, stop, None if contexts is None else contexts.double(), log_det=True)
    for log_det in (False, True):
        with torch.no_grad():
            runs = [
                lambda log_det=log_det: ode.solve(z, start, stop, contexts, log_det=log_det),
                lambda log_det=log_det: ode.replaced(rtol=1.0, atol=1.0).solve(
                    z, start, near, contexts, log_det=log_det
                ),
            ]
            (fast, fast_step), (slow, slow_step) = [run() for run in runs], [plain(run) for run in runs]
        assert error(fast, truth) < 1.5 * error(slow, truth) + ode.rtol
        assert 0.8 < fast.evaluations.sum() / slow.evaluations.sum() < 1.25
        assert (fast.log_det is None) == (not log_det)
        assert (fast_step.evaluations == 8).all()
        assert torch.equal(fast_step.evaluations, slow_step.evaluations)
        assert torch.allclose(fast_step.value, slow_step.value, rtol=1e-5, atol=1e-6)
        if log_det:
            assert torch.allclose(fast_step.log_det, slow_step.log_det, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_what_the_kernel_does_not_know_is_left_to_the_reference(monkeypatch):
    class Other(Velocity):
        pass

    z = torch.randn(4, 3)
    read = []
    forward = Velocity.forward
    monkeypatch.setattr(Velocity, "forward", lambda self, *args: read.append(1) or forward(self, *args))
    field = known()
    other = Other(field.net, (3,), field.path)
    custom = Velocity(field.net, (3,), lambda t: PATHS["linear"](t))
    wrapped = Velocity(Wrapped(field.net), (3,), field.path)
    for case, slow in ((field, False), (known().double(), True), (other, True), (custom, True), (wrapped, True)):
        del read[:]
        with torch.no_grad():
            ODE(case, (3,)).forward(z.to(case.data_mean))
        assert bool(read) == slow
    del read[:]
    x = ODE(field, (3,)).forward(z)
    assert read
    assert x.requires_grad
    with pytest.raises(ValueError, match="expected a context of size 2, got none"), torch.no_grad():
        ODE(known(context=2), (3,)).forward(z)


class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, context):
        return self.net(x, context)


@needs_compiler
@pytest.mark.parametrize("log_det", [False, True])
def test_rows_in_lanes_do_not_know_each_other(log_det):
    """The same bits alone, among others that are harder, and on several threads."""
    ode = ODE(known(features=2, context=1), (2,))
    z, context = torch.randn(3000, 2), torch.randn(3000, 1)
    threads = torch.get_num_threads()
    with torch.no_grad():
        try:
            solutions = []
            for count in (1, 3):
                torch.set_num_threads(count)
                solutions.append(ode.solve(z, 0.0, 1.0, context, log_det=log_det))
        finally:
            torch.set_num_threads(threads)
        hard, easy = (int(each(solutions[0].evaluations)) for each in (torch.argmax, torch.argmin))
        assert solutions[0].evaluations[hard] >= 1.5 * solutions[0].evaluations[easy]
        for row in (0, hard, easy, 2999):
            solutions.append(ode.solve(z[row], 0.0, 1.0, context[row], log_det=log_det))
            for a, b in zip(solutions[0], solutions[-1], strict=True):
                assert a is None or torch.equal(a[row], b)
        for a, b in zip(*solutions[:2], strict=True):
            assert a is None or torch.equal(a, b)
        assert ode.solve(z[:0], 0.0, 1.0, context[:0], log_det=log_det).value.shape == (0, 2)


@needs_compiler
def test_failures_in_one_call_are_those_of_the_reference(plain):
    field = known(context=1)
    z, context = torch.randn(100, 3), 0.01 * torch.randn(100, 1)

    def message(ode, z):
        with pytest.raises(ValueError, match=r"in row \d+") as caught, torch.no_grad():
            ode.forward_and_log_det(z, context)
        return str(caught.value)

    ode = ODE(field, (3,), max_evaluations=20)
    fast, slow = message(ode, z), plain(lambda: message(ode, z))
    assert "to be met within 20 evaluations, got to t = 0." in fast
    assert fast.split("in row")[1] == slow.split("in row")[1]
    ode, holed = ODE(field, (3,)), z.clone()
    holed[[41, 77]] = torch.nan
    assert message(ode, holed) == plain(lambda: message(ode, holed))
    assert "got NaN or infinity in row 41 at t = 0" in message(ode, holed)
    with torch.no_grad():
        field.net.layers[1].weight[3, 5] = torch.nan
    assert "expected a finite velocity, got NaN or infinity in row 0 at t = 0" in message(ode, z)


def broken(**options):
    return ODE(Affine(MATRIX, **options), (2,))


POINTS = torch.tensor([[-1.0, 0.0], [-2.0, 0.0], [3.0, 0.0]], dtype=torch.float64)


def test_mistakes_are_named():
    field = Affine(MATRIX)
    for options, message in (
        ({"solver": "rk45"}, "expected a solver among dopri5, euler"),
        ({"solver": "rk4"}, "expected steps for solvers of fixed steps alone"),
        ({"steps": 10}, "expected steps for solvers of fixed steps alone"),
        ({"solver": "euler", "steps": 0}, "expected at least one step, got 0"),
        ({"divergence": "both"}, "expected divergence='exact' or 'hutchinson', got 'both'"),
        ({"rtol": 0.0}, "expected rtol above 0, got 0.0"),
        ({"atol": math.nan}, "expected atol above 0, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            ODE(field, (2,), **options)
    with pytest.raises(ValueError, match=r"velocity of the shape of its input \(3, 2\), got \(3, 1\)"):
        ODE(nn.Bilinear(2, 1, 1), (2,)).replaced(Narrow()).forward(POINTS)


class Narrow(nn.Module):
    def forward(self, x, t, context=None):
        return x[:, :1]


def test_tolerances_that_cannot_be_met_name_the_row_and_the_time():
    ode = ODE(Stretch(), (1,), max_evaluations=60)
    rates = torch.tensor([[0.1], [0.1], [90.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"within 60 evaluations, got to t = 0\.\d+ in row 2"):
        ode.forward(torch.ones(3, 1, dtype=torch.float64), rates)


@pytest.mark.parametrize("after", [-1.0, 0.4])
def test_velocities_that_are_not_finite_name_the_row_and_the_time(after):
    time = "0" if after < 0 else "0.4"
    with pytest.raises(ValueError, match=rf"expected a finite velocity, .* in row 2 at t = {time}"):
        broken(broken=after).forward(POINTS)
    with pytest.raises(ValueError, match=r"expected a finite velocity, .* in row 2 at t = "):
        ODE(Affine(MATRIX, broken=after), (2,), solver="euler", steps=5).forward(POINTS)


def test_coarse_solves_have_samples_but_no_likelihood():
    flow = diffeo.Flow(StandardNormal(2), ODE(velocity(2), (2,), solver="euler", steps=4)).double()
    x = flow.sample(5)
    for call in (lambda: flow.log_prob(x), lambda: flow.sample_and_log_prob(3)):
        with pytest.raises(ValueError, match="expected at least 32 evaluations for a likelihood, got 4 steps of euler"):
            call()
    assert torch.isfinite(flow.encode(x)).all()


def test_solves_are_counted_where_they_are_watched():
    ode = ODE(velocity(2), (2,))
    z = torch.randn(7, 2, dtype=torch.float64)
    with watched_solves() as solves, torch.no_grad():
        alone = ode.solve(z, 0.0, 1.0)
        both = ode.solve(z[:3], 0.0, 1.0, log_det=True)
        ode.solve(z[:0], 0.0, 1.0)
    ode.forward(z)  # not watched
    assert solves.rows == 10
    assert solves.evaluations == int(alone.evaluations.sum() + both.evaluations.sum())
    assert solves.summary()["solver"]["largest_error"] == float(torch.cat([alone.error, both.error]).max())
    with watched_solves() as none:
        pass
    assert none.summary() == {}


def test_threads_may_solve_one_flow_at_once():
    """C reads a description that another thread's call must not take away."""
    flow = diffeo.flow_matching(2, 1, hidden=(8,)).eval()
    randomise(flow)
    context, x = torch.zeros(1), torch.randn(10, 2)
    with torch.no_grad():
        expected = flow.log_prob(x, context)
        with ThreadPoolExecutor(4) as pool:
            found = [pool.submit(torch.no_grad()(flow.log_prob), x, context) for _ in range(80)]
            assert all(torch.allclose(each.result(), expected, atol=1e-5) for each in found)
