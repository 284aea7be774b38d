"""MNIST beside the papers: `DIFFEO_DATA=data python benchmarks/mnist.py nice --minutes 15 --out docs/mnist.md`.

Each model is trained by `diffeo fit mnist` in a process of its own, on the first 50,000 training images, the last
10,000 for validation, and judged on the 10,000 test images, in the unit of its paper:

- `nice`, the paper's architecture, in nats of pixels (u8 + U[0, 1)) / 256: 1980.50 (arXiv:1410.8516);
- `realnvp` and `glow` in bits per dimension: 1.06 and 1.05 (as quoted in arXiv:1810.01367, table 2);
- `maf`, five layers of the paper's size, in nats of the pixels' logits, alpha 1e-6: -1300.5 (arXiv:1705.07057);
- `conditional`: RealNVP given the label, with the accuracy of argmax_c p(x | c) as well.

Then every model encodes and decodes the test images and as many samples of its own in float32; the largest error of a
pixel, of the range [0, 1], is reported. Results are kept beside the table, in a .json, so that models can be run one by
one.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.data import open_images
from diffeo.flow import Flow, bits_per_dim
from diffeo.modalities import open_run
from diffeo.report.numerics import continuous_part
from diffeo.transforms import Chain, Logit
from speed import machine

PIXELS = 784
LOGIT = '[["dequantize", {"step": 1.0}], ["logit", {"low": 0.0, "high": 256.0, "alpha": 1e-6}], "standardize"]'
MODELS: dict[str, tuple[list[str], str, float]] = {
    "nice": (["--model", "nice", "--set", "preset=paper", "--batch-size", "256"], "nats, pixels", 1980.50),
    "realnvp": (["--model", "realnvp"], "bits/dim", 1.06),
    "glow": (["--model", "glow"], "bits/dim", 1.05),
    "conditional": (["--model", "realnvp", "--context", "label"], "bits/dim", math.nan),
    "maf": (
        ["--model", "maf", "--set", "preset=paper", "--set", f"preprocess={LOGIT}", "--batch-size", "256"],
        "nats, logits",
        -1300.5,
    ),
}
COLUMNS = [
    "model", "seed", "parameters", "minutes", "epochs", "test", "validation", "train", "unit", "paper's test",
    "round trip: test images, samples",
]  # fmt: skip


def main() -> None:
    """Trains the models and writes the table."""
    argv = sys.argv[1:]
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] models ... [-- options of diffeo fit]",
    )  # fmt: skip
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the run directories")
    parser.add_argument("--out", type=Path, help="a .md file for the table")
    parser.add_argument("--judge", action="store_true", help="judge runs that are in --keep already")
    args = parser.parse_args(argv[:cut])
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            run = (args.keep or Path(folder)) / name
            if not args.judge:
                train(name, run, args.minutes, args.seed, argv[cut + 1 :])
            result = {"model": name, "seed": args.seed, "minutes": args.minutes, **judge(name, run, args.seed)}
        print(json.dumps(result, indent=2), flush=True)
        if args.out:
            write(args.out, result)


def train(name: str, run: Path, minutes: float, seed: int, options: list[str]) -> None:
    """Train as a user would."""
    fit = [sys.executable, "-m", "diffeo", "fit", "mnist", "--out", str(run), "--force"]
    fit += ["--minutes", str(minutes), "--seed", str(seed), *MODELS[name][0], *options]
    subprocess.run(fit, check=True, stdout=subprocess.DEVNULL)


@torch.no_grad()
def judge(name: str, run: Path, seed: int) -> dict[str, Any]:
    """Return likelihoods with standard errors, round-trip errors, and the accuracy of a conditional model."""
    torch.manual_seed(seed)
    model = open_run(run)
    metrics = json.loads((run / "model.json").read_text())["metrics"]
    train_images, validation, test = open_images("mnist").split()
    assert validation is not None
    assert test is not None
    result: dict[str, Any] = {key: metrics[key] for key in ("parameters", "epochs", "best_epoch", "seconds")}
    for part, images in (("test", test), ("validation", validation), ("train", train_images.part(slice(10_000)))):
        x, context = torch.from_numpy(np.ascontiguousarray(images.pixels)), model.context(images)
        values = likelihood(name, model.flow, x, context)
        result[part] = [float(values.mean()), float(values.std() / len(values) ** 0.5)]
    x, context = torch.from_numpy(np.ascontiguousarray(test.pixels)), model.context(test)
    bijection, y = continuous_part(model.flow, x.float())
    drawn = bijection.sample((len(y),) if context is None else (), context)
    result["round_trip"] = [round_trip(bijection, values, context) for values in (y, drawn)]
    if context is not None:
        labels = torch.from_numpy(np.ascontiguousarray(test.labels))
        classes = torch.eye(context.shape[1])
        scores = torch.stack([bijection.log_prob(y, one_hot.expand(len(y), -1)) for one_hot in classes], 1)
        right = (scores.argmax(1) == labels).double()
        result["accuracy"] = [float(right.mean()), float(right.std() / len(right) ** 0.5)]
    result["machine"] = f"{machine(torch.get_num_threads(), 'cpu')}, torch {torch.__version__}"
    return result


def likelihood(name: str, flow: Flow, x: Tensor, context: Tensor | None) -> Tensor:
    """The log-likelihood of each image, dequantised once, in the unit of the model's paper."""
    unit = MODELS[name][1]
    bijection, y = continuous_part(flow, x.float())  # y is of the range [0, 256]
    log_prob = bijection.log_prob(y, context).double()
    if unit == "bits/dim":
        return bits_per_dim(log_prob, PIXELS)
    if unit == "nats, pixels":
        return log_prob + PIXELS * math.log(256)
    assert isinstance(bijection.transform, Chain)
    (logit,) = (part for part in bijection.transform if isinstance(part, Logit))
    return log_prob - logit.inverse_and_log_det(y)[1].double()


