"""The training loop: what it learns, what it skips, what it tells."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cases import needs_compiler
from diffeo import recipes
from diffeo.errors import UserError
from diffeo.objectives import MaximumLikelihood, Objective
from diffeo.training import fingerprint, fit
from diffeo.training.average import Average
from diffeo.training.batches import EXAMPLES, default_epochs, default_patience, split
from diffeo.training.initialise import initialise
from diffeo.training.interrupt import SAME_PRESS
from diffeo.training.optimizer import groups_of, learning_rate


class Gaussian(nn.Module):
    """The smallest flow: independent normals with learned locations and scales; the context shifts them."""

    def __init__(self, features=2):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.slope = nn.Parameter(torch.zeros(features))

    def log_prob(self, x, context=None, nan="error"):
        mean = self.mean if context is None else self.mean + self.slope * context
        z = (x - mean) / self.log_scale.exp()
        return (-0.5 * z.square() - self.log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)


def data(rows=400, seed=0):
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed)) * 0.5 + 2


def train(flow, x, context=None, **options):
    options = {"epochs": 2, "batch_size": 50, "lr": 0.02, **options}
    return fit(MaximumLikelihood(flow), x, context, **options)


def weights(module):
    return torch.cat([p.detach().reshape(-1).clone() for p in module.parameters()])


def test_learns_the_maximum_likelihood():
    x, flow = data(), Gaussian()
    result = train(flow, x, epochs=150, validation=0, weight_decay=0)
    assert torch.allclose(flow.mean, x.mean(0), atol=0.02)
    assert torch.allclose(flow.log_scale.exp(), x.std(0), atol=0.02)
    assert not flow.training
    assert (result.stopped, result.epochs, result.steps, result.skipped) == ("budget", 150, 1200, 0)
    assert result.best_epoch == 150
    assert result.best_loss == result.history[-1]["loss"]


def test_learns_with_a_recipe_and_a_context():
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(2000, 1, generator=generator)
    x = torch.cat([context + 0.1 * torch.randn(2000, 1, generator=generator)] * 2, 1) + torch.randn(
        2000, 2, generator=generator
    ) * torch.tensor([0.0, 0.1])
    flow = recipes.maf(2, 1, hidden=(32,), transforms=2)
    train(flow, x, context, epochs=20, batch_size=100, lr=5e-3)
    exact = -math.log(0.1) * 2 - 1 - math.log(2 * math.pi)
    assert flow.log_prob(x, context).mean() > exact - 0.2


@pytest.mark.parametrize("kind", ["numpy", "float64", "readonly", "integers", "reversed", "big-endian", "frame"])
def test_takes_arrays_of_any_type(kind):
    x = data()
    rows = {
        "numpy": x.numpy(),
        "float64": x.double(),
        "readonly": np.frombuffer(x.numpy().tobytes(), np.float32).reshape(-1, 2),
        "integers": (x * 10).long(),
        "reversed": x.flip(0).numpy()[::-1],
        "big-endian": x.numpy().astype(">f4"),
        "frame": pd.DataFrame(x.numpy()),
    }[kind]
    flow, reference = Gaussian(), Gaussian()
    train(flow, rows)
    train(reference, (x * 10).long().float() if kind == "integers" else x)
    assert torch.equal(weights(flow), weights(reference))


def test_same_seed_same_weights_and_caller_noise_untouched():
    start = recipes.maf(2, hidden=(8,), preprocess=[["dequantize", {"step": 0.1}]]).state_dict()
    torch.manual_seed(7)
    expected = torch.rand(3)
    results = []
    for seed in (0, 0, 1):
        flow = recipes.maf(2, hidden=(8,), preprocess=[["dequantize", {"step": 0.1}]])
        flow.load_state_dict(start)
        torch.manual_seed(7)
        train(flow, data(), seed=seed)
        assert torch.equal(torch.rand(3), expected)
        results.append(weights(flow))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


class Stream:
    def __init__(self, batches):
        self.batches, self.epochs = batches, []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        return iter(self.batches)


def test_streams_of_batches():
    x = data()
    flow, reference = Gaussian(), Gaussian()
    stream = Stream([(b, torch.zeros(len(b), 1)) for b in x.split(100)])
    result = train(flow, stream, validation=(data(seed=1), torch.zeros(400, 1)), epochs=3)
    assert result.steps == 12
    assert stream.epochs[-3:] == [0, 1, 2]
    assert result.history[-1]["val_loss"] < result.history[0]["val_loss"]
    train(reference, list(x.split(100)), validation=[data(seed=1)], epochs=3)
    # With a length unknown at first, the rate is right from the second epoch on.
    assert torch.allclose(weights(flow), weights(reference), atol=0.05)


@pytest.mark.parametrize("streamed", [False, True])
def test_layers_set_themselves_from_many_rows(streamed):
    """Statistics are those of thousands of rows, whatever the size of a batch, and of a stream's batches."""
    from diffeo import Flow, StandardNormal
    from diffeo.transforms import Standardize

    x = data(20_000)
    for batch_size in (50, 20_000):
        flow = Flow(StandardNormal(2), Standardize((2,)))
        examples = Stream(list(x.split(batch_size))) if streamed else x
        source, _ = split(examples, None, 0, batch_size=batch_size, seed=0, device=x.device, dtype=None)
        initialise(MaximumLikelihood(flow), source, 0, x.device, attempts=1)
        seen = next(source.examples(0)).x
        assert len(seen) == EXAMPLES
        assert torch.allclose(flow.transform.mean, seen.mean(0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (dict(x=data(), context=torch.zeros(3, 1)), ValueError, "a context for each of 400 rows, got 3"),
        (dict(x=data()[:0]), ValueError, "at least one row"),
        (dict(x=data()[:1]), ValueError, "hold some out"),
        (dict(x=data(), validation=1.0), ValueError, "fraction of validation rows in"),
        (dict(x=data(), batch_size=0), ValueError, "batch size of at least 1"),
        (dict(x=data(), epochs=0), ValueError, "epochs > 0"),
        (dict(x=data(), epochs=1.5), ValueError, "expected epochs >= 1, got 1.5; give a whole number"),
        (dict(x=data(), batch_size=1.5), ValueError, "batch size of at least 1, a whole number, got 1.5"),
        (dict(x=data(), accumulate=1.5), ValueError, "expected accumulate >= 1, got 1.5"),
        (dict(x=data(), lr=math.nan), ValueError, "lr > 0"),
        (dict(x=data(), lr=math.inf), ValueError, "lr > 0"),
        (dict(x=data(), weight_decay=math.nan), ValueError, "weight_decay >= 0"),
        (dict(x=data(), patience=math.nan), ValueError, "patience >= 0"),
        (dict(x=data(), ema=1.0), ValueError, "ema in"),
        (dict(x=data(), warmup=1.0), ValueError, "warmup in"),
        (dict(x=iter([data()])), TypeError, "got an iterator"),
        (dict(x=[data()]), ValueError, "cannot be split"),
        (dict(x=[], validation=0), ValueError, "an empty one"),
        (dict(x=np.array([["a", "b"]] * 9)), TypeError, "expected numbers in x"),
        (dict(x=data(), resume=True), UserError, "nothing to resume"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        train(Gaussian(), **call)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 1e30, "epochs": 2, "batch_size": 200}, "no epoch has a finite validation loss; clean the data or"),
        ({"validation": torch.full((5, 2), math.nan), "epochs": 2}, "no epoch has a finite validation loss"),
        ({"lr": 1e38, "epochs": 1, "batch_size": 400, "validation": 0, "ema": 0}, "weights are no longer finite"),
    ],
)
def test_a_training_does_not_end_with_nonsense(options, message):
    flow = recipes.maf(2, hidden=(8,), transforms=2)
    with pytest.raises(UserError, match=message):
        train(flow, data(), **options)


