"""A document as a model card: Markdown below a front matter of YAML, as model hubs read it."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffeo.legible import legible
from diffeo.report.page import Bullets, Code, Document, Facts, Picture, Section, Sound, Text
from diffeo.report.words import Columns

__all__ = ["to_markdown", "to_yaml"]

ROWS = 100  # of a table


def to_markdown(document: Document, front: Mapping[str, Any], page: str) -> str:
    """Write a document as Markdown; pictures and sounds are in the page, which is named where they would be.

    Args:
        document: the document.
        front: what stands in the front matter, plain data.
        page: the name of the file that has the pictures.
    """
    parts = [f"# {_escaped(document.title)}", _escaped(document.lead), f"**{_escaped(document.verdict)}**"]
    for section in document.sections:
        parts += _section(section, page)
    parts.append(f"---\n\n{_escaped(document.foot)}")
    return f"---\n{to_yaml(front)}---\n\n" + "\n\n".join(parts) + "\n"


def _section(section: Section, page: str) -> list[str]:
    parts, shown = [f"## {_escaped(section.title)}"], 0
    for block in section.blocks:
        if isinstance(block, Text):
            parts.append(f"> {_escaped(block.text)}" if block.warning else _escaped(block.text))
        elif isinstance(block, Bullets):
            parts.append("\n".join(f"- {_escaped(item)}" for item in block.items))
        elif isinstance(block, Facts):
            rows = [(name, text) for name, text in block.rows if text]
            parts += [_table(("", ""), rows)] if rows else []
        elif isinstance(block, Columns):
            more = len(block.rows) - ROWS
            parts += [_table(block.head, block.rows[:ROWS])] if block.rows else []
            parts += [f"... and {more:,} more rows."] if more > 0 else []
        elif isinstance(block, Code):
            lines = [legible(line, None) for line in block.text.strip("\n").split("\n")]
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block.text)), default=0))
            parts.append("\n".join([fence + block.language, *lines, fence]))
        else:
            assert isinstance(block, Picture | Sound)
            shown += 1
    if shown:
        parts.append(f"{shown} figures or sounds are in `{legible(page).replace('`', '')}`.")
    return parts


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell if k == 1 else _escaped(cell) for cell in line) + " |" for k, line in enumerate(lines)
    )


def _escaped(text: str) -> str:
    """A text in which no letter means anything to Markdown or to HTML."""
    plain = html.escape(legible(text, None), quote=False)
    plain = re.sub(r"([\\`*\[\]|~$])|(?<!\w)_|_(?!\w)", lambda match: "\\" + match[0], plain)
    return re.sub(r"^(\d+)(?=[.)](?:\s|$))|^(?=[-+#=])", lambda match: f"{match[0]}\\", plain)


def to_yaml(value: Any) -> str:
    """Write plain data as YAML: mappings and sequences as blocks, texts in quotes.

    Args:
        value: a mapping, a sequence, or what JSON knows; numbers that are not finite become null.
    """
    return "".join(f"{line}\n" for line in _lines(value))


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        lines = []
        for key, each in value.items():
            below = _lines(each)
            nested = isinstance(each, Mapping | list | tuple) and each
            lines += [f"{key}:", *(f"  {line}" for line in below)] if nested else [f"{key}: {below[0]}"]
        return lines or ["{}"]
    if isinstance(value, list | tuple):
        items = [_lines(each) for each in value]
        return [f"{'  ' if k else '- '}{line}" for item in items for k, line in enumerate(item)] or ["[]"]
    return [_scalar(value)]


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        text = repr(value) if math.isfinite(value) else "null"
        mantissa, e, power = text.partition("e")
        return f"{mantissa}.0e{power}" if e and "." not in mantissa else text  # 1e-05 would be a text
    text = json.dumps(legible(value) if isinstance(value, str) else value, ensure_ascii=False)
    return text.replace("<", "\\u003c")  # no reader takes it for a tag
