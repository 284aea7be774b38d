"""Which rows of a table a run was trained on: a digest of each, and what part it played."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.training.digests import digests
from diffeo.training.weights import load_tensors, save_tensors

__all__ = ["NEW", "TEST", "TRAIN", "VALID", "SeenRows"]

FILE = "rows.safetensors"
TRAIN, VALID, TEST, NEW = -1, -2, -3, -4  # parts of a table; a number from 0 on is the fold that a row was held out in
MOST = 5_000_000  # rows that are remembered, 16 bytes each


@dataclass(frozen=True)
class SeenRows:
    """The rows that a run was made from.

    Attributes:
        digest: of each row, ascending ``(N,)``.
        part: what each row was for ``(N,)``: its fold, ``TRAIN``, ``VALID`` or ``TEST``.
        log_prob: of each row by what had not been trained on it ``(N,)``, NaN where there is no such thing.
        alone: how many of the rows with a log_prob have a level that no other row has: about as often a new row has one
            that none of these has (Good and Turing 1953).
    """

    digest: np.ndarray
    part: np.ndarray
    log_prob: np.ndarray
    alone: int = 0

    @classmethod
    def of(
        cls, parts: list[tuple[Tensor, Tensor | None, int | Tensor, Tensor | None]], levels: Sequence[int] = ()
    ) -> SeenRows:
        """Remember rows (n, features), their contexts, what they were for, and their log-likelihoods if known.

        ``levels`` are the features that hold the numbers of levels.
        """
        digest = np.concatenate([digests(x, context) for x, context, _, _ in parts])
        part = np.concatenate([np.broadcast_to(np.asarray(code), len(x)) for x, _, code, _ in parts])
        log_prob = np.concatenate(
            [np.full(len(x), np.nan) if known is None else known.double().cpu().numpy() for x, _, _, known in parts]
        )
        single = np.zeros(len(digest), dtype=bool)
        for feature in levels:
            cells = np.concatenate([x[:, feature].cpu().numpy() for x, _, _, _ in parts])
            _, place, counts = np.unique(cells, return_inverse=True, return_counts=True)
            single |= counts[place] == 1
        order = np.argsort(digest, kind="stable")
        alone = int((single & ~np.isnan(log_prob)).sum())
        return cls(digest[order], part[order].astype(np.int16), log_prob[order], alone)

    def save(self, run: Path) -> None:
        """Write it into a run directory; of more than five million rows nothing is kept.

        Raises:
            UserError: if it cannot be written.
        """
        file = run / FILE
        if len(self.digest) > MOST:
            file.unlink(missing_ok=True)
            return
        named = {"digest": self.digest, "part": self.part, "log_prob": self.log_prob}
        metadata = {"format": "1", "alone": str(self.alone)}
        save_tensors(file, {name: torch.from_numpy(each) for name, each in named.items()}, metadata)

    @classmethod
    def load(cls, run: Path) -> SeenRows | None:
        """Read it from a run directory; None where a run has none.

        Raises:
            UserError: if the file is damaged.
        """
        file = run / FILE
        if not file.is_file():
            return None
        tensors, metadata = load_tensors(file, "restore it or train again")
        try:
            digest, part, log_prob = (tensors[name].numpy() for name in ("digest", "part", "log_prob"))
        except KeyError as error:
            raise UserError(f"{file} is damaged: it lacks {error}; restore it or train again") from error
        if not digest.shape == part.shape == log_prob.shape == (len(digest),) or (np.diff(digest) < 0).any():
            raise UserError(f"{file} is damaged: its rows do not belong together; restore it or train again")
        alone = metadata.get("alone", "0")
        return cls(digest, part, log_prob, int(alone) if alone.isdecimal() else 0)

    def parts(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """What each of these rows (n, features) was for ``(n,)``, ``NEW`` for one that the run does not know."""
        wanted = digests(x, context)
        place = np.searchsorted(self.digest, wanted).clip(max=max(0, len(self.digest) - 1))
        result = np.full(len(wanted), NEW, dtype=np.int64)
        if len(self.digest):
            known = self.digest[place] == wanted
            result[known] = self.part[place[known]]
        return torch.from_numpy(result)