def test_refuses_an_objective_with_one_number_for_all():
    class Mean(Objective):
        def forward(self, x, context=None):
            return self.flow.log_prob(x).mean()

    with pytest.raises(ValueError, match=r"one loss per example, shape \(\d+,\), got \(\)"):
        fit(Mean(Gaussian()), data())


def test_a_batch_larger_than_the_data_is_all_of_it():
    result = train(Gaussian(), data(40), validation=0, batch_size=10**6, epochs=3)
    assert result.steps == 3


@pytest.mark.parametrize("parts", [2, 3, 7, 1000])
def test_a_gradient_accumulated_over_chunks_is_that_of_the_batch(parts):
    flows = [Gaussian().double() for _ in range(2)]
    x = data().double()
    context = torch.randn_like(x)
    results = [train(flow, x, context, accumulate=count) for flow, count in zip(flows, (1, parts), strict=True)]
    torch.testing.assert_close(weights(flows[1]), weights(flows[0]), rtol=1e-9, atol=1e-12)
    assert results[1].history[-1]["loss"] == pytest.approx(results[0].history[-1]["loss"])
    with pytest.raises(ValueError, match="accumulate"):
        train(flows[0], x, accumulate=0)


def test_the_last_smaller_batch_is_dropped():
    assert train(Gaussian(), data(149), validation=0, epochs=1).steps == 2


