"""Each fast path equals the reference: values, log-dets and gradients."""

import copy
import sys

import pytest
import torch

import diffeo
from cases import needs_compiler, randomise
from diffeo import ops
from diffeo.nets import MADE, MLP, Velocity
from diffeo.nets.velocity import embedding_size
from diffeo.objectives.paths import PATHS
from diffeo.ops.cpu import build
from diffeo.transforms import (
    Affine,
    Autoregressive,
    Composed,
    Coupling,
    RationalQuadraticSpline,
    Scale,
    Shift,
    alternating_mask,
)

MAPS = {
    "shift": Shift,
    "scale": Scale,
    "affine": Affine,
    "spline": RationalQuadraticSpline,
    "spline-affine": lambda: Composed(RationalQuadraticSpline(), Affine(2.0)),
}


@needs_compiler
@pytest.mark.parametrize("bins", [2, 5, 8, 32])
@pytest.mark.parametrize("shape", [(7,), (3, 1), (4, 16), (2, 3, 37)], ids=str)
def test_spline_equals_the_reference(plain, bins, shape):
    spline = RationalQuadraticSpline(bins, 3.0, min_bin=0.02)
    value = 2.5 * torch.randn(shape)
    value.view(-1)[:2] = torch.tensor([3.0, -3.0])
    params = 2 * torch.randn(spline.size, *shape)

    def gradients():
        x, p = value.clone().requires_grad_(), params.clone().requires_grad_()
        z, log_det = spline.inverse_and_log_det(x, p)
        weights = torch.linspace(-1, 1, z.numel()).reshape(z.shape)
        return z, log_det, *torch.autograd.grad((weights * z + weights.cos() * log_det).sum(), (x, p))

    for fast, slow in zip(gradients(), plain(gradients), strict=True):
        assert torch.allclose(fast, slow, atol=2e-4, rtol=2e-4)

    with torch.no_grad():
        for method in ("forward_and_log_det", "inverse_and_log_det"):
            fast, slow = (
                getattr(spline, method)(value, params),
                plain(lambda m=method: getattr(spline, m)(value, params)),
            )
            for a, b in zip(fast, slow, strict=True):
                assert torch.allclose(a, b, atol=1e-6, rtol=1e-6)


@needs_compiler
def test_spline_takes_any_layout(plain):
    spline = RationalQuadraticSpline()
    value = torch.randn(6, 20)
    params = torch.randn(6, spline.size * 20).unflatten(1, (spline.size, 20)).movedim(1, 0)
    other = torch.randn(20, 6, spline.size).permute(2, 1, 0)
    with torch.no_grad():
        for each in (params, other):
            assert torch.allclose(
                spline.inverse_and_log_det(value, each)[0],
                plain(lambda p=each: spline.inverse_and_log_det(value, p)[0]),
                atol=1e-6,
            )
        assert torch.allclose(
            spline.inverse_and_log_det(value.mT, other.mT)[0].mT, spline.inverse_and_log_det(value, other)[0], atol=1e-6
        )


@needs_compiler
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("shape", [(), (7,), (4, 16), (2, 3, 37)], ids=str)
def test_map_equals_the_reference(plain, name, shape):
    univariate = MAPS[name]()
    value, params = 2 * torch.randn(shape), torch.randn(univariate.size, *shape)

    def gradients():
        x, p = value.clone().requires_grad_(), params.clone().requires_grad_()
        z, log_det = univariate.inverse_and_log_det(x, p)
        weights = torch.linspace(-1, 1, z.numel()).reshape(z.shape)
        return z, log_det, *torch.autograd.grad((weights * z + weights.cos() * log_det).sum(), (x, p))

    for fast, slow in zip(gradients(), plain(gradients), strict=True):
        assert torch.allclose(fast, slow, atol=2e-4, rtol=2e-4)
    with torch.no_grad():
        for method in (univariate.forward_and_log_det, univariate.inverse_and_log_det):
            for a, b in zip(method(value, params), plain(lambda m=method: m(value, params)), strict=True):
                assert torch.allclose(a, b, atol=1e-6, rtol=1e-6)


