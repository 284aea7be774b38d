"""Which rows of a table a run was trained on: a digest of each, what part it played, and how likely it was held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.flow import DRAWS, Flow
from diffeo.training.digests import digests
from diffeo.training.weights import load_tensors, save_tensors

__all__ = ["NEW", "TEST", "TRAIN", "VALID", "SeenRows", "looks", "noise_of", "smoothed"]

FILE = "rows.safetensors"
TRAIN, VALID, TEST, NEW = -1, -2, -3, -4  # parts of a table; a number from 0 on is the fold that a row was held out in
MOST = 5_000_000  # rows that are remembered, 26 bytes each
SCALES = (0.2,)  # of noise that log-likelihoods are smoothed by, in standard deviations of each column
LOOKED_AT = 50_000  # rows that these are measured by


def noise_of(flow: Flow, x: Tensor) -> Tensor:
    """Standard deviations of the noise that log-likelihoods are smoothed by, in the units of the columns: ``(R, D)``.

    A standard deviation is at most that of a normal column with the same middle: a few rows far out do not raise it.
    None, R = 0, of densities that are slow, or of values that may be missing.

    Args:
        flow: a density.
        x: the rows that it learned ``(N, D)``.
    """
    smooth = "log_prob" in flow.fast and not flow.transform.takes_missing
    scales = torch.tensor(SCALES if smooth else [], dtype=torch.float64)
    some = x[:LOOKED_AT].double().cpu()
    lower, upper = torch.quantile(some, some.new_tensor([0.05, 0.95]), 0)
    spread, middle = some.std(0, correction=0), (upper - lower) / 3.29
    return scales[:, None] * torch.where(middle > 0, torch.minimum(spread, middle), spread)


@torch.no_grad()
def smoothed(flow: Flow, x: Tensor, context: Tensor | None, noise: Tensor) -> Tensor:
    """Log-likelihoods of rows, smoothed by each noise: ``(n, R)``, in nats, double precision.

    Args:
        flow: a density.
        x: rows ``(n, D)``.
        context: ``(n, C)``, or None.
        noise: as ``noise_of`` gives it ``(R, D)``.
    """
    x, context = _placed(flow, x, context)
    each = [flow.smoothed_log_prob(x, scale, context).double().cpu() for scale in noise]
    return torch.stack(each, 1) if each else torch.empty(len(x), 0, dtype=torch.float64)


@torch.no_grad()
def looks(flow: Flow, x: Tensor, context: Tensor | None, noise: Tensor, draws: int = DRAWS) -> Tensor:
    """Log-likelihoods of rows, sharp and smoothed: ``(n, 1 + R)``, in nats, double precision.

    Args:
        flow: a density.
        x: rows ``(n, D)``.
        context: ``(n, C)``, or None.
        noise: as ``noise_of`` gives it ``(R, D)``.
        draws: of the noise that discrete values are spread by.
    """
    x, context = _placed(flow, x, context)
    sharp = flow.log_mass(x, context, draws=draws).double().cpu()
    return torch.cat([sharp[:, None], smoothed(flow, x, context, noise)], 1)


def _placed(flow: Flow, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
    device = flow.base.device_marker.device
    return x.to(device), None if context is None else context.to(device)


@dataclass(frozen=True)
class SeenRows:
    """The rows that a run was made from.

    Attributes:
        digest: of each row, ascending ``(N,)``.
        part: what each row was for ``(N,)``: its fold, ``TRAIN``, ``VALID`` or ``TEST``.
        log_prob: of each row by what had not been trained on it ``(N, 1 + R)``, as ``looks`` gives it; NaN where there
            is no such thing.
        noise: that it was smoothed by ``(R, D)``.
        alone: how many of the rows with a log_prob have a level that no other row has: about as often a new row has one
            that none of these has (Good and Turing 1953).
    """

    digest: np.ndarray
    part: np.ndarray
    log_prob: np.ndarray
    noise: np.ndarray
    alone: int = 0

    @classmethod
    def of(
        cls,
        parts: list[tuple[Tensor, Tensor | None, int | Tensor, Tensor | None]],
        noise: Tensor,
        levels: Sequence[int] = (),
    ) -> SeenRows:
        """Remember rows (n, features), their contexts, what they were for, and their log-likelihoods if known.

        ``noise`` is what these were smoothed by; ``levels`` are the features that hold the numbers of levels.
        """
        digest = np.concatenate([digests(x, context) for x, context, _, _ in parts])
        part = np.concatenate([np.broadcast_to(np.asarray(code), len(x)) for x, _, code, _ in parts])
        shape = 1 + len(noise)
        log_prob = np.concatenate(
            [
                np.full((len(x), shape), np.nan) if known is None else known.double().cpu().numpy()
                for x, _, _, known in parts
            ]
        )
        single = np.zeros(len(digest), dtype=bool)
        for feature in levels:
            cells = np.concatenate([x[:, feature].cpu().numpy() for x, _, _, _ in parts])
            _, place, counts = np.unique(cells, return_inverse=True, return_counts=True)
            single |= counts[place] == 1
        order = np.argsort(digest, kind="stable")
        alone = int((single & ~np.isnan(log_prob[:, 0])).sum())
        return cls(digest[order], part[order].astype(np.int16), log_prob[order], noise.cpu().numpy(), alone)

    @property
    def held_out(self) -> np.ndarray:
        """Which rows have likelihoods by what was not trained on them ``(N,)``."""
        return ((self.part >= 0) | (self.part == VALID)) & ~np.isnan(self.log_prob).any(1)

    def save(self, run: Path) -> None:
        """Write it into a run directory; of more than five million rows nothing is kept.

        Raises:
            UserError: if it cannot be written.
        """
        file = run / FILE
        if len(self.digest) > MOST:
            file.unlink(missing_ok=True)
            return
        named = {"digest": self.digest, "part": self.part, "log_prob": self.log_prob, "noise": self.noise}
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
            log_prob = log_prob.reshape(len(log_prob), -1)  # before there was noise they were (N,)
            noise = tensors["noise"].numpy() if "noise" in tensors else np.empty((0, 0))
        except KeyError as error:
            raise UserError(f"{file} is damaged: it lacks {error}; restore it or train again") from error
        shapes = {(len(digest), 1 + len(noise)), log_prob.shape}
        if not digest.shape == part.shape == (len(digest),) or len(shapes) > 1 or (np.diff(digest) < 0).any():
            raise UserError(f"{file} is damaged: its rows do not belong together; restore it or train again")
        alone = metadata.get("alone", "0")
        return cls(digest, part, log_prob, noise, int(alone) if alone.isdecimal() else 0)

    def parts(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """What each of these rows (n, features) was for ``(n,)``, ``NEW`` for one that the run does not know."""
        wanted = digests(x, context)
        place = np.searchsorted(self.digest, wanted).clip(max=max(0, len(self.digest) - 1))
        result = np.full(len(wanted), NEW, dtype=np.int64)
        if len(self.digest):
            known = self.digest[place] == wanted
            result[known] = self.part[place[known]]
        return torch.from_numpy(result)
