"""What a report says and shows of a run of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import bits_per_dim
from diffeo.modalities.base import Kept, OpenRun, RunReport
from diffeo.modalities.images.dataset import one_hot
from diffeo.modalities.images.figures import boards
from diffeo.modalities.images.run import ImageRun, size
from diffeo.report import words
from diffeo.report.page import Block, Facts, Picture, Text
from diffeo.training.seeding import derive, seed_noise
from diffeo.variational import VAE

__all__ = ["ImageReport"]

SHOWN = 64  # images side by side
WORST = 32  # images that are least likely
SCORED = 1_000  # images among which they are looked for
FEW = 10_000  # images of training


class ImageReport(RunReport):
    """Real images beside samples, and those that are unlikely."""

    tag = "image"
    example = ("image", "images")
    simplest = "independent pixels"
    kept: ClassVar[Mapping[str, Kept]] = {
        "samples": Kept(
            "samples",
            "Held-out images beside samples.",
            photo=True,
            student="What teacher and student make of the same noise.",
        ),
        "reconstructions": Kept(
            "samples", "Held-out images, and what is reconstructed from their latents.", photo=True
        ),
        "between": Kept("samples", "Paths in latent space between pairs of held-out images.", photo=True),
        "scales": Kept(
            "samples", "Held-out images, and the same with the finer of their latents drawn anew.", photo=True
        ),
        "inpainting": Kept(
            "samples", "Held-out images, their upper halves, and completions by climbing the density.", photo=True
        ),
        "traversals": Kept("samples", "One latent moved in each row, of those that tell most of images.", photo=True),
        "latents": Kept(
            "samples", "Where images lie in the plane of the latents, and what its places decode to.", True
        ),
        "trajectories": Kept("samples", "From noise to images.", photo=True),
        "learning_curve": Kept("training", "The loss of training and of validation, epoch by epoch."),
        "distances": Kept("distillation", "Squared Wasserstein distances to the teacher by the number of steps."),
    }

    run: ImageRun

    def __init__(self, run: OpenRun, *rest: Any) -> None:
        assert isinstance(run, ImageRun)
        self.run = run
        super().__init__(run, *rest)

    @property
    def units(self) -> dict[str, Any]:
        """Bits per dimension."""
        return {"dimensions": math.prod(self.run.shape)}

    @property
    def captions(self) -> Mapping[str, str]:
        """Of samples drawn anew."""
        if self.examples is None:
            return {"samples": "Samples, drawn for this report."}
        shown = self.some(min(SHOWN, len(self.examples.x)))
        return {"samples": f"Left: {shown}. To the right samples, drawn for this report."}

    def data(self) -> list[Block]:
        """Shape, levels and classes."""
        run = self.run
        return [
            Facts(
                [
                    ("size", size(run.shape)),
                    ("levels", f"{run.levels:,} of each pixel"),
                    ("conditional on", ", ".join(run.classes)),
                ]
            )
        ]

    @torch.no_grad()
    def samples(self) -> list[Block]:
        """Samples beside images, or alone where none are stored; and what the run directory holds."""
        flow, seed = self.run.flow, derive(self.seed, "report")
        if self.examples is not None or not (self.stored / "samples.png").is_file():
            seed_noise(self.run.device, seed)
            labels = self.run.labels(SHOWN, None)
            context = None if labels is None else one_hot(labels, len(self.run.classes)).to(self.run.device)
            parts: dict[str, Tensor] = {}
            count = SHOWN
            if self._images is not None:
                x, context = self._images[0][:SHOWN], None if self._images[1] is None else self._images[1][:SHOWN]
                parts, count = {"data": x}, len(x)
            parts["samples"] = flow.sample(count) if context is None else flow.sample((), context)
            if isinstance(flow, VAE):
                parts["means of samples"] = flow.sample(count, means=True)
            boards(parts, self.run.levels - 1.0, self.figures("samples"))
        return self.pictures("samples")

    @cached_property
    def _images(self) -> tuple[Tensor, Tensor | None] | None:
        """Images as the likelihood knows them, and their contexts."""
        if self.examples is None:
            return None
        chosen, context, flow = self.drawn(SCORED), self.examples.context, self.run.flow
        x = self.examples.x[chosen].to(self.run.device).float()
        context = None if context is None else context[chosen.to(context.device)]
        return flow.likelihood.prepare(x) if isinstance(flow, VAE) else x, context

    def calibration(self) -> list[Block]:
        """Nothing beyond what a check finds of the latents."""
        return []

    @torch.no_grad()
    def unlikely(self) -> list[Block]:
        """The images with the lowest log-likelihood, or bound of it."""
        flow = self.run.flow
        if self._images is None:
            return [Text("Unlikely images are looked for where data are given.")]
        if not (flow.has_log_prob or flow.has_bound):
            return [Text("The model has no likelihood, by which images could be unlikely.")]
        x, context = self._images
        seed_noise(self.run.device, derive(self.seed, "unlikely"))
        log_prob = flow.bound(x).log_prob if isinstance(flow, VAE) else flow.log_prob(x, context, nan="propagate")
        log_prob = log_prob.double().cpu().nan_to_num(-torch.inf)
        order = log_prob.argsort()[:WORST]
        bits = bits_per_dim(log_prob, math.prod(self.run.shape)).numpy()
        top = self.run.levels - 1.0
        boards({"least likely": x[order.to(x.device)]}, top, self.figures("unlikely"))
        worst, usual = bits[order.numpy()], float(np.median(bits))
        caption = (
            f"The {len(order)} least likely of {words.many(len(x), 'image')}, the worst first:"
            f" {words.number(float(worst[0]))} to {words.number(float(worst[-1]))} bits/dim; the median image has"
            f" {words.number(usual)}. They are from: {self.judged}."
        )
        return [Picture.read(self.figures.run / "figures" / "unlikely.png", caption, photo=True)]

    def limits(self) -> list[str]:
        """Discrete pixels, bounds, and that a likelihood of images is mostly of their texture."""
        run = self.run
        trained = (run.metrics.get("rows") or {}).get("train", run.facts()["rows"])
        texts = []
        if trained and trained < FEW:
            texts.append(f"It was trained on {words.many(trained, 'image')}, which are few for images.")
        if isinstance(run.flow, VAE):
            texts.append(
                "It is a VAE: there is no exact likelihood, only bounds, which rise with the number of samples."
            )
        else:
            texts.append(
                "Pixels are spread over the cells of their levels: the likelihood bounds that of the discrete pixels"
                " from below."
            )
        texts.append(
            "A likelihood of images is mostly that of their texture: images of something else, if smooth, can have a"
            " higher one than those of the training. It does not tell by itself whether an image belongs to them."
        )
        if run.classes:
            texts.append(f"It knows the classes {words.listed(run.classes)}, and no other.")
        return texts

    def use(self) -> list[str]:
        """Score, draw, check."""
        label = " --given label=CLASS" * bool(self.run.classes)
        drawn = [f"diffeo sample run/ -n 64{label} --out grid.png"]
        if not (self.run.flow.has_log_prob or self.run.flow.has_bound):
            return drawn
        return ["diffeo score run/ images/ --out scores.csv", *drawn, "diffeo check run/ images/"]
