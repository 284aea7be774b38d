"""Folds: who has seen which row, how densities are stacked, and runs of several members."""

import json
import math
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch

import diffeo
from diffeo import commands
from diffeo.cli import main
from diffeo.errors import UserError
from diffeo.mixture import Mixture, OutOfFold
from diffeo.modalities.tables.seen import NEW, TRAIN, VALID, SeenRows
from diffeo.recipes import mixed, nsf
from diffeo.training.digests import digests
from diffeo.training.families import FAMILIES, fitted
from diffeo.training.folds import assign_folds, fit_folds, out_of_fold, stack

QUICK = {"epochs": 2, "batch_size": 32, "lr": 1e-2}
SMALL = {"epochs": 2, "folds": 3, "figures": False, "arguments": {"hidden": [8], "transforms": 1, "dropout": 0.0}}


def correlated(rows=120, seed=0):
    z = np.random.default_rng(seed).normal(size=(rows, 2))
    return torch.from_numpy(z @ np.array([[1.0, 0.8], [0.0, 0.5]])).float()


@pytest.fixture(scope="module")
def result():
    flow = nsf(2, transforms=1, hidden=[8])
    before = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    stacked = fit_folds(flow, correlated(), folds=3, jobs=1, **QUICK)
    assert all(torch.equal(tensor, before[name]) for name, tensor in flow.state_dict().items())  # only copies train
    return stacked


# ---- Rows and folds -------------------------------------------------------------------------------------------------


def test_digests_tell_rows_apart_and_know_equal_ones():
    x = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [1.0, np.nextafter(np.float32(2), np.float32(3))]])
    keys = digests(x)
    assert keys[0] == keys[2]
    assert len(set(keys.tolist())) == 3
    assert (digests(x.flip(0)) == keys[::-1]).all()  # whatever rows are with them
    assert digests(torch.tensor([[0.0, math.nan]]))[0] == digests(torch.tensor([[-0.0, -math.nan]]))[0]
    context = torch.tensor([[1.0], [1.0], [2.0], [1.0]])
    assert len(set(digests(x, context).tolist())) == 4
    assert len(set(digests(torch.randn(20_000, 3)).tolist())) == 20_000


@pytest.mark.parametrize("folds", [2, 5])
def test_every_row_is_in_one_fold_and_equal_rows_in_the_same(folds):
    x = torch.cat([correlated(200), correlated(50), correlated(50)])  # 50 rows three times
    fold = assign_folds(x, None, folds, seed=1)
    assert torch.equal(fold[:50], fold[200:250])
    assert torch.equal(fold[:50], fold[250:])
    sizes = torch.bincount(fold, minlength=folds)
    assert len(sizes) == folds
    assert sizes.min() > 0.8 * len(x) / folds
    assert torch.equal(fold, assign_folds(x, None, folds, seed=1))
    assert not torch.equal(fold, assign_folds(x, None, folds, seed=2))
    assert not torch.equal(assign_folds(x, None, folds, 1, together=False)[:50], fold[:50])
    with pytest.raises(ValueError, match="folds >= 2"):
        assign_folds(x, None, 1, 0)
    with pytest.raises(ValueError, match="at least 10 different rows for 5 folds, got 3"):
        assign_folds(x[:3].repeat(9, 1), None, 5, 0)


# ---- Stacking -------------------------------------------------------------------------------------------------------


def test_weights_maximise_the_likelihood_of_the_mixture():
    """Beside every other choice of two weights on a fine grid, and by the gradient for three."""
    scores = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    weights = stack(scores[:, :2])
    grid = torch.linspace(1e-6, 1 - 1e-6, 2001, dtype=torch.float64)
    both = torch.stack([grid, 1 - grid]).log()
    means = torch.logsumexp(scores[:, :2, None] + both, 1).mean(0)
    assert float(torch.logsumexp(scores[:, :2] + weights.log(), 1).mean()) >= float(means.max()) - 1e-6
    weights = stack(scores)
    total = torch.logsumexp(scores + weights.log(), 1, keepdim=True)
    torch.testing.assert_close((scores - total).exp().mean(0), torch.ones(3).double(), rtol=0, atol=1e-3)
    assert float(weights.sum()) == pytest.approx(1)


