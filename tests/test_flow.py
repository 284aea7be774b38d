"""Flows: shapes, contexts, densities that integrate to one, samplers that match densities, and NaN that never hides."""

import copy
import math
import pickle
import re

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Distribution

import diffeo
from cases import randomise
from diffeo.bases import Base, GaussianMixture, Gaussians, StandardLogistic, StandardNormal, Uniform
from diffeo.flow import Flow
from diffeo.nets import Reader
from diffeo.structure import described, rebuilt
from diffeo.transforms import Chain, Elementwise, Scale, Standardize, Transform

RECIPE_CASES = {
    "nice": ("nice", {}),
    "realnvp": ("realnvp", {}),
    "maf": ("maf", {}),
    "maf-residual": ("maf", {"hidden": (16, 16), "residual": True}),
    "iaf": ("iaf", {}),
    "nsf": ("nsf", {}),
    "nsf-coupling": ("nsf", {"structure": "coupling"}),
    "nsf-inverse": ("nsf", {"structure": "inverse", "affine": True}),
}


def make(name: str, features: int = 2, context: int = 0, dtype: torch.dtype = torch.float64, **more) -> diffeo.Flow:
    recipe, arguments = RECIPE_CASES[name]
    arguments = {"hidden": (16, 16), "activation": "silu", "transforms": 3, **arguments, **more}
    flow = diffeo.recipes.build(recipe, {"features": features, "context": context, **arguments})
    randomise(flow)
    return flow.to(dtype).eval()


@pytest.mark.parametrize("name", RECIPE_CASES)
@pytest.mark.parametrize("context", [0, 3])
def test_shapes_follow_torch_distributions(name, context):
    flow = make(name, 5, context)
    contexts = torch.randn(4, context) if context else None
    batch = (4,) if context else ()
    x = flow.sample((7, 2), contexts)
    assert x.shape == (7, 2, *batch, 5)
    assert not x.requires_grad
    assert flow.log_prob(x, contexts).shape == (7, 2, *batch)
    assert flow.sample((), contexts).shape == (*batch, 5)
    assert flow.sample(6, contexts).shape == (6, *batch, 5)
    assert flow.sample((0,), contexts).shape == (0, *batch, 5)
    x, log_prob = flow.sample_and_log_prob((7,), contexts)
    assert log_prob.shape == (7, *batch)
    assert torch.allclose(flow.log_prob(x, contexts), log_prob, atol=1e-8)
    z = flow.encode(x, contexts)
    assert torch.allclose(flow.decode(z, contexts), x, atol=1e-8)


@pytest.mark.parametrize("name", RECIPE_CASES)
def test_context_broadcasts_against_the_data(name):
    flow = make(name, 2, 3)
    x, context = torch.randn(5, 1, 2), torch.randn(4, 3)
    log_prob = flow.log_prob(x, context)
    assert log_prob.shape == (5, 4)
    assert torch.allclose(log_prob[3, 2], flow.log_prob(x[3, 0], context[2]))
    assert not torch.allclose(log_prob[:, 0], log_prob[:, 1]), "the context must matter"


