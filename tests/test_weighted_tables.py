"""A column of weights on the command line: it counts rows and is no part of the model."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from diffeo import commands
from diffeo.cli import main
from diffeo.data import infer_schema, open_table
from diffeo.errors import UserError
from diffeo.modalities.tables import rows
from diffeo.modalities.tables.schema import Schema
from diffeo.training.splitting import split_rows

TINY = ["--folds", "1", "--hidden", "16", "--transforms", "2", "--no-figures", "--epochs", "3"]


def frame(count=400, seed=0):
    generator = np.random.default_rng(seed)
    a = generator.normal(size=count)
    w = np.exp(a) * (generator.random(count) < 0.8)
    return pd.DataFrame({"a": a, "w": w.round(3), "b": a + generator.normal(size=count)})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a table, with and without its weights, and a run."""
    folder = tmp_path_factory.mktemp("weighted")
    frame().to_csv(folder / "x.csv", index=False)
    frame().drop(columns="w").to_csv(folder / "plain.csv", index=False)
    assert main(["fit", str(folder / "x.csv"), "--weights", "w", "--out", str(folder / "run"), *TINY]) == 0
    return folder


def scores(made, name, tmp_path):
    commands.score(made / "run", made / name, tmp_path / name)
    return pd.read_csv(tmp_path / name)["log_likelihood"].to_numpy()


def test_weights_are_not_modelled(made, tmp_path):
    """A table may have them or not: scores, samples and checks are the same."""
    facts = commands.info(made / "run")
    assert [column["name"] for column in facts["columns"]] == ["a", "b"]
    assert facts["weighted_by"] == facts["metrics"]["weighted_by"] == "w"
    assert (scores(made, "x.csv", tmp_path) == scores(made, "plain.csv", tmp_path)).all()
    commands.sample(made / "run", 5, tmp_path / "s.csv")
    assert list(pd.read_csv(tmp_path / "s.csv")) == ["a", "b"]
    one, other = (commands.check(made / "run", made / name, rows=100) for name in ("x.csv", "plain.csv"))
    assert one["likelihood"] == other["likelihood"]
    assert "rows were weighted by 'w' in training, and here they count alike" in one["reasons"][-1]


def test_arrays_without_names_may_have_the_weights_or_not(made, tmp_path):
    x = frame().to_numpy()
    commands.fit(x, tmp_path / "run", weights="c1", folds=1, epochs=1, figures=False, arguments={"hidden": [8]})
    one, other = (tmp_path / name for name in ("one.csv", "other.csv"))
    commands.score(tmp_path / "run", x, one)
    commands.score(tmp_path / "run", x[:, [0, 2]], other)
    assert one.read_text() == other.read_text()


def test_reported_likelihoods_are_weighted(made, tmp_path):
    """Means over the rows of each part; what the command says names the column."""
    metrics = commands.info(made / "run")["metrics"]
    each, w = scores(made, "x.csv", tmp_path), frame()["w"].to_numpy()
    parts = split_rows(len(each), 0)
    for name, chosen in (("train", parts.train), ("validation", parts.valid)):
        expected = -np.average(each[chosen], weights=w[chosen])
        assert metrics[name]["nll"] == pytest.approx(expected, rel=1e-5)
        assert metrics[name]["nll"] != pytest.approx(-each[chosen].mean(), rel=1e-2)
        assert metrics[name]["rows"] == int((w[chosen] > 0).sum())
    history = [json.loads(line) for line in (made / "run" / "train" / "metrics.jsonl").read_text().splitlines()]
    assert min(entry["val_loss"] for entry in history) == pytest.approx(metrics["validation"]["nll"], rel=1e-5)


