"""The laws of every transform and of its inverse, on one table of cases, with randomised parameters."""

import copy

import pytest
import torch

from cases import CASES, CONTEXT, NAMES, Case, autoregressive, case, inputs, make, randomise
from diffeo.nets import MADE
from diffeo.nets.made import spread_degrees
from diffeo.transforms import (
    Affine,
    Autoregressive,
    Coupling,
    Inverse,
    RationalQuadraticSpline,
    Shift,
    Transform,
)

BATCHES = [(), (3,), (2, 3)]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs() / (1 + b.abs())).max().item()


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_round_trip_and_shapes(name, batch):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        transform = make(name, dtype)
        z, context = inputs(name, batch, dtype)
        kept = z.clone()
        x, log_det = transform.forward_and_log_det(z, context)
        back, log_det_back = transform.inverse_and_log_det(x, context)
        assert x.dtype == log_det.dtype == dtype
        assert log_det.shape == batch
        assert relative(back, z) <= tolerance
        assert relative(log_det, -log_det_back) <= tolerance
        assert torch.equal(z, kept), "an argument was changed"
        assert relative(transform.forward(z, context), x) <= tolerance
        assert relative(transform.inverse(x, context), back) <= tolerance


def jacobian(transform: Transform, method: str, value: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
    size = value.numel()
    full = torch.autograd.functional.jacobian(lambda v: getattr(transform, method)(v, context), value)
    return full.reshape(size, size)


@pytest.mark.parametrize("name", NAMES)
def test_log_det_is_that_of_the_autograd_jacobian(name):
    transform = make(name)
    z, context = inputs(name, ())
    x, log_det = transform.forward_and_log_det(z, context)
    assert torch.allclose(jacobian(transform, "forward", z, context).slogdet()[1], log_det, atol=1e-8, rtol=0)
    log_det = transform.inverse_and_log_det(x, context)[1]
    assert torch.allclose(jacobian(transform, "inverse", x, context).slogdet()[1], log_det, atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if case(name).event_shape not in ((64,), (24,))])
def test_gradients_are_exact_in_both_directions(name):
    transform = make(name)
    z, context = inputs(name, (2,))
    x = transform.forward(z, context).detach()
    parameters = tuple(transform.parameters())
    contexts = () if context is None else (context.requires_grad_(),)
    for method, value in (("forward_and_log_det", z), ("inverse_and_log_det", x)):

        def call(value, *rest, method=method):
            return getattr(transform, method)(value, rest[0] if contexts else None)

        assert torch.autograd.gradcheck(
            call, (value.detach().requires_grad_(), *contexts, *parameters), fast_mode=True, atol=1e-5
        )


@pytest.mark.parametrize("name", [name for name in NAMES if list(make(name).parameters())])
def test_gradients_reach_all_parameters(name):
    transform = make(name)
    z, context = inputs(name, (200,))
    x = transform.forward(z, context).detach()
    for method, value in (("forward_and_log_det", z), ("inverse_and_log_det", x)):
        transform.zero_grad()
        out, log_det = getattr(transform, method)(value, context)
        (out.square().sum() + log_det.square().sum()).backward()
        for parameter_name, parameter in transform.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert torch.isfinite(parameter.grad).all(), parameter_name
            # one feature, or one hidden unit that is left to the context: no hidden unit may see an input
            unseen = case(name).event_shape == (1,) or "one-unit-context" in name or "bottleneck" in name
            hopeless = parameter_name.endswith("layers.0.weight") and unseen
            assert hopeless or parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_follow_scores_in_inference_mode(name, dtype):
    """What is made there has no gradients ever, so it may not be kept for a training."""
    transform = make(name, dtype)
    z, context = inputs(name, (3,), dtype)
    with torch.inference_mode():
        made, _ = transform.forward_and_log_det(z, context)
        transform.inverse_and_log_det(made, context)
    for method, value in (("forward_and_log_det", z), ("inverse_and_log_det", made.clone())):
        value = value.detach().requires_grad_()
        out, log_det = getattr(transform, method)(value, context)
        (gradient,) = torch.autograd.grad(out.square().sum() + log_det.square().sum(), value)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_finite_values_and_gradients_everywhere(name, dtype):
    transform = make(name, dtype)
    probes = [0.0, 1e-30, -1e-30, 5.0, -5.0, 5.000001, 4.999999, 1e6, -1e6]
    for probe in probes:
        noise, context = inputs(name.removeprefix("inverse-"), (4,), dtype)
        noise[0] = probe
        noise.view(4, -1)[1:, 0] = probe
        for method in ("forward_and_log_det", "inverse_and_log_det"):
            # Data outside a support has no image: log-density -inf there, see test_preprocess and test_supports.
            on_data = (method == "inverse_and_log_det") != name.startswith("inverse-")
            value = (case(name).data(noise) if on_data else noise).detach().requires_grad_()
            transform.zero_grad()
            out, log_det = getattr(transform, method)(value, context)
            assert torch.isfinite(out).all(), (probe, method)
            assert torch.isfinite(log_det).all(), (probe, method)
            (out.sum() + log_det.sum()).backward()
            assert torch.isfinite(value.grad).all(), (probe, method)
            for parameter in transform.parameters():
                assert torch.isfinite(parameter.grad).all(), (probe, method)


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip(name):
    this, other = make(name), make(name)
    other.load_state_dict(copy.deepcopy(this.state_dict()))
    z, context = inputs(name, (5,))
    for a, b in zip(this.forward_and_log_det(z, context), other.forward_and_log_det(z, context), strict=True):
        assert torch.equal(a, b)


