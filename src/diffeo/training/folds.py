"""Folds: several flows, each trained without a part of the rows, stacked with simpler densities by what they miss."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo import recipes
from diffeo.flow import BLOCK, Flow
from diffeo.mixture import Mixture
from diffeo.objectives import Objective, objective_of
from diffeo.progress import Display, Relay, Training
from diffeo.structure import described, rebuilt
from diffeo.summary import Curve, Summarised, Summary, pair, quantity
from diffeo.training.batches import as_tensor, check_weights, in_proportion
from diffeo.training.digests import digests
from diffeo.training.families import FAMILIES, INDEPENDENT, fitted
from diffeo.training.fit import FitResult, fit
from diffeo.training.interrupt import Interrupt
from diffeo.training.journal import Journal
from diffeo.training.parallel import World
from diffeo.training.seeding import derive, seed_noise
from diffeo.workers import cores, processes

__all__ = ["FoldsResult", "assign_folds", "fit_folds", "out_of_fold", "stack", "whole_blocks"]

FLOOR = 1e-4  # the least weight of the broad density: no row is less likely than under it by more than 9.2 nats
NEGLIGIBLE = 1e-4  # the weight below which a density is left out of the stack
ROUNDS = 1_000  # of expectation maximisation
SETTLED = 1e-9  # nats per row that a round has to gain

Make = Callable[[Flow], Objective]


@dataclass(frozen=True, repr=False)
class FoldsResult(Summarised):
    """What a training by folds came to.

    Attributes:
        flow: the density: the mean over the folds of a mixture of families, ``flow.members[k]`` that of fold k, none of
            whose parts has been trained on the rows of fold k.
        fold: which fold each row is in, ``(N,)``.
        log_prob: of each row by the density that has not been trained on it, in nats, ``(N,)``, double precision.
        weights: of each family.
        scores: mean log-likelihood of each family out of fold, alone.
        members: how each training of a flow went, fold after fold.
        training: all of them as one: the means over the flows of each epoch that all have had, the median of their best
            epochs, the mean of their best losses, the most epochs, the steps of all; "interrupted" if one of them was.
    """

    flow: Mixture
    fold: Tensor
    log_prob: Tensor
    weights: dict[str, float]
    scores: dict[str, float]
    members: list[FitResult]
    training: FitResult

    def _summary(self) -> Summary:
        count, folds = len(self.fold), len(self.flow.members)
        error = float(self.log_prob.std()) / math.sqrt(count)
        weights = sorted(self.weights.items(), key=lambda each: -each[1])
        facts = {
            "rows": f"{count:,} in {quantity(folds, 'fold')}",
            "weights": ", ".join(f"{name} {weight:.2g}" for name, weight in weights if weight >= NEGLIGIBLE),
            **self.training._summary().facts,
        }
        title = f"FoldsResult: log-likelihood out of fold {pair(float(self.log_prob.mean()), error)} nats"
        return Summary(title, facts, curves=[Curve.of(member.history) for member in self.members])


@dataclass(frozen=True)
class Task:
    """A flow to train on all folds but one.

    Attributes:
        flow: what is trained, in fresh copies.
        fold: the fold that is held out.
        folder: of the member's own run directory, or None.
        name: of the flow.
        seed: of its initial weights, order and noise.
        epochs: the budget, or None.
    """

    flow: Flow
    fold: int
    folder: Path | None
    name: str
    seed: int
    epochs: int | None


def assign_folds(x: Tensor, context: Tensor | None, folds: int, seed: int, together: bool = True) -> Tensor:
    """Draw the fold of each row: ``(N,)``, all folds of about one size.

    Args:
        x: rows ``(N, *event)``.
        context: of each row, or None.
        folds: how many.
        seed: of the draw.
        together: whether equal rows come into one fold, so that no row is held out of what has been trained on it. (Of
            discrete values equal rows are no copies.)

    Raises:
        ValueError: for fewer than two folds, or fewer than two rows, or different ones, for each.
    """
    if folds < 2:
        raise ValueError(f"expected folds >= 2, got {folds}")
    keys = digests(x, context) if together else np.arange(len(x))
    _, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    if len(sizes) < 2 * folds:
        raise ValueError(f"expected at least {2 * folds} different rows for {folds} folds, got {len(sizes)}")
    order = np.random.default_rng(seed).permutation(len(sizes))
    middle = np.cumsum(sizes[order]) - sizes[order] / 2
    fold = np.empty(len(sizes), dtype=np.int64)
    fold[order] = np.minimum(middle * folds / len(x), folds - 1)
    return torch.from_numpy(fold[group])


def stack(log_prob: Tensor, floors: Sequence[float] | None = None, counts: Tensor | None = None) -> Tensor:
    """Weights w that maximise sum_n c_n log sum_f w_f exp(o_nf), by expectation maximisation (Smyth and Wolpert 1998).

    Args:
        log_prob: o_nf ``(N, F)``, out of fold; -inf where a family gives a row no mass.
        floors: the least weight of each family, 0 by default.
        counts: c_n, how much each row counts ``(N,)``, 1 by default.

    Returns:
        ``(F,)``, of sum 1, double precision.
    """
    each = log_prob.double()
    some = torch.isfinite(each).any(1)
    if counts is not None:
        some &= counts > 0
    each = each[some]
    share = torch.ones(len(each), 1, dtype=torch.float64) if counts is None else counts.double()[some, None]
    share = share / share.mean()
    least = torch.tensor(list(floors) if floors is not None else [0.0] * each.shape[1], dtype=torch.float64)
    weights = torch.full_like(least, 1 / len(least))
    if not len(each):
        return weights
    before = -math.inf
    for _ in range(ROUNDS):
        joint = each + weights.log()
        total = torch.logsumexp(joint, 1, keepdim=True)
        mean = float((share * total).mean())
        if mean - before < SETTLED:
            break
        before = mean
        weights = (share * (joint - total).exp()).mean(0)
        low = weights < least  # these stay at their least, the others share the rest
        if low.any():
            rest = 1 - least[low].sum()
            weights = torch.where(low, least, weights * (rest / weights[~low].sum()))
    return weights / weights.sum()


def fit_folds(
    flow: Flow | Mapping[str, Flow],
    x: Any,
    context: Any = None,
    *,
    weights: Any = None,
    folds: int = 5,
    families: Sequence[str] | None = None,
    objective: Make = objective_of,
    together: bool = True,
    seed: int = 0,
    minutes: float | None = None,
    most_epochs: Mapping[str, int] | None = None,
    jobs: int | None = None,
    device: str | torch.device | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
    **training: Any,
) -> FoldsResult:
    r"""Train a flow without each fold, and stack flows and simpler densities by the likelihood of what each held out.

    .. math:: p(x) = \sum_f w_f \frac{1}{K} \sum_{k=1}^K p_{fk}(x)

    The families f are the flows, and for vectors without a context a Gaussian, a mixture of Gaussians, a kernel
    density, and a broad one that keeps any row from costing more than its distance. :math:`p_{fk}` is trained on all
    folds but k, a flow until the likelihood of fold k is best. The weights maximise the likelihood of the rows out of
    fold, so the stack is about as good as the best of the families on new rows, mostly better; and every row has a
    likelihood by densities that have not been trained on it.

    Args:
        flow: what to train, which itself stays as it is; or several by name, of other capacities.
        x: rows, a tensor or array ``(N, *event)``.
        context: what the density is conditional on, ``(N, *context)``.
        weights: how much each row counts ``(N,)``, as ``diffeo.fit`` takes them: in every training, and in the stack.
            The simpler densities are fitted to rows drawn in proportion.
        folds: the number K.
        families: of simple densities, among "gaussian", "gaussians", "kernels" and "broad"; by default all of them for
            vectors of complete numbers, with a context "broad" alone. Beside mixed densities "independent" columns.
        objective: makes of a flow what it is trained by.
        together: whether equal rows come into one fold; see ``assign_folds``.
        seed: decides the folds, the initial weights, the orders and the noise.
        minutes: the budget of all trainings together.
        most_epochs: by the names of flows that have learned what they can sooner than others, after how many epochs.
        jobs: how many are trained side by side, each by one thread; by default as many as there are cores, on a GPU
            one. The weights do not depend on it.
        device: where to train.
        out: a folder that receives a run directory for each training, in ``train``.
        resume: go on with what is in ``out``.
        progress: show one bar for all trainings; see ``diffeo.fit``.
        say: called when a training is over.
        training: further arguments of ``diffeo.fit``, such as ``epochs``, ``lr`` and ``patience``.

    Raises:
        UserError: as ``diffeo.fit``.
        ValueError: for bad arguments, or too few rows.

    Example:
        >>> x = torch.randn(100, 2)
        >>> result = diffeo.fit_folds(diffeo.maf(2, hidden=(8,)), x, folds=2, families=["gaussian"], epochs=1, jobs=1)
        >>> result.log_prob.shape  # of each row, by the density that has not seen it
        torch.Size([100])
        >>> sorted(result.weights)
        ['flow', 'gaussian']
    """
    started = time.monotonic()
    named_flows = {"flow": flow} if isinstance(flow, Flow) else dict(flow)
    names, flows = list(named_flows), list(named_flows.values())
    rows = as_tensor(x, "x")
    contexts = None if context is None else as_tensor(context, "context")
    counts = None if weights is None else check_weights(as_tensor(weights, "weights"), len(rows))
    simple = _simple(flows[0], rows) if families is None else list(families)
    known = [INDEPENDENT] if flows[0].transform.takes_missing else list(FAMILIES)
    unknown = [name for name in simple if name not in known]
    if unknown:
        raise ValueError(f"expected families among {', '.join(known)}, got {unknown[0]!r}")
    most = dict(most_epochs or {})
    if most.keys() - names:
        raise ValueError(f"expected most_epochs of flows among {', '.join(names)}, got {min(most.keys() - names)!r}")
    world = World(torch.device(device or flows[0].base.device_marker.device))
    fold = assign_folds(rows, contexts, folds, derive(seed, "folds"), together)
    tasks = [
        Task(
            each, k, None if out is None else Path(out) / "train" / f"{name.replace(' ', '-')}-{k + 1}", name,
            derive(seed, "member", name, k), _fewest(training.get("epochs"), most.get(name)),
        )
        for k in range(folds) for name, each in zip(names, flows, strict=True)
    ]  # fmt: skip
    side_by_side = world.size == 1 and world.device.type == "cpu"
    jobs = min(cores() if jobs is None else jobs, len(tasks)) if side_by_side else 1
    if minutes is not None:
        training["minutes"] = minutes / math.ceil(len(tasks) / jobs)
    training.pop("epochs", None)
    train = partial(
        _train, x=rows, context=contexts, weights=counts, fold=fold, objective=objective, resume=resume, **training
    )
    trained = _all_trained(train, tasks, jobs, world.device, progress and world.leads, say)

    every = [*names, *simple]
    with _one_thread(world.device):
        members = [[copied for copied, _ in trained[k * len(flows) : (k + 1) * len(flows)]] for k in range(folds)]
        scores = torch.full((len(rows), len(every)), -torch.inf, dtype=torch.float64)
        for k, held in enumerate(members):
            inside, outside = (fold != k).nonzero()[:, 0], (fold == k).nonzero()[:, 0]
            inside = inside if counts is None else inside[in_proportion(counts[inside])]
            held += [fitted(name, held[0], rows[inside], derive(seed, name, k) % 2**32) for name in simple]
            for f, member in enumerate(held):
                scores[outside, f] = _scored(member, rows, contexts, outside)
        floors = [FLOOR if name == "broad" else 0.0 for name in every]
        stacked = stack(scores, floors, counts)
        kept = [f for f in range(len(every)) if stacked[f] >= NEGLIGIBLE]
        shares = stacked[kept] / stacked[kept].sum()
        density = Mixture(Mixture([held[f] for f in kept], shares) for held in members).eval()
    named = {name: float(stacked[f]) for f, name in enumerate(every)}
    share = torch.ones(len(rows), 1) if counts is None else (counts / counts.mean())[:, None]
    means = torch.where(share > 0, share * scores, 0).mean(0).tolist()
    results = [result for _, result in trained]
    training_as_one = _as_one(results, time.monotonic() - started)
    if out is not None and world.leads:
        Journal(Path(out) / "train", training_as_one.history)
    return FoldsResult(
        flow=density, fold=fold, log_prob=torch.logsumexp(scores[:, kept] + shares.log(), 1), weights=named,
        scores=dict(zip(every, means, strict=True)), members=results,
        training=training_as_one,
    )  # fmt: skip


def _as_one(results: Sequence[FitResult], seconds: float) -> FitResult:
    history = [
        {name: sum(entry[name] for entry in entries) / len(entries) for name in entries[0]} | {"epoch": number}
        for number, entries in enumerate(zip(*(result.history for result in results), strict=False), start=1)
    ]
    stopped = [result.stopped for result in results]
    return FitResult(
        history=history,
        best_epoch=int(np.median([result.best_epoch for result in results])),
        best_loss=float(np.mean([result.best_loss for result in results])),
        epochs=max(result.epochs for result in results),
        steps=sum(result.steps for result in results),
        skipped=sum(result.skipped for result in results),
        seconds=seconds,
        stopped="interrupted" if "interrupted" in stopped else stopped[-1],
    )


def whole_blocks(rows: Tensor, block: int = BLOCK) -> Tensor:
    """The numbers of rows, the last one repeated until they are a multiple of ``block``.

    What a density says of a row depends, in the last bits, on whether the row is in a full vector of the processor or
    among those left over at the end of a batch. Of batches of whole blocks, it does not depend on the batch.

    Args:
        rows: numbers ``(n,)``, at least one.
        block: how many rows a batch has a multiple of.
    """
    return torch.cat([rows, rows[-1:].expand(-len(rows) % block)])


@torch.no_grad()
def out_of_fold(flow: Flow, fold: Tensor, score: Callable[[Flow, Tensor], Tensor], block: int = 1) -> Tensor:
    """What densities say of rows that they have not been trained on: ``(n, ...)``, in double precision.

    Args:
        flow: of ``fit_folds``; or any other, for rows that none of it has seen.
        fold: the fold that each row was in ``(n,)``, negative for a row that no part has seen.
        score: of a density and the numbers of rows (m,) makes values (m, ...), such as log-likelihoods.
        block: how many rows are scored together is a multiple of this; see ``whole_blocks``.
    """
    result = torch.empty(0, dtype=torch.float64)
    for k in fold.unique().tolist():
        mine = (fold == k).nonzero()[:, 0]
        density = flow.members[k] if k >= 0 and isinstance(flow, Mixture) else flow
        values = score(density, whole_blocks(mine, block))[: len(mine)].double().cpu()
        if not len(result):
            result = values.new_empty(len(fold), *values.shape[1:])
        result[mine] = values
    return result


def _fewest(*epochs: int | None) -> int | None:
    return min((each for each in epochs if each is not None), default=None)


def _simple(flow: Flow, x: Tensor) -> list[str]:
    """The simple families that there are for rows like these."""
    if x.dim() != 2 or (flow.transform.takes_missing and flow.context_shape):
        return []
    if flow.transform.takes_missing:
        return [INDEPENDENT]
    return ["broad"] if flow.context_shape else list(FAMILIES)


def _train(
    task: Task,
    *,
    x: Tensor,
    context: Tensor | None,
    weights: Tensor | None,
    fold: Tensor,
    objective: Make,
    resume: bool,
    device: torch.device,
    progress: bool | Training,
    **training: Any,
) -> tuple[Flow, FitResult]:
    """Train a fresh copy of a flow on all folds but one."""
    inside, outside = (fold != task.fold).nonzero()[:, 0], (fold == task.fold).nonzero()[:, 0]
    with _one_thread(device), torch.random.fork_rng([]):
        seed_noise(torch.device("cpu"), derive(task.seed, "weights"))
        member = _fresh(task.flow).to(task.flow.base.device_marker)
        (contexts, held_contexts), (counts, held_counts) = (
            (None, None) if part is None else (part[inside], part[outside]) for part in (context, weights)
        )
        again = resume and task.folder is not None and (task.folder / "train").is_dir()
        result = fit(
            objective(member), x[inside], contexts, weights=counts, validation=(x[outside], held_contexts, held_counts),
            seed=task.seed, epochs=task.epochs, device=device, out=task.folder, resume=again, progress=progress,
            **training,
        )  # fmt: skip
    return member, result


def _fresh(flow: Flow) -> Flow:
    """A flow of the same structure, with initial weights of its own; an embedding that is not diffeo's is copied."""
    if flow.recipe is not None:
        return recipes.build(flow.recipe["name"], flow.recipe["arguments"])
    try:
        return rebuilt(described(flow))
    except ValueError:
        if flow.embedding is None:
            raise
    inner = Flow(flow.base, flow.transform, flow.event_shape, flow.context_shape, flow.context_transform)
    fresh = rebuilt(described(inner))
    fresh.embedding = copy.deepcopy(flow.embedding)
    for module in fresh.embedding.modules():  # torch's own layers can draw their weights again
        if callable(again := getattr(module, "reset_parameters", None)):
            again()
    return fresh


