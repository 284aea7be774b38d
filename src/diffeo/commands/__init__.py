"""What the command line does, callable from Python: nothing here prints."""

from diffeo.commands.check import check_run
from diffeo.commands.distill import distill_run
from diffeo.commands.fit import fit_data
from diffeo.commands.info import info
from diffeo.commands.machine import machine
from diffeo.commands.sample import sample_table
from diffeo.commands.score import score_table
from diffeo.modalities.audio.run import sample_audio, score_audio
from diffeo.modalities.images.run import inpaint_image, sample_images, score_images
from diffeo.modalities.runs import run_kind

__all__ = [
    "check_run",
    "distill_run",
    "fit_data",
    "info",
    "inpaint_image",
    "machine",
    "run_kind",
    "sample_audio",
    "sample_images",
    "sample_table",
    "score_audio",
    "score_images",
    "score_table",
]
