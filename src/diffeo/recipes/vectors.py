"""Recipes of vectors; images are flattened, except by RealNVP, which is convolutional on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from diffeo.bases import StandardLogistic, StandardNormal
from diffeo.flow import Flow
from diffeo.nets import MADE, MLP, ResNet
from diffeo.nets.activations import as_widths
from diffeo.recipes.assembly import Features, Preprocess, assemble, by_shape, event_shape, recipe, seen
from diffeo.recipes.images import convolutional, multiscale
from diffeo.transforms import (
    Affine,
    Autoregressive,
    Composed,
    Coupling,
    Elementwise,
    Inverse,
    Permutation,
    RationalQuadraticSpline,
    Scale,
    Transform,
    Univariate,
    UnivariateLike,
    alternating_mask,
    as_univariate,
)

__all__ = ["autoregressive", "iaf", "maf", "nice", "nsf", "realnvp"]

Net = Callable[[int, int], nn.Module]


@recipe(paper={"transforms": 4, "hidden": [1000] * 5, "activation": "relu"})
def nice(
    features: Features,
    context: int = 0,
    *,
    embedding: Sequence[int] = (),
    preset: Literal["paper"] | None = None,
    univariate: UnivariateLike = "shift",
    transforms: int = 4,
    hidden: Sequence[int] = by_shape((128, 128), images=(512, 512, 512)),
    activation: str = "relu",
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """NICE: additive couplings on the odd/even partition, one diagonal rescaling of the noise, logistic prior.

    Dinh et al. 2014, arXiv:1410.8516. One pass of the networks each way.

    Args:
        features: how many columns, or the shape (C, H, W) of an image, which is flattened.
        context: how many numbers the density is conditioned on, 0 for none.
        embedding: widths of a network that reads the context once for all layers, such as ``[128, 128, 32]``; the last
            is how many numbers these see of it. By default none: every layer reads the context itself.
        preset: "paper" is its network for MNIST.
        univariate: the map of each element in a coupling (``as_univariate``).
        transforms: how many couplings.
        hidden: widths of the hidden layers.
        activation: "relu", "silu", "tanh" ...; see ``diffeo.nets.MLP``.
        preprocess: steps from the data inwards, names or pairs (name, arguments).

    Raises:
        ValueError: for fewer than two elements, unknown names, or an embedding without a context.

    Example:
        >>> flow = diffeo.nice(features=4, hidden=(8,))
        >>> z = flow.encode(torch.randn(5, 4))
        >>> sorted(flow.fast)
        ['log_prob', 'sample']
    """
    shape = event_shape(features)
    mapping = as_univariate(univariate)
    net = partial(MLP, hidden=hidden, context=seen(context, embedding), activation=activation, residual=False)
    couplings = _couplings(mapping, math.prod(shape), transforms, net)
    scales = Elementwise(Scale(), (math.prod(shape),))
    return assemble(StandardLogistic(shape), [scales, *couplings], context, preprocess, embedding)


@recipe(
    paper={
        "transforms": 3,
        "hidden": [64] * 8,
        "activation": "relu",
        "scales": 2,
        "kernels": [3, 3],
        "packed": False,
    }
)
def realnvp(
    features: Features,
    context: int = 0,
    *,
    embedding: Sequence[int] = (),
    preset: Literal["paper"] | None = None,
    univariate: UnivariateLike = Affine(3.0),
    transforms: int = by_shape(8, images=2),
    hidden: Sequence[int] = by_shape((128, 128), images=(32, 32)),
    activation: str = by_shape("silu", images="relu"),
    residual: bool = True,
    scales: int = 3,
    kernels: Sequence[int] = (3,),
    packed: bool = True,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """RealNVP: affine couplings on alternating halves, over several scales on images (arXiv:1605.08803).

    One pass of the networks each way.

    Args:
        features: how many columns, or the shape (C, H, W) of an image.
        context: how many numbers the density is conditioned on, 0 for none.
        embedding: widths of a network that reads the context once for all layers, such as ``[128, 128, 32]``; the last
            is how many numbers these see of it. By default none: every layer reads the context itself.
        preset: "paper" is its network for CIFAR-10.
        univariate: the map of each element in a coupling (``as_univariate``).
        transforms: how many couplings; on images, of each kind at each scale (``diffeo.recipes.images.multiscale``).
        hidden: widths of the hidden layers; on images, channels of each block of ``ResNet``, which double with every
            squeeze.
        activation: "relu", "silu", "tanh" ...; see ``diffeo.nets.MLP``.
        residual: add each hidden layer's (or block's) input to its output.
        scales: how many scales an image has at most. Vectors have no use for this, ``kernels`` and ``packed``.
        kernels: sizes of the convolutions in a block.
        packed: whether networks see checkerboards squeezed, at a quarter of the price.
        preprocess: steps from the data inwards, names or pairs (name, arguments).

    Raises:
        ValueError: for fewer than two elements, unknown names, or an embedding without a context.

    Example:
        >>> flow = diffeo.realnvp(features=4, hidden=(8,))
        >>> sorted(flow.fast)
        ['log_prob', 'sample']
        >>> images = diffeo.realnvp(features=(1, 8, 8), hidden=(4,))  # multi-scale and convolutional
        >>> images.sample(2).shape
        torch.Size([2, 1, 8, 8])
    """
    shape = event_shape(features)
    mapping = as_univariate(univariate)
    if len(shape) == 1:
        flat = partial(MLP, hidden=hidden, context=seen(context, embedding), activation=activation, residual=residual)
        layers = _couplings(mapping, math.prod(shape), transforms, flat)
    else:
        net = partial(
            ResNet, context=seen(context, embedding), activation=activation, residual=residual, kernels=kernels
        )

        def couple(mask: Tensor, squeezes: int) -> Coupling:
            return convolutional(mapping, mask, [width * 2**squeezes for width in as_widths(hidden)], net)

        layers = multiscale(shape, scales, transforms, packed, couple)
    return assemble(StandardNormal(shape), layers, context, preprocess, embedding)


@recipe(paper={"transforms": 5, "hidden": [1024, 1024], "activation": "relu", "residual": False})
def maf(
    features: Features,
    context: int = 0,
    *,
    embedding: Sequence[int] = (),
    preset: Literal["paper"] | None = None,
    univariate: UnivariateLike = "affine",
    transforms: int = 5,
    hidden: Sequence[int] = by_shape((128, 128), images=(512, 512)),
    activation: str = "silu",
    residual: bool = True,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """MAF: affine autoregressive layers, the order reversed between them (arXiv:1705.07057).

    Scoring is one pass of the networks; sampling goes over the elements once.

    Args:
        features: how many columns, or the shape (C, H, W) of an image, which is flattened.
        context: how many numbers the density is conditioned on, 0 for none.
        embedding: widths of a network that reads the context once for all layers, such as ``[128, 128, 32]``; the last
            is how many numbers these see of it. By default none: every layer reads the context itself.
        preset: "paper" is its network for MNIST.
        univariate: the map of each element given those before it (``as_univariate``).
        transforms: how many layers.
        hidden: widths of the hidden layers of each ``MADE``.
        activation: "relu", "silu", "tanh" ...; see ``diffeo.nets.MLP``.
        residual: add each hidden layer's input to its output.
        preprocess: steps from the data inwards, names or pairs (name, arguments).

    Raises:
        ValueError: for sizes that are not positive, unknown names, or an embedding without a context.

    Example:
        >>> flow = diffeo.maf(features=3, hidden=(8,))
        >>> flow.fast
        frozenset({'log_prob'})
        >>> flow.log_prob(flow.sample(5)).shape  # sampling is incremental: about as fast
        torch.Size([5])
    """
    shape = event_shape(features)
    mapping = as_univariate(univariate)
    net = partial(MADE, hidden=hidden, context=seen(context, embedding), activation=activation, residual=residual)
    layers = autoregressive(mapping, math.prod(shape), transforms, net)
    return assemble(StandardNormal(shape), layers, context, preprocess, embedding)


@recipe()
def iaf(
    features: Features,
    context: int = 0,
    *,
    embedding: Sequence[int] = (),
    univariate: UnivariateLike = "affine",
    transforms: int = 5,
    hidden: Sequence[int] = (128, 128),
    activation: str = "silu",
    residual: bool = True,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """IAF: the inverse of MAF's layers (arXiv:1606.04934).

    Sampling is one pass of the networks, and the samples' density comes with it; scoring other rows goes over their
    elements once.

    Args:
        features: how many columns, or the shape (C, H, W) of an image, which is flattened.
        context: how many numbers the density is conditioned on, 0 for none.
        embedding: widths of a network that reads the context once for all layers, such as ``[128, 128, 32]``; the last
            is how many numbers these see of it. By default none: every layer reads the context itself.
        univariate: the map of each element given those before it (``as_univariate``).
        transforms: how many layers.
        hidden: widths of the hidden layers of each ``MADE``.
        activation: "relu", "silu", "tanh" ...; see ``diffeo.nets.MLP``.
        residual: add each hidden layer's input to its output.
        preprocess: steps from the data inwards, names or pairs (name, arguments).

    Raises:
        ValueError: for sizes that are not positive, unknown names, or an embedding without a context.

    Example:
        >>> flow = diffeo.iaf(features=3, hidden=(8,), preprocess=())
        >>> flow.fast
        frozenset({'sample'})
        >>> x, log_prob = flow.sample_and_log_prob(5)  # for gradients through samples
        >>> x.requires_grad
        True
    """
    shape = event_shape(features)
    mapping = as_univariate(univariate)
    net = partial(MADE, hidden=hidden, context=seen(context, embedding), activation=activation, residual=residual)
    layers = autoregressive(mapping, math.prod(shape), transforms, net)
    return assemble(StandardNormal(shape), [Inverse(layer) for layer in layers], context, preprocess, embedding)


@recipe()
def nsf(
    features: Features,
    context: int = 0,
    *,
    embedding: Sequence[int] = (),
    structure: Literal["autoregressive", "coupling", "inverse"] = "autoregressive",
    univariate: UnivariateLike | None = None,
    transforms: int = 5,
    hidden: Sequence[int] = (128, 128),
    activation: str = "silu",
    residual: bool = True,
    bins: int = 8,
    bound: float = 5.0,
    affine: bool = False,
    dropout: float = 0.0,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """NSF: rational-quadratic splines in layers of any structure (Durkan et al. 2019, arXiv:1906.04032).

    Args:
        features: how many columns, or the shape (C, H, W) of an image, which is flattened.
        context: how many numbers the density is conditioned on, 0 for none.
        embedding: widths of a network that reads the context once for all layers, such as ``[128, 128, 32]``; the last
            is how many numbers these see of it. By default none: every layer reads the context itself.
        structure: "autoregressive", where scoring is one pass of the networks; "inverse", where sampling is (it is to
            autoregressive what IAF is to MAF); or "coupling", where both are.
        univariate: the map of each element (``as_univariate``), in place of the spline of ``bins`` and ``bound``.
        transforms: how many layers.
        hidden: widths of the hidden layers.
        activation: "relu", "silu", "tanh" ...; see ``diffeo.nets.MLP``.
        residual: add each hidden layer's input to its output.
        bins: of the spline.
        bound: half the side of the spline's box.
        affine: whether every map is placed and scaled by an affine map as well: where one column nearly determines
            another, that is what learns it.
        dropout: for the autoregressive structure alone, the fraction of earlier elements that a network does not see in
            training, against overfitting (see ``Autoregressive``).
        preprocess: steps from the data inwards, names or pairs (name, arguments).

    Raises:
        ValueError: for sizes that are not positive, unknown names, dropout with another structure, or an embedding
            without a context.

    Example:
        >>> flow = diffeo.nsf(features=3, context=2, hidden=(8,), affine=True)
        >>> flow.log_prob(torch.randn(5, 3), torch.randn(5, 2)).shape
        torch.Size([5])
        >>> sorted(diffeo.nsf(features=3, structure="coupling").fast)
        ['log_prob', 'sample']
    """
    if structure not in ("autoregressive", "coupling", "inverse"):
        raise ValueError(f"expected structure among autoregressive, coupling, inverse, got {structure!r}")
    if dropout and structure != "autoregressive":
        raise ValueError(f"expected no dropout for structure {structure!r}, got {dropout}")
    mapping = RationalQuadraticSpline(bins, bound) if univariate is None else as_univariate(univariate)
    if affine:
        mapping = Composed(mapping, Affine(2.0))
    shape = event_shape(features)
    kind = MLP if structure == "coupling" else MADE
    net = partial(kind, hidden=hidden, context=seen(context, embedding), activation=activation, residual=residual)
    if structure == "coupling":
        layers = _couplings(mapping, math.prod(shape), transforms, net)
    else:
        layers = autoregressive(mapping, math.prod(shape), transforms, net, dropout)
    if structure == "inverse":
        layers = [Inverse(layer) for layer in layers]
    return assemble(StandardNormal(shape), layers, context, preprocess, embedding)


def _couplings(univariate: Univariate, features: int, transforms: int, net: Net) -> list[Transform]:
    """Couplings of alternating halves, each with a network from its inputs and outputs."""
    if features < 2:
        raise ValueError(f"expected features >= 2 for a coupling, got {features}; an autoregressive recipe takes 1")
    layers: list[Transform] = []
    for index in range(transforms):
        mask = alternating_mask(features, flip=index % 2 == 1)
        kept = int(mask.sum())
        layers.append(Coupling(univariate, mask, net(kept, univariate.size * (features - kept))))
    return layers


def autoregressive(
    univariate: Univariate, features: int, transforms: int, net: Net, dropout: float = 0.0
) -> list[Transform]:
    """Autoregressive layers, the order reversed between them, each with a network from features and size of the map."""
    layers: list[Transform] = []
    for index in range(transforms):
        if index:
            layers.append(Permutation.reversing(features))
        layers.append(Autoregressive(univariate, net(features, univariate.size), dropout))
    return layers
