"""A check of a mixed density trusts one that has learnt its rows, and finds out those that have not."""

import copy
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

import diffeo
from diffeo import commands
from diffeo.cli import main
from diffeo.recipes import mixed
from diffeo.report import mixed as report_of_mixed
from diffeo.report import words
from diffeo.report.baselines import factor_log_prob, mixed_held_out
from diffeo.report.compare import marginal_test
from diffeo.report.mixed import MixedThresholds, check_mixed, judge_mixed, noise_of
from diffeo.report.privacy import nearest_records
from diffeo.transforms import Factor

COLUMNS = [
    {"values": [0, 1, 2], "unseen": 0.001},
    {"values": [0], "steps": [0], "copies": [[4, 1, 0]]},
    {"values": list(range(16)), "steps": [1], "gaps": True},
    {"values": [0, 1], "gaps": True},
    {"values": [0], "steps": [0], "copies": [[1, 1, 0]]},
]
NAMES = ["kind", "amount", "count", "flag", "total"]


def toy(n, seed):
    """Rows whose columns depend on each other: a category, zeros or a number, a count, a flag, a number or its copy."""
    g = np.random.default_rng(seed)
    kind = g.integers(3, size=n)
    amount = np.where(g.random(n) < 0.2, 0, g.normal(size=n) + 3 * kind + 1)
    count = np.where(g.random(n) < 0.1, np.nan, g.poisson(2 + 4 * kind))
    flag = np.where(g.random(n) < 0.2, np.nan, g.random(n) < 0.2 + 0.3 * kind)
    total = np.where(g.random(n) < 0.3, amount, amount + g.normal(size=n))
    return torch.tensor(np.stack([kind, amount, count, flag, total], 1), dtype=torch.float32)


def learnt(x, epochs=14):
    torch.manual_seed(0)
    flow = mixed(len(COLUMNS), columns=COLUMNS, hidden=32, layers=1, components=4, orders=2)
    diffeo.fit(flow, x, epochs=epochs, batch_size=100, lr=5e-3)
    return flow.eval()


@pytest.fixture(scope="module")
def train():
    return toy(1500, 1)


@pytest.fixture(scope="module")
def x():
    return toy(500, 2)


@pytest.fixture(scope="module")
def flow(train):
    return learnt(train)


def said(report):
    return " | ".join(report["reasons"])


def test_a_trained_model_is_not_distrusted(flow, train, x):
    report = check_mixed(flow, x, train=train, names=NAMES)
    assert report["verdict"] != "not trustworthy", report["reasons"]
    assert report["likelihood"]["gain_over_marginals"]["mean"] > 1
    assert report["privacy"]["share"] == pytest.approx(0.5, abs=4 * report["privacy"]["stderr"])
    assert report["round_trip"]["lost"] < 5
    assert report["noise"]["randomised"] == NAMES
    json.dumps(report, allow_nan=False)
    assert report == check_mixed(flow, x, train=train, names=NAMES)
    means = [part["mean"] for part in report["columns"]]
    assert means == sorted(means)
    with torch.no_grad():
        shares = flow.transform.log_shares(x, torch.zeros_like(x, dtype=torch.bool)).mean(0)
        in_orders = flow.transform.log_in_orders(x, torch.zeros_like(x, dtype=torch.bool)).sum(2)
    for part in report["columns"]:
        assert part["mean"] == pytest.approx(shares[NAMES.index(part["column"])].item(), abs=1e-4)
    assert report["likelihood"]["flow"]["mean"] == pytest.approx(flow.log_prob(x).mean().item(), abs=1e-4)
    assert report["orders"]["means"] == pytest.approx(in_orders.mean(1).tolist(), abs=1e-4)
    assert report["orders"]["spread"] == pytest.approx(in_orders.std(0, correction=0).mean().item(), abs=1e-4)
    assert sum(part["gain"]["mean"] for part in report["columns"]) == pytest.approx(
        report["likelihood"]["gain_over_marginals"]["mean"], abs=0.1  # the mean over orders is below that of densities
    )  # fmt: skip


def test_the_noise_is_that_of_the_inverse(flow, x):
    with torch.no_grad():
        torch.manual_seed(3)
        z, in_orders = report_of_mixed._evaluate(flow, x, None)
        torch.manual_seed(3)
        assert torch.equal(z, flow.encode(x))
        nothing = torch.zeros_like(x, dtype=torch.bool)
        torch.testing.assert_close(in_orders, flow.transform.log_in_orders(x, nothing), rtol=0, atol=0)


