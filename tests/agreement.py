"""Kernels beside the reference on random networks and inputs: ``python tests/agreement.py [--cases 300] [--seed 0]``.

A case draws a flow, its sizes, its weights (up to 1e20), and rows (up to 1e20, perhaps not contiguous), and computes
log p, noise and samples by the kernels and by the reference. Both must be finite in the same elements, or the same
infinity, or NaN. Finite ones are held to what float64 computes, a continuous flow solved to a tolerance of 1e-8: the
kernels may be farther from it than the reference by no more than a factor, and by rounding. Where sums cancel, the
reference is close by luck as often as it is far: it then also answers for itself with each weight moved to a number
beside it in float32, which is no more than any order of the same sums may do. Continuous flows of larger weights than 1
are left out: they are chaotic, so that a row, moved by one part in 1e7, may end elsewhere by either. It prints each
case that differs, and the counts.

At weights of 1e20 sums overflow. What comes of infinities of both signs depends on the order in which they are added,
and on whether a product is rounded before it is added (a fused multiply-add does not): neither is right. These cases
are counted alone.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import diffeo
from diffeo import ops

SLACK = 10.0  # times the reference's error
MOVED = 3  # times that the reference's weights are moved by a rounding
ROUNDING = 1e-5  # relative, of the largest element of a row
EXACT = {"rtol": 1e-8, "atol": 1e-8, "max_evaluations": 100_000}
WEIGHTS = (0.1, 0.3, 0.3, 1.0, 1.0, 10.0, 1e3, 1e20)
INPUTS = (0.5, 1.0, 1.0, 3.0, 100.0, 1e6, 1e20)
SMOOTH = ("silu", "tanh", "gelu")  # of a continuous flow: at a kink the exact solution takes minutes


class Case(NamedTuple):
    """A flow, rows of data and of noise, contexts, and what they are in words."""

    flow: Any
    x: Tensor
    context: Tensor | None
    words: str
    kind: str  # "ordinary": weights and rows as in training; "extreme", or "overflowing" by its weights


def draw(seed: int, weights: Sequence[float] = WEIGHTS) -> Case:
    """The case of a seed, its weights of one of these sizes."""
    choose = random.Random(seed)
    name = choose.choice(["maf", "iaf", "nsf", "nsf coupling", "realnvp", "nice", "flow_matching", "flow_matching"])
    features, context = choose.choice([1, 2, 3, 5, 8, 16, 33]), choose.choice([0, 0, 1, 4])
    if name in ("nsf coupling", "realnvp", "nice"):
        features = max(features, 2)
    layers = choose.choice([1, 2, 3, 5])
    hidden = [choose.choice([1, 3, 8, 17, 64, 100, 257]) for _ in range(layers)]
    activation = choose.choice(SMOOTH if name == "flow_matching" else ("relu", "relu", "silu", "tanh"))
    arguments: dict[str, Any] = {"hidden": hidden, "activation": activation}
    if name == "nsf coupling":
        arguments["structure"] = "coupling"
    if name == "flow_matching":
        arguments |= {"tolerance": choose.choice([1e-6, 1e-5]), "max_evaluations": 3000}
    else:
        arguments["transforms"] = choose.choice([1, 2, 5])
    torch.manual_seed(seed)
    flow = getattr(diffeo, name.partition(" ")[0])(features, context, **arguments).eval()
    weight, scale, rows = choose.choice(weights), choose.choice(INPUTS), choose.choice([1, 7, 16, 33, 100, 129])
    if name == "flow_matching":
        rows = min(rows, 33)  # more than two vectors of the widest
        weight = weight if weight > 1e3 else min(weight, 1.0)
    with torch.no_grad():
        for parameter in flow.parameters():
            noise = torch.randn_like(parameter)
            parameter.add_(weight * noise / (math.sqrt(parameter.shape[-1]) if weight <= 1 else 1.0))
    x = scale * torch.randn(features, rows).T if choose.random() < 0.5 else scale * torch.randn(rows, features)
    contexts = torch.randn(rows, context) if context else None
    words = (
        f"{name}, {features} features, {context} of context, {arguments}, weights {weight:g}, rows {rows} x {scale:g}"
    )
    words += "" if x.is_contiguous() else ", not contiguous"
    kind = "overflowing" if weight > 1e3 else "ordinary" if weight <= 1 and scale <= 3 else "extreme"
    return Case(flow, x, contexts, words, kind)


def operations(case: Case) -> dict[str, Callable[[Any, Tensor, Tensor | None], Tensor]]:
    """What is compared."""
    return {
        "log_prob": lambda flow, x, c: flow.log_prob(x, c),
        "encode": lambda flow, x, c: flow.encode(x, c),
        "decode": lambda flow, z, c: flow.decode(z, c),
    }


def compare(case: Case) -> list[str]:
    """What differs, in words."""
    exact = copy.deepcopy(case.flow).double()
    if exact.ode is not None:
        exact = exact.with_ode(**EXACT)
    differences = []
    for name, operation in operations(case).items():
        cpu = _result(operation, case.flow, case, "cpu")
        references = [_result(operation, case.flow, case, "reference")]
        expected = _result(operation, exact, case, "reference")
        text = _difference(cpu, references, expected)
        if text.startswith("off by"):
            references += [_result(operation, _moved(case.flow, seed), case, "reference") for seed in range(MOVED)]
            text = _difference(cpu, references, expected)
        if text:
            differences.append(f"{name}: {text}")
    return differences


def _result(operation: Callable[[Any, Tensor, Tensor | None], Tensor], flow: Any, case: Case, backend: str) -> Any:
    """What an operation gives, (rows, *) in float64, or what it says of the rows, computed in the flow's own type."""
    x, c = (None if rows is None else rows.to(next(flow.parameters()).dtype) for rows in (case.x, case.context))
    with torch.no_grad(), ops.using(backend):
        try:
            return operation(flow, x, c).double().reshape(len(x), -1)
        except ValueError as error:
            return str(error).partition(" in row ")[0]