def test_validation_split_is_seeded_and_aligned():
    context = data(seed=3)
    seen = []

    class Watching(MaximumLikelihood):
        def forward(self, x, context=None):
            seen.append((torch.is_grad_enabled(), x.clone(), context.clone()))
            return super().forward(x, context)

    fit(Watching(Gaussian()), data(), context, epochs=1, batch_size=36, validation=0.1)
    pairs = {tuple(row): tuple(c) for row, c in zip(data().tolist(), context.tolist(), strict=True)}
    for _, x, c in seen:
        assert all(pairs[tuple(row)] == tuple(d) for row, d in zip(x.tolist(), c.tolist(), strict=True))
    seen = seen[next(i for i, (training, _, _) in enumerate(seen) if training) :]  # after the initialisation
    trained = {tuple(row) for training, x, _ in seen if training for row in x.tolist()}
    held_out = {tuple(row) for training, x, _ in seen if not training for row in x.tolist()}
    assert len(trained) == 360
    assert len(held_out) == 40
    assert not trained & held_out


def test_keeps_the_best_and_stops_early():
    # The two validation rows lie where training must pass on its way, so the loss on them falls, then rises.
    x, flow = data(), Gaussian()
    options = dict(validation=torch.full((2, 2), 1.0), epochs=400, ema=0, weight_decay=0)
    result = train(flow, x, patience=15, **options)
    assert result.stopped == "patience"
    assert result.epochs == result.best_epoch + 15
    losses = [entry["val_loss"] for entry in result.history]
    assert result.best_loss == min(losses) == losses[result.best_epoch - 1]
    assert -flow.log_prob(torch.full((2, 2), 1.0)).mean().item() == pytest.approx(result.best_loss, abs=1e-5)


def test_validation_statistics():
    held = data(50, seed=5)
    result = train(flow := Gaussian(), data(), validation=held, epochs=1)
    losses = -flow.log_prob(held)
    entry = result.history[0]
    assert entry["val_loss"] == pytest.approx(losses.mean().item(), abs=1e-5)
    assert entry["val_stderr"] == pytest.approx((losses.std() / 50**0.5).item(), abs=1e-5)
    assert entry["val_bad"] == 0


def test_bad_rows_in_the_validation_data_do_not_hide_the_others():
    held = data(50, seed=5)
    held[[3, 7]] = torch.tensor([[math.nan], [1e30]])
    result = train(Gaussian(), data(), validation=held, epochs=5)
    assert [entry["val_bad"] for entry in result.history] == [2] * 5
    assert result.best_epoch == 5
    assert math.isfinite(result.best_loss)


def test_budget_in_minutes():
    started = time.monotonic()
    result = train(Gaussian(), data(), epochs=None, minutes=0.01, patience=math.inf)
    assert 0.55 < time.monotonic() - started < 5
    assert result.stopped == "budget"
    assert result.history[-1]["lr"] < 1e-3


def test_default_budget_and_patience():
    assert [default_epochs(n) for n in (1, 10, 100, 10_000, 10**6, None)] == [1000, 1000, 100, 1, 1, 10]
    assert [default_patience(n, e) for n, e in ((1, 1000), (100, 100), (100, 1000), (100, None))] == [300, 10, 100, 10]


def test_learning_rate():
    rates = [learning_rate(p / 100, 0.1) for p in range(101)]
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert learning_rate(0.0, 0.0) == 1


