"""Tables larger than memory: training on them, killed and resumed, by one process or two, and what is said of it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from diffeo import commands
from diffeo.cli.main import main
from diffeo.errors import UserError
from diffeo.modalities import open_run
from diffeo.modalities.tables import rows
from diffeo.training import checkpoint as checkpoints
from diffeo.training import fit

ROWS, GROUP = 3000, 100
OPTIONS = {"epochs": 2, "batch_size": 128, "arguments": {"hidden": [16], "transforms": 2}, "figures": False}
SCRIPT = """
import sys, warnings
warnings.simplefilter("error")
import torch
torch.set_num_threads(1)
from diffeo import commands
from diffeo.modalities.tables import rows
from diffeo.training.fit import fit
from diffeo.training.update import Update

rows.LARGE = 0
fit.__kwdefaults__["checkpoint_every"] = 0.0
data, out, options = sys.argv[1], sys.argv[2], {options}
for name, more in {settings}.items():
    commands.fit(data, f"{out}/{name}", **more, **options)


class Killed(Exception):
    pass


take, steps = Update.take, 0


def dying(*arguments):
    global steps
    steps += 1
    if steps == 20:
        raise Killed
    take(*arguments)


Update.take = dying
try:
    commands.fit(data, out + "/killed", drop=["w"], **options)
except Killed:
    Update.take = take
    commands.fit(data, out + "/killed", resume=True)
"""
SETTINGS = {"plain": {"drop": ["w"]}, "weighted": {"weights": "w"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of a Gaussian, sorted, in files of row groups of a hundred; with weights beside them."""
    place = tmp_path_factory.mktemp("large")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(ROWS, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.3, 2.0]])
    x = np.column_stack([x[np.argsort(x[:, 0])], generator.uniform(0, 2, ROWS).round(1)])
    (place / "data").mkdir()
    for number, part in enumerate(np.split(x, [1100, 1150, 2000])):
        frame = pd.DataFrame(part, columns=["a", "b", "c", "w"])
        frame.to_parquet(place / "data" / f"{number}.parquet", row_group_size=GROUP)
    return place


@pytest.fixture
def small(monkeypatch):
    """Any table is larger than memory."""
    monkeypatch.setattr(rows, "LARGE", 0)


def weights_of(run):
    return load_file(run / "model.safetensors")


def test_a_folder_is_learned_as_if_it_were_in_memory(folder, tmp_path, small, monkeypatch):
    said = []
    summary = commands.fit(folder / "data", tmp_path / "run", test=0.1, drop=["w"], say=said.append, **OPTIONS)
    sizes = summary["rows"]
    assert sum(sizes.values()) == ROWS
    assert abs(sizes["validation"] - 270) < 60
    assert abs(sizes["test"] - 300) < 60
    (line,) = [line for line in said if "row groups" in line]
    assert line.startswith("3,000 rows take 35.2 KiB, more than 0 bytes, and are read in every epoch: 31 row groups")
    assert f"{sizes['validation']:,} rows are held out for validation and {sizes['test']:,} for the test" in line
    monkeypatch.setattr(rows, "LARGE", 2**31)
    held = commands.fit(folder / "data", tmp_path / "memory", test=0.1, drop=["w"], folds=1, **OPTIONS)
    assert summary["validation"]["nll"] == pytest.approx(held["validation"]["nll"], abs=0.3)
    assert not any("row groups" in note for note in held["notes"])
    both = [commands.fit(folder / "data", tmp_path / f"{i}", drop=["w"], folds=1, **OPTIONS) for i in range(2)]
    assert both[0]["validation"] == both[1]["validation"]


def test_a_check_judges_by_the_rows_held_out(folder, tmp_path, small, monkeypatch):
    """Of the table of the training, wherever it lies; of another one by a sample of its row groups."""
    commands.fit(folder / "data", tmp_path / "run", drop=["w"], **OPTIONS)
    held = commands.info(tmp_path / "run")["metrics"]["rows"]["validation"]
    report = commands.check(tmp_path / "run", folder / "data")
    assert report["which"] == "rows held out of training, from a seeded sample of its 31 row groups"
    assert (report["rows"], report["in_sample"]) == (held, False)
    again = commands.check(tmp_path / "run", str(folder / "data" / "*.parquet"), rows=100)
    assert (again["rows"], again["which"]) == (100, report["which"])
    monkeypatch.setattr(rows, "SAMPLED", 4)
    other = commands.check(tmp_path / "run", folder / "data" / "3.parquet")
    assert other["which"] == "all rows, from a seeded sample of 4 of its 10 row groups"
    assert (other["read"], other["in_sample"]) == (4 * GROUP, False)
    reversed_ = [folder / "data" / f"{i}.parquet" for i in (3, 2, 1, 0)]  # as many rows, but not known to be the same
    assert commands.check(tmp_path / "run", reversed_)["in_sample"]


