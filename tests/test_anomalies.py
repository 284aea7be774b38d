"""Anomalies: p-values by held-out rows, what each column adds, and the command."""

import json
import math
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import diffeo
from diffeo import commands
from diffeo.bases import Gaussians
from diffeo.cli.main import main
from diffeo.errors import UserError
from diffeo.modalities import open_run
from diffeo.modalities.tables.held_out import HeldOut
from diffeo.modalities.tables.seen import SeenRows
from diffeo.modalities.tables.table import Table
from diffeo.report.anomalies import column_shares
from diffeo.report.conformal import Conformal, Scatter
from diffeo.training.folds import fit_folds
from diffeo.training.weights import save_tensors

SMALL = {"epochs": 2, "arguments": {"hidden": [8], "transforms": 1}, "figures": False}
COVARIANCE = torch.tensor([[1.0, 0.95, 0.0], [0.95, 1.0, 0.3], [0.0, 0.3, 4.0]], dtype=torch.float64)
MEANS = torch.tensor([[5.0, 0.0, -3.0]], dtype=torch.float64)


def table(rows, seed=0):
    """Two columns that go together, a whole number, a level and noise."""
    g = np.random.default_rng(seed)
    a = g.normal(size=rows)
    return pd.DataFrame(
        {
            "a": a,
            "b": 100 + 10 * (a + 0.1 * g.normal(size=rows)),
            "count": g.poisson(20 + 5 * (a > 0)),
            "dose": g.choice([0.1, 0.5, 2.5, 10.0], rows),
            "noise": g.normal(size=rows),
        }
    )