def test_a_rate_of_its_own_for_a_module():
    outer = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    outer[1].lr_scale = 10.0
    outer[1][1].lr_scale = 3.0
    outer[0].bias.requires_grad_(False)
    groups = groups_of(outer, 0.1, 0.5)
    rates = {p: group.rate for group in groups for p in group.parameters}
    decays = {p: group.decay for group in groups for p in group.parameters}
    assert [rates[outer[0].weight], rates[outer[1][0].weight], rates[outer[1][1].bias]] == pytest.approx([0.1, 1, 0.3])
    assert outer[0].bias not in rates
    assert (decays[outer[1][0].weight], decays[outer[1][0].bias]) == (0.5, 0)


def test_the_average_moves_slowly_and_forgets_its_start():
    p = nn.Parameter(torch.zeros(3))
    average = Average([p], 0.99)
    p.data.fill_(1.0)
    values = []
    for _ in range(2000):
        average.update()
        values.append(average.averages[0][0].item())
    assert values[0] == pytest.approx(0.9)  # decay (1 + 0) / (10 + 0) at first
    p.data.fill_(2.0)
    average.update()
    assert average.averages[0][0].item() == pytest.approx(0.99 * values[-1] + 0.01 * 2)
    with average.applied():
        assert p[0].item() == pytest.approx(1.01)
    assert p[0].item() == 2


def test_validates_and_keeps_the_average():
    flow, plain = Gaussian(), Gaussian()
    train(flow, data(), epochs=1, ema=0.9, validation=0)
    train(plain, data(), epochs=1, ema=0, validation=0)
    assert 0 < flow.mean[0] < plain.mean[0]


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
def test_poisoned_batches_change_nothing(poison):
    x = data()
    x[[3, 200]] = poison
    flow = Gaussian()
    result = train(flow, x, epochs=100, validation=data(seed=1), weight_decay=0)
    assert 100 <= result.skipped <= 200
    assert result.history[-1]["skipped"] == result.skipped
    assert weights(flow).isfinite().all()
    assert torch.allclose(flow.mean, data().mean(0), atol=0.06)


def test_a_bad_batch_leaves_no_trace_in_moments_average_or_buffers():
    class Norm(Gaussian):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(2))

        def log_prob(self, x, context=None, nan="error"):
            if self.training:
                self.seen.lerp_(x.detach().mean(0), 0.1)
            return super().log_prob(x)

    clean = [data()[:50], data()[50:100]]
    poisoned = [clean[0], torch.full((50, 2), math.nan), clean[1]]
    flows = []
    for batches in (clean, poisoned):
        flow = Norm()
        flows.append(flow)
        fit(MaximumLikelihood(flow), batches, validation=0, epochs=1, lr=0.02, warmup=0, clip=math.inf)
    # The rate falls by batches, of which one run has more; all else is the same, so both learn alike.
    assert flows[1].seen.isfinite().all()
    assert torch.allclose(flows[0].seen, flows[1].seen)
    assert torch.allclose(weights(flows[0]), weights(flows[1]), atol=0.01)


def test_fifty_bad_batches_in_a_row_name_the_data():
    x = data(3000)
    x[:, 1] = x[:, 1].where(torch.arange(3000) > 100, math.nan)
    x[500:, 0] = math.nan
    with pytest.raises(UserError, match=r"50 batches in a row .* is in the data: row \d+, column [01] holds nan"):
        train(Gaussian(), x, batch_size=30)
    with pytest.raises(UserError, match=r"no row .* is in the context: row \d+, column 0 holds inf"):
        train(Gaussian(), data(), torch.full((400, 1), math.inf))


class Broken(nn.Module):
    """A flow that begins to fail after a number of calls, in its forward or backward pass."""

    def __init__(self, how, after=60):
        super().__init__()
        self.inner = nn.ModuleList([nn.Identity(), Gaussian()])
        self.how, self.after, self.calls = how, after, 0

    def log_prob(self, x, context=None, nan="error"):
        self.calls += 1
        out = self.inner[1].log_prob(self.inner[0](x))
        if self.calls <= self.after:
            return out
        if self.how == "backward":
            return out + (self.inner[1].slope.sum() * 0).abs().sqrt()  # finite, but its gradient is infinite times 0
        return out - 1e39


