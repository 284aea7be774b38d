"""The trust check must praise what is right and find what is wrong."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import diffeo
from diffeo.bases import GaussianMixture, StandardLogistic, StandardNormal, Uniform
from diffeo.flow import Flow
from diffeo.report.baselines import gaussian_log_prob, held_out, marginal_log_prob
from diffeo.report.check import THRESHOLDS, check, judge
from diffeo.report.compare import classifier_test, projection_test
from diffeo.report.latents import normal_scores, normality
from diffeo.report.numerics import continuous_part
from diffeo.transforms import LU, Chain, Dequantize, Standardize, Transform

ROWS = 2000


def gaussian_flow(x):
    """The Gaussian of the data's own mean and covariance, as a flow: as right as a model of Gaussian data can be."""
    lower = torch.linalg.cholesky(torch.cov(x.T))
    return Flow(StandardNormal(x.shape[1]), Given(x.mean(0), lower)).eval()


class Given(Transform):
    """x = mean + lower z, with faults to be found on demand."""

    def __init__(self, mean, lower, fault=""):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("lower", lower)
        self.fault = fault

    def forward_and_log_det(self, z, context=None):
        x = self.mean + z @ self.lower.T
        if self.fault == "inverse":
            x = x + 0.01 * torch.sin(100 * x)
        if self.fault == "sampler":
            x = x + 3 * (z > 0)
        if self.fault == "infinite":
            x = torch.where(z[:, :1] > 2.5, torch.inf, x)
        return x, self._log_det().expand(len(z))

    def inverse_and_log_det(self, x, context=None):
        z = torch.linalg.solve_triangular(self.lower, (x - self.mean).T, upper=False).T
        return z, -self._log_det().expand(len(x)) * (1.5 if self.fault == "log-det" else 1)

    def _log_det(self):
        return self.lower.diagonal().log().sum()


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(ROWS, 3, generator=generator)
    return z @ torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 0.5], [0.0, 0.0, 1.5]]) + 5


def test_a_right_model_is_trusted(x):
    report = check(gaussian_flow(x), x, names=["a", "b", "c"])
    assert report["reasons"] == []
    assert report["verdict"] == "trustworthy"
    assert report["log_det"]["max"] < 1e-12
    assert abs(report["likelihood"]["gain_over_gaussian"]["mean"]) < 0.02
    assert report["likelihood"]["gain_over_marginals"]["mean"] > 0.1
    assert abs(report["samples"]["classifier"]["auc"] - 0.5) < 0.05
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("inverse", "the inverse is off"),
        ("sampler", "classifier tells samples from rows"),
        ("infinite", "not finite"),
        ("log-det", "differs from autograd's"),
    ],
)
def test_faults_are_found(x, fault, reason):
    flow = gaussian_flow(x)
    flow.transform.fault = fault
    report = check(flow, x)
    assert report["verdict"] == "not trustworthy"
    assert any(reason in text for text in report["reasons"]), report["reasons"]


def test_a_model_of_something_else_is_not_trusted(x):
    report = check(gaussian_flow(x), x**3)
    assert report["verdict"] == "not trustworthy"
    assert any("a Gaussian would describe the rows better" in text for text in report["reasons"])
    assert any("latent" in text for text in report["reasons"])


def test_a_rough_model_is_used_with_care(x):
    """A Gaussian for data that are slightly skewed."""
    skewed = torch.stack([torch.distributions.Gamma(4.0, 1.0).sample((ROWS,)), x[:, 0]], 1)
    report = check(gaussian_flow(skewed), skewed, names=["g", "a"])
    assert report["verdict"] == "usable with care"
    assert all("inverse" not in text for text in report["reasons"])


def test_check_leaves_the_flow_alone(x):
    flow = diffeo.maf(3, transforms=1, hidden=(8,)).train()
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    check(flow, x[:100])
    assert flow.training
    assert all((value == before[name]).all() for name, value in flow.state_dict().items())
    assert next(flow.parameters()).dtype == torch.float32


