"""diffeo: normalizing flows. Exact likelihoods and fast samples of tables, images and audio.

The public names are flat and load on first use, so that ``import diffeo`` (and ``diffeo --help``) stay light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(("Flow", "FlowDistribution", "bits_per_dim"), "flow"),
    **dict.fromkeys(("StandardNormal", "StandardLogistic", "Uniform", "GaussianMixture"), "bases"),
    **dict.fromkeys(
        ("RECIPES", "build", "nice", "realnvp", "maf", "iaf", "nsf", "glow", "wavenet", "parallel_wavenet"), "recipes"
    ),
    **dict.fromkeys(
        ("Objective", "MaximumLikelihood", "Distillation", "WarmStart", "ConditionalKL", "PowerLoss"), "objectives"
    ),
    **dict.fromkeys(("fit", "load_run", "SampleStream"), "training"),
    "inpaint": "inpainting",
    **dict.fromkeys(("transforms", "nets", "data", "spectral"), ""),
}

__all__ = [*_HOME, "UserError"]

from diffeo.errors import UserError

if TYPE_CHECKING:
    from diffeo import data, nets, spectral, transforms
    from diffeo.bases import GaussianMixture, StandardLogistic, StandardNormal, Uniform
    from diffeo.flow import Flow, FlowDistribution, bits_per_dim
    from diffeo.inpainting import inpaint
    from diffeo.objectives import ConditionalKL, Distillation, MaximumLikelihood, Objective, PowerLoss, WarmStart
    from diffeo.recipes import RECIPES, build, glow, iaf, maf, nice, nsf, parallel_wavenet, realnvp, wavenet
    from diffeo.training.fit import fit
    from diffeo.training.run import load_run
    from diffeo.training.sampled import SampleStream


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffeo' has no attribute {name!r}")
    home = _HOME[name]
    value = getattr(import_module(f"diffeo.{home}"), name) if home else import_module(f"diffeo.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
