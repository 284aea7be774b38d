"""The VAE: bounds of a known likelihood, posteriors that match their samples, and what it refuses."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import diffeo
from cases import randomise
from diffeo import commands
from diffeo.bases import StandardNormal
from diffeo.cli.main import main
from diffeo.errors import UserError
from diffeo.likelihoods import Bernoulli, DiscretizedLogistics, Likelihood
from diffeo.objectives import ELBO, IWAE, objective_of
from diffeo.report import bounds
from diffeo.transforms import Affine, Elementwise, Gated, Rescale
from diffeo.variational import VAE

POSTERIORS = ("diagonal", "iaf", "nsf")
SMALL = {"latent": 3, "channels": [4, 4], "width": 8, "hidden": [12]}
SIGMA = 0.5


class Gaussian(Likelihood):
    """p(x | z) = N(params, SIGMA^2)."""

    size = 1

    def log_prob(self, x, params):
        return torch.distributions.Normal(params[0], SIGMA).log_prob(x)

    def mean(self, params):
        return params[0]

    def sample(self, params):
        return params[0] + SIGMA * torch.randn_like(params[0])

    def prepare(self, x):
        return x

    def scaled(self, x):
        return x


def linear(features=3, latent=2):
    """x = A z + b + SIGMA e with a posterior of another mean and scale, and the exact log p(x)."""
    encoder, decoder = nn.Linear(features, 4), nn.Linear(latent, features)
    posterior = diffeo.Flow(StandardNormal(latent), Elementwise(Affine(), latent, 4), context_shape=4)
    prior = diffeo.Flow(StandardNormal(latent), Rescale(latent))
    vae = VAE(encoder, posterior, decoder, Gaussian(), prior, features).double().eval()
    randomise(vae)
    covariance = decoder.weight @ decoder.weight.mT + SIGMA**2 * torch.eye(features, dtype=torch.double)
    exact = torch.distributions.MultivariateNormal(decoder.bias.detach(), covariance.detach())
    return vae, exact


def small(**arguments):
    vae = diffeo.vae((1, 5, 6), **{**SMALL, **arguments}).double().eval()
    randomise(vae, 1.0)
    return vae


def pictures(count=4, levels=256):
    return torch.randint(0, levels, (count, 1, 5, 6))


# ---- Laws ------------------------------------------------------------------------------------------------------------


def test_the_elbo_is_below_the_weighted_bound_and_that_below_the_exact_likelihood():
    torch.manual_seed(0)
    vae, exact = linear()
    x = exact.sample((5,))
    log_p = exact.log_prob(x)
    bounds = {k: vae.bound(x.expand(400, 5, 3), k) for k in (1, 4, 32)}  # 400 times each
    means = [bounds[1].elbo.mean(0), *(bounds[k].log_prob.mean(0) for k in (4, 32)), log_p]
    errors = [b.log_prob.std(0) / 20 for b in bounds.values()]
    for lower, higher, error in zip(means[:-1], means[1:], errors, strict=True):
        assert (lower < higher + 4 * error).all()
    assert (means[0] + 5 * errors[0] < log_p).all(), "this posterior is not the exact one"
    many = vae.bound(x, 20_000)
    assert ((many.log_prob - log_p).abs() < 5 * many.stderr + 1e-4).all()
    assert (many.stderr < 0.05).all()


def test_of_the_exact_posterior_every_draw_gives_the_exact_likelihood():
    torch.manual_seed(1)
    vae, exact = linear(3, 1)
    a, b = vae.decoder.weight.detach(), vae.decoder.bias.detach()
    precision = 1 + (a.mT @ a).item() / SIGMA**2
    with torch.no_grad():
        vae.encoder.weight.zero_()
        vae.encoder.bias.zero_()
        vae.encoder.weight[0] = (a.mT / (SIGMA**2 * precision))[0]
        vae.encoder.bias[0] = -(vae.encoder.weight[0] @ b)
        elementwise = vae.posterior.transform
        elementwise.context.weight.zero_()
        elementwise.context.weight[0, 0] = 1
        elementwise.params.zero_()
        elementwise.params[1] = 5 * math.atanh(-0.5 * math.log(precision) / 5)
    x = exact.sample((6,))
    bound = vae.bound(x, 3)
    for values in (bound.elbo, bound.log_prob, vae.elbo(x)):
        assert torch.allclose(values, exact.log_prob(x))
    assert torch.allclose(bound.stderr, torch.zeros(6, dtype=torch.double), atol=1e-7)
    assert torch.allclose(vae.encode(x), (x - b) @ a / (SIGMA**2 * precision))


def test_the_standard_error_is_that_of_repeated_bounds():
    torch.manual_seed(2)
    vae, exact = linear()
    x = exact.sample()
    repeated = vae.bound(x.expand(500, 3), 200)
    assert repeated.log_prob.std().item() == pytest.approx(repeated.stderr.square().mean().sqrt().item(), rel=0.15)
    assert repeated.elbo.std().item() == pytest.approx(repeated.elbo_stderr.square().mean().sqrt().item(), rel=0.15)
    assert vae.bound(x, 1).stderr.isnan()


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_the_density_of_a_posterior_is_that_of_its_samples(posterior):
    torch.manual_seed(3)
    vae = small(posterior=posterior)
    features = vae.features(pictures(2))
    z, log_q = vae.posterior.sample_and_log_prob((50,), features)
    assert torch.allclose(vae.posterior.log_prob(z, features), log_q, atol=1e-8)
    assert vae.posterior.fast >= {"sample"}
    # E_q[p(z) / q(z)] = 1
    z, log_q = vae.posterior.sample_and_log_prob((40_000,), features)
    weights = torch.exp(StandardNormal(3).log_prob(z) - log_q)
    assert ((weights.mean(0) - 1).abs() < 5 * weights.std(0) / 200).all()


def test_a_gate_without_parameters_is_the_identity():
    z = torch.randn(9, dtype=torch.double)
    there, log_det = Gated().inverse_and_log_det(z, torch.zeros(2, 9, dtype=torch.double))
    torch.testing.assert_close(there, z, rtol=0, atol=1e-14)  # some logarithms of 2 have another last bit
    torch.testing.assert_close(log_det, torch.zeros_like(z), rtol=0, atol=1e-14)


def test_iaf_takes_gated_steps_in_reversed_order():
    """z = 2 (s z + (1 - s) m), s and m of element i given those before it; one reversal between two steps."""
    vae = small(posterior="iaf")
    first, step, reverse, _ = vae.posterior.transform
    z, features = torch.randn(7, 3, dtype=torch.double), torch.randn(7, 8, dtype=torch.double)
    here = first.forward(z, features)
    m, a = step.transform.net(here.mT.contiguous(), features)  # (features, rows) each
    s = torch.sigmoid(5 * torch.tanh(a / 5)).mT
    there = 2 * (s * here + (1 - s) * m.mT)
    assert torch.allclose(step.forward(here, features), there)
    assert torch.equal(reverse.forward(there), there.flip(-1))
    jacobian = torch.autograd.functional.jacobian(lambda h: step.forward(h, features[:1]), here[:1])[0, :, 0]
    assert torch.allclose(jacobian, jacobian.tril())
    assert (jacobian.tril(-1) != 0).sum() == 3


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("objective", [ELBO, IWAE])
@pytest.mark.parametrize("prior", ["normal", {"name": "nsf", "transforms": 1, "hidden": [8]}])
def test_gradients_reach_all_parameters(posterior, objective, prior):
    vae = small(posterior=posterior, prior=prior)
    objective(vae).train()(pictures(16)).mean().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_the_gradient_of_the_elbo_is_that_of_finite_differences():
    vae, exact = linear()
    x, weight = exact.sample((3,)), vae.posterior.transform.context.weight

    def loss():
        torch.manual_seed(7)
        return -vae.elbo(x, samples=4).mean()

    (gradient,) = torch.autograd.grad(loss(), weight)
    with torch.no_grad():
        for index in ((0, 0), (1, 2), (3, 1)):
            numbers = []
            for step in (1e-6, -2e-6):
                weight[index] += step
                numbers.append(loss())
            weight[index] += 1e-6
            assert gradient[index].item() == pytest.approx((numbers[0] - numbers[1]).item() / 2e-6, rel=1e-4)


# ---- Likelihoods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [Bernoulli(7), DiscretizedLogistics(7, 3)], ids=lambda each: type(each).__name__)
def test_a_pixel_has_a_distribution_over_its_levels(likelihood):
    torch.manual_seed(0)
    params = 2 * torch.randn(likelihood.size, 5, dtype=torch.double)
    levels = likelihood.prepare(torch.arange(7.0, dtype=torch.double)).unique()[:, None]
    mass = likelihood.log_prob(levels, params[:, None].expand(-1, len(levels), 5)).exp()
    assert torch.allclose(mass.sum(0), torch.ones(5, dtype=torch.double))
    assert torch.allclose((mass * levels).sum(0), likelihood.mean(params))
    drawn = likelihood.sample(params[:, None].expand(-1, 20_000, 5))
    shares = (drawn == levels[:, None]).double().mean(1)
    assert torch.allclose(shares, mass, atol=0.02)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_likelihoods_stay_finite_with_gradients_far_off(scale):
    for likelihood in (Bernoulli(), DiscretizedLogistics()):
        params = (scale * torch.randn(likelihood.size, 64)).requires_grad_()
        log_prob = likelihood.log_prob(likelihood.prepare(4.0 * torch.arange(64.0)), params)
        log_prob.sum().backward()
        assert log_prob.isfinite().all()
        assert (log_prob <= 0).all()
        assert params.grad.isfinite().all()


def test_pixels_are_binarised_at_one_threshold_always():
    assert Bernoulli(256).prepare(torch.tensor([0, 127, 128, 255])).tolist() == [0, 0, 255, 255]
    assert Bernoulli(17).prepare(torch.tensor([8, 9])).tolist() == [0, 16]
    assert Bernoulli(2).prepare(torch.tensor([0, 1])).tolist() == [0, 1]
    vae, x = small(), pictures()
    torch.manual_seed(0)
    first = vae.elbo(x)
    torch.manual_seed(0)
    assert torch.equal(first, vae.elbo(Bernoulli().prepare(x)))


# ---- Objectives ------------------------------------------------------------------------------------------------------


def test_warm_up_and_free_bits_are_off_in_evaluation():
    vae, x = small(), pictures(8)
    objective = ELBO(vae, warmup=10, free_bits=1e6).eval()
    torch.manual_seed(0)
    loss = objective(x)
    torch.manual_seed(0)
    assert torch.equal(loss, -vae.elbo(x))
    assert objective.calls == 0


def test_warm_up_weighs_the_kl():
    vae, x = small(), pictures(8)
    objective = ELBO(vae, warmup=4).train()
    for step in range(6):
        torch.manual_seed(0)
        loss = objective(x)
        torch.manual_seed(0)
        log_likelihood, kl = (term[0] for term in vae.terms(x))
        assert torch.allclose(loss, min(1.0, (step + 1) / 4) * kl - log_likelihood)


def test_free_bits_stop_the_gradient_of_a_small_kl():
    vae, x = small(posterior="diagonal"), pictures(8)
    torch.manual_seed(0)
    kl = vae.terms(x)[1].mean().item()
    scale = vae.posterior.parts[0].params
    gradients = []
    for free_bits in (0.0, kl + 1, kl - 1):
        torch.manual_seed(0)
        objective = ELBO(vae, free_bits=free_bits).train()
        gradients.append(torch.autograd.grad(objective(x).mean(), scale)[0])
    torch.manual_seed(0)
    (without,) = torch.autograd.grad(-vae.terms(x)[0].mean(), scale)
    assert torch.allclose(gradients[1], without)
    assert torch.equal(gradients[0], gradients[2])
    assert not torch.allclose(gradients[0], without)


def test_iwae_of_one_sample_is_the_elbo_and_rises_with_more():
    torch.manual_seed(0)
    vae, x = small(), pictures(400)
    torch.manual_seed(0)
    one = IWAE(vae, 1)(x)
    torch.manual_seed(0)
    assert torch.allclose(one, -vae.elbo(x))
    losses = [IWAE(vae, k)(x).mean() for k in (1, 5, 50)]
    assert losses[0] > losses[1] > losses[2]


def test_the_objective_of_a_vae():
    vae = small()
    assert type(vae.default_objective()) is ELBO
    assert type(objective_of(vae, samples=1, free_bits=2.0)) is ELBO
    assert objective_of(vae, samples=5).samples == 5
    for settings, message in (
        ({"samples": 0}, "expected samples >= 1, got 0"),
        ({"samples": 2.5}, "expected samples >= 1, got 2.5"),
        ({"free_bits": -1}, "expected free_bits >= 0, got -1"),
        ({"warmup": "long"}, "expected warmup >= 0, got 'long'"),
        ({"samples": 5, "warmup": 3}, "expected warmup for the ELBO alone, got samples=5"),
    ):
        with pytest.raises(ValueError, match=message):
            objective_of(vae, **settings)
    with pytest.raises(ValueError, match="expected a VAE, whose likelihood has bounds, got Flow"):
        ELBO(diffeo.maf(2))


# ---- As a flow is used -----------------------------------------------------------------------------------------------


def test_no_exact_density_is_refused_in_words():
    vae, x = small(), pictures()
    assert (vae.has_log_prob, vae.has_bound, diffeo.maf(2).has_bound) == (False, True, False)
    for ask in (
        lambda: vae.log_prob(x),
        lambda: vae(x),
        lambda: vae.log_mass(x),
        lambda: vae.sample_and_log_prob(2),
        lambda: vae.distribution().log_prob(x),
        lambda: diffeo.MaximumLikelihood(vae)(x),
    ):
        with pytest.raises(ValueError, match=r"a VAE has no exact log_prob"):
            ask()


@pytest.mark.parametrize("likelihood", ["bernoulli", "logistics"])
def test_shapes(likelihood):
    vae, x = small(likelihood=likelihood), pictures(6).reshape(2, 3, 1, 5, 6)
    bound = vae.bound(x, 4)
    assert all(each.shape == (2, 3) for each in (bound.elbo, bound.elbo_stderr, bound.log_prob, bound.stderr))
    assert bound.samples == 4
    assert vae.elbo(x).shape == (2, 3)
    assert vae.encode(x).shape == (2, 3, 3)
    assert vae.features(x).shape == (2, 3, 8)
    assert vae.reconstruct(x).shape == x.shape
    for drawn in (vae.sample((2, 3)), vae.sample((2, 3), means=True)):
        assert drawn.shape == x.shape
        assert not drawn.requires_grad
        assert torch.equal(drawn, drawn.clamp(0, 255))
    assert vae.sample().shape == (1, 5, 6)
    drawn = vae.sample(9)
    assert torch.equal(drawn, vae.likelihood.prepare(drawn))
    assert vae.bound(x[:0], 4).log_prob.shape == (0, 3)
    with pytest.raises(ValueError, match=r"expected x of shape \(\*batch, 1, 5, 6\), got"):
        vae.bound(x[..., :3])
    with pytest.raises(ValueError, match="expected samples >= 1, got 0"):
        vae.bound(x, 0)


def test_a_bound_is_the_same_in_parts_of_any_size(monkeypatch):
    vae, x = small(), pictures(5)
    torch.manual_seed(0)
    whole = vae.bound(x, 3000)
    monkeypatch.setattr("diffeo.variational._DECODED", 30 * 7)
    torch.manual_seed(0)
    parts = vae.bound(x, 300)
    assert ((whole.log_prob - parts.log_prob).abs() < 5 * (whole.stderr + parts.stderr)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 5}, "expected features"),
        ({"context": 3}, "expected context=0"),
        ({"preprocess": ["standardize"]}, "expected no preprocessing"),
        ({"posterior": "maf"}, "expected posterior among diagonal, iaf, nsf, got 'maf'"),
        ({"likelihood": "normal"}, "expected likelihood among bernoulli, logistics, got 'normal'"),
        ({"prior": "wavenet"}, "expected a prior among normal, nice"),
        ({"prior": {"name": "maf", "bins": 3}}, "'bins'"),
        ({"latent": 0}, "expected latent >= 1, got 0"),
        ({"transforms": 0}, "expected transforms >= 1, got 0"),
        ({"channels": []}, "expected positive sizes"),
        ({"levels": 1}, "expected levels >= 2, got 1"),
        ({"likelihood": "logistics", "components": 0}, "expected components >= 1, got 0"),
        ({"latent": "many"}, "expected latent >= 1, got 'many'; give a whole number"),
        ({"latent": 1.5}, "expected latent >= 1, got 1.5; give a whole number"),
        ({"bins": 0}, "expected bins >= 1, got 0"),
        ({"channels": "8,16"}, "expected channels such as .* got '8,16'"),
        ({"prior": 3}, "expected a prior among normal, nice.* got 3"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        diffeo.recipes.build("vae", {"features": (1, 5, 6), **SMALL, **arguments})


@pytest.mark.parametrize("likelihood", ["bernoulli", "logistics"])
def test_what_is_no_picture_is_not_read_as_one(likelihood):
    """NaN and infinity are refused, and in training found; what no pixel holds has no mass."""
    vae, x = small(likelihood=likelihood, levels=17), pictures(4).float() % 17
    assert vae.bound(x, 2).elbo.isfinite().all()
    for value in (math.nan, math.inf, -math.inf):
        bad = x.clone()
        bad[2, 0, 1, 1] = value
        for refuses in (vae.elbo, vae.bound, vae.encode, vae.features, vae.reconstruct):
            with pytest.raises(ValueError, match=r"NaN or infinity in 1 of 4 rows, first in row 2"):
                refuses(bad)
        log_likelihood, kl = vae.terms(bad)
        assert log_likelihood.isnan().tolist() == [[False, False, True, False]]
        assert kl.isfinite().all()
        with pytest.raises(UserError, match="is in the data: row 2, column 0, 1, 1"):
            diffeo.fit(vae, bad, validation=0, epochs=1)
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 2 rows"):
        vae.decode(torch.tensor([[0.0] * 3, [math.nan] * 3]))
    for value in (17.0, -1.0, 999.0):
        bad = x.clone()
        bad[0, 0, 0, 0] = value
        assert vae.bound(bad, 2).log_prob.isneginf().tolist() == [True, False, False, False]


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("by_hand", [False, True])
def test_saved_and_loaded(tmp_path, posterior, by_hand):
    vae = small(posterior=posterior, prior="maf", likelihood="logistics").float()
    if by_hand:
        vae.recipe = None
    vae.save(tmp_path / "run")
    again = diffeo.load(tmp_path / "run")
    assert isinstance(again, VAE)
    assert again.recipe == vae.recipe
    x = pictures()
    torch.manual_seed(0)
    bound = vae.bound(x, 5).log_prob
    torch.manual_seed(0)
    assert torch.equal(bound, again.bound(x, 5).log_prob)


def test_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    x = torch.randint(0, 17, (60, 1, 5, 6))

    def train(out, **more):
        torch.manual_seed(0)
        vae = diffeo.vae((1, 5, 6), levels=17, **SMALL)
        diffeo.fit(ELBO(vae, warmup=6), x, epochs=4, batch_size=20, out=tmp_path / out, patience=99, **more)
        return vae

    whole = train("whole")

    def stop(self, entry):
        if entry["epoch"] == 2:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr("diffeo.progress.Training.epoch", stop)
        with pytest.raises(InterruptedError):
            train("cut", checkpoint_every=0)
    resumed = train("cut", resume=True)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    history = [json.loads(line) for line in (tmp_path / "cut" / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]


# ---- The commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of the digits, one of two latents by the ELBO, one of grey pixels by IWAE."""
    folder = tmp_path_factory.mktemp("vae")
    tiny = {"channels": [4], "width": 16, "hidden": [12]}
    commands.fit("digits", folder / "two", model="vae", epochs=3, arguments={"latent": 2, "warmup": 20, **tiny})
    grey = {"likelihood": "logistics", "posterior": "nsf", "samples": 2, "latent": 3, **tiny}
    commands.fit("digits", folder / "grey", model="vae", epochs=1, arguments=grey, figures=False)
    return folder