def test_check_is_reproducible(x):
    flow = diffeo.realnvp(3, transforms=2, hidden=(8,)).eval()
    assert check(flow, x[:200], seed=3) == check(flow, x[:200], seed=3)


def test_conditional_and_discrete(x):
    """Context is what samples are drawn for, and dequantised columns are compared as whole numbers."""
    flow = diffeo.maf(
        2, context=1, transforms=1, hidden=(8,), preprocess=[["dequantize", {"step": [1, 0]}], "standardize"]
    )
    rows = torch.stack([x[:, 0].round(), x[:, 1]], 1)
    with torch.no_grad():
        flow.train().log_prob(rows, x[:, 2:])
    report = check(flow, rows, x[:, 2:], bounds=(np.array([0, -np.inf]), np.array([12, np.inf])))
    assert report["round_trip"]["rows"]["max"] < 1e-5
    assert report["likelihood"]["impossible"] == 0
    assert "projections" in report["samples"]


@pytest.mark.parametrize("recipe", ["iaf", "nice"])
def test_other_recipes(x, recipe):
    """A flow whose scoring is sequential, and one with another base."""
    flow = diffeo.recipes.build(recipe, {"features": 3, "transforms": 2, "hidden": [8]})
    with torch.no_grad():
        flow.train().log_prob(x)
    report = check(flow, x[:300])
    assert report["log_det"]["max"] < 1e-10
    assert report["round_trip"]["rows"]["max"] < 1e-4
    assert "latents" in report


def test_too_few_rows(x):
    with pytest.raises(ValueError, match="at least 20 rows, got 10"):
        check(gaussian_flow(x), x[:10])


def test_thresholds_decide(x):
    report = check(gaussian_flow(x), x[:300])
    assert judge(report, dataclasses.replace(THRESHOLDS, round_trip_max=(0.0, 0.0)))[0] == "not trustworthy"
    assert judge(report, dataclasses.replace(THRESHOLDS, round_trip=(0.0, 1.0)))[0] == "usable with care"
    report["round_trip"]["rows"]["p99.9"] = float("nan")
    assert judge(report)[0] == "not trustworthy"


def test_a_solver_leaves_what_its_tolerance_allows():
    """A continuous flow that is right is trusted, though its solves are further off than the maps of others may be."""
    flow = diffeo.flow_matching(3, hidden=(8,), tolerance=1e-5, preprocess=())
    ode = flow.ode
    limits = THRESHOLDS.solved(ode)
    assert limits.log_det == (pytest.approx(1e-3), pytest.approx(0.1))
    assert limits.round_trip_max == (pytest.approx(1e-2), pytest.approx(1.0))
    changed = {name for name, value in dataclasses.asdict(THRESHOLDS).items() if getattr(limits, name) != value}
    assert changed == {"round_trip", "round_trip_max", "log_det", "density"}
    assert THRESHOLDS.solved(ode.replaced(divergence="hutchinson")).log_det == (np.inf, np.inf)
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    report = check(flow, x)
    assert report["verdict"] == "trustworthy", report["reasons"]


def test_continuous_part():
    flow = Flow(StandardNormal(2), Chain([LU(2), Standardize((2,)), Dequantize((2,), step=[1.0, 0.0])]))
    rows = torch.tensor([[1.0, 0.5], [2.0, 0.25]])
    bijection, points = continuous_part(flow, rows)
    assert not any(isinstance(part, Dequantize) for part in bijection.transform)
    assert ((points[:, 0] >= rows[:, 0]) & (points[:, 0] < rows[:, 0] + 1)).all()
    assert (points[:, 1] == rows[:, 1]).all()
    assert torch.allclose(bijection.decode(bijection.encode(points)), points)
    plain = Flow(StandardNormal(2), LU(2))
    assert continuous_part(plain, rows) == (plain, rows)