class Read(torch.nn.Module):
    """An embedding of contexts (3, 4), which remembers how many rows it was shown."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = torch.nn.Linear(12, 3), 0

    def forward(self, context):
        self.seen = len(context)
        return self.net(context.flatten(1)).tanh()


def test_an_embedding_is_what_the_layers_are_conditioned_on():
    plain, net = make("maf", 2, 3), Read()
    randomise(net)
    flow = plain.with_embedding(net, (3, 4)).double().eval()
    plain.context_transform = None
    contexts, x = torch.randn(5, 3, 4).double(), torch.randn(5, 2).double()
    assert torch.allclose(flow.log_prob(x, contexts), plain.log_prob(x, net(contexts)))
    flow.log_prob(x, contexts).sum().backward()
    assert net.net.weight.grad.abs().sum() > 0, "it is trained with the layers"
    with pytest.raises(ValueError, match=r"expected a context of shape \(\*batch, 3, 4\)"):
        flow.log_prob(x, contexts[:, 0])


def test_many_samples_of_a_context_embed_it_once():
    net = Read()
    flow = make("maf", 2, 3).with_embedding(net, (3, 4)).double().eval()
    contexts = torch.randn(2, 3, 4).double()
    drawn = flow.sample(1000, contexts)
    assert drawn.shape == (1000, 2, 2)
    assert net.seen == 2
    with torch.no_grad():
        once = flow.log_prob(drawn, contexts)
    assert torch.allclose(once, flow.log_prob(drawn, contexts), rtol=1e-12)


def test_an_embedding_that_changes_the_batch_is_refused():
    flow = make("maf", 2, 3).with_embedding(torch.nn.Flatten(0), (3,))
    with pytest.raises(ValueError, match=r"expected an embedding of 5 contexts in shape \(5, ...\), got \(15,\)"):
        flow.double().log_prob(torch.randn(5, 2), torch.randn(5, 3))
    with pytest.raises(ValueError, match="expected a flow with a context"):
        make("maf", 2).with_embedding(torch.nn.Flatten(), (3,))
    with pytest.raises(ValueError, match="expected a flow without an embedding, got one with Reader"):
        make("maf", 2, 3, embedding=[4]).with_embedding(torch.nn.Flatten(), (3,))


@pytest.mark.parametrize("features", [4, [1, 4, 4]], ids=["vectors", "images"])
@pytest.mark.parametrize("name", RECIPE_CASES)
def test_a_recipe_reads_its_context_by_an_embedding(name, features, tmp_path):
    flow, plain = make(name, features, 3, embedding=[6, 5]), make(name, features, 5)
    plain.transform.load_state_dict(flow.transform.state_dict())
    plain.context_transform = None
    x, contexts = torch.randn(7, *flow.event_shape).double(), torch.randn(7, 3).double()
    expected = plain.log_prob(x, flow.embedding(flow.context_transform.inverse(contexts)))
    assert torch.allclose(flow.log_prob(x, contexts), expected)
    (slope,) = torch.autograd.grad(flow.log_prob(x, contexts).sum(), flow.embedding.layers[0].weight)
    assert slope.abs().sum() > 0
    flow.save(tmp_path / "run")
    again = diffeo.load(tmp_path / "run").double()
    assert torch.allclose(again.log_prob(x, contexts), expected, atol=1e-4)  # stored in single precision
    with pytest.raises(ValueError, match="expected a context for the embedding to read, got none"):
        make(name, features, embedding=[6, 5])


@pytest.mark.parametrize("widths", [None, 0, 5, "64", [0], [8, 0], [0, 8], [-1], [True], [[4, 3]], [2.0]], ids=str)
def test_what_are_no_widths_is_refused(widths):
    with pytest.raises(ValueError, match=r"expected embedding as a list of widths, such as \[128, 128, 32\], got "):
        diffeo.maf(2, 3, embedding=widths)


def test_an_embedding_tells_observations_far_out_apart():
    """They are bounded at a thousand standard deviations, where other networks bound their inputs at three."""
    net = Reader(1, 4)
    near, far = net(torch.tensor([[20.0], [40.0]]))
    assert (far - near).abs().max() > 0.5 * (near - net(torch.zeros(1, 1))).abs().max()
    assert torch.isfinite(net(torch.tensor([[1e30]]))).all()


def test_an_embedding_tells_contexts_apart_from_the_first_step():
    flow = diffeo.nsf(2, 3, embedding=[6, 5])
    for each in (flow, rebuilt(described(flow.with_support("positive")))):
        assert (each.embedding(torch.randn(20, 3)).std(0) > 1e-3).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPE_CASES)
@pytest.mark.parametrize("context", [0, 3])
def test_densities_integrate_to_one(name, context):
    flow = make(name, 2, context)
    contexts = torch.randn(context) if context else None
    reach = 1 + 1.3 * flow.sample(20000, contexts).abs().max().item()
    side = torch.linspace(-reach, reach, 501, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    total = flow.log_prob(grid, contexts).logsumexp(0).exp() * (side[1] - side[0]) ** 2
    assert abs(total.item() - 1) < 1e-3


@pytest.mark.parametrize("name", ["maf", "iaf", "nsf"])
def test_one_dimensional_densities_integrate_to_one(name):
    flow = make(name, 1, 3)
    grid = torch.linspace(-30, 30, 50001, dtype=torch.float64)[:, None]
    total = flow.log_prob(grid, torch.randn(3)).logsumexp(0).exp() * 60 / 50000
    assert abs(total.item() - 1) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPE_CASES)
def test_samples_match_the_density(name):
    """Chi-square of sample counts in cells against the integrated density; false alarms: 1 in 10,000 per case."""
    flow = make(name, 2)
    count, edges = 20000, torch.linspace(-4, 4, 9, dtype=torch.float64)
    x = flow.sample(count)
    fine = torch.linspace(-4, 4, 321, dtype=torch.float64)
    middle = (fine[1:] + fine[:-1]) / 2
    density = flow.log_prob(torch.cartesian_prod(middle, middle)).exp().reshape(320, 320) * (fine[1] - fine[0]) ** 2
    expected = density.reshape(8, 40, 8, 40).sum((1, 3)).flatten() * count
    observed = torch.histogramdd(x, [edges, edges]).hist.flatten()
    expected = torch.cat([expected, count - expected.sum(0, keepdim=True)])
    observed = torch.cat([observed, count - observed.sum(0, keepdim=True)])
    enough = expected >= 10
    pooled = torch.stack([observed[~enough].sum(), expected[~enough].sum()])
    statistic = ((observed - expected) ** 2 / expected)[enough].sum() + (pooled[0] - pooled[1]) ** 2 / pooled[
        1
    ].clamp_min(1)
    assert stats.chi2.sf(statistic.item(), int(enough.sum())) > 1e-4


@pytest.mark.parametrize("name", RECIPE_CASES)
def test_distribution_is_a_torch_distribution(name):
    flow = make(name, 2, 3)
    context = torch.randn(4, 3)
    p = flow.distribution(context)
    assert isinstance(p, Distribution)
    assert (p.batch_shape, p.event_shape) == ((4,), (2,))
    wide = p.expand((6, 4))
    assert wide.batch_shape == (6, 4)
    x = wide.rsample((3,))
    assert x.shape == (3, 6, 4, 2)
    assert x.requires_grad
    assert not wide.sample((3,)).requires_grad
    assert wide.log_prob(x).shape == (3, 6, 4)
    assert torch.allclose(wide.log_prob(x), flow.log_prob(x, context))
    single = make(name, 2).distribution()
    assert single.expand((5,)).sample((2,)).shape == (2, 5, 2)
    assert single.log_prob(torch.randn(2)).shape == ()
    assert repr(single)


@pytest.mark.parametrize("name", RECIPE_CASES)
def test_recipes_are_remembered_and_rebuilt(name):
    flow = make(name, 5, 2)
    other = diffeo.recipes.build(flow.recipe["name"], flow.recipe["arguments"]).to(torch.float64).eval()
    other.load_state_dict(copy.deepcopy(flow.state_dict()))
    x, context = torch.randn(9, 5), torch.randn(9, 2)
    assert torch.equal(flow.log_prob(x, context), other.log_prob(x, context))


@pytest.mark.parametrize("name", RECIPE_CASES)
def test_a_fresh_flow_is_the_standardised_base(name):
    recipe, arguments = RECIPE_CASES[name]
    flow = diffeo.recipes.build(recipe, {"features": 3, **arguments}).train()
    x = 5 * torch.randn(500, 3) + 100
    flow.log_prob(x)
    z = flow.eval().encode(x)
    assert torch.allclose(z.mean(0), torch.zeros(3), atol=1e-3)
    assert torch.allclose(z.std(0, correction=0), torch.ones(3), atol=1e-3)


def test_sampling_before_training_spoils_nothing():
    x = 1000 + 50 * torch.randn(500, 2)
    flow = diffeo.maf(2, 1)
    context = 7 + torch.rand(500, 1)
    flow.sample(3, context[:2])
    flow.train().log_prob(x, context)
    z = flow.eval().encode(x, context)
    assert z.std().item() == pytest.approx(1, abs=0.01)


def test_log_likelihood_is_in_the_units_of_the_data():
    """Stretching the data by k costs log k per feature, whatever the preprocessing learns."""
    x = torch.randn(4000, 2, dtype=torch.float64)
    values = []
    for stretch in (1.0, 1000.0):
        flow = make("maf", preprocess=("standardize", "gaussianize")).train()
        flow.log_prob(stretch * x)
        values.append(flow.eval().log_prob(stretch * x).mean().item())
        torch.manual_seed(0)
    flow = diffeo.maf(2).double().train()
    for stretch in (1.0, 1000.0):
        flow = diffeo.maf(2).double().train()
        assert flow.log_prob(stretch * x).mean().item() == pytest.approx(
            -math.log(2 * math.pi * math.e) - 2 * math.log(stretch), abs=0.05
        )


# ---- NaN, infinity and the far away ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPE_CASES)
@pytest.mark.parametrize("far", [1e10, -1e10, 1e30, -1e30])
def test_far_entries_give_a_finite_value_or_minus_infinity(name, far):
    flow = make(name, 5, dtype=torch.float32)
    x = torch.randn(6, 5)
    x[0], x[1, 0], x[2, 4] = far, far, far
    log_prob = flow.log_prob(x)
    assert not torch.isnan(log_prob).any()
    assert (log_prob < math.inf).all()
    assert torch.isfinite(log_prob[3:]).all()
    assert torch.allclose(flow.log_prob(x[3:]), log_prob[3:], atol=1e-4), "other rows must not feel it"


@pytest.mark.parametrize("name", RECIPE_CASES)
def test_far_contexts_give_a_finite_value_or_minus_infinity(name):
    flow = make(name, 5, 3, dtype=torch.float32)
    log_prob = flow.log_prob(torch.randn(5, 5), torch.tensor([0.0, 1e10, -1e10, 1e38, -1e38])[:, None].expand(5, 3))
    assert not torch.isnan(log_prob).any()


def test_a_broken_model_shows():
    """NaN weights give NaN, in the fused loops too."""
    for name in RECIPE_CASES:
        flow = make(name, 3, dtype=torch.float32)
        with torch.no_grad():
            next(p for n, p in flow.named_parameters() if n.endswith("layers.1.weight")).fill_(math.nan)
        assert flow.log_prob(torch.randn(4, 3)).isnan().any()
        assert flow.sample(4).isnan().any()


@pytest.mark.parametrize("name", RECIPE_CASES)
def test_non_finite_rows_are_refused_or_marked(name):
    flow = make(name, 3, 2)
    x, context = torch.randn(6, 3), torch.randn(6, 2)
    clean = flow.log_prob(x, context)
    x[1, 2], x[4, 0] = math.nan, math.inf
    with pytest.raises(ValueError, match=r"NaN or infinity in 2 of 6 rows, first in row 1"):
        flow.log_prob(x, context)
    marked = flow.log_prob(x, context, nan="propagate")
    assert marked.isnan().tolist() == [False, True, False, False, True, False]
    assert torch.allclose(marked[[0, 2, 3, 5]], clean[[0, 2, 3, 5]])
    context[0, 1] = math.nan
    assert flow.log_prob(x, context, nan="propagate").isnan().tolist() == [True, True, False, False, True, False]
    with pytest.raises(ValueError, match="expected nan="):
        flow.log_prob(x, context, nan="ignore")


@pytest.mark.parametrize("name", RECIPE_CASES)
def test_many_samples_are_finite(name):
    assert torch.isfinite(make(name, 3, dtype=torch.float32).sample(40000)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, c: f.log_prob(torch.randn(4, 3)), r"expected x of shape \(\*batch, 2\), got \(4, 3\)"),
        (lambda f, c: f.decode(torch.randn(3)), r"expected z of shape \(\*batch, 2\), got \(3,\)"),
        (lambda f, c: f.log_prob(torch.randn(4, 2), torch.randn(4, 1)), "expected no context"),
        (lambda f, c: c.log_prob(torch.randn(4, 2)), r"expected a context of shape \(\*batch, 3\), got none"),
        (lambda f, c: c.log_prob(torch.randn(4, 2), torch.randn(4, 2)), r"expected a context .* got \(4, 2\)"),
        (lambda f, c: c.log_prob(torch.randn(4, 2), torch.randn(5, 3)), r"context whose batch \(5,\) broadcasts"),
        (lambda f, c: c.sample(3), "got none"),
        (lambda f, c: c.distribution(), "got none"),
        (lambda f, c: f.sample(-1), "without negative sizes"),
        (lambda f, c: diffeo.maf(0), "expected positive"),
        (lambda f, c: diffeo.realnvp(1), "expected features >= 2"),
        (lambda f, c: diffeo.recipes.build("mfa", {}), "expected a recipe among nice, realnvp, maf, iaf, nsf"),
        (lambda f, c: diffeo.recipes.build("maf", {"featurs": 2}), "takes no argument 'featurs'"),
        (lambda f, c: diffeo.recipes.build("maf", {"features": "two"}), "recipe 'maf' cannot be made"),
        (lambda f, c: diffeo.maf(2, activation="sigmoid"), "expected an activation among"),
        (lambda f, c: diffeo.maf(2, preprocess=["straighten"]), "expected preprocessing among"),
        (lambda f, c: diffeo.nsf(2, structure="ring"), "expected structure among"),
        (lambda f, c: diffeo.nsf(2, dropout=1.0), r"expected dropout in \[0, 1\), got 1.0"),
        (lambda f, c: diffeo.nsf(2, structure="inverse", dropout=0.1), "expected no dropout for structure 'inverse'"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(make("maf"), make("maf", 2, 3))


@pytest.mark.parametrize(
    "shape", [2.5, 2.0, "3", "", b"3", -1, True, None, (2, 1.5), (True,), (3, "4"), np.array([2, 3]), torch.ones(2)]
)
def test_what_is_no_sample_shape_is_named(shape):
    flow = make("maf")
    for draw in (flow.sample, flow.sample_and_log_prob):
        with pytest.raises(ValueError, match=f"^expected a sample shape .*, got {re.escape(repr(shape))}$"):
            draw(shape)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), ()), (0, (0,)), (3, (3,)), ([3, 4], (3, 4)), (torch.Size([2]), (2,)), (np.int64(3), (3,)),
        (torch.tensor(3), (3,)), ((np.int64(3), torch.tensor(2)), (3, 2)),
    ],
)  # fmt: skip
def test_sample_shapes_are_whole_numbers_or_sequences_of_them(shape, expected):
    assert make("maf").sample(shape).shape == (*expected, 2)


def test_arrays_that_are_no_tensors_are_named():
    with pytest.raises(TypeError, match=r"expected x as a torch.Tensor, got list"):
        make("maf").log_prob([[1.0, 2.0]])


# ---- Dropout --------------------------------------------------------------------------------------------------------


def test_dropout_is_for_training_alone():
    """In evaluation mode, and in sampling in either mode, a flow is the one without dropout, to the bit."""
    plain = diffeo.nsf(5, hidden=(32, 32), transforms=3, preprocess=())
    randomise(plain)
    dropping = diffeo.nsf(5, hidden=(32, 32), transforms=3, dropout=0.5, preprocess=())
    dropping.load_state_dict(plain.state_dict())
    x = torch.randn(50, 5)
    assert torch.equal(dropping.eval().log_prob(x), plain.eval().log_prob(x))
    dropping.train()
    assert not torch.equal(dropping.log_prob(x), plain.log_prob(x))
    assert torch.equal(dropping.decode(x), plain.decode(x))


def test_with_dropout_a_likelihood_is_still_that_of_a_density():
    """Whatever the networks do not see, each layer is a bijection, and its log-det is autograd's."""
    flow = diffeo.nsf(4, hidden=(16,), transforms=2, dropout=0.5, preprocess=()).double()
    randomise(flow)
    flow.train()
    x = torch.randn(8, 4, dtype=torch.float64)

    def encode(rows):
        torch.manual_seed(0)
        return flow.transform.inverse_and_log_det(rows)

    jacobians = torch.autograd.functional.jacobian(lambda rows: encode(rows)[0].sum(0), x).movedim(1, 0)
    torch.testing.assert_close(encode(x)[1], torch.linalg.slogdet(jacobians).logabsdet)


