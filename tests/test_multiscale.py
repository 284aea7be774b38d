"""Images: what the views move, what the networks see, what the recipes build, and that bits per dimension are right."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import diffeo
from cases import CONTEXT, convolutional, make, randomise
from diffeo import flow as flow_module
from diffeo.flow import bits_per_dim
from diffeo.nets import MLP, ResNet
from diffeo.nets.precision import bfloat16
from diffeo.transforms import (
    LU,
    ActNorm,
    Affine,
    Chain,
    Coupling,
    Dequantize,
    Elementwise,
    Flattened,
    Logit,
    Part,
    Permutation,
    Rescale,
    Scale,
    Shift,
    Squeezed,
    Transform,
    alternating_mask,
    checkerboard_mask,
    half_mask,
    latent_scales,
)
from diffeo.transforms.multiscale import squeeze, unsqueeze

# ---- Views ----------------------------------------------------------------------------------------------------------


def test_squeezing_moves_pixels_as_drawn():
    x = torch.tensor([[0, 2, 10, 12], [3, 1, 13, 11], [20, 22, 30, 32], [23, 21, 33, 31]])[None]
    squeezed = squeeze(x)
    assert squeezed.shape == (4, 2, 2)
    assert squeezed[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert squeezed[0].tolist() == [[0, 10], [20, 30]]
    x = torch.randn(5, 2, 3, 6, 4)
    assert torch.equal(unsqueeze(squeeze(x)), x)
    colours = squeeze(x[0, 0])[:3]
    assert torch.equal(colours, x[0, 0, :, ::2, ::2]), "the channels of one pixel stay together"


@pytest.mark.parametrize("flip", [False, True])
def test_half_of_the_squeezed_channels_are_one_colour_of_the_checkerboard(flip):
    board = checkerboard_mask((3, 4, 6), flip=flip)
    assert board[:, 0, 0].all() ^ flip
    assert (board[:, 1:] ^ board[:, :-1]).all()
    assert (board[..., 1:] ^ board[..., :-1]).all()
    assert torch.equal(squeeze(board), half_mask(12, flip=flip)[:, None, None].expand(12, 2, 3))
    packed = Squeezed(convolutional(Affine(), half_mask(12, flip=flip)))
    randomise(packed)
    z = torch.randn(2, 3, 4, 6)
    assert torch.equal((packed.forward(z) == z).all(0), board)


def test_a_part_passes_the_other_channels():
    part = Part(LU(2, event_dim=3), 2)
    randomise(part)
    z = torch.randn(7, 3, 4, 4)
    x, log_det = part.forward_and_log_det(z)
    expected, inner = part.transform.forward_and_log_det(z[:, :2])
    assert torch.equal(x[:, 2], z[:, 2])
    assert torch.equal(x[:, :2], expected)
    assert torch.equal(log_det, inner)


def test_a_flattened_transform_sees_rows_of_pixels():
    maf = make("maf-wide")
    z = torch.randn(3, 2, 4, 8, dtype=torch.float64)
    assert torch.equal(Flattened(maf).forward(z).flatten(1), maf.forward(z.flatten(1)))
    assert (Flattened(maf).fast, Squeezed(LU(4, event_dim=3)).fast) == ({"inverse"}, {"forward", "inverse"})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Squeezed(LU(4, event_dim=3)).forward(torch.randn(2, 1, 4, 5)), "expected an even height and width"),
        (lambda: Squeezed(LU(4, event_dim=3)).inverse(torch.randn(2, 1, 3, 4)), "to squeeze, got 3 x 4"),
        (lambda: Part(LU(3, event_dim=3), 3).forward(torch.randn(2, 2, 4, 4)), "expected at least 3 channels, got 2"),
        (lambda: Part(LU(3), 0), "expected channels >= 1, got 0"),
        (lambda: Flattened(LU(3, event_dim=3)), "expected a transform of events of rank up to 1, got 3"),
        (lambda: ResNet(1, 0), "expected positive sizes"),
        (lambda: ResNet(1, 1, hidden=()), "expected positive sizes"),
        (lambda: ResNet(1, 1, kernels=(3, 2)), r"expected odd kernel sizes, got \(3, 2\)"),
        (lambda: ResNet(1, 1, activation="sigmoid"), "expected an activation among"),
        (lambda: Rescale((1,), low=1.0, high=1.0), "expected low < high, got 1.0 and 1.0"),
        (lambda: Rescale((1,), high=math.inf), "expected low < high"),
        (lambda: bits_per_dim(torch.zeros(1), 0), "expected dims >= 1, got 0"),
        (lambda: diffeo.realnvp((3, 4)), r"expected features as a number or as \(channels, height, width\)"),
        (lambda: diffeo.realnvp((1, 0, 4)), "expected"),
        (lambda: diffeo.realnvp((3, 1, 1)), "expected a mask with both True and False"),
        (lambda: diffeo.glow((1, 7, 8)), r"even sides for glow, got \(1, 7, 8\)"),
        (lambda: diffeo.glow(8), "even sides for glow"),
        (lambda: diffeo.glow((1, 4, 4), scales=0), "expected at least one scale, got 0"),
        (lambda: diffeo.realnvp((1, 4, 4), preset="huge"), "expected a preset among paper for 'realnvp', got 'huge'"),
        (
            lambda: diffeo.recipes.build("iaf", {"features": 3, "preset": "paper"}),
            "recipe 'iaf' takes no argument 'preset'",
        ),
        (lambda: diffeo.recipes.build("realnvp", {"features": [1, 4, "4"]}), "recipe 'realnvp' cannot be made"),
        (
            lambda: diffeo.recipes.build("realnvp", {"features": 3, "transforms": True}),
            "a whole number from 1 on as trans",
        ),
        (
            lambda: diffeo.recipes.build("maf", {"features": 3, "univariate": {"name": "affine", "bound": 1e308}}),
            "1e-6",
        ),
        (lambda: Rescale((1,), high=1e308), "expected ends within"),
        (lambda: diffeo.transforms.Dequantize((2,), [0.0, 0.0]), "nothing to spread"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- Networks and couplings -----------------------------------------------------------------------------------------


def network(**more) -> ResNet:
    net = ResNet(2, 3, **{"hidden": (4, 4), "context": CONTEXT, "activation": "silu", **more}).double()
    randomise(net)
    return net


def test_a_fresh_network_is_zero_and_learns():
    net = ResNet(2, 3, context=CONTEXT)
    out = net(torch.randn(4, 2, 5, 6), torch.randn(4, CONTEXT))
    assert out.shape == (4, 3, 5, 6)
    assert (out == 0).all()
    out.sum().backward()
    assert net.last.normalized.gain.grad.abs().min() > 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_networks_take_any_batch_and_any_layout():
    net = network()
    x, context = torch.randn(2, 3, 2, 5, 6, dtype=torch.float64), torch.randn(2, 3, CONTEXT, dtype=torch.float64)
    out = net(x, context)
    assert out.shape == (2, 3, 3, 5, 6)
    assert torch.allclose(net(x[1, 2], context[1, 2]), out[1, 2])
    assert torch.allclose(net(x[0].mT.contiguous().mT, context[0]), out[0])
    assert torch.allclose(net(x[0], context[:1, 0]), net(x[0], context[:1, 0].expand(3, -1)))
    assert net(x[:0], context[:0]).shape == (0, 3, 3, 5, 6)
    assert torch.isfinite(net(1e30 * x, 1e30 * context)).all()


@pytest.mark.parametrize(("kernels", "blocks", "reach"), [((3, 1), 1, 3), ((3, 3), 1, 4), ((1,), 1, 2), ((3, 1), 2, 4)])
def test_networks_see_as_far_as_their_kernels(kernels, blocks, reach):
    net = network(kernels=kernels, hidden=(4,) * blocks, context=0)
    x = torch.randn(16, 2, 13, 13, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(net(x)[:, :, 6, 6].sum(), x)
    seen = grad.abs().amax((0, 1)) > 0
    distance = (torch.arange(13) - 6).abs()
    assert torch.equal(seen, torch.maximum(distance[:, None], distance) <= reach)


def test_the_context_enters_every_block():
    net = network(hidden=(4, 4, 5), residual=False)
    for kept in range(3):
        alone = copy.deepcopy(net)
        for index, block in enumerate(alone.blocks):
            if index != kept:
                block.context.weight.data.zero_()
        x, context = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.randn(2, CONTEXT, dtype=torch.float64)
        assert ((alone(x, context) - alone(x, 2 * context)).abs() > 0).all()


@pytest.mark.parametrize("name", ["coupling-channels-context", "coupling-checkerboard-context"])
def test_each_coupled_element_sees_the_kept_ones_and_the_context(name):
    transform = make(name)
    mask = transform.mask
    shape = (3, 2, 4) if mask.dim() == 1 else mask.shape
    kept = (mask[:, None, None] if mask.dim() == 1 else mask).expand(shape).flatten()
    by_x, by_context = torch.zeros(len(kept), len(kept)), torch.zeros(len(kept), CONTEXT)
    for _ in range(20):
        x, context = torch.randn(shape, dtype=torch.float64), torch.randn(CONTEXT, dtype=torch.float64)
        jacobians = torch.autograd.functional.jacobian(transform.inverse, (x, context))
        by_x += jacobians[0].reshape(len(kept), len(kept)).abs()
        by_context += jacobians[1].reshape(len(kept), CONTEXT).abs()
    allowed = torch.eye(len(kept)).bool() | (~kept[:, None] & kept[None, :])
    assert (by_x[~allowed] == 0).all()
    assert (by_x[allowed] > 0).all(), "in a small image every kept element is within reach"
    assert torch.equal((by_context > 0).all(1), ~kept)
    assert torch.equal((by_context > 0).any(1), ~kept)


def test_the_channel_matrix_is_a_1x1_convolution():
    lu = make("lu-channels")
    z = torch.randn(5, 3, 4, 6, dtype=torch.float64)
    matrix = (lu.lower.tril(-1) + torch.eye(3)) @ (lu.upper.triu(1) + lu.log_diagonal.exp().diag())
    x, log_det = lu.forward_and_log_det(z)
    assert torch.allclose(x, F.conv2d(z, matrix[:, :, None, None], lu.bias))
    assert torch.allclose(log_det, (4 * 6 * matrix.slogdet()[1]).expand(5))


def test_actnorm_of_channels_initialises_once_and_survives_loading():
    x = 5 + torch.randn(64, 3, 4, 6) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    actnorm = ActNorm(3, event_dim=3).train()
    z, log_det = actnorm.inverse_and_log_det(x)
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(z.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)
    assert torch.allclose(log_det, -24 * x.std((0, 2, 3), correction=0).log().sum().expand(64))
    loaded = ActNorm(3, event_dim=3).train()
    loaded.load_state_dict(copy.deepcopy(actnorm.state_dict()))
    for each in (actnorm, loaded):
        assert torch.equal(each.inverse(x[:1]), z[:1])
        each.inverse(7 * x)
        assert torch.equal(each.inverse(x), z)


# ---- Recipes --------------------------------------------------------------------------------------------------------

SMALL = {"hidden": [6], "activation": "silu", "transforms": 2}
IMAGE_FLOWS = {
    "realnvp": ("realnvp", (1, 8, 8), SMALL),
    "realnvp-masked": ("realnvp", (3, 4, 8), {**SMALL, "packed": False, "kernels": [3, 3]}),
    "realnvp-odd": ("realnvp", (1, 6, 7), SMALL),
    "glow": ("glow", (1, 8, 12), SMALL),
    "nice": ("nice", (1, 5, 5), SMALL),
    "maf": ("maf", (1, 4, 4), SMALL),
    "iaf": ("iaf", (2, 3, 3), SMALL),
    "nsf": ("nsf", (1, 4, 3), SMALL),
    "nsf-coupling": ("nsf", (1, 4, 3), {**SMALL, "structure": "coupling"}),
}


def image_flow(name: str, context: int = 0, dtype: torch.dtype = torch.float64, **more) -> diffeo.Flow:
    recipe, shape, arguments = IMAGE_FLOWS[name]
    flow = diffeo.recipes.build(recipe, {"features": shape, "context": context, **arguments, **more})
    randomise(flow)
    return flow.to(dtype).eval()


@pytest.mark.parametrize("name", IMAGE_FLOWS)
@pytest.mark.parametrize("context", [0, 3])
def test_image_flows_keep_all_promises_of_flows(name, context):
    flow = image_flow(name, context)
    shape = IMAGE_FLOWS[name][1]
    contexts = torch.randn(4, context) if context else None
    batch = (4,) if context else ()
    x, log_prob = flow.sample_and_log_prob((2, 3), contexts)
    assert x.shape == (2, 3, *batch, *shape)
    assert torch.allclose(flow.log_prob(x, contexts), log_prob, atol=1e-7)
    z = flow.encode(x, contexts)
    assert z.shape == x.shape, "latents of images are images"
    assert torch.allclose(flow.decode(z, contexts), x, atol=1e-7)
    if context:
        assert (flow.log_prob(x[0, 0, 0], contexts[:2]).diff().abs() > 0).all(), "the context must matter"
    again = diffeo.recipes.build(flow.recipe["name"], flow.recipe["arguments"]).to(torch.float64).eval()
    again.load_state_dict(copy.deepcopy(flow.state_dict()))
    assert again.recipe == flow.recipe
    assert torch.equal(again.log_prob(x, contexts), flow.log_prob(x, contexts))
    assert flow.log_prob(x[:0], contexts).shape == (0, 3, *batch)


@pytest.mark.parametrize("name", IMAGE_FLOWS)
def test_a_fresh_image_flow_is_the_standardised_base_and_sets_itself_once(name):
    recipe, shape, arguments = IMAGE_FLOWS[name]
    flow = diffeo.recipes.build(recipe, {"features": shape, **arguments}).train()
    x = 5 * torch.randn(300, *shape) + 100
    with torch.no_grad():
        flow.log_prob(x)
    assert all(value for key, value in flow.state_dict().items() if key.endswith("initialized"))
    state = copy.deepcopy(flow.state_dict())
    with torch.no_grad():
        flow.log_prob(9 * x)
    assert all(torch.equal(value, state[key]) for key, value in flow.state_dict().items())
    z = flow.eval().encode(x)
    assert z.mean().item() == pytest.approx(0, abs=1e-3)
    assert z.std().item() == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("packed", [True, False])
def test_realnvp_integrates_to_one(packed):
    """Two pixels, of which each checkerboard coupling moves one."""
    flow = diffeo.realnvp((1, 1, 2), hidden=[6], activation="silu", packed=packed)
    randomise(flow)
    flow = flow.double().eval()
    reach = 1 + 1.3 * flow.sample(20000).abs().max().item()
    side = torch.linspace(-reach, reach, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side).reshape(-1, 1, 1, 2)
    total = flow.log_prob(grid).logsumexp(0).exp() * (side[1] - side[0]) ** 2
    assert abs(total.item() - 1) < 1e-3


def parts(module: torch.nn.Module, kind: type) -> list:
    return [each for each in module.modules() if isinstance(each, kind)]


@pytest.mark.parametrize("packed", [True, False])
def test_realnvp_has_the_layout_of_its_paper(packed):
    flow = diffeo.realnvp((1, 28, 28), transforms=3, hidden=[4], packed=packed)
    couplings = parts(flow, Coupling)
    assert len(couplings) == (3 + 3) + (3 + 3) + 4
    assert len(parts(flow, ActNorm)) == len(couplings)
    assert [part.channels for part in parts(flow, Part)] == [2, 4]
    boards = [each for each in couplings if each.mask.dim() == 3]
    assert {tuple(each.mask.shape) for each in boards} == (
        {(4, 7, 7)} if packed else {(1, 28, 28), (2, 14, 14), (4, 7, 7)}
    )
    assert sum(torch.equal(each.mask, alternating_mask(4)) for each in couplings) == 2
    assert sum(torch.equal(each.mask, alternating_mask(4, flip=True)) for each in couplings) == 1
    widths = sorted({each.net.last.in_channels for each in couplings})
    assert widths == ([8, 16] if packed else [4, 8, 16])


@pytest.mark.parametrize(
    ("recipe", "shape", "arguments", "counts"),
    [
        ("realnvp", (1, 28, 28), {}, [392, 196, 196]),
        ("realnvp", (1, 28, 28), {"scales": 1}, [784]),
        ("realnvp", (1, 28, 28), {"scales": 9, "packed": False}, [392, 196, 196]),
        ("realnvp", (3, 30, 30), {}, [1350, 1350]),
        ("realnvp", (1, 7, 8), {}, [56]),
        ("realnvp", (3, 32, 32), {"preset": "paper", "hidden": [4]}, [1536, 1536]),
        ("glow", (1, 28, 28), {}, [392, 392]),
        ("glow", (3, 32, 32), {}, [1536, 768, 768]),
        ("nice", (1, 8, 8), {}, [64]),
    ],
)
def test_scales_follow_from_divisibility(recipe, shape, arguments, counts):
    flow = diffeo.recipes.build(recipe, {"features": shape, **arguments})
    scales = latent_scales(flow.transform, flow.event_shape)
    assert scales.shape == shape
    assert scales.flatten().bincount().tolist() == counts


@pytest.mark.parametrize("packed", [True, False])
def test_latent_scales_are_those_that_parts_pass_on(packed):
    flow = diffeo.realnvp((1, 8, 8), hidden=[4], packed=packed, preprocess=())
    for part in parts(flow, Part):
        moved = ActNorm(part.channels, event_dim=3)
        torch.nn.init.constant_(moved.bias, 1000.0)
        part.transform = Chain([part.transform, moved])
    x = flow.decode(torch.zeros(1, 8, 8))  # nothing else does anything yet
    assert torch.equal((x / 1000).round().long(), latent_scales(flow.transform, flow.event_shape))


def test_glow_steps_are_couplings_matrices_and_norms():
    flow = diffeo.glow((3, 8, 8), transforms=5, hidden=[4])
    for kind in (Coupling, LU, ActNorm, Permutation):
        assert len(parts(flow, kind)) == 3 * 5
    orders = [tuple(each.order.tolist()) for each in parts(flow, Permutation)]
    assert len(set(orders)) == len(orders)


def test_presets_are_named_arguments():
    paper = diffeo.recipes.build("realnvp", {"features": [3, 8, 8], "preset": "paper", "hidden": [5]})
    arguments = paper.recipe["arguments"]
    assert (arguments["kernels"], arguments["scales"], arguments["packed"]) == ([3, 3], 2, False)
    assert arguments["hidden"] == [5], "what is given replaces the preset's"
    assert "preset" not in arguments
    assert diffeo.realnvp((3, 8, 8)).recipe["arguments"]["transforms"] == 2
    assert diffeo.realnvp(8).recipe["arguments"]["transforms"] == 8, "vectors have other defaults than images"
    maf = diffeo.maf(features=(1, 4, 4), preset="paper").recipe["arguments"]
    assert (maf["transforms"], maf["hidden"], maf["activation"], maf["residual"]) == (5, [1024, 1024], "relu", False)
    glow = diffeo.glow((1, 4, 4), preset="paper", transforms=1).recipe["arguments"]
    assert (glow["scales"], glow["hidden"], glow["kernels"], glow["residual"]) == (3, [512], [1], False)


def test_nice_is_that_of_its_paper():
    flow = diffeo.nice((1, 28, 28), preset="paper", preprocess=[["dequantize", {}], ["rescale", {"high": 256}]])
    assert isinstance(flow.base, diffeo.bases.StandardLogistic)
    flattened, rescale, dequantize = flow.transform
    assert isinstance(rescale, Rescale)
    assert isinstance(dequantize, Dequantize)
    scales, *couplings = flattened.transform
    assert isinstance(scales, Elementwise)
    assert isinstance(scales.univariate, Scale)
    assert len(couplings) == 4
    for index, coupling in enumerate(couplings):
        assert isinstance(coupling.univariate, Shift)
        assert torch.equal(coupling.mask, alternating_mask(784, flip=index % 2 == 1))
        assert isinstance(coupling.net, MLP)
        assert coupling.net.activation is F.relu
        assert [layer.out_features for layer in coupling.net.layers] == [1000] * 5 + [392]
    randomise(scales)
    x = torch.randint(256, (5, 1, 28, 28)).float()
    log_det = flow.transform.inverse_and_log_det(x)[1]
    by_hand = -scales.params.sum() - 784 * math.log(256)
    assert torch.allclose(log_det, by_hand.expand(5)), "couplings preserve volume"


@pytest.mark.parametrize("name", ["realnvp", "realnvp-masked", "realnvp-odd", "glow"])
def test_large_weights_stay_finite(name):
    """Log-scales and the networks' inputs are softly bounded, however large the weights and wherever the data."""
    flow = image_flow(name, 3, torch.float32)
    with torch.no_grad():
        for net in parts(flow, ResNet):
            for parameter in net.parameters():
                parameter.mul_(100)
    context = torch.randn(50, 3)
    x = flow.sample((), context)
    assert torch.isfinite(x).all()
    x = torch.randn_like(x)
    x[0], x[1, ..., 0], context[2] = 1e10, -1e30, 1e38
    z = flow.encode(x, context)
    log_prob = flow.log_prob(x, context)
    assert not torch.isnan(log_prob).any()
    assert (log_prob < math.inf).all()
    assert torch.isfinite(log_prob[2:]).all()
    assert torch.isfinite(z[2:]).all()
    objective = diffeo.MaximumLikelihood(flow)(x[2:], context[2:]).mean()
    objective.backward()
    assert all(torch.isfinite(p.grad).all() for p in flow.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["realnvp", "glow", "nice", "maf"])
