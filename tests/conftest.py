import signal

import pytest
import torch

from diffeo import ops

# Started in the background, a process inherits SIGINT ignored, and so would the runs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
