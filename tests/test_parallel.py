"""Several processes under torchrun give what one gives."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import sys, warnings
warnings.simplefilter("error")
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from diffeo import Flow, StandardNormal, recipes
from diffeo.nets import MADE
from diffeo.objectives import MaximumLikelihood
from diffeo.training import fit
from diffeo.transforms import ActNorm, Affine, Autoregressive, Chain
import os

rank = int(os.environ.get("RANK", "0"))
x = torch.randn(501, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0, 0.1]) + 1
x[37:40] = torch.nan


def new_flow():
    torch.manual_seed(0)
    maps = [Autoregressive(Affine(3.0), MADE(3, 2, (16,))) for _ in range(2)]
    return Flow(StandardNormal(3), Chain([maps[0], ActNorm(3), maps[1]]))


flow, weighted = new_flow(), new_flow()
torch.manual_seed(rank)
options = dict(epochs=4, batch_size=51, lr=5e-3, validation=0.2, checkpoint_every=0)
out = sys.argv[1]
result = fit(MaximumLikelihood(flow), x, out=out + "/run", **options)
again = fit(MaximumLikelihood(flow), x, out=out + "/run", resume=True, **options)
timeless = ("epoch", "step", "loss", "val_loss", "skipped")
assert [[e[k] for k in timeless] for e in again.history] == [[e[k] for k in timeless] for e in result.history]
weights = torch.rand(501, generator=torch.Generator().manual_seed(1)).square()
counted = fit(MaximumLikelihood(weighted), x, weights=weights, **options)
if rank == 0:
    names = ("loss", "val_loss", "val_stderr", "skipped")
    numbers = [[[entry[name] for name in names] for entry in each.history] for each in (result, counted)]
    both = {**flow.state_dict(), **{"weighted." + name: tensor for name, tensor in weighted.state_dict().items()}}
    save_file({**both, "history": torch.tensor(numbers)}, out + "/result.safetensors")
else:
    save_file(flow.state_dict(), out + f"/rank{rank}.safetensors")
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "script.py").write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    environment["OMP_NUM_THREADS"] = "1"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, launch in (("one", []), ("two", launcher)):
        (folder / name).mkdir()
        command = [sys.executable, *launch, str(folder / "script.py"), str(folder / name)]
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the launcher's children too
            raise
        assert process.returncode == 0, output[-3000:]
    return folder


def test_two_processes_give_the_weights_of_one(results):
    one, two = (load_file(results / name / "result.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor.double(), two[name].double(), atol=1e-5, rtol=1e-5), name
    assert (one["history"][:, -1, 3] >= 3).all()  # the bad batches were skipped by both
    assert not torch.allclose(*one["history"][:, -1, 1], atol=1e-2)  # rows that count alike, and rows with weights


def test_the_processes_agree_to_the_bit(results):
    first = load_file(results / "two" / "result.safetensors")
    second = load_file(results / "two" / "rank1.safetensors")
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_only_one_writes(results):
    assert {p.name for p in (results / "two/run/train").iterdir()} == {"checkpoint.safetensors", "metrics.jsonl"}
    assert len((results / "two/run/train/metrics.jsonl").read_text().splitlines()) == 4