def test_networks_multiply_in_bfloat16_and_maps_never(name):
    """Gradients reach every weight; what is added up over an image stays in float32."""
    flow = image_flow(name, dtype=torch.float32).train()
    x = flow.sample(20)
    exact = flow.log_prob(x)
    with bfloat16():
        z, log_det = flow.transform.inverse_and_log_det(x)
        rough = flow.log_prob(x)
    assert z.dtype == log_det.dtype == rough.dtype == torch.float32
    assert not torch.equal(rough, exact), "the networks must have been asked"
    assert ((rough - exact).abs() / (1 + exact.abs())).max() < 0.05
    if name == "nice":  # whose log-determinant knows no network
        assert torch.equal(log_det, flow.transform.inverse_and_log_det(x)[1])
    (-rough.mean()).backward()
    for parameter in flow.parameters():
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()
    assert torch.equal(flow.log_prob(x), exact), "outside the block nothing has changed"


def test_images_are_taken_in_chunks_of_so_many_elements(monkeypatch):
    flow = image_flow("realnvp")
    x = flow.sample(10)
    sizes = []
    original = Chain.inverse_and_log_det
    monkeypatch.setattr(
        Chain, "inverse_and_log_det", lambda self, x, c=None: (sizes.append(len(x)), original(self, x, c))[1]
    )
    monkeypatch.setattr(flow_module, "_ELEMENTS", 4 * 64)
    with torch.no_grad():
        whole = flow.train().log_prob(x)
        assert max(sizes) == 10
        sizes.clear()
        assert torch.allclose(flow.eval().log_prob(x), whole)
        assert max(sizes) == 4