def test_of_many_rows_some_are_scored(flow, train, x, monkeypatch):
    whole = check_mixed(flow, x, train=train, names=NAMES)
    monkeypatch.setattr(report_of_mixed, "SCORED", 200)
    part = check_mixed(flow, x, train=train, names=NAMES)
    assert (part["rows"], part["likelihood"]["rows"], part["noise"]["rows"]) == (500, 200, 200)
    assert part["samples"]["classifier"]["rows"] == 500
    assert part["privacy"]["rows"] == whole["privacy"]["rows"]
    few = np.sort(np.random.default_rng(0).permutation(500)[:200])
    assert part["likelihood"]["flow"]["mean"] == pytest.approx(flow.log_prob(x[few]).mean().item(), abs=1e-4)
    marginals = factor_log_prob(flow.transform.factors, train.double().numpy(), x.double().numpy()[few]).sum(1)
    assert part["likelihood"]["marginals"]["mean"] == pytest.approx(marginals.mean())
    assert part["likelihood"]["flow"]["stderr"] > whole["likelihood"]["flow"]["stderr"]
    context = torch.randn(300, 1)
    torch.manual_seed(0)
    given = mixed(2, context=1, columns=COLUMNS[2:4], hidden=16, layers=1, components=4, orders=2)
    given.transform.initialize(toy(60, 3)[:, 2:4])
    assert check_mixed(given, toy(300, 3)[:, 2:4], context)["likelihood"]["rows"] == 200


def test_a_model_of_shuffled_columns_is_not_trusted(train, x):
    g = torch.Generator().manual_seed(0)
    shuffled = torch.stack([column[torch.randperm(len(train), generator=g)] for column in train.T], 1)
    report = check_mixed(learnt(shuffled, epochs=5), x, names=NAMES)
    assert report["verdict"] == "not trustworthy"
    assert "classifier tells samples from rows" in said(report)
    assert "the noise's covariance" in said(report)
    assert report["likelihood"]["gain_over_marginals"]["mean"] < 0.3


def test_permuted_weights_are_not_trusted(flow, x):
    broken = copy.deepcopy(flow)
    with torch.no_grad():
        for layer in (broken.transform.network.layers[0].weight, broken.transform.network.last.weight):
            layer.copy_(layer.flatten()[torch.randperm(layer.numel())].view_as(layer))
    report = check_mixed(broken, x, names=NAMES)
    assert report["verdict"] == "not trustworthy"
    for gist in ("classifier tells", "away from uniform", "independent columns would describe the rows better"):
        assert gist in said(report)


@pytest.mark.parametrize(("share", "noise", "verdict"), [(1.0, 0.0, "not"), (0.3, 1e-3, "usable with care")])
def test_samples_that_repeat_training_rows_are_found_out(flow, train, x, share, noise, verdict):
    class Parrot(diffeo.Flow):
        def sample(self, shape, context=None):
            drawn = super().sample(shape, context)
            repeated = train[torch.randint(len(train), shape)]
            repeated = repeated + noise * torch.randn_like(repeated) * torch.tensor([0, 1.0, 0, 0, 1])
            return torch.where(torch.rand(len(drawn), 1) < share, repeated, drawn)

    report = check_mixed(Parrot(flow.base, flow.transform), x, train=train, names=NAMES)
    assert report["verdict"].startswith(verdict)
    assert "as near to a training row" in said(report)
    assert report["privacy"]["close"]["samples"]["mean"] > share - 0.06
    assert "nearer to a training row" in said(report) or share < 1
    assert "privacy" not in check_mixed(flow, x)


def test_a_sampler_that_strays_and_a_column_that_is_off_are_found(flow, x):
    class Astray(diffeo.Flow):
        def sample(self, shape, context=None):
            drawn = super().sample(shape, context)
            drawn[:, 3] = torch.where(torch.rand(len(drawn)) < 0.5, torch.nan, drawn[:, 3])
            drawn[::9, 1] = torch.inf
            return drawn

    report = check_mixed(Astray(flow.base, flow.transform), x, names=NAMES)
    assert report["samples"]["marginals"]["column"] == "flag"
    assert report["samples"]["non_finite"] == 56
    assert report["verdict"] == "not trustworthy"
    assert "56 of 500 samples are not finite" in said(report)
    assert "distribution of column 'flag'" in said(report)


