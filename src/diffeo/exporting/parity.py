"""Whether an exported program computes what diffeo does, and how fast either is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffeo.exporting.program import Program

__all__ = ["BATCHES", "Parity", "compared", "inputs_like", "reference_of"]

BATCHES = (1, 7, 1000)
LIKELIHOOD = 1e-5  # of 1 + |log p|: how far likelihoods may be apart
VALUES = 1e-4  # of a column's standard deviation and the value: how far others may be
SOLVED = 1e-3  # likewise of log p and of values: how far equal steps may be from a continuous flow's own solver
MISSED = 1e-3  # the share of cells that may be further apart: values that rounding brings to the next cell


@dataclass(frozen=True)
class Parity:
    """How far a program is from diffeo.

    Attributes:
        rows: compared.
        worst: the largest difference, in units of what is allowed.
        row: where that is.
        missed: the share of numbers beyond what is allowed.
        allowed: in words.
        passed: whether all is well.
        batches: the numbers of rows that it was given at a time.
    """

    rows: int
    worst: float
    row: int
    missed: float
    allowed: str
    passed: bool
    batches: tuple[int, ...]


def inputs_like(program: Program, rows: int, seed: int) -> dict[str, Tensor]:
    """Noise for each of the inputs of a program that are noise, by the seed.

    Args:
        program: whose inputs.
        rows: how many.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for name, each in program.inputs.items():
        shape = (rows, *each.shape)
        if name in ("uniform", "choice"):
            made[name] = torch.rand(shape, generator=generator, dtype=each.dtype)
        elif name == "normal":
            made[name] = torch.randn(shape, generator=generator, dtype=each.dtype)
    return made


@torch.no_grad()
def reference_of(program: Program, inputs: Mapping[str, Tensor]) -> Tensor:
    """What diffeo itself says, by its kernels; of likelihoods of discrete values as ``diffeo score`` has them.

    Args:
        program: in evaluation mode.
        inputs: a tensor for each of its inputs.
    """
    if program.what != "log-prob" or "uniform" in inputs:
        exact = Program(program.flow, program.what, program.plain).eval() if program.solves else program
        result: Tensor = exact(**inputs)
        return result
    x, more = program.plain.inwards(inputs["x"])
    context = program.plain.context_inwards(inputs["context"]) if "context" in inputs else None
    log_prob = program.flow.log_mass(x, context, nan="propagate", draws=program.plain.draws or 1)
    return log_prob if more is None else log_prob + more.to(log_prob.dtype)


@torch.no_grad()
def compared(
    program: Program,
    run: Callable[[Mapping[str, Tensor]], Tensor],
    inputs: Mapping[str, Tensor],
    own_solver: bool = False,
) -> Parity:
    """Compare a loaded program with diffeo on rows, in batches of 1, 7 and 1000.

    Args:
        program: what was exported.
        run: the exported program.
        inputs: a tensor for each of its inputs.
        own_solver: with a continuous flow solved in steps that follow from the numbers, all rows at once; otherwise
            with the same flow solved in the equal steps of the program.
    """
    equal_steps = program.solves and not own_solver
    reference = (program(**inputs) if equal_steps else reference_of(program, inputs)).double()
    count = len(reference)
    parts = [torch.arange(count)]
    if not own_solver:
        parts = [*parts[0].split(BATCHES[-1]), *(parts[0][:size] for size in BATCHES[:-1] if size <= count)]
        if count < BATCHES[-1]:
            parts.append(torch.arange(BATCHES[-1]) % count)
    worst, row, missed, total = 0.0, 0, 0, 0
    likelihood = program.what == "log-prob"
    scale = SOLVED if own_solver else LIKELIHOOD if likelihood else VALUES
    if likelihood:
        allowed = scale * (1 + reference.abs())
    else:
        finite = torch.where(reference.isfinite(), reference, 0)
        allowed = scale * (finite.std(0, correction=0) + finite.abs()).clamp_min(1e-30)
    for part in parts:
        got = run({name: value[part].contiguous() for name, value in inputs.items()}).double()
        distance = _distance(got, reference[part], allowed[part]).reshape(len(part), -1)
        missed, total = missed + int((distance > 1).sum()), total + distance.numel()
        each = distance.amax(1)
        if len(each) and float(each.max()) > worst:
            worst, row = float(each.max()), int(part[each.argmax()])
    share = missed / max(1, total)
    words = (
        f"{scale:g} (1 + |log p|)"
        if likelihood
        else f"{scale:g} (standard deviation + |value|) for all but {MISSED:.1%} of the values"
    )
    passed = share <= (0 if likelihood else MISSED)
    return Parity(count, worst, row, share, words, passed, tuple(sorted({len(part) for part in parts})))


def _distance(got: Tensor, expected: Tensor, allowed: Tensor) -> Tensor:
    """How far apart, in units of what is allowed; infinite where one is NaN or infinite and the other not so."""
    if got.shape != expected.shape:
        return torch.full_like(expected, torch.inf)
    same = (got == expected) | (got.isnan() & expected.isnan())
    distance = torch.where(same, 0, (got - expected).abs() / allowed)
    return distance.nan_to_num(torch.inf, torch.inf)


def describe(parity: Parity) -> dict[str, Any]:
    """Plain data of what was found."""
    return {
        "rows": parity.rows, "worst": parity.worst, "missed": parity.missed, "allowed": parity.allowed,
        "batches": list(parity.batches),
    }  # fmt: skip
