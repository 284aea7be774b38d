"""Bijections x = f(z): ``forward`` generates, ``inverse`` normalizes."""

from diffeo.transforms.autoregressive import Autoregressive
from diffeo.transforms.base import Chain, DataDependent, Inverse, Transform
from diffeo.transforms.coupling import Coupling, alternating_mask, half_mask
from diffeo.transforms.elementwise import Elementwise
from diffeo.transforms.linear import LU, ActNorm, Permutation
from diffeo.transforms.preprocess import Dequantize, Gaussianize, Logit, Standardize
from diffeo.transforms.univariate import Affine, Composed, RationalQuadraticSpline, Scale, Shift, Univariate

__all__ = [
    "LU",
    "ActNorm",
    "Affine",
    "Autoregressive",
    "Chain",
    "Composed",
    "Coupling",
    "DataDependent",
    "Dequantize",
    "Elementwise",
    "Gaussianize",
    "Inverse",
    "Logit",
    "Permutation",
    "RationalQuadraticSpline",
    "Scale",
    "Shift",
    "Standardize",
    "Transform",
    "Univariate",
    "alternating_mask",
    "half_mask",
]
