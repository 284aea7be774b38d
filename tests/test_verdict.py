"""What a check must not call trustworthy, and what it must: each case by a flow whose faults are known."""

import math

import numpy as np
import pytest
import torch

import diffeo
from diffeo import commands
from diffeo.bases import StandardNormal
from diffeo.cli.main import main
from diffeo.flow import Flow
from diffeo.modalities.base import Examples
from diffeo.modalities.tables.run import TableRun
from diffeo.report.check import IMAGES, THRESHOLDS, check, judge
from diffeo.report.compare import atom_test, classifier_test, shuffle_columns, sign_test
from diffeo.report.privacy import repeats
from diffeo.report.verdict import CARE, DISTRUST, IN_SAMPLE, TOO_FEW, TRUST, Limits, Verdict, gravest
from diffeo.transforms import Transform

MIX = torch.tensor([[1.0, 0.8, 0.3], [0.0, 0.6, -0.4], [0.0, 0.0, 0.9]])


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 + seed))


def correlated(rows, seed=0):
    return normal(rows, 3, seed=seed) @ MIX


class Linear(Transform):
    """x = z mix, of a Gaussian."""

    def __init__(self, mix):
        super().__init__()
        self.register_buffer("mix", mix)

    def forward_and_log_det(self, z, context=None):
        return z @ self.mix, torch.linalg.slogdet(self.mix).logabsdet.expand(len(z))

    def inverse_and_log_det(self, x, context=None):
        return torch.linalg.solve(self.mix, x, left=False), -torch.linalg.slogdet(self.mix).logabsdet.expand(len(x))


class Regression(Transform):
    """x = c_1 + sum sin(2 c) + width z."""

    def __init__(self, width=1.0):
        super().__init__()
        self.width = width

    def forward_and_log_det(self, z, context=None):
        return self.mean(context) + self.width * z, torch.full((len(z),), math.log(self.width))

    def inverse_and_log_det(self, x, context=None):
        return (x - self.mean(context)) / self.width, torch.full((len(x),), -math.log(self.width))

    @staticmethod
    def mean(context):
        return context[:, :1] + torch.sin(2 * context).sum(1, keepdim=True)


def gaussian(mix=MIX):
    return Flow(StandardNormal(len(mix)), Linear(mix)).eval()


class Parrot(Flow):
    """Its samples are training rows, or close to them, in a share of the cases."""

    def __init__(self, rows, noise, share):
        super().__init__(StandardNormal(3), Linear(MIX))
        self.rows, self.noise, self.share = rows, noise, share

    def sample(self, shape, context=None):
        drawn = super().sample(shape, context)
        repeated = self.rows[torch.randint(len(self.rows), shape)] + self.noise * torch.randn_like(drawn)
        return torch.where(torch.rand(len(drawn), 1) < self.share, repeated, drawn)


def said(report):
    return " | ".join(report["reasons"])


# ---- Right models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [100, 400, 3000])
def test_right_models_are_trusted(rows):
    x = correlated(rows)
    for train in (None, correlated(max(rows, 200), seed=1)):
        report = check(gaussian(), x, train=train)
        assert (report["verdict"], report["reasons"]) == (TRUST, [])
    assert report["samples"]["rows"] == max(rows, 1000)
    assert report["privacy"]["rows"]["held_out"] == min(rows, 2000)


