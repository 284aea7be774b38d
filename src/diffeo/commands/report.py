"""A run as one page that can be sent, and as a model card."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffeo.atomic import atomic_write
from diffeo.commands.check import ROWS, checked
from diffeo.commands.info import info
from diffeo.commands.runs import open_for
from diffeo.errors import UserError
from diffeo.legible import legible
from diffeo.modalities import modality_of
from diffeo.modalities.base import OpenRun, RunReport
from diffeo.report import words
from diffeo.report.card import to_markdown
from diffeo.report.page import (
    Block,
    Bullets,
    Code,
    Document,
    Facts,
    Picture,
    Section,
    Sound,
    Text,
    to_html,
)
from diffeo.report.verdict import CARE, DISTRUST, IN_SAMPLE, TOO_FEW, TRUST
from diffeo.report.words import Columns

__all__ = ["report"]

SUFFIXES = (".html", ".htm")
DIGITS = 16  # of a hash that are shown
GRADES = {TRUST: "good", CARE: "care", TOO_FEW: "care", IN_SAMPLE: "care", DISTRUST: "bad"}
PARTS = {  # of the data, whose likelihood a run directory knows, the most telling first
    "test": "test, held out of training and of early stopping",
    "out_of_fold": "held out, each by the models that had not seen it",
    "validation": "validation, by which training was stopped",
    "train": "training, on which the model was trained",
}
UNITS = {"dim": "dimension", "sample": "16-bit sample"}
UNCHECKED = "not checked: no data were given"


def report(
    run: str | os.PathLike[str],
    source: Any = None,
    out: str | os.PathLike[str] | None = None,
    *,
    missing: str = "error",
    seed: int = 0,
    device: str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write what a run is, how far it can be trusted and what it cannot know: a page, and a model card beside it.

    The page is one file of HTML that loads nothing and runs no code, of at most 5 MB. It has what the model was trained
    on, its likelihoods and those of simple densities, calibration, figures of real examples beside samples, those that
    are unlikely, the learning curve, and limits in words. With data the run is checked on them (see ``check``), and
    figures are made anew; without, the page has what the run directory knows, and says what it lacks. The card is the
    same in Markdown, with the front matter that model hubs read, and without figures.

    Args:
        run: a run directory.
        source: data of its kind: what ``open_table``, ``open_images`` or ``open_audio`` takes; or None.
        out: the page, a name that ends in .html; by default ``report.html`` in the run directory. The card has the same
            name and ends in .md.
        missing: of a table, what becomes of rows with NaN, infinity or an empty cell: "error" or "drop".
        seed: of the draws.
        device: where to compute; a GPU if there is one.
        force: replace what is there.

    Returns:
        The run, the page (``out``) and the card, the page's bytes, the verdict with its reasons (None where nothing was
        checked), how many figures and sounds there are, and what was made smaller or left out for the size.

    Raises:
        UserError: for bad input, a bad run directory, or a place that cannot be written.
    """
    page, card = _places(run, out, force)
    opened, options = open_for("check", run, device, missing=missing)
    kind = modality_of(opened).report
    if kind is None:
        raise UserError(
            f"{opened.path}: there are no reports of {opened.words.data} yet; see diffeo check and diffeo info"
        )
    facts = info(run)
    examples = None if source is None else opened.examples(source, ROWS, seed, options)
    likelihood = opened.flow.has_log_prob or opened.flow.has_bound
    result = checked(opened, examples, seed) if examples is not None and likelihood else None
    with tempfile.TemporaryDirectory() as folder:
        shown = kind(opened, Path(folder), examples, source, options, seed)
        try:
            document = _document(opened, facts, result, shown)
        except (KeyError, TypeError, AttributeError) as error:
            if "distillation" not in facts["metrics"]:
                raise
            raise UserError(
                f"{opened.path}: model.json is damaged: what it says of its distillation cannot be read; restore it"
            ) from error
    text, notes = to_html(document)
    for path, content in (
        (page, text), (card, to_markdown(document, _front(document, opened, facts, shown), page.name)),
    ):  # fmt: skip
        with atomic_write(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    blocks = [block for section in document.sections for block in section.blocks]
    return {
        "run": opened.path, "out": str(page), "card": str(card), "bytes": len(text.encode()),
        "verdict": result and result["verdict"], "reasons": result["reasons"] if result else [],
        "figures": sum(isinstance(block, Picture) for block in blocks),
        "sounds": sum(isinstance(block, Sound) for block in blocks), "smaller": notes,
    }  # fmt: skip


def _places(run: str | os.PathLike[str], out: str | os.PathLike[str] | None, force: bool) -> tuple[Path, Path]:
    """Where page and card are written; refused before any work."""
    page = Path(run) / "report.html" if out is None else Path(out)
    if page.suffix.lower() not in SUFFIXES:
        raise UserError(f"{page}: expected a name that ends in .html")
    card = page.with_suffix(".md")
    for path in (page, card):
        if path.exists() and not force:
            raise UserError(f"{path}: exists already; choose another name or replace it with --force")
    if Path(run).is_dir() and not page.parent.is_dir():
        raise UserError(f"cannot write {page}: its folder does not exist; create it first")
    return page, card


def _document(
    opened: OpenRun, facts: Mapping[str, Any], result: Mapping[str, Any] | None, shown: RunReport
) -> Document:
    """All of the report."""
    sections = [
        Section("Model", _model(facts)),
        Section("Data of the training", [*_origin(facts), *shown.data(), *_notes(facts)]),
        Section("Likelihood", _likelihood(opened, facts, result, shown)),
        Section("Check", _check(opened, result, shown)),
        Section("Distillation", _distillation(facts, shown)),
        Section("Real and sampled", shown.samples()),
        Section("Calibration", _calibration(result, shown)),
        Section("Least likely", shown.unlikely()),
        Section("Training", _training(opened, facts, shown)),
        Section("Limits", [Bullets(_limits(facts, result, shown))]),
        Section("Use", _use(opened, shown)),
        Section("Provenance", _provenance(facts)),
    ]
    verdict = UNCHECKED if result is None else result["verdict"]
    if result is None and shown.examples is not None:
        verdict = "not checked: the model has no likelihood"
    return Document(
        title=legible(_run_name(opened)),
        lead=_lead(opened, facts),
        verdict=f"Verdict: {verdict}",
        grade="" if result is None else GRADES[result["verdict"]],
        sections=[section for section in sections if section.blocks],
        foot=f"Written by diffeo {_version()}. This file loads nothing from elsewhere.",
    )


def _version() -> str:
    import diffeo

    return diffeo.__version__


def _run_name(opened: OpenRun) -> str:
    return Path(opened.path).resolve().name or "run"


def _base_name(name: Any) -> str:
    """The last part of a path: where it lies on somebody's disk is nobody's business."""
    text = str(name) if name else "unknown data"
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] or text


