"""The kernels beside the reference on random networks and inputs; ``agreement.py`` compares more of them."""

import pytest
import torch

from agreement import WEIGHTS, _difference, _moved, compare, draw
from cases import needs_compiler


@pytest.mark.kernels
@needs_compiler
@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed):
    case = draw(seed, [weight for weight in WEIGHTS if weight < 1e20])
    assert compare(case) == [], case.words


def test_what_counts_as_a_difference():
    exact = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.double)
    assert not _difference(exact + 1e-6, [exact], exact)
    assert not _difference(exact + 1e-3, [exact - 5e-4], exact)
    assert not _difference(exact + 1e-3, [exact, exact - 5e-4], exact)
    assert "off by" in _difference(exact + 1e-3, [exact], exact)
    assert "off by" in _difference(exact + 1e-3, [exact, exact + 1e-5, "expected"], exact)
    for odd in (torch.nan, torch.inf, -torch.inf):
        broken = exact.clone()
        broken[1, 0] = odd
        assert "finite in one alone, first in row 1" in _difference(broken, [exact], exact)
        assert not _difference(broken, [broken, exact], exact)
    assert _difference("expected", [exact], exact)
    assert not _difference("expected", ["expected"], exact)


def test_a_moved_copy_differs_by_a_rounding():
    case = draw(0)
    for seed in range(2):
        for parameter, moved in zip(case.flow.parameters(), _moved(case.flow, seed).parameters(), strict=True):
            assert (moved != parameter).all()
            torch.testing.assert_close(moved, parameter, rtol=2.0**-22, atol=1e-37)
