"""What a student loses against its teacher: both divergences, entropies, modes, likelihood of real data, and speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.report.compare import classifier_test
from diffeo.report.statistics import mean_and_error
from diffeo.report.style import GREY, MODEL, REAL, figure
from diffeo.training.seeding import seed_noise
from diffeo.transforms import Autoregressive, Chain, Transform

__all__ = [
    "Draws",
    "compare_draws",
    "divergence_curve",
    "divergences",
    "draw_both",
    "generate_naively",
    "likelihoods",
    "mode_recall",
    "pace",
    "warnings",
]

MODES = 10  # clusters that the teacher's draws are divided into
CLASSIFIED = 5_000  # draws of each kind shown to a classifier
CLUSTERED = 5_000  # draws of the teacher that clusters are found in

# A student drops modes where it keeps less than this share of one, or where the forward KL is so many times the reverse
# one and so many nats; it is over-dispersed where its entropy is larger by so many nats per dimension, and is far from
# its teacher beyond so many nats per dimension of KL. Two standard errors are granted.
LEAST_RECALL = 0.5
LOPSIDED = (3.0, 0.1)
OVER_DISPERSED = 0.1
FAR = 0.1


@dataclass(frozen=True)
class Draws:
    """Draws of a teacher and of its student, in the same contexts, with both densities of each.

    ``x`` (n, D) are the teacher's and ``s`` the student's; ``log_p`` is the teacher's density, ``log_q`` the student's,
    each (n,) in double precision; rows where anything is not finite are left out: ``kept`` (rows,) says which are not.
    """

    x: Tensor
    s: Tensor
    context: Tensor | None
    log_p_x: np.ndarray
    log_q_x: np.ndarray
    log_p_s: np.ndarray
    log_q_s: np.ndarray
    kept: Tensor


@torch.no_grad()
def draw_both(student: Flow, teacher: Flow, context: Tensor | None, rows: int, seed: int) -> Draws:
    """Draw so many rows from both, in the contexts (rows, *context) where the flows take one."""
    device = teacher.base.device_marker.device
    seed_noise(device, seed)
    shape = (rows,) if context is None else ()
    s, log_q_s = student.sample_and_log_prob(shape, context)
    x, log_p_x = teacher.sample_and_log_prob(shape, context)
    log_p_s = teacher.log_prob(s, context, nan="propagate")
    log_q_x = student.log_prob(x, context, nan="propagate")
    log_p_x, log_q_x, log_p_s, log_q_s = (part.double().cpu() for part in (log_p_x, log_q_x, log_p_s, log_q_s))
    good = torch.stack([log_p_x, log_q_x, log_p_s, log_q_s]).isfinite().all(0)
    kept = good.to(device)
    return Draws(
        x=x[kept], s=s[kept], context=None if context is None else context[kept],
        log_p_x=log_p_x[good].numpy(), log_q_x=log_q_x[good].numpy(),
        log_p_s=log_p_s[good].numpy(), log_q_s=log_q_s[good].numpy(),
        kept=kept,
    )  # fmt: skip


def divergences(draws: Draws) -> dict[str, Any]:
    """Return both KLs, means of log-ratios over the draws of one of them, in nats per row, and both entropies.

    Returns:
        Plain data: ``reverse_kl``, ``forward_kl``, ``entropy`` of both, each with its standard error; ``rows``,
        ``dimensions`` and ``non_finite``.
    """
    dimensions = draws.x.shape[1]
    return {
        "rows": len(draws.x),
        "dimensions": dimensions,
        "non_finite": int((~draws.kept).sum()),
        "reverse_kl": _divergence(draws.log_q_s - draws.log_p_s, dimensions),
        "forward_kl": _divergence(draws.log_p_x - draws.log_q_x, dimensions),
        "entropy": {"student": mean_and_error(-draws.log_q_s), "teacher": mean_and_error(-draws.log_p_x)},
    }


def compare_draws(draws: Draws, seed: int, centres: np.ndarray | None = None) -> dict[str, Any]:
    """Say how far student and teacher are apart: divergences, modes, and whether a classifier can tell them apart.

    The effective sample size is that of the student's draws weighted by p / q, as a share of their number.

    Args:
        draws: of both.
        seed: of clusters and classifier.
        centres: of known modes (k, D); clusters of the teacher's draws by default.

    Returns:
        Plain data: what ``divergences`` has, ``effective_sample_size``, ``modes`` and ``classifier``.
    """
    real, fake = (part.double().cpu().numpy() for part in (draws.x, draws.s))
    log_weights = draws.log_p_s - draws.log_q_s
    weights = np.exp(log_weights - log_weights.max())
    extra = np.empty((len(real), 0)) if draws.context is None else draws.context.double().cpu().numpy()
    teacher, student = (np.concatenate([part, extra], 1)[:CLASSIFIED] for part in (real, fake))
    return {
        **divergences(draws),
        "effective_sample_size": float(weights.sum() ** 2 / np.square(weights).sum() / len(weights)),
        "modes": mode_recall(real, fake, seed, centres),
        "classifier": classifier_test(teacher, student, seed),
    }


def _divergence(log_ratio: np.ndarray, dimensions: int) -> dict[str, float]:
    summary = mean_and_error(log_ratio)
    return {
        **summary,
        "per_dimension": summary["mean"] / dimensions,
        "stderr_per_dimension": summary["stderr"] / dimensions,
    }


def mode_recall(real: np.ndarray, fake: np.ndarray, seed: int, centres: np.ndarray | None = None) -> dict[str, Any]:
    """Say which share of each mode's mass a student keeps: its share of the mode divided by the teacher's.

    Args:
        real: the teacher's draws (n, D).
        fake: the student's.
        seed: of the clustering.
        centres: of known modes (k, D); by default the teacher's draws are clustered by k-means.

    Returns:
        The recall of every mode, the lowest with its standard error, and how many are kept (at least half).
    """
    if centres is None:
        from sklearn.cluster import KMeans

        few = np.random.default_rng(seed).permutation(len(real))[:CLUSTERED]
        centres = KMeans(min(MODES, len(few)), n_init=4, random_state=seed).fit(real[few]).cluster_centers_
    nearest = [
        torch.cdist(torch.from_numpy(part), torch.from_numpy(np.asarray(centres, dtype=np.float64))).argmin(1).numpy()
        for part in (real, fake)
    ]
    teacher, student = (np.bincount(near, minlength=len(centres)) / len(near) for near in nearest)
    recall = np.divide(student, teacher, out=np.ones(len(teacher)), where=teacher > 0)
    worst = int(recall.argmin())
    # Both shares are binomial: the relative variances of a quotient add. A mode without draws might as well have one.
    draws = [max(share[worst] * len(part), 1.0) for share, part in ((teacher, real), (student, fake))]
    relative = sum((1 - share[worst]) / count for share, count in zip((teacher, student), draws, strict=True))
    seen = draws[1] / len(fake) / max(teacher[worst], 1 / len(real))
    return {
        "recall": recall.tolist(),
        "lowest": float(recall[worst]),
        "stderr": float(seen * relative**0.5),
        "kept": int((recall >= LEAST_RECALL).sum()),
        "modes": len(recall),
    }


def warnings(report: dict[str, Any]) -> list[str]:
    """Say in words what a user must know before trusting the student: modes dropped, over-dispersion, a wide gap."""
    texts: list[str] = []
    reverse, forward, modes = report["reverse_kl"], report["forward_kl"], report["modes"]
    student, teacher = report["entropy"]["student"], report["entropy"]["teacher"]
    margin = 2 * (forward["stderr"] + LOPSIDED[0] * reverse["stderr"])
    if modes["lowest"] + 2 * modes["stderr"] < LEAST_RECALL:
        texts.append(
            f"the student drops modes: of one of {modes['modes']} clusters of the teacher's draws it keeps "
            f"{modes['lowest']:.0%}; give more minutes, or a larger student"
        )
    elif forward["mean"] - margin > LOPSIDED[0] * max(reverse["mean"], 0.0) + LOPSIDED[1]:
        texts.append(
            f"the student leaves out some of what the teacher knows: the forward KL, {forward['mean']:.2f} nats, is "
            f"far above the reverse one, {reverse['mean']:.2f}; give more minutes, or a larger student"
        )
    wider = student["mean"] - teacher["mean"] - 2 * (student["stderr"] + teacher["stderr"])
    if wider > OVER_DISPERSED * report["dimensions"]:
        texts.append(
            f"the student is over-dispersed: its entropy is {student['mean'] - teacher['mean']:.2f} nats above the "
            "teacher's, its rows are more blurred"
        )
    largest = max(part["per_dimension"] - 2 * part["stderr_per_dimension"] for part in (reverse, forward))
    if largest > FAR and not texts:
        texts.append(
            f"the student is {largest:.2f} nats per dimension away from its teacher; give more minutes, or a larger "
            "student"
        )
    if report["non_finite"]:
        texts.append(f"{report['non_finite']} draws or their densities are not finite")
    return texts


@torch.no_grad()
def pace(draw: Callable[[int], Any], rows: int, seconds: float = 0.3) -> float:
    """Return rows per second of ``draw(rows)``: the median of three calls or more, after one that warms up.

    A call that takes longer than ``seconds`` is made once.
    """
    took: list[float] = []
    while len(took) < 4 or sum(took[1:]) < seconds:
        started = time.perf_counter()
        draw(rows)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took.append(time.perf_counter() - started)
        if took[0] > seconds:
            return rows / took[0]
    return rows / float(np.median(took[1:]))


@torch.no_grad()
def generate_naively(transform: Transform, z: Tensor, context: Tensor | None = None) -> Tensor:
    """Generate x = f(z), each autoregressive layer by one pass of its network per element, as others do; (n, D).

    For comparison only: ``transform.forward`` gives the same at the price of about one pass.
    """
    if isinstance(transform, Chain):
        for part in transform:
            z = generate_naively(part, z, context)
        return z
    if not isinstance(transform, Autoregressive):
        return transform.forward(z, context)
    columns = z.mT.contiguous()  # (D, n)
    x = torch.zeros_like(columns)
    for i in range(len(x)):
        x[i] = transform.univariate.forward_and_log_det(columns, transform.net(x, context))[0][i]
    return x.mT


def divergence_curve(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path, units: int = 1, unit: str = "row"
) -> None:
    """Plot the divergence of student and teacher over training, stage after stage.

    Args:
        histories: of both stages, by what they minimise, the entries of ``diffeo.fit``'s history, in nats per row.
        path: of the PNG.
        units: that a row is divided into, the samples of a sound say; nats are shown for each of them.
        unit: what one is called.
    """
    from matplotlib.ticker import FuncFormatter

    with figure(path, (6.4, 3.8)) as fig:
        axes = fig.add_subplot()
        before, lowest = 0, np.inf
        for (name, entries), colour in zip(histories.items(), (GREY, MODEL), strict=True):
            steps = before + np.array([entry["step"] for entry in entries])
            loss, error = (np.array([entry[key] for entry in entries]) / units for key in ("val_loss", "val_stderr"))
            marker = "o" if len(entries) < 15 else None
            axes.plot(steps, loss, color=colour, lw=1.5, marker=marker, ms=3, label=f"{name}: {loss[-1]:.3f}")
            axes.fill_between(steps, loss - error, loss + error, color=colour, alpha=0.18, lw=0)
            before, lowest = steps[-1], min(lowest, loss.min())
        # The first steps are far off; a KL that is estimated near 0 may fall below it, which a log scale cannot show.
        axes.set_yscale("symlog" if lowest <= 0 else "log", **({"linthresh": 0.01} if lowest <= 0 else {}))
        for each in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            each(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("step")
        axes.set_ylabel(f"nats per {unit}")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)  # above, never in the way


def likelihoods(draws: Draws, real: np.ndarray | None, path: str | Path) -> None:
    """Plot the teacher's log-likelihoods as histograms: of real rows (or its own draws), and of the student's draws.

    Args:
        draws: of both.
        real: the teacher's log-likelihoods of real rows that it was not trained on, or None.
        path: of the PNG.
    """
    first, name = (draws.log_p_x, "the teacher's rows") if real is None else (real, "real rows, held out")
    both = np.concatenate([first, draws.log_p_s])
    low, high = np.quantile(both, [0.005, 1.0])
    edges = np.linspace(low, high + 1e-6, 61)
    with figure(path, (6.4, 3.4)) as fig:
        axes = fig.add_subplot()
        for values, label, style in (
            (first, name, {"histtype": "stepfilled", "color": REAL, "alpha": 0.35, "lw": 0}),
            (draws.log_p_s, "the student's rows", {"histtype": "step", "color": MODEL, "lw": 1.4}),
        ):
            # What lies below the range is counted in the first bin, so that no row is hidden.
            clipped = values.clip(low, None)
            weights = np.full(len(values), 1 / (len(values) * (edges[1] - edges[0])))
            axes.hist(clipped, bins=edges, weights=weights, label=f"{label} ({len(values):,})", **style)
        if real is not None:
            counts, _ = np.histogram(draws.log_p_x.clip(low, None), bins=edges, density=True)
            axes.stairs(counts, edges, color=GREY, lw=1, label=f"the teacher's rows ({len(draws.log_p_x):,})")
        axes.set_xlabel("log-likelihood under the teacher (nats per row, standardised units)")
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.legend(loc="upper left")
