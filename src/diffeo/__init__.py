"""diffeo: normalizing flows. Exact likelihoods and fast samples of tables, images and audio.

The public names are flat and load on first use, so that ``import diffeo`` (and ``diffeo --help``) stay light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "flow": "Flow FlowDistribution bits_per_dim",
    "bases": "StandardNormal StandardLogistic Uniform GaussianMixture",
    "recipes": "RECIPES build nice realnvp glow maf iaf nsf wavenet parallel_wavenet flow_matching",
    "objectives": "Objective MaximumLikelihood Distillation WarmStart ConditionalKL PairedKL PowerLoss FlowMatching"
    " StepMatching few_steps guided reflow_pairs",
    "training": "fit load load_run SampleStream",
    "inpainting": "inpaint",
    "": "transforms nets data spectral",
}
_HOME = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = [*_HOME, "UserError"]

from diffeo.errors import UserError

if TYPE_CHECKING:
    from diffeo import data, nets, spectral, transforms
    from diffeo.bases import GaussianMixture, StandardLogistic, StandardNormal, Uniform
    from diffeo.flow import Flow, FlowDistribution, bits_per_dim
    from diffeo.inpainting import inpaint
    from diffeo.objectives import (
        ConditionalKL,
        Distillation,
        FlowMatching,
        MaximumLikelihood,
        Objective,
        PairedKL,
        PowerLoss,
        StepMatching,
        WarmStart,
        few_steps,
        guided,
        reflow_pairs,
    )
    from diffeo.recipes import (
        RECIPES,
        build,
        flow_matching,
        glow,
        iaf,
        maf,
        nice,
        nsf,
        parallel_wavenet,
        realnvp,
        wavenet,
    )
    from diffeo.training.fit import fit
    from diffeo.training.run import load, load_run
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