def _all_trained(
    train: Callable[..., tuple[Flow, FitResult]],
    tasks: Sequence[Task],
    jobs: int,
    device: torch.device,
    progress: bool,
    say: Callable[[str], None],
) -> list[tuple[Flow, FitResult]]:
    """Train for all tasks, so many side by side, in order. After Ctrl-C the rest get no more than they have."""

    def over(number: int, result: FitResult) -> None:
        held_out, took = f"{result.best_loss:.4g} nats held out", f"{result.epochs} epochs, {result.seconds:.0f} s"
        say(f"fold {tasks[number].fold + 1}, {tasks[number].name}: {held_out} ({took})")

    done: dict[int, tuple[Flow, FitResult]] = {}
    with Display([task.name for task in tasks], progress) as display:
        if jobs == 1:
            for number, task in enumerate(tasks):
                done[number] = train(task, device=device, progress=display.trainings[number])
                over(number, done[number][1])
                if done[number][1].stopped == "interrupted":
                    break
        else:
            with Interrupt() as interrupt, TemporaryDirectory() as folder, processes(jobs) as pool:
                relays = [Relay(Path(folder) / f"{number}.json") for number in range(len(tasks))]
                running: dict[Future[tuple[Flow, FitResult]], int] = {}
                # The largest first, so that none of these is left over for one process at the end.
                left = sorted(enumerate(tasks), key=lambda each: -_size(each[1].flow))
                while running or (left and not interrupt.pressed):
                    while left and len(running) < jobs and not interrupt.pressed:
                        number, task = left.pop(0)
                        part = Training(task.name, relays[number]) if progress else False
                        running[pool.submit(train, task, device=device, progress=part)] = number
                    for future in wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done:
                        number = running.pop(future)
                        done[number] = future.result()
                        relays[number].into(display.trainings[number])
                        over(number, done[number][1])
                    for number in running.values():
                        relays[number].into(display.trainings[number])
                    display.update()
    if len(done) < len(tasks):
        raise KeyboardInterrupt
    return [done[number] for number in range(len(tasks))]


def _size(flow: Flow) -> int:
    return sum(parameter.numel() for parameter in flow.parameters())


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """A block that computes with one thread, whatever else runs: then results do not depend on how many there are."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def _scored(member: Flow, x: Tensor, context: Tensor | None, rows: Tensor) -> Tensor:
    """Log-likelihoods of these rows, as a run's scores are."""
    marker = member.base.device_marker
    contexts = None if context is None else context[rows].to(marker.device)
    return member.log_mass(x[rows].to(marker.device), contexts, nan="propagate").double().cpu().nan_to_num(-torch.inf)
