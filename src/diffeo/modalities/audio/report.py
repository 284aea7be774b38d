"""What a report says, shows and plays of a run of audio."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import bits_per_dim
from diffeo.modalities.audio import figures
from diffeo.modalities.audio.crops import STEP
from diffeo.modalities.audio.run import AudioRun
from diffeo.modalities.base import Kept, OpenRun, RunReport
from diffeo.report import words
from diffeo.report.page import Block, Facts, Sound, Text, wav_of
from diffeo.training.seeding import derive, seed_noise

__all__ = ["AudioReport"]

PLAYED = 3  # sounds of each kind
LONGEST = 4.0  # seconds of a sound that is played
FEW = 600.0  # seconds of training


class AudioReport(RunReport):
    """Sounds to play, real and drawn, and their spectrograms."""

    tag = "audio"
    example = ("crop", "crops")
    kept: ClassVar[Mapping[str, Kept]] = {
        "sounds": Kept(
            "samples",
            "Waveforms and spectrograms of held-out recordings and of samples in the same contexts.",
            photo=True,
            student="Waveforms and spectrograms of recordings, teacher and student, in the same contexts.",
        ),
        "likelihoods": Kept(
            "samples",
            "Bits per sample of held-out recordings and of samples under the model: fewer bits and samples buzz, more"
            " and they hiss.",
            student="Bits per sample under the teacher, of recordings, of its own draws, and of the student's.",
        ),
        "learning_curve": Kept("training", "The loss of training and of validation, epoch by epoch."),
        "kl": Kept("distillation", "The divergence of student and teacher over the training."),
    }

    run: AudioRun

    def __init__(self, run: OpenRun, *rest: Any) -> None:
        assert isinstance(run, AudioRun)
        self.run = run
        super().__init__(run, *rest)

    @property
    def units(self) -> dict[str, Any]:
        """Bits per sample."""
        return {"dimensions": self.run.crop, "step": STEP, "unit": "bits/sample"}

    @property
    def captions(self) -> Mapping[str, str]:
        """Of sounds drawn anew."""
        if self.examples is None:
            return {}
        return {
            "sounds": f"Waveforms and spectrograms of {self.judged}, and of samples in the same contexts.",
            "likelihoods": f"Bits per sample under the model of {self.judged}, and of samples: fewer and samples buzz,"
            " more and they hiss.",
        }

    def data(self) -> list[Block]:
        """What the sounds are like."""
        facts = self.run.facts()
        duration = self.run.metrics.get("duration")
        return [
            Facts(
                [
                    ("format", words.sound_format(facts)),
                    ("length", words.duration(duration) if duration else ""),
                    ("labels", ", ".join(facts["classes"])),
                ]
            )
        ]

    @cached_property
    def _pairs(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Real sounds, samples in the same contexts, and these."""
        if self.examples is None:
            return None
        device, flow = self.run.device, self.run.flow
        x, context = self.examples.x.to(device).float(), self.examples.context
        context = None if context is None else context.to(device)
        seed_noise(device, derive(self.seed, "report"))
        with torch.no_grad():
            return x, flow.sample(len(x)) if context is None else flow.sample((), context), context

    @torch.no_grad()
    def samples(self) -> list[Block]:
        """Sounds to play, then their spectrograms."""
        run, blocks = self.run, list[Block]()
        if self._pairs is not None:
            x, drawn, context = self._pairs
            figures.sounds({"data": x, "samples": drawn}, run.form.rate, self.figures("sounds"))
            if run.flow.has_log_prob:
                bits = {
                    name: bits_per_dim(
                        run.flow.log_prob(part, context, nan="propagate"), x.shape[1], STEP
                    ).cpu().numpy()
                    for name, part in (("data", x), ("samples", drawn))
                }  # fmt: skip
                figures.likelihoods(bits, self.figures("likelihoods"))
            chosen = np.linspace(0, len(x) - 1, min(PLAYED, len(x))).astype(int)
            for name, part in (("real", x), ("sample", drawn)):
                blocks += [self._sound(part[k], f"{name} {n + 1}") for n, k in enumerate(chosen)]
            blocks = [Text(f"Real sounds: {self.judged}; samples in the same contexts."), *blocks]
        else:
            blocks += self._alone()
        return [*blocks, *self._stored_sounds(), *self.pictures("samples")]

    def _sound(self, x: Tensor, caption: str) -> Sound:
        rate = self.run.form.rate
        return Sound(wav_of(x[: round(LONGEST * rate)].cpu().numpy(), rate), caption)

    def _alone(self) -> list[Block]:
        """Samples of a run that draws without recordings."""
        if self.run.form.mels:
            return [Text("Samples are drawn given the log-mel features of recordings: give data to hear some.")]
        draws, _ = self.run.draws(PLAYED, {})
        sounds: list[Block] = []
        for draw in draws:
            seed_noise(self.run.device, derive(self.seed, "report", draw.key))
            flow, context = draw.flow or self.run.flow, draw.context
            drawn = flow.sample(draw.count) if context is None else flow.sample((), context.to(self.run.device))
            sounds += [self._sound(x, f"sample {len(sounds) + k + 1}") for k, x in enumerate(drawn)]
        return [Text("Samples, drawn for this report:"), *sounds]

    def _stored_sounds(self) -> list[Block]:
        """Those that a distillation left in the run directory: recordings, teacher and student."""
        folder = self.stored.parent / "sounds"
        files = [
            file for kind in ("real", "teacher", "student") for file in sorted((folder / kind).glob("*.wav"))[:PLAYED]
        ]
        sounds: list[Block] = [
            Sound(file.read_bytes(), f"{file.parent.name} {int(file.stem) + 1}")
            for file in files
            if file.stem.isdecimal()
        ]
        head = "Held-out recordings, the teacher's sounds and the student's, from the distillation:"
        return [Text(head), *sounds] if sounds else []

    def calibration(self) -> list[Block]:
        """Nothing beyond what a check finds of the latents."""
        return []

    @torch.no_grad()
    def unlikely(self) -> list[Block]:
        """The sounds with the most bits per sample."""
        if self._pairs is None:
            return [Text("Unlikely sounds are looked for where data are given.")]
        if not self.run.flow.has_log_prob:
            return [Text("The model has no likelihood, by which sounds could be unlikely.")]
        x, _, context = self._pairs
        log_prob = self.run.flow.log_prob(x, context, nan="propagate").double().cpu().nan_to_num(-torch.inf)
        bits = bits_per_dim(log_prob, x.shape[1], STEP).numpy()
        order = np.argsort(-bits, kind="stable")[:PLAYED]
        median = words.number(float(np.median(bits)))
        return [
            Text(
                f"The least likely of {words.many(len(x), 'crop')}, whose median is {median} bits per sample. They are"
                f" from: {self.judged}."
            ),
            *(self._sound(x[k], f"{words.number(float(bits[k]))} bits per sample") for k in order),
        ]

    def limits(self) -> list[str]:
        """Short crops, and what is not judged by ear."""
        run, seconds = self.run, self.run.metrics.get("duration")
        texts = []
        if seconds and seconds < FEW:
            texts.append(f"It was trained on {words.duration(seconds)} of sound, which is little.")
        texts.append(
            f"It was trained on crops of {run.crop / run.form.rate:.3g} s: what holds a sound together over longer"
            " times it does not know."
        )
        texts.append("Sound is brought to one channel, 16 bits and its rate; the likelihood is that of these values.")
        if run.form.mels:
            texts.append("It makes sound of log-mel features, and has no model of these.")
        if run.form.classes:
            texts.append(f"It knows the labels {words.listed(run.form.classes)}, and no other.")
        return texts

    def use(self) -> list[str]:
        """Score, draw, check."""
        drawn_by = " --given-file one.wav" if self.run.form.mels else " -n 8 --seconds 2"
        label = " --given label=LABEL" * bool(self.run.form.classes)
        drawn = [f"diffeo sample run/{drawn_by}{label} --out wavs/"]
        if not self.run.flow.has_log_prob:
            return drawn
        return ["diffeo score run/ recordings/ --out scores.csv", *drawn, "diffeo check run/ recordings/"]
