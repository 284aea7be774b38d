"""Checkpoints: whole or absent, and enough to end with the same bits."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from diffeo import recipes
from diffeo.errors import UserError
from diffeo.objectives import MaximumLikelihood
from diffeo.training import checkpoint as checkpoints
from diffeo.training import fit
from diffeo.training.weights import digest

X = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0]) + 1


def new_flow(seed=0):
    """A model with noise of its own and data-dependent statistics, whose initial weights differ from call to call."""
    torch.manual_seed(seed)
    return recipes.maf(2, transforms=2, hidden=(8,), preprocess=[["dequantize", {"step": 0.1}], "standardize"])


def train(flow, out=None, x=X, **options):
    options = {"epochs": 6, "batch_size": 32, "lr": 0.01, "checkpoint_every": math.inf, **options}
    return fit(MaximumLikelihood(flow), x, out=out, **options)


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def reference():
    flow = new_flow()
    result = train(flow)
    return digest(flow.state_dict()), result


def killed_after(writes, monkeypatch):
    """Let the process die, as far as the run can tell, right after so many checkpoints were written."""
    original = checkpoints.save_checkpoint
    count = 0

    def counting(*args):
        nonlocal count
        original(*args)
        count += 1
        if count == writes:
            raise Stop

    monkeypatch.setattr(checkpoints, "save_checkpoint", counting)
    return lambda: monkeypatch.setattr(checkpoints, "save_checkpoint", original)


@pytest.mark.parametrize("writes", [1, 2, 6, 9, 10, 20, 54, 55])
def test_resumes_to_the_same_bits_from_any_step(writes, tmp_path, monkeypatch, reference):
    restore = killed_after(writes, monkeypatch)
    with pytest.raises(Stop):
        train(new_flow(), tmp_path, checkpoint_every=0)
    restore()
    flow = new_flow(seed=1)
    result = train(flow, tmp_path, resume=True)
    assert digest(flow.state_dict()) == reference[0]
    for entry, expected in zip(result.history, reference[1].history, strict=True):
        timeless = entry.keys() - {"seconds", "rows_per_second"}
        assert {k: entry[k] for k in timeless} == {k: expected[k] for k in timeless}
    lines = (tmp_path / "train/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert (result.best_loss, result.steps, result.skipped) == (
        reference[1].best_loss,
        reference[1].steps,
        reference[1].skipped,
    )


def test_resumes_what_was_interrupted_by_the_user(tmp_path, reference):
    calls = 0

    class Pressing(MaximumLikelihood):
        def forward(self, x, context=None):
            nonlocal calls
            calls += 1
            if calls == 25:
                os.kill(os.getpid(), signal.SIGINT)
            return super().forward(x, context)

    objective = Pressing(new_flow())
    options = dict(epochs=6, batch_size=32, lr=0.01)
    result = fit(objective, X, out=tmp_path, **options)
    assert result.stopped == "interrupted"
    assert result.steps < reference[1].steps
    flow = new_flow(seed=2)
    assert fit(Pressing(flow), X, out=tmp_path, resume=True, **options).stopped == "budget"
    assert digest(flow.state_dict()) == reference[0]


def test_resumes_with_patience_streams_and_bad_batches(tmp_path, monkeypatch):
    bad = X.clone()
    bad[40] = torch.nan
    runs = []
    for out in (None, tmp_path):
        flow = new_flow()
        options = dict(x=[*bad.split(32)], validation=X[:50], patience=2, epochs=40, lr=0.1)
        if out is not None:
            restore = killed_after(23, monkeypatch)
            with pytest.raises(Stop):
                train(flow, out, checkpoint_every=0, **options)
            restore()
            flow = new_flow(seed=1)
        result = train(flow, out, resume=out is not None, **options)
        runs.append((digest(flow.state_dict()), result.epochs, result.skipped, result.stopped))
    assert runs[0] == runs[1]
    assert runs[0][2:] == (runs[0][1], "patience")


def test_a_finished_run_resumes_to_itself(tmp_path, reference):
    first = train(new_flow(), tmp_path)
    flow = new_flow(seed=1)
    again = train(flow, tmp_path, resume=True)
    assert digest(flow.state_dict()) == reference[0]
    assert again == first


def test_a_finished_run_can_be_trained_longer(tmp_path, reference):
    """From where it is, as a run that was interrupted there would go on; and it may be killed and resumed."""
    first = train(new_flow(), tmp_path / "whole", epochs=3)
    longer = train(new_flow(seed=1), tmp_path / "whole", epochs=8, resume=True)
    assert [entry["epoch"] for entry in longer.history] == list(range(1, 9))
    assert longer.history[:3] == first.history
    assert longer.best_loss <= first.best_loss
    assert longer.stopped == "budget"
    again = train(new_flow(seed=2), tmp_path / "whole", epochs=8, resume=True)
    assert again == longer


def test_patience_begins_anew_when_a_run_is_trained_longer(tmp_path):
    options = dict(lr=1e-9, patience=2)  # nothing improves
    first = train(new_flow(), tmp_path, epochs=20, **options)
    assert first.stopped == "patience"
    longer = train(new_flow(), tmp_path, epochs=40, resume=True, **options)
    assert longer.epochs >= first.epochs + 2


def test_nothing_written_yet_starts_at_the_beginning(tmp_path, reference):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/metrics.jsonl").write_text('{"epoch": 1}\n')
    (tmp_path / "train/checkpoint.safetensors.17.tmp").write_bytes(b"half")
    flow = new_flow()
    train(flow, tmp_path, resume=True)
    assert digest(flow.state_dict()) == reference[0]
    assert {p.name for p in (tmp_path / "train").iterdir()} == {"metrics.jsonl", "checkpoint.safetensors"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(batch_size=16), r"batch_size was 32, now 16"),
        (dict(epochs=5), r"epochs was 6, now 5"),
        (dict(epochs=7, seed=3), r"another training \(seed was 0, now 3\)"),
        (dict(epochs=None, minutes=1.0), r"epochs was 6, now None; minutes was None, now 1.0"),
        (dict(x=X + 1), r"data was \w+, now \w+"),
        (dict(validation=0.2), r"held_out was 0.1, now 0.2"),
        (dict(flow=lambda: recipes.maf(2, transforms=1)), r"objective was "),
    ],
)
def test_refuses_another_training(change, message, tmp_path):
    train(new_flow(), tmp_path, epochs=6)
    flow = change.pop("flow", new_flow)()
    with pytest.raises(UserError, match=message):
        train(flow, tmp_path, resume=True, **change)


def test_refuses_what_it_cannot_resume_or_would_overwrite(tmp_path):
    with pytest.raises(UserError, match="is not a folder; start without resume"):
        train(new_flow(), tmp_path / "none", resume=True)
    train(new_flow(), tmp_path, epochs=1)
    with pytest.raises(UserError, match="holds an unfinished or earlier training; resume it or"):
        train(new_flow(), tmp_path, epochs=1)
    file = tmp_path / "train/checkpoint.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole[:-3] + b"\x7f" + whole[-2:]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"checkpoint.safetensors is corrupted"):
            train(new_flow(), tmp_path, epochs=1, resume=True)
    file.write_bytes(whole)
    monkey = checkpoints.FORMAT
    try:
        checkpoints.FORMAT = 0
        with pytest.raises(UserError, match="upgrade diffeo"):
            train(new_flow(), tmp_path, epochs=1, resume=True)
    finally:
        checkpoints.FORMAT = monkey


def test_every_bit_of_a_checkpoint_counts(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoints.save_checkpoint(path, {"step": 7}, {"weights": {"a": torch.arange(3.0)}, "best": {}})
    whole = path.read_bytes()
    for byte in range(len(whole)):
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << (byte % 8)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="corrupted"):
            checkpoints.load_checkpoint(path)


def test_warns_of_another_number_of_threads(tmp_path):
    train(new_flow(), tmp_path, epochs=1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.warns(UserWarning, match="not identical to the bit"):
            train(new_flow(), tmp_path, epochs=1, resume=True)
    finally:
        torch.set_num_threads(threads)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, reference):
    train(new_flow(), tmp_path, epochs=6)
    before = (tmp_path / "train/checkpoint.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*: the disk is full"):
        train(new_flow(), tmp_path, epochs=6, resume=True)
    monkeypatch.undo()
    assert (tmp_path / "train/checkpoint.safetensors").read_bytes() == before
    assert not list((tmp_path / "train").glob("*.tmp"))


def test_tied_weights_and_a_frozen_teacher(tmp_path, monkeypatch):
    class Distilling(MaximumLikelihood):
        def __init__(self, flow):
            super().__init__(flow)
            self.teacher = nn.Linear(2, 2).requires_grad_(False)
            self.teacher.weight.data.fill_(0.5)
            self.teacher.bias.data.zero_()
            self.again = flow

        def forward(self, x, context=None):
            return super().forward(self.teacher(x))

    digests = []
    for out in (None, tmp_path):
        flow = new_flow()
        if out is not None:
            restore = killed_after(5, monkeypatch)
            with pytest.raises(Stop):
                fit(Distilling(flow), X, epochs=2, batch_size=32, out=out, checkpoint_every=0)
            restore()
            flow = new_flow(seed=1)
        fit(Distilling(flow), X, epochs=2, batch_size=32, out=out, resume=out is not None)
        digests.append(digest(flow.state_dict()))
    assert digests[0] == digests[1]
    other = Distilling(new_flow())
    other.teacher.weight.data.fill_(0.4)
    with pytest.raises(UserError, match="objective was"):
        fit(other, X, epochs=2, batch_size=32, out=tmp_path, resume=True)


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from diffeo import recipes
from diffeo.training import fit
from diffeo.objectives import MaximumLikelihood
x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
fit(MaximumLikelihood(recipes.maf(4, hidden=(64, 64))), x, epochs=10**6, out=sys.argv[1], checkpoint_every=0)
"""


def test_sigkill_leaves_a_whole_checkpoint(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)])
    path = tmp_path / "train/checkpoint.safetensors"
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    while not list(path.parent.glob("*.tmp")) and time.monotonic() < deadline:
        pass
    process.kill()
    process.wait()
    scalars, groups = checkpoints.load_checkpoint(path)
    assert isinstance(scalars["state"]["step"], int)
    assert groups["weights"].keys() >= groups["average"].keys()
