"""Results for people to read."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "check",
    "distill",
    "fit",
    "info",
    "inpaint",
    "machine",
    "sample",
    "score",
]

SHOWN = 40  # columns listed by info


def fit(summary: Mapping[str, Any]) -> str:
    """Describe a training."""
    rows = summary["rows"]
    lines = [
        f"{summary['run']}: {summary['model']}, {summary['parameters']:,} parameters, {_what(summary)}"
        + (f" given {', '.join(summary['context'])}" if summary["context"] else ""),
        *_table(
            [
                ("validation", _likelihood(summary["validation"])),
                ("training", _likelihood(summary["train"]) if "train" in summary else ""),
                ("test", _likelihood(summary["test"]) if "test" in summary else ""),
                ("rows", _parts(rows)),
                ("time", f"{_many(summary['epochs'], 'epoch')} in {_time(summary['seconds'])}, {_stopped(summary)}"),
                ("skipped", f"{summary['skipped_batches']} batches were not finite" * (summary["skipped_batches"] > 0)),
                ("figures", f"{summary['run']}/figures" if summary["figures"] else ""),
            ]
        ),
    ]
    return "\n".join(lines)


def _parts(rows: Mapping[str, int]) -> str:
    test = f", {rows['test']:,} for the test" if "test" in rows else ""
    return f"{rows['train']:,} for training, {rows['validation']:,} for validation{test}"


def _what(summary: Mapping[str, Any]) -> str:
    if "columns" in summary:
        return _many(summary["columns"], "column")
    if "shape" in summary:
        return _images(summary["shape"])
    return f"{_time(summary['duration'])} of audio at {summary['rate']:,} Hz"


def _images(shape: Sequence[int]) -> str:
    return "images of " + " x ".join(map(str, shape))


def _likelihood(part: Mapping[str, Any]) -> str:
    if "bits_per_dim" in part:
        return f"{_with_error(part['nll'], part['stderr'])} nats per image, {part['bits_per_dim']:.4f} bits/dim"
    if "bits_per_sample" in part:
        return f"{_with_error(part['bits_per_sample'], part['bits_per_sample_stderr'])} bits per 16-bit sample"
    dimension = next(name for name in part if name.startswith("bits_per_") and not name.endswith("_stderr"))
    return (
        f"{_with_error(part['nll'], part['stderr'])} nats per row"
        f" ({_number(part['bits'])} bits, {_number(part[dimension])} per {dimension.removeprefix('bits_per_')})"
    )


def _stopped(summary: Mapping[str, Any]) -> str:
    best, why = summary["best_epoch"], summary["stopped"]
    if why == "patience":
        waited = _many(summary["epochs"] - best, "epoch")
        return f"best in epoch {best}; stopped early: validation has not improved for {waited}"
    return f"best in epoch {best}; stopped: {'the budget is used up' if why == 'budget' else why}"


def score(summary: Mapping[str, Any]) -> str:
    """Describe a scoring."""
    blame = ", ".join(f"{name} ({count:,})" for name, count in summary.get("impossible_by_column", {}).items())
    dropped = summary.get("dropped", 0)
    bits = {"bits_per_dim": ("bits/dim", ""), "bits_per_sample": ("bits/sample", " of the 16-bit values")}
    lines = [
        _pace(summary),
        *_table(
            [
                *(
                    (text, _with_error(summary[name], summary[f"{name}_stderr"]) + unit)
                    for name, (text, unit) in bits.items()
                    if name in summary
                ),
                ("mean", f"{_with_error(summary['mean'], summary['stderr'])} nats per {summary['unit']}"),
                ("lowest", _number(summary["min"])),
                ("-inf", f"{summary['impossible']:,} impossible rows; columns: {blame}" * (summary["impossible"] > 0)),
                ("left out", f"{dropped:,} rows with missing values" * (dropped > 0)),
                ("ignored", _listed(summary.get("ignored_columns", ()))),
                ("skipped", ", ".join(summary.get("skipped", ()))),
                ("notes", "; ".join(summary.get("notes", ()))),
                ("solver", _solver(summary)),
            ]
        ),
    ]
    return "\n".join(lines)


def _pace(summary: Mapping[str, Any]) -> str:
    """How many in which time, and how fast: sounds beside real time."""
    many, seconds = _many(summary["rows"], summary["unit"]), summary["seconds"]
    if "duration" in summary:
        times = summary["duration"] / seconds if seconds else math.inf
        return f"{many}, {_time(summary['duration'])}, in {_time(seconds)} ({times:,.1f} times real time)"
    return f"{many} in {_time(seconds)} ({summary['rows_per_second']:,.0f} {summary['units']}/s)"


def _solver(summary: Mapping[str, Any]) -> str:
    """What the solver of a continuous flow took."""
    if "solver" not in summary:
        return ""
    evaluations, error = summary["solver"]["evaluations_per_row"], summary["solver"]["largest_error"]
    accuracy = "of unknown error" if error is None else f"estimated error at most {_tiny(error)}"
    return f"{evaluations:.0f} evaluations of the velocity for each, {accuracy}"


def sample(summary: Mapping[str, Any]) -> str:
    """Describe a sampling."""
    place = "" if summary["out"] in (None, "-") else f"{summary['out']}: "
    lost = [
        f"; {summary[name]:,} {what}"
        for name, what in (("cut", "samples were cut off at full scale"), ("non_finite", "numbers are not finite"))
        if summary.get(name)
    ]
    return place + _pace(summary) + "".join(lost)


def inpaint(summary: Mapping[str, Any]) -> str:
    """Describe images completed."""
    return (
        f"{summary['out']}: {_many(summary['images'], 'image')}, {summary['hidden']:,} values each completed; "
        f"log p from {_number(summary['before'])} to {_number(summary['after'])} nats"
    )


def distill(summary: Mapping[str, Any]) -> str:
    """Describe a distillation: what was lost, and how much faster it is."""
    head = f"{summary['run']}: {summary['model']}, {summary['parameters']:,} parameters, from {summary['teacher']}"
    took = ("time", f"{_many(summary['epochs'], 'epoch')} in {_time(summary['seconds'])}")
    report = summary.get("distillation")
    if report is None:
        return "\n".join([head, *_table([took])])
    drawn = _many(report["rows"], "draw")
    of_kind = _sounds_lost if "sound" in report else _steps_lost if "straightness" in report else _rows_lost
    rows = of_kind(report)
    rows += [took, ("figures", f"{summary['run']}/figures" if summary["figures"] else "")]
    warned = [textwrap.fill(f"warning: {text}", 100, subsequent_indent="  ") for text in report["warnings"]]
    return "\n".join([f"{head}; {_what(summary)}, {drawn} of each", *_table(rows), *warned])


_KLS = (("KL(student || teacher)", "reverse_kl"), ("KL(teacher || student)", "forward_kl"))


def _rows_lost(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    entropy, modes, auc = report["entropy"], report["modes"], report["classifier"]
    rows = [
        (name, f"{_pair(report[key])} nats per row, {_number(report[key]['per_dimension'])} per column")
        for name, key in _KLS
    ]
    rows += [
        ("entropy", f"student {_pair(entropy['student'])}, teacher {_pair(entropy['teacher'])} nats (standardised)"),
        ("effective sample size", f"{report['effective_sample_size']:.1%} of the student's draws, weighted"),
        (
            "modes",
            f"{modes['kept']} of {modes['modes']} kept; the weakest has {_with_error(modes['lowest'], modes['stderr'])}"
            " of its mass",
        ),
        ("teacher or student?", f"classifier's AUC {auc['auc']:.3f} ± {auc['stderr']:.3f} (0.5: it cannot tell)"),
    ]
    if "real_rows" in report:
        real = report["real_rows"]
        rows.append(("log-likelihood", f"{_pair(real)} nats per row, student - teacher, on {real['which']}"))
    return [*rows, ("sampling", _paces(report["rows_per_second"], "rows", "by one pass per column"))]


def _sounds_lost(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    samples, sound = report["dimensions"], report["sound"]
    entropy = {
        name: _with_error(part["mean"] / samples, part["stderr"] / samples) for name, part in report["entropy"].items()
    }
    rows = [
        (name, f"{_with_error(part['per_dimension'], part['stderr_per_dimension'])} nats per sample")
        for name, part in ((name, report[key]) for name, key in _KLS)
    ]
    rows.append(
        ("entropy", f"student {entropy['student']}, teacher {entropy['teacher']} nats per sample (standardised)")
    )
    if "real_rows" in report:
        real = report["real_rows"]
        rows.append(("likelihood", f"{_pair(real)} bits per sample more than the teacher, on {real['which']}"))
    for name, key, unit in (
        ("log-spectral distance", "log_spectral_distance", " dB to the recordings"),
        ("loudness (RMS)", "rms", ""),
        ("spectral flatness", "flatness", ""),
        ("voiced share", "voiced_share", ""),
    ):
        parts = [f"{who} {_pair(part[key])}" for who, part in sound.items() if key in part]
        rows.append((name, ", ".join(parts) + unit))
    return [*rows, ("sampling", _paces(report["samples_per_second"], "samples", "without memory"))]


def _steps_lost(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    chance, auc, distances = report["chance"], report["classifier"], report["distances"]
    counts = list(distances["teacher"])
    rows = [
        ("straightness", ", ".join(f"{name} {_number(value)}" for name, value in report["straightness"].items())),
        ("squared W2", f"beyond the {_number(chance['mean'])} ± {_number(chance['std'])} of two draws of the teacher,"),
        ("  in Euler steps", " ".join(f"{count:>9}" for count in counts)),
    ]
    rows += [
        (f"  {name}", " ".join(f"{_short(by_steps[count]['distance']):>9}" for count in counts))
        for name, by_steps in distances.items()
    ]
    rows.append(
        ("teacher or student?", f"classifier's AUC {auc['auc']:.3f} ± {auc['stderr']:.3f} (0.5: it cannot tell)")
    )
    took = report["evaluations"]
    rows.append(("evaluations", ", ".join(f"{name} {_number(value)}" for name, value in took.items()) + " per draw"))
    likelihood = "none: a few steps have samples alone; score by the teacher"
    if report["steps"] is None:
        likelihood = "the student's is valid: it is continuous, as its teacher"
    if "real_rows" in report:
        real = report["real_rows"]
        likelihood += f"; {_pair(real)} nats, student - teacher, on {real['which']}"
    return [*rows, ("likelihood", likelihood), ("sampling", _paces(report["rows_per_second"], "rows", ""))]


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
    arguments = ", ".join(f"{k}={v}" for k, v in summary["arguments"].items() if k != "preprocess")
    table = [("column", "kind", "range")] + [
        (
            column["name"] + (" (context)" if column["role"] == "context" else ""),
            column["kind"] + (f" ({column['levels']})" if column["levels"] else ""),
            f"{column['low']:g}" + (f" ... {column['high']:g}" if column["high"] != column["low"] else "")
            + (f" step {column['step']:g}" if column["step"] not in (0, 1) else ""),
        )
        for column in summary.get("columns", [])[:SHOWN]
    ]  # fmt: skip
    hidden = len(summary.get("columns", [])) - SHOWN
    trained = "not to the end"
    if "epochs" in metrics:
        trained = f"{_many(metrics['epochs'], 'epoch')} in {_time(metrics['seconds'])}"
    made_by = ", ".join(f"{name} {versions[name]}" for name in ("diffeo", "torch") if name in versions)
    lines = [
        f"{summary['run']}: {summary['model']}, {summary['parameters']:,} parameters, {summary['bytes'] / 1e6:.2f} MB",
        *_table(
            [
                ("arguments", arguments),
                ("fast", " and ".join(summary["fast"]) or "neither log_prob nor sample"),
                ("validation", _likelihood(metrics["validation"]) if "validation" in metrics else ""),
                ("training", _likelihood(metrics["train"]) if "train" in metrics else ""),
                ("trained", trained),
                (
                    "data",
                    f"{data.get('name', '?')}, {summary['rows']:,} {_unit(summary)}",
                ),
                ("images", _images(summary["shape"])[len("images of ") :] if "shape" in summary else ""),
                ("audio", _sound(summary) if "rate" in summary else ""),
                ("classes", ", ".join(summary.get("classes", ()))),
                ("distilled", f"from {teacher['run']}, {teacher['model']}" if teacher else ""),
                ("made", f"{origin.get('date', '?')} by {made_by}"),
            ]
        ),
        *(["", *_aligned(table)] if len(table) > 1 else []),
        *([f"  ... and {hidden} more"] if hidden > 0 else []),
    ]
    return "\n".join(lines)


def machine(summary: Mapping[str, Any]) -> str:
    """Describe what computes on this machine."""
    kernels, speed, torch = summary["kernels"], summary["gflops"], summary["torch"]
    built = "none: plain PyTorch computes"
    if kernels["reason"] is None:
        lanes = f", {kernels['lanes']} numbers a vector" if kernels["lanes"] else ""
        threads = "" if kernels["openmp"] else ", without OpenMP: one thread"
        built = f"for {kernels['instructions']}{lanes}{threads}, built in {_time(kernels['seconds'])}"
    figures = {"torch": "PyTorch", "dense": "kernels", "masked": "kernels, masked"}
    rows = [("kernels", "used", "time")] + [
        (
            kind,
            "yes" if each["used"] else "no",
            f"{each['ratio']:.2f} of PyTorch's" if "ratio" in each else each.get("error", "not measured"),
        )
        for kind, each in kernels.get("kinds", {}).items()
    ]
    lines = [
        f"{summary['processor']}, {_many(summary['cores'], 'core')}, {_many(summary['threads'], 'thread')}",
        *_table(
            [
                ("PyTorch", f"{torch['version']}, {torch['instructions']}"),
                ("kernels", built),
                ("because", kernels["reason"] or ""),
                ("compiler", f"{kernels['compiler']}: {kernels['version']}" if "version" in kernels else ""),
                ("flags", " ".join(kernels.get("flags", ()))),
                ("library", kernels.get("library") or ""),
                ("GFLOP/s", ", ".join(f"{name} {speed[key]:,.0f}" for key, name in figures.items() if key in speed)),
            ]
        ),
        *(["", *_aligned(rows)] if len(rows) > 1 else []),
    ]
    return "\n".join(lines)


def _unit(summary: Mapping[str, Any]) -> str:
    return "rows" if "columns" in summary else "images" if "shape" in summary else "recordings"


def _sound(summary: Mapping[str, Any]) -> str:
    context = f", given {' and '.join(summary['context'])}" if summary["context"] else ""
    mels = f" ({summary['mels']} channels, window {summary['window']})" if summary["mels"] else ""
    return f"{summary['rate']:,} Hz, crops of {summary['crop']:,} samples, {summary['hop']} per frame{context}{mels}"


def check(report: Mapping[str, Any]) -> str:
    """Describe a check."""
    trips = report["round_trip"]
    samples, likelihood = report["samples"], report["likelihood"]
    inverse = [("inverse: |x - f(f⁻¹(x))| / (1 + |x|)", "p99.9", "max", "not finite")] + [
        (f"  {text}", _tiny(trips[name]["p99.9"]), _tiny(trips[name]["max"]), f"{trips[name]['non_finite']:,}")
        for name, text in (
            ("rows", "on the rows"),
            ("samples", "on samples"),
            ("off_data", "far off the data"),
        )
    ]
    density = report["density"]
    lost = f"{density['non_finite']:,}"
    inverse.append(("density of samples, sampler's - scorer's", _tiny(density["p99.9"]), _tiny(density["max"]), lost))
    if report["log_det"] is not None:
        error, rows = report["log_det"]["max"], report["log_det"]["rows"]
        inverse.append((f"log-det - autograd's, float64, {rows} rows", "", _tiny(error), ""))
    fit_: list[tuple[str, str]] = []
    if "flow" in likelihood:
        fit_.append(("log-likelihood", f"{_pair(likelihood['flow'])} nats per row"))
        for name, text in (("gaussian", "a Gaussian"), ("marginals", "independent columns")):
            if name in likelihood:
                gain = _pair(likelihood[f"gain_over_{name}"])
                fit_.append((f"  {text}", f"{_pair(likelihood[name])}; the flow gains {gain}"))
        if "bits_per_sample" in likelihood:
            fit_.append(("", f"{_pair(likelihood['bits_per_sample'])} bits per 16-bit sample"))
    if "classifier" in samples:
        c = samples["classifier"]
        fit_.append(("samples or rows?", f"classifier's AUC {c['auc']:.3f} ± {c['stderr']:.3f} (0.5: it cannot tell)"))
    if "projections" in samples:
        p = samples["projections"]
        column = f"worst column {p['column']}: {p['column_distance']:.3f}"
        fit_.append(("  worst direction", f"{p['distance']:.3f} apart (p {_p(p['p'])}); {column}"))
    if "latents" in report:
        z = report["latents"]
        fit_ += [
            ("latents", f"{z['column']} is farthest from the base, by {z['distance']:.3f} (p {_p(z['p'])})"),
            ("  distances from 0", f"{z['radius_distance']:.3f} (p {_p(z['radius_p'])})"),
            ("  covariance", f"off by {z['covariance']:.3f} at most (p {_p(z['covariance_p'])})"),
            ("  far out", f"{_many(z['far'], 'row')} with a latent beyond 6" * (z["far"] > 0)),
        ]
    for key, text in (("rms", "loudness (RMS)"), ("flatness", "spectral flatness"), ("voiced_share", "voiced share")):
        if report.get("sound"):
            drawn, real = (_pair(report["sound"][who][key]) for who in ("drawn", "real"))
            fit_.append((text, f"{drawn}; real {real}"))
    if report.get("sound"):
        fit_.append(("log-spectral distance", f"{_pair(report['sound']['drawn']['log_spectral_distance'])} dB to real"))
    impossible = ", ".join(f"{name} ({count:,})" for name, count in report["impossible_by_column"].items())
    if impossible:
        fit_.append(("left out", f"impossible rows, by column: {impossible}"))
    reasons = [textwrap.fill(text, 100, initial_indent="  - ", subsequent_indent="    ") for text in report["reasons"]]
    return "\n".join(
        [
            f"{report['run']} on {report['data']}: {report['which']} ({report['rows']:,})",
            "",
            *_aligned(inverse),
            "",
            *_table(fit_),
            "",
            f"verdict: {report['verdict']}" + (":" if reasons else ""),
            *reasons,
        ]
    )


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    rows = [row for row in rows if row[1]]
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in rows]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [f"  {line}".rstrip() for line in lines]


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