# ---- Bases ----------------------------------------------------------------------------------------------------------

BASES: dict[str, Base] = {
    "normal": StandardNormal((2, 3)),
    "logistic": StandardLogistic((2, 3)),
    "uniform": Uniform((2, 3), low=-1.0, high=2.0),
    "mixture": GaussianMixture((2, 3), components=4),
    "scalar-normal": StandardNormal(()),
    "scalar-mixture": GaussianMixture((), components=4),
}


@pytest.mark.parametrize("name", BASES)
def test_bases_of_any_event_shape(name):
    base = BASES[name]
    z = base.sample((4, 5))
    assert z.shape == (4, 5, *base.event_shape)
    assert base.log_prob(z).shape == (4, 5)
    assert torch.isfinite(base.log_prob(z)).all()
    flow = diffeo.Flow(base, Chain([Elementwise(Scale(), base.event_shape), Standardize(base.event_shape)]))
    assert flow.sample((3,)).shape == (3, *base.event_shape)
    assert flow.log_prob(z).shape == (4, 5)


@pytest.mark.parametrize("make_base", [StandardNormal, StandardLogistic, Uniform, GaussianMixture])
def test_bases_integrate_to_one_and_sample_themselves(make_base):
    """Kolmogorov-Smirnov of samples against the integrated density; false alarms: 1 in 10,000."""
    base = make_base(1)
    randomise(base)
    base = base.double()
    grid = torch.linspace(-40, 40, 400001, dtype=torch.float64)
    density = base.log_prob(grid[:, None]).exp().detach()
    cumulative = density.cumsum(0) * (grid[1] - grid[0])
    assert abs(cumulative[-1].item() - 1) < 1e-3
    sample = base.sample((5000,)).squeeze(-1).detach()
    uniform = cumulative[torch.searchsorted(grid, sample).clamp_max(len(grid) - 1)]
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-4


