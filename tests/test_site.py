"""The site: the reference is complete, and what is wrong on a page is seen."""

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
DESCRIBED = re.compile(r"^\.\. (?:auto)?(?:class|function|exception|data):: (\S+)$", re.MULTILINE)


@pytest.fixture
def docs(monkeypatch):
    """The folder of the pages, whose modules can be imported."""
    monkeypatch.syspath_prepend(str(DOCS))
    return DOCS


def described() -> Counter[str]:
    """How often the pages of the reference describe each name."""
    return Counter(name for page in (DOCS / "reference").glob("*.md") for name in DESCRIBED.findall(page.read_text()))


def test_every_public_name_is_in_the_reference_once(docs):
    import docstrings

    names = docstrings.public_names()
    assert {"diffeo.Flow", "diffeo.maf", "diffeo.transforms.Coupling", "diffeo.StandardNormal"} <= names.keys()
    assert "diffeo.bases.StandardNormal" not in names  # the same class, which is diffeo.StandardNormal
    pages = described()
    assert not names.keys() - pages.keys(), "these lack a place in docs/reference/"
    assert not [name for name, count in pages.items() if count > 1], "these are described twice"


def test_every_command_and_option_is_in_the_reference(docs):
    """What ``--help`` lists is on the page, by the names that it has there."""
    import command_line
    from typer.main import get_command

    from diffeo.cli.app import app

    sections = dict(re.findall(r"^## diffeo (\w+)\n(.*?)(?=^## |\Z)", command_line.page(), re.MULTILINE | re.DOTALL))
    commands = get_command(app).commands
    assert sections.keys() == commands.keys()
    for name, command in commands.items():
        shown = re.findall(r"^:::\{option\} (.*)$", sections[name], re.MULTILINE)
        words = {word for line in shown for word in re.findall(r"(?:^|, )(-[\w-]+)", line)}
        options = [each for each in command.params if each.param_type_name == "option"]
        assert words == {word for each in options for word in (*each.opts, *each.secondary_opts)}, name
        assert f"diffeo {name} " in sections[name]


def test_options_and_files_in_help_become_code(docs):
    from command_line import code

    assert code("as 'diffeo fit' takes, e.g. --set bins=16.") == "as `diffeo fit` takes, e.g. `--set bins=16`."
    assert code("A table (.csv .csv.gz), a teacher's rows: nsf-inverse 1.5") == (
        "A table (`.csv` `.csv.gz`), a teacher's rows: nsf-inverse 1.5"
    )


PAGE = """---
file_format: mystnb
kernelspec:
  name: python3
---

# A page

```{code-cell} python
CELL
```
"""


def build(folder: Path, page: str) -> subprocess.CompletedProcess[str]:
    """Build a site of two pages, one of which is this, with the settings of the real one."""
    for module in ("myst_nb", "furo", "ipykernel"):
        pytest.importorskip(module, reason="pip install -e '.[docs]'")
    source = folder / "docs"
    shutil.copytree(DOCS, source, ignore=lambda _, names: [n for n in names if n.endswith(".md") or n == "locale"])
    (source / "index.md").write_text("# Pages\n\n```{toctree}\npage\n```\n")
    (source / "page.md").write_text(page)
    return subprocess.run(
        [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", str(source), str(folder / "html")],
        env={**os.environ, "DIFFEO_DOCS": str(folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "works"),
    [
        ("assert 1 + 1 == 2", True),
        ("assert 1 + 1 == 3", False),
        ("%%bash\necho ±; echo after", True),
        ("%%bash\nfalse\necho after", False),  # a shell itself would only mind the last command
    ],
)
def test_an_error_in_a_code_block_fails_the_build(tmp_path, cell, works):
    done = build(tmp_path, PAGE.replace("CELL", cell))
    assert (done.returncode == 0) == works, done.stderr
    if works and "echo" in cell:
        assert re.search(r"±\s*after", (tmp_path / "html" / "page.html").read_text())


@pytest.mark.slow
def test_the_cache_is_whole_before_a_page_is_read(tmp_path):
    """Processes that read pages beside each other must not each make it (no page here has code that would)."""
    done = build(tmp_path, "# A page\n")
    assert done.returncode == 0, done.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "cache" / "global.db")) as cache:
        assert {"nbcache", "nbproject"} <= {name for (name,) in cache.execute("SELECT name FROM sqlite_master")}


def test_links_finds_what_leads_nowhere(docs, tmp_path):
    import links

    (tmp_path / "a.html").write_text(
        '<a href="b.html">b</a> <a href="b.html#there">b</a> <a href="#here">a</a> <p id="here"></p>'
        '<a href="https://example.org/">elsewhere</a> <img src="data:image/png;base64,AAAA">'
    )
    (tmp_path / "b.html").write_text('<h1 id="there">b</h1> <a href="a.html">a</a>')
    assert links.faults(tmp_path) == []
    (tmp_path / "c.html").write_text(
        '<a href="gone.html">c</a> <a href="b.html#gone">c</a> <script src="https://example.org/x.js"></script>'
    )
    page, anchor, loaded = (line.partition(": ")[2] for line in links.faults(tmp_path))
    assert (page, anchor, loaded) == (
        "gone.html is not there", "b.html#gone has no such anchor", "loads https://example.org/x.js",
    )  # fmt: skip


def test_translated_finds_what_is_not_in_chinese(docs, tmp_path, monkeypatch):
    pytest.importorskip("babel", reason="pip install -e '.[docs]'")
    import translated

    header = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=UTF-8\\n"\n\n'
    texts = ["A flow", "Noise", "Data", "A map"]
    known, templates = tmp_path / "known", tmp_path / "templates"
    known.mkdir()
    templates.mkdir()
    (templates / "page.pot").write_text(header + "".join(f'msgid "{text}"\nmsgstr ""\n\n' for text in texts))
    entries = 'msgid "A flow"\nmsgstr "流"\n\nmsgid "Noise"\nmsgstr ""\n\n#, fuzzy\nmsgid "Data"\nmsgstr "数据"\n'
    (known / "page.po").write_text(header + entries)
    monkeypatch.setattr(translated, "TRANSLATIONS", known)
    count, missing = translated.untranslated(templates)
    assert count == len(texts)
    assert missing == [f"page.po: {text!r}" for text in texts[1:]]
