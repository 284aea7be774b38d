"""Weights of rows: what they do to a training, and what they leave alone."""

import math

import numpy as np
import pytest
import torch

import diffeo
from diffeo import FlowMatching, MaximumLikelihood, recipes
from diffeo.errors import UserError
from diffeo.report.statistics import likelihood_facts, ratio_and_error
from diffeo.training import checkpoint as checkpoints
from diffeo.training import fit
from diffeo.training.batches import Stream, in_proportion, split
from diffeo.training.evaluate import evaluate
from diffeo.training.folds import fit_folds, stack
from diffeo.training.initialise import initialise
from diffeo.training.interrupt import Interrupt
from diffeo.training.pairs import REUSED, Pairs
from diffeo.training.parallel import World
from diffeo.training.weights import digest
from test_fit import Gaussian
from test_flow_matching import small

CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(300, 2, generator=GENERATOR) * torch.tensor([1.0, 3.0]) + 1
C = torch.randn(300, 1, generator=GENERATOR)
W = torch.exp(torch.randn(300, generator=GENERATOR))
COUNTS = torch.randint(0, 4, (300,), generator=GENERATOR)
PREPROCESS = [["dequantize", {"step": 0.1}], "standardize", "gaussianize"]


def trained(objective, x=X, context=None, **options):
    """Weights of the flow and the history without the clock, of a short training."""
    result = fit(objective, x, context, **{"epochs": 3, "batch_size": 64, "lr": 0.01, **options})
    timeless = [
        {name: value for name, value in entry.items() if name not in ("seconds", "rows_per_second")}
        for entry in result.history
    ]
    return objective.flow.state_dict(), timeless


def likelihood(context=0):
    torch.manual_seed(0)
    return MaximumLikelihood(recipes.maf(2, context, transforms=2, hidden=(8,), preprocess=PREPROCESS))


def coupled():
    torch.manual_seed(0)
    return FlowMatching(small(hidden=(8,)), coupling="optimal", pool=100)


def batches(x, context, weights=None):
    parts = [part.split(64) for part in (x, context, weights) if part is not None]
    return list(zip(*parts, strict=True))


def close(one, other, **tolerance):
    return all(torch.allclose(one[name].double(), other[name].double(), **tolerance) for name in one)


class Unsized:
    """A stream that does not know how many batches it has."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


# laws


@pytest.mark.parametrize("kind", ["likelihood", "context", "micro-batches", "coupled", "stream", "held out"])
def test_equal_weights_are_no_weights(kind):
    """To the bit, whatever they are, and in what is reported."""
    for value in (1.0, 0.3):
        equal = torch.full((300,), value)
        if kind == "stream":
            runs = [
                trained(likelihood(1), batches(X, C, each), validation=batches(X, C, each)) for each in (None, equal)
            ]
        elif kind == "held out":
            runs = [trained(likelihood(1), X, C, validation=held) for held in ((X, C), (X, C, equal))]
        else:
            make = coupled if kind == "coupled" else lambda: likelihood(int(kind == "context"))
            options = {"context": C if kind == "context" else None, "accumulate": 3 if kind == "micro-batches" else 1}
            runs = [trained(make(), weights=each, **options) for each in (None, equal)]
        assert digest(runs[0][0]) == digest(runs[1][0])
        assert runs[0][1] == runs[1][1]


@pytest.mark.parametrize("make", [likelihood, coupled])
def test_the_scale_of_weights_does_not_matter(make):
    """Not even one that overflows when summed up, or vanishes beside the optimizer's epsilon."""
    state, history = trained(make(), weights=W.double())
    for scale in (3.0, 1e-12, 1e307):
        again, histories = trained(make(), weights=scale * W.double())
        assert close(state, again, rtol=1e-4, atol=1e-5)
        assert histories[-1]["val_loss"] == pytest.approx(history[-1]["val_loss"], rel=1e-4)
        assert histories[-1]["loss"] == pytest.approx(history[-1]["loss"], rel=1e-4)


def test_the_scale_of_a_streams_weights_does_not_matter():
    state, history = trained(likelihood(1), batches(X, C, W), validation=(X, C, W))
    again, histories = trained(likelihood(1), batches(X, C, 1e-9 * W), validation=(X, C, 7 * W))
    assert close(state, again, rtol=1e-4, atol=1e-5)
    assert histories[-1]["loss"] == pytest.approx(history[-1]["loss"], rel=1e-4)
    assert histories[-1]["val_loss"] == pytest.approx(history[-1]["val_loss"], rel=1e-4)