def test_what_is_printed_says_so(made, capsys):
    assert main(["info", str(made / "run")]) == 0
    out = capsys.readouterr().out
    assert out.count("weighted by 'w'") == 2
    assert "weights     column 'w', which is not modelled" in out
    assert main(["fit", str(made / "x.csv"), "--out", str(made / "run"), "--resume", "--epochs", "4"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("weighted by 'w'") == 2
    left_out = int((frame()["w"].to_numpy()[split_rows(400, 0).train] == 0).sum())
    assert "rows are weighted by 'w', which is not modelled: 360 training rows are worth " in captured.err
    assert f"; {left_out} of them have weight 0 and are left out" in captured.err


def test_weights_are_a_setting(made, capsys):
    """A run is resumed with them, and not with others."""
    assert main(["fit", str(made / "x.csv"), "--out", str(made / "run"), "--resume", "--weights", "a"]) == 2
    assert "column 'a': the weight is -" in capsys.readouterr().err
    changed = made / "changed.csv"
    frame().assign(w=frame()["w"] + 1).to_csv(changed, index=False)
    assert main(["fit", str(changed), "--out", str(made / "run"), "--resume"]) == 2
    assert "belongs to another training (data was" in capsys.readouterr().err


def test_schemas_remember_the_column():
    schema = infer_schema(open_table(frame()), weights="w")
    assert schema.names == ("a", "b")
    assert Schema.from_json(schema.to_json()) == schema
    assert "weights" not in infer_schema(open_table(frame())).to_json()
    for damaged in ({"weights": 3}, {"weights": "a"}):
        with pytest.raises(UserError, match=r"schema: expected .*weights"):
            Schema.from_json({**schema.to_json(), **damaged})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-0.5, "row 3 (line 4), column 'w': the weight is -0.5, expected a finite number of at least 0; correct it or "
         "leave such rows out"),
        ("", "row 3 (line 4), column 'w': the weight is missing, expected a finite number of at least 0; correct it or "
         "leave such rows out with --drop-missing"),
        ("inf", "row 3 (line 4), column 'w': the weight is inf, expected a finite number of at least 0; correct it or "
         "leave such rows out with --drop-missing"),
        ("heavy", "column 'w' holds text (row 3 (line 4): 'heavy'); encode it as numbers or leave out such rows"),
        (0, "column 'w': every weight is 0; give some rows a larger one"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("model", [None, "mixed", "maf"])
def test_bad_weights_are_named(value, message, model, tmp_path, capsys):
    table = frame().astype({"w": object})
    table.loc[slice(None) if value == 0 else 2, "w"] = value
    table.to_csv(tmp_path / "x.csv", index=False)
    chosen = [] if model is None else ["--model", model]
    assert main(["fit", str(tmp_path / "x.csv"), "--weights", "w", "--out", str(tmp_path / "run"), *chosen]) == 2
    assert capsys.readouterr().err == f"diffeo: {tmp_path}/x.csv: {message}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "q"], "lacks column 'q'; it has 'a', 'w', 'b': check the names"),
        (["--weights", "w", "--drop", "w"], "column 'w' holds the weights and is said to be dropped; choose one"),
        (["--weights", "w", "--context", "w"], "column 'w' holds the weights and is said to be context; choose one"),
        (["--weights", "w", "--integer", "w"], "column 'w' holds the weights and is said to be integer; choose one"),
    ],
)
def test_a_column_has_one_role(options, message, made, capsys):
    assert main(["fit", str(made / "x.csv"), "--out", str(made / "none"), *options]) == 2
    assert capsys.readouterr().err == f"diffeo: {made}/x.csv: {message}\n"


@pytest.mark.parametrize(("name", "kind"), [("x.npy", "images"), ("x.wav", "audio")])
def test_other_data_have_no_column_of_weights(name, kind, tmp_path, capsys):
    with (tmp_path / name).open("wb") as file:
        np.save(file, np.zeros((20, 8, 8)))  # before a recording is opened it is refused
    assert main(["fit", str(tmp_path / name), "--weights", "w", "--out", str(tmp_path / "run")]) == 2
    expected = f"diffeo: --weights is for tables, and these data are {kind}; leave it out\n"
    assert capsys.readouterr().err == expected


def test_rows_without_a_weight_can_be_left_out(tmp_path):
    table = frame()
    table.loc[[2, 5], "w"] = np.nan
    table.loc[7, "a"] = np.nan
    table.to_csv(tmp_path / "x.csv", index=False)
    result = commands.fit(
        tmp_path / "x.csv", tmp_path / "run", weights="w", missing="drop", folds=1, epochs=1, figures=False,
        arguments={"hidden": [8]},
    )  # fmt: skip
    assert sum(result["rows"].values()) == 397
    assert "3 rows with missing or infinite values were left out" in result["notes"]


