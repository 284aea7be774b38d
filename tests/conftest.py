import signal

import pytest
import torch

# Started in the background, a process inherits SIGINT ignored, and so would the runs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
