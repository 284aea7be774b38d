"""What a newcomer types first works where its meaning is plain; else one line says what was expected."""

import pytest
import torch
from torch import nn

import diffeo
from diffeo.nets import MADE, MLP, ResNet
from diffeo.nets.unet import UNet
from diffeo.transforms import (
    ODE,
    Affine,
    Autoregressive,
    Chain,
    Coupling,
    Dequantize,
    Elementwise,
    Flattened,
    Gaussianize,
    Inverse,
    Logit,
    Rescale,
    Standardize,
    Whiten,
    half_mask,
)

NORMAL = diffeo.StandardNormal(2)


def network(inputs: int = 1, outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, outputs))


@pytest.mark.parametrize("kind", [Standardize, Whiten, Gaussianize, Rescale, Logit, Dequantize])
def test_a_number_is_the_shape_of_vectors(kind):
    one, other = kind(2), kind((2,))
    assert one.event_dim == other.event_dim == 1
    assert {k: v.shape for k, v in one.state_dict().items()} == {k: v.shape for k, v in other.state_dict().items()}


def test_a_number_is_the_shape_of_vectors_elsewhere():
    assert Elementwise("affine", 2).params.shape == (2, 2)
    assert ODE(nn.Linear(2, 2), 2).event_shape == (2,)
    assert diffeo.Flow(NORMAL, Standardize(2), 2, 3).context_shape == (3,)


def test_a_flow_of_a_list_of_masks_that_are_lists_and_plain_networks_learns():
    torch.manual_seed(0)
    x = torch.randn(500, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.2]])
    parts = [
        Coupling(Affine, [True, False], network()),
        Coupling("affine", (False, True), network()),
        Standardize(2),
    ]
    flow = diffeo.Flow(NORMAL, parts)
    assert isinstance(flow.transform, Chain)
    before = diffeo.Flow(NORMAL, nn.ModuleList([Standardize(2)]))  # in training mode: it standardises these rows
    result = diffeo.fit(flow, x, epochs=40, batch_size=100)
    assert result.best_loss < -before.log_prob(x).mean() - 0.5


def test_a_network_without_a_context_is_not_given_one():
    coupling = Coupling("affine", [True, False], network())
    x, context = torch.randn(5, 2), torch.randn(5, 3)
    assert torch.equal(coupling.forward(x, context), coupling.forward(x))
    seeing = Coupling("affine", [True, False], MLP(1, 2, (8,), context=3))
    nn.init.normal_(seeing.net.layers[-1].weight)
    assert not torch.equal(seeing.forward(x, context), seeing.forward(x, context + 1))


def test_convolutions_are_a_network_of_couplings():
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    transform = Coupling("affine", half_mask(4), net, event_dim=3)
    z = torch.randn(3, 4, 5, 5)
    x, log_det = transform.forward_and_log_det(z)
    back, log_det_back = transform.inverse_and_log_det(x)
    assert torch.allclose(back, z, atol=1e-5)
    assert torch.allclose(log_det, -log_det_back, atol=1e-4)


def test_fit_takes_a_flow():
    """By maximum likelihood, and continuous flows by flow matching."""
    x = torch.randn(100, 2)
    for flow, objective in (
        (diffeo.maf(2, hidden=(8,)), diffeo.MaximumLikelihood),
        (diffeo.flow_matching(2, hidden=(8,)), diffeo.FlowMatching),
    ):
        other = diffeo.recipes.build(flow.recipe["name"], flow.recipe["arguments"])
        other.load_state_dict(flow.state_dict())
        diffeo.fit(flow, x, epochs=2)
        diffeo.fit(objective(other), x, epochs=2)
        assert all(torch.equal(a, b) for a, b in zip(flow.parameters(), other.parameters(), strict=True))


