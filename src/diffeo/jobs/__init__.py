"""What the command line does, callable from Python: nothing here prints."""

from diffeo.jobs.check import check_run
from diffeo.jobs.distill import distill_run
from diffeo.jobs.fit import fit_data
from diffeo.jobs.info import info
from diffeo.jobs.pixels import inpaint_image, is_image_run, sample_images, score_images
from diffeo.jobs.sample import sample_table
from diffeo.jobs.score import score_table

__all__ = [
    "check_run",
    "distill_run",
    "fit_data",
    "info",
    "inpaint_image",
    "is_image_run",
    "sample_images",
    "sample_table",
    "score_images",
    "score_table",
]