def test_rows_without_a_likelihood_and_unseen_categories(flow, x):
    odd = x.clone()
    odd[:40, 2] = 0.5  # between two whole numbers
    odd[40:60, 0] = 3  # a category that training has not seen
    report = check_mixed(flow, odd, names=NAMES)
    assert report["likelihood"]["impossible"] == 40
    assert "40 of 500 rows have no finite likelihood" in said(report)
    assert report["round_trip"]["rows"] == 480
    assert report["round_trip"]["lost"] == pytest.approx(40, abs=5)
    assert math.isfinite(report["likelihood"]["flow"]["mean"])
    odd[:, 2] = 0.5
    assert "no row has a finite likelihood" in said(check_mixed(flow, odd))


def test_rules_are_those_of_any_model(flow, train, x):
    report = check_mixed(flow, x[:60], names=NAMES)
    assert report["verdict"] == "too few rows to tell"
    assert "60 rows: a fault would go unnoticed" in said(report)
    assert "of the rows repeat others" in said(check_mixed(flow, x[:50].repeat(10, 1), names=NAMES))
    report = check_mixed(flow, train[:300], train=train, names=NAMES)
    assert report["verdict"] == "not trustworthy"
    assert "100% of the rows are equal to training rows" in said(report)
    spiked = x.clone()
    spiked[:25, 4] = 1.5
    assert "column 'total' has a single value in 5.0% of the rows" in said(check_mixed(flow, spiked, names=NAMES))


def test_too_few_rows(flow, x):
    with pytest.raises(ValueError, match="at least 20 rows, got 19"):
        check_mixed(flow, x[:19])


def test_the_flow_is_left_alone_and_thresholds_decide(flow, x):
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    report = check_mixed(flow.train(), x[:100])
    assert flow.training
    assert all(torch.equal(value, before[name]) for name, value in flow.eval().state_dict().items())
    assert judge_mixed(report, MixedThresholds(orders=(0.0, 1.0)))[0] == "usable with care"
    assert judge_mixed(report, MixedThresholds(orders=(0.0, 0.0)))[0] == "not trustworthy"
    report["round_trip"]["lost"] = math.nan
    assert judge_mixed(report)[0] == "not trustworthy"


def test_with_a_context():
    flow = mixed(2, 1, columns=COLUMNS[2:4], hidden=16, layers=1).eval()
    report = check_mixed(flow, toy(60, 3)[:, 2:4], torch.randn(60, 1), train=toy(60, 4)[:, 2:4])
    assert "privacy" not in report
    assert report["rows"] == 60

    class Astray(diffeo.Flow):
        def sample(self, shape, context=None):
            drawn = super().sample(shape, context)
            drawn[::7] = torch.inf
            return drawn

    astray = Astray(flow.base, flow.transform, None, 1, flow.context_transform)
    report = check_mixed(astray, toy(60, 3)[:, 2:4], torch.randn(60, 1))
    assert (report["samples"]["non_finite"], report["samples"]["classifier"]["rows"]) == (9, 51)


def test_noise_of_samples_is_uniform_and_its_order_is_apart(flow):
    torch.manual_seed(0)
    with torch.no_grad():
        z = flow.encode(flow.sample((4000,)))
    noise, names = noise_of(flow.transform, z, NAMES)
    assert names == [*NAMES, "the order of the columns"]
    assert ((noise > 0) & (noise < 1)).all()
    assert np.abs(np.corrcoef(noise.T) - np.eye(6)).max() < 0.06
    np.testing.assert_allclose(noise[:, 0] % 1, (z[:, 0] * 2 % 1).numpy(), atol=1e-6)
    assert ((noise[:, 5] < 0.5) == (z[:, 0] < 0.5).numpy()).all()