def test_a_floor_is_kept_and_impossible_rows_do_no_harm():
    scores = torch.stack([torch.zeros(50), torch.full((50,), -80.0)], 1).double()
    assert stack(scores).tolist() == pytest.approx([1, 0], abs=1e-6)
    assert stack(scores, [0.0, 0.01]).tolist() == pytest.approx([0.99, 0.01])
    scores[0] = -math.inf
    scores[1, 0] = -math.inf
    weights = stack(scores, [0.0, 0.01])
    assert torch.isfinite(weights).all()
    assert weights[1] >= 0.01


# ---- Families -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def standardised():
    flow = nsf(2, transforms=1, hidden=[4])
    x = 5 * correlated(300, 3) + 2
    diffeo.fit(flow, x, epochs=1)
    return flow, x


def test_simple_families_are_those_of_scikit_learn(standardised):
    from sklearn.covariance import LedoitWolf
    from sklearn.mixture import GaussianMixture
    from sklearn.neighbors import KernelDensity

    flow, x = standardised
    mean, std = x.mean(0), x.std(0, correction=0)
    z, new = ((part - mean) / std for part in (x, 5 * correlated(40, 4) + 2))
    rows = new * std + mean
    log_det = float(std.log().sum())
    gaussian = fitted("gaussian", flow, x, 0)
    expected = LedoitWolf().fit(z).score(new) - log_det
    assert float(gaussian.log_prob(rows).mean()) == pytest.approx(expected, abs=1e-3)
    mixture = fitted("gaussians", flow, x, 0)
    components = len(mixture.base.means)
    reference = GaussianMixture(components, reg_covar=1e-4, random_state=0, max_iter=200).fit(z)
    assert float(mixture.log_prob(rows).mean()) == pytest.approx(reference.score(new) - log_det, abs=1e-2)
    kernels = fitted("kernels", flow, x, 0)
    width = float(1 / kernels.base.whitening[0, 0, 0])
    reference = KernelDensity(bandwidth=width).fit(z)
    assert float(kernels.log_prob(rows).mean()) == pytest.approx(reference.score(new) / 40 - log_det, abs=1e-3)
    other = [KernelDensity(bandwidth=factor * width).fit(z[:250]).score(z[250:]) for factor in (0.3, 1.0, 3.0)]
    assert max(other) == other[1]  # neither far too narrow nor far too wide


