"""The step of an optimizer: one call equals AdamW and the average of PyTorch's operations."""

import copy
import math

import pytest
import torch
from torch import nn

from cases import needs_compiler
from diffeo.training.average import Average
from diffeo.training.optimizer import adamw, groups_of, set_learning_rate
from diffeo.training.update import Update


class Parts(nn.Module):
    """Parameters of all sizes, in groups with rates of their own; one of them never gets a gradient."""

    def __init__(self, largest=90_000):
        super().__init__()
        for index, shape in enumerate([(), (0,), (1,), (17,), (3, 5), (64, 65), (largest,)]):
            self.register_parameter(f"part{index}", nn.Parameter(torch.randn(shape)))
        self.fast = nn.Linear(7, 9)
        self.fast.lr_scale = 10.0
        self.unused = nn.Parameter(torch.randn(5))
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)


def set_gradients(module, seed):
    """Gradients of very different sizes, none for some parameters."""
    generator = torch.Generator().manual_seed(seed)
    for index, p in enumerate(q for name, q in module.named_parameters() if q.requires_grad and name != "unused"):
        p.grad = torch.randn(p.shape, generator=generator) * 10.0 ** (index % 5 - 3)
        if seed % 3 == 0 and index == 3:
            p.grad = None


def update_of(module, **options):
    return Update(module, **{"lr": 1e-2, "weight_decay": 0.1, "ema": 0.99, **options})


@pytest.fixture
def plain(monkeypatch):
    """Make updates whose kernels are switched off."""

    def make(module, **options):
        update = update_of(module, **options)
        update._kernel = lambda: None
        return update

    return make


@needs_compiler
def test_one_call_equals_adamw_and_the_average():
    fast, slow = Parts(), Parts()
    slow.load_state_dict(fast.state_dict())
    update = update_of(fast)
    optimizer = adamw(groups_of(slow, 1e-2, 0.1))
    average = Average([p for p in slow.parameters() if p.requires_grad], 0.99)
    for step in range(50):
        factor, scale = 1 - step / 60, 1.0 if step % 2 else 0.3
        for module in (fast, slow):
            set_gradients(module, step)
        exact = math.sqrt(sum(p.grad.double().square().sum().item() for p in slow.parameters() if p.grad is not None))
        assert update.norm().item() == pytest.approx(exact, rel=1e-6)
        update.take(factor, scale)
        for p in slow.parameters():
            if p.grad is not None:
                p.grad.mul_(scale)
        set_learning_rate(optimizer, factor)
        optimizer.step()
        average.update()
    assert update._fused is not None
    for (name, p), q in zip(fast.named_parameters(), slow.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6), name
    for fused, other in zip(update.average.averages, average.averages, strict=True):
        assert torch.allclose(fused, other, rtol=1e-5, atol=1e-6)
    for p, q in zip(fast.parameters(), slow.parameters(), strict=True):
        for key, other in optimizer.state.get(q, {}).items() if q.numel() else ():  # of nothing there is no address
            assert torch.allclose(update.moments[p][key], other, rtol=1e-5, atol=1e-12), key


@needs_compiler
@pytest.mark.parametrize("largest", [5, 90_000])
def test_the_number_of_threads_changes_no_bit(largest):
    results = []
    start, threads = Parts(largest), torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            module = copy.deepcopy(start)
            update = update_of(module)
            norms = []
            for step in range(3):
                set_gradients(module, step)
                norms.append(update.norm())
                update.take(1.0, 0.5)
            results.append([*norms, *module.parameters(), *update.average.averages])
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kernels", [False, True])
def test_what_is_stored_resumes_to_the_same_bits_and_with_the_other_implementation(kernels, plain):
    make, other = (update_of, plain) if kernels else (plain, update_of)
    start = Parts(17)
    whole = copy.deepcopy(start)
    update = make(whole)

    def steps(update, module, numbers):
        for step in numbers:
            set_gradients(module, step)
            update.take(0.7, 0.5)

    steps(update, whole, range(4))
    stored = {group: {name: t.clone() for name, t in named.items()} for group, named in update.tensors().items()}
    assert stored["optimizer"]["step:part3"] == 2, "two of four gradients were there"
    middle = copy.deepcopy(whole)
    steps(update, whole, range(4, 8))
    for again in (make, other):
        module = copy.deepcopy(middle)
        resumed = again(module)
        steps(resumed, module, range(1))
        module.load_state_dict(middle.state_dict())  # what it did before is forgotten
        resumed.restore(stored, 4)
        steps(resumed, module, range(4, 8))
        for p, q in zip(module.parameters(), whole.parameters(), strict=True):
            assert torch.equal(p, q) if again is make else torch.allclose(p, q, rtol=1e-5, atol=1e-6)
        for p, q in zip(resumed.average.averages, update.average.averages, strict=True):
            assert torch.equal(p, q) if again is make else torch.allclose(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_the_norm_tells_of_a_gradient_that_is_not_finite(poison, plain):
    for make in (update_of, plain):
        module = Parts()
        update = make(module)
        set_gradients(module, 1)
        module.part6.grad[-1] = poison
        assert not math.isfinite(update.norm())
        update.clear()
        assert all(p.grad is None for p in module.parameters())


@needs_compiler
def test_gradients_in_any_layout_and_parameters_that_move():
    module, reference = Parts(17), Parts(17)
    reference.load_state_dict(module.state_dict())
    update, other = update_of(module), update_of(reference)
    for step in range(4):
        for each in (module, reference):
            set_gradients(each, step)
        module.part5.grad = module.part5.grad.mT.contiguous().mT
        if step == 2:
            module.part4.data = module.part4.data.clone()
        for each in (update, other):
            each.take(1.0, 1.0)
    for p, q in zip(module.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q)


def test_no_average_is_the_weights_themselves(plain):
    for make in (update_of, plain):
        module = Parts(17)
        update = make(module, ema=0.0)
        for step in range(3):
            set_gradients(module, step)
            update.take(1.0, 1.0)
        assert all(torch.equal(a, p) for a, p in zip(update.average.averages, update.parameters.values(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_take_the_reference(dtype):
    module = Parts(17).to(dtype)
    before = [p.clone() for p in module.parameters()]
    update = update_of(module)
    for p in module.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    assert update.norm() > 0
    update.take(1.0, 1.0)
    assert update._fused is None
    assert not torch.equal(before[4], next(iter(module.parameters())))
