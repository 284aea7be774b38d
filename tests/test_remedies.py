"""What messages recommend: options that the command at hand has."""

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer

from diffeo import commands
from diffeo.cli.app import app
from diffeo.cli.main import main
from diffeo.errors import UserError
from diffeo.modalities.tables.delimited import complaint, mixed_types
from diffeo.modalities.tables.run import TableRun

SOURCE = Path(__file__).parents[1] / "src" / "diffeo"
OPTIONS = {
    name: {option for parameter in command.params for option in parameter.opts}
    for name, command in typer.main.get_command(app).commands.items()
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
OF_TRAINING = re.compile(r"\btrain(?:ed)? (?:it )?with(?:out)? [^;]*|as diffeo fit makes with --out")
TINY = {"epochs": 1, "folds": 1, "arguments": {"hidden": [8], "transforms": 1}, "figures": False}
MIXED = {**TINY, "model": "mixed", "arguments": {"hidden": 8, "layers": 1, "orders": 2}}
ROWS = 120


def recommended(message):
    return set(OPTION.findall(OF_TRAINING.sub("", message)))


def numbers(rows=ROWS, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, 3)).round(3)
    return pd.DataFrame(x, columns=["a", "b", "c"])


def with_cells(cells, column="a"):
    """The table with these cells in a column, from the eleventh row on."""
    values = numbers().astype(object)
    values.loc[10 : 9 + len(cells), column] = cells
    return values


# Each a table that some command refuses.
BAD = {
    "texts": numbers().assign(a=[f"t{i % 7}" for i in range(ROWS)]),
    "a text": with_cells(["broken"]),
    "dates": numbers().assign(a=[f"2024-01-{i % 28 + 1:02}" for i in range(ROWS)]),
    "decimal commas": numbers().assign(a=[f"{i},5" for i in range(ROWS)]),
    "a gap": with_cells([np.nan]),
    "a gap in the context": with_cells([np.nan], "c"),
    "infinity": with_cells([np.inf]),
    "gaps everywhere": numbers().assign(a=np.nan),
    "an unread column with a text": numbers().assign(z=[*range(ROWS - 1), "broken"]),
    "no such column": numbers().drop(columns="a"),
}