def test_a_run_is_described_by_its_bounds(runs):
    facts = commands.info(runs / "two")
    assert facts["model"] == "vae"
    assert facts["fast"] == ["sample"]
    assert (facts["arguments"]["levels"], facts["arguments"]["posterior"]) == (17, "iaf")
    part = facts["metrics"]["validation"]
    assert part["samples"] == 100
    assert -part["nll"] >= part["elbo"]
    assert part["bits_per_dim"] == pytest.approx(part["nll"] / (64 * math.log(2)))
    assert {path.stem for path in (runs / "two" / "figures").iterdir()} == {
        "learning_curve", "samples", "reconstructions", "between", "traversals", "latents",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["two", "grey"])
def test_scores_are_bounds(runs, tmp_path, name):
    summary = commands.score(runs / name, "digits", tmp_path / "s.csv", samples=7)
    assert summary["samples"] == 7
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert list(rows[0]) == ["image", "elbo", "bound", "bound_stderr", "bits_per_dim"]
    elbo, bound = (np.array([float(row[key]) for row in rows]) for key in ("elbo", "bound"))
    assert (elbo <= bound).all()
    assert summary["mean"] == pytest.approx(bound.mean())
    assert summary["elbo"] == pytest.approx(elbo.mean())
    again = commands.score(runs / name, "digits", tmp_path / "t.csv", samples=7)
    assert again["mean"] == summary["mean"]


