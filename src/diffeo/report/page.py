"""A document of text, tables, pictures and sounds, as one file of HTML that loads nothing."""

from __future__ import annotations

import base64
import html
import io
import re
import wave
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from diffeo.legible import legible
from diffeo.report.words import Columns, Rows

__all__ = [
    "Block",
    "Bullets",
    "Code",
    "Document",
    "Facts",
    "Picture",
    "Section",
    "Sound",
    "Text",
    "to_html",
    "wav_of",
]

LARGEST = 5_000_000  # bytes of a page
LONGEST = 300  # letters of a name that comes from elsewhere
ROWS = 200  # of a table
CELL, SHORT = 200, 24  # letters of a cell at most, and of one that stands on one line
DOTS = 140 / 96  # of a picture in a pixel of the page
WIDE = 480  # pixels of the page from which on a picture is not made as narrow as a telephone
SMALLEST = 240  # pixels that a picture keeps of its width, however large the page
SHRINK = 0.75  # in one step


@dataclass(frozen=True)
class Text:
    """A paragraph; a warning stands out."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and what is said of each; what is empty is left out."""

    rows: Rows


@dataclass(frozen=True)
class Code:
    """Code to copy, in a language."""

    text: str
    language: str = "python"


@dataclass(frozen=True)
class Picture:
    """A picture, a PNG or a GIF, and what it shows; a photo keeps its colours where the page is dark."""

    data: bytes
    caption: str
    photo: bool = False

    @classmethod
    def read(cls, path: str | Path, caption: str, photo: bool = False) -> Picture:
        """Take it from a file."""
        return cls(Path(path).read_bytes(), caption, photo)

    @property
    def moves(self) -> bool:
        """Whether it is an animation."""
        return self.data.startswith(b"GIF8")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        from PIL import Image

        with Image.open(io.BytesIO(self.data)) as image:
            return image.size

    def smaller(self) -> Picture | None:
        """The same picture at three quarters of its width; None where it is small already, or moves."""
        from PIL import Image

        width, height = self.size
        if self.moves or width * SHRINK < SMALLEST:
            return None
        with Image.open(io.BytesIO(self.data)) as image:
            mode = "RGB" if image.mode in ("P", "RGB") else image.mode
            resized = image.convert(mode).resize((round(width * SHRINK), max(1, round(height * SHRINK))))
        result = io.BytesIO()
        resized.save(result, format="PNG", optimize=True)
        return replace(self, data=result.getvalue())


@dataclass(frozen=True)
class Sound:
    """A sound to play, a WAV, and what it is."""

    data: bytes
    caption: str


Block = Text | Bullets | Facts | Columns | Code | Picture | Sound


@dataclass(frozen=True)
class Section:
    """Blocks below a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        title: its name.
        lead: what it is of, in a sentence or two.
        verdict: what a check concludes, in words, or what is known instead; ``grade`` is "good", "care", "bad" or "".
        sections: the rest.
        foot: who made it.
    """

    title: str
    lead: str
    verdict: str
    grade: str
    sections: Sequence[Section]
    foot: str


def wav_of(x: np.ndarray, rate: int) -> bytes:
    """Return a sound (n,), floats in [-1, 1), as a WAV of one channel and 16 bits; what is not finite becomes 0."""
    values = np.rint(np.nan_to_num(np.asarray(x, dtype=np.float64), posinf=0.0, neginf=0.0) * 2**15)
    result = io.BytesIO()
    with wave.open(result, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.clip(-(2**15), 2**15 - 1).astype("<i2").tobytes())
    return result.getvalue()


def _escaped(text: str) -> str:
    """The only way for a text into the page."""
    return html.escape(legible(text, 20 * LONGEST), quote=True)


def to_html(document: Document, largest: int = LARGEST) -> tuple[str, list[str]]:
    """Write a document as HTML, and say what became of pictures and sounds that are too many for its size.

    Pictures are made smaller, the largest first; where that does not suffice, animations, sounds and pictures are left
    out, and what is left out is said in its place.

    Args:
        document: the document.
        largest: bytes that the page may have.

    Returns:
        The page; what was made smaller or left out, in words.
    """
    sections = [list(section.blocks) for section in document.sections]
    notes: list[str] = []

    def page() -> str:
        return _page(replace(document, sections=_with_blocks(document.sections, sections)))

    text = page()
    excess = len(text.encode()) - largest
    if excess > 0:
        notes = _reduced(sections, excess + 1_000)
        text = page()
    return text, notes


def _with_blocks(sections: Sequence[Section], blocks: Sequence[Sequence[Block]]) -> list[Section]:
    return [replace(section, blocks=part) for section, part in zip(sections, blocks, strict=True)]