def test_independent_columns_have_masses_and_integrals_of_one():
    factors = [Factor(**column) for column in COLUMNS]
    rows = toy(500, 3).double().numpy()
    values = [
        [0, 1, 2, 7], np.linspace(-60, 60, 100_001), [*np.arange(-400.0, 400), np.nan], [0, 1, np.nan],
        np.linspace(-60, 60, 100_001),
    ]  # fmt: skip
    for i, (factor, cells) in enumerate(zip(factors, values, strict=True)):
        cells = np.array(cells, dtype=np.float64)
        density = np.exp(factor_log_prob([factor], rows[:, i : i + 1], cells[:, None])[:, 0])
        if factor.continuous:
            atoms = np.exp(factor_log_prob([factor], rows[:, i : i + 1], np.zeros((1, 1))))[0, 0]
            smooth = cells != 0
            total = np.trapezoid(density[smooth], cells[smooth]) + (atoms if factor.values else 0)
        else:
            total = density.sum()
        assert total == pytest.approx(1, abs=1e-2), NAMES[i]
    gap = np.full((1, 1), np.nan)
    assert factor_log_prob(factors[1:2], rows[:, 1:2], gap)[0, 0] == 0  # says nothing
    assert factor_log_prob([Factor(values=(0, 1))], rows[:, :1], np.array([[2.0]]))[0, 0] == -math.inf
    shares = mixed_held_out(factors, rows, 0)
    entropy = -(shares[:, 0]).mean()
    assert entropy == pytest.approx(math.log(3), abs=0.05)
    lonely = np.full((30, 1), np.nan)
    assert np.isfinite(factor_log_prob(factors[2:3], lonely, np.array([[3.0], [np.nan]]))).all()


def test_marginals_are_compared_value_by_value():
    g = np.random.default_rng(0)
    real, same = (np.stack([g.integers(4, size=2000), g.normal(size=2000)], 1) for _ in range(2))
    result = marginal_test(real, same, [True, False])
    assert result["p"] > 1e-3
    assert result["distance"] == pytest.approx(result["chance"], abs=0.03)
    other = same.copy()
    other[:400, 0] = np.nan
    result = marginal_test(real, other, [True, False])
    assert (result["column"], result["p"] < 1e-9) == (0, True)
    assert result["distance"] == pytest.approx(0.2, abs=0.03)
    other = same.copy()
    other[:400, 1] = 0.0  # a spike that a distribution function hardly shows
    result = marginal_test(real, other, [True, False])
    assert result["column"] == 1
    assert result["distance"] == pytest.approx(0.2, abs=0.05)


