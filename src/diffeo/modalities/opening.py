"""A run directory of any kind, opened for use."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from diffeo.modalities.audio.run import AudioRun, open_audio_run
from diffeo.modalities.images.run import ImageRun, open_image_run
from diffeo.modalities.runs import OpenRun, open_run, run_kind

__all__ = ["AnyRun", "open_any_run"]

AnyRun = OpenRun | ImageRun | AudioRun

_OPENERS: dict[str, Callable[..., Any]] = {"images": open_image_run, "audio": open_audio_run}


def open_any_run(run: str | os.PathLike[str], device: str | torch.device | None = None) -> AnyRun:
    """Load a run directory, of whatever it was trained on.

    Raises:
        UserError: if it is damaged, or none.
    """
    return _OPENERS.get(run_kind(run), open_run)(run, device)
