"""Results in words: names and texts, for a terminal or for a page."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "LONG",
    "MASSES",
    "SHOWN",
    "Columns",
    "Rows",
    "calibration",
    "checked",
    "column_cells",
    "copy_of",
    "counts",
    "data_of",
    "duration",
    "latents",
    "likelihoods",
    "listed",
    "looked_at",
    "lost",
    "many",
    "most_shares",
    "number",
    "p_value",
    "paces",
    "pair",
    "percent",
    "seen",
    "shape_of",
    "sound_format",
    "stack",
    "stopped",
    "tiny",
    "trained",
    "when",
    "with_error",
]

SHOWN = 40  # columns listed in a terminal
WIDE = 50  # letters of what is listed of one
MASSES = ("missing", "single values", "copies")  # of the columns of a mixed density
LONG = ("preprocess", "columns")  # arguments of a model that are not shown in a line

Rows = list[tuple[str, str]]  # what is said, and of what; nothing is shown of what is not there
SOUND = {"rms": "loudness (RMS)", "flatness": "spectral flatness", "voiced_share": "voiced share"}
SPECTRAL = "log-spectral distance"


@dataclass(frozen=True)
class Columns:
    """A table of several columns: their names, and rows of cells.

    Attributes:
        head: the names.
        rows: as many cells in each.
    """

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def calibration(report: Mapping[str, Any]) -> Rows:
    """Distances from uniform of ranks and coverage."""
    result = report["calibration"]
    rows = [*result["sbc"].items(), ("coverage (TARP)", result["tarp"])]
    count = f"of {many(result['simulations'], 'simulation')}, {result['draws']:,} draws of the posterior for each"
    return [
        *([("calibration by", result["which"])] if "which" in result else []),
        ("ranks (SBC)", count),
        *((f"  {name}", f"{part['distance']:.3f} from uniform (p {p_value(part['p'])})") for name, part in rows),
    ]


def data_of(summary: Mapping[str, Any]) -> str:
    """How large the data are: columns, or the shape of an image, or the length of all sound."""
    if "columns" in summary:
        return many(summary["columns"], "column")
    if "shape" in summary:
        return f"images of {shape_of(summary['shape'])}"
    return f"{duration(summary['duration'])} of audio at {summary['rate']:,} Hz"


def shape_of(shape: Sequence[int]) -> str:
    """Return 1 x 28 x 28, say."""
    return " x ".join(map(str, shape))


def stack(weights: Mapping[str, float]) -> str:
    """How much of each family there is in a density, the most first."""
    ordered = sorted(weights.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{share:.1%} {name}" for name, share in ordered if share >= 0.0005)


def trained(metrics: Mapping[str, Any]) -> str:
    """How long a training was."""
    return f"{many(metrics['epochs'], 'epoch')} in {duration(metrics['seconds'])}"


def stopped(summary: Mapping[str, Any]) -> str:
    """Which epoch was the best, and why there were no more."""
    best, why = summary["best_epoch"], summary["stopped"]
    if "folds" in summary:
        return f"best in epoch {best} (median)" + "; interrupted" * (why == "interrupted")
    if why == "patience":
        waited = many(summary["epochs"] - best, "epoch")
        return f"best in epoch {best}; stopped early: validation has not improved for {waited}"
    return f"best in epoch {best}; stopped: {'the budget is used up' if why == 'budget' else why}"


def likelihoods(metrics: Mapping[str, Any]) -> Rows:
    """The likelihoods that a run directory knows, the held-out one first."""
    parts = {"out_of_fold": "held out", "validation": "validation", "train": "training", "test": "test"}
    rows = metrics.get("rows", {})
    weighted = when(metrics.get("weighted_by"), ", weighted by {!r}")
    return [
        (text, _likelihood(metrics[name]) + _used(metrics[name].get("rows"), rows.get(name)) + weighted)
        for name, text in parts.items()
        if name in metrics
    ]


def _used(used: int | None, rows: int | None) -> str:
    """How many rows a figure is of, if not of all."""
    return f", on {used:,} rows" if used and rows and used < rows else ""


def _likelihood(part: Mapping[str, Any]) -> str:
    if part.keys() >= {"elbo", "elbo_stderr", "samples", "bits_per_dim"}:
        return (
            f"at most {with_error(part['nll'], part['stderr'])} nats per image by {part['samples']:,} samples"
            f" (-ELBO {with_error(-part['elbo'], part['elbo_stderr'])}), {_places(part['bits_per_dim'])} bits/dim"
        )
    if "bits_per_dim" in part:
        return f"{with_error(part['nll'], part['stderr'])} nats per image, {_places(part['bits_per_dim'])} bits/dim"
    if "bits_per_sample" in part:
        return f"{with_error(part['bits_per_sample'], part.get('bits_per_sample_stderr'))} bits per 16-bit sample"
    dimension = next((name for name in part if name.startswith("bits_per_") and not name.endswith("_stderr")), "")
    if not dimension or "bits" not in part:
        return f"{with_error(part['nll'], part['stderr'])} nats"
    return (
        f"{with_error(part['nll'], part['stderr'])} nats per row"
        f" ({number(part['bits'])} bits, {number(part[dimension])} per {dimension.removeprefix('bits_per_')})"
    )


def _places(value: float | None) -> str:
    return number(value) if value is None else f"{value:.4f}"


def most_shares(shares: Mapping[str, float], column: str) -> str:
    """The columns with the largest shares; of a constant that has another value its name alone."""
    parts = [f"{name} {number(share)}" for name, share in [*shares.items()][:4] if share > 0]
    return ", ".join(parts if column in shares else [column, *parts])


def seen(summary: Mapping[str, Any]) -> str:
    """How many rows were trained on, and what their scores are."""
    count, held = summary.get("in_training", 0), summary.get("out_of_fold", 0)
    if not count:
        return ""
    how = "likelihoods out of fold" if held == count else "their likelihoods say nothing about new rows"
    return f"{count:,} of {summary['rows']:,} rows were in training: {how}"


def percent(part: Mapping[str, float]) -> str:
    """Return a share and its standard error."""
    error = part["stderr"]
    return f"{part['mean']:.1%}" + (f" ± {error:.1%}" if error == error else "")


def lost(report: Mapping[str, Any]) -> Rows:
    """What a student lost against its teacher, and how much faster it is.

    Args:
        report: what the metrics of its run say of its distillation.
    """
    describe = _sounds_lost if "sound" in report else _steps_lost if "straightness" in report else _rows_lost
    return describe(report)


_KLS = (("KL(student || teacher)", "reverse_kl"), ("KL(teacher || student)", "forward_kl"))


def _rows_lost(report: Mapping[str, Any]) -> Rows:
    entropy, modes = report["entropy"], report["modes"]
    lowest = with_error(modes["lowest"], modes["stderr"])
    return [
        *(
            (name, f"{pair(report[key])} nats per row, {number(report[key]['per_dimension'])} per column")
            for name, key in _KLS
        ),
        ("entropy", f"student {pair(entropy['student'])}, teacher {pair(entropy['teacher'])} nats (standardised)"),
        ("effective sample size", f"{report['effective_sample_size']:.1%} of the student's draws, weighted"),
        ("modes", f"{modes['kept']} of {modes['modes']} kept; the weakest has {lowest} of its mass"),
        ("teacher or student?", _classifier(report)),
        ("log-likelihood", _real_rows(report, "nats per row, student - teacher")),
        ("sampling", paces(report["rows_per_second"], "rows", "by one pass per column")),
    ]


def _sounds_lost(report: Mapping[str, Any]) -> Rows:
    samples, sound = report["dimensions"], report["sound"]
    entropy = {
        name: with_error(part["mean"] / samples, part["stderr"] / samples) for name, part in report["entropy"].items()
    }
    measures = {"log_spectral_distance": (SPECTRAL, " dB to the recordings")} | {k: (v, "") for k, v in SOUND.items()}
    return [
        *(
            (name, f"{with_error(report[key]['per_dimension'], report[key]['stderr_per_dimension'])} nats per sample")
            for name, key in _KLS
        ),
        ("entropy", f"student {entropy['student']}, teacher {entropy['teacher']} nats per sample (standardised)"),
        ("likelihood", _real_rows(report, "bits per sample more than the teacher")),
        *(
            (name, ", ".join(f"{who} {pair(part[key])}" for who, part in sound.items() if key in part) + unit)
            for key, (name, unit) in measures.items()
        ),
        ("sampling", paces(report["samples_per_second"], "samples", "without memory")),
    ]


def _steps_lost(report: Mapping[str, Any]) -> Rows:
    chance, distances = report["chance"], report["distances"]
    counts = list(distances["teacher"])
    likelihood = "none: a few steps have samples alone; score by the teacher"
    if report["steps"] is None:
        likelihood = "the student's is valid: it is continuous, as its teacher"
    return [
        ("straightness", _numbers(report["straightness"])),
        ("squared W2", f"beyond the {number(chance['mean'])} ± {number(chance['std'])} of two draws of the teacher,"),
        ("  in Euler steps", " ".join(f"{count:>9}" for count in counts)),
        *(
            (f"  {name}", " ".join(f"{_short(by_steps[count]['distance']):>9}" for count in counts))
            for name, by_steps in distances.items()
        ),
        ("teacher or student?", _classifier(report)),
        ("evaluations", f"{_numbers(report['evaluations'])} per draw"),
        ("likelihood", "; ".join(filter(None, [likelihood, _real_rows(report, "nats, student - teacher")]))),
        ("sampling", paces(report["rows_per_second"], "rows", "")),
    ]


def _classifier(report: Mapping[str, Any]) -> str:
    auc = report["classifier"]
    return f"classifier's AUC {auc['auc']:.3f} ± {auc['stderr']:.3f} (0.5: it cannot tell)"


def _real_rows(report: Mapping[str, Any], unit: str) -> str:
    real = report.get("real_rows")
    return f"{pair(real)} {unit}, on {real['which']}" if real else ""


def _short(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def paces(speed: Mapping[str, float], unit: str, naive: str) -> str:
    """How fast student and teacher sample."""
    parts = [f"student {speed['student']:,.0f} {unit}/s"]
    for name, text in (("teacher", "teacher"), ("teacher_naive", f"teacher {naive}")):
        if name in speed:
            ratio = speed["student"] / speed[name]
            pace = f"{number(ratio)} times slower" if ratio >= 1 else f"{number(1 / ratio)} times faster"
            parts.append(f"{text} {speed[name]:,.0f} ({pace})")
    return ", ".join(parts)


def column_cells(column: Mapping[str, Any]) -> tuple[str, ...]:
    """A column of a table: its name, kind, range, and what has a mass in it."""
    low, high, step = column["low"], column["high"], column["step"]
    known = (
        column["name"] + " (context)" * (column["role"] == "context"),
        column["kind"] + when(column["levels"], " ({})"),
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
    copies = "; ".join(map(copy_of, column["copies"]))
    return (*known, reach, "yes" * column["missing"], when(column["masses"], "{:,}"), copies)


def copy_of(copy: Mapping[str, Any]) -> str:
    """Which column another one repeats."""
    times, plus = copy["times"], copy["plus"]
    value = f"{times:.6g} x " * (times != 1) + repr(copy["column"]) + f" {plus:+.6g}" * (plus != 0)
    return f"equals {value} in some rows"


def sound_format(summary: Mapping[str, Any]) -> str:
    """Rate, crops, frames and context of audio."""
    context = f", given {' and '.join(summary['context'])}" if summary["context"] else ""
    mels = f" ({summary['mels']} channels, window {summary['window']})" if summary["mels"] else ""
    return f"{summary['rate']:,} Hz, crops of {summary['crop']:,} samples, {summary['hop']} per frame{context}{mels}"


def checked(report: Mapping[str, Any]) -> list[Rows | Columns]:
    """What a check found.

    Args:
        report: as ``commands.check`` returns it.
    """
    blamed = counts(report["off_grid_by_column"])
    text = f"{report['off_grid']:,} of {report['read']:,} rows, with a value off its grid, by column: {blamed}"
    left_out = ("left out", text * (report["off_grid"] > 0))
    describe = next((_CHECKED[name] for name in _CHECKED if name in report), _checked)
    return describe(report, left_out)


def _checked(report: Mapping[str, Any], left_out: tuple[str, str]) -> list[Rows | Columns]:
    """What was found of a flow of one order."""
    return [
        Columns(("inverse: |x - f(f⁻¹(x))| / (1 + |x|)", "p99.9", "max", "not finite"), [*_numerics(report)]),
        [
            *_densities(report["likelihood"]),
            *_samples(report["samples"]),
            *(latents(report["latents"]) if "latents" in report else []),
            *(_nearest(report["privacy"]) if "privacy" in report else []),
            *(_sounds(report["sound"]) if report.get("sound") else []),
            *(calibration(report) if "calibration" in report else []),
            left_out,
        ],
    ]


def _checked_orders(report: Mapping[str, Any], left_out: tuple[str, str]) -> list[Rows | Columns]:
    """What was found of a mixed density."""
    noise, orders, trip = report["noise"], report["orders"], report["round_trip"]
    means = ", ".join(map(number, orders["means"]))
    columns = [(part["column"], pair(part), pair(part["gain"])) for part in report["columns"][:SHOWN]]
    return [
        [
            ("round trip", f"{trip['lost']:,} of {many(trip['rows'], 'row')} do not come back from their noise"),
            *_densities(report["likelihood"]),
            ("orders", f"{means} nats per row" * (len(orders["means"]) > 1)),
            ("  of one row", when(orders.get("spread"), "standard deviation {:.3g} nats, on average")),
            *_samples(report["samples"]),
            *_noise(noise, len(report["columns"])),
            *(_nearest(report["privacy"]) if "privacy" in report else []),
            left_out,
        ],
        Columns(("column", "nats per row", "more than by itself"), columns),
    ]


def _checked_bounds(report: Mapping[str, Any], left_out: tuple[str, str]) -> list[Rows | Columns]:
    """What was found of a VAE."""
    bound, likelihood = report["bound"], report["likelihood"]
    gain = pair(likelihood["gain_over_marginals"])
    return [
        [
            ("log-likelihood", f"at least {pair(likelihood['flow'])} nats per row by {bound['samples']:,} samples"),
            ("  ELBO", with_error(bound["elbo"], bound["elbo_stderr"])),
            ("  independent columns", f"{pair(likelihood['marginals'])}; the bound gains {gain}"),
            ("posterior", f"sampler's and scorer's densities differ by {tiny(report['density']['max'])} at most"),
            *_samples(report["samples"]),
            *(latents(report["latents"]) if "latents" in report else []),
            left_out,
        ]
    ]


# how a check is described, by a part that only such a report has
_CHECKED = {"orders": _checked_orders, "bound": _checked_bounds}


def _noise(z: Mapping[str, Any], columns: int) -> Rows:
    return [
        ("noise", f"{z['column']} is farthest from uniform, by {z['distance']:.3f} (p {p_value(z['p'])})"),
        ("", when(len(z["randomised"]), f"drawn at random within the masses of {{}} of {columns} columns")),
        ("  distances from 0", f"{z['radius_distance']:.3f} (p {p_value(z['radius_p'])}), as normal scores"),
        ("  covariance", f"off by {z['covariance']:.3f} at most (p {p_value(z['covariance_p'])})"),
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
        yield text, tiny(part["p99.9"]), tiny(part["max"]), f"{part['non_finite']:,}"
    if report["log_det"] is not None:
        error, rows = report["log_det"]["max"], report["log_det"]["rows"]
        yield f"log-det - autograd's, float64, {rows} rows", "", tiny(error), ""


def _densities(likelihood: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if "flow" in likelihood:
        rows = f" ({likelihood['rows']:,} rows)" if "rows" in likelihood else ""
        yield "log-likelihood", f"{pair(likelihood['flow'])} nats per row{rows}"
        for name, text in (("gaussian", "a Gaussian"), ("marginals", "independent columns")):
            if name in likelihood:
                gain = pair(likelihood[f"gain_over_{name}"])
                yield f"  {text}", f"{pair(likelihood[name])}; the flow gains {gain}"
        if "bits_per_sample" in likelihood:
            yield "", f"{pair(likelihood['bits_per_sample'])} bits per 16-bit sample"


def _samples(samples: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if "classifier" in samples:
        yield "samples or rows?", _classifier(samples)
    if "shuffled" in samples:
        yield "  rows, shuffled", "each column in another order: " + _classifier({"classifier": samples["shuffled"]})
    if "projections" in samples:
        p = samples["projections"]
        column = f"worst column {p['column']}: {p['column_distance']:.3f}"
        yield "  worst direction", f"{p['distance']:.3f} apart (p {p_value(p['p'])}); {column}"
    if "marginals" in samples:
        part = samples["marginals"]
        text = f"{part['distance']:.3f} apart, {part['chance']:.3f} by chance (p {p_value(part['p'])})"
        yield "  worst column", f"{part['column']}: {text}"
    if "signs" in samples:
        part = samples["signs"]
        names = textwrap.shorten(", ".join(part["columns"]), WIDE, placeholder=" ...")
        yield "  signs", f"the product of those of {names}: {part['difference']:.3f} apart (p {p_value(part['p'])})"
    for part in samples.get("atoms", ()):
        yield "  single value", f"{part['column']}: in {part['rows']:.1%} of rows, {part['samples']:.1%} of samples"
    for name, text in (("repeated", "rows that repeat"), ("trained", "  training rows")):
        if name in samples and max(samples[name][key]["mean"] for key in ("rows", "samples")) > 0:
            rows, drawn = (samples[name][key]["mean"] for key in ("rows", "samples"))
            yield text, f"{rows:.1%} of the rows, {drawn:.1%} of as many samples"


def looked_at(report: Mapping[str, Any]) -> str:
    """By what a check compared rows and samples, so that a reader knows what may have gone unseen.

    Args:
        report: as ``commands.check`` returns it.
    """
    if "signs" not in report["samples"]:
        return ""
    return (
        "looked at: each column, values that repeat, pairs of columns and what shallow trees find, and products of the"
        f" signs of any of {report['samples']['signs']['looked_at']} columns; dependence of another kind among many"
        " columns at once may go unseen"
    )


def latents(z: Mapping[str, Any]) -> Rows:
    """How far latents are from the noise of the base."""
    return [
        ("latents", f"{z['column']} is farthest from the base, by {z['distance']:.3f} (p {p_value(z['p'])})"),
        ("  distances from 0", f"{z['radius_distance']:.3f} (p {p_value(z['radius_p'])})"),
        ("  covariance", f"off by {z['covariance']:.3f} at most (p {p_value(z['covariance_p'])})"),
        ("  far out", f"{many(z['far'], 'row')} with a latent beyond 6" * (z["far"] > 0)),
    ]


def _sounds(sound: Mapping[str, Any]) -> Rows:
    drawn, real = sound["drawn"], sound["real"]
    return [
        *((text, f"{pair(drawn[key])}; real {pair(real[key])}") for key, text in SOUND.items()),
        (SPECTRAL, f"{pair(drawn['log_spectral_distance'])} dB to real"),
    ]


def when(value: Any, text: str) -> str:
    """The text with the value in it, unless that is 0 or None."""
    return text.format(value) if value else ""


def counts(by_name: Mapping[str, int]) -> str:
    """Return names with their numbers."""
    return ", ".join(f"{name} ({count:,})" for name, count in by_name.items())


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in values.items())


def number(value: float | None) -> str:
    """Return a number to four digits, a larger one to two places."""
    if value is None or value != value:
        return "?"
    return f"{value:.4g}" if abs(value) < 10 else f"{value:,.2f}"


def pair(part: Mapping[str, float]) -> str:
    """Return a mean and its standard error."""
    return with_error(part["mean"], part["stderr"])


def with_error(mean: float | None, error: float | None) -> str:
    """Return a mean and its standard error, both to the error's second digit."""
    if mean is None or error is None or not 0 < error < math.inf or not math.isfinite(mean):
        return number(mean)
    places = min(6, max(0, 1 - math.floor(math.log10(error))))
    return f"{mean:,.{places}f} ± {error:,.{places}f}"


def tiny(value: float) -> str:
    """Return an error as a power of ten."""
    return f"{value:.1e}"


def p_value(value: float) -> str:
    """Return what stands behind the letter p."""
    return f"= {value:.2g}" if value >= 1e-4 else "< 0.0001"


def duration(seconds: float) -> str:
    """Return seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def many(count: int, noun: str) -> str:
    """Return a number of things."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def listed(names: Sequence[str]) -> str:
    """Return the first eight names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