def _lead(opened: OpenRun, facts: Mapping[str, Any]) -> str:
    metrics, data = facts["metrics"], facts["provenance"].get("data") or {}
    context = metrics.get("context") or []
    kind = "bounds of the density" if opened.flow.has_bound else "the density"
    if not (opened.flow.has_bound or opened.flow.has_log_prob):
        kind = "samples"
    of = f"{facts['rows']:,} {facts['units']}" if facts.get("rows") else facts["units"]
    student = ", a student of a slower model" if "distillation" in facts["provenance"] else ""
    conditional = f", given {words.listed([legible(name, 40) for name in context])}" if context else ""
    return (
        f"A model of {kind} of {of} of {legible(_base_name(data.get('name')), 80)}{conditional}:"
        f" {facts['model']}, {facts['parameters']:,} parameters{student}."
    )


def _model(facts: Mapping[str, Any]) -> list[Block]:
    metrics, origin = facts["metrics"], facts["provenance"]
    arguments = ", ".join(f"{name}={value}" for name, value in facts["arguments"].items() if name not in words.LONG)
    teacher = (origin.get("distillation") or {}).get("teacher") or {}
    fast = {"log_prob": "likelihoods", "sample": "samples"}
    one_pass = " and ".join(fast[name] for name in facts["fast"])
    return [
        Facts(
            [
                ("recipe", facts["model"]),
                ("arguments", legible(arguments, 600)),
                ("stack", words.stack(metrics.get("weights") or {})),
                ("parameters", f"{facts['parameters']:,} ({facts['bytes'] / 1e6:.2f} MB)"),
                ("in one pass", one_pass or "neither likelihoods nor samples"),
                ("distilled from", f"{_base_name(teacher['run'])}, {teacher.get('model')}" if "run" in teacher else ""),
            ]
        )
    ]


