"""Test nats of `diffeo fit` with no options on twenty small tables, beside what is usual on tables so small.

diffeo            `diffeo fit` with no options on the training rows, then `diffeo score`
Gaussian          with Ledoit and Wolf's covariance
mixture           of up to 10 normals, full, tied, diagonal or spherical, by BIC (scikit-learn; 1e-4 added to variances,
                  since BIC likes mixtures that collapse onto a few rows)
kernel density    normal kernels, the bandwidth by cross-validation over five folds (scikit-learn)
zuko MAF, NSF     zuko's own defaults; Adam, a tenth of the training rows decides when to stop, its best weights kept

Each of --splits splits, made by its seed, holds out a tenth of the rows. The tables are UCI's regression sets in
`small/` and the rows without anomaly of ADBench's in `adbench/`, below `DIFFEO_DATA`. Nothing but training rows decides
anything.

**What is compared.** Columns with few values are treated as what they are, by one measure for all models, which this
script fixes from the whole table before it splits:

grid              Whole numbers, and numbers on a regular grid, become the number of their cell, 0, 1, 2, ...
rank              Columns without a grid of which most values repeat, or one is frequent (the half of the rows that are
                  exactly 0, say), become the rank of the value among all. No density fits an atom: the higher the
                  spike, the better, without end.
else              A real number, in standard deviations of the training rows.

A row then has a density in its real columns and a probability in the others: log p is in nats, of P(cells) p(reals). To
diffeo the cells are a column of whole numbers like any. The others learn rows to which uniform noise in [0, 1) was
added, drawn anew in every epoch (by Gaussian, mixture and kernel density: once), and P(cells) is the mean over 16
points of their density in the cell, the same points for all (a Latin square: the k-th sixteenth of every cell, in
an order of its own for each column), which on average bounds log P from below by very little.

What the others reach is kept in --cache, as it does not change: another run measures diffeo alone. diffeo's own
results are measured anew, but with --keep, which takes those that are there (to go on after an interruption).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity

from diffeo import commands
from diffeo.modalities.tables.infer import find_grid, infer_schema
from diffeo.modalities.tables.table import open_table

SMALL = (
    "airfoil", "autompg", "concrete", "energy", "forest", "housing", "machine", "pendulum", "servo", "stock", "wine",
    "yacht",
)  # fmt: skip
NORMALS = ("breastw", "cardio", "glass", "Ionosphere", "Pima", "vowels", "Wilt", "wine")
SETS = (*SMALL, *(f"adbench/{name}" for name in NORMALS))
OURS = "diffeo"
POINTS = 16  # in a cell
CELLS = 5_000  # of a grid in a column of fractions
REPEATED, FREQUENT = 0.5, 0.05  # from which share of repeated values, or of one of them, on values are ranked
BEHIND, WANTED = 0.05, 15  # nats per dimension that may be lost to the best; sets to be ahead on

LogProb = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Table:
    """Rows (n, d) in which the columns of ``cells`` are numbers of cells 0, 1, ..."""

    name: str
    x: np.ndarray
    cells: np.ndarray  # (d,) of bool
    kinds: str  # how many columns are what

    def split(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows to train on and a tenth to test on."""
        order = np.random.default_rng(seed).permutation(len(self.x))
        return self.x[order[len(order) // 10 :]], self.x[order[: len(order) // 10]]


class Measure:
    """The measure of log p that all models share, and the standardised rows that the others learn."""

    def __init__(self, train: np.ndarray, cells: np.ndarray) -> None:
        self.train, self.cells = train, cells
        self.mean = (train + 0.5 * cells).mean(0)
        self.scale = np.sqrt(train.var(0) + cells / 12)
        self.scale[self.scale == 0] = 1.0
        noise = np.tile((np.arange(POINTS)[:, None] + 0.5) / POINTS, (1, len(cells)))
        self.points = np.random.default_rng(0).permuted(noise, axis=0) if cells.any() else np.zeros((1, len(cells)))

    def draw(self, random: np.random.Generator, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the training rows, or others, standardised and dequantised."""
        x = self.train if rows is None else rows
        return (x + random.random(x.shape) * self.cells - self.mean) / self.scale

    def log_prob(self, model: LogProb, test: np.ndarray) -> np.ndarray:
        """Return log P(cells) p(reals in standard deviations) of each row, by a density of standardised rows."""
        each = [model((test + u * self.cells - self.mean) / self.scale) for u in self.points]
        mean: np.ndarray = logsumexp(each, axis=0) - math.log(len(each))
        return mean - np.log(self.scale[self.cells]).sum()

    def own(self, nats: np.ndarray) -> np.ndarray:
        """Return the same from log-likelihoods in the data's own units."""
        return nats + np.log(self.scale[~self.cells]).sum()


def adbench(data: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns that vary of a set of ADBench, and which rows are anomalies."""
    found = [path for path in data.glob("adbench/*.npz") if path.stem.split("_", 1)[1].lower() == name.lower()]
    if not found:
        raise SystemExit(f"expected adbench/NUMBER_{name}.npz in {data}; --data names the folder that holds adbench/")
    with np.load(found[0]) as arrays:
        x, y = arrays["X"].astype(np.float64), arrays["y"] != 0
    return x[:, np.ptp(x, axis=0) > 0], y


def load(data: Path, name: str) -> Table:
    """Read a table and decide what each column is."""
    if name.startswith("adbench/"):
        x, anomalous = adbench(data, name.removeprefix("adbench/"))
        x = x[~anomalous]
    else:
        path = data / "small" / f"{name}.csv.gz"
        if not path.exists():
            raise SystemExit(f"expected {path}; --data names the folder that holds small/ and adbench/")
        x = np.loadtxt(path, delimiter=",")
    x = x[:, np.ptp(x, axis=0) > 0]
    columns = [_column(values, column.step) for values, column in zip(x.T, _schema(x), strict=True)]
    kinds = [kind for _, kind in columns]
    return Table(
        name,
        np.stack([values for values, _ in columns], axis=1),
        np.array([kind != "real" for kind in kinds]),
        ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("grid", "rank", "real") if kind in kinds),
    )


def _schema(x: np.ndarray) -> tuple[Any, ...]:
    return infer_schema(open_table(x)).columns


def _column(values: np.ndarray, step: float) -> tuple[np.ndarray, str]:
    """Return a column as this benchmark has it, and what it is: "grid", "rank" or "real"."""
    seen, rank, counts = np.unique(values, return_inverse=True, return_counts=True)
    repeated, frequent = 1 - len(seen) / len(values), counts.max() / len(values)
    if step:
        return np.rint((values - seen[0]) / step), "grid"
    if repeated > 0.1 or frequent > 0.02:
        grid = find_grid(seen, counts, exact=True)
        if grid is not None and (grid[2] - grid[1]) / grid[0] < CELLS:
            cells = np.rint((seen - seen[0]) / grid[0])
            if len(np.unique(cells)) == len(seen):
                return cells[rank], "grid"
    if repeated > REPEATED or frequent > FREQUENT:
        return rank.astype(np.float64), "rank"
    return values, "real"


# ---- diffeo ---------------------------------------------------------------------------------------------------------


def diffeo_nats(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Return the log-likelihood of each test row by `diffeo fit` and `diffeo score` with no options."""
    with tempfile.TemporaryDirectory() as folder:
        run, scores = Path(folder, "run"), Path(folder, "scores.csv")
        commands.fit(train, run, seed=seed, figures=False)
        commands.score(run, test, scores)
        return np.loadtxt(scores, delimiter=",", skiprows=1, usecols=-1, ndmin=1)


# ---- the others -----------------------------------------------------------------------------------------------------


def gaussian(measure: Measure, seed: int) -> LogProb:
    """A normal distribution with Ledoit and Wolf's covariance."""
    fitted = LedoitWolf().fit(measure.draw(np.random.default_rng(seed)))
    normal = torch.distributions.MultivariateNormal(
        torch.from_numpy(fitted.location_), torch.from_numpy(fitted.covariance_)
    )
    return lambda z: normal.log_prob(torch.from_numpy(z)).numpy()


def mixture(measure: Measure, seed: int) -> LogProb:
    """The mixture of normals of the lowest BIC."""
    z = measure.draw(np.random.default_rng(seed))
    best = None
    for kind in ("full", "tied", "diag", "spherical"):
        for components in range(1, 11):
            model = GaussianMixture(components, covariance_type=kind, reg_covar=1e-4, random_state=seed).fit(z)
            if best is None or model.bic(z) < best.bic(z):
                best = model
    assert best is not None
    return best.score_samples


def kernel_density(measure: Measure, seed: int) -> LogProb:
    """Normal kernels of the bandwidth that five folds prefer."""
    z = measure.draw(np.random.default_rng(seed))
    grid = {"bandwidth": np.geomspace(0.03, 1.5, 20)}
    found = GridSearchCV(KernelDensity(), grid, cv=5).fit(np.random.default_rng(seed).permutation(z))
    return found.best_estimator_.score_samples


def zuko_flow(family: str, lr: float = 2e-3, batch: int = 256, epochs: int = 1000, patience: int = 30) -> Any:
    """Return how zuko's flow is trained: until the held-out tenth has not improved for ``patience`` epochs."""

    def fit(measure: Measure, seed: int) -> LogProb:
        import zuko

        torch.manual_seed(seed)
        random = np.random.default_rng(seed)
        order = random.permutation(len(measure.train))
        held = max(1, len(order) // 10)
        valid = np.concatenate([measure.draw(random, measure.train[order[:held]]) for _ in measure.points])
        valid_x = torch.from_numpy(valid).float()
        kept = measure.train[order[held:]]
        flow = getattr(zuko.flows, family)(valid.shape[1])
        optimizer = torch.optim.Adam(flow.parameters(), lr=lr, fused=True)
        best, best_loss, best_epoch = copy.deepcopy(flow.state_dict()), math.inf, 0
        for epoch in range(epochs):
            z = torch.from_numpy(measure.draw(random, random.permutation(kept))).float()
            for rows in z.split(batch):
                optimizer.zero_grad(set_to_none=True)
                loss = -flow().log_prob(rows).mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
                optimizer.step()
            with torch.no_grad():
                valid_loss = float(-flow().log_prob(valid_x).mean())
            if valid_loss < best_loss:
                best, best_loss, best_epoch = copy.deepcopy(flow.state_dict()), valid_loss, epoch
            elif epoch - best_epoch >= patience:
                break
        flow.load_state_dict(best)

        @torch.no_grad()
        def log_prob(z: np.ndarray) -> np.ndarray:
            return flow().log_prob(torch.from_numpy(z).float()).double().numpy()

        return log_prob

    return fit


PEERS: dict[str, Callable[[Measure, int], LogProb]] = {
    "Gaussian": gaussian,
    "mixture": mixture,
    "kernel density": kernel_density,
    "zuko MAF": zuko_flow("MAF"),
    "zuko NSF": zuko_flow("NSF"),
}


# ---- the table ------------------------------------------------------------------------------------------------------


class Cache:
    """Results by set, seed and model, in a file that is written after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, keys: tuple[str, ...], compute: Callable[[], dict[str, float]], again: bool = False) -> Any:
        """Return what is known under the keys; else, or if it is to be measured again, measure it."""
        *path, last = keys
        place = self.results
        for key in path:
            place = place.setdefault(key, {})
        if again or last not in place:
            started = time.perf_counter()
            place[last] = {**compute(), "seconds": time.perf_counter() - started}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".part")
            partial.write_text(json.dumps(self.results, indent=1))
            partial.replace(self.path)
        return place[last]


def measured(log_prob: np.ndarray) -> dict[str, float]:
    """Return the mean nats per row, and the number of rows of -inf."""
    return {"nats": float(-log_prob.mean()), "impossible": int(np.isneginf(log_prob).sum())}


def compare(table: Table, seed: int, models: list[str], cache: Cache, again: bool) -> dict[str, Any]:
    """Return what each model reaches on one split."""
    train, test = table.split(seed)
    measure = Measure(train, table.cells)

    def run(model: str) -> dict[str, float]:
        if model == OURS:
            return measured(measure.own(diffeo_nats(train, test, seed)))
        return measured(measure.log_prob(PEERS[model](measure, seed), test))

    return {
        model: cache.get((table.name, str(seed), model), partial(run, model), again and model == OURS)
        for model in models
    }


def options(description: str | None, cache: str, sets: tuple[str, ...]) -> argparse.ArgumentParser:
    """Return what the two scripts on small tables take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DIFFEO_DATA"), help="by default DIFFEO_DATA")
    parser.add_argument("--set", nargs="+", default=sets, metavar="SET", help=f"of {', '.join(sets)}")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir(), cache), help="a JSON of results")
    parser.add_argument("--keep", action="store_true", help="take diffeo's results from the cache, too")
    parser.add_argument("--others", action="store_true", help="measure the others alone")
    return parser


def main() -> None:
    """Measure, print a row for each set as it is done, then the verdict."""
    parser = options(__doc__, "diffeo-small.json", SETS)
    parser.add_argument("--splits", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("expected DIFFEO_DATA or --data")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    warnings.filterwarnings("ignore")
    cache = Cache(arguments.cache)
    models = [*([] if arguments.others else [OURS]), *PEERS]
    print("nats per row, mean +- standard deviation over splits; lower is better; gap: of diffeo to the best other per")
    print(f"dimension; s: seconds of diffeo's fit and score, {torch.get_num_threads()} threads\n")
    print(f"| set | rows x columns | {' | '.join(models)} | gap | s |\n|{' --- |' * (len(models) + 4)}")
    gaps: dict[str, float] = {}
    for name in arguments.set:
        table = load(arguments.data, name)
        results = [compare(table, seed, models, cache, not arguments.keep) for seed in range(arguments.splits)]
        nats = {model: np.array([result[model]["nats"] for result in results]) for model in models}
        mean = {model: float(values.mean()) for model, values in nats.items()}
        best = min(mean, key=lambda model: mean[model])
        cells = [
            f"{'**' * (model == best)}{mean[model]:.2f}{'**' * (model == best)} +- {nats[model].std():.2f}"
            for model in models
        ]
        gap, seconds = "", ""
        if OURS in models:
            gaps[name] = (mean[OURS] - min(mean[peer] for peer in PEERS)) / table.x.shape[1]
            gap = f"{gaps[name]:+.3f}"
            seconds = f"{np.mean([result[OURS]['seconds'] for result in results]):.0f}"
        shape = f"{table.x.shape[0]} x {table.x.shape[1]} ({table.kinds})"
        print(f"| {name} | {shape} | {' | '.join(cells)} | {gap} | {seconds} |", flush=True)
    if gaps:
        near = sum(gap <= BEHIND for gap in gaps.values())
        ahead = sum(gap < 0 for gap in gaps.values())
        print(f"\nwithin {BEHIND} nats per dimension of the best other: {near} of {len(gaps)}; ahead: {ahead}")
        print("far behind: " + (", ".join(name for name, gap in gaps.items() if gap > BEHIND) or "none"))


if __name__ == "__main__":
    main()