def test_texts_dates_and_gaps_beside_weights(tmp_path):
    """A mixed density takes them, and its likelihoods are weighted."""
    table = frame().assign(k=np.where(frame()["a"] > 0, "x", "y"))
    table.loc[3, "b"] = np.nan
    table.to_parquet(tmp_path / "x.parquet")
    result = commands.fit(
        tmp_path / "x.parquet", tmp_path / "run", weights="w", folds=1, epochs=1, figures=False, arguments={"hidden": 8}
    )
    assert result["model"] == "mixed"
    assert result["weighted_by"] == "w"
    commands.impute(tmp_path / "run", tmp_path / "x.parquet", tmp_path / "full.parquet")
    full = pd.read_parquet(tmp_path / "full.parquet")
    assert not full.isna().any().any()
    assert (full["w"] == table["w"]).all()


@pytest.mark.parametrize("which", ["train", "valid"])
def test_parts_of_weight_0_are_refused(which, tmp_path):
    table = frame()
    table.loc[getattr(split_rows(400, 0), which).numpy(), "w"] = 0
    expected = {"train": "to train on", "valid": "for validation"}[which]
    with pytest.raises(UserError, match=f"column 'w': every row {expected} has weight 0; leave out such rows"):
        commands.fit(table, tmp_path / "run", weights="w", folds=1, epochs=1, figures=False)


def test_tables_that_are_streamed(tmp_path, monkeypatch):
    """Batches come with weights, rows of weight 0 in none of them, and validation is weighted."""
    monkeypatch.setattr(rows, "LARGE", 1000)
    table = open_table(frame())
    stream = rows.split_table(table, infer_schema(table, weights="w"), 50, seed=0).x
    known = dict(zip(frame()["a"].astype(np.float32).tolist(), frame()["w"], strict=True))
    origin = stream.schema.columns[0].origin
    assert len(stream) == stream.rows // 50 > 3
    for x, context, weights in stream:
        assert context is None
        assert (weights > 0).all()
        expected = [known[min(known, key=lambda a: abs(a - value))] for value in (x[:, 0] + origin).tolist()]
        assert weights.tolist() == pytest.approx(expected)
    assert stream.rows + len(stream.valid_x) == int((frame()["w"] > 0).sum())
    result = commands.fit(frame(), tmp_path / "run", weights="w", folds=1, epochs=2, batch_size=50, figures=False)
    history = [json.loads(line) for line in (tmp_path / "run" / "train" / "metrics.jsonl").read_text().splitlines()]
    assert min(entry["val_loss"] for entry in history) == pytest.approx(result["validation"]["nll"], rel=1e-5)
    other = rows.split_table(table, infer_schema(table), 50, seed=0).x
    assert other.fingerprint != stream.fingerprint


def test_figures_show_rows_as_often_as_they_count():
    table = open_table(frame(4000))
    schema = infer_schema(table, weights="w")
    split = rows.split_table(table, schema, 512, seed=0)
    shown = split.in_proportion()
    for part, drawn, w in ((split.x, shown.x, split.weights), (split.valid_x, shown.valid_x, split.valid_weights)):
        mean = (w[:, None] * part).sum(0) / w.sum()
        assert torch.allclose(drawn.double().mean(0), mean, atol=0.05)
        assert len(drawn) == len(part)
    assert shown.weights is None
    folded = rows.split_table(table, schema, 512, seed=0, validates=False).in_proportion()
    assert (len(folded.x), len(folded.valid_x)) == (4000, 0)


def test_folds_of_weighted_rows(tmp_path):
    """Trainings, simpler densities, the stack and what is reported out of fold are weighted."""
    table = frame()
    result = commands.fit(
        table, tmp_path / "run", weights="w", folds=2, epochs=2, figures=False,
        arguments={"hidden": [8], "transforms": 1},
    )  # fmt: skip
    commands.score(tmp_path / "run", table, tmp_path / "s.csv")
    each = pd.read_csv(tmp_path / "s.csv")["log_likelihood"]
    assert result["out_of_fold"]["nll"] == pytest.approx(-np.average(each, weights=table["w"]), rel=1e-4)
    assert result["weighted_by"] == "w"
    assert result["weights"]["gaussian"] + result["weights"]["gaussians"] > 0.2
    drawn = commands.sample(tmp_path / "run", 4000, tmp_path / "x.csv")
    assert drawn["non_finite"] == 0
    mean = np.average(table["a"], weights=table["w"])
    assert pd.read_csv(tmp_path / "x.csv")["a"].mean() == pytest.approx(mean, abs=0.15)
    assert abs(table["a"].mean() - mean) > 0.5