def test_a_mixture_has_no_reparameterised_samples():
    flow = diffeo.Flow(GaussianMixture(2), Standardize((2,)))
    assert not flow.distribution().has_rsample
    assert flow.distribution().sample((3,)).shape == (3, 2)
    with pytest.raises(NotImplementedError, match="GaussianMixture"):
        flow.distribution().rsample((3,))


def test_outside_the_box_the_density_is_zero():
    assert Uniform(2).log_prob(torch.tensor([[0.5, 1.5], [0.5, 0.5]])).tolist() == [-math.inf, 0.0]
    with pytest.raises(ValueError, match="expected low < high"):
        Uniform(2, low=1.0, high=0.0)


class Overflowing(Transform):
    """z = x^4 twice and their difference: beyond 1e10 infinity less infinity."""

    def forward_and_log_det(self, z, context=None):
        raise NotImplementedError

    def inverse_and_log_det(self, x, context=None):
        return x.pow(4) - x.pow(4).flip(1) + x, x.new_zeros(len(x))


def test_a_row_too_far_out_to_tell_is_impossible_and_not_nan():
    flow = Flow(StandardNormal(2), Overflowing()).eval()
    x = torch.tensor([[1.0, 2.0], [1e12, 2e12]])
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            log_prob = flow.log_prob(x)
        assert log_prob[0].isfinite()
        assert log_prob[1] == -torch.inf
    flow.weight = torch.nn.Parameter(torch.tensor(torch.nan))  # then NaN is no matter of the row
    assert flow.log_prob(x)[1].isnan()


