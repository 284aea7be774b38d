"""Bijections x = f(z): ``forward`` generates, ``inverse`` normalizes."""

from diffeo.transforms.autoregressive import Autoregressive
from diffeo.transforms.base import Chain, DataDependent, Inverse, Transform
from diffeo.transforms.coupling import Coupling, alternating_mask, checkerboard_mask, half_mask
from diffeo.transforms.elementwise import Elementwise
from diffeo.transforms.linear import LU, ActNorm, Permutation
from diffeo.transforms.multiscale import Flattened, Part, Squeezed, latent_scales
from diffeo.transforms.ode import ODE
from diffeo.transforms.preprocess import Dequantize, Gaussianize, Logit, Rescale, Standardize, Whiten
from diffeo.transforms.univariate import (
    Affine,
    Composed,
    MixtureOfLogistics,
    RationalQuadraticSpline,
    Scale,
    Shift,
    Univariate,
)

__all__ = [
    "LU",
    "ODE",
    "ActNorm",
    "Affine",
    "Autoregressive",
    "Chain",
    "Composed",
    "Coupling",
    "DataDependent",
    "Dequantize",
    "Elementwise",
    "Flattened",
    "Gaussianize",
    "Inverse",
    "Logit",
    "MixtureOfLogistics",
    "Part",
    "Permutation",
    "RationalQuadraticSpline",
    "Rescale",
    "Scale",
    "Shift",
    "Squeezed",
    "Standardize",
    "Transform",
    "Univariate",
    "Whiten",
    "alternating_mask",
    "checkerboard_mask",
    "half_mask",
    "latent_scales",
]