def test_samples_are_draws_or_means(runs, tmp_path):
    for means in (False, True):
        commands.sample(runs / "two", 5, tmp_path / f"{means}.npz", means=means)
    drawn, mean = (np.load(tmp_path / f"{means}.npz")["x"] for means in (False, True))
    assert set(np.unique(drawn)) == {0, 16}
    assert mean.shape == drawn.shape == (5, 1, 8, 8)
    assert len(np.unique(mean)) > 2


def test_check(runs, capsys):
    report = commands.check(runs / "two", "digits", rows=120)
    assert report["density"]["max"] < 1e-4
    assert report["likelihood"]["gain_over_marginals"]["mean"] == pytest.approx(
        report["likelihood"]["flow"]["mean"] - report["likelihood"]["marginals"]["mean"]
    )
    assert main(["check", str(runs / "grey"), "digits", "--rows", "120"]) == 0
    shown = capsys.readouterr().out
    assert "nats per row by 100 samples" in shown
    assert "verdict: " in shown


def test_independent_pixels_are_counted_in_the_other_half():
    rows = np.random.default_rng(0).integers(0, 2, (4000, 3)).astype(float)
    assert bounds._independent(rows, 0).mean() == pytest.approx(-3 * math.log(2), abs=0.01)
    rows[:, 1] = 0
    assert bounds._independent(rows, 0).mean() == pytest.approx(-2 * math.log(2), abs=0.01)


