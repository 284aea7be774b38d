"""Results for people to read."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from diffeo.legible import legible
from diffeo.report import words

__all__ = [
    "anomalies",
    "check",
    "distill",
    "export",
    "fit",
    "info",
    "inpaint",
    "machine",
    "posterior",
    "predict",
    "report",
    "sample",
    "score",
]


LONGEST, CELL = 400, 60  # characters of a fact in a line, and of a cell of a table


def fit(summary: Mapping[str, Any]) -> str:
    """Describe a training."""
    given = f" given {', '.join(summary['context'])}" if summary["context"] else ""
    parts = {"train": "training", "validation": "validation", "test": "the test"}
    rows = [f"{summary['rows'][name]:,} for {text}" for name, text in parts.items() if name in summary["rows"]]
    if "folds" in summary:
        rows.append(f"each held out of one of {summary['folds']} folds")
    return _page(
        f"{_model(summary)}, {words.data_of(summary)}{given}",
        [
            *words.likelihoods(summary),
            ("rows", ", ".join(rows)),
            ("stack", words.stack(summary.get("weights", {}))),
            ("time", f"{words.trained(summary)}, {words.stopped(summary)}"),
            ("skipped", words.when(summary["skipped_batches"], "{} batches were not finite")),
            _figures(summary),
            ("report", summary.get("report") or ""),
        ],
    )


def posterior(summary: Mapping[str, Any]) -> str:
    """Describe the training of a posterior, and whether it is calibrated."""
    return "\n".join([fit(summary), *(_table(words.calibration(summary)) if "calibration" in summary else [])])


def _model(summary: Mapping[str, Any]) -> str:
    return f"{summary['run']}: {summary['model']}, {summary['parameters']:,} parameters"


def _figures(summary: Mapping[str, Any]) -> tuple[str, str]:
    return "figures", f"{summary['run']}/figures" if summary["figures"] else ""


def score(summary: Mapping[str, Any]) -> str:
    """Describe a scoring."""
    bits = {"bits_per_dim": ("bits/dim", ""), "bits_per_sample": ("bits/sample", " of the 16-bit values")}
    return _page(
        _pace(summary),
        [
            *(
                (text, words.with_error(summary[name], summary[f"{name}_stderr"]) + unit)
                for name, (text, unit) in bits.items()
                if name in summary
            ),
            ("mean", f"{words.pair(summary)} nats per {summary['unit']}{_bound(summary)}"),
            ("ELBO", words.with_error(summary["elbo"], summary["elbo_stderr"]) if "elbo" in summary else ""),
            ("seen", words.seen(summary)),
            ("lowest", words.number(summary["min"])),
            *_read(summary),
        ],
    )


def _bound(summary: Mapping[str, Any]) -> str:
    """That a mean is one of bounds, and what the samples leave open of it, of a VAE."""
    if "elbo" not in summary:
        return ""
    error = summary["sampling_stderr"]
    alone = "" if error is None or not math.isfinite(error) else f" (± {words.number(error)} by these)"
    return f", the importance-weighted bound of {words.many(summary['samples'], 'sample')}{alone}"


def _read(summary: Mapping[str, Any]) -> words.Rows:
    """What is to be said of the data that were scored."""
    off, columns = summary.get("off_grid", 0), words.counts(summary.get("off_grid_by_column", {}))
    return [
        ("-inf", f"{summary['impossible']:,} rows" * (summary["impossible"] > 0)),
        ("off grid", f"{off:,} rows with a value off its grid; columns: {columns}" * (off > 0)),
        ("unseen", words.counts(summary.get("unseen_by_column", {}))),
        ("left out", words.when(summary.get("dropped"), "{:,} rows with missing values")),
        ("ignored", words.listed(summary.get("ignored_columns", ()))),
        ("skipped", ", ".join(summary.get("skipped", ()))),
        ("notes", "; ".join(summary.get("notes", ()))),
        ("solver", _solver(summary["solver"]) if "solver" in summary else ""),
    ]


def export(summary: Mapping[str, Any]) -> str:
    """Describe a file that runs without diffeo."""
    inputs = ", ".join(
        f"{name} ({', '.join(map(str, each['shape']))}) {each['dtype']}" for name, each in summary["inputs"].items()
    )
    parity, ours, theirs = summary["parity"], summary["own_rows_per_second"], summary["rows_per_second"]
    batches = ", ".join(f"{size:,}" for size in parity["batches"])
    steps, solver = "", summary["solver_parity"]
    if solver is not None:
        steps = f"{summary['steps']} equal steps; diffeo's own to {solver['worst']:.2g} of {solver['allowed']}"
    return _page(
        f"{summary['out']}: {summary['what']} of {summary['run']}, for {summary['runtime']}",
        [
            ("inputs", inputs),
            ("output", summary["output"]),
            ("agrees", f"to {parity['worst']:.2g} of {parity['allowed']}"),
            ("solver", steps),
            ("rows", f"{parity['rows']:,} ({summary['which']}), in batches of {batches}"),
            ("speed", f"{theirs:,.0f} rows/s, diffeo's own {ours:,.0f}; {summary['rows']:,} rows at a time"),
            ("size", f"{summary['bytes'] / 1e6:.2f} MB, loaded in {summary['load_seconds']:.2f} s"),
            ("time", words.duration(summary["seconds"])),
        ],
    )


def anomalies(summary: Mapping[str, Any]) -> str:
    """Describe a search for anomalies."""
    held_out, alpha, shares = summary["held_out"], summary["alpha"], summary["explained"]
    folds = f" of {summary['folds']} folds" if summary["folds"] > 1 else ""
    few = ""
    if summary["least_p_value"] > alpha:
        few = f"; no row can be: no p-value is below {summary['least_p_value']:.2g}, so give a larger --alpha"
    worst = (
        (
            f"{row['row']:,}",
            f"{row['p_value']:.3g}",
            words.number(row["score"]),
            words.number(row["log_likelihood"]),
            words.most_shares(row["shares"], row["column"]),
        )
        for row in summary["worst"]
    )
    return _page(
        _pace(summary),
        [
            (
                "flagged",
                f"{summary['flagged']:,} ({summary['flagged'] / summary['rows']:.2%}), p at most {alpha:g}{few}",
            ),
            ("held out", f"{words.many(held_out, 'row')}{folds} to compare with"),
            ("columns", words.counts(summary["flagged_by_column"])),
            ("shares", words.when(shares < summary["rows"] and shares, "of the worst {:,} rows")),
            ("seen", words.seen(summary)),
            *_read(summary),
            ("plot", summary["plot"] or ""),
        ],
        *_below(("row", "p", "score", "log-likelihood", "nats above what is usual"), worst),
    )


def _pace(summary: Mapping[str, Any]) -> str:
    """How many in which time, and how fast: sounds beside real time."""
    count, took = words.many(summary["rows"], summary["unit"]), words.duration(summary["seconds"])
    if "duration" in summary:
        times = summary["duration"] / summary["seconds"] if summary["seconds"] else math.inf
        return f"{count}, {words.duration(summary['duration'])}, in {took} ({times:,.1f} times real time)"
    return f"{count} in {took} ({summary['rows_per_second']:,.0f} {summary['units']}/s)"


def _solver(took: Mapping[str, Any]) -> str:
    """What the solver of a continuous flow took."""
    error = took["largest_error"]
    accuracy = "of unknown error" if error is None else f"estimated error at most {words.tiny(error)}"
    return f"{took['evaluations_per_row']:.0f} evaluations of the velocity for each, {accuracy}"


def sample(summary: Mapping[str, Any]) -> str:
    """Describe a sampling."""
    place = "" if summary["out"] in (None, "-") else f"{summary['out']}: "
    cut = words.when(summary.get("cut"), "; {:,} samples were cut off at full scale")
    return place + _pace(summary) + cut + words.when(summary.get("non_finite"), "; {:,} numbers are not finite")


def predict(summary: Mapping[str, Any]) -> str:
    """Describe predictions, and where it is known how good they were."""
    place = "" if summary["out"] in (None, "-") else f"{summary['out']}: "
    low, high = summary["quantiles"][0], summary["quantiles"][-1]
    rows: words.Rows = []
    for name, judged in summary["targets"].items():
        cover, pit = judged["coverage"], judged["pit"]
        rows += [
            (
                name,
                f"{words.percent(cover)} within the {low:g} and {high:g} quantiles, expected {cover['nominal']:.1%}",
            ),
            ("  F(y)", f"{pit['distance']:.3f} from uniform (p {words.p_value(pit['p'])})"),
            ("  CRPS", words.pair(judged["crps"]) if "crps" in judged else ""),
        ]
    count = summary["in_training"]
    seen = f"{count:,} of {summary['rows']:,} rows were in training: by the part of the model that held them out"
    return _page(
        place + _pace(summary),
        [
            *rows,
            ("seen", seen * (count > 0)),
            ("left out", words.when(summary["dropped"], "{:,} rows with missing values")),
        ],
    )


def impute(summary: Mapping[str, Any]) -> str:
    """Describe gaps filled."""
    place = "" if summary["out"] in (None, "-") else f"{summary['out']}: "
    counts = words.counts(summary["filled_by_column"])
    where = f" ({counts})" if counts else ""
    often = words.when(summary["draws"] > 1 and summary["draws"], ", {:,} times each")
    return f"{place}{words.many(summary['rows'], 'row')}, {words.many(summary['filled'], 'cell')} filled{often}{where}"


def inpaint(summary: Mapping[str, Any]) -> str:
    """Describe images completed."""
    return (
        f"{summary['out']}: {words.many(summary['images'], 'image')}, {summary['hidden']:,} values each completed; "
        f"log p from {words.number(summary['before'])} to {words.number(summary['after'])} nats"
    )


def distill(summary: Mapping[str, Any]) -> str:
    """Describe a distillation: what was lost, and how much faster it is."""
    head, took = f"{_model(summary)}, from {summary['teacher']}", ("time", words.trained(summary))
    report = summary.get("distillation")
    if report is None:
        return _page(head, [took])
    warned = [textwrap.fill(f"warning: {text}", 100, subsequent_indent="  ") for text in report["warnings"]]
    head = f"{head}; {words.data_of(summary)}, {words.many(report['rows'], 'draw')} of each"
    return _page(head, [*words.lost(report), took, _figures(summary)], *warned)


def info(summary: Mapping[str, Any]) -> str:
    """Describe a run directory."""
    origin, metrics = summary["provenance"], summary["metrics"]
    data, versions = origin.get("data") or {}, origin.get("versions", {})
    teacher = origin.get("distillation", {}).get("teacher")
    columns = summary.get("columns", [])
    masses = words.MASSES if any("masses" in column for column in columns) else ()
    unit = "rows" if columns else "images" if "shape" in summary else "recordings"
    made_by = ", ".join(f"{name} {versions[name]}" for name in ("diffeo", "torch") if name in versions)
    return _page(
        f"{_model(summary)}, {summary['bytes'] / 1e6:.2f} MB",
        [
            ("arguments", ", ".join(f"{k}={v}" for k, v in summary["arguments"].items() if k not in words.LONG)),
            ("fast", " and ".join(summary["fast"]) or "neither log_prob nor sample"),
            *words.likelihoods(metrics),
            ("trained", words.trained(metrics) if metrics.keys() >= {"epochs", "seconds"} else "not to the end"),
            ("stack", words.stack(metrics.get("weights", {}))),
            ("data", f"{data.get('name', '?')}, {summary['rows']:,} {unit}"),
            ("weights", words.when(summary.get("weighted_by"), "column {!r}, which is not modelled")),
            ("images", words.shape_of(summary.get("shape", ()))),
            ("audio", words.sound_format(summary) if "rate" in summary else ""),
            ("classes", ", ".join(summary.get("classes", ()))),
            ("distilled", f"from {teacher['run']}, {teacher['model']}" if teacher else ""),
            ("made", f"{origin.get('date', '?')} by {made_by}"),
        ],
        *_below(("column", "kind", "range", *masses), map(words.column_cells, columns[: words.SHOWN])),
        *([f"  ... and {len(columns) - words.SHOWN} more"] if len(columns) > words.SHOWN else []),
    )


def report(summary: Mapping[str, Any]) -> str:
    """Describe a report that was written."""
    sounds = words.when(summary["sounds"], ", {} sounds")
    return _page(
        f"{summary['out']}: {summary['bytes'] / 1e6:.2f} MB, {words.many(summary['figures'], 'figure')}{sounds}",
        [
            ("verdict", summary["verdict"] or "not checked"),
            ("size", "; ".join(summary["smaller"])),
            ("model card", summary["card"]),
        ],
    )


def machine(summary: Mapping[str, Any]) -> str:
    """Describe what computes on this machine."""
    kernels, speed, torch = summary["kernels"], summary["gflops"], summary["torch"]
    built = "none: plain PyTorch computes"
    if kernels["reason"] is None:
        lanes = words.when(kernels["lanes"], ", {} numbers a vector")
        threads = "" if kernels["openmp"] else ", without OpenMP: one thread"
        built = f"for {kernels['instructions']}{lanes}{threads}, made in {words.duration(kernels['seconds'])}"
    figures = {"torch": "PyTorch", "dense": "kernels", "masked": "kernels, masked"}
    used = [
        (
            kind,
            "yes" if each["used"] else "no",
            f"{each['ratio']:.2f} of PyTorch's" if "ratio" in each else each.get("error", "not measured"),
        )
        for kind, each in kernels.get("kinds", {}).items()
    ]
    return _page(
        f"{summary['processor']}, {words.many(summary['cores'], 'core')}, {words.many(summary['threads'], 'thread')}",
        [
            ("PyTorch", f"{torch['version']}, {torch['instructions']}"),
            ("kernels", built),
            ("because", kernels["reason"] or ""),
            ("compiler", f"{kernels['compiler']}: {kernels['version']}" if "version" in kernels else ""),
            ("flags", " ".join(kernels.get("flags", ()))),
            ("library", kernels.get("library") or ""),
            ("GFLOP/s", ", ".join(f"{name} {speed[key]:,.0f}" for key, name in figures.items() if key in speed)),
        ],
        *_below(("kernels", "used", "time"), used),
    )


def check(report: Mapping[str, Any]) -> str:
    """Describe a check."""
    reasons = [textwrap.fill(text, 100, initial_indent="  - ", subsequent_indent="    ") for text in report["reasons"]]
    looked = words.looked_at(report)
    return _page(
        f"{report['run']} on {report['data']}: {report['which']} ({report['rows']:,})",
        [],
        *_parts(words.checked(report)),
        *([""] if looked else []),
        *textwrap.wrap(looked, 100, initial_indent="  ", subsequent_indent="    "),
        "",
        f"verdict: {report['verdict']}" + ":" * bool(reasons),
        *reasons,
    )


def _parts(parts: Iterable[words.Rows | words.Columns]) -> list[str]:
    """Rows and tables, one below the other, an empty line between two."""
    lines: list[str] = []
    for part in parts:
        if isinstance(part, words.Columns):
            lines += _below(part.head, part.rows)
        else:
            lines += [""] * bool(lines) + _table(part)
    return lines


def _page(head: str, rows: words.Rows, *rest: str) -> str:
    return "\n".join([legible(head), *_table(rows), *rest])


def _table(rows: words.Rows) -> list[str]:
    rows = [(legible(name, CELL), text) for name, text in rows if text]
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:<{width}}  {legible(text, LONGEST)}" for name, text in rows]


def _below(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A table of several columns after an empty line; nothing where it has no rows."""
    table = [head, *(tuple(legible(cell, CELL) for cell in row) for row in rows)]
    if len(table) == 1:
        return []
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in table)
    return ["", *(f"  {line}".rstrip() for line in lines)]
