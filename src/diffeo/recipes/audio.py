"""Recipes of audio: one channel of T samples, an example of shape (T,)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch

from diffeo.bases import Base, StandardLogistic, StandardNormal
from diffeo.flow import Flow
from diffeo.nets import WaveNet
from diffeo.recipes.assembly import Features, Preprocess, event_shape, preprocessing, recipe
from diffeo.transforms import (
    Affine,
    Autoregressive,
    Chain,
    Inverse,
    MixtureOfLogistics,
    Standardize,
    Transform,
    UnivariateLike,
    as_univariate,
)

__all__ = ["parallel_wavenet", "wavenet"]


@recipe()
def wavenet(
    features: Features,
    context: int = 0,
    *,
    channels: int = 32,
    layers: int = 8,
    cycles: int = 2,
    kernel: int = 2,
    skip: int = 64,
    hop: int = 80,
    head: Literal["gaussian", "logistics"] = "gaussian",
    components: int = 5,
    bound: float = 9.0,
    univariate: UnivariateLike | None = None,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """WaveNet as a density: one autoregressive layer over time (van den Oord et al. 2016, arXiv:1609.03499).

    Scoring and encoding are one pass of the network; sampling goes sample by sample.

    Args:
        features: the number of samples T; ``Flow.resized`` gives the same model another one.
        context: channels of a context of shape (context, ceil(T / hop)), 0 for none.
        channels: width of the layers. This and the arguments to ``hop`` are those of ``diffeo.nets.WaveNet``.
        layers: per cycle.
        cycles: how often the dilations start again at 1.
        kernel: taps of each convolution.
        skip: width of the two layers before the output.
        hop: samples per frame of context.
        head: the density of a sample, "gaussian" or a mixture of "logistics"; the noise is normal or logistic.
        components: of the mixture.
        bound: of the log-scale, softly, around that of the data: digital silence has no infinite density.
        univariate: the map of each sample (``as_univariate``), in place of the one of ``head`` and ``bound``.
        preprocess: steps from the data inwards, names or pairs (name, arguments); the same for every sample.

    Raises:
        ValueError: for features that are no number, sizes that are not positive, or unknown names.

    Example:
        >>> flow = diffeo.wavenet(features=160, context=4, channels=4, layers=2)
        >>> flow.context_shape  # 4 numbers for each frame of 80 samples
        torch.Size([4, 2])
        >>> flow.resized((80,), (4, 1)).sample((), torch.randn(4, 1)).shape
        torch.Size([80])
    """
    if head not in ("gaussian", "logistics"):
        raise ValueError(f"expected head among gaussian, logistics, got {head!r}")
    shape = _samples(features)
    base = StandardNormal(shape) if head == "gaussian" else StandardLogistic(shape)
    if univariate is not None:
        mapping = as_univariate(univariate)
    else:
        mapping = Affine(bound) if head == "gaussian" else MixtureOfLogistics(components, bound)
    layer = Autoregressive(
        mapping, WaveNet(mapping.size, channels, layers, cycles, kernel, skip, context=context, hop=hop)
    )
    if isinstance(mapping, MixtureOfLogistics):
        with torch.no_grad():  # components that start equal stay equal
            count = mapping.components
            layer.net.last.bias[count : 2 * count] = torch.linspace(-1, 1, count)
    return _over_time(base, [layer], context, hop, preprocess)


@recipe(paper={"channels": 64, "layers": 10, "cycles": [1, 1, 1, 3], "kernel": 3})
def parallel_wavenet(
    features: Features,
    context: int = 0,
    *,
    preset: Literal["paper"] | None = None,
    channels: int = 32,
    layers: int = 8,
    cycles: Sequence[int] = (1, 1, 2),
    kernel: int = 2,
    skip: int = 64,
    hop: int = 80,
    noise: Literal["normal", "logistic"] = "normal",
    univariate: UnivariateLike = "affine",
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """Parallel WaveNet: inverse autoregressive WaveNets in a row, all in the order of time.

    Sampling is one pass of the networks. They start as the identity, so the output has the data's scale. van den Oord
    et al. 2017, arXiv:1711.10433.

    Args:
        features: the number of samples T; ``Flow.resized`` gives the same model another one.
        context: channels of a context of shape (context, ceil(T / hop)), 0 for none.
        preset: "paper" is its student.
        channels: width of the layers. This and the arguments to ``hop`` are those of ``diffeo.nets.WaveNet``.
        layers: per cycle.
        cycles: of each network; there are as many networks as entries.
        kernel: taps of each convolution.
        skip: width of the two layers before the output.
        hop: samples per frame of context.
        noise: best that of the teacher, normal for its Gaussian head, logistic for its mixture.
        univariate: the map of each sample (``as_univariate``).
        preprocess: steps from the data inwards, names or pairs (name, arguments); the same for every sample.

    Raises:
        ValueError: for features that are no number, sizes that are not positive, or unknown names.

    Example:
        >>> flow = diffeo.parallel_wavenet(features=160, channels=4)
        >>> flow.fast
        frozenset({'sample'})
    """
    if noise not in ("normal", "logistic"):
        raise ValueError(f"expected noise among normal, logistic, got {noise!r}")
    shape = _samples(features)
    mapping = as_univariate(univariate)
    net = partial(WaveNet, mapping.size, channels, layers, kernel=kernel, skip=skip, context=context, hop=hop)
    steps = [Inverse(Autoregressive(mapping, net(cycles=count))) for count in cycles]
    base = StandardNormal(shape) if noise == "normal" else StandardLogistic(shape)
    return _over_time(base, steps, context, hop, preprocess)


def _samples(features: Features) -> tuple[int, ...]:
    """The shape (T,) of one example."""
    shape = event_shape(features)
    if len(shape) != 1:
        raise ValueError(f"expected features as a number of samples for audio, got {shape}")
    return shape


def _over_time(base: Base, layers: Sequence[Transform], context: int, hop: int, preprocess: Preprocess) -> Flow:
    """Put the preprocessing on the data's side: the same for every sample, so that no length is fixed."""
    chain = Chain([*layers, *preprocessing(preprocess, ())])
    if not context:
        return Flow(base, chain)
    frames = -(-base.event_shape[0] // hop)
    return Flow(base, chain, context_shape=(context, frames), context_transform=Standardize((context, 1)))