def mixed(rows, seed=0):
    """A category, gaps and numbers that hang together."""
    g = np.random.default_rng(seed)
    kind = g.choice(["red", "green", "blue"], rows)
    size = g.normal({"red": 0, "green": 5, "blue": 10}[kind[0]], 1, rows) if rows == 1 else g.normal(size=rows)
    size = size + 5 * (kind == "green") + 10 * (kind == "blue")
    return pd.DataFrame({"kind": kind, "size": size, "age": np.where(g.random(rows) < 0.1, np.nan, size * 2)})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs: of folds, of a single model, conditional, and mixed."""
    folder = tmp_path_factory.mktemp("made")
    commands.fit(table(400), folder / "folds", folds=2, **SMALL)
    commands.fit(table(400), folder / "one", folds=1, **SMALL)
    commands.fit(table(400), folder / "given", folds=2, context=["b"], **SMALL)
    small = {"epochs": 1, "arguments": {"hidden": 16, "layers": 1, "orders": 2}, "figures": False}
    commands.fit(mixed(300), folder / "mixed", folds=2, **small)
    return folder


def found(run, source, tmp_path, **options):
    """The result of the command as a frame, and its summary."""
    summary = commands.anomalies(run, source, tmp_path / "a.parquet", force=True, **options)
    return pd.read_parquet(tmp_path / "a.parquet"), summary


# ---- p-values -------------------------------------------------------------------------------------------------------


def test_p_values_of_new_rows_are_uniform():
    """Of one density exactly; of five that disagree as often as asked for where it matters."""
    g = torch.Generator().manual_seed(0)
    shifts, disagreement = torch.tensor([0.0, 0.3, -0.3, 0.0, 0.5]), 0.6
    several, single, arithmetic = [], [], []

    def scores(rows):
        """What all five densities say of rows: a common part with a heavy tail, and one of each alone."""
        common, alone = torch.rand(rows, 1, generator=g).log(), torch.rand(rows, 5, generator=g).log()
        return common + disagreement * alone + shifts

    for _ in range(500):
        held_out, new = scores(499), scores(200)
        law = Conformal(held_out[torch.arange(499), torch.arange(499) % 5])
        several.append(law.of_new(new))
        arithmetic.append(torch.stack([law.of_new(new[:, [k]]) for k in range(5)]).mean(0))
        single.append(Conformal(held_out[:, 0]).of_new(new[:, :1]))
    several, arithmetic, single = (torch.cat(part) for part in (several, arithmetic, single))

    def share(p, alpha):
        return float((p <= alpha + 1e-12).double().mean())

    for alpha in (0.01, 0.05, 0.1, 0.5):
        assert share(single, alpha) == pytest.approx(alpha, rel=0.05)
    assert share(several, 0.01) == pytest.approx(0.01, abs=0.002)
    assert share(several, 0.05) == pytest.approx(0.05, abs=0.01)
    assert share(arithmetic, 0.01) < 0.008  # which is why it is not that


def test_p_values_by_hand():
    law = Conformal(torch.tensor([3.0, 1.0, 2.0, 2.0]))
    assert len(law) == 4
    assert law.least == 1 / 5
    new = torch.tensor([0.0, 1.0, 1.5, 2.0, 9.0, -math.inf])[:, None]
    assert law.of_new(new).tolist() == [1 / 5, 2 / 5, 2 / 5, 4 / 5, 1.0, 1 / 5]
    assert law.of_held_out(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1 / 4, 3 / 4, 1.0]
    assert law.of_held_out(torch.tensor([2.0 + 1e-6, 2.0 - 1e-6])).tolist() == [3 / 4, 3 / 4]  # rounding makes no ranks
    assert (law.threshold(0.1), law.threshold(0.25), law.threshold(0.8)) == (-math.inf, 1.0, 2.0)
    assert law.of_new(torch.tensor([[1.5, 25.0]])).tolist() == pytest.approx([2 / (5 / 2 + 1)])
    for bad in (torch.empty(0), torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match="expected scores of held-out rows"):
            Conformal(bad)


def test_a_score_is_the_likelihood_unless_a_row_is_stranger_seen_less_sharply():
    g = torch.Generator().manual_seed(0)
    held_out = torch.randn(20_000, 2, generator=g, dtype=torch.float64) * torch.tensor([2.0, 0.5]) + 10.0
    scatter = Scatter(held_out)
    torch.testing.assert_close(scatter.spread, torch.tensor([2.0, 0.5], dtype=torch.float64), rtol=0.05, atol=0)
    new = torch.tensor([[6.0, 10.0], [10.0, 9.0], [10.0, -math.inf], [-math.inf, 10.0], [11.0, 30.0]])
    expected = [6.0, 10.0 - 2 * 2, -math.inf, -math.inf, 11.0]  # two standard deviations of the second are four nats
    assert scatter.score(new).tolist() == pytest.approx(expected, abs=0.2)
    assert torch.equal(scatter.score(new[None]), scatter.score(new)[None])
    alone = Scatter(held_out[:, :1])
    torch.testing.assert_close(alone.score(held_out[:, :1]), held_out[:, 0])
    constant = Scatter(torch.zeros(30, 2))
    assert constant.score(torch.zeros(1, 2)).tolist() == [0.0]
    for bad in (torch.zeros(0, 2), torch.zeros(3)):
        with pytest.raises(ValueError, match="expected log-likelihoods"):
            Scatter(bad)


def test_scores_that_are_all_equal_are_no_anomalies():
    law = Conformal(torch.zeros(100))
    assert law.of_new(torch.zeros(3, 1)).tolist() == [1.0] * 3
    assert law.of_held_out(torch.zeros(3)).tolist() == [1.0] * 3


@pytest.mark.slow
def test_false_alarms_at_one_percent():
    """The mean over five trainings: that of one, of 5,000 rows, scatters by 0.14 %."""

    def draw(rows, seed):
        g = np.random.default_rng(seed)
        a = g.normal(size=rows)
        return np.stack([a, a**2 + 0.3 * g.normal(size=rows)], 1)

    rates = []
    for seed in range(5):
        flow = diffeo.maf(2, hidden=[16], transforms=2, preprocess=["standardize"])
        result = fit_folds(
            flow,
            draw(5000, seed),
            folds=3,
            families=["gaussians", "broad"],
            epochs=5,
            batch_size=256,
            seed=seed,
            jobs=1,
        )
        law = Conformal(result.log_prob)
        x = torch.from_numpy(draw(40_000, 100 + seed)).float()
        with torch.no_grad():
            each = torch.stack([member.log_prob(x) for member in result.flow.members], 1)
        rates.append(float((law.of_new(each) <= 0.01).double().mean()))
    assert 0.008 <= np.mean(rates) <= 0.012, rates


# ---- Shares ---------------------------------------------------------------------------------------------------------


def gaussian():
    return diffeo.Flow(Gaussians.of(MEANS, COVARIANCE[None]), [diffeo.transforms.Standardize(3)]).eval()


def expected_shares(x):
    """1/2 (z_i^2 / 2 + r_i^2 / 2) - 1/2 of a Gaussian: z_i in standard deviations alone, r_i in those given others."""
    precision = COVARIANCE.inverse()
    away = x.double() - MEANS
    alone = away.square() / COVARIANCE.diagonal() / 2
    given_others = (away @ precision).square() / precision.diagonal() / 2
    return (alone + given_others) / 2 - 0.5


def test_shares_of_a_gaussian():
    x = MEANS.float() + torch.tensor(
        [[0.0, 0.0, 0.0], [2.0, 1.9, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 5.0], [1.5, -1.5, 1.0]]
    )
    shares = column_shares(gaussian(), x)
    assert shares.dtype == torch.float64
    far = shares / (1 + expected_shares(x).abs())
    assert torch.allclose(far, expected_shares(x) / (1 + expected_shares(x).abs()), atol=0.25)
    assert shares[2].argmax() == 0
    assert shares[3].argmax() == 2


def test_shares_of_ordinary_rows_are_nothing_on_average():
    assert column_shares(gaussian(), gaussian().sample(500)).mean(0).abs().max() < 0.2


class Shifted(diffeo.transforms.Transform):
    """x = z + the context, in the first column."""

    def forward_and_log_det(self, z, context=None):
        return torch.cat([z[:, :1] + context, z[:, 1:]], 1), z.new_zeros(len(z))

    def inverse_and_log_det(self, x, context=None):
        return torch.cat([x[:, :1] - context, x[:, 1:]], 1), x.new_zeros(len(x))


def test_shares_given_a_context():
    """What is strange in a row depends on its context."""
    flow = diffeo.Flow(diffeo.bases.StandardNormal(2), Shifted(), context_shape=(1,)).eval()
    x, context = torch.tensor([[0.0, 0.0], [0.0, 0.0], [8.0, 0.0]]), torch.tensor([[0.0], [8.0], [8.0]])
    shares = column_shares(flow, x, context)
    assert shares[0].abs().max() < 1.0
    assert shares[1, 0] > 10.0
    assert shares[1, 1].abs() < 1.0
    assert shares[2].abs().max() < 1.0


def test_shares_of_whole_numbers():
    """Two columns of 0 and 1 that are equal: neither 0 nor 1 is strange, but that they differ is, in both columns."""
    means = torch.tensor([[0.5, 0.5], [1.5, 1.5]], dtype=torch.float64)
    base = Gaussians.of(means, 0.02 * torch.eye(2, dtype=torch.float64)[None])
    flow = diffeo.Flow(base, [diffeo.transforms.Dequantize(2)]).eval()
    shares = column_shares(flow, torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]))
    assert shares[:2].abs().max() < 0.5
    assert shares[2:].min() > 5.0


def test_shares_of_mixed_densities_add_up_in_each_order():
    """The terms of the chain rule of a mixture, also where its members have other orders."""
    columns = [{"values": [0.0, 1.0, 2.0], "steps": [1.0], "gaps": True}, {"steps": [0.0]}, {"steps": [0.0]}]
    flows = [
        diffeo.recipes.build("mixed", {"features": 3, "columns": columns, "hidden": 8, "layers": 1, "orders": n})
        for n in (1, 1, 2)
    ]
    x = torch.tensor([[0.0, 0.3, -1.0], [2.0, 4.0, 0.0], [math.nan, -1.0, 2.0], [1.0, 0.0, 0.0]])
    for flow in flows:
        flow.transform.initialize(torch.randn(100, 3).abs().round())
        for parameter in flow.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    one_order = diffeo.Mixture([diffeo.Mixture(flows[:2], [0.3, 0.7]), flows[1]], [0.5, 0.5]).eval()
    shares = column_shares(one_order, x)
    with torch.no_grad():
        log_prob = one_order.log_prob(x).double()
    assert torch.allclose((shares - shares[0]).sum(1), log_prob[0] - log_prob, atol=1e-4)
    several = diffeo.Mixture([flows[0], flows[2]], [0.5, 0.5]).eval()
    assert column_shares(several, x).isfinite().all()


def test_a_value_without_mass_has_an_infinite_share():
    columns = [{"values": [0.0, 1.0]}, {"steps": [0.0]}]
    flow = diffeo.recipes.build(
        "mixed", {"features": 2, "columns": columns, "hidden": 8, "layers": 1, "orders": 2}
    ).eval()
    shares = column_shares(flow, torch.tensor([[0.5, 0.0], [1.0, 0.0]]))
    assert shares[0, 0] == math.inf
    assert shares[0, 1].isfinite()
    assert shares[1].isfinite().all()


@pytest.mark.parametrize("run", ["folds", "one"])
def test_a_moved_column_is_named(made, tmp_path, run):
    """Of ordinary rows one column each is moved by 10 standard deviations, as whole numbers where it holds these."""
    normal = table(200, seed=1)
    moved, g = normal.astype(float), np.random.default_rng(2)
    columns = g.choice(["a", "b", "count", "noise"], len(normal))
    for row, column in enumerate(columns):
        step = g.choice([-10, 10]) * normal[column].std()
        moved.loc[row, column] += round(step) if column == "count" else step
    result, summary = found(made / run, moved, tmp_path, alpha=0.1)
    assert summary["explained"] == 200
    named = result.set_index("row")["column"].reindex(range(1, 201)).to_numpy()
    assert (named == columns).mean() >= 0.9


# ---- The command ----------------------------------------------------------------------------------------------------


def test_the_result(made, tmp_path):
    new = table(300, seed=1)
    new["id"] = np.arange(300) + 1000
    new.loc[5, "a"] = 30.0
    result, summary = found(made / "folds", new, tmp_path, keep=["id"])
    names = ["a", "b", "count", "dose", "noise"]
    assert list(result) == [
        "row",
        "id",
        "log_likelihood",
        "score",
        "p_value",
        "anomaly",
        *(f"share_{n}" for n in names),
        "column",
    ]
    assert result["anomaly"].dtype == bool
    assert (result["id"] == result["row"] + 999).all()
    assert sorted(result["row"]) == list(range(1, 301))
    pairs = list(zip(result["p_value"], result["score"], strict=True))
    assert pairs == sorted(pairs)
    assert result["row"][0] == 6
    assert result["column"][0] == "a"
    assert (result["anomaly"] == (result["p_value"] <= 0.01)).all()
    assert summary["flagged"] == result["anomaly"].sum() >= 1
    assert (summary["held_out"], summary["folds"], summary["explained"]) == (400, 2, 100)
    shares = result[[f"share_{name}" for name in names]]
    assert shares[:100].notna().all().all()
    assert shares[100:].isna().all().all()
    assert result["column"][100:].isna().all()
    assert (shares[:100].idxmax(axis=1) == "share_" + result["column"][:100]).all()
    assert summary["worst"][0]["row"] == 6
    commands.score(made / "folds", new, tmp_path / "s.parquet")
    scores = pd.read_parquet(tmp_path / "s.parquet").set_index("row")["log_likelihood"]
    np.testing.assert_allclose(result["log_likelihood"], scores[result["row"]], rtol=1e-5, atol=1e-4)


def test_rows_of_the_training_are_ranked_by_what_had_not_seen_them(made, tmp_path):
    """Each rank of 400 once: exactly 40 rows are in the lowest tenth. A single model has held out a tenth of them."""
    train = table(400).sample(frac=1, random_state=0)
    result, summary = found(made / "folds", train, tmp_path, alpha=0.1)
    assert (summary["in_training"], summary["out_of_fold"], summary["flagged"]) == (400, 400, 40)
    np.testing.assert_allclose(result["p_value"], np.arange(1, 401) / 400, atol=2.1 / 400)  # some are as good as equal
    result, summary = found(made / "one", train, tmp_path, alpha=0.1)
    assert (summary["in_training"], summary["held_out"], summary["folds"]) == (360, 40, 1)


def test_p_values_do_not_depend_on_the_company_or_the_seed(made, tmp_path):
    """Whole numbers and levels, too: their noise is the same for all."""
    new = table(200, seed=3)
    one, _ = found(made / "folds", new, tmp_path)
    two, _ = found(made / "folds", new, tmp_path, seed=1)
    three, _ = found(made / "folds", new[:50], tmp_path)
    assert (one[["row", "p_value", "anomaly"]] == two[["row", "p_value", "anomaly"]]).all().all()
    alone = one.set_index("row").loc[three["row"], "p_value"].to_numpy()
    np.testing.assert_array_equal(alone, three["p_value"])


def test_what_is_recorded_often_does_not_hide_what_is_far_off(tmp_path):
    """Half of the values are exactly 0: a likelihood prefers any row with a 0 to any without."""

    def draw(rows, seed):
        g = np.random.default_rng(seed)
        zero = g.random((rows, 2)) < 0.5
        return np.column_stack([np.where(zero, 0.0, g.exponential(size=(rows, 2)).round(2)), g.normal(size=rows)])

    commands.fit(draw(600, 0), tmp_path / "run", folds=2, epochs=60, figures=False)
    new = draw(400, 1)
    new[:40, 2] += 4.0
    new[:40, :2] = 0.0
    result, _ = found(tmp_path / "run", new, tmp_path)
    by_row, moved = result.set_index("row").sort_index(), np.arange(400) < 40
    assert (by_row["score"] <= by_row["log_likelihood"] + 1e-9).all()
    ranks = by_row["score"].rank()[moved].mean(), by_row["log_likelihood"].rank()[moved].mean()
    assert ranks[0] < 50
    assert ranks[1] > ranks[0]


def test_runs_of_before_there_was_noise_have_likelihoods_for_scores(made, tmp_path):
    run = shutil.copytree(made / "folds", tmp_path / "run")
    new = table(50, seed=3)
    now, _ = found(run, new, tmp_path)
    assert not np.allclose(now["score"], now["log_likelihood"])
    seen = SeenRows.load(run)
    tensors = {"digest": seen.digest, "part": seen.part, "log_prob": seen.log_prob[:, 0].copy()}
    named = {name: torch.from_numpy(each) for name, each in tensors.items()}
    save_tensors(run / "rows.safetensors", named, {"format": "1", "alone": "0"})
    then, _ = found(run, new, tmp_path)
    np.testing.assert_allclose(then["score"], then["log_likelihood"])


def test_chunks_do_not_show(made, tmp_path, monkeypatch):
    new = pd.concat([table(200, seed=s) for s in range(4)], ignore_index=True)
    new.loc[777, "noise"] = -40.0
    whole, _ = found(made / "folds", new, tmp_path)
    numbered = Table.numbered
    monkeypatch.setattr(Table, "numbered", lambda table, names=None: numbered(table, names, rows=90))
    monkeypatch.setattr(sys.modules["diffeo.commands.anomalies"], "BLOCK", 70)
    parts, _ = found(made / "folds", new, tmp_path)
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-4, atol=1e-4)


def test_rows_off_a_grid_name_their_column(made, tmp_path):
    new = table(120, seed=1).astype(float)
    new.loc[3, "dose"], new.loc[5, "count"] = 3.3, 20.5
    result, summary = found(made / "folds", new, tmp_path, alpha=0.05)
    worst = result.set_index("row")
    assert worst.loc[[4, 6], "column"].tolist() == ["dose", "count"]
    nearest = new.assign(dose=new["dose"].replace(3.3, 2.5), count=new["count"].replace(20.5, 20))
    ordinary = found(made / "folds", nearest, tmp_path, alpha=0.05)[0].set_index("row")
    schema = open_run(made / "folds", None).schema
    log_on, log_off = schema.log_grid(next(column for column in schema.columns if column.name == "dose"))
    lower = worst.loc[[4, 6], "log_likelihood"] - ordinary.loc[[4, 6], "log_likelihood"]
    np.testing.assert_allclose(lower, log_off - log_on, atol=1e-5)
    assert (worst.loc[[4, 6], ["share_dose", "share_count"]].max(axis=1) > -log_off - 5).all()
    assert worst.loc[[4, 6], "anomaly"].all()
    held_out = HeldOut.of(open_run(made / "folds", None)).law.scores
    assert (worst.loc[[4, 6], "score"] < held_out[0].item() + log_off / 2).all()
    assert (summary["impossible"], summary["off_grid"]) == (0, 2)


def test_each_value_off_its_grid_makes_a_row_stranger(made, tmp_path):
    """Two of them have the shares of both, and what else is strange about such rows still orders them."""
    new = pd.concat([table(4, seed=1)] * 3, ignore_index=True).astype(float)
    new.loc[4:7, "count"] += 0.4
    new.loc[8:11, "count"] += 0.4
    new.loc[8:11, "dose"] = 3.3  # the nearest level is 2.5
    new.loc[[0, 4, 8], "noise"] = [0, 0.1, 0.2]
    result = found(made / "folds", new, tmp_path)[0].set_index("row").sort_index()
    one, two = result.loc[5:8], result.loc[9:12]
    assert (two["score"] < one["score"].max()).all()
    cost = -open_run(made / "folds", None).schema.log_grid(open_run(made / "folds", None).schema.columns[2])[1]
    assert (two[["share_count", "share_dose"]] > cost - 5).all(axis=None)
    assert set(two["column"]) <= {"count", "dose"}
    assert len(set(result["score"])) == len(result)
    far = new.loc[[4]].assign(noise=40.0)
    (row,) = found(made / "folds", pd.concat([new, far]), tmp_path)[0].query("row == 13").itertuples()
    assert row.column == "noise"
    assert row.share_noise > row.share_count > cost - 5
    assert row.score < one["score"].min()


def test_new_levels_are_no_anomalies_where_they_are_usual(tmp_path):
    """Codes are drawn from 60 irregular ones: some occur once in 600 rows, and others not at all."""
    codes = np.cumsum(np.random.default_rng(9).random(60))

    def draw(rows, seed):
        g = np.random.default_rng(seed)
        code = codes[(60 * g.random(rows) ** 5).astype(int)]
        return pd.DataFrame({"code": code, "x": g.normal(size=rows)})

    train = draw(600, 0)
    commands.fit(train, tmp_path / "run", folds=2, **SMALL)
    kinds = {column["name"]: column["kind"] for column in commands.info(tmp_path / "run")["columns"]}
    assert kinds["code"] == "levels"
    alone = int((train["code"].value_counts() == 1).sum())
    assert SeenRows.load(tmp_path / "run").alone == alone > 3
    fresh = draw(1000, 1)
    result, summary = found(tmp_path / "run", fresh, tmp_path)
    new = ~fresh["code"].isin(train["code"])[result["row"] - 1].to_numpy()
    assert new.sum() == summary["off_grid"] > 5
    assert summary["impossible"] == 0
    assert result["p_value"][new].max() == pytest.approx((1 + alone) / 601)
    assert result["anomaly"][new].mean() < 0.5
    assert np.isfinite(result["score"]).all()
    pairs = list(zip(result["p_value"], result["score"], strict=True))
    assert pairs == sorted(pairs)
    odds = (1 + alone) / 601
    assert result["score"][new].max() <= np.quantile(result["score"][~new], 2 * odds)


def test_a_constant_that_has_another_value(tmp_path):
    x = table(200).assign(unit=7)
    commands.fit(x, tmp_path / "run", folds=1, **SMALL)
    x.loc[0, "unit"] = 8
    result, _ = found(tmp_path / "run", x, tmp_path, alpha=0.1)
    assert (result["row"][0], result["column"][0]) == (1, "unit")
    assert result["share_a"][0] < math.inf


def test_conditional_runs(made, tmp_path):
    new = table(150, seed=4)
    new.loc[0, ["a", "b"]] = 0.0, 130.0  # ordinary alone, not given b; and b is not judged
    new.loc[1, "noise"] = 30.0
    result, _ = found(made / "given", new, tmp_path)
    assert "share_b" not in result
    worst = result.set_index("row")
    assert worst.loc[2, "column"] == "noise"
    assert worst.loc[2, "anomaly"]


def test_mixed_runs(made, tmp_path):
    new = mixed(150, seed=5)
    new.loc[0, "size"] = 500.0
    new.loc[1, "kind"] = "violet"
    result, summary = found(made / "mixed", new, tmp_path)
    worst = result.set_index("row")
    assert worst.loc[1, "anomaly"]
    assert worst.loc[1, "column"] in ("size", "age")
    assert worst.loc[2, "column"] == "kind"
    assert summary["unseen_by_column"] == {"kind": 1}
    assert result["p_value"].between(0, 1).all()


def test_few_held_out_rows_are_said(made, tmp_path, capsys):
    source = tmp_path / "new.csv"
    table(50, seed=1).to_csv(source, index=False)
    argv = ["anomalies", str(made / "one"), str(source), "--out", str(tmp_path / "a.csv")]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "0 (0.00%), p at most 0.01; no row can be: no p-value is below 0.024, so give a larger --alpha" in out
    assert "held out  40 rows to compare with" in out
    assert main([*argv, "--force", "--json", "--alpha", "0.1"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["least_p_value"] == pytest.approx(1 / 41)
    assert pd.read_csv(tmp_path / "a.csv")["anomaly"].dtype == bool
    assert main(argv[:3]) == 0  # csv on stdout
    assert capsys.readouterr().out.startswith("row,log_likelihood,score,p_value,anomaly,share_a,")


def test_the_picture(made, tmp_path, plotted):
    new = table(80, seed=1)
    new.loc[4, "a"] = 30.0
    _, summary = found(made / "folds", new, tmp_path, plot=tmp_path / "p.png")
    assert summary["plot"] == str(tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    left, right = plotted["p"].axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "held out (400)", "these rows (80)", "p = 0.01",
    ]  # fmt: skip
    assert right.get_yticklabels()[0].get_text().startswith("row 5 (p = 0.0025")
    assert [label.get_text() for label in right.get_xticklabels()] == ["a", "b", "count", "dose", "noise"]


def test_a_label_that_is_left_out_is_said(made, tmp_path, capsys):
    x = table(60, seed=1).drop(columns="dose").to_numpy()
    np.savez(tmp_path / "x.npz", X=x, y=np.zeros(60))
    argv = ["fit", str(tmp_path / "x.npz"), "--out", str(tmp_path / "run"), "--folds", "2", "--epochs", "1"]
    assert main([*argv, "--hidden", "8", "--transforms", "1", "--no-figures"]) == 0
    assert "note: y is left out, X is read" in capsys.readouterr().err
    assert main(["anomalies", str(tmp_path / "run"), str(tmp_path / "x.npz"), "--out", str(tmp_path / "a.csv")]) == 0
    assert "y is left out, X is read" in capsys.readouterr().out


def refused(capsys, *argv):
    """The one line of an error."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("diffeo: ")
    assert err.count("\n") == 1
    return err


