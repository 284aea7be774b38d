"""Quantiles, distribution functions and scores of conditional densities, against formulas and the command line."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import diffeo
from diffeo import Mixture, commands
from diffeo.bases import StandardLogistic, StandardNormal, StudentT
from diffeo.cli import main
from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.report.prediction import cdf, crps, ensemble, has_cdf, pit, quantiles
from diffeo.transforms import Dequantize, Standardize

LEVELS = [0.001, 0.05, 0.5, 0.95, 0.999]


def flow(base=None, mean=0.0, std=1.0, context=2):
    """A location-scale density that does not look at its context."""
    standard = Standardize(1)
    standard.mean.fill_(mean)
    standard.std.fill_(std)
    standard.initialized.fill_(True)
    return Flow(base or StandardNormal(1), [standard], context_shape=context).double().eval()


def neural(seed):
    torch.manual_seed(seed)
    made = diffeo.nsf(1, context=2, transforms=2, hidden=[16], preprocess=[])
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made.double().eval()


@pytest.mark.parametrize(
    ("base", "known"),
    [(StandardNormal(1), stats.norm), (StandardLogistic(1), stats.logistic), (StudentT(1, 2.0), stats.t(2))],
)
def test_of_one_flow_they_are_those_of_its_noise(base, known):
    found = quantiles(flow(base, 3.0, 2.0), LEVELS, torch.zeros(4, 2))
    np.testing.assert_allclose(found, np.tile(3 + 2 * known.ppf(LEVELS), (4, 1)), rtol=1e-9)


def test_of_a_mixture_they_solve_the_weighted_distribution_function():
    mixture = Mixture([flow(mean=-5, std=0.1), Mixture([flow(mean=5), flow(StudentT(1))], [0.9, 0.1])], [0.3, 0.7])
    found = quantiles(mixture.double(), LEVELS, torch.zeros(1, 2))[0].numpy()
    expected = 0.3 * stats.norm(-5, 0.1).cdf(found) + 0.63 * stats.norm(5).cdf(found) + 0.07 * stats.t(2).cdf(found)
    np.testing.assert_allclose(expected, LEVELS, atol=1e-9)


def test_quantiles_and_distribution_functions_are_inverse():
    mixture = Mixture([neural(1), neural(2), flow(StudentT(1))], [0.6, 0.39, 0.01]).double()
    context = torch.randn(50, 2)
    found = quantiles(mixture, LEVELS, context)
    for k, level in enumerate(LEVELS):
        np.testing.assert_allclose(cdf(mixture, found[:, k], context), level, atol=1e-8)
    with torch.enable_grad():  # and the density is the derivative
        y = torch.linspace(-2, 2, 50, dtype=torch.float64)
        slope = (cdf(mixture, y + 1e-5, context) - cdf(mixture, y - 1e-5, context)) / 2e-5
    torch.testing.assert_close(slope, mixture.log_prob(y[:, None], context).exp().detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spread", [1, 3, 20])
def test_quantiles_of_members_far_apart(spread):
    """Between two members Newton's method alone can go to and fro, for some of the levels of most of these mixtures."""
    levels, context = np.linspace(0.001, 0.999, 999), torch.zeros(999, 2)
    for _ in range(10):
        means, stds = spread * torch.randn(30), torch.exp(1.5 * torch.randn(30))
        mixture = Mixture([flow(mean=mean, std=std) for mean, std in zip(means.tolist(), stds.tolist(), strict=True)])
        found = quantiles(mixture.double(), levels, context[:1])[0]
        np.testing.assert_allclose(cdf(mixture, found, context), levels, atol=1e-8)


def test_points_stand_for_the_density():
    mixture = Mixture([flow(mean=-1), flow(mean=3, std=0.5)], [0.25, 0.75]).double()
    values, weights = ensemble(mixture, torch.zeros(3, 2))
    assert float(weights.sum()) == pytest.approx(1)
    assert float((values[0, :, 0] * weights).sum()) == pytest.approx(2, abs=1e-6)
    two = diffeo.maf(2, context=2, transforms=1, hidden=[8]).double().eval()
    assert not has_cdf(two)
    context = torch.randn(5, 2)
    together, alone = ensemble(two, context)[0], ensemble(two, context[3:4])[0]
    torch.testing.assert_close(together[3:4], alone)
    with pytest.raises(ValueError, match="one element"):
        quantiles(two, LEVELS, context)
    with pytest.raises(ValueError, match="levels in"):
        quantiles(mixture, [0.0], context)


def test_crps_is_that_of_a_gaussian():
    y = np.array([-2.0, 0.0, 0.7])
    values, weights = ensemble(flow(), torch.zeros(3, 2), size=2000)
    expected = y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y) - 1 / np.sqrt(np.pi)  # Gneiting et al. 2005
    np.testing.assert_allclose(crps(values[..., 0].numpy(), weights.numpy(), y), expected, atol=1e-4)
    np.testing.assert_allclose(crps(np.array([[1.0], [2.0]]), np.ones(1), np.array([3.0, 3.0])), [2.0, 1.0])


