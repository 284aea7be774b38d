"""VAEs of MNIST with three posteriors: `DIFFEO_DATA=data python benchmarks/vae.py --minutes 20 --out vae.json`.

Encoder, decoder, prior, rate and seed are the same; the posterior is a diagonal Gaussian, IAF or NSF. Each is trained
by the ELBO for so many minutes on the first 50,000 training images, the last 10,000 for validation, and judged on the
first 1,000 test images by 1,000 draws of its posterior for each: the ELBO, and the importance-weighted bound of log
p(x), in nats, with the mean of the differences to the diagonal posterior image by image and their standard errors.

Images are binarised once and for all: by a fixed Bernoulli draw of each pixel (`--binarize draw`, seed 0, whatever the
seed of the training), or white above a half (`--binarize threshold`, as `diffeo fit mnist --model vae` does).

Published, on pixels that are drawn anew each time, ELBO / log p: diagonal -84.08 / -81.08, IAF -82.02 / -79.77
(arXiv:1606.04934).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffeo
from diffeo.data import open_images
from diffeo.objectives import objective_of
from diffeo.variational import VAE
from speed import machine

POSTERIORS = ("diagonal", "iaf", "nsf")


def main() -> None:
    """Trains a process for each posterior and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("posteriors", nargs="*", help=f"by default {' '.join(POSTERIORS)}")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--binarize", choices=("draw", "threshold"), default="draw")
    parser.add_argument("--images", type=int, default=1000, help="test images to judge by")
    parser.add_argument("--samples", type=int, default=1000, help="draws of the posterior for each")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side, which share the processor")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an argument of the recipe")
    parser.add_argument("--out", type=Path, help="a .json file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = set(args.posteriors) - {*POSTERIORS}
    if unknown:
        parser.error(f"expected posteriors among {', '.join(POSTERIORS)}, got {', '.join(unknown)}")
    if args.one:
        print(json.dumps(judge(args, args.posteriors[0], args.seeds[0])))
        return
    results: list[dict[str, Any]] = []
    pairs = [(posterior, seed) for seed in args.seeds for posterior in args.posteriors or POSTERIORS]
    with ThreadPoolExecutor(args.jobs) as pool:
        for result in pool.map(lambda pair: apart(args, *pair), pairs):
            results.append(result)
            if args.out:
                args.out.write_text(json.dumps(results) + "\n")
    for seed in args.seeds:
        print(table([each for each in results if each["seed"] == seed], args))


def apart(args: argparse.Namespace, posterior: str, seed: int) -> dict[str, Any]:
    """The result of one training, in a process of its own."""
    command = [sys.executable, __file__, posterior, "--one", "--seeds", str(seed)]
    for name in ("minutes", "binarize", "images", "samples"):
        command += [f"--{name}", str(getattr(args, name))]
    command += [word for each in args.set for word in ("--set", each)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def judge(args: argparse.Namespace, posterior: str, seed: int) -> dict[str, Any]:
    """Train one VAE and bound the likelihood of test images."""
    train, valid, test = (binarized(part, args.binarize) for part in open_images("mnist").split())
    arguments = {name: json.loads(value) for name, _, value in (each.partition("=") for each in args.set)}
    torch.manual_seed(seed)
    vae = diffeo.vae((1, 28, 28), levels=2, posterior=posterior, **arguments)
    assert isinstance(vae, VAE)
    with tempfile.TemporaryDirectory() as folder:
        result = diffeo.fit(
            objective_of(vae), train, validation=valid, minutes=args.minutes, batch_size=128, lr=2e-3, seed=seed,
            patience=math.inf, out=Path(folder) / "run",
        )  # fmt: skip
    torch.manual_seed(seed)
    bound = vae.bound(test[: args.images], args.samples)
    return {
        "posterior": posterior, "seed": seed, "parameters": sum(p.numel() for p in vae.parameters()),
        "epochs": result.epochs, "best_epoch": result.best_epoch, "steps": result.steps, "seconds": result.seconds,
        "validation": result.best_loss, "samples": bound.samples, "binarize": args.binarize,
        "elbo": bound.elbo.tolist(), "log_prob": bound.log_prob.tolist(), "stderr": bound.stderr.tolist(),
        "machine": f"{machine(torch.get_num_threads(), 'cpu')}, torch {torch.__version__}",
    }  # fmt: skip


def binarized(images: Any, how: str) -> Tensor:
    """Pixels 0 or 1, (n, 1, 28, 28), the same in every call."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.pixels))
    if how == "threshold":
        return (pixels > 127).to(torch.uint8)
    generator = torch.Generator().manual_seed(len(pixels))  # training, validation and test have draws of their own
    return (torch.rand(pixels.shape, generator=generator) < pixels / 255).to(torch.uint8)


def table(results: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Means over the test images, and differences to the diagonal posterior image by image."""
    first = results[0]
    how = "a fixed Bernoulli draw" if args.binarize == "draw" else "a threshold of a half"
    lines = [
        f"Seed {first['seed']}, {len(first['elbo']):,} test images binarised by {how}, {first['samples']:,} samples, "
        f"{args.minutes:g} minutes each, {args.jobs} at a time; {first['machine']}, {os.cpu_count()} cores.",
        "",
        "| posterior | parameters | epochs | ELBO | log p, bound | ELBO - diagonal's | log p - diagonal's |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    diagonal = next((each for each in results if each["posterior"] == "diagonal"), None)
    for each in results:
        cells = [each["posterior"], f"{each['parameters']:,}", str(each["epochs"])]
        cells += [said(np.array(each[name])) for name in ("elbo", "log_prob")]
        if diagonal is not None and each is not diagonal:
            cells += [said(np.array(each[name]) - diagonal[name]) for name in ("elbo", "log_prob")]
        else:
            cells += ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def said(values: np.ndarray) -> str:
    """A mean and its standard error."""
    return f"{values.mean():.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}"


if __name__ == "__main__":
    main()