def test_validation_rows_are_those_that_no_batch_has(folder, tmp_path, small):
    """A check, long after the training, finds the very rows."""
    commands.fit(folder / "data", tmp_path / "run", drop=["w"], test=0.1, seed=5, **OPTIONS)
    run = open_run(tmp_path / "run", "cpu")
    examples = run.examples(folder / "data", ROWS, 0, {})
    assert examples.which.startswith("test rows")
    table = run.schema.open(folder / "data")
    stream = rows.split_table(table, run.schema, 128, 5, 0.1).x
    found = {row.tobytes() for row in examples.x.numpy()}
    assert found == {row.tobytes() for row in stream.test_x.numpy()}
    assert found.isdisjoint(row.tobytes() for x, _ in stream for row in x.numpy())


@pytest.fixture(scope="module")
def whole(folder):
    """The weights of a training that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "LARGE", 0)
        commands.fit(folder / "data", folder / "whole", weights="w", **OPTIONS)
    return weights_of(folder / "whole")


@pytest.mark.parametrize("writes", [2, 12, 23])
def test_a_killed_training_resumes_to_the_same_bits(folder, whole, tmp_path, small, monkeypatch, writes):
    """From the beginning, the middle or the end of an epoch."""
    monkeypatch.setitem(fit.__kwdefaults__, "checkpoint_every", 0.0)
    write, count = checkpoints.save_checkpoint, 0

    def dying(*arguments):
        nonlocal count
        write(*arguments)
        count += 1
        if count == writes:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_checkpoint", dying)
        with pytest.raises(KeyboardInterrupt):
            commands.fit(folder / "data", tmp_path / "run", weights="w", **OPTIONS)
    commands.fit(folder / "data", tmp_path / "run", resume=True)
    resumed = weights_of(tmp_path / "run")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_other_files_are_not_resumed_with(folder, tmp_path, small):
    commands.fit(folder / "data", tmp_path / "run", drop=["w"], **OPTIONS)
    files = [folder / "data" / f"{i}.parquet" for i in (1, 0, 2, 3)]
    with pytest.raises(UserError, match="belongs to another training"):
        commands.fit(files, tmp_path / "run", resume=True, epochs=3)


def test_folds_do_not_apply(folder, tmp_path, small, capsys):
    argv = ["fit", str(folder / "data"), "--out", str(tmp_path / "run"), "--folds", "3"]
    assert main(argv) == 2
    assert "is too large to train several times over; leave out --folds" in capsys.readouterr().err


def test_a_limit_that_is_none(folder, tmp_path, capsys):
    argv = ["fit", str(folder / "data"), "--out", str(tmp_path / "run"), "--memory", "-1"]
    assert main(argv) == 2
    assert "expected memory (GiB) of at least 0, got -1" in capsys.readouterr().err
    assert main(["fit", "digits", "--out", str(tmp_path / "run"), "--memory", "1"]) == 2
    assert "--memory is for tables, and these data are images; leave it out" in capsys.readouterr().err


@pytest.fixture(scope="module")
def together(folder):
    """The runs of two processes."""
    (folder / "script.py").write_text(SCRIPT.replace("{options}", repr(OPTIONS)).replace("{settings}", repr(SETTINGS)))
    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    environment["OMP_NUM_THREADS"] = "1"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [sys.executable, *launcher, folder / "script.py", folder / "data", folder / "two"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the launcher's children too
        raise
    assert process.returncode == 0, output[-3000:]
    return folder / "two"


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_give_the_weights_of_one(folder, together, tmp_path, small, name):
    """Each of them reads its own row groups; together they take the steps that one takes."""
    commands.fit(folder / "data", tmp_path / "one", **SETTINGS[name], **OPTIONS)
    one, both = weights_of(tmp_path / "one"), weights_of(together / name)
    assert one.keys() == both.keys()
    for key, tensor in one.items():
        assert torch.allclose(tensor, both[key], rtol=1e-4, atol=1e-5), key
    history = [(run / "train" / "metrics.jsonl").read_text() for run in (tmp_path / "one", together / name)]
    losses = [list(map(float, re.findall(r'loss": ([-.0-9e]+)', text))) for text in history]
    assert len(losses[0]) == 2 * OPTIONS["epochs"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_two_killed_processes_resume_to_the_same_bits(together):
    whole, resumed = weights_of(together / "plain"), weights_of(together / "killed")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.slow
def test_ray_train_learns_a_folder(folder, tmp_path):
    """Its two workers come to the weights of one process."""
    pytest.importorskip("ray.train.torch", reason="could not import 'ray[train]'")
    example = Path(__file__).parents[1] / "examples" / "ray_train.py"
    (tmp_path / "data").mkdir()
    for file in (folder / "data").iterdir():
        frame = pd.read_parquet(file, columns=["a", "b", "c"])
        frame.to_parquet(tmp_path / "data" / file.name, row_group_size=GROUP)
    argv = [sys.executable, example, tmp_path / "data", tmp_path / "run"]
    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nats per row" in done.stdout
    described = commands.info(tmp_path / "run")
    assert described["metrics"]["epochs"] == 3
    assert json.loads((tmp_path / "run" / "model.json").read_text())["schema"]["rows"] == ROWS
    commands.fit(tmp_path / "data", tmp_path / "one", epochs=3, memory=0, figures=False)
    one, both = weights_of(tmp_path / "one"), weights_of(tmp_path / "run")
    for key, tensor in one.items():
        assert torch.allclose(tensor, both[key], rtol=1e-3, atol=1e-3), key