CONTEXTS = {
    "1 column": lambda n: normal(n, 1, seed=2),
    "9 columns": lambda n: normal(n, 9, seed=2),
    "1 value": lambda n: torch.ones(n, 1),
    "9 values": lambda n: torch.arange(n)[:, None] % 9 / 4.0,
    "each value twice": lambda n: (torch.arange(n)[:, None] // 2) / (n / 4) - 1.0,
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_rows_and_samples_of_a_context_are_judged_together(name):
    context = CONTEXTS[name](3000)
    x = Regression.mean(context) + normal(3000, 1, seed=3)
    for width, low, high in ((1.0, 0.48, 0.52), (1.25, 0.53, 0.6)):
        flow = Flow(StandardNormal(1), Regression(width), None, context.shape[1]).eval()
        report = check(flow, x, context)
        assert low < report["samples"]["classifier"]["auc"] < high
        assert report["verdict"] == (TRUST if width == 1 else CARE), report["reasons"]


def test_the_halves_keep_pairs_together():
    """Were row i and sample i apart, their common context would give the kind of the other away."""
    context = np.random.default_rng(0).normal(size=(600, 4))
    real, sampled = (np.append(context, np.random.default_rng(k).normal(size=(600, 1)), 1) for k in (1, 2))
    result = classifier_test(real, sampled, 0)
    assert abs(result["auc"] - 0.5) < 3 * result["stderr"]
    apart = classifier_test(real, np.roll(sampled, 1, 0), 0)
    assert apart["auc"] < 0.5 - 3 * apart["stderr"]


# ---- Wrong models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [20, 25, 30, 99])
def test_few_rows_do_not_tell(rows):
    """Neither a right model nor one of shuffled columns or wrong weights is judged by so few, unless it is absurd."""
    x = correlated(rows)
    for mix in (MIX, torch.diag(MIX.norm(dim=0)), MIX.flip(0)):
        report = check(gaussian(mix), x)
        assert report["verdict"] in (TOO_FEW, DISTRUST)
        assert mix is not MIX or report["verdict"] == TOO_FEW
        assert report["verdict"] != TOO_FEW or f"{rows} rows: a fault would go unnoticed" in said(report)


def test_models_of_shuffled_columns_and_of_permuted_weights_are_not_trusted():
    x = correlated(600)
    report = check(gaussian(torch.diag(MIX.norm(dim=0))), x)
    assert report["verdict"] == DISTRUST
    assert "a Gaussian would describe the rows better" in said(report)
    assert report["samples"]["signs"]["p"] < 1e-6
    torch.manual_seed(0)
    flow = diffeo.nsf(3, transforms=2, hidden=(16,))
    diffeo.fit(flow, correlated(1000, seed=4), epochs=8, lr=1e-2)
    assert check(flow.eval(), x)["verdict"] != DISTRUST
    with torch.no_grad():
        for weight in flow.parameters():
            weight.copy_(weight.flatten()[torch.randperm(weight.numel())].view_as(weight))
    assert check(flow, x)["verdict"] == DISTRUST


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
def test_a_model_of_each_column_alone_is_not_trusted(share):
    """Both columns are normal and uncorrelated, so that a Gaussian is no better, and no classifier is sure."""
    x = normal(4000, 2, seed=8)
    same = (x[:, 0].abs() > 1.538)[:, None] == torch.tensor([False, True])
    follows = torch.where(same[:, 1], x[:, 0], -x[:, 0])
    x[:, 1] = torch.where(torch.rand(4000, generator=torch.Generator().manual_seed(9)) < share, follows, x[:, 1])
    report = check(gaussian(torch.eye(2)), x)
    assert 0.45 < report["samples"]["classifier"]["auc"] < 0.8
    assert abs(report["samples"]["classifier"]["auc"] - report["samples"]["shuffled"]["auc"]) < 0.05
    assert report["verdict"] == (DISTRUST if share else TRUST), report["reasons"]
    assert ("little is known of how the columns depend" in said(report)) == bool(share)


def test_shuffled_columns_are_each_as_before():
    rows = np.random.default_rng(0).normal(size=(300, 3)) @ MIX.double().numpy()
    rows[::7, 1] = np.nan
    shuffled = shuffle_columns(rows, 1)
    assert np.array_equal(np.sort(shuffled, 0), np.sort(rows, 0), equal_nan=True)
    assert not np.array_equal(shuffled, rows, equal_nan=True)


def test_an_overfitted_model_is_not_trusted():
    train = correlated(160, seed=5)
    torch.manual_seed(0)
    flow = diffeo.maf(3, transforms=2, hidden=(32,))
    diffeo.fit(flow, train, validation=train, epochs=300, batch_size=80, lr=1e-2)
    report = check(flow.eval(), correlated(600), train=train)
    assert report["verdict"] != TRUST
    assert "a Gaussian would describe the rows better" in said(report)
    report = check(flow, train, train=train)  # in sample, whatever the caller believes
    assert report["verdict"] == DISTRUST
    assert "100% of the rows are equal to training rows (0% of the samples)" in said(report)


@pytest.mark.parametrize(
    ("noise", "share", "verdict"), [(0.0, 1.0, DISTRUST), (1e-3, 1.0, DISTRUST), (1e-3, 0.2, CARE)]
)
def test_samples_that_repeat_training_rows_are_found(noise, share, verdict):
    train = correlated(1000, seed=6)
    report = check(Parrot(train, noise, share), correlated(500), train=train)
    assert report["verdict"] == verdict, report["reasons"]
    assert "as near to a training row as" in said(report)


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_an_atom_of_a_continuous_column_is_found(share):
    x = correlated(1000)
    count = int(share * len(x))
    x[:count, 1] = 0.25
    report = check(gaussian(), x, names=["a", "b", "c"])
    assert report["verdict"] == CARE
    assert f"column 'b' has a single value in {share:.1%} of the rows and 0.0% of the samples" in said(report)


def test_rounded_values_are_no_atoms():
    x = np.random.default_rng(0).normal(size=(2000, 4))
    drawn = np.random.default_rng(1).normal(size=(2000, 4))
    for step in (1e-4, 0.01, 0.1, 0.5):
        assert atom_test(np.round(x / step) * step, drawn) == []
    spiked = np.round(x / 0.01) * 0.01
    spiked[:40, 2] = 1.0
    assert [atom["column"] for atom in atom_test(spiked, drawn)] == [2]
    same = drawn.copy()
    same[:40, 2] = 1.0
    assert atom_test(spiked, same) == []  # nor is what samples do, too
    gaps = x.copy()
    gaps[::2, 0] = np.nan
    assert atom_test(gaps, drawn) == []


def test_rows_repeated_ten_times_are_found():
    x = correlated(1000)
    report = check(gaussian(), x[:100].repeat(10, 1))
    assert report["verdict"] == DISTRUST
    assert "90% of the rows repeat others (0% of as many samples)" in said(report)
    held_out = torch.arange(1000) % 10 == 0  # of each of a hundred rows, nine copies train
    copies = x[:100].repeat_interleave(10, 0)
    report = check(gaussian(), copies[held_out], train=copies[~held_out])
    assert report["verdict"] == DISTRUST
    assert "100% of the rows are equal to training rows" in said(report)
    assert report["samples"]["repeated"]["rows"]["mean"] == 0
    coins = np.random.default_rng(0).integers(0, 2, (2, 500, 3)).astype(float)  # where samples repeat as well
    result = repeats(*coins, train=coins[0])
    assert result["repeated"]["rows"] == result["repeated"]["samples"]
    assert result["trained"]["samples"]["mean"] == 1


def test_gaps_and_contexts_count_where_rows_repeat():
    rows = np.array([[1.0, np.nan], [1.0, np.nan], [0.0, 2.0], [-0.0, 2.0]])
    assert repeats(rows, rows)["repeated"]["rows"]["mean"] == 0.5
    assert repeats(rows, rows, np.arange(4.0)[:, None])["repeated"]["rows"]["mean"] == 0


@pytest.mark.parametrize("columns", [8, 10])
def test_the_parity_of_eight_signs_is_found(columns):
    """Any seven of them are independent, so nothing but their product shows that the eight are not."""
    x = normal(1000, columns, seed=7)
    x[:, 7] = x[:, 7].abs() * x[:, :7].sign().prod(1)
    report = check(gaussian(torch.eye(columns)), x)
    assert report["verdict"] == DISTRUST
    assert report["reasons"] == [report["reasons"][0]]  # no other test sees it
    assert report["samples"]["signs"]["columns"] == [f"c{i}" for i in range(8)]


def test_signs_of_equal_tables_differ_by_chance():
    p = [sign_test(*np.random.default_rng(k).normal(size=(2, 300, 6)))["p"] for k in range(40)]
    assert min(p) > 1e-4
    wide = np.random.default_rng(0).integers(0, 3, (2, 200, 30)).astype(float)
    wide[:, :20, 0] = np.nan
    assert sign_test(*wide)["looked_at"] == 16


@pytest.mark.parametrize("share", [0.9, 0.97])
def test_rows_off_a_grid_weigh(share, tmp_path, capsys):
    """Rows with a value off its grid are left out of every measure; that there are so many decides."""
    x = np.column_stack([np.random.default_rng(0).integers(0, 30, 1500), np.random.default_rng(1).normal(size=1500)])
    arguments = {"hidden": [16], "transforms": 1}
    commands.fit(x, tmp_path / "run", epochs=2, folds=1, arguments=arguments, figures=False)
    fresh = x[:1000].copy()
    fresh[: int(1000 * share), 0] += 0.5
    np.save(tmp_path / "fresh.npy", fresh)
    report = commands.check(tmp_path / "run", fresh)
    assert (report["read"], report["off_grid"]) == (1000, int(1000 * share))
    assert report["verdict"] == DISTRUST
    assert f"{report['off_grid']:,} of 1,000 rows have a value off its grid" in said(report)
    assert main(["check", str(tmp_path / "run"), str(tmp_path / "fresh.npy")]) == 0
    out = capsys.readouterr().out
    assert f"{report['off_grid']} of 1,000 rows, with a value off its grid, by column: " in out
    assert "looked at: each column" in out
    assert "signs of any of 2 columns" in " ".join(out.split())


def test_rows_without_a_likelihood_weigh():
    class Bounded(Flow):
        def log_prob(self, x, context=None, nan="error"):
            return torch.where(x[:, 0] > 1, -torch.inf, super().log_prob(x, context, nan))

    report = check(Bounded(StandardNormal(3), Linear(MIX)).eval(), correlated(500))
    assert report["likelihood"]["impossible"] > 50
    assert report["verdict"] == DISTRUST
    assert f"{report['likelihood']['impossible']} of 500 rows have no finite likelihood" in said(report)


@pytest.mark.parametrize("verdict", [TRUST, CARE, TOO_FEW, DISTRUST])
def test_no_verdict_in_sample_but_distrust(verdict, tmp_path, monkeypatch):
    x = correlated(200).numpy()
    arguments = {"hidden": [8], "transforms": 1}
    commands.fit(x, tmp_path / "run", epochs=1, folds=1, arguments=arguments, figures=False)
    monkeypatch.setattr(TableRun, "examples", lambda *_: Examples("x", torch.zeros(200, 3), None, "all", True))
    monkeypatch.setattr(TableRun, "examine", lambda *_: {"verdict": verdict, "reasons": ["because"]})
    report = commands.check(tmp_path / "run", x)
    assert report["verdict"] == (DISTRUST if verdict == DISTRUST else IN_SAMPLE)
    assert report["reasons"] == ["because"]


# ---- What a verdict takes into account ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report():
    return check(gaussian(), correlated(500), train=correlated(500, seed=1))


def beside_shuffled(auc, of_shuffled):
    return {"classifier": {"auc": auc, "stderr": 0.012}, "shuffled": {"auc": of_shuffled, "stderr": 0.012}}


@pytest.mark.parametrize(
    ("change", "verdict", "reason"),
    [
        ({"samples": {"classifier": {"auc": 0.53, "stderr": 0.006}}}, CARE, "with AUC 0.53"),
        ({"samples": {"classifier": {"auc": 0.47, "stderr": 0.006}}}, CARE, "rows are not independent"),
        ({"samples": {"classifier": {"auc": 0.9, "stderr": 0.02}}}, DISTRUST, "with AUC 0.90"),
        ({"samples": {"classifier": {"auc": 0.52, "stderr": 0.006}}}, TRUST, ""),
        ({"samples": beside_shuffled(0.72, 0.99)}, CARE, "with AUC 0.72"),
        ({"samples": beside_shuffled(0.72, 0.74)}, DISTRUST, "shuffled columns are told from rows with AUC 0.74"),
        ({"samples": beside_shuffled(0.54, 0.56)}, TRUST, ""),
        ({"samples": {"projections": {"distance": 0.03, "p": 1e-7}}}, CARE, "in distribution function"),
        ({"samples": {"projections": {"distance": 0.03, "p": 5e-4}}}, TRUST, ""),
        ({"latents": {"radius_distance": 0.05, "radius_p": 1e-9}}, CARE, "distances from 0 are 0.05 away"),
        ({"latents": {"covariance": 0.1, "covariance_p": 1e-9}}, CARE, "is off by 0.10"),
        ({"latents": {"distance": 0.5, "p": math.nan}}, DISTRUST, "away from the base's distribution"),
        ({"likelihood": {"impossible": 2}}, CARE, "2 of 500 rows have no finite likelihood"),
        ({"rows": 99}, TOO_FEW, "99 rows"),
    ],
)
def test_all_that_is_printed_counts(report, change, verdict, reason):
    def merged(old, new):
        return {
            **old,
            **{key: merged(old[key], value) if isinstance(value, dict) else value for key, value in new.items()},
        }

    words, reasons = judge(merged(report, change))
    assert words == verdict
    assert reason in " ".join(reasons)
    assert bool(reasons) == (words != TRUST)


def test_of_images_no_classifier_decides(report):
    samples = {**report["samples"], "classifier": {"auc": 1.0, "stderr": 0.001}}
    assert judge({**report, "samples": samples})[0] == DISTRUST
    assert judge({**report, "samples": samples}, IMAGES)[0] == TRUST


def test_the_gravest_verdict_prevails():
    assert gravest((TRUST, []), (CARE, ["a"])) == (CARE, ["a"])
    assert gravest((CARE, ["a"]), (DISTRUST, ["b"]), (IN_SAMPLE, [])) == (DISTRUST, ["b", "a"])
    assert gravest((TOO_FEW, ["a"]), (IN_SAMPLE, [])) == (IN_SAMPLE, ["a"])
    assert isinstance(THRESHOLDS, Limits)
    verdict = Verdict(Limits(enough=0))
    assert verdict.of(0) == (TRUST, [])
