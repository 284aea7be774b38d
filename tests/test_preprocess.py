"""Preprocessing: statistics taken once, discrete values, and Jacobians that keep likelihoods in the data's units."""

import copy
import math

import pytest
import torch

import diffeo
from diffeo.transforms import (
    ActNorm,
    Chain,
    DataDependent,
    Dequantize,
    Gaussianize,
    Inverse,
    Logit,
    Standardize,
    Whiten,
)

DATA_DEPENDENT = {
    "actnorm": lambda: ActNorm(3),
    "standardize": lambda: Standardize((3,)),
    "gaussianize": lambda: Gaussianize((3,)),
    "whiten": lambda: Whiten((3,)),
}


def skewed(rows: int) -> torch.Tensor:
    noise = torch.randn(rows, 3)
    return torch.stack([noise[:, 0].exp(), 1000 + 5 * noise[:, 1], noise[:, 2] ** 3], dim=1)


@pytest.mark.parametrize("name", DATA_DEPENDENT)
def test_first_batch_comes_out_normalised(name):
    transform: DataDependent = DATA_DEPENDENT[name]().train()
    out = transform.inverse(skewed(4000)).detach()
    assert torch.allclose(out.mean(0), torch.zeros(3), atol=0.1)
    assert torch.allclose(out.std(0), torch.ones(3), atol=0.1)


@pytest.mark.parametrize("name", DATA_DEPENDENT)
def test_initialised_once_and_never_again_after_loading(name):
    transform = DATA_DEPENDENT[name]().train()
    transform.inverse(skewed(500))
    state = copy.deepcopy(transform.state_dict())
    transform.inverse(7 * skewed(500))
    assert all(torch.equal(value, transform.state_dict()[key]) for key, value in state.items())
    loaded = DATA_DEPENDENT[name]().train()
    loaded.load_state_dict(state)
    loaded.inverse(7 * skewed(500))
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in state.items())


@pytest.mark.parametrize("name", DATA_DEPENDENT)
def test_evaluation_and_poisoned_batches_do_not_initialise(name):
    transform = DATA_DEPENDENT[name]()
    transform.eval().inverse(skewed(50))
    assert not transform.initialized
    transform.train().forward(skewed(50))
    transform.inverse(skewed(1))
    transform.inverse(skewed(0))
    assert not transform.initialized, "noise, one row and no rows say nothing of the data"
    poisoned = skewed(50)
    poisoned[3, 1] = math.nan
    transform.train().inverse(poisoned)
    assert not transform.initialized
    transform.inverse(skewed(50))
    assert transform.initialized


def test_one_absurd_entry_does_not_set_the_scale():
    x = torch.randn(1000, 3)
    x[5, 1] = 1e30
    standardize = Standardize((3,)).train()
    standardize.inverse(x)
    assert torch.allclose(standardize.std, torch.ones(3), atol=0.1)
    constant = Standardize((1,)).train()
    assert (constant.inverse(torch.full((1000, 1), 273.15)) == 0).all()
    assert constant.std.item() == 1


@pytest.mark.parametrize(("rows", "absurd"), [(20, 1), (60, 2), (1000, 20)])
def test_a_few_absurd_entries_do_not_set_the_scale(rows, absurd):
    x = torch.randn(rows, 1)
    x[:absurd] = 1e30
    layer = Standardize(1)
    layer.initialize(x)
    torch.testing.assert_close(layer.std, x[absurd:].std(0, correction=0))


def test_two_clusters_far_apart_are_both_data():
    x = torch.randn(1000, 2)
    x[::2, 0] += 1e8
    layer = Standardize(2)
    layer.initialize(x)
    z = layer.inverse(x)
    assert z.abs().max() < 10
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(2), atol=1e-3, rtol=0)


def test_whitened_columns_are_uncorrelated_and_in_their_order():
    x = torch.randn(5000, 3) @ torch.tensor([[3.0, 0.0, 1.0], [0.5, 1e-2, 2.0], [0.0, 40.0, 0.1]]) + 7
    whiten = Whiten((3,)).train()
    z, log_det = whiten.inverse_and_log_det(x)
    assert torch.allclose(z.mT.cov(), torch.eye(3), atol=1e-2)
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.mT.cov())
    noise = torch.distributions.Normal(0, 1)
    assert torch.allclose(noise.log_prob(z).sum(1) + log_det, gaussian.log_prob(x), atol=1e-2)
    changed = x.clone()
    changed[:, 2] += 1
    assert torch.equal(whiten.eval().inverse(changed)[:, :2], z[:, :2]), "a column knows of those before it"


