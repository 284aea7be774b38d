"""What the command line does, callable from Python: one function each, and nothing here prints."""

from diffeo.commands.anomalies import anomalies
from diffeo.commands.check import check
from diffeo.commands.distill import distill
from diffeo.commands.export import export
from diffeo.commands.fit import fit
from diffeo.commands.impute import impute
from diffeo.commands.info import info
from diffeo.commands.inpaint import inpaint
from diffeo.commands.machine import machine
from diffeo.commands.posterior import posterior
from diffeo.commands.predict import predict
from diffeo.commands.report import report
from diffeo.commands.sample import sample
from diffeo.commands.score import score

__all__ = [
    "anomalies",
    "check",
    "distill",
    "export",
    "fit",
    "impute",
    "info",
    "inpaint",
    "machine",
    "posterior",
    "predict",
    "report",
    "sample",
    "score",
]
