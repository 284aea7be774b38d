"""Posteriors from simulations: the density of parameters given an observation, learned from pairs of both."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from diffeo.arguments import expect_whole
from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.inference.calibration import DRAWS, Calibration, calibration_of
from diffeo.inference.importance import Importance, importance
from diffeo.inference.simulations import (
    expect_prior,
    expect_varying,
    log_prior,
    names_of,
    place_of,
    prior_support,
    read,
    shape_text,
    within,
)  # fmt: skip
from diffeo.nets import CNN, Reader
from diffeo.objectives import FlowMatching, MaximumLikelihood, Objective
from diffeo.objectives.target import Target
from diffeo.recipes import build
from diffeo.report.statistics import mean_and_error
from diffeo.summary import Summarised, Summary
from diffeo.training.batches import as_tensor
from diffeo.training.fit import FitResult, fit
from diffeo.training.folds import fit_folds, out_of_fold
from diffeo.training.parallel import choose_device
from diffeo.training.place import claimed
from diffeo.training.run import Run, create_run, provenance, save_metrics, save_weights
from diffeo.training.seeding import derive, seed_noise, seeded
from diffeo.training.weights import load_tensors, save_tensors
from diffeo.transforms import Support, as_support

__all__ = ["EMBEDDINGS", "METHODS", "Posterior", "posterior", "restored", "usual_training"]

KIND = "posterior"  # of the run directory
SIMULATIONS = "simulations.safetensors"
FOLDS, MOST_FOLDED = 5, 20_000  # up to so many simulations there are folds
VALIDATION = 0.1  # of the simulations, held out of a single model
FEW = 1_000  # simulations below which it is said that they are few
STEPS, SMALLEST_BATCH, LARGEST_BATCH = 16, 16, 256  # in an epoch, of so many simulations each
STEADY = 10_000  # simulations from which on a validation loss that has risen for long does not fall again
KEPT = 1_000  # simulations held out that calibration is judged by, at most
EMBEDDING_LR = 3e-3  # the highest learning rate where an embedding is no MLP, which bears more


class Simpler(NamedTuple):
    """A simpler flow: a recipe, its arguments, and after how many epochs it has learned what it can, at most."""

    recipe: str
    arguments: dict[str, Any]
    epochs: int | None = None


class Method(NamedTuple):
    """A way to learn a posterior.

    Attributes:
        recipe, arguments: of its flow.
        objective: that it is trained by.
        training: arguments of ``diffeo.fit``.
        beside: simpler flows that are stacked beside it where there are folds, by name.
        steady: the patience for ``STEADY`` simulations and more, if it is another one.
    """

    recipe: str
    arguments: dict[str, Any]
    objective: Callable[[Flow], Objective]
    training: dict[str, Any]
    beside: dict[str, Simpler]
    steady: float | None = None


_READER = [128, 128, 32]  # widths of the network that reads a vector for all layers of a flow
_SPLINES = {"activation": "silu", "residual": True, "affine": True, "embedding": _READER}

METHODS = {
    "npe": Method(
        "nsf",
        _SPLINES | {"transforms": 3, "hidden": [64, 64]},
        MaximumLikelihood,
        {"lr": 1.5e-2, "weight_decay": 0.1, "epochs": 100, "patience": 30},
        {
            "small": Simpler("nsf", _SPLINES | {"transforms": 2, "hidden": [32, 32]}),
            "linear": Simpler("maf", {"transforms": 1, "hidden": []}, epochs=30),
        },
        steady=15,
    ),
    "fmpe": Method(
        "flow_matching",
        {"tolerance": 1e-4},  # of which the density's error is far below that of what is learned
        FlowMatching,
        {"lr": 3e-3, "epochs": 100, "patience": 30},
        {},
    ),
}

EMBEDDINGS: dict[str, Callable[[torch.Size, int], nn.Module]] = {
    "mlp": lambda shape, size: Reader(shape.numel(), size, _READER[:-1]),
    "cnn": CNN,
}


@dataclass(frozen=True, repr=False)
class Posterior(Summarised):
    """p(theta | x), for any observation x at once.

    Attributes:
        flow: the density of theta ``(D,)`` whose context is an observation; of folds the mean of their members.
        method: how it was trained, "npe" or "fmpe".
        names: of the parameters.
        theta, x: simulations that were held out, ``(n, D)`` and ``(n, *observation)``.
        fold: the member of the flow that each of these was held out of ``(n,)``; -1 where that is all of it.
        constant: which numbers of an observation were the same in all simulations, ``(*observation)``.
        facts: plain data: how many simulations there were, how likely those held out are.
        notes: what its owner should know.
        prior: the distribution of the parameters, where it is known.
    """

    flow: Flow
    method: str
    names: list[str]
    theta: Tensor
    x: Tensor
    fold: Tensor
    constant: Tensor
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    prior: Any = None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.flow.base.device_marker.device

    def sample(self, x_o: Any, n: int = 1_000, *, seed: int | None = None) -> Tensor:
        """Draw parameters given an observation.

        Args:
            x_o: an observation, or several, ``(*batch, *observation)``.
            n: how many draws for each.
            seed: of the draws; by default torch's generator goes on.

        Returns:
            ``(n, *batch, D)``, all within the support.

        Raises:
            ValueError: for an observation of another shape, or with NaN or infinity.
        """
        context = self._observed(x_o)
        with nullcontext() if seed is None else seeded(self.device, seed):
            return self.flow.sample(n, context)

    def log_prob(self, theta: Any, x_o: Any) -> Tensor:
        r""":math:`\log p(\theta \mid x_o)`, in nats; -inf outside the support.

        Args:
            theta: ``(*batch, D)``.
            x_o: observations, whose batch broadcasts against that of theta.

        Returns:
            ``(*batch,)``.

        Raises:
            ValueError: for other shapes, or values that are not finite.
        """
        return self.flow.log_prob(as_tensor(theta, "theta").to(self.device), self._observed(x_o))

    def importance(
        self, x_o: Any, log_likelihood: Callable[[Tensor], Any], n: int = 10_000, *, prior: Any = None, moves: int = 50
    ) -> Importance:
        r"""Weigh draws where the likelihood is known.

        .. math:: \log w = \log p(\theta) + \log p(x_o \mid \theta) - \log q(\theta \mid x_o)

        The weighted draws are of the exact posterior. ``ess`` says how close to it the flow is, ``log_z`` is the
        evidence :math:`\log p(x_o)`.

        Args:
            x_o: one observation.
            log_likelihood: :math:`\log p(x_o \mid \theta)`, of parameters ``(n, D)`` or of one ``(D,)``; see
                ``diffeo.importance``.
            n: how many draws.
            prior: the distribution of the parameters, where ``posterior`` was not given it.
            moves: see ``diffeo.importance``.

        Raises:
            ValueError: without a prior that has a density, for a likelihood of another shape or that gives NaN, or as
                ``sample``.
        """
        prior = self.prior if prior is None else prior
        if not hasattr(prior, "log_prob"):
            raise ValueError("expected a prior with log_prob to weigh by, got none; give prior=")
        context, target = self._observed(x_o), Target(log_likelihood)
        if context.shape != self.flow.context_shape:
            raise ValueError(
                f"expected one observation of shape {shape_text(self.x[0].shape)}, got {shape_text(context.shape)}"
            )

        def joint(theta: Tensor) -> Tensor:
            total = log_prior(prior, theta)
            inside = torch.isfinite(total)
            return total.masked_scatter(inside, total[inside] + target(theta[inside]))

        return importance(self.flow, joint, n, context, moves=moves)

    def calibration(self, theta: Any = None, x: Any = None, *, draws: int = DRAWS, seed: int = 0) -> Calibration:
        """Ranks and expected coverage of simulations that it was not trained on.

        Args:
            theta: parameters of new simulations ``(n, D)``, drawn from the prior; by default those that were held out,
                each judged by the member that it was held out of.
            x: their observations.
            draws: of the posterior, for each.
            seed: of the draws.

        Raises:
            ValueError: for simulations of another shape, or fewer than 20.
        """
        fold, which = self.fold, "simulations held out"
        if (theta is None) != (x is None):
            raise ValueError("expected parameters and their observations, got one of both")
        if theta is None:
            theta, x = self.theta, self.x
        else:
            theta, x, which = as_tensor(theta, "theta"), self._observed(x), "new simulations"
            if theta.shape != (len(theta), len(self.names)) or x.shape != (len(theta), *self.flow.context_shape):
                raise ValueError(
                    f"expected parameters (n, {len(self.names)}) and an observation for each, got "
                    f"{shape_text(theta.shape)} and {shape_text(x.shape)}"
                )
            fold = torch.full((len(theta),), -1)
        expect_whole(1, draws=draws)

        def drawn(flow: Flow, rows: Tensor) -> Tensor:
            return flow.sample(draws, x[rows].to(self.device)).movedim(0, 1)

        with seeded(self.device, derive(seed, "calibration")):
            each = out_of_fold(self.flow, fold, drawn)
        return calibration_of(theta, each.movedim(1, 0), self.names, seed=seed, which=which)

    def save(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """Write a run directory, JSON and safetensors, from which ``diffeo.load`` makes the same posterior.

        The prior itself is not kept.

        Args:
            path: a folder that does not exist or is empty.
            force: replace a run that is there.

        Raises:
            UserError: if it cannot be written.
            ValueError: for an embedding with parts that are neither diffeo's nor torch's own layers, named.
        """
        with claimed(path, force=force) as folder:
            self._write(folder)

    def _write(self, folder: Path) -> None:
        """Write it into a folder that was claimed."""
        schema = {"kind": KIND, "method": self.method, "names": self.names, "notes": self.notes}
        create_run(folder, self.flow, schema, provenance())
        tensors = {"theta": self.theta, "x": self.x, "fold": self.fold, "constant": self.constant}
        save_tensors(folder / SIMULATIONS, tensors, {"format": "1"})
        save_metrics(folder, self.facts)
        save_weights(folder, self.flow)

    def _observed(self, x_o: Any) -> Tensor:
        """Observations ``(*batch, *observation)`` as the flow takes them; what never varied stays as it always was."""
        shape = self.flow.context_shape
        x = as_tensor(x_o, "x_o").to(self.flow.base.device_marker)
        if x.shape[max(0, x.dim() - len(shape)) :] != shape:
            raise ValueError(
                f"expected observations of shape {shape_text(shape)}, as in the simulations, got {shape_text(x.shape)}"
            )
        if not torch.isfinite(x).all():
            raise ValueError("expected finite observations, got NaN or infinity")
        usual = self.x[0].to(x)
        other = (x != usual) & self.constant.to(x.device)
        if other.any():
            where = place_of(other.reshape(-1, *shape).any(0), "x")
            text = f"{where} was the same in all simulations and is another one in this observation: it is ignored"
            warnings.warn(text, stacklevel=3)
            x = torch.where(other, usual, x)
        return x

    def _summary(self) -> Summary:
        facts, shape = self.facts, shape_text(self.flow.context_shape)
        how = f"{facts['folds']} folds" if facts["folds"] > 1 else f"{facts['held_out']:,} of them held out"
        held_out = f"log q(theta | x) {_pair(facts['log_prob'])} nats"
        if "beyond_prior" in facts:
            held_out += f", {_pair(facts['beyond_prior'])} more than the prior"
        trained = f"{self.method} of {facts['simulations']:,} simulations, {how}, in {facts['seconds']:.0f} s"
        title = f"Posterior of {', '.join(self.names)} given observations of shape {shape}"
        return Summary(title, {"trained": trained, "held out": held_out}, self.notes)


def posterior(
    theta: Any,
    x: Any,
    prior: Any = None,
    *,
    method: Literal["npe", "fmpe"] = "npe",
    support: Any = None,
    embedding: str | nn.Module | Sequence[int] | None = None,
    folds: int | None = None,
    names: Sequence[str] | None = None,
    missing: Literal["error", "drop"] = "error",
    epochs: int | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    patience: float | None = None,
    seed: int = 0,
    jobs: int | None = None,
    device: str | torch.device | None = None,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Posterior:
    r"""Learn the density of parameters given an observation, of simulations: theta from the prior, x from a simulator.

    "npe" maximises :math:`E \log q(\theta \mid x)`, q a flow of autoregressive splines (neural posterior estimation,
    Papamakarios and Murray 2016, arXiv:1605.06376); "fmpe" matches the velocity of a continuous flow (Wildberger et al.
    2023, arXiv:2305.17161), which is slower to score. Parameters are mapped from their support to the whole line, so
    that no draw lies outside, and both sides are standardised. Of up to 20,000 simulations each of five models leaves
    out a fifth, which decides when to stop; the posterior is their mean, and every simulation has been held out once.
    What the splines see of an observation is made of it by a network that all their layers share and that is trained
    with them. Beside them two simpler flows are stacked by the likelihood of what was held out: fewer splines, and one
    affine layer that is linear in the observation, since from few simulations splines overfit.

    Args:
        theta: parameters ``(N, D)``: an array, a tensor or a frame of numbers.
        x: observations ``(N, *observation)``, likewise.
        prior: the distribution that theta were drawn from, of ``torch.distributions`` or like it, for its support and
            for ``importance``. It need not be able to sample.
        method: "npe" or "fmpe".
        support: where parameters lie, if not in the support of the prior; see ``diffeo.transforms.as_support``. The
            whole line by default.
        embedding: what reads an observation first: "mlp", "cnn" (of series and pictures), or a module from ``(n,
            *observation)`` to ``(n, C)``. By default "cnn" for series and pictures; for vectors what the method has: an
            MLP before the splines of "npe", whose widths may be given here, ``()`` for none.
        folds: how many parts are held out in turn, each of another model; 1 for one model that holds out a tenth.
        names: of the parameters; by default the columns of a frame, or theta1, theta2 ...
        missing: what becomes of simulations with NaN or infinity: "error", or "drop".
        epochs: the budget in epochs; by default as the method needs, as the next three are.
        minutes: the budget in minutes, of all folds together; none by default.
        batch_size: simulations per step.
        lr: the highest learning rate.
        patience: epochs without a better validation loss that end a training.
        seed: decides the folds, the initial weights, the orders and the noise.
        jobs: how many folds are trained side by side; by default as many as there are cores.
        device: where to train; the CPU by default.
        out: a run directory to make, as ``Posterior.save`` does.
        force: replace a run that is there.
        progress: show how far it is.
        say: called with every note, and when the training of a fold is over.

    Raises:
        UserError: if ``out`` cannot be written, or the training breaks down.
        ValueError: for an unknown method, simulations that are not finite, too few, of different numbers or outside the
            support, or a support or an embedding that does not fit.
        TypeError: for simulations that are no numbers, or an embedding that is no module.

    Example:
        >>> prior = torch.distributions.Uniform(torch.zeros(2), torch.ones(2))
        >>> theta = prior.sample((60,))
        >>> posterior = diffeo.posterior(theta, theta + 0.1 * torch.randn(60, 2), prior, folds=1, epochs=1)
        >>> draws = posterior.sample(torch.tensor([0.2, 0.9]), 100)
        >>> draws.shape, bool(((draws > 0) & (draws < 1)).all())  # all within the prior's support
        (torch.Size([100, 2]), True)
    """
    if method not in METHODS:
        raise ValueError(f"expected method among {', '.join(METHODS)}, got {method!r}")
    handed = theta
    theta, x, dropped = read(theta, x, missing)
    features = theta.shape[1]
    labels = names_of(handed, names, features)
    expect_varying(theta, labels)
    where = prior_support(prior, features)
    where = where if support is None else support
    onto = None if where is None else as_support(where, features)
    if onto is not None:
        theta = within(onto, theta, labels)
    log_p = expect_prior(prior, theta) if hasattr(prior, "log_prob") else None
    if embedding is None and x.dim() > 2:
        embedding = "cnn"
    if isinstance(embedding, list | tuple) and (x.dim() > 2 or "embedding" not in METHODS[method].arguments):
        raise ValueError(f"expected widths as an embedding of vectors for npe alone, got {embedding!r}; give a module")
    constant = (x == x[:1]).all(0)
    parts = (FOLDS if len(x) <= MOST_FOLDED else 1) if folds is None else folds
    expect_whole(1, folds=parts, **({} if jobs is None else {"jobs": jobs}))
    if len(x) < 2 * max(2, parts):
        raise ValueError(f"expected at least {2 * max(2, parts)} simulations for {parts} folds, got {len(x)}")
    notes = _notes(len(x), dropped, constant)
    for note in notes:
        say(note)
    wanted: dict[str, Simpler] = {method: Simpler(METHODS[method].recipe, METHODS[method].arguments)}
    if parts > 1:
        wanted |= {f"{method} {name}": flow for name, flow in METHODS[method].beside.items()}
    most_epochs = {name: flow.epochs for name, flow in wanted.items() if flow.epochs is not None}
    if isinstance(embedding, str | nn.Module):  # which all of them learn
        most_epochs = {}
    seed_noise(torch.device("cpu"), derive(seed, "weights"))
    flows: dict[str, Flow] = {
        name: _flow(wish.recipe, wish.arguments, features, x, onto, embedding) for name, wish in wanted.items()
    }
    budget = {"epochs": epochs, "minutes": minutes, "batch_size": batch_size, "lr": lr, "patience": patience}
    training = usual_training(method, len(x))
    if isinstance(embedding, nn.Module) or embedding == "cnn":
        training |= {"lr": min(training["lr"], EMBEDDING_LR), "patience": METHODS[method].training["patience"]}
    training |= {name: value for name, value in budget.items() if value is not None}
    training |= {"seed": seed, "device": choose_device(device or "cpu"), "progress": progress}
    with nullcontext() if out is None else claimed(out, force=force) as folder:
        learned = _learned(flows, theta, x, parts, METHODS[method].objective, training, most_epochs, jobs, say)
        result, held = learned.result, learned.rows
        impossible = int(torch.isneginf(learned.log_prob).sum())
        if impossible:
            notes.append(f"{impossible:,} of {len(held):,} simulations that were held out are impossible by the model")
            say(notes[-1])
        facts = {
            "simulations": len(x), "folds": parts, "held_out": len(held), "log_prob": _mean(learned.log_prob),
            "parameters": sum(parameter.numel() for parameter in learned.flow.parameters()), "epochs": result.epochs,
            "best_epoch": result.best_epoch, "steps": result.steps, "seconds": result.seconds, "seed": seed,
        }  # fmt: skip
        if log_p is not None:
            facts["beyond_prior"] = _mean(learned.log_prob - log_p[held])
        kept = _shuffled(len(held), derive(seed, "kept"))[:KEPT]
        rows = held[kept]
        made = Posterior(
            learned.flow, method, labels, theta[rows], x[rows], learned.fold[kept], constant, facts, notes, prior
        )
        if folder is not None:
            made._write(folder)
    return made


def usual_training(method: str, count: int) -> dict[str, Any]:
    """Arguments of ``diffeo.fit`` for so many simulations, where nothing else is asked for.

    Args:
        method: a name in ``METHODS``.
        count: of the simulations.
    """
    usual = METHODS[method]
    steady = {} if usual.steady is None or count < STEADY else {"patience": usual.steady}
    return {**usual.training, **steady, "batch_size": min(LARGEST_BATCH, max(SMALLEST_BATCH, count // STEPS))}


def restored(run: Run) -> Posterior:
    """The posterior of a run directory that was read.

    Args:
        run: of ``Posterior.save``.

    Raises:
        UserError: if it is damaged.
    """
    remedy = "restore it or train again"
    tensors, _ = load_tensors(run.path / SIMULATIONS, remedy)
    try:
        theta, x, fold, constant = (tensors[name] for name in ("theta", "x", "fold", "constant"))
        schema: dict[str, Any] = run.schema or {}
        method, names, notes = schema["method"], list(schema["names"]), list(schema["notes"])
        made = Posterior(run.flow, method, names, theta, x, fold, constant, run.metrics, notes)
        repr(made)
        fits = made.flow.event_shape == theta.shape[1:] == (len(names),) and len(theta) == len(x) == len(fold) > 0
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.path}: is no posterior, or damaged: {error}; {remedy}") from error
    if not fits or made.flow.context_shape != x.shape[1:] or constant.shape != x.shape[1:]:
        raise UserError(f"{run.path}: {SIMULATIONS} does not belong to its model; {remedy}")
    return made


class Learned(NamedTuple):
    """What was trained, how that went, which simulations it held out, of which member, and log q of each of these."""

    flow: Flow
    result: FitResult
    rows: Tensor
    fold: Tensor
    log_prob: Tensor


def _learned(
    flows: dict[str, Flow],
    theta: Tensor,
    x: Tensor,
    folds: int,
    objective: Callable[[Flow], Objective],
    training: dict[str, Any],
    most_epochs: dict[str, int],
    jobs: int | None,
    say: Callable[[str], None],
) -> Learned:
    """Train flows by folds, stacked by what these held out; or one that holds out a tenth."""
    if folds > 1:
        stacked = fit_folds(
            flows, theta, x, folds=folds, families=(), objective=objective, most_epochs=most_epochs, jobs=jobs,
            say=say, **training,
        )  # fmt: skip
        return Learned(stacked.flow, stacked.training, torch.arange(len(x)), stacked.fold, stacked.log_prob)
    (flow,) = flows.values()
    order = _shuffled(len(x), derive(training["seed"], "held out"))
    held, train = order.tensor_split([max(1, round(VALIDATION * len(x)))])
    result = fit(objective(flow), theta[train], x[train], validation=(theta[held], x[held]), **training)
    marker = flow.base.device_marker
    with torch.no_grad():
        log_prob = flow.log_prob(theta[held].to(marker), x[held].to(marker)).double().cpu()
    return Learned(flow, result, held, torch.full_like(held, -1), log_prob)


def _flow(
    recipe: str,
    arguments: dict[str, Any],
    features: int,
    x: Tensor,
    onto: Support | None,
    embedding: str | nn.Module | Sequence[int] | None,
) -> Flow:
    """A model, untrained."""
    shape = x.shape[1:]
    net, size = None, shape.numel()
    if embedding is not None and "embedding" in arguments:  # in place of its own
        widths = list(embedding) if isinstance(embedding, list | tuple) else []
        arguments = {**arguments, "embedding": widths}
    if isinstance(embedding, str):
        if embedding not in EMBEDDINGS:
            raise ValueError(f"expected an embedding among {', '.join(EMBEDDINGS)}, or a module, got {embedding!r}")
        net, size = EMBEDDINGS[embedding](shape, _READER[-1]), _READER[-1]
    elif embedding is not None and not isinstance(embedding, list | tuple):
        net, size = _examined(embedding, x)
    noise = features if onto is None else onto.noise_shape.numel()
    flow = build(recipe, {**arguments, "features": noise, "context": size})
    if onto is not None:
        flow = flow.with_support(onto)
    return flow if net is None else flow.with_embedding(net, shape)


@torch.no_grad()
def _examined(embedding: Any, x: Tensor) -> tuple[nn.Module, int]:
    """A copy of a user's network, shown to map each observation by itself to a vector, and the vector's size."""
    if not isinstance(embedding, nn.Module):
        raise TypeError(f"expected an embedding as a module or a name, got {type(embedding).__name__}")
    net = copy.deepcopy(embedding)
    few = x[:3]
    try:
        made = net.eval()(few)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first = str(error).partition("\n")[0]
        raise ValueError(f"expected an embedding of observations {shape_text(few.shape)}, got {first}") from error
    if not isinstance(made, Tensor) or made.dim() != 2 or len(made) != len(few):
        got = f"shape {shape_text(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise ValueError(f"expected an embedding from {shape_text(few.shape)} to ({len(few)}, C), got {got}")
    alone = net(few[:1])
    if alone.shape != made[:1].shape or not torch.allclose(alone, made[:1], rtol=1e-3, atol=1e-4):
        raise ValueError("expected an embedding of each observation by itself, got one that depends on the batch")
    return net.train(), made.shape[1]


def _notes(count: int, dropped: int, constant: Tensor) -> list[str]:
    notes = []
    if dropped:
        notes.append(f"{dropped:,} simulations with NaN or infinity were left out")
    if count < FEW:
        notes.append(
            f"{count} simulations are few: look at calibration(), and simulate more; a thousand is a beginning"
        )
    if constant.all():
        notes.append("all observations are the same: the posterior is the prior")
    elif constant.any():
        notes.append(f"{place_of(constant, 'x')} is the same in all simulations, and tells nothing")
    return notes


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _mean(values: Tensor) -> dict[str, float]:
    return mean_and_error(values.double().numpy())


def _pair(part: dict[str, float | None]) -> str:
    """A mean and its standard error, where these are numbers: JSON has none that are not finite."""
    mean, error = (math.nan if value is None else value for value in (part["mean"], part["stderr"]))
    return f"{mean:.3f}" + (f" ± {error:.3f}" if math.isfinite(error) else "")