def test_the_broad_density_is_finite_however_far_out(standardised):
    flow, x = standardised
    far = torch.tensor([[1e6, -1e6], [1e15, 0.0]])
    assert torch.isfinite(fitted("broad", flow, x, 0).log_prob(far)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_families_survive_a_run_directory_and_no_pickle(family, standardised, tmp_path):
    flow, x = standardised
    density = fitted(family, flow, x, 1)
    density.save(tmp_path / "run")
    assert torch.equal(diffeo.load(tmp_path / "run").log_prob(x), density.log_prob(x))


def test_a_value_far_from_the_single_ones_costs_no_more_than_its_distance():
    """Masses of three values teach the smooth part that lies below them to be as sharp as it can be."""
    x = torch.from_numpy(np.random.default_rng(0).choice([0.0, 1.0, 6.0], (300, 1))).float()
    flow = mixed(1, columns=[{"values": [0.0, 1.0, 6.0], "steps": [1.0]}], hidden=4, layers=1, orders=1)
    density = fitted("independent", flow, x, 0)
    masses = density.log_prob(torch.arange(-2_000.0, 2_000)[:, None]).exp().double()
    assert masses.sum().item() == pytest.approx(1, abs=1e-3)
    far = density.log_prob(torch.tensor([[12.0], [3.0], [-6.0]]))
    assert (far > -200).all()
    assert (density.log_prob(x).mean() > math.log(1 / 3) - 0.05).all()


def test_independent_columns_of_a_mixed_table():
    """Their density is the product of the columns' own, which depends on no other column."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.randint(3, (600,), generator=generator).float()
    x = torch.stack([kind, kind * 2 + torch.randn(600, generator=generator)], 1)
    flow = mixed(2, columns=[{"values": [0.0, 1.0, 2.0]}, {"steps": [0.0]}], hidden=8, layers=1, orders=2)
    density = fitted("independent", flow, x, 0)
    first, second = (
        torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]),
        torch.tensor([[0.0, 4.0], [1.0, 4.0], [2.0, 4.0]]),
    )
    ratio = density.log_prob(first) - density.log_prob(second)
    torch.testing.assert_close(ratio, ratio[:1].expand(3), rtol=0, atol=1e-5)
    shares = torch.tensor([(kind == k).double().mean() for k in range(3)]).log()
    relative = density.log_prob(first).double() - density.log_prob(first)[0]
    torch.testing.assert_close(relative, shares - shares[0], rtol=0, atol=0.05)


# ---- Training by folds ----------------------------------------------------------------------------------------------


def test_the_density_is_the_mean_over_folds_of_a_weighted_mixture(result):
    assert isinstance(result.flow, Mixture)
    assert result.flow.weights == pytest.approx([1 / 3] * 3)
    kept = [share for share in result.weights.values() if share >= 1e-4]
    for member in result.flow.members:
        assert member.weights == pytest.approx([share / sum(kept) for share in kept], abs=1e-6)
    assert set(result.weights) == {"flow", *FAMILIES}
    assert sum(result.weights.values()) == pytest.approx(1)
    assert result.weights["broad"] >= 1e-4
    assert float(result.log_prob.mean()) >= max(result.scores.values()) - 1e-3  # no family alone is better


def test_rows_are_scored_by_what_has_not_seen_them(result):
    x = correlated()
    scored = out_of_fold(result.flow, result.fold, lambda density, rows: density.log_prob(x[rows]))
    torch.testing.assert_close(scored, result.log_prob, rtol=0, atol=1e-4)
    unseen = out_of_fold(result.flow, torch.full((120,), -1), lambda density, rows: density.log_prob(x[rows]))
    torch.testing.assert_close(unseen, result.flow.log_prob(x).double(), rtol=0, atol=1e-5)


def test_what_is_fitted_depends_on_no_row_of_its_fold():
    """Flows are stopped by their fold, so the last weights stand: with one epoch nothing can be chosen."""
    x = correlated(60)
    changed = x.clone()
    options = {"folds": 3, "jobs": 1, "epochs": 1, "batch_size": 64}
    flow = nsf(2, transforms=1, hidden=[4])
    first = fit_folds(flow, x, together=False, **options)
    mine = (first.fold == 1).nonzero()[:, 0]
    changed[mine] += 3.0
    second = fit_folds(flow, changed, together=False, **options)
    assert torch.equal(first.fold, second.fold)
    probe = correlated(20, 9)

    def of(stacked, fold, name):
        names = [each for each, share in stacked.weights.items() if share >= 1e-4]
        return stacked.flow.members[fold].members[names.index(name)].log_prob(probe)

    for name in set(first.weights) & set(second.weights):
        if min(first.weights[name], second.weights[name]) >= 1e-4:
            assert torch.equal(of(first, 1, name), of(second, 1, name)), name
            assert not torch.equal(of(first, 0, name), of(second, 0, name)), name


def test_the_weights_do_not_depend_on_how_many_are_trained_side_by_side(result):
    again = fit_folds(nsf(2, transforms=1, hidden=[8]), correlated(), folds=3, jobs=2, **QUICK)
    for name, tensor in result.flow.state_dict().items():
        assert torch.equal(tensor, again.flow.state_dict()[name]), name


def test_the_largest_flows_are_trained_first(monkeypatch):
    """No process is left alone with one of them while others have nothing more to do."""
    flows = {"narrow": nsf(2, transforms=1, hidden=[4]), "wide": nsf(2, transforms=1, hidden=[16])}
    options = dict(folds=2, families=[], **QUICK)
    one_by_one = fit_folds(flows, correlated(), jobs=1, **options)
    module, begun = sys.modules["diffeo.training.folds"], []

    def noting(task, **arguments):
        begun.append((task.name, task.fold))
        return train(task, **arguments)

    train = module._train
    monkeypatch.setattr(module, "_train", noting)
    monkeypatch.setattr(module, "processes", lambda count: ThreadPoolExecutor(1))
    side_by_side = fit_folds(flows, correlated(), jobs=2, **options)
    assert begun == [("wide", 0), ("wide", 1), ("narrow", 0), ("narrow", 1)]
    for name, tensor in one_by_one.flow.state_dict().items():
        assert torch.equal(tensor, side_by_side.flow.state_dict()[name]), name


def test_a_training_of_one_member_is_resumed(tmp_path, monkeypatch):
    x, flow = correlated(), nsf(2, transforms=1, hidden=[8])
    whole = fit_folds(flow, x, folds=3, jobs=1, **QUICK)
    calls = []

    def interrupting(*arguments):
        calls.append(arguments)
        if len(calls) == 3:  # in the second member
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments)

    module = sys.modules["diffeo.training.fit"]
    evaluate = module.evaluate
    monkeypatch.setattr(module, "evaluate", interrupting)
    with pytest.raises(KeyboardInterrupt):
        fit_folds(flow, x, folds=3, jobs=1, out=tmp_path / "run", **QUICK)
    again = fit_folds(flow, x, folds=3, jobs=1, out=tmp_path / "run", resume=True, **QUICK)
    assert again.training.stopped != "interrupted"
    for name, tensor in whole.flow.state_dict().items():
        assert torch.equal(tensor, again.flow.state_dict()[name]), name


def test_a_context_is_kept_by_every_member():
    x, context = correlated(), correlated(seed=1)[:, :1]
    stacked = fit_folds(nsf(2, 1, transforms=1, hidden=[8]), x, context, folds=2, jobs=1, **QUICK)
    assert set(stacked.weights) == {"flow", "broad"}
    assert stacked.flow.sample((), context).shape == (120, 2)
    with pytest.raises(ValueError, match="families among"):
        fit_folds(nsf(2), x, families=["forest"])


def test_several_flows_are_stacked_by_name():
    flows = {"narrow": nsf(2, transforms=1, hidden=[4]), "wide": nsf(2, transforms=1, hidden=[16])}
    stacked = fit_folds(flows, correlated(), folds=2, families=[], jobs=1, **QUICK)
    assert set(stacked.weights) == {"narrow", "wide"}
    assert len(stacked.members) == 4


def test_a_flow_that_has_learned_sooner_is_trained_for_fewer_epochs():
    flows = {"narrow": nsf(2, transforms=1, hidden=[4]), "wide": nsf(2, transforms=1, hidden=[16])}
    options = dict(folds=2, families=[], jobs=1, **QUICK)
    stacked = fit_folds(flows, correlated(), most_epochs={"narrow": 1, "wide": 9}, **options)
    assert [member.epochs for member in stacked.members] == [1, 2, 1, 2]
    with pytest.raises(ValueError, match="expected most_epochs of flows among narrow, wide, got 'broad'"):
        fit_folds(flows, correlated(), most_epochs={"broad": 1}, **options)


def test_given_its_fold_a_row_has_the_density_of_its_member(result):
    judged, x = OutOfFold(result.flow), correlated()
    context = result.fold[:, None].float()
    torch.testing.assert_close(judged.log_prob(x, context).double(), result.log_prob, rtol=0, atol=1e-4)
    none = torch.full((120, 1), -1.0)
    torch.testing.assert_close(judged.log_prob(x, none), result.flow.log_prob(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(judged.decode(judged.encode(x, context), context), x, rtol=0, atol=1e-3)
    torch.manual_seed(0)
    drawn = judged.sample(200, torch.tensor([[0.0], [2.0]]))
    assert drawn.shape == (200, 2, 2)
    expected = result.flow.members[2].sample(4000)
    assert (drawn[:, 1].mean(0) - expected.mean(0)).abs().max() < 0.3
    with pytest.raises(ValueError, match="expected a context"):
        judged.log_prob(x)


# ---- Runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    frame = pd.DataFrame(correlated(150).numpy(), columns=["a", "b"])
    frame["n"] = np.random.default_rng(1).poisson(20, 150)
    frame.to_csv(folder / "x.csv", index=False)
    commands.fit(folder / "x.csv", folder / "run", **SMALL)
    return folder


def test_seen_rows_survive_a_file(tmp_path):
    x, valid = correlated(20), correlated(10, 1)
    noise, known = torch.tensor([[0.1, 0.2]]), torch.arange(40.0).reshape(20, 2)
    seen = SeenRows.of([(x, None, torch.arange(20) % 4, known), (valid, None, VALID, None)], noise)
    seen.save(tmp_path)
    again = SeenRows.load(tmp_path)
    for name in ("digest", "part", "log_prob", "noise"):
        np.testing.assert_array_equal(getattr(again, name), getattr(seen, name))
    parts = again.parts(torch.cat([valid, x.flip(0), correlated(5, 2)]))
    assert parts.tolist() == [VALID] * 10 + [k % 4 for k in range(19, -1, -1)] + [NEW] * 5
    assert np.isnan(again.log_prob).sum() == 2 * 10
    assert SeenRows.load(tmp_path / "none") is None
    with (tmp_path / "rows.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"xyz")
    with pytest.raises(UserError, match="is corrupted"):
        SeenRows.load(tmp_path)


def test_scores_are_out_of_fold_in_any_order_and_company(run, tmp_path, capsys):
    summary = commands.score(run / "run", run / "x.csv", tmp_path / "a.csv")
    assert (summary["in_training"], summary["out_of_fold"], summary["rows"]) == (150, 150, 150)
    metrics = commands.info(run / "run")["metrics"]
    assert -summary["mean"] == pytest.approx(metrics["out_of_fold"]["nll"], abs=1e-5)
    assert metrics["train"]["nll"] < metrics["out_of_fold"]["nll"]
    frame = pd.read_csv(run / "x.csv")
    new = frame.assign(a=frame["a"] + 0.001)[:30]
    mixed_up = pd.concat([new, frame[::-1]])
    summary = commands.score(run / "run", mixed_up, tmp_path / "b.csv")
    assert (summary["in_training"], summary["rows"]) == (150, 180)
    scores = [pd.read_csv(tmp_path / f"{name}.csv")["log_likelihood"].to_numpy() for name in "ab"]
    np.testing.assert_allclose(scores[1][30:], scores[0][::-1], atol=1e-4)
    capsys.readouterr()
    assert main(["score", str(run / "run"), str(run / "x.csv"), "--out", str(tmp_path / "c.csv")]) == 0
    assert "150 of 150 rows were in training: likelihoods out of fold" in capsys.readouterr().out


def test_a_run_of_folds_lives_as_any_other(run, tmp_path, capsys):
    info = commands.info(run / "run")
    assert info["model"] == "nsf"
    assert info["metrics"]["folds"] == 3
    assert sorted(path.name for path in (run / "run" / "train").iterdir()) == [
        "metrics.jsonl",
        "nsf-1",
        "nsf-2",
        "nsf-3",
    ]
    assert main(["info", str(run / "run")]) == 0
    said = capsys.readouterr().out
    assert "stack" in said
    assert "% " in said
    commands.sample(run / "run", 40, tmp_path / "s.csv")
    drawn = pd.read_csv(tmp_path / "s.csv")
    assert list(drawn) == ["a", "b", "n"]
    assert (drawn["n"] == drawn["n"].round()).all()
    with pytest.raises(UserError, match="a mixture of several models; distil one trained with --folds 1"):
        commands.distill(run / "run", tmp_path / "fast")


def test_a_run_of_folds_is_trained_longer(run, tmp_path):
    import shutil

    shutil.copytree(run / "run", tmp_path / "run")
    summary = commands.fit(run / "x.csv", tmp_path / "run", resume=True, epochs=3, figures=False)
    assert summary["epochs"] == 3
    whole = commands.fit(run / "x.csv", tmp_path / "whole", **{**SMALL, "epochs": 3})
    assert summary["out_of_fold"]["nll"] == pytest.approx(whole["out_of_fold"]["nll"], abs=0.2)


def test_small_tables_are_trained_by_folds_and_large_ones_are_not(monkeypatch, tmp_path):
    from diffeo.modalities.tables.dataset import TableDataset

    def folds(rows, **settings):
        return TableDataset(np.random.default_rng(0).normal(size=(rows, 2)), settings, 0).folds

    assert [folds(rows) for rows in (49, 50, 20_000, 20_001)] == [1, 5, 5, 1]
    assert folds(100, folds=1) == 1
    assert folds(30_000, folds=2) == 2
    monkeypatch.setattr("diffeo.modalities.tables.rows.LARGE", 100)
    assert folds(100) == 1
    with pytest.raises(UserError, match="too large to train several times over; leave out --folds"):
        folds(100, folds=2)
    with pytest.raises(UserError, match="--folds is for tables, and these data are images"):
        commands.fit(np.zeros((20, 4, 4), np.uint8), tmp_path / "run", folds=2)


def test_folds_that_cannot_be_leave_nothing_behind(run, tmp_path, capsys):
    words = ["fit", str(run / "x.csv"), "--out", str(tmp_path / "run"), "--folds", "100"]
    assert main(words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(said) == 1
    assert "x.csv: expected at least 200 different rows for 100 folds, got 150" in said[0]
    assert "--folds 1" in said[0]
    assert not (tmp_path / "run").exists()


def test_only_so_many_validation_rows_are_scored(run, monkeypatch, tmp_path):
    monkeypatch.setattr("diffeo.modalities.tables.dataset.CALIBRATED", 4)
    commands.fit(run / "x.csv", tmp_path / "run", **{**SMALL, "folds": 1})
    seen = SeenRows.load(tmp_path / "run")
    assert np.isfinite(seen.log_prob).all(1).sum() == np.isfinite(seen.log_prob).any(1).sum() == 4
    assert (seen.part == VALID).sum() == 15


def test_check_judges_rows_by_what_has_not_seen_them(run, tmp_path):
    report = commands.check(run / "run", run / "x.csv")
    assert not report["in_sample"]
    assert report["which"] == "all rows, those of training (150) by members that had not seen them"
    metrics = commands.info(run / "run")["metrics"]  # by another noise within the cells of n
    assert -report["likelihood"]["flow"]["mean"] == pytest.approx(metrics["out_of_fold"]["nll"], abs=0.1)
    assert report["verdict"] != "in sample: says nothing about new data"


def test_a_single_model_knows_its_rows_too(run, tmp_path):
    commands.fit(run / "x.csv", tmp_path / "run", **{**SMALL, "folds": 1})
    seen = SeenRows.load(tmp_path / "run")
    assert sorted(set(seen.part.tolist())) == [VALID, TRAIN]
    assert np.isfinite(seen.log_prob[seen.part == VALID]).all()
    assert commands.score(tmp_path / "run", run / "x.csv", tmp_path / "s.csv")["in_training"] == 135


def test_no_row_spoils_a_mean(run, tmp_path):
    frame = pd.read_csv(run / "x.csv")
    frame.loc[3, "a"] = 1e4
    scores = commands.score(run / "run", frame, tmp_path / "s.csv")
    assert -80 < scores["min"] < -20
    assert json.loads((run / "run" / "model.json").read_text())["provenance"]["trained"]["name"] == "nsf"