@needs_compiler
@pytest.mark.parametrize("name", MAPS)
def test_map_has_second_derivatives(plain, name):
    univariate = MAPS[name]()
    value, params = torch.randn(6), torch.randn(univariate.size, 6)

    def second():
        x, p = value.clone().requires_grad_(), params.clone().requires_grad_()
        z, log_det = univariate.inverse_and_log_det(x, p)
        (first,) = torch.autograd.grad((z.square() + log_det).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum() + (x * p).sum(), (x, p))

    for a, b in zip(second(), plain(second), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


@needs_compiler
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    ("features", "hidden", "context", "residual", "activation", "rows"),
    [
        (6, (20, 20), 0, False, "silu", 50),
        (37, (50, 50, 50), 3, True, "tanh", 77),
        (9, (4, 4), 0, True, "elu", 5),
        (9, (4,), 2, False, "relu", 1),
        (1, (5,), 2, False, "relu", 3),
        (5, (), 2, False, "relu", 40),
        (64, (128, 128), 0, True, "relu", 200),
    ],
)
def test_inversion_equals_the_reference(plain, name, features, hidden, context, residual, activation, rows):
    univariate = MAPS[name]()
    transform = Autoregressive(univariate, MADE(features, univariate.size, hidden, context, activation, residual))
    randomise(transform)
    z = 2 * torch.randn(rows, features)
    contexts = torch.randn(rows, context) if context else None
    with torch.no_grad():
        fast, slow = (
            transform.forward_and_log_det(z, contexts),
            plain(lambda: transform.forward_and_log_det(z, contexts)),
        )
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a, b, atol=2e-5, rtol=2e-5)


@needs_compiler
@pytest.mark.parametrize("activation", ["relu", "silu", "tanh", "elu"])
@pytest.mark.parametrize(
    ("features", "size", "hidden", "context", "residual", "rows"),
    [
        (6, 2, (20, 20), 0, False, 50),
        (37, 3, (50, 50, 50), 3, True, 77),
        (9, 1, (4, 4), 0, True, 5),
        (9, 2, (4,), 2, False, 1),
        (1, 2, (5,), 2, False, 3),
        (5, 2, (), 2, False, 40),
        (64, 2, (130, 130), 0, True, 1200),
    ],
)
@pytest.mark.parametrize("masked", [True, False])
def test_network_equals_the_reference(plain, features, size, hidden, context, residual, rows, activation, masked):
    if masked:
        net = MADE(features, size, hidden, context, activation, residual)
    else:
        net = MLP(features, features * size, hidden, context, activation, residual)
    randomise(net)
    x = 2 * torch.randn(rows, features)
    contexts = torch.randn(rows, context) if context else None
    weights = torch.randn(features * size, rows)

    def results(by_feature):
        leaves = [x.clone().requires_grad_(), *([] if contexts is None else [contexts.clone().requires_grad_()])]
        fed = leaves[0].mT.contiguous() if by_feature else leaves[0].mT
        out = net.outputs(fed, *leaves[1:])
        leaves += net.parameters()
        return out, *torch.autograd.grad((weights * out).sum(), leaves)

    fast = results(True)
    with torch.no_grad():
        assert torch.equal(net.outputs(x.mT, contexts), fast[0]), "the same without gradients"
    slow = plain(lambda: results(True))
    for each in (fast, results(False)):
        for a, b in zip(each, slow, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * (1 + b.abs().max().item()))


@needs_compiler
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("coupling", [False, True], ids=["autoregressive", "coupling"])
@pytest.mark.parametrize(
    ("features", "hidden", "context", "residual", "activation", "rows"),
    [
        (6, (20, 20), 0, False, "silu", 50),
        (37, (50, 50, 50), 3, True, "relu", 77),
        (9, (4, 4), 0, True, "elu", 5),
        (5, (), 2, False, "tanh", 1100),
    ],
)
def test_network_and_map_in_one_call(plain, name, coupling, features, hidden, context, residual, activation, rows):
    univariate = MAPS[name]()
    if coupling:
        kept = (features + 1) // 2
        net = MLP(kept, univariate.size * (features - kept), hidden, context, activation, residual)
        transform = Coupling(univariate, alternating_mask(features), net)
    else:
        transform = Autoregressive(univariate, MADE(features, univariate.size, hidden, context, activation, residual))
    randomise(transform)
    x = torch.randn(rows, features)
    contexts = torch.randn(rows, context) if context else None
    weights = torch.randn(rows, features)

    def results():
        leaves = [x.clone().requires_grad_(), *([] if contexts is None else [contexts.clone().requires_grad_()])]
        z, log_det = transform.inverse_and_log_det(*leaves)
        leaves += transform.parameters()
        return z, log_det, *torch.autograd.grad((weights * z).sum() + log_det.cos().sum(), leaves)

    for a, b in zip(results(), plain(results), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * (1 + b.abs().max().item()))
    with torch.no_grad():
        for method in (transform.inverse_and_log_det, transform.forward_and_log_det):
            for a, b in zip(method(x, contexts), plain(lambda m=method: m(x, contexts)), strict=True):
                assert torch.allclose(a, b, rtol=2e-5, atol=2e-5)


