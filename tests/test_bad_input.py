"""What a user can get wrong: one line on stderr that names it and the remedy, exit code 2, and nothing left behind."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch

import diffeo
from diffeo.cli import main

TINY = ["--folds", "1", "--epochs", "1", "--hidden", "8", "--transforms", "1", "--no-figures"]


def table(path, rows=60, columns=("a", "b", "k"), seed=0):
    generator = np.random.default_rng(seed)
    values = {
        "a": generator.normal(size=rows),
        "b": generator.gamma(2.0, size=rows),
        "k": generator.integers(9, size=rows),
    }
    lines = [",".join(columns)] + [",".join(str(values[name][i]) for name in columns) for i in range(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a table, a run of it, and a run that is conditional on k."""
    folder = tmp_path_factory.mktemp("made")
    data = table(folder / "data.csv")
    assert main(["fit", str(data), "--out", str(folder / "run"), *TINY]) == 0
    assert main(["fit", str(data), "--out", str(folder / "given"), "--context", "k", *TINY]) == 0
    return folder


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused, in one line that holds all the pieces in this order."""

    def check(argv, *gist, code=2):
        capsys.readouterr()
        assert main([str(word) for word in argv]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        said = [line for line in captured.err.splitlines() if not line.startswith("note: ")]
        assert len(said) == 1, captured.err
        assert said[0].startswith("diffeo: ")
        at = 0
        for piece in gist:
            at = said[0].find(piece, at)
            assert at >= 0, (piece, said[0])
        return said[0]

    return check


TABLES = {
    "empty file": ("x.csv", "", ["x.csv: is empty"]),
    "header without rows": ("x.csv", "a,b\n", ["x.csv", "header", "no rows"]),
    "one row": ("x.csv", "a,b\n1,2\n", ["x.csv", "1 row", "at least 2"]),
    "text": ("x.csv", "a,name\n1,2\n2,Anna\n", ["x.csv", "'name' holds text", "row 2", "'Anna'", "--drop name"]),
    "dates": ("x.csv", "a,day\n1,2024-05-01\n2,2024-05-02\n", ["x.csv", "'day' holds dates", "row 1", "--drop day"]),
    "empty cells": (
        "x.csv",
        "a,b\n1,2\n3,\n5,\n7,1\n",
        ["x.csv", "2 missing", "'b' (2)", "row 2 (line 3)", "--drop-missing"],
    ),
    "NaN": ("x.csv", "a,b\n1,2\nnan,4\n5,6\n", ["x.csv", "1 missing", "'a'", "row 2 (line 3)"]),
    "infinity": ("x.csv", "a,b\n1,2\n3,4\n5,-inf\n", ["x.csv", "1 infinite", "'b'", "row 3 (line 4)"]),
    "duplicated names": ("x.csv", "a,b,a\n1,2,3\n4,5,6\n", ["x.csv", "'a'", "more than once"]),
    "ragged": ("x.csv", "a,b\n1,2\n3\n", ["x.csv", "row 2 (line 3)", "1 cell"]),
    "all constant": ("x.csv", "a,b\n1,2\n1,2\n", ["x.csv", "every column is constant"]),
    "unknown extension": ("x.xlsx", "a,b\n1,2\n3,4\n", ["x.xlsx: unknown extension '.xlsx'", ".parquet"]),
    "not parquet": ("x.parquet", "a,b\n1,2\n3,4\n", ["x.parquet", "cannot be read as Parquet"]),
    "not npy": ("x.npy", "a,b\n1,2\n3,4\n", ["x.npy", "damaged"]),
}


@pytest.mark.parametrize(("name", "text", "gist"), TABLES.values(), ids=TABLES)
def test_tables(refused, tmp_path, name, text, gist):
    (tmp_path / name).write_text(text)
    # By a model of complete numbers; the one that a table with text or gaps has by default takes them.
    refused(["fit", tmp_path / name, "--out", tmp_path / "run", "--model", "nsf", *TINY], *gist)
    assert not (tmp_path / "run").exists()


def test_missing_file(refused, tmp_path):
    refused(["fit", tmp_path / "no.csv", "--out", tmp_path / "run"], "no.csv", "no such file")
    refused(["fit", "nonsense", "--out", tmp_path / "run"], "nonsense", "no built-in set", "moons")
    refused(["fit", tmp_path, "--out", tmp_path / "run"], "holds no pictures")


OPTIONS = {
    "unknown model": (["--model", "foo"], ["unknown model 'foo'", "maf"]),
    "unknown argument": (["--model", "maf", "--set", "bins=3"], ["'maf'", "bins"]),
    "bad value": (["--model", "maf", "--set", "activation=foo"], ["'maf'", "foo"]),
    "no value": (["--set", "bins"], ["--set NAME=VALUE", "'bins'"]),
    "hidden": (["--hidden", "8,x"], ["--hidden 128,128", "'8,x'"]),
    "no transforms": (["--transforms", "0"], ["transforms of at least 1", "0"]),
    "unknown context": (["--context", "age"], ["'age'", "'a'"]),
    "unknown drop": (["--drop", "age"], ["'age'", "'a'"]),
    "nothing left": (["--drop", "a,b,k"], ["no column is left"]),
    "context and drop": (["--context", "a", "--drop", "a"], ["'a'", "both context and dropped"]),
    "no epochs": (["--epochs", "0"], ["epochs of at least 1", "0"]),
    "no minutes": (["--minutes", "-1"], ["minutes above 0", "-1"]),
    "no batch": (["--batch-size", "0"], ["batch size of at least 1", "0"]),
    "no rate": (["--lr", "0"], ["lr above 0"]),
    "no micro-batches": (["--accumulate", "0"], ["accumulate of at least 1", "0"]),
    "negative seed": (["--seed", "-1"], ["seed of at least 0", "-1"]),
    "unknown device": (["--device", "abacus"], ["'abacus'", "use cpu"]),
    "not a number": (["--epochs", "many"], ["--epochs", "diffeo fit --help"]),
    "unknown option": (["--frob"], ["--frob", "diffeo fit --help"]),
    "nothing to resume": (["--resume"], ["run", "does not exist"]),
}


@pytest.mark.parametrize(("options", "gist"), OPTIONS.values(), ids=OPTIONS)
def test_options(refused, made, tmp_path, options, gist):
    refused(["fit", made / "data.csv", "--out", tmp_path / "run", *options], *gist)
    assert not (tmp_path / "run").exists()


def test_no_output_named(refused, made):
    refused(["fit", made / "data.csv"], "--out")
    refused(["frob"], "frob", "diffeo --help")


def test_batch_larger_than_the_data(made, tmp_path, capsys):
    argv = ["fit", str(made / "data.csv"), "--out", str(tmp_path / "run"), *TINY, "--batch-size", "1000"]
    assert main(argv) == 0
    assert "note: a batch of 1000 is larger than the 54 training rows" in capsys.readouterr().err


def test_rows_with_gaps_are_left_out_when_asked(tmp_path, capsys, made):
    path = table(tmp_path / "gaps.csv")
    path.write_text(path.read_text() + "1,,3\n,2,1\n")
    assert main(["fit", str(path), "--out", str(tmp_path / "run"), *TINY, "--drop-missing"]) == 0
    assert "note: 2 rows with missing or infinite values were left out" in capsys.readouterr().err
    assert (
        main(["score", str(made / "run"), str(path), "--out", str(tmp_path / "s.csv"), "--drop-missing", "--json"]) == 0
    )
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["dropped"]) == (60, 2)


def test_columns_at_scoring(refused, made, tmp_path, capsys):
    out = ["--out", tmp_path / "s.csv"]
    missing = table(tmp_path / "missing.csv", columns=("a", "k"))
    refused(["score", made / "run", missing, *out], "missing.csv", "lacks column 'b'", "'a', 'k'")
    np.save(tmp_path / "wide.npy", np.zeros((5, 4)))
    refused(["score", made / "run", tmp_path / "wide.npy", *out], "wide.npy", "4 columns without names", "expected 3")
    gaps = tmp_path / "gaps.csv"
    gaps.write_text("a,b,k\n1,1,1\n1,inf,1\n")
    refused(["score", made / "run", gaps, *out], "gaps.csv", "1 infinite", "'b'", "row 2 (line 3)")
    refused(["score", made / "run", made / "data.csv", *out, "--keep", "id"], "no column 'id'", "'a'")
    assert not (tmp_path / "s.csv").exists()

    scores = []
    reordered = table(tmp_path / "reordered.csv", columns=("k", "b", "a"))
    for name in (made / "data.csv", reordered):
        assert main(["score", str(made / "run"), str(name), *map(str, out), "--force"]) == 0
        scores.append((tmp_path / "s.csv").read_text())
    assert scores[0] == scores[1]
    extra = tmp_path / "extra.csv"
    extra.write_text("name,a,b,k\nAnna,1,1,1\n")
    assert main(["score", str(made / "run"), str(extra), *map(str, out), "--force"]) == 0
    assert "ignored  name" in capsys.readouterr().out


def test_number_of_samples(refused, made, tmp_path):
    out = ["--out", tmp_path / "x.csv"]
    for number in ("0", "-3"):
        refused(["sample", made / "run", "-n", number, *out], "at least 1 (-n)", number)
    refused(["sample", made / "run", *out], "how many rows", "-n")
    assert not (tmp_path / "x.csv").exists()


def test_context_of_samples(refused, made, tmp_path):
    out = ["-n", "2", "--out", tmp_path / "x.csv"]
    refused(["sample", made / "given", *out], "conditional on 'k'", "--given k=VALUE")
    refused(["sample", made / "given", *out, "--given", "a=1"], "'a' is no context column", "'k'")
    refused(["sample", made / "given", *out, "--given", "k=high"], "number for context column 'k'", "'high'")
    refused(["sample", made / "given", *out, "--given", "k=nan"], "finite", "'k'")
    refused(["sample", made / "given", *out, "--given", "k"], "--given COLUMN=VALUE", "'k'")
    refused(["sample", made / "run", *out, "--given", "k=1"], "takes no context")
    refused(["sample", made / "run", *out, "--given-file", made / "data.csv"], "takes no context")
    refused(["sample", made / "given", *out, "--given", "k=1", "--given-file", made / "data.csv"], "given twice")
    lacking = table(tmp_path / "lacking.csv", columns=("a", "b"))
    refused(["sample", made / "given", *out, "--given-file", lacking], "lacking.csv", "lacks column 'k'")
    refused(["score", made / "given", lacking, "--out", tmp_path / "s.csv"], "lacks column 'k'")


def test_shapes_in_python(made):
    flow, conditional = (diffeo.load(made / name) for name in ("run", "given"))
    with pytest.raises(ValueError, match=r"expected x of shape \(\*batch, 3\), got \(5, 4\)"):
        flow.log_prob(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="expected no context, got one"):
        flow.log_prob(torch.zeros(5, 3), torch.zeros(5, 1))
    with pytest.raises(ValueError, match="expected a context"):
        conditional.log_prob(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"expected a context of shape \(\*batch, 1\), got \(5, 2\)"):
        conditional.log_prob(torch.zeros(5, 2), torch.zeros(5, 2))


def test_output_exists(refused, made, tmp_path):
    there = tmp_path / "there.csv"
    there.write_text("precious")
    refused(["score", made / "run", made / "data.csv", "--out", there], "there.csv", "exists", "--force")
    refused(["sample", made / "run", "-n", "2", "--out", there], "there.csv", "exists", "--force")
    assert there.read_text() == "precious"
    before = (made / "run" / "model.safetensors").read_bytes()
    refused(["fit", made / "data.csv", "--out", made / "run", *TINY], "holds a run", "--resume", "--force")
    assert (made / "run" / "model.safetensors").read_bytes() == before
    assert main(["sample", str(made / "run"), "-n", "2", "--out", str(there), "--force"]) == 0
    assert there.read_text().startswith("a,b,k\n")


def test_folder_with_something_else(refused, made, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    refused(["fit", made / "data.csv", "--out", tmp_path, *TINY, "--force"], "not empty and not a run directory")
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_unwritable(refused, made, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    refused(["fit", made / "data.csv", "--out", file / "run", *TINY], "cannot write", "file")
    refused(["fit", made / "data.csv", "--out", file, *TINY], "cannot write", "file")
    refused(["score", made / "run", made / "data.csv", "--out", file / "s.csv"], "cannot write", "s.csv")
    refused(["sample", made / "run", "-n", "2", "--out", tmp_path / "no" / "x.csv"], "cannot write", "x.csv", "create")
    refused(["sample", made / "run", "-n", "2", "--out", tmp_path / "x.doc"], "unknown extension '.doc'")
    refused(["sample", made / "run", "-n", "2", "--json"], "--out FILE")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_permission(refused, made, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    refused(["fit", made / "data.csv", "--out", tmp_path / "closed" / "run", *TINY], "closed", "permission denied")
    refused(["sample", made / "run", "-n", "2", "--out", tmp_path / "closed" / "x.csv"], "x.csv", "permission denied")


def test_full_disk(refused, made, tmp_path, monkeypatch):
    if os.path.exists("/dev/full"):
        refused(["sample", made / "run", "-n", "2", "--out", "/dev/full"], "/dev/full", "disk is full")

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("diffeo.atomic._sync", full)
    refused(["fit", made / "data.csv", "--out", tmp_path / "run", *TINY], "cannot write", "disk is full")
    refused(["sample", made / "run", "-n", "2", "--out", tmp_path / "x.csv"], "x.csv", "disk is full")
    assert not list(tmp_path.glob("**/*.tmp"))
    assert not (tmp_path / "x.csv").exists()


def broken_run(made, tmp_path, change):
    """Copy the run and damage it."""
    run = tmp_path / "broken"
    shutil.copytree(made / "run", run)
    change(run)
    return run


def rewrite(**changes):
    def change(run):
        model = json.loads((run / "model.json").read_text())
        for key, value in changes.items():
            *path, last = key.split("__")
            place = model
            for name in path:
                place = place[name]
            place[last] = value
        (run / "model.json").write_text(json.dumps(model))

    return change


def flip(run):
    data = bytearray((run / "model.safetensors").read_bytes())
    data[-20] ^= 1
    (run / "model.safetensors").write_bytes(data)


def truncate(run):
    data = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(data[: len(data) // 2])


RUNS = {
    "no description": (lambda run: (run / "model.json").unlink(), ["broken", "not a run directory", "model.json"]),
    "no weights": (lambda run: (run / "model.safetensors").unlink(), ["broken", "no weights yet", "--resume"]),
    "flipped bit": (flip, ["model.safetensors", "corrupted"]),
    "truncated": (truncate, ["model.safetensors", "cut short"]),
    "half JSON": (lambda run: (run / "model.json").write_text('{"format": 1, "rec'), ["model.json", "damaged"]),
    "unknown recipe": (rewrite(recipe__name="magic"), ["model.json", "'magic'"]),
    "unknown argument": (rewrite(recipe__arguments__spell=3), ["model.json", "spell"]),
    "other shape": (rewrite(recipe__arguments__hidden=[9]), ["model.safetensors", "does not belong"]),
    "newer format": (rewrite(format=99), ["format 99", "upgrade"]),
    "no schema": (rewrite(schema=None), ["describes no data"]),
    "damaged schema": (rewrite(schema__columns=[]), ["model.json is damaged", "columns"]),
    "other schema": (rewrite(schema__context=["a"]), ["does not fit its columns"]),
}


@pytest.mark.parametrize("command", ["score", "sample", "info", "check"])
def test_no_run(refused, made, tmp_path, command):
    more = {"score": [made / "data.csv"], "check": [made / "data.csv"], "sample": ["-n", "2"], "info": []}[command]
    refused([command, tmp_path / "nowhere", *more], "nowhere does not exist")
    refused([command, made / "data.csv", *more], "data.csv is a file")
    refused([command, tmp_path, *more], "is not a run directory")


@pytest.mark.parametrize(("change", "gist"), RUNS.values(), ids=RUNS)
def test_damaged_runs(refused, made, tmp_path, change, gist):
    refused(["sample", broken_run(made, tmp_path, change), "-n", "2", "--out", tmp_path / "x.csv"], *gist)
    assert not (tmp_path / "x.csv").exists()


def test_resume_with_other_data(refused, made, tmp_path):
    run = broken_run(made, tmp_path, lambda run: None)
    other = table(tmp_path / "other.csv", seed=1)
    refused(["fit", other, "--out", run, "--resume"], "broken", "other data")
    refused(["fit", made / "data.csv", "--out", run, "--resume", "--lr", "0.5"], "lr was 0.01, now 0.5")


def test_check_needs_rows(refused, made, tmp_path):
    refused(["check", made / "run", table(tmp_path / "few.csv", rows=10)], "few.csv", "10 usable rows", "at least 20")
    refused(["check", made / "run", made / "data.csv", "--rows", "3"], "at least 20 rows", "3")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A folder with a run of a table of text, dates, whole numbers and others."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = [f"{'abc'[i % 3]},2024-01-{i % 28 + 1:02},{i % 9},{i / 7:.3f}" for i in range(60)]
    (folder / "data.csv").write_text("\n".join(["t,d,k,x", *rows]))
    options = ["--epochs", "1", "--folds", "1", "--set", "hidden=8", "--no-figures"]
    assert main(["fit", str(folder / "data.csv"), "--out", str(folder / "run"), *options]) == 0
    return folder


CELLS = {
    "no date": ("a,soon,3,1", ["row 2 (line 3), column 'd': 'soon' is no date", "'2024-01-01'"], "score impute sample"),
    "text": (
        "a,2024-01-01,red,1",
        ["'k' holds text (row 2 (line 3): 'red')", "leave out such rows"],
        "impute sample",
    ),
    "text in a column that can be dropped": (
        "a,2024-01-01,red,1",
        ["'k' holds text (row 2 (line 3): 'red')", "use --drop k"],
        "score",
    ),
    "infinity": ("a,2024-01-01,3,-inf", ["row 2 (line 3), column 'x'", "-inf"], "impute sample"),
    "a huge number": ("a,2024-01-01,3,1e300", ["row 2 (line 3), column 'x'", "1e+300"], "impute sample"),
    "a category never seen": ("z,2024-01-01,3,1", ["row 2 (line 3), column 't'", "'z'", "'a', 'b', 'c'"], "sample"),
    "a cell too many": ("a,2024-01-01,3,1,5", ["row 2 (line 3) has 5 cells"], "score impute sample"),
}


@pytest.mark.parametrize(("row", "gist", "commands"), CELLS.values(), ids=CELLS)
def test_cells_of_new_tables(refused, mixed, tmp_path, row, gist, commands):
    data, out = tmp_path / "new.csv", tmp_path / "out.csv"
    data.write_text(f"t,d,k,x\na,2024-01-02,3,1\n{row}\n")
    for command in commands.split():
        table = ["--given-file", data] if command == "sample" else [data]
        refused([command, mixed / "run", *table, "--out", out], "new.csv: ", *gist)
    assert not out.exists()


@pytest.mark.parametrize("cell", ["inf", "1e300", "-1e300"])
def test_what_no_float_holds_is_impossible(mixed, tmp_path, cell):
    data, out = tmp_path / "new.csv", tmp_path / "out.csv"
    data.write_text(f"t,d,k,x\na,2024-01-02,3,{cell}\na,2024-01-02,3,1\n")
    assert main(["score", str(mixed / "run"), str(data), "--out", str(out)]) == 0
    scores = [float(line.split(",")[-1]) for line in out.read_text().splitlines()[1:]]
    assert np.isfinite(scores).tolist() == [False, True]
