"""Kill trainings with SIGKILL at random moments, resume them, and compare the final weights to the bit.

Half of the kills come while a checkpoint is being written. After each kill the checkpoint that exists must load; in the
end the SHA-256 of the tensors of every resumed run must equal that of the undisturbed one.

    python benchmarks/kill.py [--runs 20]
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = """
import sys, torch
torch.set_num_threads(1)
from diffeo import recipes
from diffeo.objectives import MaximumLikelihood
from diffeo.training import create_run, fit, save_weights
from pathlib import Path

out = Path(sys.argv[1])
x = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)).cumsum(1)
torch.manual_seed(0)
flow = recipes.maf(6, transforms=3, hidden=(64, 64), preprocess=[["dequantize", {"step": 0.01}], "standardize"])
resume = (out / "model.json").exists()
if not resume:
    create_run(out, flow)
fit(MaximumLikelihood(flow), x, epochs=40, batch_size=256, out=out, resume=resume, checkpoint_every=0.02)
save_weights(out, flow)
"""


def start(folder: Path) -> subprocess.Popen:
    """Start a training in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", TRAIN, str(folder)], env=environment, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen) -> None:
    """Wait for a training that must succeed."""
    _, error = process.communicate()
    if process.returncode:
        sys.exit(f"a training failed:\n{error.decode()}")


def kill(process: subprocess.Popen, folder: Path, delay: float, writing: bool) -> tuple[bool, bool]:
    """Kill a training after a delay from its first checkpoint; return whether it still ran, and was writing."""
    checkpoint = folder / "train/checkpoint.safetensors"
    while process.poll() is None and not (folder / "train").exists():
        time.sleep(0.001)
    if not writing and delay < 0.05:  # some die before there is any checkpoint
        time.sleep(delay)
    else:
        while process.poll() is None and not checkpoint.exists():
            time.sleep(0.001)
        time.sleep(delay)

    def half_a_file() -> bool:
        return any(name.endswith(".tmp") for name in os.listdir(folder / "train"))

    # A temporary file lives for about a millisecond: look without a pause, stop the process, look again.
    while writing and process.poll() is None:
        if half_a_file():
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.001)
            if half_a_file():
                break
            process.send_signal(signal.SIGCONT)
    ran = process.poll() is None
    process.kill()
    process.communicate()
    return ran, half_a_file()


def main() -> None:
    """Run the benchmark and exit with 1 if a run ends with other weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)

    from diffeo.training.checkpoint import load_checkpoint
    from diffeo.training.weights import digest, load_tensors

    def weights(folder: Path) -> str:
        return digest(load_tensors(folder / "model.safetensors", "")[0])

    with tempfile.TemporaryDirectory() as temporary:
        undisturbed = Path(temporary) / "undisturbed"
        finish(start(undisturbed))
        expected = weights(undisturbed)
        state = load_checkpoint(undisturbed / "train/checkpoint.safetensors")[0]["state"]
        print(f"undisturbed: {state['step']} steps in {state['seconds']:.1f} s, SHA-256 {expected[:16]}")
        print(f"{'run':>3}  {'aimed at':8}  {'left half a file':16}  {'checkpoint at step':18}  same bits")
        halves = wrong = 0
        for number in range(options.runs):
            folder, writing = Path(temporary) / str(number), number % 2 == 1
            while True:
                ran, half = kill(start(folder), folder, random.random() * state["seconds"], writing)
                if ran:
                    break
                finish(start(folder))  # too late: it had ended; try again in a new folder
                folder = folder.with_name(folder.name + "+")
            checkpoint, step = folder / "train/checkpoint.safetensors", "none"
            if checkpoint.exists():
                step = str(load_checkpoint(checkpoint)[0]["state"]["step"])
            finish(start(folder))
            same = weights(folder) == expected
            halves, wrong = halves + half, wrong + (not same)
            aim = "a write" if writing else "any time"
            print(
                f"{number:3}  {aim:8}  {'yes' if half else 'no':16}  {step:18}  {'yes' if same else 'NO'}", flush=True
            )
        print(f"{options.runs - wrong} of {options.runs} end with the same bits; {halves} were killed within a write")
        sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