def test_what_is_refused(made, tmp_path, capsys):
    source = tmp_path / "new.csv"
    table(30, seed=1).assign(p_value=1.0).to_csv(source, index=False)
    run, out = made / "folds", tmp_path / "a.csv"
    argv = ["anomalies", run, source, "--out", out]
    assert "expected alpha in (0, 1), got 1.5" in refused(capsys, *argv, "--alpha", "1.5")
    assert "column 'p_value' cannot be kept" in refused(capsys, *argv, "--keep", "p_value")
    assert "has no column 'q' to keep" in refused(capsys, *argv, "--keep", "q")
    assert "expected a picture that ends in .png" in refused(capsys, *argv, "--plot", tmp_path / "p.jpg")
    (tmp_path / "p.png").write_text("")
    assert "exists already" in refused(capsys, *argv, "--plot", tmp_path / "p.png")
    assert "its folder does not exist" in refused(capsys, *argv, "--plot", tmp_path / "no" / "p.png")
    assert "holds numbers alone" in refused(capsys, "anomalies", run, source, "--out", tmp_path / "a.npy")
    assert not out.exists()
    assert main(["fit", "digits", "--out", str(tmp_path / "images"), "--epochs", "1", "--no-figures"]) == 0
    assert "was not trained on a table, but on images" in refused(capsys, "anomalies", tmp_path / "images", "digits")


def test_a_student_refers_to_its_teacher(made, tmp_path):
    run = shutil.copytree(made / "one", tmp_path / "fast")
    model = json.loads((run / "model.json").read_text())
    model["provenance"]["distillation"] = {"teacher": {"run": "slow"}}
    (run / "model.json").write_text(json.dumps(model))
    with pytest.raises(UserError, match=r"was distilled from slow, and has no held-out rows of its own; use that run"):
        commands.anomalies(run, table(30), tmp_path / "a.csv")


def test_a_run_that_knows_no_held_out_rows(made, tmp_path):
    run = shutil.copytree(made / "folds", tmp_path / "run")
    (run / "rows.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no rows.safetensors, .* train it by diffeo fit"):
        commands.anomalies(run, table(30), tmp_path / "a.csv")
    seen = SeenRows.load(made / "folds")
    SeenRows(seen.digest, seen.part + 1, seen.log_prob, seen.noise).save(run)
    with pytest.raises(UserError, match=r"rows.safetensors does not belong to its model"):
        commands.anomalies(run, table(30), tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()
