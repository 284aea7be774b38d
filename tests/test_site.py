"""The site: the reference is complete, and what is wrong on a page is seen."""

import re
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
