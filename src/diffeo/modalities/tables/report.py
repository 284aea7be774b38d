"""What a report says and shows of a run of a table."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date, datetime, time
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from diffeo.errors import UserError
from diffeo.mixture import Mixture
from diffeo.modalities.base import Chunk, Kept, OpenRun, RunReport, chunks_of
from diffeo.modalities.tables.anomalies import find_anomalies
from diffeo.modalities.tables.figures import Rows, held_out_pit, plot_rows
from diffeo.modalities.tables.held_out import HeldOut
from diffeo.modalities.tables.prediction import NUMBERS
from diffeo.modalities.tables.run import TableRun
from diffeo.report import words
from diffeo.report.anomalies import WORST, plot_anomalies
from diffeo.report.page import Block, Facts, Picture, Text
from diffeo.report.prediction import calibration
from diffeo.report.words import Columns
from diffeo.training.seeding import derive, seed_noise
from diffeo.transforms.mixed import Mixed

__all__ = ["TableReport"]

SCORED = 10_000  # rows among which the least likely are looked for
JUDGED = 5_000  # rows that figures are of
SLOW = 1_000  # rows of either, of a flow that takes many evaluations of a network for each
DRAWN = 6  # samples listed
FEW = 1_000  # rows of training
LISTED = 8  # columns in a sentence
LEVELS = (0.5, 0.8, 0.9, 0.95)  # of central intervals
ALPHA = 0.01  # the p-value up to which a row is called an anomaly

LATENTS = (
    "Latents, as normal scores: histograms and quantiles, beside the normal distribution that they have if the model is"
    " right."
)
NOISE = "The noise of each column: uniform if the model is right, but for chance."
PIT = (
    "F(y) of each row given its context (PIT): uniform if the model is calibrated; U-shaped where its intervals are too"
    " narrow, a hump where they are too wide."
)


class TableReport(RunReport):
    """Pairs of columns, latents, coverage of predictions, rows that are unlikely."""

    tag = "tabular"
    example = ("row", "rows")
    simplest = "independent columns"
    kept: ClassVar[Mapping[str, Kept]] = {
        "marginals": Kept(
            "samples", "Column by column: the rows of the training, filled in blue, and samples, outlined in vermilion."
        ),
        "pairs": Kept(
            "samples",
            "Pairs of columns: rows of the training, in blue, below the diagonal; samples, in vermilion, above it. Of a"
            " single column its distribution.",
            student="Pairs of columns: what the teacher draws, in blue, below the diagonal; the student above it.",
        ),
        "density": Kept("samples", "Rows of the training, the density of the model, and samples."),
        "trajectories": Kept(
            "samples",
            "From noise to samples: the trajectories that the model solves for.",
            student="From noise to samples: the trajectories of teacher and student.",
        ),
        "latents": Kept(
            "calibration",
            f"{LATENTS} The title says of which rows.",
        ),
        "noise": Kept(
            "calibration",
            f"{NOISE} The title says of which rows.",
        ),
        "pit": Kept(
            "calibration",
            f"{PIT} The title says of which rows.",
        ),
        "calibration": Kept(
            "calibration",
            "Ranks of true parameters among draws of the posterior, and the coverage of its regions, by simulations"
            " that were held out: within the grey band but for chance.",
        ),
        "learning_curve": Kept("training", "The loss of training and of validation, epoch by epoch."),
        "kl": Kept("distillation", "The divergence of student and teacher over the training."),
        "likelihoods": Kept("distillation", "The teacher's likelihood of its draws and of the student's."),
        "distances": Kept("distillation", "Squared Wasserstein distances to the teacher by the number of steps."),
    }

    run: TableRun

    def __init__(self, run: OpenRun, *rest: Any) -> None:
        assert isinstance(run, TableRun)
        self.run = run
        super().__init__(run, *rest)

    @property
    def captions(self) -> Mapping[str, str]:
        """Of figures that compare the rows given with samples."""
        if self._rows is None:
            return {}
        rows = self.some(len(self._rows.x))
        return {
            "marginals": f"Column by column: {rows}, filled in blue, and samples, outlined in vermilion.",
            "pairs": (
                f"Pairs of columns: in blue, below the diagonal, {rows}; samples, in vermilion, above it."
                if self.run.schema.features > 1
                else f"In blue {rows}; in vermilion samples."
            ),
            "density": f"Left: {rows}. In the middle the density of the model, to the right samples.",
            "latents": f"{LATENTS} Of {rows}.",
            "noise": f"{NOISE} Of {rows}.",
            "pit": f"{PIT} Of {rows}.",
        }

    @cached_property
    def _rows(self) -> Rows | None:
        """The rows that figures are of."""
        if self.examples is None:
            return None
        device, examples = self.run.device, self.examples
        what = "rows that were trained on" if examples.in_sample else "rows"
        chosen = self.drawn(JUDGED if self.run.flow.fast else SLOW).sort().values
        context = None if examples.context is None else examples.context[chosen].to(device)
        part = None if examples.part is None else examples.part[chosen]
        return Rows(examples.x[chosen].to(device), context, what, part)

    def data(self) -> list[Block]:
        """Every column."""
        columns = self.run.facts()["columns"]
        masses = words.MASSES if any("masses" in column for column in columns) else ()
        rows = [words.column_cells(column) for column in columns]
        wide = max(map(len, rows))
        blanks = [(*row, *[""] * (wide - len(row))) for row in rows]
        return [Columns(("column", "kind", "range", *masses)[:wide], blanks)]

    def samples(self) -> list[Block]:
        """Figures of rows beside samples, and some samples as they are."""
        if self._rows is not None:
            flow = self.run.flow
            plot_rows(self.figures, flow, self.run.schema, self._rows, self._rows, self.seed, density=bool(flow.fast))
        blocks = self.pictures("samples")
        if not blocks:
            blocks.append(
                Text("No figure compares rows with samples: the run directory has none. Give data to have one made.")
            )
        return [*blocks, *self._drawn()]

    def _drawn(self) -> list[Block]:
        """Some samples, of a run that draws without a context."""
        run = self.run
        if run.schema.context:
            listed = words.listed([repr(name) for name in run.schema.context])
            return [Text(f"Samples are drawn given {listed}; they are not listed here.")]
        seed_noise(run.device, derive(self.seed, "report"))
        with torch.no_grad():
            x = run.flow.sample((DRAWN,)).double().cpu().numpy()
        cells = run.schema.decode(np.where(np.isinf(x), np.nan, x) if run._mixed else np.nan_to_num(x))
        rows = [tuple(map(_cell, row)) for row in cells]
        return [Text(f"{DRAWN} samples, as the table has its rows:"), Columns(tuple(run.schema.names), rows)]

    def calibration(self) -> list[Block]:
        """Of a posterior ranks and coverage; of predictions coverage and F(y); the latents."""
        blocks: list[Block] = []
        run, examples = self.run, self.examples
        if run.method is not None:
            if examples is not None:
                result = run.calibration(examples, self.seed)
                result.plot(self.figures("calibration"))
                blocks += [Text(f"By {self.judged}:"), Facts(words.calibration({"calibration": result.to_json()}))]
            elif "calibration" in run.metrics:
                stored = run.metrics["calibration"]
                blocks += [Text(f"By {stored.get('which', 'simulations')}:"), Facts(words.calibration(run.metrics))]
        elif self._rows is not None and self._rows.context is not None and self._predicts:
            blocks += self._coverage(self._rows)
        return [*blocks, *self.pictures("calibration")]

    @property
    def _predicts(self) -> bool:
        """Whether the columns are numbers that have distribution functions."""
        numbers = all(column.kind in NUMBERS for column in self.run.schema.feature_columns)
        return numbers and not isinstance(self.run.flow.transform, Mixed)

    def _coverage(self, rows: Rows) -> list[Block]:
        """How many rows are within central intervals: those whose F(y) is."""
        values = held_out_pit(self.run.flow, self.run.schema, rows, self.seed)
        lines = []
        for name, column in zip(self.run.schema.feature_names, values.T, strict=True):
            test = calibration(column)
            shares = [float((abs(column - 0.5) <= level / 2).mean()) for level in LEVELS]
            shown = f"{test['distance']:.3f} (p {words.p_value(test['p'])})"
            lines.append((name, *(f"{share:.1%}" for share in shares), shown))
        head = ("column", *(f"within {level:.0%}" for level in LEVELS), "F(y) from uniform")
        return [Text(f"The share of rows within central intervals of the prediction, by {self.some(len(values))}:"),
                Columns(head, lines)]  # fmt: skip

    def unlikely(self) -> list[Block]:
        """The rows with the lowest p-values, and the columns that make them so."""
        run = self.run
        if self.source is None:
            return [Text("Unlikely rows are looked for where data are given.")]
        if self.student:
            return [Text("A student knows no held-out rows to compare with: look for unlikely rows by its teacher.")]
        if not run.flow.has_log_prob:
            return [Text("The model has no likelihood, by which rows could be unlikely.")]
        try:
            held_out = HeldOut.of(run)
        except UserError as error:
            return [Text(f"Not looked for: {str(error).removeprefix(f'{run.path}: ')}.")]
        scoring = run.scoring(self.source, self.options, "check")
        chunks = chunks_of(run, scoring, self.seed, lambda done, total: None)
        result = find_anomalies(
            run,
            held_out,
            _thinned(chunks, scoring.total, SCORED if run.flow.fast else SLOW, self.seed),
            scoring.draws,
            ALPHA,
            self.seed,
            (WORST, WORST),
        )
        names, rows = list(run.schema.places), len(result.order)
        plot_anomalies(self.figures("anomalies"), held_out.law, result.scored.score, ALPHA, result.worst, names)
        facts = {**scoring.facts(), "rows": rows}
        which = f"{rows:,} rows drawn at random" if scoring.total and rows < scoring.total else words.many(rows, "row")
        flagged = f"{int(result.flagged.sum()):,} of {which} have a p-value of at most {ALPHA:g}"
        lines = [
            (
                f"{row.row:,}",
                f"{row.p_value:.2g}",
                words.number(row.log_prob),
                words.most_shares(row.facts(names)["shares"], row.column),
            )
            for row in result.worst
        ]
        head = ("row", "p", "log-likelihood", "nats above what is usual, by column")
        picture = Picture.read(
            self.figures.run / "figures" / "anomalies.png",
            "Left: scores of these rows beside those that were held out. Right: the worst rows, and what each column"
            " adds to their strangeness.",
        )
        compared = f"They are compared with {words.many(len(held_out.law), 'row')} held out of the training."
        seen = words.seen(facts)
        return [Text(f"{flagged}. {compared} {seen}{'.' * bool(seen)}"), Columns(head, lines), picture]

    def limits(self) -> list[str]:
        """What was left out, and what the density says nothing of."""
        run, schema = self.run, self.run.schema
        settings = run.provenance.get("settings")
        settings = settings if isinstance(settings, dict) else {}
        trained = (run.metrics.get("rows") or {}).get("train", schema.rows)
        constant = [
            column.name for column in schema.columns if column.kind == "constant" and column.name not in schema.context
        ]
        rounded = [column.name for column in schema.feature_columns if column.kind in ("integer", "levels")]
        texts = []
        if trained < FEW:
            texts.append(
                f"It was trained on {words.many(trained, 'row')}: what is rare among them is hardly known, and figures"
                " are uncertain."
            )
        if constant:
            texts.append(
                f"Constant in the training, and so not modelled: {_names(constant)}. Of any other value there it knows"
                " only that it is rare."
            )
        if settings.get("drop"):
            texts.append(f"Left out of the model: {_names(settings['drop'])}. It knows nothing of these columns.")
        if schema.context:
            texts.append(
                f"It is conditional on {_names(schema.context)}: how these are distributed, it does not know, nor what"
                " follows from values of theirs unlike those of the training."
            )
        if run.method is not None:
            texts.append(
                "The posterior is that of the simulator and of the prior that its parameters were drawn from. What it"
                " says of an observation that no simulation resembles means nothing."
            )
        if rounded and not isinstance(run.flow.transform, Mixed):
            texts.append(
                f"Whole numbers and columns of few values are spread over their cells: {_names(rounded)}. The"
                " likelihood is that of the cell, divided by its width."
            )
        if schema.weights:
            texts.append(f"Rows were weighted by {schema.weights!r}, which is not modelled; samples have these shares.")
        texts.append("Samples keep to the range of each column that was seen: extremes beyond it are never drawn.")
        if isinstance(run.flow, Mixture):
            texts.append(
                "It is a stack, whose weights were chosen by the rows held out in turn, and whose members were stopped"
                " by them: likelihoods out of fold are a little too good. Rows kept for a test (--test) are not."
            )
        return texts

    def use(self) -> list[str]:
        """Score, draw, and what else the run can."""
        schema = self.run.schema
        values = [f"--given {shlex.quote(f'{name}=VALUE')}" for name in schema.context[:LISTED]]
        more = " ..." if len(schema.context) > LISTED else ""
        lines = [f"diffeo sample run/ -n 1000 {' '.join(values)}{more} --out new.csv".replace("  ", " ")]
        if self.run.flow.has_log_prob:
            lines = ["diffeo score run/ data.csv --out scores.csv", *lines, "diffeo check run/ data.csv"]
            if not self.student:
                lines.append("diffeo anomalies run/ data.csv --out anomalies.csv")
        if self.run.flow.has_log_prob and schema.context and self._predicts:
            lines.append("diffeo predict run/ data.csv --out quantiles.csv")
        if self.run.flow.any_order and not schema.context:
            lines.append("diffeo impute run/ data.csv --out complete.csv")
        return lines


def _names(names: Any) -> str:
    shown = [repr(name) for name in names]
    return words.listed(shown)


def _cell(value: Any) -> str:
    """A cell as it is shown; nothing of a missing one."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, int | float | np.number):
        return f"{value:.6g}"
    return value.isoformat() if isinstance(value, date | datetime | time) else str(value)


def _thinned(chunks: Iterator[Chunk], total: int | None, most: int, seed: int) -> Iterator[Chunk]:
    """About so many rows at most, of each chunk the same share, drawn at random."""
    share = min(1.0, most / total) if total else 1.0
    generator = np.random.default_rng(derive(seed, "thinned"))
    for chunk in chunks:
        count = len(chunk.x)
        kept = np.sort(generator.permutation(count)[: max(1, round(share * count))])
        rows = torch.from_numpy(kept)
        tensors = {
            name: value[rows.to(value.device)]
            for name in ("x", "context", "known", "part")
            if (value := getattr(chunk, name)) is not None
        }
        arrays = {name: value[kept] for name in ("log_grid", "off_grid") if (value := getattr(chunk, name)) is not None}
        yield replace(chunk, cells=chunk.cells[kept], **tensors, **arrays) if share < 1 else chunk