def round_trip(flow: Flow, y: Tensor, context: Tensor | None) -> float:
    """The largest error of a pixel of the range [0, 1] after encoding and decoding; infinite if one is not finite."""
    back = flow.decode(flow.encode(y, context), context)
    return float((back - y).abs().nan_to_num(math.inf).max()) / 256


def write(path: Path, result: dict[str, Any]) -> None:
    """Add a result to those kept, and write all of them as a table."""
    store = path.with_suffix(".json")
    kept = json.loads(store.read_text()) if store.exists() else []
    kept = [other for other in kept if (other["model"], other["minutes"]) != (result["model"], result["minutes"])]
    kept = sorted([*kept, result], key=lambda one: (list(MODELS).index(one["model"]), one["minutes"]))
    store.write_text(json.dumps(kept, indent=1) + "\n")
    note = f"Made by `benchmarks/mnist.py` on {result['machine']}; likelihoods with standard errors."
    table = [COLUMNS, ["---"] * len(COLUMNS), *map(_row, kept)]
    path.write_text("\n".join(["# MNIST", "", note, "", *(f"| {' | '.join(row)} |" for row in table)]) + "\n")


def _row(one: dict[str, Any]) -> list[str]:
    _, unit, paper = MODELS[one["model"]]
    digits = 4 if unit == "bits/dim" else 2
    name = one["model"] + (f" (accuracy {one['accuracy'][0]:.2%})" if "accuracy" in one else "")
    cost = [f"{one['seed']}", f"{one['parameters']:,}", f"{one['seconds'] / 60:.1f}", f"{one['epochs']}"]
    parts = [f"{one[part][0]:.{digits}f} ± {one[part][1]:.{digits}f}" for part in ("test", "validation", "train")]
    published = "" if math.isnan(paper) else f"{paper:g}"
    return [name, *cost, *parts, unit, published, ", ".join(f"{error:.1e}" for error in one["round_trip"])]


if __name__ == "__main__":
    main()
