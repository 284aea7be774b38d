"""Recipes of a latent variable: the VAE with a flow for a posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from diffeo.arguments import expect_whole
from diffeo.bases import StandardNormal
from diffeo.flow import Flow
from diffeo.likelihoods import Bernoulli, DiscretizedLogistics, Likelihood
from diffeo.nets import MADE, Decoder, Encoder
from diffeo.recipes.assembly import Preprocess, event_shape, recipe
from diffeo.recipes.vectors import autoregressive, iaf, maf, nice, nsf, realnvp
from diffeo.transforms import Affine, Elementwise, Gated, Inverse, RationalQuadraticSpline, Rescale, Transform
from diffeo.variational import VAE

__all__ = ["vae"]

_PRIORS = {each.__name__: each for each in (nice, realnvp, maf, iaf, nsf)}


@recipe()
def vae(
    features: Sequence[int],
    context: int = 0,
    *,
    posterior: Literal["diagonal", "iaf", "nsf"] = "iaf",
    prior: str | Mapping[str, Any] = "normal",
    likelihood: Literal["bernoulli", "logistics"] = "bernoulli",
    latent: int = 32,
    levels: int = 256,
    transforms: int = 2,
    hidden: Sequence[int] = (320,),
    bins: int = 8,
    components: int = 5,
    channels: Sequence[int] = (16, 32),
    width: int = 256,
    activation: str = "silu",
    preprocess: Preprocess = (),
) -> Flow:
    r"""A VAE of images whose posterior is a flow given the encoder; trained by the ELBO (see ``VAE``).

    Each posterior begins with a diagonal Gaussian given the features of the encoder. "iaf" goes on with gated steps
    :math:`z \leftarrow 2 (s z + (1 - s) m)`, s and m by a masked network of the z before and of the features, the order
    reversed between steps (Kingma et al. 2016, arXiv:1606.04934, but for the 2: see ``Gated``); "nsf" with monotone
    splines in their place (Durkan et al. 2019, arXiv:1906.04032). All sample, with their own density, in one pass.
    Encoder and decoder are the same for all.

    Args:
        features: the shape (C, H, W) of an image.
        context: 0: it is not conditional.
        posterior: "diagonal", "iaf" or "nsf".
        prior: "normal" for standard normal latents, or a flow of them: the name of a recipe of vectors, or a name with
            arguments, ``{"name": "nsf", "transforms": 2}``.
        likelihood: of a pixel given z: "bernoulli", binarised at a fixed threshold, or "logistics", a discretised
            mixture of logistics of the grey pixel.
        latent: how many latents.
        levels: values that a pixel can take; the data decide it.
        transforms: how many steps the posterior has behind the Gaussian.
        hidden: widths of the hidden layers of each step's network.
        bins: of the splines.
        components: of the mixture of logistics.
        channels: of the convolutions of the encoder, each of which halves the sides, and of the decoder.
        width: of the features, and of the decoder's first layer.
        activation: of the encoder and the decoder: "relu", "silu", "tanh" ...
        preprocess: nothing; the likelihood is of the pixels themselves.

    Raises:
        ValueError: for features that are no image's, a context, a preprocessing, sizes out of range, or unknown names.

    Example:
        >>> flow = diffeo.vae(features=(1, 8, 8), posterior="iaf", latent=2, width=8, channels=(4,), hidden=(8,))
        >>> flow.encode(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 2])
        >>> flow.has_log_prob, flow.has_bound
        (False, True)
    """
    shape = event_shape(features)
    if len(shape) != 3:
        raise ValueError(f"expected features (channels, height, width) for a VAE, got {shape}")
    if context:
        raise ValueError(f"expected context=0, for a VAE is not conditional here, got {context}")
    if list(preprocess):
        raise ValueError(f"expected no preprocessing, for a VAE's likelihood is of the pixels, got {list(preprocess)}")
    expect_whole(1, latent=latent, width=width, transforms=transforms, bins=bins, components=components)
    pixel: Likelihood
    if likelihood == "bernoulli":
        pixel = Bernoulli(levels)
    elif likelihood == "logistics":
        pixel = DiscretizedLogistics(levels, components)
    else:
        raise ValueError(f"expected likelihood among bernoulli, logistics, got {likelihood!r}")
    layers: list[Transform] = [Elementwise(Affine(), (latent,), width)]
    if posterior in ("iaf", "nsf"):
        mapping = Gated() if posterior == "iaf" else RationalQuadraticSpline(bins)
        net = partial(MADE, hidden=hidden, context=width, activation="silu", residual=True)
        layers += [Inverse(layer) for layer in autoregressive(mapping, latent, transforms, net)]
    elif posterior != "diagonal":
        raise ValueError(f"expected posterior among diagonal, iaf, nsf, got {posterior!r}")
    return VAE(
        Encoder(shape, width, channels, activation),
        Flow(StandardNormal(latent), layers, context_shape=width),
        Decoder(latent, shape, pixel.size, width, channels, activation),
        pixel,
        _prior(prior, latent),
        shape,
    )


def _prior(prior: str | Mapping[str, Any], latent: int) -> Flow:
    """Standard normal latents, or a flow of them."""
    arguments = dict(prior) if isinstance(prior, Mapping) else {"name": prior}
    name = arguments.pop("name", None)
    if name == "normal" and not arguments:
        return Flow(StandardNormal(latent), Rescale(latent))  # from [0, 1] to [0, 1]: the identity
    if name not in _PRIORS:
        raise ValueError(f"expected a prior among normal, {', '.join(_PRIORS)}, got {prior!r}")
    return _PRIORS[name](latent, **{"preprocess": (), **arguments})
