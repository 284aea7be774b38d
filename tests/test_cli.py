"""The command line from end to end, as a user types it."""

import inspect
import io
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

import diffeo
from diffeo import commands
from diffeo.cli import main
from diffeo.cli.app import COMMANDS as CLI_COMMANDS
from diffeo.cli.parse import LIMITS, MODEL, arguments_of
from diffeo.data import infer_schema, open_table
from diffeo.errors import UserError
from diffeo.modalities.tables.defaults import preprocessing

TINY = ["--folds", "1", "--hidden", "16", "--transforms", "2", "--no-figures"]
COMMANDS = ["fit", "score", "anomalies", "sample", "distill", "info", "check"]


def mixed(rows=600, seed=0):
    """Whole numbers, a constant, a heavy tail, a bounded column, irregular levels, truth values, an identifier."""
    generator = np.random.default_rng(seed)
    age = generator.integers(18, 90, rows)
    return pd.DataFrame(
        {
            "id": np.arange(rows),
            "age": age,
            "income": np.exp(generator.normal(10, 1, rows) + 0.01 * age),
            "share": generator.beta(0.5, 0.8, rows),
            "dose": generator.choice([0.1, 0.5, 2.5, 10.0], rows),
            "jump": 10 * generator.standard_t(1.5, rows),
            "smokes": generator.random(rows) < 1 / (1 + np.exp((50 - age) / 10)),
            "unit": np.full(rows, 7),
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a mixed table and two runs of it, one of them conditional on age and dose."""
    folder = tmp_path_factory.mktemp("made")
    data = str(folder / "mixed.csv")
    mixed().to_csv(data, index=False)
    argv = ["fit", data, "--drop", "id", "--epochs", "3", *TINY]
    assert main([*argv, "--out", str(folder / "run")]) == 0
    assert main([*argv, "--out", str(folder / "given"), "--context", "age,dose"]) == 0
    return folder


def run(capsys, *argv):
    """Run a command that must succeed, and return what it says on stdout and on stderr."""
    capsys.readouterr()
    code = main([str(word) for word in argv])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out, captured.err


@pytest.mark.parametrize("argv", [["--help"], *([command, "--help"] for command in COMMANDS), ["--version"], []])
def test_help_is_light(argv):
    """Help answers without the libraries that take a second to import (0.1 to 0.2 s, then; no test is timed)."""
    code = (
        f"import sys; from diffeo.cli import main; code = main({argv!r}); "
        "heavy = {'torch', 'numpy', 'pyarrow', 'matplotlib', 'sklearn', 'scipy'} & set(sys.modules); "
        "print(code, sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["0", "[]"]
    assert "Usage: diffeo" in done.stdout or "diffeo 0." in done.stdout


def test_module_and_help_agree():
    done = subprocess.run([sys.executable, "-m", "diffeo", "--help"], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in COMMANDS)


def test_every_command_has_the_common_options(capsys):
    for command in COMMANDS:
        out, _ = run(capsys, command, "--help")
        assert all(option in out for option in ("--json", "--seed", "--device", "--help"))


def test_every_option_is_a_parameter_of_the_function():
    """A command's options go by name; the model's two arguments with options of their own are in ``arguments``."""
    for command in CLI_COMMANDS:
        known = set(inspect.signature(getattr(commands, command.__name__)).parameters)
        if "arguments" in known:
            known |= set(MODEL)
        limited = {f"max_{name}" for name in LIMITS}  # for all that a command reads
        unused = {"as_json", *limited, *(("machine", "seed", "device") if command.__name__ == "info" else ())}
        assert set(inspect.signature(command).parameters) - unused <= known, command.__name__


def test_repeated_assignments_are_taken_in_order():
    words = ["a=1", "b=x=y", "a=2", "a=1"]
    assert arguments_of({"arguments": words, "transforms": 3}) == {"arguments": {"transforms": 3, "a": 1, "b": "x=y"}}
    assert arguments_of({"given": ["a=b=41"], "missing": True}) == {"given": {"a=b": "41"}, "missing": "drop"}


def test_fit_writes_a_run(made):
    facts = commands.info(made / "run")
    assert [column["kind"] for column in facts["columns"]] == [
        "integer", "continuous", "continuous", "levels", "continuous", "integer", "constant",
    ]  # fmt: skip
    metrics = facts["metrics"]
    assert metrics["rows"] == {"train": 540, "validation": 60}
    assert metrics["validation"]["bits"] == pytest.approx(metrics["validation"]["nll"] / np.log(2))
    assert 0 < metrics["validation"]["stderr"] < 5
    assert metrics["skipped_batches"] == 0
    assert (made / "run" / "train" / "metrics.jsonl").exists()
    assert not (made / "run" / "figures").exists()
    json.dumps(facts, allow_nan=False)


def test_score(made, tmp_path, capsys):
    out, _ = run(capsys, "score", made / "run", made / "mixed.csv", "--out", tmp_path / "s.parquet", "--keep", "id")
    assert "600 rows" in out
    scores = pd.read_parquet(tmp_path / "s.parquet")
    assert list(scores) == ["row", "id", "log_likelihood"]
    assert scores["row"].dtype == "int64"
    assert (scores["row"] == np.arange(1, 601)).all()
    assert (scores["id"] == np.arange(600)).all()
    assert np.isfinite(scores["log_likelihood"]).all()

    def again(*options):
        text, _ = run(capsys, "score", made / "run", made / "mixed.csv", *options)
        return pd.read_csv(io.StringIO(text))["log_likelihood"].to_numpy()

    assert (again() == scores["log_likelihood"]).all()
    assert (again("--seed", "1") == scores["log_likelihood"]).all()  # of whole numbers, too


@pytest.mark.parametrize("kind", ["csv", "parquet", "frame"])
def test_scores_carry_the_number_of_their_row(made, tmp_path, kind):
    """Rows that are left out are counted, too, as in messages; batches do not show."""
    data = pd.concat([mixed()] * 120, ignore_index=True)  # 72,000 rows: more than a batch
    gaps = np.random.default_rng(0).random(len(data)) < 0.4
    data.loc[gaps, "jump"] = np.nan
    source = data if kind == "frame" else tmp_path / f"x.{kind}"
    if kind != "frame":
        getattr(data, f"to_{kind}")(source, index=False)
    summary = commands.score(made / "run", source, tmp_path / "s.feather", keep=["id"], missing="drop")
    scores = pd.read_feather(tmp_path / "s.feather")
    assert (summary["rows"], summary["dropped"]) == ((~gaps).sum(), gaps.sum())
    np.testing.assert_array_equal(scores["row"], np.flatnonzero(~gaps) + 1)
    np.testing.assert_array_equal(scores["id"], data["id"][~gaps])
    with pytest.raises(UserError, match=f"the first in row {gaps.argmax() + 1}[ ,]"):
        commands.score(made / "run", source, tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["row", "log_likelihood"])
def test_a_column_with_the_name_of_a_result_cannot_be_kept(made, tmp_path, name):
    with pytest.raises(UserError, match=f"column '{name}' cannot be kept, the result has that name; rename it"):
        commands.score(made / "run", mixed(20).rename(columns={"id": name}), tmp_path / "s.csv", keep=[name])
    assert not (tmp_path / "s.csv").exists()


def test_likelihoods_are_in_the_units_of_the_table(tmp_path):
    """A column in other units shifts every log-likelihood by the logarithm of the factor.

    Of 1024, which rounds nothing: the gradients of standardised columns begin at zero, and Adam steps along whatever
    rounding makes of them.
    """
    x = np.random.default_rng(0).normal(size=(400, 2))
    nll = []
    for name, factor in (("a", 1.0), ("b", 1024.0)):
        summary = commands.fit(
            x * [factor, 1], tmp_path / name, epochs=5, folds=1, arguments={"hidden": [8]}, figures=False
        )
        nll.append(summary["validation"]["nll"])
    assert nll[1] - nll[0] == pytest.approx(np.log(1024), abs=1e-5)


def test_rows_off_a_grid_are_counted_and_finite(made, tmp_path, capsys):
    data = mixed(20, seed=1)
    data["dose"] = data["dose"].to_numpy().copy()
    data["age"] = data["age"].astype(float)
    data.loc[3, "dose"] = 3.3
    data.loc[5, "age"] = 33.5
    data.loc[8, "unit"] = 8
    data.to_csv(tmp_path / "new.csv", index=False)
    out, _ = run(capsys, "score", made / "run", tmp_path / "new.csv", "--out", tmp_path / "s.csv", "--json")
    summary = json.loads(out)
    assert (summary["impossible"], summary["off_grid"]) == (0, 3)
    assert summary["off_grid_by_column"] == {"dose": 1, "age": 1, "unit": 1}
    odd = pd.read_csv(tmp_path / "s.csv")["log_likelihood"].to_numpy()
    nearest = data.assign(dose=data["dose"].replace(3.3, 2.5), age=data["age"].replace(33.5, 34), unit=7)
    commands.score(made / "run", nearest, tmp_path / "n.csv")
    lower = odd - pd.read_csv(tmp_path / "n.csv")["log_likelihood"].to_numpy()
    assert list(np.flatnonzero(lower)) == [3, 5, 8]
    # four columns have grids, of each one row in 602 shared by them is off: log p - log(1 - p)
    np.testing.assert_allclose(lower[[3, 5, 8]], -math.log(602 * 4 - 1), atol=1e-5)


def test_sample_looks_like_the_table(made, tmp_path, capsys):
    run(capsys, "sample", made / "run", "-n", "500", "--out", tmp_path / "x.parquet")
    real, fake = mixed().drop(columns="id"), pd.read_parquet(tmp_path / "x.parquet")
    assert list(fake) == list(real)
    assert (fake.dtypes == real.dtypes).all()
    assert len(fake) == 500
    assert ((fake >= real.min()) & (fake <= real.max())).all().all()
    assert set(fake["dose"]) <= set(real["dose"])
    assert (fake["unit"] == 7).all()
    assert np.isfinite(fake.to_numpy(dtype=float)).all()
    text, _ = run(capsys, "sample", made / "run", "-n", "500")
    again = pd.read_csv(io.StringIO(text))
    assert np.allclose(again.to_numpy(dtype=float), fake.to_numpy(dtype=float), rtol=1e-12)
    other, _ = run(capsys, "sample", made / "run", "-n", "500", "--seed", "1")
    assert other != text


def test_samples_in_chunks(made, tmp_path, monkeypatch):
    monkeypatch.setattr("diffeo.modalities.tables.run.CHUNK", 64)
    summary = commands.sample(made / "run", 200, tmp_path / "x.csv")
    assert summary["rows"] == len(pd.read_csv(tmp_path / "x.csv")) == 200
    assert summary["non_finite"] == 0
    contexts = pd.DataFrame({"dose": [0.5, 2.5, 10.0], "age": [30, 40, 50]})
    commands.sample(made / "given", 100, tmp_path / "y.csv", given_from=contexts)
    fake = pd.read_csv(tmp_path / "y.csv")
    assert (fake["age"] == np.repeat([30, 40, 50], 100)).all()
    commands.sample(made / "given", 3, tmp_path / "z.csv", given_from=contexts)
    assert (pd.read_csv(tmp_path / "z.csv")["dose"] == np.repeat([0.5, 2.5, 10.0], 3)).all()


def test_context(made, tmp_path, capsys):
    text, _ = run(capsys, "sample", made / "given", "-n", "50", "--given", "age=30", "--given", "dose=0.5")
    fake = pd.read_csv(io.StringIO(text))
    assert list(fake) == list(mixed().drop(columns="id"))
    assert (fake["age"] == 30).all()
    assert (fake["dose"] == 0.5).all()
    pd.DataFrame({"dose": [0.5, 2.5], "age": [30, 60]}).to_csv(tmp_path / "contexts.csv", index=False)
    text, _ = run(capsys, "sample", made / "given", "--given-file", tmp_path / "contexts.csv")
    assert list(pd.read_csv(io.StringIO(text))["age"]) == [30, 60]
    summary = commands.score(made / "given", mixed(), tmp_path / "s.csv")
    assert summary["rows"] == 600
    assert summary["impossible"] == 0


def test_check(made, capsys):
    out, _ = run(capsys, "check", made / "run", made / "mixed.csv")
    assert "the rows of training" in out  # only 60 were held out, too few to judge by
    assert "verdict: " in out
    argv = ["check", made / "given", made / "mixed.csv", "--rows", "100"]
    report = json.loads(run(capsys, *argv, "--json")[0])
    assert report["rows"] == 100
    out, _ = run(capsys, *argv)
    assert f"verdict: {report['verdict']}" in out  # the same seed says the same
    assert all(reason.partition(":")[0].split()[0] in out for reason in report["reasons"])
    assert report["round_trip"]["rows"]["max"] < 1e-4
    assert report["log_det"]["max"] < 1e-8


def test_check_uses_held_out_rows(tmp_path):
    x = np.random.default_rng(0).normal(size=(1500, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]])
    commands.fit(x, tmp_path / "run", epochs=10, folds=1, arguments={"hidden": [16], "transforms": 1}, figures=False)
    report = commands.check(tmp_path / "run", x)
    assert (report["which"], report["rows"]) == ("rows held out of training", 150)
    assert report["verdict"] != "not trustworthy", report["reasons"]
    report = commands.check(tmp_path / "run", x[::-2])  # rows that it knows, whatever comes with them
    assert (report["which"], report["rows"], report["in_sample"]) == ("the rows of training", 750, True)


def test_info_and_fit_speak_json(made, tmp_path, capsys):
    out, _ = run(capsys, "info", made / "run", "--json")
    assert json.loads(out)["model"] == "nsf"
    out, err = run(capsys, "fit", "wine", "--out", tmp_path / "run", "--epochs", "2", *TINY, "--json")
    summary = json.loads(out)
    assert summary["stopped"] == "budget"
    assert summary["epochs"] == 2
    assert "note: " in err
    out, _ = run(capsys, "info", made / "given")
    assert "age (context)" in out


def test_only_stretched_columns_are_made_normal_first():
    """Tails like Cauchy's call for it; not an outlier, a skewed column, or one of mostly zeros."""
    g = np.random.default_rng(0)
    n = 4000
    outlier = np.where(np.arange(n) == 7, 60.0, g.normal(size=n))
    zeros = np.where(g.random(n) < 0.93, 0, g.normal(size=n))
    ordinary = [g.normal(size=n), np.exp(g.normal(size=n)), zeros, outlier]
    for tail, expected in (
        (g.standard_t(3, n), ["standardize"]),
        (g.standard_cauchy(n), ["standardize", "gaussianize"]),
        (np.exp(3 * g.normal(size=n)), ["standardize", "gaussianize"]),
    ):
        x = np.stack([*ordinary, tail], 1)
        assert preprocessing(infer_schema(open_table(x)), torch.from_numpy(x)) == expected


def test_model_and_its_arguments(made, tmp_path, capsys):
    argv = ["fit", made / "mixed.csv", "--out", tmp_path / "run", "--drop", "id", "--epochs", "1", *TINY]
    run(capsys, *argv, "--model", "maf", "--set", "activation=silu", "--set", "residual=true")
    arguments = commands.info(tmp_path / "run")["arguments"]
    assert (arguments["activation"], arguments["residual"], arguments["hidden"]) == ("silu", True, [16])
    run(capsys, *argv, "--model", "realnvp", "--force")
    assert commands.info(tmp_path / "run")["model"] == "realnvp"


def test_same_seed_same_weights(made, tmp_path):
    """Through Python or the command line, and whatever the process has drawn before."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(name))
        arguments = {"hidden": [16], "transforms": 2}
        frame = mixed().drop(columns="id")
        commands.fit(frame, tmp_path / name, epochs=3, folds=1, seed=seed, arguments=arguments, figures=False)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] == (made / "run" / "model.safetensors").read_bytes()
    assert weights[0] != weights[2]


def test_python_and_command_line_share_runs(made, tmp_path):
    flow = diffeo.load(made / "run")
    assert flow.sample(3).shape == (3, 6)
    summary = commands.score(made / "run", mixed(), tmp_path / "s.csv")
    assert summary["mean"] == pytest.approx(-commands.info(made / "run")["metrics"]["train"]["nll"], abs=1.0)


def test_figures_of_a_fit(tmp_path):
    arguments = {"hidden": [8], "transforms": 1}
    summary = commands.fit("moons", tmp_path / "run", epochs=1, folds=1, batch_size=4096, arguments=arguments)
    names = sorted(path.name for path in (tmp_path / "run" / "figures").iterdir())
    assert names == ["density.png", "latents.png", "learning_curve.png", "pairs.png"]
    assert sorted(summary["figures"]) == [str(tmp_path / "run" / "figures" / name) for name in names]


def test_large_tables_stream(tmp_path, monkeypatch):
    """A table beyond the limit is trained on from the file, with the same kind of result."""
    monkeypatch.setattr("diffeo.modalities.tables.rows.LARGE", 1000)
    monkeypatch.setattr("diffeo.modalities.tables.stream.POOL", 200)
    mixed(1000).drop(columns="id").to_parquet(tmp_path / "x.parquet")
    options = {"epochs": 2, "batch_size": 64, "accumulate": 2, "arguments": {"hidden": [8], "transforms": 1}}
    summary = commands.fit(tmp_path / "x.parquet", tmp_path / "run", **options)
    assert 800 < summary["rows"]["train"] < 950
    assert summary["rows"]["train"] + summary["rows"]["validation"] == 1000
    assert summary["steps"] == 2 * (summary["rows"]["train"] // 64)
    assert commands.score(tmp_path / "run", tmp_path / "x.parquet", tmp_path / "s.csv")["rows"] == 1000
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    commands.fit(tmp_path / "x.parquet", tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_results_and_progress_do_not_mix(made):
    argv = [sys.executable, "-m", "diffeo", "score", str(made / "run"), str(made / "mixed.csv")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 601
    assert done.stdout.startswith("row,log_likelihood\n1,")
    assert "600 rows" in done.stderr


def test_a_reader_that_has_seen_enough(made):
    argv = [sys.executable, "-m", "diffeo", "sample", str(made / "run"), "-n", "100000"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 1


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for child processes")
def test_interrupt_keeps_the_best_and_resumes(tmp_path, capsys):
    out = tmp_path / "run"
    argv = ["fit", "moons", "--out", str(out), "--epochs", "2000", "--batch-size", "20000", *TINY]
    process = subprocess.Popen([sys.executable, "-m", "diffeo", *argv], stderr=subprocess.PIPE, text=True)
    metrics = out / "train" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    last = err.strip().splitlines()[-1]
    assert last == (
        f"diffeo: interrupted; the best so far is in {out}; go on with: diffeo fit moons --out {out} --resume"
    )
    assert "Traceback" not in err
    done = commands.info(out)["metrics"]
    assert done["stopped"] == "interrupted"
    run(capsys, "sample", out, "-n", "5", "--out", tmp_path / "x.csv")


def test_a_finished_run_can_be_trained_longer(tmp_path, capsys):
    np.savetxt(tmp_path / "x.csv", np.random.default_rng(0).normal(size=(300, 2)), delimiter=",")
    argv = ["fit", tmp_path / "x.csv", "--out", tmp_path / "run", "--no-figures", "--hidden", "8", "--folds", "1"]
    run(capsys, *argv, "--epochs", "1")
    run(capsys, *argv[:4], "--no-figures", "--resume", "--epochs", "3")
    assert commands.info(tmp_path / "run")["metrics"]["epochs"] == 3
    run(capsys, *argv[:4], "--no-figures", "--resume")  # it remembers
    assert commands.info(tmp_path / "run")["metrics"]["epochs"] == 3
    assert main([*map(str, argv[:4]), "--resume", "--epochs", "2"]) == 2
    assert "epochs was 3, now 2" in capsys.readouterr().err


def test_resume_ends_where_the_undisturbed_run_does(tmp_path, monkeypatch, capsys):
    """Interrupted in the middle, resumed without repeating a single option."""
    np.savetxt(tmp_path / "x.csv", np.random.default_rng(0).normal(size=(300, 2)), delimiter=",")
    options = ["--epochs", "60", "--lr", "0.003", "--seed", "5", "--hidden", "8", "--transforms", "1", "--no-figures"]
    options += ["--folds", "1"]
    run(capsys, "fit", tmp_path / "x.csv", "--out", tmp_path / "whole", *options)
    calls = []

    def interrupting(*args):
        calls.append(args)
        if len(calls) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*args)

    evaluate = sys.modules["diffeo.training.fit"].evaluate
    monkeypatch.setattr(sys.modules["diffeo.training.fit"], "evaluate", interrupting)
    assert main(["fit", str(tmp_path / "x.csv"), "--out", str(tmp_path / "parts"), *options]) == 130
    assert commands.info(tmp_path / "parts")["metrics"]["epochs"] < 60
    run(capsys, "fit", tmp_path / "x.csv", "--out", tmp_path / "parts", "--resume", "--no-figures")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_scoring_tells_how_far_it_is(made, tmp_path):
    seen = []
    table = mixed(70_000)
    commands.score(made / "run", table, tmp_path / "s.csv", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 70_000), (65536, 70_000), (70_000, 70_000)]