@needs_compiler
@pytest.mark.parametrize("hidden", [(20, 20), (4,), ()], ids=["layers", "direct connections", "no hidden layer"])
def test_a_context_for_all_rows_is_that_context_in_each(plain, hidden):
    net = MADE(9, 2, hidden, 3, "silu")
    randomise(net)
    x, one, weights = torch.randn(9, 50), torch.randn(1, 3), torch.randn(18, 50)

    def results(rows, *needed):
        leaves = [x.clone().requires_grad_("x" in needed), one.clone().requires_grad_("context" in needed)]
        out = net.outputs(leaves[0], leaves[1].expand(rows, -1))
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        return out, *torch.autograd.grad((weights * out).sum(), [*wanted, *net.parameters()])

    for needed in ((), ("x",), ("context",), ("x", "context")):
        expected = plain(lambda needed=needed: results(1, *needed))
        for each in (results(1, *needed), results(50, *needed)):
            for a, b in zip(each, expected, strict=True):
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * (1 + b.abs().max().item()))
    expected = plain(lambda: net.outputs(x))  # none says nothing
    assert torch.allclose(net.outputs(x), expected, atol=1e-5)
    alone = MADE(9, 2, hidden, 0, "silu")
    randomise(alone)
    assert torch.equal(alone.outputs(x, one), alone.outputs(x)), "what is not asked for is ignored"


