import os
import signal
from pathlib import Path

import pytest
import torch

from cases import KERNELS
from diffeo import ops
from diffeo.report import style

# Started in the background, a process inherits SIGINT ignored, and so would the runs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item):
    """Skip what compares the kernels with the reference where there are none; fail it where they are asked for."""
    if item.get_closest_marker("kernels") and not KERNELS:
        if os.environ.get("DIFFEO_NATIVE") == "force":
            pytest.fail("expected kernels, for DIFFEO_NATIVE=force asks for them, got none", pytrace=False)
        pytest.skip("no kernels here: only the reference runs")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def plain():
    """Run a call by the reference alone; beside it, kernels run even where they lost their race."""

    def run(call):
        with ops.using("reference"):
            return call()

    with ops.using("cpu"):
        yield run


@pytest.fixture
def plotted(monkeypatch):
    """The matplotlib figures that are saved while a test runs, by the name of the file without its suffix."""
    figures, save = {}, style.save

    def noted(fig, path):
        save(fig, path)
        figures[Path(path).stem] = fig

    monkeypatch.setattr(style, "save", noted)
    return figures