def test_fifty_bad_batches_in_a_row_name_the_module_or_the_parameter():
    with pytest.raises(UserError, match=r"arose in flow.log_prob \(Broken\) \(its largest entry: row \d+, column"):
        train(Broken("forward"), data(), epochs=50)
    with pytest.raises(UserError, match=r"backward pass, in the gradient of flow.inner.1.slope"):
        train(Broken("backward"), data(), epochs=50)
    flow = recipes.maf(2, hidden=(8,), transforms=1, preprocess=())
    with pytest.raises(UserError, match=r"largest entry: row \d+, column 1 holds -?\d[.\d]*e\+30"):
        train(flow, data() * torch.tensor([1.0, 1e30]))
    flow = Gaussian()
    flow.mean.data[0] = math.nan
    with pytest.raises(UserError, match=r"is in the parameter flow.mean itself"):
        train(flow, data())
    assert "log_prob" not in flow.__dict__


def test_actnorm_is_set_from_good_rows_only():
    from diffeo import Flow, StandardNormal
    from diffeo.transforms import ActNorm

    x = data() * 3 + 5
    x[::40] = 1e30
    x[1::40] = math.nan
    flow = Flow(StandardNormal(2), ActNorm(2))
    result = fit(MaximumLikelihood(flow), x, epochs=1, batch_size=20, validation=0, lr=1e-6, ema=0)
    good = x[(x.abs() < 100).all(1)]
    assert torch.allclose(flow.transform.bias, good.mean(0), atol=1e-3)
    assert result.skipped > 0


def test_journal(tmp_path, capsys):
    result = train(Gaussian(), data(), out=tmp_path / "run", epochs=3, validation=0)
    lines = [json.loads(line) for line in (tmp_path / "run/train/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[0].keys() == result.history[0].keys()
    assert lines[0]["val_loss"] is None
    assert lines[-1]["loss"] == result.history[-1]["loss"]
    assert capsys.readouterr() == ("", "")


def test_progress_in_lines(capsys, monkeypatch):
    from diffeo import progress

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    train(Gaussian(), data(), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert " loss " in err
    assert " val " in err
    assert " rows/s " in err
    assert " left" in err


class Pressing(MaximumLikelihood):
    """Presses Ctrl-C while a training step runs, after so many calls."""

    def __init__(self, flow, pauses):
        super().__init__(flow)
        self.calls, self.pauses = 0, pauses

    def forward(self, x, context=None):
        self.calls += 1
        if self.calls == 200:
            for pause in self.pauses:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(pause)
        return super().forward(x, context)


def test_first_interrupt_keeps_the_best_and_second_aborts(tmp_path):
    flow = Gaussian()
    options = dict(epochs=10**6, batch_size=50, lr=0.02, warmup=0)
    result = fit(Pressing(flow, [0, 0]), data(), out=tmp_path / "run", **options)
    assert result.stopped == "interrupted"
    assert 150 < result.steps < 200
    assert -flow.log_prob(data()).mean() < result.history[0]["val_loss"]
    assert (tmp_path / "run/train/checkpoint.safetensors").is_file()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        fit(Pressing(Gaussian(), [SAME_PRESS + 0.1, 0]), data(), **options)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_fingerprint_sees_a_single_bit_and_the_shape():
    x = data()
    assert fingerprint(x) == fingerprint(x.clone())
    changed = x.clone()
    changed[7, 1] += 1e-6
    assert len({fingerprint(x), fingerprint(changed), fingerprint(x.reshape(2, -1)), fingerprint(x, x)}) == 4


def loaded(code, *modules):
    """Which of these modules a process has imported that ran some code."""
    code += f"\nimport sys; print([m for m in {modules!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_training_does_not_start_what_it_may_not_need():
    assert loaded("import diffeo.training", "rich", "torch._dynamo", "pandas") == "[]"


@needs_compiler
def test_training_does_not_import_what_takes_seconds():
    """PyTorch's optimizers and ``torch.broadcast_shapes`` do so when they are first used, scipy's parts at once."""
    code = (
        "import torch, diffeo, diffeo.commands; theta = torch.rand(40, 2); unit = 0.0, torch.ones(2)\n"
        "with diffeo.ops.using('cpu'):  # also where the kernels lost their race\n"
        "    diffeo.posterior(theta, theta, support=unit, folds=1, epochs=1)"
    )
    assert loaded(code, "torch._dynamo", "sympy", "scipy.stats", "sklearn", "pandas") == "[]"
