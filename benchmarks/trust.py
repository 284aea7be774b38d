"""How far trained float32 models can be trusted: round trips on the data, on samples, and far off the data.

    DIFFEO_DATA=../shared/data python benchmarks/trust.py [--epochs 30] [--seeds 3] [--out docs/trust.md]

Protocol: the protein table (45,730 x 10), split and standardised as in ``protein.py``; MAF, NSF and the default model
with 5 transforms of hidden (128, 128). Error = |x - f(f^-1(x))| / (1 + |x|), worst column of a row. Limits: on all rows
and on 20,000 samples p99.9 <= 2e-6 and max <= 2e-5; on 100,000 points uniform in [-10, 10]^10 no non-finite value
and max <= 1e-2. "Non-finite" counts those, NaN densities of entries of +-1e10 and +-1e30, and non-finite ones among
1,000,000 samples. Each model is trained with its soft bounds and without them (log-scales, spline slopes and network
inputs as good as unbounded), from the same seed, to show what they cost in likelihood.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

import diffeo
import protein
from diffeo.nets import activations, made
from diffeo.transforms import Affine, Autoregressive, RationalQuadraticSpline, Univariate

MODELS = {
    "maf": lambda: diffeo.maf(10),
    "nsf": lambda: diffeo.nsf(10),
    "default": lambda: diffeo.nsf(10, affine=True),
}


@contextmanager
def unbounded() -> Iterator[None]:
    """Let networks see their inputs as they are while a model is used."""
    kept = activations.INPUT_BOUND
    activations.INPUT_BOUND = made.INPUT_BOUND = 1e4
    try:
        yield
    finally:
        activations.INPUT_BOUND = made.INPUT_BOUND = kept


def loosen(univariate: Univariate) -> None:
    """Make a univariate map's slopes as good as unbounded."""
    if isinstance(univariate, Affine):
        univariate.bound = 30.0
    elif isinstance(univariate, RationalQuadraticSpline):
        univariate.min_bin, univariate.max_log_bend = 1e-3, 10.0
    for each in getattr(univariate, "maps", ()):
        loosen(each)


@torch.no_grad()
def round_trip(flow: diffeo.Flow, x: torch.Tensor) -> tuple[float, float, int]:
    """The 99.9th percentile and the maximum of the error, and how many rows have a non-finite value."""
    back = flow.decode(flow.encode(x))
    error = ((x - back).abs() / (1 + x.abs())).amax(1)
    finite = torch.isfinite(error)
    kept = error[finite].sort().values
    return kept[int(0.999 * (len(kept) - 1))].item(), kept[-1].item(), int((~finite).sum())


def main() -> None:
    """Train and measure every model with and without bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the protein table; by default found through DIFFEO_DATA")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, default=3e-3, help="low enough for the models without bounds to train")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = protein.load(protein.locate(options.data))
    train, valid, test = data.train, data.valid, data.test
    everything = torch.cat([train, valid, test])
    box = 20 * torch.rand(100_000, 10, generator=torch.Generator().manual_seed(0)) - 10

    lines = [
        "| model | soft bounds | test NLL, nats per row, by seed | rows: p99.9 / max | samples: p99.9 / max "
        "| [-10, 10]^10: p99.9 / max | non-finite | s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in options.models:
        for bounded in (True, False):
            started = time.monotonic()
            results = []
            for seed in range(options.seeds):
                torch.manual_seed(seed)
                flow = MODELS[name]()
                for part in flow.modules():
                    if isinstance(part, Autoregressive) and not bounded:
                        loosen(part.univariate)
                with nullcontext() if bounded else unbounded():
                    results.append(evaluate(flow, train, valid, test, [everything, box], options, seed))
            seconds = (time.monotonic() - started) / options.seeds
            cells = [name, "yes" if bounded else "no", ", ".join(each.nll for each in results)]
            for place in range(3):
                high, largest = (max(each.errors[place][k] for each in results) for k in (0, 1))
                cells.append(f"{high:.1e} / {largest:.1e}")
            cells += [str(sum(each.bad for each in results)), f"{seconds:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    about = (
        f"{options.epochs} epochs, learning rate {options.lr}, {options.seeds} seeds (worst errors), float32, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}, "
        f"{time.strftime('%Y-%m-%d')}."
    )
    text = "\n".join([*lines, "", about])
    print(text)
    if options.out:
        command = f"python benchmarks/trust.py --epochs {options.epochs} --seeds {options.seeds}"
        options.out.write_text(f"# Trust of trained models\n\n`{command}`\n\n{text}\n")


class Measured(NamedTuple):
    """Test likelihood with its standard error; p99.9 and maximum of the three round trips; non-finite results."""

    nll: str
    errors: list[tuple[float, float]]
    bad: int


def evaluate(
    flow: diffeo.Flow,
    train: torch.Tensor,
    valid: torch.Tensor,
    test: torch.Tensor,
    points: list[torch.Tensor],
    options: argparse.Namespace,
    seed: int,
) -> Measured:
    """Train a flow and measure it."""
    try:
        objective = diffeo.MaximumLikelihood(flow)
        diffeo.fit(objective, train, validation=valid, epochs=options.epochs, lr=options.lr, seed=seed)
    except diffeo.UserError:
        return Measured("training breaks down", [(float("inf"), float("inf"))] * 3, 0)
    with torch.no_grad():
        nll = -flow.log_prob(test)
        far = torch.zeros(4, 10) + torch.tensor([[1e10], [-1e10], [1e30], [-1e30]])
        bad = int(flow.log_prob(far).isnan().sum()) + int((~torch.isfinite(flow.sample(1_000_000))).any(1).sum())
        everything, box = points
        trips = [round_trip(flow, x) for x in (everything, flow.sample(20_000), box)]
    errors = [(high, largest) for high, largest, _ in trips]
    return Measured(f"{nll.mean():.3f} ± {nll.std() / len(nll) ** 0.5:.3f}", errors, bad + sum(t[2] for t in trips))


if __name__ == "__main__":
    main()