def test_whole_weights_are_rows_repeated():
    """In the loss, its gradient and whatever follows from these, where a batch is all of the data."""
    options = {"epochs": 4, "batch_size": 10_000, "lr": 0.05}
    runs = []
    for x, counts in ((X, COUNTS), (X.repeat_interleave(COUNTS, 0), None)):
        flow = Gaussian()
        held = (x, None, counts) if counts is not None else x
        runs.append(trained(MaximumLikelihood(flow), x, weights=counts, validation=held, **options))
    assert close(runs[0][0], runs[1][0], rtol=1e-5, atol=1e-6)
    for one, other in zip(runs[0][1], runs[1][1], strict=True):
        for name in ("loss", "grad_norm", "val_loss"):
            assert one[name] == pytest.approx(other[name], rel=1e-5)
    assert runs[0][1][0]["val_stderr"] > runs[1][1][0]["val_stderr"]  # copies are no further evidence


@pytest.mark.parametrize("make", [likelihood, coupled])
def test_rows_of_weight_0_are_left_out(make):
    """To the bit, also where they are NaN: neither training, nor validation, nor first statistics see them."""
    kept = COUNTS > 0
    spoilt = torch.where(kept[:, None], X, torch.nan)
    one, other = (
        trained(make(), spoilt, weights=kept, validation=0.2),
        trained(make(), X[kept], validation=0.2),
    )
    assert digest(one[0]) == digest(other[0])
    assert one[1] == other[1]


def test_rows_of_weight_0_are_left_out_of_streams():
    """A batch of nothing else is none."""
    w = W.clone()
    w[70:75] = w[128:192] = 0
    spoilt = torch.where(w[:, None] > 0, X, torch.nan)
    there = [(x[k > 0], c[k > 0], k[k > 0]) for x, c, k in batches(X, C, w) if k.any()]
    streams = [Unsized(batches(spoilt, C, w)), Unsized(there)]
    runs = [trained(likelihood(1), each, validation=each) for each in streams]
    assert digest(runs[0][0]) == digest(runs[1][0])
    assert runs[0][1][-1]["val_loss"] == runs[1][1][-1]["val_loss"]
    assert runs[0][1][-1]["step"] == 12


def test_micro_batches_add_up_to_the_batch():
    one, other = (trained(MaximumLikelihood(Gaussian()), weights=W, accumulate=count) for count in (1, 3))
    assert close(one[0], other[0], rtol=1e-5, atol=1e-6)
    assert one[1][-1]["loss"] == pytest.approx(other[1][-1]["loss"], rel=1e-5)


def test_draws_in_proportion_to_weights():
    """Each place n w / sum(w) times, to the next whole number, and exactly so on average."""
    expected = 300 * W.double() / W.double().sum()
    offsets = torch.linspace(0, 1, 101)[:-1] + 0.005
    counts = torch.stack([in_proportion(W, float(offset)).bincount(minlength=300) for offset in offsets]).double()
    assert (counts.sum(1) == 300).all()
    assert (counts >= expected.floor() - 1e-9).all()
    assert (counts <= expected.ceil() + 1e-9).all()
    assert torch.allclose(counts.mean(0), expected, atol=0.011)
    for offset in (0.0, 0.5, 0.999999):
        for count in (300, 1, 0):
            assert torch.equal(in_proportion(torch.ones(count), offset), torch.arange(count))


# what they do


def test_a_maximum_of_the_weighted_likelihood_is_learned():
    flow, w = Gaussian(), torch.exp(0.5 * X[:, 0]) * W
    fit(MaximumLikelihood(flow), X, weights=w, epochs=200, batch_size=64, lr=0.02, validation=0, weight_decay=0)
    share = (w / w.sum())[:, None]
    mean = (share * X).sum(0)
    assert torch.allclose(flow.mean, mean, atol=0.05)
    assert torch.allclose(flow.log_scale.exp(), (share * (X - mean).square()).sum(0).sqrt(), rtol=0.03)
    assert not torch.allclose(flow.mean, X.mean(0), atol=0.1)


def test_pairs_of_flow_matching_know_of_weights():
    """Weights on pairs would not do: noise beside its nearest row would be weighted as the row is."""
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    flow = diffeo.flow_matching(1, hidden=(32, 32), preprocess=[])
    objective = FlowMatching(flow, coupling="optimal", pool=500)
    fit(objective, x, weights=torch.exp(1.5 * x[:, 0]), epochs=40, batch_size=200, lr=1e-2)
    torch.manual_seed(0)
    assert flow.sample((2000,)).mean().item() == pytest.approx(1.5, abs=0.25)


