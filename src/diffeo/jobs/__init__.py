"""What the command line does, callable from Python: nothing here prints."""

from diffeo.jobs.check import check_run
from diffeo.jobs.distill import distill_run
from diffeo.jobs.fit import fit_data
from diffeo.jobs.info import info
from diffeo.jobs.machine import machine
from diffeo.jobs.pixels import inpaint_image, sample_images, score_images
from diffeo.jobs.runs import run_kind
from diffeo.jobs.sample import sample_table
from diffeo.jobs.score import score_table
from diffeo.jobs.sounds import sample_audio, score_audio

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
