"""Distilling the run of a WaveNet into a Parallel WaveNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count, islice, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffeo.distillation.base import Figures, Method, Stage, TrainingData
from diffeo.errors import UserError
from diffeo.flow import Flow, bits_per_dim
from diffeo.modalities.audio import figures as audio_figures
from diffeo.modalities.audio.crops import STEP, Crops
from diffeo.modalities.audio.dataset import AudioDataset
from diffeo.modalities.audio.distillation import compare_sounds, generate_end_naively, warnings
from diffeo.modalities.audio.recordings import save_wavs
from diffeo.modalities.audio.run import AudioRun
from diffeo.objectives import Distillation, PowerLoss
from diffeo.objectives.conditional_kl import PairedKL, collapsed, encoded_kl
from diffeo.report.distillation import divergence_curve, divergences, draw_both, pace
from diffeo.training import BatchStream, FitResult
from diffeo.training.parallel import World
from diffeo.training.seeding import derive, seeded

__all__ = ["SequenceMethod"]

BATCH_SIZE = 1  # crops per step and process: their many samples are examples enough, and more steps matter more
TEACHER_BATCHES = {"cpu": 8, "cuda": 256}  # that it draws at a time: on a GPU many rows take as long as one
VALIDATED = 16  # held-out crops for validation
REPORTED = 16  # held-out crops for the report
NAIVE = 50  # samples that are drawn naively, to time it
FORWARD_SHARE = 0.1  # of the encoded KL in the last stage: it keeps what the reverse one leaves out
POWER = 2.0  # weight of the power loss: without it the student is too quiet, at half of the RMS, for all its small KL
KEPT = 4  # sounds of each kind that stay in the run directory


class SequenceMethod(Method):
    """The teacher's own sounds, in the contexts of real recordings: whole crops, divided as the teacher's were.

    The recordings themselves are what the report compares with.
    """

    run, teachers = AudioRun, "a wavenet"
    options = ("forward_share", "power", "contrast")
    students = {"parallel_wavenet": ("parallel_wavenet", {})}  # noqa: RUF012 - a constant
    epochs = 60

    @classmethod
    def suits(cls, flow: Flow) -> bool:
        """Whether the flow is a WaveNet, whose conditionals are compared with the student's."""
        return flow.recipe is not None and flow.recipe["name"] == "wavenet"

    def shared(self) -> dict[str, Any]:
        """The frames of its context and the kind of noise are the teacher's as well."""
        noise = "normal" if self.arguments["head"] == "gaussian" else "logistic"
        return {**super().shared(), "hop": self.arguments["hop"], "noise": noise}

    def read(self, source: Any, settings: Mapping[str, Any], seed: int, say: Callable[[str], None]) -> None:
        """Open the recordings and divide them; choose the terms of the loss."""
        form = self.opened.form
        needed = "recordings are needed to distil it, and for the contexts of its sounds; give them"
        audio = self.open_source(source, self.opened.open, say, needed)
        contrast = self._contrast(settings)
        batch_size = max(BATCH_SIZE, 2 if contrast else 1) * World(self.device).size
        same = {
            "context": form.parts, "mels": form.mels, "arguments": {"hop": form.hop}, "rate": form.rate,
            "crop": self.opened.crop / form.rate, "batch_size": batch_size,
        }  # fmt: skip
        divided = self.provenance.get("seed")
        self.dataset = AudioDataset(audio, same, divided if isinstance(divided, int) else 0)
        for note in self.dataset.notes:
            say(note)
        samples, power = self.opened.crop, settings.get("power", POWER)
        encoded = partial(Distillation, forward_estimator=encoded_kl, forward_share=1.0)
        both = partial(
            Distillation, estimator=PairedKL(), forward_estimator=None,
            forward_share=settings.get("forward_share", FORWARD_SHARE), contrast=contrast,
            auxiliary=[(power * samples, PowerLoss())] if power else [],
        )  # fmt: skip
        # Far from the teacher the reverse KL of sound explodes: its conditionals are narrow.
        self.stages = (
            Stage("encoded", "forward KL, encoded", encoded, 0.2, 3e-3),
            Stage("reverse", "reverse KL, regularised", both, 0.8, 1e-3),
        )

    def check(self, flow: Flow) -> None:
        """Refuse a student, too, whose conditionals are not known in closed form: one of maps that are not affine."""
        super().check(flow)
        z = flow.base.sample((1,))
        context = z.new_zeros(1, *flow.context_shape) if flow.context_shape else None
        try:
            with torch.no_grad():
                collapsed(flow.core, z, context)
        except ValueError as error:
            raise UserError(f"student {self.student!r}: {error}") from error

    def _contrast(self, settings: Mapping[str, Any]) -> float:
        contrast: float = settings.get("contrast", 0.0)
        if contrast and not self.opened.form.channels:
            raise UserError(f"{self.path} has no context to tell apart; leave --contrast out")
        return contrast

    def training_data(self, stage: Stage, student: Flow, seed: int) -> TrainingData:
        """Sounds of the teacher's in the contexts of recordings that it was trained on, and of some that it was not."""
        _, context = _some(self.dataset.valid_x, self.dataset.valid_context, VALIDATED)
        held_out = self.draw_teacher(VALIDATED, context, derive(seed, "validation"))
        return _TeacherSounds(self.dataset.x, self, derive(seed, stage.name)), held_out

    @torch.no_grad()
    def draw_teacher(self, rows: int, context: Tensor | None, seed: int) -> tuple[Tensor, Tensor | None]:
        """Let the teacher draw so many sounds, in the contexts ``(rows, ...)`` if it takes any."""
        with seeded(self.device, seed):
            if context is None:
                return self.core.sample((rows,)), None
            context = context.to(self.device)
            return self.core.sample((), context), context

    def facts(self) -> dict[str, Any]:
        """Rate, frames, how long the recordings are together, and what the density is given."""
        return self.dataset.facts()

    @torch.no_grad()
    def report(self, student: Flow, seed: int) -> dict[str, Any]:
        """Compare draws of both, in the contexts of held-out recordings, with each other and with these."""
        dataset, samples = self.dataset, self.opened.crop
        x, context, which = dataset.valid_x, dataset.valid_context, "recordings held out of training"
        if dataset.test is not None:
            (x, context), which = dataset.test.in_order(), "the test recordings"
        x, context = _some(x, context, REPORTED)
        context = None if context is None else context.to(self.device)
        draws = draw_both(student, self.core, context, len(x), derive(seed, "report"))
        if draws.kept.sum() < 2:
            raise UserError(f"{self.path}: its student draws no finite sounds; distil it again, with more minutes")
        scores = self.score(student, x, context, seed)

        self.sounds, self.bits = {"real": x[draws.kept.cpu()]}, {}
        if scores is not None:
            self.bits["real"] = bits_per_dim(scores["teacher"] + scores["log_det"], samples, STEP).numpy()
        for name, drawn, log_p in (("teacher", draws.x, draws.log_p_x), ("student", draws.s, draws.log_p_s)):
            sound, log_det = self.outwards(drawn)
            self.sounds[name] = sound.cpu()
            self.bits[name] = bits_per_dim(torch.from_numpy(log_p) - log_det.double().cpu(), samples, STEP).numpy()

        report = {**divergences(draws), "sound": compare_sounds(self.sounds, dataset.form.rate)}
        report["warnings"] = warnings(report)
        report["samples_per_second"] = self._paces(student, None if context is None else context[:1])
        return self.judged(report, scores, which, STEP)

    def _paces(self, student: Flow, context: Tensor | None) -> dict[str, float]:
        """Return samples per second of one sound at a time: student, teacher, and teacher without memory."""
        shape, samples = (1,) if context is None else (), self.opened.crop
        drawn = self.core.sample(shape, context)
        z, steps = self.core.base.sample((1,)), min(NAIVE, samples)
        return {
            "student": pace(lambda count: student.sample(shape, context), samples),
            "teacher": pace(lambda count: self.core.sample(shape, context), samples),
            "teacher_naive": pace(lambda count: generate_end_naively(self.core, drawn, z, context, count), steps),
        }

    def figures(self, results: Mapping[str, FitResult]) -> Figures:
        """KL over the training, waveforms and spectrograms, the teacher's likelihood of all."""
        histories = {stage.says: results[stage.name].history for stage in self.stages}
        return {
            "kl": partial(divergence_curve, histories, units=self.opened.crop, unit="sample"),
            "sounds": partial(audio_figures.sounds, self.sounds, self.dataset.form.rate),
            "likelihoods": partial(audio_figures.likelihoods, self.bits, whose="teacher"),
        }

    def plot(self, folder: Path, results: Mapping[str, FitResult]) -> list[str]:
        """Plot the figures, and write some wavs of each kind beside them."""
        (folder / "sounds").mkdir(exist_ok=True)
        for name, sounds in self.sounds.items():
            save_wavs(folder / "sounds" / name, _some(sounds, None, KEPT)[0].numpy(), self.dataset.form.rate, True)
        return super().plot(folder, results)


