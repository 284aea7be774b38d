"""Results for people to read."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "anomalies",
    "check",
    "distill",
    "fit",
    "info",
    "inpaint",
    "machine",
    "posterior",
    "predict",
    "sample",
    "score",
]

SHOWN = 40  # columns listed by info
WIDE = 50  # letters of what is listed of one
MASSES = ("missing", "single values", "copies")  # of the columns of a mixed density
LONG = ("preprocess", "columns")  # arguments that it does not show

Rows = list[tuple[str, str]]  # what is said, and of what; nothing is shown of what is not there
SOUND = {"rms": "loudness (RMS)", "flatness": "spectral flatness", "voiced_share": "voiced share"}
SPECTRAL = "log-spectral distance"


def fit(summary: Mapping[str, Any]) -> str:
    """Describe a training."""
    given = f" given {', '.join(summary['context'])}" if summary["context"] else ""
    parts = {"train": "training", "validation": "validation", "test": "the test"}
    rows = [f"{summary['rows'][name]:,} for {text}" for name, text in parts.items() if name in summary["rows"]]
    if "folds" in summary:
        rows.append(f"each held out of one of {summary['folds']} folds")
    return _page(
        f"{_model(summary)}, {_what(summary)}{given}",
        [
            *_likelihoods(summary),
            ("rows", ", ".join(rows)),
            ("stack", _stack(summary.get("weights", {}))),
            ("time", f"{_trained(summary)}, {_stopped(summary)}"),
            ("skipped", _if(summary["skipped_batches"], "{} batches were not finite")),
            _figures(summary),
        ],
    )


def posterior(summary: Mapping[str, Any]) -> str:
    """Describe the training of a posterior, and whether it is calibrated."""
    return "\n".join([fit(summary), *(_table(_calibration(summary)) if "calibration" in summary else [])])


def _calibration(report: Mapping[str, Any]) -> Rows:
    """Distances from uniform of ranks and coverage."""
    result = report["calibration"]
    rows = [*result["sbc"].items(), ("coverage (TARP)", result["tarp"])]
    count = f"of {_many(result['simulations'], 'simulation')}, {result['draws']:,} draws of the posterior for each"
    return [
        ("ranks (SBC)", count),
        *((f"  {name}", f"{part['distance']:.3f} from uniform (p {_p(part['p'])})") for name, part in rows),
    ]


def _model(summary: Mapping[str, Any]) -> str:
    return f"{summary['run']}: {summary['model']}, {summary['parameters']:,} parameters"


def _what(summary: Mapping[str, Any]) -> str:
    if "columns" in summary:
        return _many(summary["columns"], "column")
    if "shape" in summary:
        return f"images of {_shape(summary['shape'])}"
    return f"{_time(summary['duration'])} of audio at {summary['rate']:,} Hz"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _stack(weights: Mapping[str, float]) -> str:
    """How much of each family there is in a density, the most first."""
    ordered = sorted(weights.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{share:.1%} {name}" for name, share in ordered if share >= 0.0005)


def _trained(metrics: Mapping[str, Any]) -> str:
    return f"{_many(metrics['epochs'], 'epoch')} in {_time(metrics['seconds'])}"


def _stopped(summary: Mapping[str, Any]) -> str:
    best, why = summary["best_epoch"], summary["stopped"]
    if "folds" in summary:
        return f"best in epoch {best} (median)" + "; interrupted" * (why == "interrupted")
    if why == "patience":
        waited = _many(summary["epochs"] - best, "epoch")
        return f"best in epoch {best}; stopped early: validation has not improved for {waited}"
    return f"best in epoch {best}; stopped: {'the budget is used up' if why == 'budget' else why}"


def _figures(summary: Mapping[str, Any]) -> tuple[str, str]:
    return "figures", f"{summary['run']}/figures" if summary["figures"] else ""


def _likelihoods(metrics: Mapping[str, Any]) -> Rows:
    parts = {"out_of_fold": "held out", "validation": "validation", "train": "training", "test": "test"}
    rows = metrics.get("rows", {})
    weighted = _if(metrics.get("weighted_by"), ", weighted by {!r}")
    return [
        (text, _likelihood(metrics[name]) + _used(metrics[name].get("rows"), rows.get(name)) + weighted)
        for name, text in parts.items()
        if name in metrics
    ]


def _used(used: int | None, rows: int | None) -> str:
    """How many rows a figure is of, if not of all."""
    return f", on {used:,} rows" if used and rows and used < rows else ""


def _likelihood(part: Mapping[str, Any]) -> str:
    if "elbo" in part:
        return (
            f"at most {_with_error(part['nll'], part['stderr'])} nats per image by {part['samples']:,} samples"
            f" (-ELBO {_with_error(-part['elbo'], part['elbo_stderr'])}), {part['bits_per_dim']:.4f} bits/dim"
        )
    if "bits_per_dim" in part:
        return f"{_with_error(part['nll'], part['stderr'])} nats per image, {part['bits_per_dim']:.4f} bits/dim"
    if "bits_per_sample" in part:
        return f"{_with_error(part['bits_per_sample'], part['bits_per_sample_stderr'])} bits per 16-bit sample"
    dimension = next(name for name in part if name.startswith("bits_per_") and not name.endswith("_stderr"))
    return (
        f"{_with_error(part['nll'], part['stderr'])} nats per row"
        f" ({_number(part['bits'])} bits, {_number(part[dimension])} per {dimension.removeprefix('bits_per_')})"
    )


def score(summary: Mapping[str, Any]) -> str:
    """Describe a scoring."""
    bits = {"bits_per_dim": ("bits/dim", ""), "bits_per_sample": ("bits/sample", " of the 16-bit values")}
    return _page(
        _pace(summary),
        [
            *(
                (text, _with_error(summary[name], summary[f"{name}_stderr"]) + unit)
                for name, (text, unit) in bits.items()
                if name in summary
            ),
            ("mean", f"{_pair(summary)} nats per {summary['unit']}{_bound(summary)}"),
            ("ELBO", _with_error(summary["elbo"], summary["elbo_stderr"]) if "elbo" in summary else ""),
            ("seen", _seen(summary)),
            ("lowest", _number(summary["min"])),
            *_read(summary),
        ],
    )


def _bound(summary: Mapping[str, Any]) -> str:
    """That a mean is one of bounds, and what the samples leave open of it, of a VAE."""
    if "elbo" not in summary:
        return ""
    alone = _number(summary["sampling_stderr"])
    return f", the importance-weighted bound of {summary['samples']:,} samples (± {alone} by these)"


def _read(summary: Mapping[str, Any]) -> Rows:
    """What is to be said of the data that were scored."""
    blame = _counts(summary.get("impossible_by_column", {}))
    return [
        ("-inf", f"{summary['impossible']:,} impossible rows; columns: {blame}" * (summary["impossible"] > 0)),
        ("unseen", _counts(summary.get("unseen_by_column", {}))),
        ("left out", _if(summary.get("dropped"), "{:,} rows with missing values")),
        ("ignored", _listed(summary.get("ignored_columns", ()))),
        ("skipped", ", ".join(summary.get("skipped", ()))),
        ("notes", "; ".join(summary.get("notes", ()))),
        ("solver", _solver(summary["solver"]) if "solver" in summary else ""),
    ]


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
            _number(row["score"]),
            _number(row["log_likelihood"]),
            _most(row["shares"], row["column"]),
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
            ("held out", f"{_many(held_out, 'row')}{folds} to compare with"),
            ("columns", _counts(summary["flagged_by_column"])),
            ("shares", _if(shares < summary["rows"] and shares, "of the worst {:,} rows")),
            ("seen", _seen(summary)),
            *_read(summary),
            ("plot", summary["plot"] or ""),
        ],
        *_below(("row", "p", "score", "log-likelihood", "nats above what is usual"), worst),
    )


def _most(shares: Mapping[str, float], column: str) -> str:
    """The columns with the largest shares; of a constant that has another value its name alone."""
    parts = [f"{name} {_number(share)}" for name, share in [*shares.items()][:4] if share > 0]
    return ", ".join(parts if column in shares else [column, *parts])


def _seen(summary: Mapping[str, Any]) -> str:
    """How many rows were trained on, and what their scores are."""
    count, held = summary.get("in_training", 0), summary.get("out_of_fold", 0)
    if not count:
        return ""
    how = "likelihoods out of fold" if held == count else "their likelihoods say nothing about new rows"
    return f"{count:,} of {summary['rows']:,} rows were in training: {how}"


def _pace(summary: Mapping[str, Any]) -> str:
    """How many in which time, and how fast: sounds beside real time."""
    many, seconds = _many(summary["rows"], summary["unit"]), summary["seconds"]
    if "duration" in summary:
        times = summary["duration"] / seconds if seconds else math.inf
        return f"{many}, {_time(summary['duration'])}, in {_time(seconds)} ({times:,.1f} times real time)"
    return f"{many} in {_time(seconds)} ({summary['rows_per_second']:,.0f} {summary['units']}/s)"


def _solver(took: Mapping[str, Any]) -> str:
    """What the solver of a continuous flow took."""
    error = took["largest_error"]
    accuracy = "of unknown error" if error is None else f"estimated error at most {_tiny(error)}"
    return f"{took['evaluations_per_row']:.0f} evaluations of the velocity for each, {accuracy}"


def sample(summary: Mapping[str, Any]) -> str:
    """Describe a sampling."""
    place = "" if summary["out"] in (None, "-") else f"{summary['out']}: "
    cut = _if(summary.get("cut"), "; {:,} samples were cut off at full scale")
    return place + _pace(summary) + cut + _if(summary.get("non_finite"), "; {:,} numbers are not finite")


def predict(summary: Mapping[str, Any]) -> str:
    """Describe predictions, and where it is known how good they were."""
    place = "" if summary["out"] in (None, "-") else f"{summary['out']}: "
    low, high = summary["quantiles"][0], summary["quantiles"][-1]
    rows: Rows = []
    for name, judged in summary["targets"].items():
        cover, pit = judged["coverage"], judged["pit"]
        rows += [
            (name, f"{_percent(cover)} within the {low:g} and {high:g} quantiles, expected {cover['nominal']:.1%}"),
            ("  F(y)", f"{pit['distance']:.3f} from uniform (p {_p(pit['p'])})"),
            ("  CRPS", _pair(judged["crps"]) if "crps" in judged else ""),
        ]
    count = summary["in_training"]
    seen = f"{count:,} of {summary['rows']:,} rows were in training: by the part of the model that held them out"
    return _page(
        place + _pace(summary),
        [*rows, ("seen", seen * (count > 0)), ("left out", _if(summary["dropped"], "{:,} rows with missing values"))],
    )


def _percent(part: Mapping[str, float]) -> str:
    error = part["stderr"]
    return f"{part['mean']:.1%}" + (f" ± {error:.1%}" if error == error else "")


def impute(summary: Mapping[str, Any]) -> str:
    """Describe gaps filled."""
    place = "" if summary["out"] in (None, "-") else f"{summary['out']}: "
    counts = _counts(summary["filled_by_column"])
    where = f" ({counts})" if counts else ""
    often = _if(summary["draws"] > 1 and summary["draws"], ", {:,} times each")
    return f"{place}{_many(summary['rows'], 'row')}, {_many(summary['filled'], 'cell')} filled{often}{where}"


def inpaint(summary: Mapping[str, Any]) -> str:
    """Describe images completed."""
    return (
        f"{summary['out']}: {_many(summary['images'], 'image')}, {summary['hidden']:,} values each completed; "
        f"log p from {_number(summary['before'])} to {_number(summary['after'])} nats"
    )


def distill(summary: Mapping[str, Any]) -> str:
    """Describe a distillation: what was lost, and how much faster it is."""
    head, took = f"{_model(summary)}, from {summary['teacher']}", ("time", _trained(summary))
    report = summary.get("distillation")
    if report is None:
        return _page(head, [took])
    lost = _sounds_lost if "sound" in report else _steps_lost if "straightness" in report else _rows_lost
    warned = [textwrap.fill(f"warning: {text}", 100, subsequent_indent="  ") for text in report["warnings"]]
    head = f"{head}; {_what(summary)}, {_many(report['rows'], 'draw')} of each"
    return _page(head, [*lost(report), took, _figures(summary)], *warned)


_KLS = (("KL(student || teacher)", "reverse_kl"), ("KL(teacher || student)", "forward_kl"))


def _rows_lost(report: Mapping[str, Any]) -> Rows:
    entropy, modes = report["entropy"], report["modes"]
    lowest = _with_error(modes["lowest"], modes["stderr"])
    return [
        *(
            (name, f"{_pair(report[key])} nats per row, {_number(report[key]['per_dimension'])} per column")
            for name, key in _KLS
        ),
        ("entropy", f"student {_pair(entropy['student'])}, teacher {_pair(entropy['teacher'])} nats (standardised)"),
        ("effective sample size", f"{report['effective_sample_size']:.1%} of the student's draws, weighted"),
        ("modes", f"{modes['kept']} of {modes['modes']} kept; the weakest has {lowest} of its mass"),
        ("teacher or student?", _classifier(report)),
        ("log-likelihood", _real_rows(report, "nats per row, student - teacher")),
        ("sampling", _paces(report["rows_per_second"], "rows", "by one pass per column")),
    ]


def _sounds_lost(report: Mapping[str, Any]) -> Rows:
    samples, sound = report["dimensions"], report["sound"]
    entropy = {
        name: _with_error(part["mean"] / samples, part["stderr"] / samples) for name, part in report["entropy"].items()
    }
    measures = {"log_spectral_distance": (SPECTRAL, " dB to the recordings")} | {k: (v, "") for k, v in SOUND.items()}
    return [
        *(
            (name, f"{_with_error(report[key]['per_dimension'], report[key]['stderr_per_dimension'])} nats per sample")
            for name, key in _KLS
        ),
        ("entropy", f"student {entropy['student']}, teacher {entropy['teacher']} nats per sample (standardised)"),
        ("likelihood", _real_rows(report, "bits per sample more than the teacher")),
        *(
            (name, ", ".join(f"{who} {_pair(part[key])}" for who, part in sound.items() if key in part) + unit)
            for key, (name, unit) in measures.items()
        ),
        ("sampling", _paces(report["samples_per_second"], "samples", "without memory")),
    ]


def _steps_lost(report: Mapping[str, Any]) -> Rows:
    chance, distances = report["chance"], report["distances"]
    counts = list(distances["teacher"])
    likelihood = "none: a few steps have samples alone; score by the teacher"
    if report["steps"] is None:
        likelihood = "the student's is valid: it is continuous, as its teacher"
    return [
        ("straightness", _numbers(report["straightness"])),
        ("squared W2", f"beyond the {_number(chance['mean'])} ± {_number(chance['std'])} of two draws of the teacher,"),
        ("  in Euler steps", " ".join(f"{count:>9}" for count in counts)),
        *(
            (f"  {name}", " ".join(f"{_short(by_steps[count]['distance']):>9}" for count in counts))
            for name, by_steps in distances.items()
        ),
        ("teacher or student?", _classifier(report)),
        ("evaluations", f"{_numbers(report['evaluations'])} per draw"),
        ("likelihood", "; ".join(filter(None, [likelihood, _real_rows(report, "nats, student - teacher")]))),
        ("sampling", _paces(report["rows_per_second"], "rows", "")),
    ]


def _classifier(report: Mapping[str, Any]) -> str:
    auc = report["classifier"]
    return f"classifier's AUC {auc['auc']:.3f} ± {auc['stderr']:.3f} (0.5: it cannot tell)"


def _real_rows(report: Mapping[str, Any], unit: str) -> str:
    real = report.get("real_rows")
    return f"{_pair(real)} {unit}, on {real['which']}" if real else ""


def _short(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _paces(speed: Mapping[str, float], unit: str, naive: str) -> str:
    parts = [f"student {speed['student']:,.0f} {unit}/s"]
    for name, text in (("teacher", "teacher"), ("teacher_naive", f"teacher {naive}")):
        if name in speed:
            ratio = speed["student"] / speed[name]
            pace = f"{_number(ratio)} times slower" if ratio >= 1 else f"{_number(1 / ratio)} times faster"
            parts.append(f"{text} {speed[name]:,.0f} ({pace})")
    return ", ".join(parts)


def info(summary: Mapping[str, Any]) -> str:
    """Describe a run directory."""
    origin, metrics = summary["provenance"], summary["metrics"]
    data, versions = origin.get("data") or {}, origin.get("versions", {})
    teacher = origin.get("distillation", {}).get("teacher")
    columns = summary.get("columns", [])
    masses = MASSES if any("masses" in column for column in columns) else ()
    unit = "rows" if columns else "images" if "shape" in summary else "recordings"
    made_by = ", ".join(f"{name} {versions[name]}" for name in ("diffeo", "torch") if name in versions)
    return _page(
        f"{_model(summary)}, {summary['bytes'] / 1e6:.2f} MB",
        [
            ("arguments", ", ".join(f"{k}={v}" for k, v in summary["arguments"].items() if k not in LONG)),
            ("fast", " and ".join(summary["fast"]) or "neither log_prob nor sample"),
            *_likelihoods(metrics),
            ("trained", _trained(metrics) if "epochs" in metrics else "not to the end"),
            ("stack", _stack(metrics.get("weights", {}))),
            ("data", f"{data.get('name', '?')}, {summary['rows']:,} {unit}"),
            ("weights", _if(summary.get("weighted_by"), "column {!r}, which is not modelled")),
            ("images", _shape(summary.get("shape", ()))),
            ("audio", _sound(summary) if "rate" in summary else ""),
            ("classes", ", ".join(summary.get("classes", ()))),
            ("distilled", f"from {teacher['run']}, {teacher['model']}" if teacher else ""),
            ("made", f"{origin.get('date', '?')} by {made_by}"),
        ],
        *_below(("column", "kind", "range", *masses), map(_column, columns[:SHOWN])),
        *([f"  ... and {len(columns) - SHOWN} more"] if len(columns) > SHOWN else []),
    )


def _column(column: Mapping[str, Any]) -> tuple[str, ...]:
    low, high, step = column["low"], column["high"], column["step"]
    known = (
        column["name"] + " (context)" * (column["role"] == "context"),
        column["kind"] + _if(column["levels"], " ({})"),
    )
    if "range" not in column:
        return (*known, f"{low:g}" + f" ... {high:g}" * (high != low) + f" step {step:g}" * (step not in (0, 1)))
    if column["kind"] == "categorical":
        reach = ", ".join(column["range"]) + ", ..." * (column["levels"] > len(column["range"]))
    else:
        stepped = column["kind"] == "integer" and step != 1
        reach = " ... ".join(column["range"]) + f" step {step:g}" * stepped
    reach = textwrap.shorten(reach, WIDE, placeholder=" ...")
    if "masses" not in column:
        return (*known, reach)
    copies = "; ".join(map(_copy, column["copies"]))
    return (*known, reach, "yes" * column["missing"], _if(column["masses"], "{:,}"), copies)


def _copy(copy: Mapping[str, Any]) -> str:
    times, plus = copy["times"], copy["plus"]
    value = f"{times:.6g} x " * (times != 1) + repr(copy["column"]) + f" {plus:+.6g}" * (plus != 0)
    return f"equals {value} in some rows"


def machine(summary: Mapping[str, Any]) -> str:
    """Describe what computes on this machine."""
    kernels, speed, torch = summary["kernels"], summary["gflops"], summary["torch"]
    built = "none: plain PyTorch computes"
    if kernels["reason"] is None:
        lanes = _if(kernels["lanes"], ", {} numbers a vector")
        threads = "" if kernels["openmp"] else ", without OpenMP: one thread"
        built = f"for {kernels['instructions']}{lanes}{threads}, built in {_time(kernels['seconds'])}"
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
        f"{summary['processor']}, {_many(summary['cores'], 'core')}, {_many(summary['threads'], 'thread')}",
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


def _sound(summary: Mapping[str, Any]) -> str:
    context = f", given {' and '.join(summary['context'])}" if summary["context"] else ""
    mels = f" ({summary['mels']} channels, window {summary['window']})" if summary["mels"] else ""
    return f"{summary['rate']:,} Hz, crops of {summary['crop']:,} samples, {summary['hop']} per frame{context}{mels}"


def check(report: Mapping[str, Any]) -> str:
    """Describe a check."""
    reasons = [textwrap.fill(text, 100, initial_indent="  - ", subsequent_indent="    ") for text in report["reasons"]]
    impossible = _counts(report["impossible_by_column"])
    left_out = (
        "left out",
        _if(
            report["impossible"],
            f"{{:,}} of {report['read']:,} rows, impossible under the model, by column: {impossible}",
        ),
    )
    return _page(
        f"{report['run']} on {report['data']}: {report['which']} ({report['rows']:,})",
        [],
        *_CHECKED[next((name for name in _CHECKED if name in report), "round_trip")](report, left_out),
        *_looked_at(report["samples"]),
        "",
        f"verdict: {report['verdict']}" + ":" * bool(reasons),
        *reasons,
    )


def _checked(report: Mapping[str, Any], left_out: tuple[str, str]) -> list[str]:
    """What was found of a flow of one order."""
    return [
        *_below(("inverse: |x - f(f⁻¹(x))| / (1 + |x|)", "p99.9", "max", "not finite"), _numerics(report)),
        "",
        *_table(
            [
                *_densities(report["likelihood"]),
                *_samples(report["samples"]),
                *(_latents(report["latents"]) if "latents" in report else []),
                *(_nearest(report["privacy"]) if "privacy" in report else []),
                *(_sounds(report["sound"]) if report.get("sound") else []),
                *(_calibration(report) if "calibration" in report else []),
                left_out,
            ]
        ),
    ]


def _checked_orders(report: Mapping[str, Any], left_out: tuple[str, str]) -> list[str]:
    """What was found of a mixed density."""
    noise, orders, trip = report["noise"], report["orders"], report["round_trip"]
    means = ", ".join(map(_number, orders["means"]))
    columns = ((part["column"], _pair(part), _pair(part["gain"])) for part in report["columns"][:SHOWN])
    return [
        *_table(
            [
                ("round trip", f"{trip['lost']:,} of {_many(trip['rows'], 'row')} do not come back from their noise"),
                *_densities(report["likelihood"]),
                ("orders", f"{means} nats per row" * (len(orders["means"]) > 1)),
                ("  of one row", _if(orders.get("spread"), "standard deviation {:.3g} nats, on average")),
                *_samples(report["samples"]),
                *_noise(noise, len(report["columns"])),
                *(_nearest(report["privacy"]) if "privacy" in report else []),
                left_out,
            ]
        ),
        *_below(("column", "nats per row", "more than by itself"), columns),
    ]


def _checked_bounds(report: Mapping[str, Any], left_out: tuple[str, str]) -> list[str]:
    """What was found of a VAE."""
    bound, likelihood = report["bound"], report["likelihood"]
    return _table(
        [
            ("log-likelihood", f"at least {_pair(likelihood['flow'])} nats per row by {bound['samples']:,} samples"),
            ("  ELBO", _with_error(bound["elbo"], bound["elbo_stderr"])),
            (
                "  independent columns",
                f"{_pair(likelihood['marginals'])}; the bound gains {_pair(likelihood['gain_over_marginals'])}",
            ),
            (
                "posterior",
                f"sampler's and scorer's densities differ by {_tiny(report['density']['max'])} at most",
            ),
            *_samples(report["samples"]),
            *(_latents(report["latents"]) if "latents" in report else []),
            left_out,
        ]
    )


# how a check is described, by a part that only such a report has
_CHECKED = {"orders": _checked_orders, "bound": _checked_bounds, "round_trip": _checked}


def _noise(z: Mapping[str, Any], columns: int) -> Rows:
    return [
        ("noise", f"{z['column']} is farthest from uniform, by {z['distance']:.3f} (p {_p(z['p'])})"),
        ("", _if(len(z["randomised"]), f"drawn at random within the masses of {{}} of {columns} columns")),
        ("  distances from 0", f"{z['radius_distance']:.3f} (p {_p(z['radius_p'])}), as normal scores"),
        ("  covariance", f"off by {z['covariance']:.3f} at most (p {_p(z['covariance_p'])})"),
    ]


def _nearest(privacy: Mapping[str, Any]) -> Rows:
    share, rows, distance = privacy["share"], privacy["rows"], privacy["distance"]
    equal, close = ([privacy[key][name]["mean"] for name in ("samples", "held_out")] for key in ("equal", "close"))
    return [
        (
            "nearest row",
            f"{share:.1%} ± {privacy['stderr']:.1%} of samples are closer to a training row than to a held-out one"
            f" ({rows['each']:,} of each; 50%: nothing is copied)",
        ),
        (
            "  its distance",
            f"{distance['samples']:.3f} from samples to the closest of {rows['train']:,} training rows,"
            f" {distance['held_out']:.3f} from held-out rows (medians; 0: equal, 1: all columns differ)",
        ),
        ("", f"at most {privacy['within']:.3f} for {close[0]:.1%} of samples, {close[1]:.1%} of held-out rows"),
        ("", f"equal to a training row: {equal[0]:.1%} of samples, {equal[1]:.1%} of held-out rows"),
    ]


def _numerics(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """The rows of a table of errors: their 99.9th percentile, the largest, and how many are not finite."""
    parts = {"rows": "  on the rows", "samples": "  on samples", "off_data": "  far off the data"}
    errors = [(text, report["round_trip"][name]) for name, text in parts.items()]
    for text, part in [*errors, ("density of samples, sampler's - scorer's", report["density"])]:
        yield text, _tiny(part["p99.9"]), _tiny(part["max"]), f"{part['non_finite']:,}"
    if report["log_det"] is not None:
        error, rows = report["log_det"]["max"], report["log_det"]["rows"]
        yield f"log-det - autograd's, float64, {rows} rows", "", _tiny(error), ""


def _densities(likelihood: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if "flow" in likelihood:
        rows = f" ({likelihood['rows']:,} rows)" if "rows" in likelihood else ""
        yield "log-likelihood", f"{_pair(likelihood['flow'])} nats per row{rows}"
        for name, text in (("gaussian", "a Gaussian"), ("marginals", "independent columns")):
            if name in likelihood:
                gain = _pair(likelihood[f"gain_over_{name}"])
                yield f"  {text}", f"{_pair(likelihood[name])}; the flow gains {gain}"
        if "bits_per_sample" in likelihood:
            yield "", f"{_pair(likelihood['bits_per_sample'])} bits per 16-bit sample"


def _samples(samples: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if "classifier" in samples:
        yield "samples or rows?", _classifier(samples)
    if "projections" in samples:
        p = samples["projections"]
        column = f"worst column {p['column']}: {p['column_distance']:.3f}"
        yield "  worst direction", f"{p['distance']:.3f} apart (p {_p(p['p'])}); {column}"
    if "marginals" in samples:
        part = samples["marginals"]
        text = f"{part['distance']:.3f} apart, {part['chance']:.3f} by chance (p {_p(part['p'])})"
        yield "  worst column", f"{part['column']}: {text}"
    if "signs" in samples:
        part = samples["signs"]
        names = textwrap.shorten(", ".join(part["columns"]), WIDE, placeholder=" ...")
        yield "  signs", f"the product of those of {names}: {part['difference']:.3f} apart (p {_p(part['p'])})"
    for part in samples.get("atoms", ()):
        yield "  single value", f"{part['column']}: in {part['rows']:.1%} of rows, {part['samples']:.1%} of samples"
    for name, text in (("repeated", "rows that repeat"), ("trained", "  training rows")):
        if name in samples and max(samples[name][key]["mean"] for key in ("rows", "samples")) > 0:
            rows, drawn = (samples[name][key]["mean"] for key in ("rows", "samples"))
            yield text, f"{rows:.1%} of the rows, {drawn:.1%} of as many samples"


def _looked_at(samples: Mapping[str, Any]) -> list[str]:
    """By what rows and samples were compared, so that a reader knows what may have gone unseen."""
    if "signs" not in samples:
        return []
    text = (
        "looked at: each column, values that repeat, pairs of columns and what"
        f" shallow trees find, and products of the signs of any of {samples['signs']['looked_at']} columns; dependence"
        " of another kind among many columns at once may go unseen"
    )
    return ["", *textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="    ")]


def _latents(z: Mapping[str, Any]) -> Rows:
    return [
        ("latents", f"{z['column']} is farthest from the base, by {z['distance']:.3f} (p {_p(z['p'])})"),
        ("  distances from 0", f"{z['radius_distance']:.3f} (p {_p(z['radius_p'])})"),
        ("  covariance", f"off by {z['covariance']:.3f} at most (p {_p(z['covariance_p'])})"),
        ("  far out", f"{_many(z['far'], 'row')} with a latent beyond 6" * (z["far"] > 0)),
    ]


def _sounds(sound: Mapping[str, Any]) -> Rows:
    drawn, real = sound["drawn"], sound["real"]
    return [
        *((text, f"{_pair(drawn[key])}; real {_pair(real[key])}") for key, text in SOUND.items()),
        (SPECTRAL, f"{_pair(drawn['log_spectral_distance'])} dB to real"),
    ]


def _page(head: str, rows: Rows, *rest: str) -> str:
    return "\n".join([head, *_table(rows), *rest])


def _table(rows: Rows) -> list[str]:
    rows = [row for row in rows if row[1]]
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in rows]


def _below(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A table of several columns after an empty line; nothing where it has no rows."""
    table = [head, *rows]
    if len(table) == 1:
        return []
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in table)
    return ["", *(f"  {line}".rstrip() for line in lines)]


def _if(value: Any, text: str) -> str:
    """The text with the value in it, unless that is 0 or None."""
    return text.format(value) if value else ""


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in values.items())


def _number(value: float | None) -> str:
    if value is None or value != value:
        return "?"
    return f"{value:.4g}" if abs(value) < 10 else f"{value:,.2f}"


def _pair(part: Mapping[str, float]) -> str:
    return _with_error(part["mean"], part["stderr"])


def _with_error(mean: float | None, error: float | None) -> str:
    """Return a mean and its standard error, both to the error's second digit."""
    if mean is None or error is None or not 0 < error < math.inf or not math.isfinite(mean):
        return _number(mean)
    places = min(6, max(0, 1 - math.floor(math.log10(error))))
    return f"{mean:,.{places}f} ± {error:,.{places}f}"


def _tiny(value: float) -> str:
    return f"{value:.1e}"


def _p(value: float) -> str:
    return f"= {value:.2g}" if value >= 1e-4 else "< 0.0001"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + "s" * (count != 1)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
