"""What the command line does, callable from Python: nothing here prints."""

from diffeo.jobs.check import check_run
from diffeo.jobs.fit import fit_table
from diffeo.jobs.info import info
from diffeo.jobs.sample import sample_table
from diffeo.jobs.score import score_table

__all__ = ["check_run", "fit_table", "info", "sample_table", "score_table"]
