"""What ``model.json`` may say: tables of types and ranges, which are checked when a run directory is read."""

from __future__ import annotations

from diffeo.fields import Anything, Either, Fields, ListOf, MapOf, Nothing, Number, Text

__all__ = ["FORMAT", "MODEL_JSON", "REPORTED"]

FORMAT = 1

_COUNT = Number(0, 2**53, whole=True)
_SEED = Number(0, 2**63 - 1, whole=True)
_SECONDS = Number(0, 1e12)
_FIGURE = Either(Number(), Nothing())  # null stands for NaN
_TEXTS = ListOf(Text())
_RECIPE = Fields({"name": Text(), "arguments": MapOf()})


_LIKELIHOOD = Fields(
    required={"nll": _FIGURE, "stderr": _FIGURE},
    optional={"rows": _COUNT, "samples": _COUNT, "elbo": Number()},
    others=_FIGURE,
)
_DISTANCE = Fields({"distance": Number(), "p": Number(0, 1)}, others=Anything())
_METRICS = Fields(
    optional={
        **dict.fromkeys(("validation", "train", "test", "out_of_fold"), _LIKELIHOOD),
        "rows": MapOf(_COUNT),
        "model": Text(),
        "folds": _COUNT,
        "weights": MapOf(Number(0, 1.001)),
        **dict.fromkeys(("parameters", "columns", "epochs", "best_epoch", "steps", "skipped_batches"), _COUNT),
        **dict.fromkeys(("seconds", "duration"), _SECONDS),
        **dict.fromkeys(("stopped", "weighted_by", "student", "teacher"), Text()),
        **dict.fromkeys(("notes", "context"), _TEXTS),
        "shape": ListOf(_COUNT, 1, 4),
        "calibration": Fields(
            required={"sbc": MapOf(_DISTANCE), "tarp": _DISTANCE, "simulations": _COUNT, "draws": _COUNT},
            others=Anything(),
        ),
        "distillation": MapOf(),
        "stages": MapOf(MapOf()),
    },
    others=Anything(),
)
_VERSIONS = MapOf(Text())
_DATA = Fields(
    optional={"name": Text(), "sha256": Text(), "rows": _COUNT, "test": _COUNT},
    others=Anything(),
)
_TEACHER = Fields(
    optional={"run": Text(), "model": Text(), "sha256": Text(), "versions": Either(_VERSIONS, Nothing())},
    others=Anything(),
)
_SETTINGS = Fields(  # how a table is read
    optional={"sep": Text(longest=1), "decimal": Text((".", ",")), "na": _TEXTS, "missing": Text()},
    others=Anything(),
)
_PROVENANCE = Fields(
    optional={
        "versions": _VERSIONS,
        "command": _TEXTS,
        "date": Text(),
        "data": Either(_DATA, Nothing()),
        "seed": Either(_SEED, Nothing()),
        "settings": _SETTINGS,
        "trained": _RECIPE,
        "distillation": Fields(optional={"settings": MapOf(), "teacher": _TEACHER}, others=Anything()),
        "estimator": Fields(optional={"name": Text(), "parameters": MapOf()}, others=Anything()),
    },
    others=Anything(),
)

# Of any run directory, those made in Python with a provenance of one's own, too.
MODEL_JSON = Fields(
    required={
        "format": Number(1, FORMAT, whole=True),
        "recipe": _RECIPE,
        "schema": Either(MapOf(), Nothing()),
        "metrics": MapOf(),
        "provenance": Fields(
            optional={"trained": _RECIPE, "settings": MapOf(), "distillation": MapOf()}, others=Anything()
        ),
    },
    optional={"diffeo": Text(), "weights": ListOf(Text(), 1, 2)},
    others=Anything(),
)
# What commands compute with, or show, of a run that they open; its schema is what a modality says.
REPORTED = Fields(required={"metrics": _METRICS, "provenance": _PROVENANCE})