# ---- Bits per dimension ---------------------------------------------------------------------------------------------


def test_a_uniform_model_has_exactly_eight_bits():
    shape = (3, 4, 5)
    pixels = torch.randint(256, (20, *shape))
    for transform in (Chain([Rescale(shape, 0, 256), Dequantize(shape)]), Dequantize(shape)):
        high = 1.0 if isinstance(transform, Chain) else 256.0
        flow = diffeo.Flow(diffeo.bases.Uniform(shape, 0.0, high), transform)
        for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
            bits = bits_per_dim(flow.to(dtype).log_prob(pixels), 60)
            assert (bits - 8).abs().max().item() <= tolerance
        sample = flow.sample(2000)
        assert (sample.min(), sample.max()) == (0, 255)
        assert torch.equal(sample, sample.round())


def log_det(transform: Transform, x: torch.Tensor) -> torch.Tensor:
    return transform.inverse_and_log_det(x)[1]


def test_jacobians_of_preprocessing_equal_hand_computation():
    shape, alpha = (2, 3, 4), 0.05
    x = 256 * torch.rand(6, *shape, dtype=torch.float64)
    assert (log_det(Dequantize(shape).double(), x.floor()) == 0).all()
    assert torch.allclose(log_det(Rescale(shape, 0, 256), x), torch.full((6,), -24 * math.log(256)).double())
    p = alpha + (1 - 2 * alpha) * x / 256
    by_hand = (math.log((1 - 2 * alpha) / 256) - p.log() - (1 - p).log()).sum((1, 2, 3))
    assert torch.allclose(log_det(Logit(shape, 0, 256, alpha), x), by_hand)
    both = Chain([Logit(shape, alpha=alpha), Rescale(shape, 0, 256)])
    assert torch.allclose(log_det(both, x), by_hand)
    assert torch.allclose(both.inverse(x), Logit(shape, 0, 256, alpha).inverse(x))