AUTOREGRESSIVE = [name for name in CASES if isinstance(CASES[name].make(), Autoregressive)]


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_incremental_inversion_equals_one_pass_per_element(name):
    """Element by element by incremental inversion, and by one full pass per element."""
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        transform = make(name, dtype)
        z, context = inputs(name, (50,), dtype)
        with torch.no_grad():
            x, log_det = transform.forward_and_log_det(z, context)
            naive = torch.zeros_like(z)
            for i in range(z.shape[-1]):
                params = transform.net(naive.mT, context).mT  # (size, rows, features)
                naive[:, i] = transform.univariate.forward_and_log_det(z, params)[0][:, i]
        assert relative(x, naive) <= tolerance
        assert relative(log_det, -transform.inverse_and_log_det(naive, context)[1]) <= tolerance


def dependence(transform: Transform, this: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest absolute Jacobian entries of the map x -> z over many points, for inputs and for the context."""
    (features,) = this.event_shape
    x = torch.randn(64, features, dtype=torch.float64, requires_grad=True)
    contexts = (
        torch.randn(64, *this.context_shape, dtype=torch.float64, requires_grad=True) if this.contextual else None
    )
    z = transform.inverse(x, contexts)
    by_x, by_context = [], []
    for i in range(features):
        grads = torch.autograd.grad(
            z[:, i].sum(), (x, contexts) if this.contextual else (x,), retain_graph=True, allow_unused=True
        )
        by_x.append(grads[0].abs().amax(0))
        by_context.append(
            torch.zeros(this.context_shape) if len(grads) < 2 or grads[1] is None else grads[1].abs().amax(0)
        )
    return torch.stack(by_x), torch.stack(by_context)


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_each_output_depends_on_exactly_the_earlier_inputs_and_on_the_context(name):
    features = CASES[name].event_shape[0]
    by_x, by_context = dependence(make(name), CASES[name])
    later = torch.ones(features, features).triu(1).bool()
    assert (by_x[later] == 0).all()
    assert (by_x[~later] > 0).all()
    if CASES[name].contextual:
        assert (by_context > 0).all(), "every output, the first included, must see the context"


@pytest.mark.parametrize(
    "name", [n for n in CASES if isinstance(CASES[n].make(), Coupling) and len(case(n).event_shape) == 1]
)
def test_each_coupled_output_depends_on_itself_and_on_the_kept_part(name):
    transform = make(name)
    features, mask = case(name).event_shape[0], transform.mask
    by_x, by_context = dependence(transform, case(name))
    expected = torch.eye(features).bool() | (~mask[:, None] & mask[None, :])
    assert torch.equal(by_x > 0, expected)
    if case(name).contextual:
        assert torch.equal((by_context > 0).all(1), ~mask)


def test_masks_hold_whatever_the_weights():
    """Weights set behind the module's back cannot break the order."""
    transform = make("maf-affine")
    for parameter in transform.parameters():
        parameter.data.fill_(1.0)
    by_x, _ = dependence(transform, CASES["maf-affine"])
    assert (by_x.triu(1) == 0).all()


def test_hidden_degrees_hold_the_lowest_and_the_highest_at_any_width():
    """``arange(H) % (D - 1)`` would drop the last inputs where H < D - 1."""
    for width, features in ((50, 63), (5, 64), (2, 9), (512, 64), (64, 64)):
        for lowest in (0, 1):
            degrees = spread_degrees(width, lowest, features - 1)
            assert degrees[0] == lowest
            assert degrees[-1] == features - 1
            assert (degrees.diff() >= 0).all()
            assert degrees.bincount()[lowest:].max() <= -(-width // (features - lowest)) + 1


def test_log_scales_are_bounded_softly_and_far_out():
    """Not at 1.001, and with a gradient everywhere below the bound."""
    affine = Affine(3.0)
    raw = torch.tensor([0.0, 1.0, 5.0], requires_grad=True)
    log_scale = affine.forward_and_log_det(torch.zeros(3), torch.stack([torch.zeros(3), raw]))[1]
    assert log_scale[2] > 0.9 * 3
    (slope,) = torch.autograd.grad(log_scale.sum(), raw)
    assert slope[0] == 1
    assert (slope > 0.05).all()


@pytest.mark.parametrize("context", [0, CONTEXT])
@pytest.mark.parametrize("hidden", [(60, 60), (20, 20)], ids=str)
def test_jacobians_of_both_directions_are_inverse_over_many_blocks(hidden, context):
    """The transposed solve, over more elements than one block holds."""
    transform = autoregressive(Affine(), 40, hidden, context, residual=True).double()
    randomise(transform)
    z, contexts = torch.randn(40, dtype=torch.float64), torch.randn(context, dtype=torch.float64) if context else None
    x = transform.forward(z, contexts).detach()
    product = jacobian(transform, "forward", z, contexts) @ jacobian(transform, "inverse", x, contexts)
    assert torch.allclose(product, torch.eye(40, dtype=torch.float64), atol=1e-10)


def test_one_parallel_pass_normalizes_and_one_inversion_generates(monkeypatch):
    transform = make("maf-affine")
    calls = []
    for method in ("mapped", "invert"):
        original = getattr(type(transform.net), method)
        monkeypatch.setattr(
            type(transform.net), method, lambda *a, m=method, o=original, **k: (calls.append(m), o(*a, **k))[1]
        )
    with torch.no_grad():
        x = transform.forward(torch.randn(7, 6, dtype=torch.float64))
        assert calls == ["invert"]
        transform.inverse(x)
    assert calls == ["invert", "mapped"]


def test_splines_stay_finite_at_extreme_parameters():
    for scale in (10.0, 1e3, 1e10, 1e30):
        for size in (RationalQuadraticSpline(), RationalQuadraticSpline(bins=3, bound=1.0)):
            params = (scale * torch.randn(size.size, 500)).requires_grad_()
            value = torch.linspace(-6, 6, 500, requires_grad=True)
            for method in (size.forward_and_log_det, size.inverse_and_log_det):
                out, log_det = method(value, params)
                grads = torch.autograd.grad(out.sum() + log_det.sum(), (value, params))
                assert all(torch.isfinite(each).all() for each in (out, log_det, *grads))


def test_a_context_for_all_rows_broadcasts():
    transform = make("maf-affine-context", torch.float32)
    z, context = torch.randn(5, 6), torch.randn(1, CONTEXT)
    with torch.no_grad():
        assert torch.allclose(transform.forward(z, context), transform.forward(z, context.expand(5, -1)), atol=1e-6)
        assert torch.allclose(transform.inverse(z, context), transform.inverse(z, context.expand(5, -1)), atol=1e-6)
        assert transform.forward(z[:0], context[:0]).shape == (0, 6)


def test_mistakes_of_assembly_are_named():
    with pytest.raises(ValueError, match="expected a network of 1 parameters per element, got 2"):
        Autoregressive(Shift(), MADE(4, 2))
    with pytest.raises(ValueError, match=r"expected z of shape \(rows, 4\), got \(5, 3\)"):
        MADE(4, 2).invert(Affine(), torch.randn(5, 3))


def test_iaf_is_the_inverse_of_maf():
    maf = make("maf-affine-context")
    z, context = inputs("maf-affine-context", (9,))
    iaf = Inverse(maf)
    assert (maf.fast, iaf.fast) == ({"inverse"}, {"forward"})
    assert torch.equal(iaf.forward(z, context), maf.inverse(z, context))


def test_context_broadcast_law():
    """A context repeated per row gives what each row alone gives."""
    for name in [n for n in CASES if CASES[n].contextual]:
        transform = make(name)
        z, context = inputs(name, (4,))
        together = transform.forward(z, context)
        alone = torch.stack([transform.forward(z[i], context[i]) for i in range(4)])
        assert relative(together, alone) <= 1e-10


def test_randomise_leaves_no_parameter_at_its_start():
    for name in CASES:
        fresh, moved = CASES[name].make(), CASES[name].make()
        randomise(moved)
        for a, b in zip(fresh.parameters(), moved.parameters(), strict=True):
            assert not torch.equal(a, b)
