"""Rows scored and drawn by other people's engines: what a row gets depends on the row alone."""

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import diffeo
from diffeo import commands, workers
from diffeo.atomic import locked
from diffeo.cli import main
from diffeo.commands import score_files
from diffeo.errors import UserError

ROWS = 700  # not a multiple of anything that is computed together


def table(rows=ROWS, seed=0):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(2, rows))
    return pd.DataFrame({"a": a, "b": a + 0.3 * b, "c": np.round(3 * b)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("engines")


def trained(path, frame, **options):
    options = {"model": "nsf", "folds": 1, "epochs": 2, "figures": False} | options
    commands.fit(frame, path, arguments={"hidden": [8], "transforms": 2}, **options)
    return path


@pytest.fixture(scope="module")
def run(folder):
    return trained(folder / "run", table(300, 1), folds=2)


@pytest.fixture(scope="module")
def conditional(folder):
    return trained(folder / "conditional", table(300, 1), context=["c"])


@pytest.fixture(scope="module")
def mixed(folder):
    frame = table(300, 1)
    frame["kind"] = np.where(frame.a > 0, "high", "low")
    frame.loc[::7, "b"] = np.nan
    commands.fit(frame, folder / "mixed", model="mixed", folds=1, epochs=1, figures=False)
    return folder / "mixed"


ALL = {"p_values": True, "flags": True, "shares": True, "alpha": 0.05}
FORMS = {
    "dict": lambda frame: {name: frame[name].to_numpy() for name in frame},
    "batch": lambda frame: pa.RecordBatch.from_pandas(frame, preserve_index=False),
    "table": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
    "frame": lambda frame: frame.set_index(np.arange(len(frame))[::-1] * 3),
}


def numbers(batch, name):
    return np.asarray(batch[name])


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_is_given_back_in_its_form_with_the_scores_that_the_commands_write(form, run, folder):
    frame = table().assign(id=[f"r{i}" for i in range(ROWS)])
    batch = FORMS[form](frame)
    if form == "dict":
        for values in batch.values():
            values.setflags(write=False)
    before = pickle.dumps(batch)
    scorer = diffeo.Scorer(run, **ALL)
    result = scorer(batch)
    assert type(result) is type(batch)
    assert pickle.dumps(batch) == before, "what was given stays as it is"
    names = list(result) if form == "dict" else list(result.columns if form == "frame" else result.schema.names)
    assert names == ["a", "b", "c", "id", *scorer.added]
    assert list(numbers(result, "id")) == list(frame["id"])
    commands.score(run, frame, folder / f"{form}.csv", force=True)
    commands.anomalies(run, frame, folder / f"{form}-worst.csv", alpha=0.05, force=True)
    plain = pd.read_csv(folder / f"{form}.csv")
    assert np.array_equal(numbers(diffeo.Scorer(run)(batch), "log_likelihood"), plain["log_likelihood"])
    worst = pd.read_csv(folder / f"{form}-worst.csv").sort_values("row")
    for name in ("log_likelihood", "score", "p_value", "anomaly"):
        assert np.array_equal(numbers(result, name), worst[name]), name
    flagged = worst["anomaly"].to_numpy()
    assert 0 < flagged.sum() < 100
    for name in ("share_a", "share_b", "share_c"):
        shares = numbers(result, name).astype(float)
        assert np.isnan(shares[~flagged]).all(), "only rows that are flagged have shares"
        assert np.allclose(shares[flagged], worst[name].to_numpy()[flagged], atol=1e-3)
    assert (numbers(result, "column")[flagged] == worst["column"].to_numpy()[flagged]).mean() > 0.9
    if form == "frame":
        assert list(result.index) == list(batch.index)


@pytest.mark.parametrize("which", ["run", "conditional", "mixed"])
def test_what_a_row_gets_depends_neither_on_its_batch_nor_on_its_place_nor_on_threads(which, request):
    path, frame = request.getfixturevalue(which), table().assign(kind="low")
    judged = {} if which == "mixed" else ALL
    whole = diffeo.Scorer(path, **judged, threads=1)(frame)
    assert whole["log_likelihood"].nunique() > ROWS // 2, "rows differ"
    for size, rows in ((1, 4), (7, 28), (300, ROWS)):
        threads = 2 if which == "run" and size == 7 else 1  # more of them is slow where other processes run beside
        scorer = pickle.loads(pickle.dumps(diffeo.Scorer(path, **judged, threads=threads)))
        parts = [scorer(frame[start : start + size]) for start in range(0, rows, size)]
        pd.testing.assert_frame_equal(pd.concat(parts), whole[:rows], check_exact=True)


def test_the_flow_itself_depends_on_the_batch_by_no_more_than_rounding(run, conditional):
    for path in (run, conditional):
        flow, x = diffeo.load(path), torch.randn(5000, 3 if path == run else 2)
        context = None if path == run else torch.randn(5000, 1)
        with torch.no_grad():
            whole = flow.log_mass(x, context, draws=2)  # the same noise for every row, where there is any
            for size, last in ((1, 100), (7, 700), (1024, 5000)):
                parts = [
                    flow.log_mass(
                        x[i : min(i + size, last)],
                        None if context is None else context[i : min(i + size, last)],
                        draws=2,
                    )
                    for i in range(0, last, size)
                ]
                difference = (torch.cat(parts) - whole[:last]).abs() / (1 + whole[:last].abs())
                assert difference.max() <= 1e-6


def test_what_is_sent_is_small_and_finds_the_run_from_anywhere(run, monkeypatch, tmp_path):
    frame = table(20)
    scorer, sampler = diffeo.Scorer(run, columns=["a", "b", "c"], **ALL), diffeo.Sampler(run, seed=3)
    monkeypatch.chdir(run.parent)
    relative = diffeo.Scorer(run.name)
    for each in (scorer, sampler, relative):
        assert len(pickle.dumps(each)) < 1000
    monkeypatch.chdir(tmp_path)
    assert relative(frame).equals(diffeo.Scorer(run)(frame))
    assert diffeo.Scorer(run.as_uri())(frame).equals(relative(frame)), "a URI"


def test_a_run_is_opened_once_in_a_process_and_again_when_it_changes(folder, monkeypatch):
    from diffeo.commands import processes

    path = trained(folder / "changing", table(60, 1), folds=1)
    opened = []
    monkeypatch.setattr(processes, "open_run", lambda *a: opened.append(a) or open_run(*a))
    from diffeo.modalities import open_run

    scorer = diffeo.Scorer(path)
    for _ in range(3):
        pickle.loads(pickle.dumps(scorer))(table(5))
    assert len(opened) == 1
    trained(path, table(60, 2), folds=1, force=True)
    with pytest.raises(UserError, match="is not the run that this began with"):
        scorer(table(5))
    diffeo.Scorer(path)(table(5))


def test_columns_may_have_other_names_or_be_one_of_vectors(run):
    frame = table(30)
    expected = diffeo.Scorer(run)(frame)["log_likelihood"].to_numpy()
    renamed = frame.rename(columns={"a": "x", "b": "a"})  # a name of the run's for another column
    assert np.array_equal(diffeo.Scorer(run, columns={"a": "x", "b": "a"})(renamed)["log_likelihood"], expected)
    assert np.array_equal(diffeo.Scorer(run, columns=["x", "a", "c"])(renamed)["log_likelihood"], expected)
    vectors = frame.to_numpy()
    scorer = diffeo.Scorer(run, columns="data")
    assert np.array_equal(scorer({"data": vectors})["log_likelihood"], expected)
    lists = pa.table({"data": pa.array([*vectors], pa.list_(pa.float64(), 3))})
    assert np.array_equal(scorer(lists)["log_likelihood"], expected)
    assert np.array_equal(scorer(pd.DataFrame({"data": [*vectors]}))["log_likelihood"], expected)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_partition_is_a_batch_too(form, run, mixed):
    for path, options in ((run, ALL), (mixed, {})):
        frame = table(3).assign(kind="low")[:0]
        scorer = diffeo.Scorer(path, **options)
        result = scorer(FORMS[form](frame))
        assert set(scorer.added) < set(result if form in ("dict", "frame") else result.schema.names)
        with pytest.raises(UserError, match="lacks column 'b'"):
            scorer(FORMS[form](frame.drop(columns="b")))


def test_mistakes_are_said_as_the_commands_say_them(run, mixed, tmp_path):
    scorer = diffeo.Scorer(run)
    with pytest.raises(UserError, match="lacks column 'b'; it has 'a', 'c', 'more'"):
        scorer(table(5).drop(columns="b").assign(more=1))
    with pytest.raises(UserError, match=r"1 missing .* in column 'b' \(1\), the first in row 3"):
        scorer(table(5).assign(b=[1, 2, np.nan, 4, 5]))
    with pytest.raises(UserError, match="'log_likelihood' is in the batch"):
        scorer(table(5).assign(log_likelihood=0.0))
    with pytest.raises(UserError, match="column 'b'"):
        scorer(table(5).assign(b="x"))
    with pytest.raises(TypeError, match="expected a dict of arrays"):
        scorer([1, 2])
    with pytest.raises(UserError, match="no run directory"):
        diffeo.Scorer(tmp_path)
    with pytest.raises(UserError, match="has no column 'z'"):
        diffeo.Scorer(run, columns={"z": "a"})
    dropping = diffeo.Scorer(run, missing="drop")
    gappy = table(5).assign(b=[1, 2, np.nan, 4, 5])
    assert list(dropping(gappy).index) == [0, 1, 3, 4]
    assert len(dropping(gappy[2:3])) == 0, "a partition may hold nothing else"
    assert np.array_equal(dropping(gappy)["log_likelihood"], scorer(gappy.dropna())["log_likelihood"])


def test_a_row_that_is_drawn_depends_on_the_seed_and_its_number_alone(run, conditional, mixed):
    count = 2100
    for path in (run, conditional, mixed):
        ids = pd.DataFrame({"id": np.arange(count)})
        if path == conditional:
            ids["c"] = np.round(np.linspace(-3, 3, count))
        sampler = diffeo.Sampler(path, seed=4)
        whole = sampler(ids)
        assert whole["a"].nunique() > count // 2
        shuffled = ids.sample(300, random_state=0)
        pd.testing.assert_frame_equal(sampler(shuffled), whole.loc[shuffled.index], check_exact=True)
        for start in (0, 1000, 1023):
            part = pickle.loads(pickle.dumps(sampler))(ids[start : start + 7])
            pd.testing.assert_frame_equal(part, whole[start : start + 7], check_exact=True)
        other = diffeo.Sampler(path, seed=5)(ids)
        assert (other["a"] != whole["a"]).mean() > 0.5
        assert len(sampler(ids[:0])) == 0


def test_rows_that_are_drawn_are_distributed_as_those_of_the_command(run, tmp_path):
    drawn = diffeo.Sampler(run, seed=1)({"id": np.arange(20_000)})
    commands.sample(run, 20_000, tmp_path / "rows.csv")
    rows = pd.read_csv(tmp_path / "rows.csv")
    for name in ("a", "b", "c"):
        spread = rows[name].std()
        assert abs(drawn[name].mean() - rows[name].mean()) < 0.05 * spread
        assert abs(drawn[name].std() / spread - 1) < 0.05
    first, second = drawn["a"][:-1], drawn["a"][1:]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03, "neighbours are independent"
    apart = np.corrcoef(drawn["a"][:-1024], drawn["a"][1024:])[0, 1]
    assert abs(apart) < 0.03, "and so are rows of the same place in other draws"


def test_row_numbers_that_are_none_are_refused(run):
    for ids in ([0, 0], [-1, 2], [0.5, 1]):
        with pytest.raises(UserError, match="expected row numbers"):
            diffeo.Sampler(run)({"id": np.array(ids)})
    with pytest.raises(UserError, match="lacks column 'id'"):
        diffeo.Sampler(run)({"n": np.arange(2)})


def test_the_callers_own_random_numbers_and_threads_stay_as_they_are(run):
    torch.manual_seed(5)
    expected, threads = torch.randn(3), torch.get_num_threads()
    torch.manual_seed(5)
    diffeo.Scorer(run, **ALL, threads=threads + 1)(table(10))
    diffeo.Sampler(run)({"id": np.arange(3)})
    assert torch.equal(torch.randn(3), expected)
    assert torch.get_num_threads() == threads


# ---- A folder of results, by the workers of an engine ----------------------------------------------------------------

LONG = 30_000
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def files(folder):
    data = folder / "data"
    data.mkdir()
    for k in range(3):
        frame = table(LONG + k, seed=k).assign(id=[f"{k}-{i}" for i in range(LONG + k)])
        frame.loc[frame.index[LONG // 2 : LONG // 2 + k], "c"] += 0.5  # off the grid of whole numbers
        frame.to_parquet(data / f"part-{k}.parquet", row_group_size=7_000, index=False)
    return data


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(score_files, "PART", 10_000)  # several in a file


@pytest.fixture(scope="module")
def expected(run, files, folder):
    """The results of the command without an engine."""
    commands.score(run, str(files), folder / "plain", keep=["id"])
    return {path.name: path.read_bytes() for path in sorted((folder / "plain").iterdir())}


def results(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name != "scores.json"}


def killing(part):
    """Score a part, after killing the process that it is scored in, once for each of some files that are there."""
    for mark in Path(os.environ["DIFFEO_TEST_KILLS"]).iterdir():
        with suppress(FileNotFoundError):
            mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    return score_files.score_part(part)


@pytest.mark.parametrize("count", [1, 3])
def test_the_bytes_do_not_depend_on_the_number_of_workers(count, run, files, expected, tmp_path, small_parts):
    summary = commands.score(run, f"{files}/*.parquet", tmp_path / "o", keep=["id"], engine="local", workers=count)
    assert results(tmp_path / "o") == expected
    assert (summary["off_grid"], summary["off_grid_by_column"]) == (3, {"c": 3})
    plain = commands.score(run, str(files), tmp_path / "all.parquet", keep=["id"])
    assert summary["rows"] == plain["rows"] == 3 * LONG + 3
    assert summary["files"] == 3
    for name in ("mean", "stderr", "min"):
        assert summary[name] == pytest.approx(plain[name], rel=1e-9)
    for name in ("impossible", "off_grid", "off_grid_by_column", "in_training", "ignored_columns", "dropped", "unit"):
        assert summary[name] == plain[name], name


def test_a_killed_worker_costs_no_row_and_repeats_none(run, files, expected, tmp_path, small_parts, monkeypatch):
    marks = tmp_path / "marks"
    marks.mkdir()
    for k in range(2):
        (marks / str(k)).touch()
    monkeypatch.setenv("DIFFEO_TEST_KILLS", str(marks))
    monkeypatch.setattr(score_files, "score_part", killing)
    commands.score(run, str(files), tmp_path / "o", keep=["id"], engine="local", workers=2)
    assert not [*marks.iterdir()], "workers were killed"
    assert results(tmp_path / "o") == expected


def test_a_part_that_kills_every_worker_ends_in_one_line(run, files, tmp_path, monkeypatch):
    marks = tmp_path / "marks"
    marks.mkdir()
    for k in range(5):
        (marks / str(k)).touch()
    monkeypatch.setattr(workers, "TRIES", 2)
    monkeypatch.setenv("DIFFEO_TEST_KILLS", str(marks))
    monkeypatch.setattr(score_files, "score_part", killing)
    with pytest.raises(UserError, match=r"killed at the same part \(part-0.parquet.*memory"):
        commands.score(run, str(files), tmp_path / "o", engine="local", workers=1)
    assert results(tmp_path / "o") == {}


def test_no_worker_outlives_a_killed_process(tmp_path):
    """One that had a result to write would wait for ever: nobody reads it, and the other workers hold the pipe open."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\n"
        "from diffeo.workers import processes\n"
        "with processes(2) as pool:\n"
        "    print(*[pool.submit(os.getpid).result() for _ in range(20)], flush=True)\n"
        "    [pool.submit(bytes, 10**8) for _ in range(20)]\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        started = {int(word) for word in parent.stdout.readline().split()}
        assert all(alive(each) for each in started)
        parent.kill()
    since = time.monotonic()
    while any(map(alive, started)) and time.monotonic() - since < 20:
        time.sleep(0.1)
    assert started
    assert not any(map(alive, started))


def test_processes_that_end_at_once_drop_their_tasks_quietly(monkeypatch):
    """Also tasks that no process has been given yet."""
    faults = []
    monkeypatch.setattr(threading, "excepthook", faults.append)
    for tasks in (1, 2, 9, 1, 2, 9):
        with workers.processes(1) as pool:
            waiting = [pool.submit(time.sleep, 60) for _ in range(tasks)]
        assert all(future.exception() is not None for future in waiting)
    assert faults == []


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"  # one that nobody waits for


def test_what_is_finished_is_kept_and_what_has_changed_is_scored_again(
    run, conditional, files, expected, tmp_path, small_parts, monkeypatch
):
    data, out = tmp_path / "data", tmp_path / "o"
    shutil.copytree(files, data)

    def score(source=data, **options):
        return commands.score(run, str(source), out, keep=["id"], engine="local", workers=1, **options)

    broken = data / "part-2.parquet"
    whole = broken.read_bytes()
    pd.read_parquet(broken).assign(b=np.nan).to_parquet(broken, row_group_size=7_000, index=False)
    with pytest.raises(UserError, match=r"^/.*data: 14000 missing .* the first in .*part-2.parquet, row 1, column 'b'"):
        score()
    assert results(out) == {name: expected[name] for name in ("part-0.parquet", "part-1.parquet")}
    first = (out / "part-0.parquet").stat().st_mtime_ns
    broken.write_bytes(whole)
    with locked(out), pytest.raises(UserError, match="another process writes here"):
        score(resume=True)
    with pytest.raises(UserError, match=r"holds files already.*--resume"):
        score()
    with pytest.raises(UserError, match="another run or of other options"):
        commands.score(run, str(data), out, engine="local", workers=1, resume=True)
    with pytest.raises(UserError, match="another run or of other options"):
        commands.score(conditional, str(data), out, keep=["id"], engine="local", workers=1, resume=True)
    assert score(resume=True)["finished"] == 2
    assert results(out) == expected
    assert (out / "part-0.parquet").stat().st_mtime_ns == first, "what is finished is not touched"
    table(100, seed=9).assign(id="x").to_parquet(data / "part-1.parquet", index=False)
    summary = score(resume=True)
    assert (summary["finished"], summary["rows"]) == (2, 2 * LONG + 102)
    assert len(pd.read_parquet(out / "part-1.parquet")) == 100
    (out / "part-0.parquet").unlink()
    assert score(resume=True)["finished"] == 2
    assert score(force=True)["finished"] == 0
    (out / "scores.json").write_text("{")
    with pytest.raises(UserError, match=r"no sound scores\.json"):
        score(resume=True)


def test_engines_are_refused_in_one_line_where_they_make_no_sense(run, files, tmp_path, monkeypatch, capsys):
    def refused(match, *options):
        place = [] if "--out" in options else ["--out", str(tmp_path / "o")]
        argv = ["score", str(run), str(files), *place, *options]
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(match, error), error

    refused("among local, ray, spark, dask", "--engine", "slurm")
    refused("at least 1 worker", "--engine", "local", "--workers", "0")
    refused("give --engine local", "--workers", "2")
    refused("give --engine local", "--resume")
    refused("give a folder", "--engine", "local", "--out", "-")
    refused("holds the data themselves", "--engine", "local", "--force", "--out", str(files))
    refused("it is a file|cannot write", "--engine", "local", "--out", str(files / "part-0.parquet"))
    for engine, package in (("ray", "ray"), ("spark", "pyspark"), ("dask", "dask.distributed")):
        monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
        refused(re.escape(f"pip install 'diffeo[{engine}]'"), "--engine", engine)


def test_other_tables_are_a_part_each(run, tmp_path):
    frame = table(300)
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_feather(tmp_path / "t.feather")
    np.save(tmp_path / "t.npy", frame.to_numpy())
    for name in ("t.csv", "t.feather", "t.npy"):
        commands.score(run, str(tmp_path / name), tmp_path / f"out-{name}", engine="local", workers=1)
        commands.score(run, str(tmp_path / name), tmp_path / f"plain-{name}")
        assert (tmp_path / f"out-{name}" / name).read_bytes() == (tmp_path / f"plain-{name}").read_bytes()


# ---- The engines themselves, where they are installed ----------------------------------------------------------------


def installed(package):
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


REAL = [
    pytest.param("ray", marks=installed("ray")),
    pytest.param("spark", marks=installed("pyspark")),
    pytest.param("dask", marks=installed("distributed")),
]


def started(argv, **environment):
    """Run Python as a user does: an engine shall not meet what pytest has made of this process."""
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "PYTHONWARNINGS": "ignore", **environment}
    done = subprocess.run(
        [sys.executable, *map(str, argv)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("engine", REAL)
def test_the_bytes_do_not_depend_on_the_engine(engine, run, files, expected, tmp_path):
    argv = ["-m", "diffeo", "score", run, files, "--out", tmp_path / "o", "--keep", "id", "--engine", engine]
    started([*argv, "--workers", "2"])
    assert results(tmp_path / "o") == expected


@pytest.mark.slow
@pytest.mark.parametrize("engine", REAL)
def test_an_engines_killed_worker_costs_no_row_and_repeats_none(engine, run, files, expected, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    (marks / "once").touch()
    code = (
        "import sys, test_engines; from diffeo import commands; from diffeo.commands import score_files\n"
        "if __name__ == '__main__':\n"
        "    score_files.PART, score_files.score_part = 10_000, test_engines.killing\n"
        "    run, data, out, engine = sys.argv[1:]\n"
        "    commands.score(run, data, out, keep=['id'], engine=engine, workers=2)\n"
    )
    (tmp_path / "script.py").write_text(code)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    argv = [tmp_path / "script.py", run, files, tmp_path / "o", engine]
    started(argv, DIFFEO_TEST_KILLS=str(marks), PYTHONPATH=paths)
    assert not [*marks.iterdir()], "a worker was killed"
    assert results(tmp_path / "o") == expected


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*REAL, pytest.param("daft", marks=installed("daft"))])
def test_the_recipes_of_the_guide_score_as_the_command_does(engine, run, files, expected, tmp_path):
    started([ROOT / "examples" / f"engines_{engine}.py", run, files, tmp_path / "o"])
    scored = pd.read_parquet(tmp_path / "o").sort_values("id")
    plain = pd.concat([pd.read_parquet(BytesIO(each)) for each in expected.values()]).sort_values("id")
    assert list(scored["id"]) == list(plain["id"]), "every row once"
    assert np.array_equal(scored["log_likelihood"], plain["log_likelihood"])
    rows = pd.concat([pd.read_parquet(path) for path in sorted(files.iterdir())]).sort_values("id")
    assert np.array_equal(scored[["a", "b", "c"]], rows[["a", "b", "c"]])


@pytest.mark.slow
@installed("ray")
def test_rows_are_drawn_on_ray_as_elsewhere(run, tmp_path):
    (tmp_path / "draw.py").write_text(
        "import sys, ray, diffeo\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "numbers = ray.data.range(3000, override_num_blocks=7)\n"
        "numbers.map_batches(diffeo.Sampler(sys.argv[1], seed=2).__call__, batch_format='pyarrow', batch_size=300)"
        ".write_parquet(sys.argv[2])\n"
    )
    started([tmp_path / "draw.py", run, tmp_path / "o"])
    drawn = pd.read_parquet(tmp_path / "o").sort_values("id", ignore_index=True)
    pd.testing.assert_frame_equal(drawn, diffeo.Sampler(run, seed=2)(pd.DataFrame({"id": np.arange(3000)})))