def _moved(flow: Any, seed: int) -> Any:
    """A copy whose every parameter is the number beside it, above or below."""
    flow, generator = copy.deepcopy(flow), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            towards = torch.where(torch.rand(parameter.shape, generator=generator) < 0.5, math.inf, -math.inf)
            parameter.copy_(torch.nextafter(parameter, towards))
    return flow


def _difference(cpu: Any, references: Sequence[Any], exact: Any) -> str:
    """How the kernels differ from the first of the references, or how far they are off where none of them is."""
    reference = references[0]
    if isinstance(cpu, str) or isinstance(reference, str):
        same = isinstance(cpu, str) and isinstance(reference, str)
        return "" if same else f"{_brief(cpu)} and {_brief(reference)}"
    kinds = [torch.where(each.isnan(), 3, torch.where(each.isinf(), each.sign(), 2)) for each in (cpu, reference)]
    if not torch.equal(*kinds):
        row = int((kinds[0] != kinds[1]).any(1).nonzero()[0, 0])
        return f"{int((kinds[0] != kinds[1]).sum())} elements finite in one alone, first in row {row}"
    if isinstance(exact, str):
        return ""
    finite = (kinds[0] == 2) & exact.isfinite()
    size = 1 + torch.where(finite, exact, 0.0).abs().amax(1, keepdim=True)

    def error(result: Tensor) -> float:
        return float((torch.where(finite & result.isfinite(), result - exact, 0.0).abs() / size).max())

    off, usual = error(cpu), max(error(each) for each in references if not isinstance(each, str))
    return "" if off <= SLACK * usual + ROUNDING else f"off by {off:.1e}, the reference by {usual:.1e}"


def _brief(value: Any) -> str:
    return f"{value[:60]!r}" if isinstance(value, str) else "numbers"


def main() -> None:
    """Compare cases, and print what differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts: Counter[tuple[str, bool]] = Counter()
    for seed in range(options.seed, options.seed + options.cases):
        case = draw(seed)
        differences = compare(case)
        counts[case.kind, not differences] += 1
        for text in differences:
            print(f"{seed} ({case.kind}): {case.words}: {text}", flush=True)
    for kind in ("ordinary", "extreme", "overflowing"):
        print(f"{kind}: {counts[kind, True]} of {counts[kind, True] + counts[kind, False]} alike")


if __name__ == "__main__":
    main()
