"""Each fast path equals its plain twin: values, log-dets and gradients."""

import pytest
import torch

from diffeo.kernels import native
from diffeo.transforms import RationalQuadraticSpline

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C compiler here: only the plain twins run")


@pytest.fixture
def plain(monkeypatch):
    """Run a call with the kernels switched off."""

    def run(call):
        with monkeypatch.context() as patch:
            patch.setattr("diffeo.kernels.spline.usable", lambda *tensors: False)
            return call()

    return run


@needs_compiler
@pytest.mark.parametrize("bins", [2, 5, 8, 32])
@pytest.mark.parametrize("shape", [(7,), (3, 1), (4, 16), (2, 3, 37)], ids=str)
def test_spline_equals_its_plain_twin(plain, bins, shape):
    spline = RationalQuadraticSpline(bins, 3.0, min_bin=0.02)
    value = 2.5 * torch.randn(shape)
    value.view(-1)[:2] = torch.tensor([3.0, -3.0])
    params = 2 * torch.randn(spline.size, *shape)

    def gradients():
        x, p = value.clone().requires_grad_(), params.clone().requires_grad_()
        z, log_det = spline.inverse_and_log_det(x, p)
        weights = torch.linspace(-1, 1, z.numel()).reshape(z.shape)
        return z, log_det, *torch.autograd.grad((weights * z + weights.cos() * log_det).sum(), (x, p))

    for fast, slow in zip(gradients(), plain(gradients), strict=True):
        assert torch.allclose(fast, slow, atol=2e-4, rtol=2e-4)

    with torch.no_grad():
        for method in ("forward_and_log_det", "inverse_and_log_det"):
            fast, slow = (
                getattr(spline, method)(value, params),
                plain(lambda m=method: getattr(spline, m)(value, params)),
            )
            for a, b in zip(fast, slow, strict=True):
                assert torch.allclose(a, b, atol=1e-6, rtol=1e-6)


@needs_compiler
def test_spline_takes_any_layout(plain):
    spline = RationalQuadraticSpline()
    value = torch.randn(6, 20)
    params = torch.randn(6, spline.size * 20).unflatten(1, (spline.size, 20)).movedim(1, 0)
    other = torch.randn(20, 6, spline.size).permute(2, 1, 0)
    with torch.no_grad():
        for each in (params, other):
            assert torch.allclose(
                spline.inverse_and_log_det(value, each)[0],
                plain(lambda p=each: spline.inverse_and_log_det(value, p)[0]),
                atol=1e-6,
            )
        assert torch.allclose(
            spline.inverse_and_log_det(value.mT, other.mT)[0].mT, spline.inverse_and_log_det(value, other)[0], atol=1e-6
        )