@pytest.mark.parametrize("base", [StandardNormal(3), StandardLogistic(3), Uniform(3, low=-1.0, high=2.0)])
def test_normal_scores_of_the_base_are_normal(base):
    scores = normal_scores(base, base.sample((5000,)))
    result = normality(scores, ["z1", "z2", "z3"])
    assert min(result["p"], result["radius_p"], result["covariance_p"]) > 1e-3
    assert np.isfinite(normal_scores(StandardLogistic(3), torch.full((1, 3), 300.0))).all()


def test_normality_sees_each_kind_of_fault():
    generator = np.random.default_rng(0)
    z = generator.normal(size=(3000, 3))
    names = ["z1", "z2", "z3"]
    wide, tied, dependent = z.copy(), z.copy(), z.copy()
    wide[:, 1] *= 1.3
    result = normality(wide, names)
    assert (result["column"], result["p"] < 1e-6) == ("z2", True)
    tied[:, 2] = 0.3 * z[:, 0] + np.sqrt(1 - 0.09) * z[:, 2]
    result = normality(tied, names)
    assert set(result["covariance_columns"]) == {"z1", "z3"}
    assert result["covariance_p"] < 1e-6
    # each dimension normal, none correlated, and yet not independent
    dependent[:, 2] = np.abs(z[:, 2]) * np.sign(z[:, 0] * z[:, 1]) * 1.0
    dependent[:, 1] = z[:, 0] * np.where(generator.random(3000) < 0.5, 1, -1)
    assert normality(dependent, names)["radius_p"] < 1e-6
    assert normal_scores(GaussianMixture(2), torch.zeros(1, 2)) is None


def test_two_sample_tests():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 1500, 4))
    same = classifier_test(a, b, 0)
    assert abs(same["auc"] - 0.5) < 4 * same["stderr"] < 0.06
    assert projection_test(a, b, 0)["p"] > 0.01
    b[:, 2] += 0.5
    assert classifier_test(a, b, 0)["auc"] > 0.58
    result = projection_test(a, b, 0)
    assert (result["column"], result["p"] < 1e-6) == (2, True)
    # equal margins, another dependence: only directions and the classifier can see it
    c = a.copy()
    c[:, 1] = c[:, 0]
    assert classifier_test(a, c, 0)["auc"] > 0.9
    assert projection_test(a, c, 0)["p"] < 1e-3


def test_baselines():
    generator = np.random.default_rng(0)
    z = generator.normal(size=(20_000, 2))
    x = z @ np.array([[2.0, 1.0], [0.0, 0.5]]) + 3
    entropy = 1 + np.log(2 * np.pi) + np.log(2 * 0.5)
    assert -held_out(x, None, 0)["gaussian"].mean() == pytest.approx(entropy, abs=0.03)
    assert -gaussian_log_prob(x, x).mean() == pytest.approx(entropy, abs=0.03)
    assert -marginal_log_prob(z[:10_000], z[10_000:]).mean() == pytest.approx(1 + np.log(2 * np.pi), abs=0.05)
    # given the first column, what is left of the second is its own noise
    conditional = held_out(x[:, 1:], x[:, :1], 0)["gaussian"]
    assert -conditional.mean() == pytest.approx(0.5 * (1 + np.log(2 * np.pi)) + np.log(0.5), abs=0.03)


def test_baselines_stay_finite():
    x = np.zeros((50, 3))
    x[:, 1] = np.arange(50)
    x[:, 2] = x[:, 1]
    for values in held_out(x, x[:, :1], 0).values():
        assert np.isfinite(values).all()


def test_marginal_density_integrates_to_one():
    x = np.random.default_rng(0).gamma(2.0, size=(2000, 1))
    grid = np.linspace(-20, 60, 400_001)[:, None]
    assert np.exp(marginal_log_prob(x, grid)).mean() * 80 == pytest.approx(1, abs=1e-3)