def _origin(facts: Mapping[str, Any]) -> list[Block]:
    metrics, data = facts["metrics"], facts["provenance"].get("data") or {}
    rows = metrics.get("rows") or {}
    parts = {"train": "training", "validation": "validation", "test": "the test"}
    split = [f"{rows[name]:,} for {text}" for name, text in parts.items() if name in rows]
    if "folds" in metrics:
        split.append(f"each held out of one of {metrics['folds']} folds")
    return [
        Facts(
            [
                ("data", legible(_base_name(data.get("name")), 120)),
                (facts["units"], f"{facts['rows']:,}" if facts.get("rows") else ""),
                ("divided", ", ".join(split)),
                ("weighted by", legible(facts.get("weighted_by") or "", 120)),
            ]
        )
    ]


def _notes(facts: Mapping[str, Any]) -> list[Block]:
    """What was said of how the data were read."""
    data = facts["provenance"].get("data") or {}
    notes = facts["metrics"].get("notes") or []
    name = str(data.get("name") or "")
    lines = [note.replace(name, _base_name(name)) if name else note for note in notes]
    return [Text("How they were read:"), Bullets(lines)] if lines else []


def _likelihood(
    opened: OpenRun, facts: Mapping[str, Any], result: Mapping[str, Any] | None, shown: RunReport
) -> list[Block]:
    """Likelihoods by the part of the data, and those of simple densities on the rows of a check."""
    metrics, (one, many) = facts["metrics"], shown.example
    lines: list[tuple[str, ...]] = []
    dimension = ""
    for name, text in _parts(shown).items():
        part = metrics.get(name)
        if not isinstance(part, Mapping) or "nll" not in part:
            continue
        dimension = next((key for key in part if key.startswith("bits_per_") and not key.endswith("_stderr")), "")
        lines.append(
            (
                text,
                f"{part['rows']:,}" if "rows" in part else "",
                words.with_error(part["nll"], part["stderr"]),
                words.with_error(part.get(dimension), part.get(f"{dimension}_stderr")),
            )
        )
        if part.keys() >= {"elbo", "elbo_stderr", "samples"}:
            elbo = words.with_error(-part["elbo"], part["elbo_stderr"])
            lines.append((f"{name}: -ELBO ({part['samples']:,} samples for the line above)", "", elbo, ""))
    blocks: list[Block] = []
    if lines:
        unit = dimension.removeprefix("bits_per_")
        head = ("part", many, f"nats per {one}", f"bits per {UNITS.get(unit, unit)}")
        bound = "Bounds of the negative" if any("-ELBO" in line[0] for line in lines) else "Negative"
        weighted = f", weighted by {legible(metrics['weighted_by'], 80)!r}" if metrics.get("weighted_by") else ""
        text = f"{bound} log-likelihood in the data's own units{weighted}; lower is better. ± is one standard error."
        blocks += [Text(text), Columns(head, lines)]
    elif not (opened.flow.has_log_prob or opened.flow.has_bound):
        return [Text("A student that samples in a few steps has no likelihood; its teacher has.")]
    else:
        blocks.append(Text("The run directory knows no likelihood: its training did not report any."))
    return [*blocks, *_baselines(result, shown)]


