"""Rows scored and drawn by other people's engines: what a row gets depends on the row alone."""

import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import diffeo
from diffeo import commands
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


def test_what_a_row_gets_depends_neither_on_its_batch_nor_on_its_place_nor_on_threads(run, conditional, mixed):
    for path in (run, conditional, mixed):
        frame = table()
        frame["kind"] = "low"
        judged = {} if path == mixed else ALL
        whole = diffeo.Scorer(path, **judged, threads=1)(frame)
        assert whole["log_likelihood"].nunique() > ROWS // 2, "rows differ"
        for size, threads in ((1, 1), (7, 2), (256, 1), (300, 2)):
            last = {1: 20, 7: 210}.get(size, ROWS)
            scorer = pickle.loads(pickle.dumps(diffeo.Scorer(path, **judged, threads=threads)))
            parts = [scorer(frame[start : start + size]) for start in range(0, last, size)]
            pd.testing.assert_frame_equal(pd.concat(parts), whole[:last], check_exact=True)


def test_the_flow_itself_depends_on_the_batch_by_no_more_than_rounding(run, conditional):
    for path in (run, conditional):
        flow, x = diffeo.load(path), torch.randn(5000, 3 if path == run else 2)
        context = None if path == run else torch.randn(5000, 1)
        with torch.no_grad():
            whole = flow.log_prob(x, context)
            for size, last in ((1, 100), (7, 700), (1024, 5000)):
                parts = [
                    flow.log_prob(
                        x[i : min(i + size, last)], None if context is None else context[i : min(i + size, last)]
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
    count = 2500
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
