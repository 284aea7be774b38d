"""Flows inside other people's tools. Each test is skipped where its tool is not installed (see CONTRIBUTING.md)."""

import copy
import runpy
from pathlib import Path

import pytest
import torch

import diffeo
from cases import randomise

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


@pytest.fixture
def sbi():
    pytest.importorskip("sbi")
    return pytest.importorskip("diffeo.integrations.sbi")


@pytest.fixture
def pyro():
    module = pytest.importorskip("pyro")
    module.clear_param_store()
    module.set_rng_seed(0)
    yield module
    module.clear_param_store()


def randomised(flow):
    randomise(flow)
    return flow.eval()


# ---- sbi -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def estimator(sbi):
    flow = diffeo.nsf(2, context=3, hidden=(8,), transforms=2).with_support((-1, 1))
    return sbi.FlowEstimator(randomised(flow).double())  # samples at the very bounds have the same density in float64


def test_the_estimator_keeps_sbis_shapes(estimator):
    condition = torch.randn(4, 3, dtype=torch.float64)
    assert (estimator.input_shape, estimator.condition_shape) == ((2,), (3,))
    samples = estimator.sample((5,), condition)
    assert samples.shape == (5, 4, 2)
    assert estimator.sample((5, 2), condition).shape == (5, 2, 4, 2)
    log_prob = estimator.log_prob(samples, condition)
    assert log_prob.shape == (5, 4)
    for row in range(4):
        expected = estimator.net.log_prob(samples[:, row], condition[row])
        assert torch.allclose(log_prob[:, row], expected, atol=1e-5)
    assert estimator.log_prob(samples[0], condition).shape == (1, 4)
    assert estimator.log_prob(samples[:, :1], condition).shape == (5, 4), "a batch of 1 fits any"
    assert estimator.log_prob(samples, condition.expand(5, 4, 3)).shape == (5, 4)
    loss = estimator.loss(samples[0], condition)
    assert torch.allclose(loss, -log_prob[0], atol=1e-5)
    drawn, density = estimator.sample_and_log_prob((6,), condition)
    assert drawn.shape == (6, 4, 2)
    assert torch.allclose(density, estimator.log_prob(drawn, condition), atol=1e-3)
    assert torch.isfinite(estimator.loss(condition.new_tensor([[-1.0, 1.0]]), condition[:1])).all(), (
        "a draw on the bounds"
    )
    again = copy.deepcopy(estimator)
    assert torch.equal(again.log_prob(samples, condition), log_prob)


def test_the_estimator_is_made_of_simulations(sbi):
    theta = torch.rand(500, 2) * 4 + 1
    x = 100 + 7 * torch.randn(500, 10, 3)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30, 5))
    prior = torch.distributions.Independent(torch.distributions.Uniform(torch.ones(2), 5 * torch.ones(2)), 1)
    made = sbi.density_estimator(prior=prior, embedding=network, hidden=(8,), transforms=2)(theta, x)
    assert made.embedding_net is network
    assert made.condition_shape == (10, 3)
    assert torch.allclose(made.net.context_transform.mean, x.mean(0), atol=1e-2), "standardised by the simulations"
    samples = made.sample((1000,), x[:2])
    assert ((samples > 1) & (samples < 5)).all()
    read = sbi.density_estimator(prior=prior, embedding=(6, 5), hidden=(8,), transforms=2)(theta, x[:, 0])
    assert read.embedding_net(x[:4, 0]).shape == (4, 5)
    with pytest.raises(ValueError, match="expected an embedding as a module beside a function that makes the flow"):
        sbi.density_estimator(lambda features, context: diffeo.maf(features, context), embedding=(6, 5))
    by_hand = sbi.density_estimator(lambda features, context: diffeo.maf(features, context, hidden=(8,)))
    assert by_hand(theta, x[:, 0]).sample((), x[:3, 0]).shape == (3, 2)
    with pytest.raises(ValueError, match="expected observations that are vectors, or an embedding"):
        sbi.density_estimator()(theta, x)
    with pytest.raises(ValueError, match="expected a flow with a context"):
        sbi.FlowEstimator(diffeo.maf(2))


@pytest.mark.slow
def test_neural_posterior_estimation_by_sbi(sbi):
    names = runpy.run_path(str(EXAMPLES / "sbi_posterior.py"))
    assert names["inside"]
    assert names["error"] < 0.15


@pytest.mark.slow
def test_a_second_round_by_sbi(sbi):
    from sbi.inference import NPE
    from sbi.utils import BoxUniform

    prior, observed = BoxUniform(-torch.ones(2), torch.ones(2)), torch.tensor([[0.5, 0.0]])
    trainer = NPE(prior, sbi.density_estimator(prior=prior, hidden=(16,)), show_progress_bars=False)
    proposal = prior
    for _ in range(2):
        theta = proposal.sample((500,))
        trainer.append_simulations(theta, theta + 0.2 * torch.randn_like(theta), proposal=proposal)
        trainer.train(max_num_epochs=20)
        proposal = trainer.build_posterior().set_default_x(observed)
    samples = proposal.sample((1000,), show_progress_bars=False)
    assert torch.allclose(samples.mean(0), observed[0], atol=0.2)
    assert (samples.abs() < 1).all()


