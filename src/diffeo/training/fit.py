"""The training loop."""

import math
import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffeo.arguments import expect_number, expect_whole
from diffeo.flow import Flow
from diffeo.nets.precision import bfloat16 as half_precision
from diffeo.objectives import Objective, WithoutData, as_objective
from diffeo.progress import ENDED, Training, reported
from diffeo.summary import Curve, Summarised, Summary, pair, quantity
from diffeo.training.batches import Nothing, Rows, Stream, default_epochs, default_patience, split
from diffeo.training.checkpoint import Store, describe, trained
from diffeo.training.evaluate import evaluate
from diffeo.training.initialise import Breakdown, breakdown, initialise
from diffeo.training.interrupt import Interrupt
from diffeo.training.journal import Journal
from diffeo.training.optimizer import learning_rate
from diffeo.training.pairs import Pairs
from diffeo.training.parallel import World
from diffeo.training.place import is_run
from diffeo.training.run import create_run, provenance, save_weights
from diffeo.training.seeding import derive, fork_rng, seed_noise
from diffeo.training.update import Update

__all__ = ["FitResult", "fit"]

MAX_BAD_IN_A_ROW = 50


@dataclass(frozen=True, repr=False)
class FitResult(Summarised):
    """What a training came to.

    Attributes:
        history: one dict per epoch, as ``metrics.jsonl`` has them.
        best_epoch: the epoch, from 1, whose weights were kept.
        best_loss: their validation loss; without validation data, the last epoch's training loss.
        epochs: how many there were.
        steps: how many there were, the skipped ones included.
        skipped: batches with a non-finite loss or gradient.
        seconds: how long it took, resumed trainings together.
        stopped: why it ended: "budget", "patience" or "interrupted".
    """

    history: list[dict[str, Any]]
    best_epoch: int
    best_loss: float
    epochs: int
    steps: int
    skipped: int
    seconds: float
    stopped: str

    def _summary(self) -> Summary:
        curve, error = Curve.of(self.history), math.nan
        for entry in self.history:
            if entry["epoch"] == self.best_epoch and entry["val_loss"] == self.best_loss:
                error = entry["val_stderr"]
        facts = {
            "trained": f"{quantity(self.epochs, 'epoch')}, {quantity(self.steps, 'step')}, {self.seconds:.1f} s",
            "ended": ENDED.get(self.stopped, self.stopped),
        }
        if self.skipped:
            facts["skipped"] = (
                f"{quantity(self.skipped, 'batch', 'batches')} with a loss or gradient that is not finite"
            )
        which = "validation" if curve.validated else "training"
        loss = f"{which} loss {pair(self.best_loss, error)} in epoch {self.best_epoch}" if self.history else "no epoch"
        return Summary(f"FitResult: {loss}", facts, curves=[curve])


@dataclass
class State:
    """Where a training stands: with the tensors of a checkpoint, all that resuming needs."""

    epoch: int = 0  # epochs done
    batch: int = 0  # batches done in the present epoch
    batches: int | None = None  # batches per epoch, once known
    step: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    typical_norm: float = 0.0  # running mean norm of the gradient
    seconds: float = 0.0
    # of the present epoch: sums over its good batches, their number, all its rows, the time spent on them
    loss: float = 0.0
    weight: float = 0.0
    norm: float = 0.0
    good: int = 0
    rows: int = 0
    busy: float = 0.0
    # so far
    best_epoch: int = 0
    best_loss: float = math.inf
    best_bad: float = math.inf  # validation rows without a finite loss, then
    stopped: str = ""
    extended: int = 0  # the epoch from which on it was trained longer than it first was to be
    history: list[dict[str, Any]] = field(default_factory=list)

    def fraction_done(self, epochs: int | None, minutes: float | None) -> float:
        """Return how much of the budget is used up in the middle of the present step."""
        within = min(1.0, (self.batch + 0.5) / self.batches) if self.batches else 0.5
        by_epochs = (self.epoch + within) / epochs if epochs else 0.0
        return min(1.0, max(by_epochs, self.seconds / (60 * minutes) if minutes else 0.0))

    def end_epoch(self, validation: tuple[float, float, int], lr: float) -> dict[str, Any]:
        """Add an entry to the history, return it, and make ready for the next epoch."""
        self.epoch += 1
        good = self.good or math.nan
        entry = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": self.loss / (self.weight or math.nan),
            **dict(zip(("val_loss", "val_stderr", "val_bad"), validation, strict=True)),
            "lr": lr,
            "grad_norm": self.norm / good,
            "skipped": self.skipped,
            "rows_per_second": self.rows / self.busy if self.busy else math.nan,
            "seconds": self.seconds,
        }
        self.history.append(entry)
        self.batch = self.good = self.rows = 0
        self.loss = self.weight = self.norm = self.busy = 0.0
        return entry


