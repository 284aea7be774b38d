"""Bijections x = f(z): ``forward`` generates, ``inverse`` normalizes."""

from diffeo.transforms.autoregressive import Autoregressive
from diffeo.transforms.base import Chain, DataDependent, Inverse, Transform
from diffeo.transforms.coupling import Coupling, alternating_mask, checkerboard_mask, half_mask
from diffeo.transforms.elementwise import Elementwise
from diffeo.transforms.factor import Factor
from diffeo.transforms.linear import LU, ActNorm, Permutation
from diffeo.transforms.mixed import Mixed
from diffeo.transforms.multiscale import Flattened, Part, Squeezed, latent_scales
from diffeo.transforms.ode import ODE
from diffeo.transforms.preprocess import Dequantize, Gaussianize, Logit, Rescale, Standardize, Whiten
from diffeo.transforms.supports import Bounded, Circle, Concatenated, Increasing, Simplex, Support, as_support
from diffeo.transforms.univariate import (
    UNIVARIATES,
    Affine,
    Composed,
    Gated,
    MixtureOfLogistics,
    RationalQuadraticSpline,
    Scale,
    Shift,
    Univariate,
    UnivariateLike,
    as_univariate,
    describe,
)

__all__ = [
    "LU",
    "ODE",
    "UNIVARIATES",
    "ActNorm",
    "Affine",
    "Autoregressive",
    "Bounded",
    "Chain",
    "Circle",
    "Composed",
    "Concatenated",
    "Coupling",
    "DataDependent",
    "Dequantize",
    "Elementwise",
    "Factor",
    "Flattened",
    "Gated",
    "Gaussianize",
    "Increasing",
    "Inverse",
    "Logit",
    "Mixed",
    "MixtureOfLogistics",
    "Part",
    "Permutation",
    "RationalQuadraticSpline",
    "Rescale",
    "Scale",
    "Shift",
    "Simplex",
    "Squeezed",
    "Standardize",
    "Support",
    "Transform",
    "Univariate",
    "UnivariateLike",
    "Whiten",
    "alternating_mask",
    "as_support",
    "as_univariate",
    "checkerboard_mask",
    "describe",
    "half_mask",
    "latent_scales",
]