MISTAKES = {
    "a shape of words": (lambda: Standardize("ab"), TypeError, r"expected a shape such as 2 or \(3, 8, 8\), got 'ab'"),
    "a fraction": (lambda: Standardize(1.5), TypeError, "expected a shape such as .*, got 1.5"),
    "no shape": (lambda: Elementwise("affine", None), TypeError, "expected a shape such as .*, got None"),
    "a negative shape": (lambda: Rescale(-1), ValueError, r"expected positive event sizes, got \(-1,\)"),
    "a mask of numbers": (
        lambda: Coupling("affine", [1, 0], network()),
        ValueError,
        r"expected a boolean mask such as \[True, False\], got values of torch.int64",
    ),
    "a mask of one kind": (lambda: Coupling("affine", [True] * 2, network()), ValueError, "both True and False"),
    "too many outputs": (
        lambda: Coupling("affine", [True, False], network(1, 3)),
        ValueError,
        r"expected a network of 1 inputs and 2 outputs \(2 for each of 1\), got 1 and 3",
    ),
    "too many inputs": (
        lambda: Coupling("affine", [True, False], network(2, 2)),
        ValueError,
        "expected a network of 1 inputs and 2 outputs .*, got 2 and 2",
    ),
    "widths of an MLP": (
        lambda: Coupling("spline", [True, False, False], MLP(1, 6)),
        ValueError,
        r"expected a network of 1 inputs and 46 outputs \(23 for each of 2\), got 1 and 6",
    ),
    "channels of a ResNet": (
        lambda: Coupling("affine", half_mask(4), ResNet(2, 3), event_dim=3),
        ValueError,
        "expected a network of 2 inputs and 4 outputs .*, got 2 and 3",
    ),
    "widths seen when applied": (
        lambda: Coupling("affine", half_mask(4), nn.Conv2d(2, 3, 1), event_dim=3).forward(torch.randn(2, 4, 3, 3)),
        ValueError,
        r"expected a network of 4 outputs \(2 for each of 2\), got 3",
    ),
    "a class of networks": (lambda: Coupling("affine", [True, False], MLP), TypeError, "expected a network such as"),
    "a network in no order": (
        lambda: Autoregressive("affine", MLP(2, 4)),
        TypeError,
        "expected an autoregressive network such as MADE or WaveNet, got MLP",
    ),
    "one width": (lambda: MLP(2, 2, 16), TypeError, r"expected hidden widths such as \(128, 128\), got 16"),
    "one width of a recipe": (lambda: diffeo.maf(2, hidden=16), TypeError, "expected hidden widths such as"),
    "one width of images": (lambda: diffeo.realnvp((1, 4, 4), hidden=16), TypeError, "expected hidden widths such as"),
    "one width of a U-Net": (lambda: UNet(1, 16), TypeError, "expected hidden widths such as"),
    "one width of a MADE": (lambda: MADE(2, 2, 16), TypeError, "expected hidden widths such as"),
    "a flow of a layer": (
        lambda: diffeo.Flow(NORMAL, nn.Linear(2, 2)),
        TypeError,
        "expected a Transform such as Coupling or Chain, got Linear",
    ),
    "a flow of a class": (lambda: diffeo.Flow(NORMAL, Standardize), TypeError, "got the class Standardize"),
    "a flow of nothing": (lambda: diffeo.Flow(NORMAL, []), ValueError, "expected at least one transform, got none"),
    "a chain of layers": (lambda: Chain([nn.ReLU()]), TypeError, "expected a Transform such as .*, got ReLU"),
    "an inverse of a layer": (lambda: Inverse(nn.ReLU()), TypeError, "expected a Transform such as .*, got ReLU"),
    "a layer flattened": (lambda: Flattened(nn.ReLU()), TypeError, "expected a Transform such as .*, got ReLU"),
    "a number for a base": (
        lambda: diffeo.Flow(2, Standardize(2)),
        TypeError,
        r"expected a base such as StandardNormal\(2\), got int",
    ),
    "another base": (
        lambda: diffeo.Flow(torch.distributions.Normal(0, 1), Standardize(2)),
        TypeError,
        r"expected a base such as StandardNormal\(2\), got Normal",
    ),
    "nothing to train": (
        lambda: diffeo.fit(nn.Linear(2, 2), torch.randn(5, 2)),
        TypeError,
        r"expected an objective such as MaximumLikelihood\(flow\), or a flow, got Linear",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