@pytest.mark.parametrize("preprocess", [("standardize",), ("standardize", "whiten"), ()])
@pytest.mark.parametrize("far", [1e20, 1e30, 3e38, -3e38])
def test_a_continuous_flow_scores_every_finite_row(preprocess, far):
    torch.manual_seed(0)
    flow = diffeo.flow_matching(3, hidden=(8, 8), preprocess=preprocess)
    diffeo.fit(flow, 1e-2 * torch.randn(200, 3), epochs=1)
    randomise(flow.parts[0])
    x = torch.zeros(3, 3)
    x[1, 1], x[2] = far, far
    for backend in ("reference", "cpu"):
        with diffeo.ops.using(backend):
            log_prob = flow.eval().log_prob(x)
        assert log_prob[0].isfinite()
        assert (log_prob[1:] == -torch.inf).all(), log_prob


@pytest.mark.parametrize("far", [0.0, 1e3, 1e7, 1e11])
@pytest.mark.parametrize("share", [0.001, 0.5])
def test_gaussians_of_one_covariance_are_precise_however_far_some_are(far, share):
    """As a graph, too: with cancelled squares a density of rows was up to e^131,000 times too large."""
    torch.manual_seed(0)
    width, means = 0.03, torch.randn(1000, 2).double()
    means[: int(1000 * share), 0] += far
    base = Gaussians.of(means, width**2 * torch.eye(2).double()[None])
    z = torch.cat([torch.randn(20, 2).double(), means[:5] + 0.01, means[-5:] - 0.02])
    exact = torch.logsumexp(-0.5 * ((z[:, None] - means) / width).square().sum(-1), 1)
    exact = exact - math.log(1000) - 2 * math.log(width) - math.log(2 * math.pi)
    tolerance = {"rtol": 1e-9, "atol": 1e-6 + 1e-12 * far}  # what doubles that far from zero leave of a difference
    torch.testing.assert_close(base.log_prob(z), exact, **tolerance)
    torch.testing.assert_close(torch.func.vmap(base.log_prob)(z[:, None])[:, 0], exact, **tolerance)
    again = pickle.loads(pickle.dumps(base))
    torch.testing.assert_close(torch.func.vmap(again.log_prob)(z[:, None])[:, 0], exact, **tolerance)