# ---- Pyro ------------------------------------------------------------------------------------------------------------


def test_a_distribution_has_pyros_shapes(pyro):
    from diffeo.integrations.pyro import distribution

    flow = randomised(diffeo.iaf(2, context=3, hidden=(8,)))
    context = torch.randn(4, 3)
    each = distribution(flow, context)
    assert (each.batch_shape, each.event_shape, each.shape()) == ((4,), (2,), (4, 2))
    x = each()
    assert x.shape == (4, 2)
    assert x.requires_grad
    drawn = each.log_prob(x)
    assert torch.allclose(drawn, each.log_prob(x.clone()), atol=1e-4), "what was remembered is the density"
    assert each((5,)).shape == (5, 4, 2)
    assert torch.allclose(each.log_prob(x.clone()), flow.log_prob(x, context))
    assert each.expand((6, 4))().shape == (6, 4, 2)
    assert each.expand_by((6,)).log_prob(torch.randn(6, 4, 2)).shape == (6, 4)
    assert each.to_event(1).log_prob(torch.randn(4, 2)).shape == ()
    assert each.mask(False).log_prob(x).abs().sum() == 0
    alone = distribution(randomised(diffeo.nsf(3, hidden=(8,)))).expand((7,))
    assert alone().shape == (7, 3)
    assert alone.log_prob(alone()).shape == (7,)


def test_a_flow_in_a_model_is_trained_on_data(pyro):
    """Its parameters are registered by ``pyro.module``, and the ELBO without latent variables is the likelihood."""
    from diffeo.integrations.pyro import distribution

    flow = diffeo.nsf(2, hidden=(16,), transforms=2)
    x = torch.randn(256, 2) @ torch.tensor([[2.0, 1.0], [0.0, 0.5]]) + 3

    def model():
        pyro.module("flow", flow)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", distribution(flow), obs=x)

    def guide():
        pass

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    losses = [svi.step() for _ in range(60)]
    assert losses[-1] < losses[1] - 50
    names = {name for name in pyro.get_param_store() if name.startswith("flow$$$")}
    assert len(names) == len([*flow.parameters()])
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.mT.cov()).log_prob(x).sum().item()
    assert losses[-1] < -gaussian + 30


def test_a_flow_on_a_support_is_a_prior(pyro):
    """Of a probability: the support is not left, and the trace has its density."""
    from diffeo.integrations.pyro import distribution

    flow = randomised(diffeo.nsf(1, hidden=(8,), transforms=1).with_support("unit")).double()

    def model():
        p = pyro.sample("p", distribution(flow))
        return pyro.sample("n", pyro.distributions.Binomial(10, p[0]))

    for _ in range(20):
        trace = pyro.poutine.trace(model).get_trace()
        p = trace.nodes["p"]["value"]
        assert 0 < p.item() < 1
        trace.compute_log_prob()
        assert torch.allclose(trace.nodes["p"]["log_prob"], flow.log_prob(p), atol=1e-4)


@pytest.mark.slow
def test_guides_by_pyro(pyro):
    names = runpy.run_path(str(EXAMPLES / "pyro_guide.py"))
    assert names["error"] < 0.2
    assert names["z"].std(0).mean().item() == pytest.approx(0.2**0.5, abs=0.05)
    assert -0.5 < names["bound"] < 0.05
    posterior = names["automatic"]()
    assert set(posterior) == {"scale", "x"}


# ---- pocoMC ----------------------------------------------------------------------------------------------------------


def test_a_flow_looks_like_one_of_zuko():
    pytest.importorskip("zuko")
    from diffeo.integrations.pocomc import preconditioner

    flow = randomised(diffeo.nsf(3, hidden=(8,), transforms=2))
    theirs = preconditioner(flow)()
    x, log_prob = theirs.rsample_and_log_prob((50,))
    assert torch.allclose(log_prob, flow.log_prob(x), atol=1e-3)
    assert torch.allclose(theirs.log_prob(x), flow.log_prob(x), atol=1e-5)
    z, log_det = theirs.transform.call_and_ladj(x)
    back, log_det_back = theirs.transform.inv.call_and_ladj(z)
    assert torch.allclose(back, x, atol=1e-4)
    assert torch.allclose(log_det, -log_det_back, atol=1e-3)
    assert torch.allclose(theirs.transform(x), flow.encode(x), atol=1e-5)
    assert len([*preconditioner(flow).parameters()]) == len([*flow.parameters()])
    for other in (diffeo.nsf(2, context=1), diffeo.nice(2), diffeo.nsf(2).with_support("circle")):
        with pytest.raises(ValueError, match="expected a flow"):
            preconditioner(other)


@pytest.mark.slow
def test_evidence_by_pocomc():
    pytest.importorskip("pocomc")
    names = runpy.run_path(str(EXAMPLES / "pocomc_flow.py"))
    assert names["log_z"] == pytest.approx(names["truth"], abs=max(0.1, 4 * names["error"]))