def test_on_the_command_line(runs, tmp_path, capsys):
    assert main(["score", str(runs / "two"), "digits", "--samples", "3", "--out", str(tmp_path / "s.csv")]) == 0
    shown = capsys.readouterr().out
    assert "the importance-weighted bound of 3 samples" in shown
    assert "ELBO" in shown
    assert main(["score", str(runs / "two"), "digits", "--samples", "1", "--out", "-"]) == 0
    assert "bound of 1 sample\n" in capsys.readouterr().err
    assert main(["sample", str(runs / "two"), "-n", "4", "--means", "--out", str(tmp_path / "m.png")]) == 0
    assert main(["info", str(runs / "two")]) == 0
    assert "-ELBO" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["score", "two", "digits", "--samples", "0", "--out", "s.csv"], "number of samples of at least 1"),
        (["score", "flow", "digits", "--samples", "5", "--out", "s.csv"], "has an exact likelihood"),
        (["sample", "flow", "-n", "5", "--means", "--out", "s.png"], "is no VAE, and has no means"),
        (["sample", "two", "-n", "5", "--guidance", "2", "--out", "s.png"], "guidance"),
        (["inpaint", "two", "digits", "mask.png", "--out", "s.png"], "is a VAE, which has no exact likelihood"),
        (["fit", "digits", "--model", "vae", "--set", "posterior=maf", "--out", "new"], "expected posterior among"),
        (["fit", "digits", "--model", "vae", "--context", "label", "--out", "new"], "expected context=0"),
        (["fit", "digits", "--model", "vae", "--set", "samples=0", "--out", "new"], "expected samples >= 1"),
        (["fit", "digits", "--model", "vae", "--set", "free_bits=-1", "--out", "new"], "expected free_bits >= 0"),
        (["fit", "wine", "--model", "vae", "--out", "new"], "for a VAE"),
        (["distill", "two", "--out", "new"], "VAE"),
        (["export", "two", "--to", "pt2", "--out", "new"], "expected a flow, got a VAE"),
        (["fit", "digits", "--model", "vae", "--set", "channels=8,16", "--out", "new"], "expected channels such as"),
        (["fit", "digits", "--model", "vae", "--set", "latent=two", "--out", "new"], "expected latent >= 1, got 'two'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(runs, monkeypatch, capsys, words, said):
    monkeypatch.chdir(runs)
    if not (runs / "flow").exists():
        commands.fit("digits", "flow", model="realnvp", epochs=1, arguments={"hidden": [4]}, figures=False)
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert said in error.splitlines()[-1]
    assert "Traceback" not in error
    assert not (runs / "new").exists()


def test_a_run_is_resumed(runs, tmp_path):
    shutil.copytree(runs / "two", tmp_path / "run")
    summary = commands.fit("digits", tmp_path / "run", resume=True, epochs=4, figures=False)
    assert summary["epochs"] == 4
    assert summary["model"] == "vae"