@pytest.mark.parametrize("make", [diffeo.nsf, diffeo.maf, lambda *a, **k: diffeo.nsf(*a, structure="coupling", **k)])
def test_samples_of_a_context_that_is_not_finite_are_refused_or_have_no_density(make):
    flow = make(3, 2, hidden=(8,)).eval()
    randomise(flow)
    context = torch.tensor([[0.5, 0.5], [math.nan, 0.5]])
    for draw in (flow.sample, torch.no_grad()(flow.sample_and_log_prob)):
        with pytest.raises(
            ValueError, match="expected finite contexts, got NaN or infinity in 1 of 2 rows, first in row 1"
        ):
            draw(3, context)
    x, log_prob = flow.sample_and_log_prob(3, context)
    assert log_prob.isnan().all(0).tolist() == [False, True]
    torch.testing.assert_close(log_prob[:, 0], flow.log_prob(x[:, 0], context[0]), atol=1e-3, rtol=1e-4)


def test_far_gaussians_have_second_derivatives_and_half_precision():
    means = torch.tensor([[0.0, 0.0], [1e6, 0.0], [0.0, 1.0]])
    base, z = Gaussians.of(means, torch.eye(2)[None]), torch.tensor([0.3, 0.2], dtype=torch.double)

    def exact(z):
        return torch.logsumexp(-0.5 * (z - means.double()).square().sum(1), 0) - math.log(3 * 2 * math.pi)

    expected = torch.func.jacrev(torch.func.jacrev(exact))(z)
    torch.testing.assert_close(torch.autograd.functional.hessian(base.log_prob, z), expected)
    halves = Gaussians.of(means.clamp_max(1e4), torch.eye(2)[None]).half()
    torch.testing.assert_close(halves.log_prob(z), exact(z), atol=0.05, rtol=0)