def test_pairs_are_drawn_anew_and_found_again():
    source, _ = split(X, None, 0, weights=W, batch_size=50, seed=0, device=CPU, dtype=torch.float32)

    def rows(pairs, epoch):
        return torch.cat([batch.x[:, 1, 0] for batch in pairs.shuffled(0, epoch)]).sort().values

    pairs = Pairs(source, lambda x, context: torch.randn_like(x), 100)
    first, later = rows(pairs, 0), rows(pairs, REUSED)
    assert len(first) == 300
    assert not torch.equal(first, later)
    assert torch.equal(rows(pairs, REUSED - 1), first)
    expected = 300 * W / W.sum()
    each = torch.isclose(first[:, None], X[None, :, 0]).sum(0)
    assert ((each - expected).abs() < 1).all()
    assert all(batch.weights is None and batch.weight == 1 for batch in pairs.in_order())


@pytest.mark.parametrize("streamed", [False, True])
def test_first_statistics_are_those_of_the_weighted_data(streamed):
    torch.manual_seed(0)
    flow = recipes.maf(2, transforms=1, hidden=(8,), preprocess=["standardize"])
    w = torch.exp(X[:, 0])
    data = [(x, None, k) for x, k in zip(X.split(64), w.split(64), strict=True)] if streamed else X
    source, _ = split(
        data, None, 0, weights=None if streamed else w, batch_size=64, seed=0, device=CPU, dtype=torch.float32
    )
    initialise(MaximumLikelihood(flow), source, 0, CPU, attempts=1)
    share = (w / w.sum())[:, None]
    mean = (share * X).sum(0)
    assert torch.allclose(flow.preprocessing[0].mean, mean, atol=0.1)
    assert abs(flow.preprocessing[0].mean[0] - X[:, 0].mean()) > 0.5


def test_validation_is_a_weighted_mean_with_its_error():
    flow = Gaussian()
    source, _ = split(X, None, 0, weights=W, batch_size=64, seed=0, device=CPU, dtype=torch.float32)
    with Interrupt() as interrupt:
        mean, stderr, bad = evaluate(MaximumLikelihood(flow), source, 0, World(CPU), interrupt)
    expected = ratio_and_error(-flow.log_prob(X).detach().double().numpy(), W.double().numpy())
    assert (mean, stderr, bad) == (pytest.approx(expected["mean"]), pytest.approx(expected["stderr"]), 0)


def test_the_loss_of_an_epoch_is_the_weighted_mean_of_its_rows():
    """Also where the batches' weights differ, and where one of the batches was skipped."""
    w = W[:256]
    for x in (X[:256], torch.cat([torch.full((64, 2), torch.nan), X[64:256]])):
        flow = Gaussian()
        losses = -flow.log_prob(X[:256]).detach()
        stream = [(part, None, k) for part, k in zip(x.split(64), w.split(64), strict=True)]
        result = fit(MaximumLikelihood(flow), stream, epochs=1, lr=1e-12, validation=0, ema=0)
        seen = slice(64 * result.skipped, None)
        expected = (w * losses)[seen].sum() / w[seen].sum()
        assert result.history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_reported_likelihoods_are_weighted():
    nll = -Gaussian().log_prob(X).detach().double()
    plain, counted = likelihood_facts(nll, 2, "column"), likelihood_facts(nll, 2, "column", weights=COUNTS.double())
    repeated = likelihood_facts(nll.repeat_interleave(COUNTS), 2, "column")
    assert plain == pytest.approx(likelihood_facts(nll, 2, "column", weights=torch.full((300,), 0.3)))
    for name in ("nll", "bits", "bits_per_column"):
        assert counted[name] == pytest.approx(repeated[name])
    assert counted["rows"] == int((COUNTS > 0).sum())
    nll[COUNTS == 0] = math.inf
    assert likelihood_facts(nll, 2, "column", weights=COUNTS.double()) == pytest.approx(counted)