def _reduced(sections: list[list[Block]], excess: int) -> list[str]:
    """Take so many bytes of the page off pictures and sounds, in place."""
    media = [
        (i, k) for i, part in enumerate(sections) for k, block in enumerate(part) if isinstance(block, Picture | Sound)
    ]
    fixed: set[tuple[int, int]] = set()  # what cannot be made smaller
    shrunk: set[tuple[int, int]] = set()
    dropped = []

    def size(place: tuple[int, int]) -> int:
        block = sections[place[0]][place[1]]
        return len(block.data) if isinstance(block, Picture | Sound) else 0

    while excess > 0 and len(fixed) < len(media):
        place = max((each for each in media if each not in fixed), key=size)
        block = sections[place[0]][place[1]]
        smaller = block.smaller() if isinstance(block, Picture) else None
        if smaller is None:
            fixed.add(place)
            continue
        excess -= _encoded(size(place)) - _encoded(len(smaller.data))
        sections[place[0]][place[1]] = smaller
        shrunk.add(place)
    while excess > 0 and media:
        place = max(media, key=size)
        block = sections[place[0]][place[1]]
        assert isinstance(block, Picture | Sound)
        excess -= _encoded(size(place))
        dropped.append(block.caption)
        sections[place[0]][place[1]] = Text(f"Left out, for the file would be too large: {block.caption}")
        media.remove(place)
    count = len(shrunk & {*media})
    notes = [f"{count} pictures were made smaller"] if count else []
    return [*notes, *(f"left out: {caption}" for caption in dropped)]


def _encoded(size: int) -> int:
    """Bytes that so many take in base64."""
    return 4 * -(-size // 3)


def _page(document: Document) -> str:
    """All of the file."""
    title = _escaped(document.title)
    names = [_name(number, section.title) for number, section in enumerate(document.sections)]
    links = "".join(
        f'<a href="#{name}">{_escaped(section.title)}</a>'
        for name, section in zip(names, document.sections, strict=True)
    )
    body = "\n".join(
        f'<section id="{name}">\n<h2>{_escaped(section.title)}</h2>\n{_blocks(section.blocks)}\n</section>'
        for name, section in zip(names, document.sections, strict=True)
    )
    grade = document.grade if document.grade in ("good", "care", "bad") else "none"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{_escaped(document.lead)}</p>
<p class="verdict {grade}">{_escaped(document.verdict)}</p>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}
</main>
<footer><p>{_escaped(document.foot)}</p></footer>
</body>
</html>
"""


def _name(number: int, title: str) -> str:
    return f"s{number + 1}-" + re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _blocks(blocks: Iterable[Block]) -> str:
    """Blocks in their order; sounds that follow each other stand side by side."""
    parts: list[str] = []
    sounds: list[Sound] = []

    def flush() -> None:
        if sounds:
            parts.append(f'<div class="sounds">\n{"".join(map(_sound, sounds))}</div>')
            sounds.clear()

    for block in blocks:
        if isinstance(block, Sound):
            sounds.append(block)
            continue
        flush()
        parts.append(_WRITERS[type(block)](block))
    flush()
    return "\n".join(parts)


def _text(block: Text) -> str:
    return f'<p class="warning">{_escaped(block.text)}</p>' if block.warning else f"<p>{_escaped(block.text)}</p>"


def _bullets(block: Bullets) -> str:
    return "<ul>\n" + "".join(f"<li>{_escaped(item)}</li>\n" for item in block.items) + "</ul>"


def _facts(block: Facts) -> str:
    """A name that is indented belongs to the one before it."""
    rows = "".join(
        f'<tr{_BELONGS * (not name or name.startswith(" "))}><th scope="row">{_escaped(name)}</th>'
        f"<td>{_escaped(text)}</td></tr>\n"
        for name, text in block.rows
        if text
    )
    return f'<div class="scroll"><table class="facts"><tbody>\n{rows}</tbody></table></div>' if rows else ""


def _columns(block: Columns) -> str:
    if not block.rows:
        return ""
    shown = block.rows[:ROWS]
    numeric = [all(_is_number(row[k]) for row in shown) for k in range(len(block.head))]
    head = "".join(map(partial(_cell, tag='th scope="col"'), block.head, numeric))
    rows = "".join("<tr>" + "".join(map(_cell, row, numeric)) + "</tr>\n" for row in shown)
    more = f"<p>... and {len(block.rows) - ROWS:,} more rows.</p>" if len(block.rows) > ROWS else ""
    return (
        '<div class="scroll high" tabindex="0" role="group" aria-label="Table"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>{more}"
    )


def _cell(text: str, number: bool, tag: str = "td") -> str:
    """A cell; numbers stand at the right, and what is short is not broken."""
    text = legible(text, CELL)
    mark = "number" if number else "short" if len(text) <= SHORT else "long"
    return f'<{tag} class="{mark}">{_escaped(text)}</{tag.split()[0]}>'


def _is_number(cell: str) -> bool:
    return not cell or re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?( ± [\d.,]+)?%?|nan|-?inf", cell) is not None


def _code(block: Code) -> str:
    lines = "\n".join(html.escape(legible(line, None), quote=True) for line in block.text.strip("\n").split("\n"))
    return f'<pre class="scroll" tabindex="0"><code>{lines}</code></pre>'


def _picture(block: Picture) -> str:
    kind = "gif" if block.moves else "png"
    width, height = block.size
    shown = max(1, round(width / (1 if block.moves else DOTS)))
    alt = _escaped(block.caption)
    look = ("photo" if block.photo or block.moves else "chart") + " wide" * (shown > WIDE)
    return (
        f'<figure class="{look}"><div class="scroll" tabindex="0">'
        f'<img alt="{alt}" width="{width}" height="{height}" style="--w:{shown}px" '
        f'src="data:image/{kind};base64,{base64.b64encode(block.data).decode()}"></div>'
        f"<figcaption>{alt}</figcaption></figure>"
    )


def _sound(block: Sound) -> str:
    return (
        f'<figure class="sound"><figcaption>{_escaped(block.caption)}</figcaption><audio controls preload="none" '
        f'src="data:audio/wav;base64,{base64.b64encode(block.data).decode()}"></audio></figure>\n'
    )


_WRITERS: dict[type, Callable[..., str]] = {
    Text: _text, Bullets: _bullets, Facts: _facts, Columns: _columns, Code: _code, Picture: _picture,
}  # fmt: skip

_BELONGS = ' class="sub"'
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"

# Colours of figures are Okabe and Ito's, as in report.style.
_STYLE = """
:root { --ink: #1d2228; --soft: #5b646e; --line: #d9dee3; --ground: #ffffff; --box: #f5f7f9; --link: #0061a0;
  --good: #00694a; --good-box: #e3f4ee; --care: #7a4a00; --care-box: #fdf1da; --bad: #a0231a; --bad-box: #fce8e6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #a0a9b2; --line: #353c44; --ground: #14181c;
  --box: #1d2329; --link: #6fb7ea; --good: #7fd9b6; --good-box: #12332a; --care: #f3c677; --care-box: #3a2b0d;
  --bad: #ff9d94; --bad-box: #431b18; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.4rem 0 .7rem; padding-top: .7rem;
  border-top: 1px solid var(--line); }