def fit(
    objective: Objective | Flow,
    x: Any = None,
    context: Any = None,
    *,
    weights: Any = None,
    validation: Any = 0.1,
    steps: int | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    batch_size: int = 512,
    lr: float = 1e-2,
    weight_decay: float = 1e-2,
    warmup: float = 0.03,
    clip: float = 10.0,
    ema: float = 0.999,
    bfloat16: bool = False,
    accumulate: int = 1,
    patience: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool | Training = False,
    checkpoint_every: float = 30.0,
) -> FitResult:
    """Minimise the mean of ``objective(x, context)``; its flow ends with the best averaged weights, in evaluation mode.

    AdamW, a learning rate that warms up linearly and falls as a cosine to 0 over the budget, outlying gradients
    clipped, an exponential moving average of the weights, early stopping on validation data. A batch with a non-finite
    loss or gradient changes nothing but ``skipped``; 50 in a row end the training.

    Args:
        objective: the loss per example, for instance ``MaximumLikelihood(flow)``; or a flow, which is then trained by
            maximum likelihood, that of the recipe ``flow_matching`` by flow matching.
        x: the data: a tensor or array ``(N, *event)``, or a stream: an object whose every iteration gives the same
            batches, tensors, (x, context) pairs or (x, context, weights) triples (a ``BatchStream`` or what
            ``Iterated`` takes), of sizes of its own. None for an objective that draws its own points, such as
            ``ReverseKL``: then there are ``steps``, or contexts alone.
        context: what the density is conditioned on, ``(N, *context)``, row by row.
        weights: how much each row counts, (N,), finite and at least 0: the loss is the weighted mean sum(w l) / sum(w),
            in training and in validation on rows held out. Only their ratios matter. A row of weight 0 is as good as
            left out, one of weight 2 as good as two rows. Layers that set themselves from the data (``Standardize``,
            ``ActNorm``) do so from rows drawn in proportion to the weights.
        validation: a fraction of the rows to hold out, or rows, an (x, context) pair, an (x, context, weights) triple
            or a stream; 0 for none.
        steps: the budget of a training without data. Its history has an entry for about a hundred steps.
        epochs: the budget in epochs; about 10,000 steps, but at most 1,000 epochs, if no budget is given.
        minutes: the budget in minutes; with both, whichever is used up first.
        batch_size: rows per step, over all processes together; larger than the data means all of them.
        lr: the highest learning rate; a module's attribute ``lr_scale`` multiplies it for the module's parameters.
        weight_decay: AdamW's, on matrices only.
        warmup: the fraction of the budget over which the learning rate rises.
        clip: the largest norm of the gradient, in multiples of the running mean norm; ``math.inf`` for any. (A fixed
            norm cannot be right: a log-likelihood sums over the columns, and its gradients grow with them.)
        ema: the decay of the average; 0 for the weights themselves.
        bfloat16: multiply in bfloat16 within the networks, in training alone; weights, maps and log-determinants stay
            as they are.
        accumulate: take the gradient of a step over so many micro-batches, one after the other, where it does
            not fit into memory at once.
        patience: epochs without a better validation loss that end the training; ``math.inf`` for never. By default a
            tenth of the epochs, but at least 10 epochs and 300 steps.
        seed: decides the split, the order and the noise. The same call gives the same weights, on the same processor
            with the same number of threads (a GPU may add in another order); the initial weights are the caller's.
        device: where to train; by default where the objective is.
        out: a run directory to make, which ``diffeo.load`` takes: the objective's flow, if it has one, is described in
            ``model.json`` before the training and its weights are written at the end; ``out/train`` receives
            ``metrics.jsonl`` and the checkpoint.
        resume: continue from the checkpoint, with the same arguments and data. A budget in epochs ends with weights
            identical to the bit; one in minutes depends on the clock. A larger budget of the same kind trains longer,
            a finished training, too: from where it is, at the rates that the larger budget has there.
        progress: show a bar; in a notebook with the learning curve; lines now and then if stderr is no terminal.
            (Or the part of a larger display that is reported to.)
        checkpoint_every: seconds between checkpoints, more where writing takes long; one is written at the end in any
            case.

    Raises:
        UserError: if ``out`` cannot be written or resumed, or the training breaks down (the message says where).
        ValueError: for an argument out of its range, weights that are negative, not finite or all 0, no data for an
            objective that needs some, or a flow that ``out`` cannot describe: see ``Flow.save``.
        TypeError: for what is no objective and no flow.

    Example:
        >>> x = torch.randn(200, 3) @ torch.randn(3, 3)
        >>> result = diffeo.fit(diffeo.maf(features=3, hidden=(8,)), x, epochs=2)
        >>> result.epochs, result.stopped
        (2, 'budget')
        >>> result.best_loss == min(entry["val_loss"] for entry in result.history)
        True
    """
    for name, number, low in (("clip", clip, 0.0), ("epochs", epochs, 0), ("minutes", minutes, 0.0)):
        if number is not None and not number > low:
            raise ValueError(f"expected {name} > {low}, got {number}")
    expect_number(0, above=True, lr=lr)
    expect_number(0, weight_decay=weight_decay)
    if epochs is not None:
        expect_whole(1, epochs=int(epochs) if float(epochs).is_integer() else epochs)
    expect_whole(1, accumulate=accumulate)
    if patience is not None and not patience >= 0:
        raise ValueError(f"expected patience >= 0, got {patience}")
    if not 0 <= warmup < 1:
        raise ValueError(f"expected warmup in [0, 1), got {warmup}")

    objective = as_objective(objective)
    first = next(objective.parameters(), torch.empty(0))
    world = World(torch.device(device or first.device))
    device = world.device
    objective.to(device)
    dtype = first.dtype if first.is_floating_point() else None
    train: Rows | Stream | Nothing
    valid: Rows | Stream | None
    if x is None:
        if not isinstance(objective, WithoutData):
            raise ValueError(f"expected data to train {type(objective).__name__} on, got none")
        if (steps is None) == (context is None):
            got = "neither" if steps is None else "both"
            raise ValueError(f"expected steps, or contexts, to train without data, got {got}")
        if steps is not None and (epochs, weights, patience) != (None, None, None):
            raise ValueError("expected no epochs, weights or patience beside steps: there is no data")
    elif steps is not None:
        raise ValueError("expected steps for a training without data, got data; a budget is one of epochs or minutes")
    if steps is not None:
        train, valid = Nothing(steps, batch_size, device, dtype), None
        epochs, patience = train.epochs, math.inf
    else:
        x = torch.empty(len(context), 0) if x is None else x
        train, valid = split(
            x, context, validation, weights=weights, batch_size=batch_size, seed=seed, device=device, dtype=dtype
        )
    if objective.pool and not isinstance(train, Nothing):
        train = Pairs(train, objective.couple, objective.pool)
        valid = None if valid is None else Pairs(valid, objective.couple, objective.pool)
    epochs = default_epochs(train.batches) if epochs is None and minutes is None else epochs
    patience = default_patience(train.batches, epochs) if patience is None else patience
    settings = dict(
        objective=describe(objective), data=train.fingerprint if out else None,
        validation=valid.fingerprint if out and valid else None,
        held_out=validation if isinstance(validation, float | int) else None,
        epochs=epochs, minutes=minutes, batch_size=batch_size, lr=lr, weight_decay=weight_decay, warmup=warmup,
        clip=clip, ema=ema, bfloat16=bfloat16, accumulate=accumulate, patience=patience, seed=seed,
        processes=world.size,
    )  # fmt: skip
    store = Store(out, resume=resume, every=checkpoint_every, settings=settings, writes=world.leads)

    with Interrupt() as interrupt, reported(progress, world.leads) as reporter, fork_rng(device):
        world.wait()  # until all processes have looked for a checkpoint: now files are written
        flow = getattr(objective, "flow", None) if store.writes else None
        if isinstance(flow, Flow) and not resume and not is_run(store.folder.parent):
            create_run(store.folder.parent, flow, provenance=provenance(seed=seed))
        store.prepare()
        # Layers such as ActNorm set their weights from the first batch: before anything copies or wraps them.
        moving = initialise(objective, train, seed, device, MAX_BAD_IN_A_ROW)
        world.copy_from_leader([*objective.parameters(), *objective.buffers()])

        update = Update(objective, lr, weight_decay, ema)
        best: dict[str, Tensor] = {}  # the weights to keep, once validation has found them
        state = State(batches=train.batches)
        if store.saved is not None:
            scalars, tensors = store.saved
            state = State(**scalars)
            if store.extended:
                state.stopped, state.extended = "", state.epoch
            objective.load_state_dict(tensors["weights"], strict=False)
            update.restore(tensors, state.step - state.skipped)
            best = tensors.get("best", {})
        model = world.wrap(objective)
        journal = Journal(store.folder if store.writes else None, state.history)
        for entry in state.history:
            reporter.epoch(entry)

        def snapshot() -> dict[str, Tensor]:
            return {name: tensor.clone() for name, tensor in trained(objective).items()}

        def save() -> None:
            store.write(asdict(state), {"weights": trained(objective), **update.tensors(), "best": best})

        if not state.step:
            save()  # whenever the process may be killed, the initial weights are known
        started = time.monotonic() - state.seconds
        stop = False

        while not state.stopped:
            objective.train()
            for batch in train.shuffled(seed, state.epoch, state.batch, world.share):
                since = time.monotonic()
                done = state.fraction_done(epochs, minutes)
                noise = derive(seed, "step", state.step, world.rank)
                seed_noise(device, noise)
                kept = [buffer.clone() for buffer in moving]

                update.clear()
                loss = first.new_zeros((), device=device)
                for part in batch.micro_batches(accumulate):
                    with half_precision(bfloat16):
                        losses = model(part.x, part.context)
                    # the mean over processes is that over all rows
                    shares = torch.full_like(losses, world.size / batch.total)
                    if part.weights is not None:
                        shares *= part.weights
                    total = losses @ shares
                    total.backward()
                    loss += total.detach()
                    del losses, total  # and what their graph holds on to
                loss_value, norm_value, weight, state.seconds, stop = world.agree(
                    loss, update.norm(), batch.weight, time.monotonic() - started, interrupt.pressed
                )
                if math.isfinite(loss_value) and math.isfinite(norm_value):
                    limit = clip * state.typical_norm if state.typical_norm else math.inf
                    update.take(learning_rate(done, warmup), limit / norm_value if norm_value > limit else 1.0)
                    state.typical_norm += (min(norm_value, limit) - state.typical_norm) * max(
                        0.01, 1 / (state.step + 1)
                    )
                    world.copy_from_leader(moving)
                    state.good += 1
                    state.loss += loss_value
                    state.weight += weight
                    state.norm += norm_value
                    state.bad_in_a_row = 0
                else:
                    for buffer, old in zip(moving, kept, strict=True):
                        buffer.copy_(old)
                    state.skipped += 1
                    state.bad_in_a_row += 1
                    if state.bad_in_a_row == MAX_BAD_IN_A_ROW:
                        seed_noise(device, noise)
                        what = f"{MAX_BAD_IN_A_ROW} batches in a row gave a non-finite loss or gradient"
                        raise breakdown(objective, batch, what)

                state.step += 1
                state.batch += 1
                state.rows += batch.total
                state.busy += time.monotonic() - since
                mean = state.loss / (state.weight or 1)
                reporter.step(done, state.epoch, mean, state.rows / state.busy, state.skipped)
                if store.due:
                    save()
                if stop or (minutes is not None and state.seconds >= 60 * minutes):
                    break

            if not stop:
                with update.average.applied():
                    score, stderr, bad = evaluate(objective, valid, seed, world, interrupt)
                    stop = interrupt.pressed and world.size == 1
                    # Rows of density zero (or bad ones, which are so in every epoch) count before the mean of the rest.
                    if not stop and math.isfinite(score) and (bad, score) < (state.best_bad, state.best_loss):
                        state.best_bad, state.best_loss, state.best_epoch = bad, score, state.epoch + 1
                        best = snapshot()
            if stop:  # by the user: the checkpoint says that this epoch is not over
                break
            state.batches = state.batches or state.batch  # the first epoch of a stream shows its length
            rate = lr * learning_rate(state.fraction_done(epochs, minutes), warmup)
            entry = state.end_epoch((score, stderr, bad), rate)
            journal.append(entry)
            reporter.epoch(entry)
            if state.epoch == epochs or (minutes is not None and state.seconds >= 60 * minutes):
                state.stopped = "budget"
            elif valid is not None and state.epoch - max(state.best_epoch, state.extended) >= patience:
                state.stopped = "patience"
            if state.stopped and state.step == state.skipped:
                batch = next(train.shuffled(seed, 0))
                raise breakdown(objective, batch, "every batch gave a non-finite loss or gradient")
            if store.due and not state.stopped:
                save()

        save()
        world.wait()  # until it is on the disk for all
        if not best:
            if valid is not None and state.stopped:
                raise Breakdown(f"training stopped: no epoch has a finite validation loss; {objective.remedy}")
            with update.average.applied():
                best = snapshot()
            if not all(tensor.isfinite().all() for _, tensor in objective.named_parameters()):
                raise Breakdown(f"training stopped: the weights are no longer finite; {objective.remedy}")
            state.best_epoch = state.epoch
            if valid is None and state.history:
                state.best_loss = state.history[-1]["loss"]
        objective.load_state_dict(best, strict=False)
        objective.eval()
        reporter.end(state.stopped or "interrupted")
        if isinstance(flow, Flow) and is_run(store.folder.parent):
            save_weights(store.folder.parent, flow)

    return FitResult(
        history=state.history,
        best_epoch=state.best_epoch,
        best_loss=state.best_loss,
        epochs=state.epoch,
        steps=state.step,
        skipped=state.skipped,
        seconds=state.seconds,
        stopped=state.stopped or "interrupted",
    )