PARQUET = ("texts", "infinity")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of numbers, of a mixed density, and of ones that are conditional on c."""
    folder = tmp_path_factory.mktemp("runs")
    numbers().to_csv(folder / "x.csv", index=False)
    for name, settings in (("numbers", TINY), ("mixed", MIXED)):
        commands.fit(folder / "x.csv", folder / name, **settings)
        commands.fit(folder / "x.csv", folder / f"{name}-given-c", context=["c"], **settings)
    return folder


def words_of(command, run, data, out):
    """The command line of a command that reads a table."""
    fast = ["--epochs", "1", "--student", "realnvp", "--no-figures", "--set", "transforms=1", "--set", "hidden=[8]"]
    return {
        "fit": [data, "--out", out, "--model", "maf", "--epochs", "1", "--folds", "1", "--no-figures", "--hidden", "8"],
        "score": [run, data, "--out", f"{out}.csv", "--keep", "b"],
        "anomalies": [run, data, "--out", f"{out}.csv", "--keep", "b"],
        "sample": [run, "--given-file", data, "--out", f"{out}.csv"],
        "impute": [run, data, "--out", f"{out}.csv"],
        "check": [run, data],
        "distill": [run, "--data", data, "--out", out, *fast],
    }[command]


@pytest.mark.parametrize("command", ["fit", "score", "anomalies", "sample", "impute", "check", "distill"])
def test_messages_recommend_options_that_the_command_has(runs, command, tmp_path, capsys, monkeypatch):
    def enough(*_):
        raise UserError("nothing is wrong with this table")

    monkeypatch.setattr(TableRun, "examine", enough)
    monkeypatch.setattr(sys.modules["diffeo.commands.distill"], "_student", enough)
    named = set()
    refused = 0
    for run in ("numbers", "mixed", "numbers-given-c", "mixed-given-c"):
        for case, table in BAD.items():
            for kind in ("csv", "parquet"):
                if kind == "parquet" and case not in PARQUET:
                    continue
                data = tmp_path / f"x.{kind}"
                getattr(table, f"to_{kind}")(data, index=False)
                words = words_of(command, str(runs / run), str(data), str(tmp_path / f"{run}-{case}-{kind}"))
                for more in ([], ["--drop-missing"] if "--drop-missing" in OPTIONS[command] else []):
                    if case not in ("gaps everywhere", "a text", "texts") and more:
                        continue
                    if main([command, *words, *more, *(["--force"] if "--force" in OPTIONS[command] else [])]) == 2:
                        refused += 1
                        message = capsys.readouterr().err
                        assert recommended(message) <= OPTIONS[command], (run, case, message)
                        named |= recommended(message)
        if command == "fit":
            break
    assert refused >= 4
    expected = {
        "fit": {"--drop", "--drop-missing", "--decimal", "--na", "--categorical"},
        "score": {"--drop", "--drop-missing", "--decimal"},
        "anomalies": {"--drop-missing", "--decimal"},
        "check": {"--drop-missing"},
        "distill": {"--drop-missing"},
    }
    assert named >= expected.get(command, set())


@pytest.mark.parametrize(
    ("value", "decimal", "read", "written"),
    [
        ("1,5", ".", "holds decimal commas (row 1: '1,5'); read it with --decimal ,", "write them with points"),
        ("1.5", ",", "holds decimal points (row 1: '1.5'); read it with --decimal .", "write them with commas"),
    ],
)
def test_what_is_said_of_a_cell_names_options_there_are(value, decimal, read, written):
    assert complaint("a", "row 1", value, decimal=decimal) == f"column 'a' {read} or use --drop a"
    assert complaint("a", "row 1", value, [], decimal).endswith(f"; {written} or leave out such rows")
    assert mixed_types("a", [("row 1", "-")], 1, 200, ["na"]).endswith("; use --na - if that stands for a missing cell")
    assert mixed_types("a", [("row 1", "-")], 1, 200, []).endswith("; correct or leave out such rows")


def test_every_option_in_the_code_is_one_of_some_command():
    known = set().union(*OPTIONS.values(), {"--help", "--version"})
    for path in SOURCE.rglob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            # What is asked of pip, git or a compiler is none of ours, nor are the variables of a style sheet.
            if "UserError" in line or re.search(r"(?<!var)\((?:or )?--[a-z]", line):
                assert set(OPTION.findall(line)) <= known, (path.name, number, line)


def test_columns_that_are_not_modelled_are_dropped_without_a_word(runs, tmp_path):
    table = numbers().assign(extra=1.0, other="x")
    for drop, ignored in (([], ["extra", "other"]), (["extra"], ["other"]), (["extra", "other"], [])):
        for run in ("numbers", "mixed"):
            summary = commands.score(runs / run, table, tmp_path / "s.csv", drop=drop, force=True)
            assert summary["ignored_columns"] == ignored


@pytest.mark.parametrize(
    ("run", "options", "gist"),
    [
        ("numbers", {"drop": ["a"]}, "no density of fewer columns; train with --model mixed, or with --drop a"),
        ("mixed", {"drop": ["a", "b", "c"]}, "every column is dropped, none is left to score"),
        ("mixed", {"drop": ["a", "b"], "conditions": ["c"]}, "every column is given"),
        ("mixed", {"drop": ["z"]}, "has no column 'z' to drop; it has 'a', 'b', 'c'"),
        ("mixed", {"drop": ["a"], "keep": ["a"]}, "'a' is both kept and dropped"),
        ("mixed", {"drop": ["a"], "conditions": ["a"]}, "'a' is both given and dropped"),
        ("mixed-given-c", {"drop": ["c"]}, "is conditional on 'c', which cannot be dropped"),
        ("numbers", {"sep": ";;"}, "one character that separates columns"),
        ("numbers", {"decimal": "'"}, "a point or a comma"),
    ],
)
def test_what_cannot_be_dropped(runs, tmp_path, run, options, gist):
    with pytest.raises(UserError, match=gist):
        commands.score(runs / run, numbers(20), tmp_path / "s.csv", **options)


def test_a_file_may_be_written_in_another_way_than_that_of_the_training(runs, tmp_path):
    numbers(50).to_csv(tmp_path / "x.csv", index=False)
    numbers(50).mask(numbers(50) > 2).to_csv(tmp_path / "y.csv", index=False, sep=";", decimal=",", na_rep="-9")
    whole = commands.score(runs / "mixed", tmp_path / "x.csv", tmp_path / "s.csv")
    other = commands.score(
        runs / "mixed", tmp_path / "y.csv", tmp_path / "t.csv", sep=";", decimal=",", na=["-9"], missing="drop"
    )
    x, y = (pd.read_csv(tmp_path / f"{name}.csv").set_index("row")["log_likelihood"] for name in "st")
    assert (whole["rows"], other["rows"]) == (50, (numbers(50) <= 2).all(axis=1).sum())
    assert len(y) < 50
    np.testing.assert_array_equal(x[y.index], y)