@needs_compiler
def test_network_has_second_derivatives(plain):
    net = MADE(5, 2, (12, 12), 3, "silu", True)
    randomise(net)
    x, context = torch.randn(5, 7), torch.randn(7, 3)

    def second():
        leaves = [x.clone().requires_grad_(), context.clone().requires_grad_()]
        first = torch.autograd.grad(net.outputs(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), [*leaves, *net.parameters()])

    for a, b in zip(second(), plain(second), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


def tied():
    """Couplings that share a network, which has one weight twice: inputs that are made of each other, and alike."""
    net = MLP(1, 2, (6, 6, 6), activation="tanh")
    net.layers[2].weight = net.layers[1].weight
    return diffeo.Flow(
        diffeo.StandardNormal(2), [Coupling(Affine(), mask, net) for mask in ([False, True], [True, False])]
    )


WHOLE = {
    "maf": lambda: diffeo.maf(3, hidden=(8,), activation="tanh"),
    "nsf": lambda: diffeo.nsf(3, hidden=(8,), activation="silu"),
    "iaf": lambda: diffeo.iaf(3, hidden=(8,), activation="tanh"),
    "realnvp": lambda: diffeo.realnvp(3, hidden=(8,), activation="tanh"),
    "wavenet": lambda: diffeo.wavenet(12, channels=4, layers=2, cycles=1, skip=4),
    "tied": tied,
}


@needs_compiler
@pytest.mark.parametrize("name", WHOLE)
def test_gradients_of_a_whole_flow_are_the_same_with_a_graph_and_have_a_gradient(plain, name):
    """Where layers follow each other, what one is given was made by another."""
    flow = WHOLE[name]()
    randomise(flow, 0.3)
    z = torch.randn(5, *flow.base.event_shape)
    encodes = name != "iaf"  # whose fast direction is the other one
    ends = z if not encodes else flow.decode(z).detach()

    def gradients(create_graph):
        x = ends.clone().requires_grad_()
        total = flow.log_prob(x).sum() if encodes else flow.decode(x).sin().sum()
        first = torch.autograd.grad(total, [x, *flow.parameters()], create_graph=create_graph)
        return x, first

    usual, (x, graphed) = gradients(False)[1], gradients(True)
    for a, b in zip(graphed, usual, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * (1 + b.abs().max().item()))
    second = torch.autograd.grad(graphed[0].square().sum(), x)[0]

    def expected():
        x, first = gradients(True)
        return torch.autograd.grad(first[0].square().sum(), x)[0]

    slow = plain(expected)
    assert torch.allclose(second, slow, rtol=1e-2, atol=1e-3 * (1 + slow.abs().max().item()))


def test_second_derivatives_of_the_sequential_direction_are_refused():
    """Zero would be silently wrong; torch.func has them."""
    flow = diffeo.iaf(2, hidden=(4,), transforms=1, activation="tanh").double()
    randomise(flow)
    x = torch.randn(2, dtype=torch.double)
    with pytest.raises(RuntimeError, match=r"expected first derivatives .* torch.func"):
        torch.autograd.functional.hessian(flow.log_prob, x)
    for penalised in (flow.log_prob, lambda x: flow.log_prob(x) + x.square().sum()):
        leaf = x.clone().requires_grad_()
        (score,) = torch.autograd.grad(penalised(leaf), leaf, create_graph=True)
        usual = torch.autograd.grad(penalised(leaf), leaf)[0]
        assert torch.allclose(score, usual), "the first one is there"
        with pytest.raises(RuntimeError, match="got second ones"):
            score.square().sum().backward()
    step = 1e-5 * torch.eye(2, dtype=torch.double)
    gradient = torch.func.jacrev(flow.log_prob)
    differences = torch.stack([(gradient(x + each) - gradient(x - each)) / 2e-5 for each in step])
    assert torch.allclose(torch.func.jacrev(gradient)(x), differences, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("features", "context", "droppable", "withheld", "rows", "bound"),
    [
        (2, 0, False, False, 50, None),
        (5, 3, True, True, 77, 0.5),
        (1, 2, True, False, 3, 0.3),
        (9, 1, False, False, 1, None),
    ],
)
def test_the_squared_error_of_a_velocity_is_its_distance_from_the_path_s(
    monkeypatch, path, features, context, droppable, withheld, rows, bound
):
    velocity = Velocity(
        MLP(features, features, (16, 16), embedding_size(context, droppable), "silu", True),
        (features,), PATHS[path], context, droppable, bound,
    )  # fmt: skip
    randomise(velocity)
    velocity.initialize(2 * torch.randn(20, features) - 1, 0.5 * torch.randn(20, features) + 3)
    noise, data, t = torch.randn(rows, features), torch.randn(rows, features) + 2, 0.99 * torch.rand(rows)
    contexts = torch.randn(rows, context) if context else None
    keep = torch.arange(rows).remainder(2).float() if withheld else None
    weights = torch.randn(rows)

    def results(net, error):
        parts = [None if each is None else each.to(net.data_mean) for each in (noise, data, t, contexts, keep)]
        errors = error(net, *parts)
        return errors, *torch.autograd.grad((weights * errors).sum(), list(net.parameters()))

    def by_both(net, noise, data, t, contexts, keep):
        a, s, da, ds = (each[:, None] for each in PATHS[path](t))
        return (net(a * data + s * noise, t, contexts, keep) - (da * data + ds * noise)).square().sum(1)

    exact = results(copy.deepcopy(velocity).double(), by_both)
    fast = results(velocity, Velocity.squared_error)
    monkeypatch.setattr("diffeo.ops.matching", lambda *args: None)
    plain, wide = (results(each, Velocity.squared_error) for each in (velocity, copy.deepcopy(velocity).double()))
    for result in (fast, plain, wide):
        for a, b in zip(result, exact, strict=True):
            slack = 1e-9 if a.dtype == torch.float64 else 1e-4
            assert torch.allclose(a.double(), b, rtol=slack, atol=slack * b.abs().max().item())


@needs_compiler
def test_kernels_are_taken_and_can_be_switched_off(monkeypatch):
    transform = Autoregressive(Affine(), MADE(4, 2))
    called = []
    original = ops.reference.invert_network
    monkeypatch.setattr(ops.reference, "invert_network", lambda *args: called.append(1) or original(*args))
    z = torch.randn(3, 4)
    with torch.no_grad(), ops.using("cpu"):
        x, log_det = transform.forward_and_log_det(z)
        assert torch.equal(x, z), "a fresh network is the identity"
        assert torch.equal(log_det, torch.zeros(3))
        assert not called
        transform.double().forward(z.double())
        assert called.pop(), "another precision"
        transform.float()
        with ops.using("reference"):
            transform.forward(z)
        assert called.pop()
        monkeypatch.setenv("DIFFEO_NATIVE", "0")
        build.kernels.cache_clear()
        try:
            transform.forward(z)
            assert called.pop()
        finally:
            build.kernels.cache_clear()
            monkeypatch.undo()
    with pytest.raises(ValueError, match=r"expected a backend among .*, got 'gpu'"), ops.using("gpu"):
        pass


@needs_compiler
def test_splines_are_in_double_precision_where_no_gradient_is_asked_for_alone(plain, monkeypatch):
    """Scores are worth the time; a training, whose gradients are in single precision, is not."""
    module, asked = sys.modules["diffeo.ops.cpu.network"], []

    def noted(*arguments, precise, **more):
        asked.append(precise)
        return described(*arguments, precise=precise, **more)

    described = module._described_mapping
    monkeypatch.setattr(module, "_described_mapping", noted)
    flow, x = diffeo.nsf(3, transforms=2, hidden=[8]).eval(), torch.randn(20, 3)
    randomise(flow)
    loss = flow.log_prob(x).sum()
    assert asked == [False, False]
    loss.backward()
    asked.clear()
    with torch.no_grad():
        scores = flow.log_prob(x)
    assert asked == [True, True]
    exact = plain(lambda: flow.double().log_prob(x.double()))
    torch.testing.assert_close(scores.double(), exact, rtol=1e-4, atol=1e-4)


def test_a_compiler_that_fails_leaves_the_reference(monkeypatch, tmp_path):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho no such flag >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.delenv("DIFFEO_NATIVE", raising=False)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build.kernels.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="could not be built by .*cc: plain PyTorch"):
            assert build.library() is None
        assert torch.isfinite(Autoregressive(Affine(), MADE(4, 2)).forward(torch.randn(3, 4))).all()
    finally:
        build.kernels.cache_clear()