# what is refused, and resumed


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (W[:-1], r"a weight for each of 300 rows, got shape \(299,\)"),
        (W[:, None], r"a weight for each of 300 rows, got shape \(300, 1\)"),
        (torch.zeros(300), "weights that are not all zero"),
        (-W, r"finite weights of at least 0, got -\S+ in row 0"),
        (torch.where(torch.arange(300) == 7, torch.nan, W), "finite weights of at least 0, got nan in row 7"),
        (torch.where(torch.arange(300) == 7, torch.inf, W), "finite weights of at least 0, got inf in row 7"),
    ],
)
def test_bad_weights_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        trained(likelihood(), weights=bad)
    with pytest.raises(ValueError, match=message):
        trained(likelihood(), validation=(X, None, bad.numpy()))
    if len(bad) == 300:
        with pytest.raises(ValueError, match=message.replace("300", "64")):
            trained(likelihood(), [(x, None, k) for x, k in zip(X.split(64), bad.split(64), strict=True)], validation=0)


def test_weights_of_a_stream_are_its_own():
    with pytest.raises(ValueError, match=r"gives \(x, context, weights\) triples, got weights of its own"):
        trained(likelihood(), list(X.split(64)), weights=W, validation=0)


def test_loaders_give_triples():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, C, W.double()), batch_size=64)
    source = Stream(loader, CPU, torch.float32)
    parts = list(source.in_order())
    mean = W[:64].mean()
    assert torch.allclose(torch.cat([part.weights for part in parts]), W / mean)
    assert [part.weight for part in parts] == pytest.approx([float(part.mean() / mean) for part in W.split(64)])
    assert source.fingerprint != Stream(batches(X, C, 2 * W), CPU, torch.float32).fingerprint


@pytest.mark.parametrize("kind", ["rows", "stream", "coupled"])
@pytest.mark.parametrize("writes", [4, 9])
def test_resumes_to_the_same_bits(kind, writes, tmp_path, monkeypatch):
    make = coupled if kind == "coupled" else lambda: likelihood(int(kind == "stream"))
    data = {"x": batches(X, C, W), "validation": (X, C, W)} if kind == "stream" else {"weights": W}
    expected = trained(make(), **data)
    original, count = checkpoints.save_checkpoint, 0

    def dying(*args):
        nonlocal count
        original(*args)
        count += 1
        if count == writes:
            raise KeyError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_checkpoint", dying)
        with pytest.raises(KeyError):
            trained(make(), out=tmp_path, checkpoint_every=0, **data)
    again = trained(make(), out=tmp_path, resume=True, **data)
    assert digest(again[0]) == digest(expected[0])
    assert again[1] == expected[1]
    if kind != "stream":
        with pytest.raises(UserError, match="data was"):
            trained(make(), out=tmp_path, resume=True, weights=W.flip(0))


def test_weights_may_be_arrays_of_any_type():
    one = trained(likelihood(), weights=COUNTS)
    other = trained(likelihood(), weights=np.asfortranarray(COUNTS.numpy().astype(">f4")[::-1])[::-1])
    assert digest(one[0]) == digest(other[0])


# folds


def folded(**options):
    torch.manual_seed(0)
    flow = recipes.maf(2, transforms=1, hidden=(8,), preprocess=["standardize"])
    return fit_folds(flow, X, folds=2, epochs=2, jobs=1, **options)


def test_a_stack_of_weighted_rows():
    """Equal weights are none, to the bit; whole ones are rows repeated, but for where the iteration settles."""
    one, other = folded(), folded(weights=torch.full((300,), 0.3))
    assert digest(one.flow.state_dict()) == digest(other.flow.state_dict())
    assert one.scores == other.scores
    log_prob = torch.randn(300, 3, generator=torch.Generator().manual_seed(2))
    log_prob[COUNTS == 0] = -torch.inf
    repeated = stack(log_prob.repeat_interleave(COUNTS, 0))
    assert torch.allclose(stack(log_prob, counts=COUNTS), repeated, atol=1e-6)
    assert not torch.allclose(stack(log_prob[COUNTS > 0]), repeated, atol=1e-3)


def test_scores_out_of_fold_are_weighted_means():
    w = torch.exp(X[:, 0])
    result = folded(weights=w, families=["gaussian", "broad"])
    mean = (w[:, None] * X).sum(0) / w.sum()
    torch.manual_seed(0)
    assert torch.allclose(result.flow.sample((4000,)).mean(0), mean, atol=0.35)
    assert max(result.scores.values()) <= float((w * result.log_prob).sum() / w.sum()) + 0.05
    with pytest.raises(ValueError, match="finite weights of at least 0"):
        folded(weights=-w)