def test_samples_with_gaps_keep_their_density_given_a_context():
    columns = [{"steps": [0.0], "gaps": True}, {"steps": [0.0]}]
    flow = diffeo.recipes.build(
        "mixed", {"features": 2, "context": 2, "columns": columns, "hidden": 8, "layers": 1, "orders": 2}
    ).eval()
    x, log_prob = flow.sample_and_log_prob(200, torch.zeros(2))
    assert x.isnan().any()
    assert log_prob.isfinite().all()


def test_what_is_no_real_tensor_is_refused():
    flow = diffeo.maf(3, 2, hidden=(8,))
    with pytest.raises(TypeError, match=r"expected x as real numbers, got torch\.complex64"):
        flow.log_prob(torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(2))
    with pytest.raises(TypeError, match=r"expected a context as a torch\.Tensor, got list"):
        flow.log_prob(torch.zeros(2, 3), [0.0, 0.0])
    with pytest.raises(TypeError, match="expected x as real numbers"):
        diffeo.fit(diffeo.maf(3, hidden=(8,)), torch.zeros(20, 3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"one loss per example, shape \(\d+,\), got \(\d+, 2\)"):
        diffeo.fit(diffeo.maf(3, hidden=(8,)), torch.zeros(20, 2, 3))


def test_a_distribution_takes_values_of_its_event_alone():
    flow = diffeo.maf(3, hidden=(8,))
    for bad in (torch.tensor([[0.7], [1.2]]), torch.tensor(0.7), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"expected x of shape \(\*batch, 3\)"):
            flow.distribution().log_prob(bad)
    with pytest.raises(ValueError, match=r"whose batch broadcasts against \(4,\), got \(2,\)"):
        flow.distribution().expand((4,)).log_prob(torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"expected x as a torch\.Tensor, got list"):
        flow.distribution().log_prob([0.0, 0.0, 0.0])
