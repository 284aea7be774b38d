"""diffeo: normalizing flows. Exact likelihoods and fast samples of tables, images and audio.

The public names are flat and load on first use, so that ``import diffeo`` (and ``diffeo --help``) stay light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "flow": "Flow",
    "mixture": "Mixture",
    "variational": "VAE",
    "bases": "StandardNormal",
    "recipes": "nice realnvp glow maf iaf nsf wavenet parallel_wavenet flow_matching vae",
    "objectives": "MaximumLikelihood FlowMatching Distillation",
    "training": "fit fit_folds load",
    "inpainting": "inpaint",
    "commands": "export",
    "inference": "fit_target importance posterior",
    "integrations.engines": "Sampler Scorer",
    "": "bases commands data nets objectives recipes sklearn training transforms",
}
_HOME = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = [*_HOME, "UserError"]

from diffeo.errors import UserError

if TYPE_CHECKING:
    from diffeo import bases, commands, data, nets, objectives, recipes, sklearn, training, transforms
    from diffeo.bases import StandardNormal
    from diffeo.commands.export import export
    from diffeo.flow import Flow
    from diffeo.inference.importance import importance
    from diffeo.inference.posterior import posterior
    from diffeo.inference.target import fit_target
    from diffeo.inpainting import inpaint
    from diffeo.integrations.engines import Sampler, Scorer
    from diffeo.mixture import Mixture
    from diffeo.objectives import Distillation, FlowMatching, MaximumLikelihood
    from diffeo.recipes import flow_matching, glow, iaf, maf, nice, nsf, parallel_wavenet, realnvp, wavenet
    from diffeo.training.fit import fit
    from diffeo.training.folds import fit_folds
    from diffeo.training.run import load


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffeo' has no attribute {name!r}")
    home = _HOME[name]
    value = getattr(import_module(f"diffeo.{home}"), name) if home else import_module(f"diffeo.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