PREPROCESSED = {
    "rescale": [["dequantize", {}], ["rescale", {"low": 0, "high": 256}]],
    "logit": [["dequantize", {}], ["logit", {"low": 0, "high": 256, "alpha": 0.05}]],
    "both": ["dequantize", ["rescale", {"high": 256}], ["logit", {"alpha": 1e-6}]],
}


@pytest.mark.parametrize("name", PREPROCESSED)
@pytest.mark.parametrize("recipe", ["realnvp", "glow", "nice"])
def test_images_of_bytes_are_scored_and_sampled(recipe, name):
    flow = diffeo.recipes.build(recipe, {"features": (1, 8, 8), "preprocess": PREPROCESSED[name], **SMALL}).train()
    x = torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8)
    x[0], x[1] = 0, 255
    flow.log_prob(x)
    bits = bits_per_dim(flow.eval().log_prob(x), 64)
    assert torch.isfinite(bits).all()
    torch.manual_seed(1)
    scaled = x + torch.rand(x.shape)  # the draw of dequantisation
    torch.manual_seed(1)
    steps = list(flow.transform)[:-1]
    z, log_det = Chain(steps).inverse_and_log_det(scaled)
    assert torch.allclose(flow.log_prob(x), flow.base.log_prob(z) + log_det)
    sample = flow.sample(100)
    assert torch.equal(sample, sample.round())
    if name != "rescale":  # a logit's margin alpha reaches as far beyond both ends
        margin = math.ceil(256 * 0.05 / 0.9) if name == "logit" else 0
        assert sample.min() >= -margin
        assert sample.max() <= 255 + margin
