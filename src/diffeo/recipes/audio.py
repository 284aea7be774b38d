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
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """WaveNet as a density: one autoregressive layer over time (arXiv:1609.03499). Cheap to score and to encode.

    ``features`` is the number of samples T; ``Flow.resized`` gives the same model another one. A context has the shape
    (context, ceil(T / hop)). ``channels`` to ``hop`` are those of ``diffeo.nets.WaveNet``. Each sample's density is a
    Gaussian, or a mixture of ``components`` logistics, whose log-scale is softly bounded to (-bound, bound) around that
    of the data: digital silence has no infinite density.
    """
    if head not in ("gaussian", "logistics"):
        raise ValueError(f"expected head among gaussian, logistics, got {head!r}")
    shape = _samples(features)
    net = partial(
        WaveNet, channels=channels, layers=layers, cycles=cycles, kernel=kernel, skip=skip, context=context, hop=hop
    )
    if head == "gaussian":
        layer = Autoregressive(Affine(bound), net(2))
        return _over_time(StandardNormal(shape), [layer], context, hop, preprocess)
    mixture = MixtureOfLogistics(components, bound)
    layer = Autoregressive(mixture, net(mixture.size))
    with torch.no_grad():  # components that start equal stay equal
        layer.net.last.bias[components : 2 * components] = torch.linspace(-1, 1, components)
    return _over_time(StandardLogistic(shape), [layer], context, hop, preprocess)


@recipe(paper={"channels": 64, "layers": 10, "cycles": [1, 1, 1, 3], "kernel": 3})
def parallel_wavenet(
    features: Features,
    context: int = 0,
    *,
    channels: int = 32,
    layers: int = 8,
    cycles: Sequence[int] = (1, 1, 2),
    kernel: int = 2,
    skip: int = 64,
    hop: int = 80,
    noise: Literal["normal", "logistic"] = "normal",
    bound: float = 5.0,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """Parallel WaveNet: inverse autoregressive WaveNets in a row, all in the order of time. Cheap to sample.

    One of them for each entry of ``cycles``. They start as the identity, so the output has the data's scale. The noise
    is best that of the teacher: normal for its Gaussian head, logistic for its mixture. van den Oord et al. 2017,
    arXiv:1711.10433; the preset ``paper`` is its student.
    """
    if noise not in ("normal", "logistic"):
        raise ValueError(f"expected noise among normal, logistic, got {noise!r}")
    shape = _samples(features)
    net = partial(WaveNet, channels=channels, layers=layers, kernel=kernel, skip=skip, context=context, hop=hop)
    steps = [Inverse(Autoregressive(Affine(bound), net(2, cycles=count))) for count in cycles]
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