def _parts(shown: RunReport) -> dict[str, str]:
    """The parts of the data in words; a student is not stopped by any."""
    return PARTS | ({"validation": "held out of the teacher's training"} if shown.student else {})


def _baselines(result: Mapping[str, Any] | None, shown: RunReport) -> list[Block]:
    if result is None:
        return [Text("Likelihoods of simple densities, to compare with, are computed where data are given.")]
    densities = result["likelihood"]
    if "flow" not in densities:
        return []
    names = {"gaussian": "a Gaussian", "marginals": shown.simplest}
    lines = [("the model", words.pair(densities["flow"]), "")]
    lines += [
        (text, words.pair(densities[name]), words.pair(densities[f"gain_over_{name}"]))
        for name, text in names.items()
        if name in densities
    ]
    one, many = shown.example
    if len(lines) == 1:
        return [Text(f"On the {many} of the check: {words.pair(densities['flow'])} nats per {one}.")]
    text = f"Log-likelihood beside that of simple densities; higher is better. On {shown.judged}."
    return [Text(text), Columns(("density", f"nats per {one}", "the model gains"), lines)]


def _check(opened: OpenRun, result: Mapping[str, Any] | None, shown: RunReport) -> list[Block]:
    if result is None:
        if shown.examples is None:
            return [Text("Nothing says how good the model is on new data: give data to have it checked.", warning=True)]
        return [Text("The model has no likelihood, and is not checked. Check the one that it was distilled from.")]
    blocks: list[Block] = [
        Text(f"On {legible(_base_name(result['data']), 80)}: {result['which']}; {result['rows']:,} in all."),
        Text(f"Verdict: {result['verdict']}{':' if result['reasons'] else '.'}"),
    ]
    if result["in_sample"]:
        text = "The model was trained on these examples: nothing here says how good it is on others."
        blocks.insert(1, Text(text, warning=True))
    if result["reasons"]:
        blocks.append(Bullets(result["reasons"]))
    for part in words.checked(result):
        blocks.append(part if isinstance(part, Columns) else Facts(part))
    looked = words.looked_at(result)
    return [*blocks, Text(looked[0].upper() + looked[1:] + ".")] if looked else blocks


def _distillation(facts: Mapping[str, Any], shown: RunReport) -> list[Block]:
    if "distillation" not in facts["provenance"]:
        return []
    lost = facts["metrics"].get("distillation")
    if not lost:
        return [Text("The distillation did not end: what the student lost is not known.", warning=True)]
    rows = [(name, re.sub(r" {2,}", " · ", text.strip())) for name, text in words.lost(lost)]
    count = words.many(lost["rows"], "draw")
    blocks: list[Block] = [Text(f"What the student lost against its teacher, by {count} of each:"), Facts(rows)]
    warned: list[Block] = [Text(text, warning=True) for text in lost.get("warnings", ())]
    return [*blocks, *warned, *shown.pictures("distillation")]


def _calibration(result: Mapping[str, Any] | None, shown: RunReport) -> list[Block]:
    blocks = shown.calibration()
    if result is not None and "latents" in result:
        text = f"The latents of the {result['rows']:,} that were checked, beside the base's noise:"
        blocks = [Text(text), Facts(words.latents(result["latents"])), *blocks]
    return blocks or [Text("Nothing is known of the calibration: give data to have it looked at.")]


def _training(opened: OpenRun, facts: Mapping[str, Any], shown: RunReport) -> list[Block]:
    metrics = facts["metrics"]
    if not metrics.keys() >= {"epochs", "seconds"}:
        return [Text("The training did not end.", warning=True)]
    skipped = metrics.get("skipped_batches")
    rows = [
        ("time", words.trained(metrics)),
        ("end", words.stopped(metrics) if metrics.keys() >= {"best_epoch", "stopped"} else ""),
        ("skipped", f"{skipped:,} batches were not finite" if skipped else ""),
    ]
    pictures = shown.training(opened)
    if not pictures and "distillation" not in facts["provenance"]:
        pictures = [Text("There is no learning curve: the run directory has no log of its training.")]
    return [Facts(rows), *pictures]