p { margin: .6rem 0; }
ul { margin: .6rem 0; padding-left: 1.2rem; }
li { margin: .3rem 0; }
a { color: var(--link); text-underline-offset: .15em; }
header > p { max-width: 46rem; }
section > p, section > ul { max-width: 46rem; }
.verdict { display: inline-block; padding: .35rem .8rem; border-radius: .5rem; font-weight: 600;
  background: var(--box); color: var(--soft); }
.good { background: var(--good-box); color: var(--good); }
.care { background: var(--care-box); color: var(--care); }
.bad { background: var(--bad-box); color: var(--bad); }
.warning { padding: .5rem .8rem; border-radius: .5rem; background: var(--care-box); color: var(--care); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin-top: .8rem; font-size: .92rem; }
.scroll { overflow-x: auto; max-width: 100%; }
.high { max-height: 32rem; overflow-y: auto; border: 1px solid var(--line); border-radius: .5rem; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
.high table { min-width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .32rem .8rem; overflow-wrap: normal; }
.high th, .high td { border-bottom: 1px solid var(--line); max-width: 26rem; overflow-wrap: break-word; }
.short, .number { white-space: nowrap; }
.long { min-width: 11rem; }
.high tr:last-child td { border-bottom: 0; }
.high thead th { position: sticky; top: 0; background: var(--box); font-weight: 600; }
.number { text-align: right; }
.facts { width: 100%; margin: .6rem 0; }
.facts th { width: 13rem; padding-left: 0; font-weight: 600; color: var(--soft); overflow-wrap: anywhere; }
.facts td { overflow-wrap: anywhere; }
.facts .sub th { font-weight: 400; padding-left: 1rem; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem;
  font: .88rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: normal; }
figure { margin: 1.2rem 0; }
figcaption { color: var(--soft); font-size: .92rem; margin-top: .4rem; max-width: 46rem; }
figure .scroll { background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .5rem; }
img { display: block; width: var(--w); max-width: 100%; height: auto; margin: 0 auto; }
.sounds { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .4rem 1rem; }
.sound { margin: .3rem 0; min-width: 0; }
audio { width: 100%; height: 2.4rem; margin-top: .2rem; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .88rem; }
@media (prefers-color-scheme: dark) {
  .chart .scroll { background: #14181c; }
  .chart img { filter: invert(.92) hue-rotate(180deg); }
  .photo .scroll { background: #e6e6e6; }
  .photo img { filter: brightness(.9); } }
@media (max-width: 40rem) {
  body { padding: 1rem .8rem 2rem; }
  h1 { font-size: 1.45rem; }
  .facts tr { display: block; padding: .25rem 0; }
  .facts th, .facts td { display: block; width: auto; padding: 0; }
  .facts .sub th, .facts .sub td { padding-left: 1rem; }
  .wide img { max-width: none; width: min(var(--w), max(100%, 34rem)); } }
@media print { .high { max-height: none; overflow: visible; } nav { display: none; } }
"""
