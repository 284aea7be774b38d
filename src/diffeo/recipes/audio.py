"""Recipes of audio: one channel of T samples, an example of shape (T,)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from diffeo.bases import Base, StandardNormal
from diffeo.flow import Flow
from diffeo.nets import WaveNet
from diffeo.recipes.assembly import Features, Preprocess, event_shape, preprocessing, recipe
from diffeo.transforms import Affine, Autoregressive, Chain, Standardize, Transform

__all__ = ["wavenet"]


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
    bound: float = 9.0,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """WaveNet as a density: one autoregressive layer over time (arXiv:1609.03499). Cheap to score and to encode.

    ``features`` is the number of samples T; ``Flow.resized`` gives the same model another one. A context has the shape
    (context, ceil(T / hop)). ``channels`` to ``hop`` are those of ``diffeo.nets.WaveNet``. The head is a Gaussian whose
    log-scale is softly bounded to (-bound, bound) around that of the data: digital silence has no infinite density.
    """
    net = partial(WaveNet, channels=channels, layers=layers, kernel=kernel, skip=skip, context=context, hop=hop)
    layer = Autoregressive(Affine(bound), net(2, cycles=cycles))
    return _over_time(StandardNormal(_samples(features)), [layer], context, hop, preprocess)


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
