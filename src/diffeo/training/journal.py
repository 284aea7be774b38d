"""The journal of a training: a file with a line for each epoch."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffeo.atomic import atomic_write, unwritable

__all__ = ["Journal"]


class Journal:
    """``metrics.jsonl`` in a folder (or nowhere), a JSON line per epoch; non-finite numbers become null.

    Opening it writes ``history`` and nothing else, so what a killed run wrote after its last checkpoint is gone.
    """

    def __init__(self, folder: Path | None, history: Iterable[Mapping[str, Any]]) -> None:
        if folder is None:
            self.path = None
            return
        self.path = folder / "metrics.jsonl"
        with atomic_write(self.path) as temporary, temporary.open("w") as file:
            file.writelines(self._line(entry) for entry in history)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line."""
        if self.path is None:
            return
        try:
            with self.path.open("a") as file:
                file.write(self._line(entry))
        except OSError as error:
            raise unwritable(self.path, error) from error

    @staticmethod
    def _line(entry: Mapping[str, Any]) -> str:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
        return json.dumps(finite) + "\n"
