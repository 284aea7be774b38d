"""Kernels beside the reference on random networks and inputs: ``python tests/agreement.py [--cases 300] [--seed 0]``.

A case draws a flow, its sizes, its weights (up to 1e20), and rows (up to 1e20, perhaps not contiguous), and computes
log p, noise and samples by the kernels and by the reference. Both must be finite in the same elements, or the same
infinity, or NaN. Finite ones are held to what float64 computes, a continuous flow solved to a tolerance of 1e-8: the
kernels may be farther from it than the reference by no more than a factor, and by rounding. Continuous flows of larger
weights than 1 are left out: they are chaotic, so that a row, moved by one part in 1e7, may end elsewhere by either. It
prints each case that differs, and the counts.

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
        results: dict[str, Any] = {}
        for backend in ("cpu", "reference", "exact"):
            flow, x, c = case.flow, case.x, case.context
            if backend == "exact":
                flow, x, c = exact, x.double(), None if c is None else c.double()
            with torch.no_grad(), ops.using("cpu" if backend == "cpu" else "reference"):
                try:
                    results[backend] = operation(flow, x, c).double().reshape(len(x), -1)
                except ValueError as error:
                    results[backend] = str(error).partition(" in row ")[0]
        text = _difference(**results)
        if text:
            differences.append(f"{name}: {text}")
    return differences


def _difference(cpu: Any, reference: Any, exact: Any) -> str:
    if isinstance(cpu, str) or isinstance(reference, str):
        same = isinstance(cpu, str) and isinstance(reference, str)
        return "" if same else f"{_brief(cpu)} and {_brief(reference)}"
    kinds = [torch.where(each.isnan(), 3, torch.where(each.isinf(), each.sign(), 2)) for each in (cpu, reference)]
    if not torch.equal(*kinds):
        row = int((kinds[0] != kinds[1]).any(1).nonzero()[0, 0])
        return f"{int((kinds[0] != kinds[1]).sum())} elements finite in one alone, first in row {row}"
    finite = kinds[0] == 2
    if isinstance(exact, str):
        return ""
    finite &= exact.isfinite()
    size = 1 + torch.where(finite, exact, 0.0).abs().amax(1, keepdim=True)
    errors = [float((torch.where(finite, each - exact, 0.0).abs() / size).max()) for each in (cpu, reference)]
    return (
        "" if errors[0] <= SLACK * errors[1] + ROUNDING else f"off by {errors[0]:.1e}, the reference by {errors[1]:.1e}"
    )


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