def test_nearest_records():
    g = np.random.default_rng(0)

    def draw(n):
        return np.stack([g.integers(3, size=n), g.normal(size=n), np.where(g.random(n) < 0.2, np.nan, 1)], 1)

    discrete = np.array([True, False, True])
    shares = []
    for seed in range(20):
        part = nearest_records(draw(300), draw(900), draw(300), discrete, seed)
        shares.append((part["share"] - 0.5) / part["stderr"])
        assert part["rows"] == {"samples": 300, "train": 900, "held_out": 300, "each": 300}
    assert np.std(shares) == pytest.approx(1, abs=0.5)  # so the standard error is right
    assert abs(np.mean(shares)) < 3 / math.sqrt(20)
    train = draw(300)
    part = nearest_records(train, train, draw(300), discrete, 0)
    assert part["share"] > 0.99
    assert part["close"]["samples"]["mean"] == 1
    assert (part["distance"]["samples"], part["equal"]["samples"]["mean"]) == (0, 1)
    assert part["distance"]["held_out"] > part["within"] > 0
    assert part["equal"]["held_out"]["mean"] == 0
    few = np.zeros((50, 3))  # all the same: every tie counts by half
    part = nearest_records(few, few, few, discrete, 0)
    assert (part["share"], part["stderr"]) == (pytest.approx(0.5), pytest.approx(0))
    assert part["close"]["samples"] == part["close"]["held_out"]
    far = np.array([[0, 0.0, np.nan]] * 20)  # another category, the same rank, a gap
    part = nearest_records(far, few[:20], few[:20], np.array([False, True, True]), 0)
    assert part["distance"] == {"samples": pytest.approx(1 / 3), "held_out": 0}
    part = nearest_records(far + 1, few[:20], few[:20], discrete, 0)
    assert part["distance"]["samples"] == pytest.approx((1 + 0.5 + 1) / 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    frame = pd.DataFrame(toy(1200, 5).double().numpy(), columns=NAMES)
    frame["kind"] = [["low", "mid", "high"][int(kind)] for kind in frame["kind"]]
    frame["count"] = frame["count"].astype("Int64")
    frame["day"] = [f"2024-{i % 12 + 1:02}-{i % 28 + 1:02}" for i in range(len(frame))]
    frame.to_csv(folder / "a.csv", index=False)
    argv = [
        "--set",
        "layers=1",
        "--set",
        "orders=2",
        "--set",
        "hidden=32",
        "--epochs",
        "3",
        "--folds",
        "1",
        "--no-figures",
    ]
    assert main(["fit", str(folder / "a.csv"), "--out", str(folder / "run"), *argv]) == 0
    return folder


def test_the_command(run, capsys):
    capsys.readouterr()
    assert main(["check", str(run / "run"), str(run / "a.csv")]) == 0
    out = capsys.readouterr().out
    for gist in (
        "rows held out of training (120)",
        "do not come back from their noise",
        "worst column",
        "farthest from uniform",
        "drawn at random within the masses of 6 of 6 columns",
        "are closer to a training row than to a held-out one (120 of each; 50%: nothing is copied)",
        "from samples to the closest of 1,080 training rows",
        "equal to a training row: ",
        "nats per row (120 rows)",
        "more than by itself",
        "verdict: ",
    ):
        assert gist in out
    report = commands.check(run / "run", run / "a.csv")
    assert (report["privacy"]["rows"]["train"], report["privacy"]["rows"]["each"]) == (1080, 120)
    assert report["columns"][0]["column"] == "day"
    report = commands.check(run / "run", pd.read_csv(run / "a.csv")[:100])
    assert "privacy" not in report
    assert report["rows"] == 100


def test_info_says_what_has_a_mass(run, capsys):
    capsys.readouterr()
    facts = {column["name"]: column for column in commands.info(run / "run")["columns"]}
    assert facts["kind"]["range"] == ["high", "low", "mid"]
    assert (facts["kind"]["levels"], facts["kind"]["missing"], facts["kind"]["masses"]) == (3, False, 0)
    assert facts["day"]["range"] == ["2024-01-01", "2024-12-28"]
    assert facts["count"]["missing"]
    assert facts["count"]["masses"] > 10
    assert facts["amount"]["masses"] == 1
    assert facts["total"]["copies"] == [{"column": "amount", "times": 1.0, "plus": 0.0}]
    assert main(["info", str(run / "run")]) == 0
    out = capsys.readouterr().out
    assert "columns=[" not in out
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert lines["column"].split() == ["column", "kind", "range", "missing", "single", "values", "copies"]
    assert lines["kind"].split() == ["kind", "categorical", "(3)", "high,", "low,", "mid"]
    assert "yes" in lines["count"]
    assert lines["total"].endswith("equals 'amount' in some rows")
    assert lines["day"].split()[:5] == ["day", "date", "2024-01-01", "...", "2024-12-28"]
    assert lines["training"].endswith("on 1,000 rows")
    assert "on" not in lines["validation"].split()  # on all


@pytest.mark.parametrize(
    ("copy", "expected"),
    [((1.0, 0.0), "'x'"), ((2.0, 0.0), "2 x 'x'"), ((1.0, -3.0), "'x' -3"), ((0.5, 1.0), "0.5 x 'x' +1")],
)
def test_copies_in_words(copy, expected):
    times, plus = copy
    assert words.copy_of({"column": "x", "times": times, "plus": plus}) == f"equals {expected} in some rows"


def test_gaps_that_training_did_not_see_are_checked_cell_by_cell(tmp_path):
    """A mixed density of complete numbers says nothing of a missing cell, but all of the others in its row."""
    x = np.random.default_rng(0).normal(size=(300, 2)).round(3)
    commands.fit(
        x,
        tmp_path / "run",
        model="mixed",
        epochs=1,
        folds=1,
        figures=False,
        arguments={"hidden": 16, "layers": 1, "orders": 1},
    )
    frame = np.append(x[:50], np.stack([np.full(50, np.nan), x[:50, 1]], 1), axis=0)
    report = commands.check(tmp_path / "run", frame)
    assert report["rows"] == 100
    alone = commands.check(tmp_path / "run", x[:50])
    means = {part["column"]: part["mean"] for part in report["columns"]}
    assert means["c0"] == pytest.approx({part["column"]: part["mean"] for part in alone["columns"]}["c0"] / 2, rel=1e-4)