def test_whitening_survives_constant_collinear_and_absurd_columns():
    x = torch.randn(1000, 4)
    x[:, 1], x[:, 2] = 273.15, 2 * x[:, 0] + 5
    x[5, 3] = 1e30
    whiten = Whiten((4,)).train()
    z, log_det = whiten.inverse_and_log_det(x)
    assert torch.isfinite(z).all()
    assert torch.isfinite(log_det).all()
    assert (z[:, 1] == 0).all()
    good = torch.arange(1000) != 5
    assert ((whiten.forward(z) - x).abs() / (1 + x.abs()))[good].max() < 1e-3
    assert z[good, 3].std() == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="expected vectors to whiten, got events of shape"):
        Whiten((3, 2, 2))


def test_gaussianize_survives_atoms_gaps_and_heavy_tails():
    x = torch.cat([torch.zeros(500, 1), torch.randn(400, 1) + 30, torch.randn(100, 1).exp() * 1e4])
    transform = Chain([Gaussianize((1,)), Standardize((1,))]).train()
    z, log_det = transform.inverse_and_log_det(x)
    assert torch.isfinite(z).all()
    assert torch.isfinite(log_det).all()
    back = transform.eval().forward(z)
    assert ((back - x).abs() / (1 + x.abs())).max() < 1e-3
    probe = torch.linspace(-1e5, 1e5, 100001)[:, None]
    assert (transform.inverse(probe).diff(dim=0) >= 0).all()


def test_dequantize_spreads_values_over_their_cells_and_brings_them_back():
    x = torch.stack([torch.arange(100.0) % 7, torch.arange(100.0) % 5 * 0.5 + 0.025, torch.randn(100)], dim=1)
    transform = Dequantize((3,), step=[1.0, 0.5, 0.0], low=[0.0, 0.025, 0.0])
    z, log_det = transform.inverse_and_log_det(x)
    assert (log_det == 0).all()
    assert torch.equal(z[:, 2], x[:, 2])
    offset = (z - x)[:, :2] / torch.tensor([1.0, 0.5])
    assert (offset >= 0).all()
    assert (offset <= 1).all()
    assert abs(offset.mean().item() - 0.5) < 0.1
    assert torch.allclose(transform.forward(z), x, atol=1e-6)


def test_dequantized_likelihood_is_that_of_the_discrete_values():
    """A uniform density over the cells gives each of 8 values probability 1/8: log-likelihood -log 8, exactly."""
    flow = diffeo.Flow(diffeo.bases.Uniform(1, low=0.0, high=8.0), Dequantize((1,)))
    x = torch.randint(8, (50, 1))
    assert torch.allclose(flow.log_prob(x), torch.full((50,), -math.log(8)))
    assert set(flow.sample(500).flatten().tolist()) == set(range(8))


def test_logit_opens_the_range_and_outside_the_density_is_zero():
    logit = Inverse(Logit((1,), low=-2.0, high=6.0, alpha=1e-6))
    x = torch.tensor([[-2.0], [0.0], [6.0]], dtype=torch.float64)
    z = logit.forward(x)
    assert z[0].item() == pytest.approx(math.log(1e-6 / (1 - 1e-6)))
    assert z[2].item() == pytest.approx(-math.log(1e-6 / (1 - 1e-6)))
    flow = diffeo.Flow(diffeo.bases.StandardLogistic(1), Logit((1,), low=-2.0, high=6.0))
    assert torch.allclose(flow.log_prob(x), torch.full((3,), -math.log(8.0)), atol=1e-5)
    assert flow.log_prob(torch.tensor([[-3.0], [7.0], [1e30]])).tolist() == [-math.inf] * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Logit((1,), low=1.0, high=0.0), "expected low < high"),
        (lambda: Logit((1,), alpha=0.7), "expected 0 < alpha < 0.5"),
        (lambda: Dequantize((1,), step=-1.0), "expected steps"),
        (lambda: Gaussianize((1,), knots=1), "expected knots >= 2"),
        (lambda: Gaussianize((1,), max_slope=1.0), "expected max_slope > 1"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