class _TeacherSounds(BatchStream):
    """Batches of sounds that the teacher draws in the contexts of recordings; epoch and number decide its noise.

    It draws those of many batches at once, for sampling over time takes many steps however few rows go along.
    """

    def __init__(self, crops: Crops, method: SequenceMethod, seed: int) -> None:
        self.crops, self.method, self.seed = crops, method, seed

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def fingerprint(self) -> str:
        """That of the recordings, and the seed of the noise."""
        return f"{self.crops.fingerprint} {self.seed}"

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        self.crops.set_epoch(self.epoch)
        batches = iter(self.crops)
        for number in count():
            some = list(islice(batches, TEACHER_BATCHES.get(self.method.device.type, 8)))
            if not some:
                return
            sizes, contexts = [len(x) for x, _ in some], [c for _, c in some if c is not None]
            seed = derive(self.seed, "teacher", self.epoch, number)
            x, context = self.method.draw_teacher(sum(sizes), torch.cat(contexts) if contexts else None, seed)
            yield from zip(x.split(sizes), context.split(sizes) if context is not None else repeat(None))  # noqa: B905


def _some(x: Tensor, context: Tensor | None, most: int) -> tuple[Tensor, Tensor | None]:
    """Pick at most so many, evenly spaced: neighbours share a recording. One is taken twice, for an error takes two."""
    chosen = torch.linspace(0, len(x) - 1, max(2, min(most, len(x)))).long()
    return x[chosen], None if context is None else context[chosen]
