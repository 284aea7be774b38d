"""Bounds of a table's columns on the command line: no density beyond, and values beyond are errors with their row."""

import numpy as np
import pandas as pd
import pytest
import torch

import diffeo
from diffeo import commands
from diffeo.cli import main
from diffeo.modalities.tables.defaults import preprocessing
from diffeo.modalities.tables.infer import infer_schema
from diffeo.modalities.tables.table import open_table

TINY = ["--model", "maf", "--hidden", "8", "--transforms", "2", "--epochs", "3", "--no-figures"]


def frame(rows: int = 300) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "share": generator.beta(0.5, 2, rows),
            "size": generator.lognormal(3, 2, rows),
            "rounded": generator.exponential(0.02, rows).round(2),
            "count": generator.poisson(30, rows),
            "free": 1e6 + generator.normal(size=rows),
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a table, and a run of it."""
    folder = tmp_path_factory.mktemp("bounds")
    frame().to_csv(folder / "x.csv", index=False)
    bounds = ["--bounds", "share=0:1", "--bounds", "size=0:", "--bounds", "rounded=0:"]
    argv = ["fit", str(folder / "x.csv"), "--out", str(folder / "run"), "--folds", "1", "--continuous", "rounded"]
    assert main([*argv, *bounds, *TINY]) == 0
    return folder


def test_there_is_no_density_beyond(made, tmp_path):
    """Zeros of a column that is rounded to hundredths are within: they may have been a bit more."""
    rows = frame(5)
    rows.loc[0, "share"], rows.loc[1, "share"], rows.loc[2, "size"], rows.loc[3, "rounded"] = 1.2, 0.0, -3.0, 0.0
    rows.to_csv(tmp_path / "new.csv", index=False)
    assert main(["score", str(made / "run"), str(tmp_path / "new.csv"), "--out", str(tmp_path / "scores.csv")]) == 0
    scores = pd.read_csv(tmp_path / "scores.csv").iloc[:, -1].astype(float)
    assert np.isinf(scores).tolist() == [True, True, True, False, False]


def test_no_sample_is_beyond(made):
    flow = diffeo.load(made / "run")
    x = flow.sample(200_000)
    assert ((x[:, 0] > 0) & (x[:, 0] < 1)).all()
    assert (x[:, 1] > 0).all()
    assert (x[:, 2] > -0.005).all()
    assert x[:, 4].min() < -1, "of a column without bounds, shifted to about 0"


def test_bounds_are_kept_for_resuming(made, capsys):
    argv = ["fit", str(made / "x.csv"), "--out", str(made / "run"), "--resume", "--epochs", "4", "--no-figures"]
    assert main(argv) == 0
    assert main([*argv[:-2], "5", "--no-figures", "--bounds", "share=-1:1"]) == 2
    assert "was trained with other bounds; leave --bounds out or start again (--force)" in capsys.readouterr().err


def test_a_stack_has_no_density_beyond(tmp_path):
    commands.fit(
        frame(200)[["share", "size"]], tmp_path / "run", bounds={"share": (0, 1), "size": (0, None)}, folds=2, epochs=2,
        model="maf", arguments={"hidden": [8]}, figures=False,
    )  # fmt: skip
    stack = diffeo.load(tmp_path / "run")
    assert isinstance(stack, diffeo.Mixture)
    x = stack.sample(50_000)
    assert ((x[:, 0] > 0) & (x[:, 0] < 1) & (x[:, 1] > 0)).all()
    assert torch.isinf(stack.log_prob(torch.tensor([[1.5, 1.0], [0.5, -1.0]]))).all()


def test_tails_are_judged_within_the_bounds():
    """Of a logarithm there are none, where the numbers have a tail like Cauchy's."""
    x = pd.DataFrame({"size": np.abs(np.random.default_rng(0).standard_cauchy(3000)) + 1e-3})
    table = open_table(x)
    schema, rows = infer_schema(table), torch.tensor(x.to_numpy(np.float32))
    assert "gaussianize" in preprocessing(schema, rows)
    steps = preprocessing(schema, rows - schema.columns[0].origin, {"size": (0.0, None)})
    assert "gaussianize" not in steps
    assert [step if isinstance(step, str) else step[0] for step in steps] == ["bounded", "standardize"]


@pytest.mark.parametrize(
    ("options", "gist"),
    [
        (["--bounds", "free=0:1"], "column 'free' holds 1e+06 in row 1 (line 2), which is not within its bounds 0:1"),
        (["--bounds", "rounded=0.01:", "--continuous", "rounded"], "column 'rounded' holds 0 in row"),
        (["--bounds", "share=1:0"], "column 'share': expected bounds LOW:HIGH, got '1:0'"),
        (["--bounds", "share=1"], "expected --bounds COLUMN=LOW:HIGH, such as size=0:, got 'share=1'"),
        (["--bounds", "share"], "expected --bounds COLUMN=VALUE, got 'share'"),
        (["--bounds", "width=0:"], "lacks column 'width'"),
        (["--bounds", "share=0:1", "--context", "share"], "column 'share' is not modelled"),
        (["--bounds", "share=0:1", "--set", "preprocess=[]"], "--bounds and --set preprocess exclude each other"),
        (["--bounds", "free=0:1", "--model", "mixed"], "column 'free' holds 1e+06 in row 1 (line 2)"),
    ],
)
def test_mistakes_are_named(options, gist, made, tmp_path, capsys):
    argv = ["fit", str(made / "x.csv"), "--out", str(tmp_path / "run"), *TINY, *options]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert gist in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