def test_pit_is_uniform_of_a_right_model_alone():
    generator = np.random.default_rng(0)
    context = torch.zeros(4000, 2)
    y = torch.from_numpy(generator.normal(3, 2, (4000, 1)))
    assert stats.kstest(pit(flow(mean=3, std=2), y, context, [0.0])[:, 0], "uniform").pvalue > 0.01
    assert stats.kstest(pit(flow(mean=3, std=1.5), y, context, [0.0])[:, 0], "uniform").pvalue < 1e-6
    cells = flow(mean=3, std=2)
    discrete = Flow(cells.base, [*cells.transform, Dequantize(1)], context_shape=2).double().eval()
    assert stats.kstest(pit(discrete, y.floor(), context, [1.0])[:, 0], "uniform").pvalue > 0.01


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    generator = np.random.default_rng(0)
    x = generator.uniform(0, 3, 450)
    kind = generator.choice([*"ab"], 450)
    y = np.sin(2 * x) + 0.1 * (1 + x) * generator.normal(size=450) + (kind == "a")
    frame = pd.DataFrame({"x": x, "kind": kind, "y": y, "id": np.arange(450) + 0.5})
    frame[:300].drop(columns="id").to_csv(folder / "train.csv", index=False)
    frame[300:].to_csv(folder / "test.csv", index=False)
    commands.fit(
        folder / "train.csv", folder / "run", context=["x", "kind"], epochs=40, folds=2, lr=0.02,
        arguments={"hidden": [16], "transforms": 2},
    )  # fmt: skip
    return folder


def test_the_command_judges_what_it_predicts(run, capsys):
    out = run / "predicted.csv"
    options = ["--quantiles", ".1,.5,.9", "--crps", "--keep", "id", "--out", str(out)]
    assert main(["predict", str(run / "run"), str(run / "test.csv"), *options]) == 0
    said = capsys.readouterr().out
    assert "within the 0.1 and 0.9 quantiles, expected 80.0%" in said
    assert "CRPS" in said
    written, test = pd.read_csv(out), pd.read_csv(run / "test.csv")
    assert list(written.columns) == ["row", "id", "y_q0.1", "y_q0.5", "y_q0.9", "y_crps"]
    assert (written["id"] == test["id"]).all()
    summary = commands.predict(run / "run", run / "test.csv", out, quantiles=[0.9, 0.1], crps=True, force=True)
    judged = summary["targets"]["y"]
    inside = (test["y"] >= written["y_q0.1"]) & (test["y"] <= written["y_q0.9"])
    assert judged["coverage"]["mean"] == pytest.approx(inside.mean())
    assert judged["coverage"]["nominal"] == pytest.approx(0.8)
    assert judged["coverage"]["mean"] > 0.6
    assert judged["crps"]["mean"] == pytest.approx(written["y_crps"].mean())
    baseline = np.abs(test["y"].to_numpy()[:, None] - test["y"].to_numpy()).mean() / 2  # of the marginal
    assert judged["crps"]["mean"] < 0.7 * baseline
    assert summary["in_training"] == 0


def test_rows_of_training_are_predicted_by_what_held_them_out(run):
    summary = commands.predict(run / "run", run / "train.csv", run / "seen.csv")
    assert summary["in_training"] == 300
    opened = diffeo.load(run / "run")
    alone = commands.predict(run / "run", pd.read_csv(run / "train.csv")[["x", "kind"]], run / "unseen.csv")
    assert alone["targets"] == {}
    seen, whole = (pd.read_csv(run / name)["y_q0.5"] for name in ("seen.csv", "unseen.csv"))
    assert isinstance(opened, Mixture)
    assert not np.allclose(seen, whole)


def test_the_report_shows_the_pit(run):
    assert (run / "run" / "figures" / "pit.png").stat().st_size > 1000


def test_what_cannot_be_predicted_is_said(run, tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 2))
    commands.fit(x, tmp_path / "run", epochs=1, folds=1, figures=False)
    with pytest.raises(UserError, match="not conditional"):
        commands.predict(tmp_path / "run", x, tmp_path / "out.csv")
    contexts = pd.DataFrame({"x": [1.0, np.nan], "kind": ["a", "b"]})
    with pytest.raises(UserError, match="without which there is no --crps"):
        commands.predict(run / "run", contexts, tmp_path / "out.csv", crps=True)
    with pytest.raises(UserError, match="missing"):
        commands.predict(run / "run", contexts, tmp_path / "out.csv")
    assert commands.predict(run / "run", contexts, tmp_path / "out.csv", missing="drop")["dropped"] == 1
    with pytest.raises(UserError, match=r"quantiles in \(0, 1\)"):
        commands.predict(run / "run", contexts, tmp_path / "other.csv", quantiles=[1.5])
    with pytest.raises(UserError, match="training saw no values"):
        commands.predict(run / "run", contexts[:1].assign(kind="c"), tmp_path / "other.csv")


def test_whole_numbers_are_predicted_as_such(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.uniform(1, 4, 300)
    frame = pd.DataFrame({"x": x, "count": generator.poisson(3 * x)})
    options = {"epochs": 30, "folds": 2, "lr": 0.03, "arguments": {"hidden": [8], "transforms": 1}, "figures": False}
    commands.fit(frame, tmp_path / "run", context=["x"], **options)
    summary = commands.predict(tmp_path / "run", frame, tmp_path / "out.csv", crps=True)
    written = pd.read_csv(tmp_path / "out.csv")
    assert (written.filter(like="_q") % 1 == 0).all().all()
    assert summary["targets"]["count"]["coverage"]["mean"] > 0.8