def _limits(facts: Mapping[str, Any], result: Mapping[str, Any] | None, shown: RunReport) -> list[str]:
    metrics, units = facts["metrics"], facts["units"]
    texts = []
    if result is None and shown.examples is None:
        texts.append(f"It was not checked for this report. Whether its samples are like new {units} is not known.")
    elif shown.examples is not None and shown.examples.in_sample:
        texts.append("All figures of examples here are of those that it was trained on: they flatter it.")
    if result is not None and result["reasons"]:
        texts.append(f"The check names {words.many(len(result['reasons']), 'reason')} for its verdict: see there.")
    if metrics.get("stopped") == "interrupted":
        texts.append("Its training was interrupted: it is not as good as it could be.")
    if "distillation" in facts["provenance"]:
        texts.append("It was trained on its teacher, not on the data, and has its teacher's faults besides its own.")
    elif "validation" in metrics and "test" not in metrics:
        texts.append(
            "Training was stopped by the validation data, so that their likelihood is a little too good; there is no"
            " test."
        )
    return [
        *texts,
        *shown.limits(),
        f"It is a model of {units} like those of its training. Of what has changed since, was never recorded, or lies"
        " far off, its likelihoods and samples say nothing.",
        f"Figures show {units} as they are, or close to it: look at them before you send this file to others.",
    ]


def _use(opened: OpenRun, shown: RunReport) -> list[Block]:
    return [
        Text("With diffeo installed, and the run directory as run/:"),
        Code("\n".join(["diffeo info run/", *shown.use()]), "bash"),
        Text("In Python the commands are functions; the model itself is a PyTorch module. A run holds no code:"),
        Code(
            "import diffeo\nfrom diffeo import commands\n\n"
            'print(commands.info("run/"))\n'
            'flow = diffeo.load("run/")  # as commands use it: in the units of the encoded data'
        ),
    ]


def _provenance(facts: Mapping[str, Any]) -> list[Block]:
    origin = facts["provenance"]
    data, versions = origin.get("data") or {}, origin.get("versions") or {}
    return [
        Facts(
            [
                ("made", str(origin.get("date") or "")),
                ("by", ", ".join(f"{name} {version}" for name, version in versions.items())),
                ("seed", str(origin.get("seed", ""))),
                ("data", f"SHA-256 {str(data['sha256'])[:DIGITS]}..." if data.get("sha256") else ""),
                ("license", "not stated"),
            ]
        )
    ]


def _front(document: Document, opened: OpenRun, facts: Mapping[str, Any], shown: RunReport) -> dict[str, Any]:
    """The front matter of a model card: https://github.com/huggingface/hub-docs/blob/main/modelcard.md."""
    metrics, data = facts["metrics"], facts["provenance"].get("data") or {}
    values = []
    one = shown.example[0]
    for name, text in _parts(shown).items():
        part = metrics.get(name)
        if not isinstance(part, Mapping) or not _finite(part.get("nll")):
            continue
        kind = "upper bound of the " if "elbo" in part else ""
        values.append(
            {
                "type": "negative-log-likelihood",
                "name": f"{kind}negative log-likelihood, nats per {one} ({text})",
                "value": part["nll"],
            }
        )
        values += [
            {"type": key.replace("_", "-"), "name": f"{key.replace('_', ' ')} ({text})", "value": part[key]}
            for key in ("bits_per_dim", "bits_per_sample")
            if _finite(part.get(key))
        ]
    name = legible(_base_name(data.get("name")), 80)
    results = {
        "task": {"type": "density-estimation", "name": "Density estimation"},
        "dataset": {"type": name, "name": name},
        "metrics": values,
    }
    tags = ["normalizing-flows", "density-estimation", shown.tag, facts["model"].replace("_", "-")]
    front: dict[str, Any] = {"library_name": "diffeo", "tags": tags}
    if values:
        front["model-index"] = [{"name": document.title, "results": [results]}]
    return front


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
