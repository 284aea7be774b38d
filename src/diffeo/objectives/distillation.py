"""Distillation: a student that samples in a single parallel pass learns a density that is slow to sample."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from diffeo.objectives.base import Objective
from diffeo.objectives.conditional_kl import check_noise
from diffeo.transforms import DataDependent, Dequantize, Standardize

__all__ = ["Distillation", "WarmStart", "foreign_likelihood", "path_gradient", "reparameterized"]

T = TypeVar("T")


# What estimates a KL is called with student, teacher, rows (N, *event) and contexts (N, *context) or None.
_Estimator = Callable[[Any, Any, Tensor, Tensor | None], T]


def foreign_likelihood(student: Any, teacher: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """log p(x) - log q(x), q the student's density of foreign rows: of an IAF, one incremental inversion.

    Args:
        student: the flow that is trained.
        teacher: the density that it learns.
        x: rows ``(N, *event)`` of the teacher's, or of the data that it models.
        context: ``(N, *context)``, or None.

    Returns:
        ``(N,)``, in nats.
    """
    with torch.no_grad():
        log_p: Tensor = teacher.log_prob(x, context, nan="propagate")
    log_q: Tensor = student.log_prob(x, context, nan="propagate")
    return log_p - log_q


def reparameterized(student: Any, teacher: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """log q(s) - log p(s) of one draw s = f(z): the student's density comes with the draw, at no further price.

    Args:
        student: the flow that is trained.
        teacher: the density that it learns.
        x: rows ``(N, *event)``, of which the number alone counts.
        context: ``(N, *context)``, or None.

    Returns:
        Draws ``(N, *event)`` and the estimates ``(N,)``, in nats.
    """
    draw, log_q = _draw(student, x, context)
    return draw, log_q - teacher.log_prob(draw, context, nan="propagate")


def path_gradient(student: Any, teacher: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """log q(s) - log p(s) of one draw s = f(z), its gradient taken through s alone ("sticking the landing").

    What is left out, the gradient of log q at a fixed s, has mean 0; without it, the variance falls to 0 as the student
    comes to match the teacher. The density of a draw under fixed weights takes the student's inverse: of an IAF, one
    incremental inversion. Roeder et al. 2017, arXiv:1703.09194.

    Args:
        student: the flow that is trained.
        teacher: the density that it learns.
        x: rows ``(N, *event)``, of which the number alone counts.
        context: ``(N, *context)``, or None.

    Returns:
        Draws ``(N, *event)`` and the estimates ``(N,)``, in nats.
    """
    draw, _ = _draw(student, x, context)
    fixed = {name: parameter.detach() for name, parameter in student.named_parameters()}
    log_q = torch.func.functional_call(student, fixed, (draw, context), {"nan": "propagate"})
    return draw, log_q - teacher.log_prob(draw, context, nan="propagate")


def _draw(student: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    drawn: tuple[Tensor, Tensor] = student.sample_and_log_prob((len(x),) if context is None else (), context)
    return drawn


class _FromTeacher(Objective):
    """An objective with a teacher: a frozen copy, in evaluation mode whatever the student's is."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(student)
        if not hasattr(teacher, "log_prob"):
            raise ValueError(f"expected a teacher with a density (log_prob), got {type(teacher).__name__}")
        frozen: Any = copy.deepcopy(teacher).requires_grad_(False).eval()
        self.teacher = frozen
        for what, shape, expected in (
            ("events", self.flow.event_shape, frozen.event_shape),
            ("contexts", self.flow.context_shape, frozen.context_shape),
        ):
            if shape != expected:
                raise ValueError(
                    f"expected a student of {what} {tuple(expected)}, as its teacher's, got {tuple(shape)}"
                )
        if any(isinstance(part, Dequantize) for part in self.modules()):
            raise ValueError("expected densities of continuous values, got one with a Dequantize; take it off both")

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the student."""
        super().train(mode)
        self.teacher.eval()
        return self


class Distillation(_FromTeacher):
    r"""Both divergences of a student q from a teacher p, in nats per row.

    .. math::
        (1 - w)\, \mathrm{KL}(q \,\|\, p) + w\, \mathrm{KL}(p \,\|\, q)
        = (1 - w)\, E_{s \sim q}[\log q(s) - \log p(s)] + w\, E_{x \sim p}[\log p(x) - \log q(x)]

    Every row x gives one draw s of the student in its context: an estimate of the reverse KL, the first term, which
    seeks modes and leaves some out if it is alone; and one of the forward KL, which covers them (its mean is that KL
    where the rows are the teacher's own; the teacher's term has no gradient, but makes the loss 0 for a perfect
    student, and less noisy). The student's density of foreign rows takes an incremental inversion.

    The teacher is a frozen copy, and no part of what training stores; gradients pass through the student's draws into
    it. Both must be densities of continuous values: rounding, as ``Dequantize`` does when it generates, has no
    gradient. van den Oord et al. 2017 (Parallel WaveNet), arXiv:1711.10433.

    Args:
        student: the flow to train, fast to sample.
        teacher: a density of the same events and contexts: ``log_prob(x, context, nan=)``, differentiable in x.
        estimator: of the reverse KL, called with (student, teacher, x, context): it returns draws ``(N, *event)`` and
            the KL ``(N,)`` in nats, both differentiable; and the forward KL ``(N,)`` as well, if there is no other
            estimator of that, from rows that are the teacher's own.
        forward_estimator: of the forward KL, called alike: it returns the KL ``(N,)``, differentiable; or None.
        forward_share: w, the weight of the forward KL.
        contrast: the weight gamma of the contrastive term of the paper, -gamma KL(student || teacher given another
            row's context), 0.3 there: a student of a strong condition must not ignore it. It takes batches of two rows
            or more.
        auxiliary: further losses, each with its weight: modules on (draws, rows, context) that give (N,).

    Raises:
        ValueError: for a teacher without a density, a student whose draws have no gradients, events or contexts that
            differ, values that are not continuous, or a weight out of its range.

    Example:
        >>> teacher, student = diffeo.maf(2, hidden=(8,)).eval(), diffeo.iaf(2, hidden=(8,))
        >>> objective = diffeo.Distillation(student, teacher)
        >>> objective(teacher.sample(5)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        estimator: _Estimator[tuple[Tensor, ...]] = reparameterized,
        forward_estimator: _Estimator[Tensor] | None = foreign_likelihood,
        forward_share: float = 0.5,
        contrast: float = 0.0,
        auxiliary: Iterable[tuple[float, nn.Module]] = (),
    ) -> None:
        super().__init__(student, teacher)
        if not 0 <= forward_share <= 1:
            raise ValueError(f"expected a forward share in [0, 1], got {forward_share}")
        if not 0 <= contrast < 1:
            raise ValueError(f"expected a contrast in [0, 1), got {contrast}")
        if contrast and not self.flow.context_shape:
            raise ValueError("expected flows with a context for a contrastive term, got some without")
        if not self.flow.base.has_rsample:
            raise ValueError(f"expected a student with differentiable draws, got {type(self.flow.base).__name__} noise")
        self.estimator = estimator
        self.forward_estimator = forward_estimator
        self.forward_share = forward_share
        self.contrast = contrast
        pairs = list(auxiliary)
        self.weights = [weight for weight, _ in pairs]
        self.auxiliary = nn.ModuleList(module for _, module in pairs)
        self._data_dependent = [part for part in self.flow.modules() if isinstance(part, DataDependent)]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the loss of each row, shape (N,)."""
        self._initialize(x, context)
        w, forward = self.forward_share, x.new_zeros(())
        if w and self.forward_estimator is not None:
            forward = self.forward_estimator(self.flow, self.teacher, x, context)
            if w == 1 and not self.weights:
                return forward
        draw, kl, *more = self.estimator(self.flow, self.teacher, x, context)
        if w and self.forward_estimator is None:
            if not more:
                raise ValueError("expected an estimator of both KLs where there is no forward one, got one of one")
            (forward,) = more
        if self.contrast and len(x) > 1:
            assert context is not None  # the flow has asked for one
            matched, other = (self.teacher.log_prob(draw, c, nan="propagate") for c in (context, context.roll(1, 0)))
            kl = kl - self.contrast * (kl + matched - other)
        loss = kl if not w else forward if w == 1 else (1 - w) * kl + w * forward
        for weight, module in zip(self.weights, self.auxiliary, strict=True):
            loss = loss + weight * module(draw, x, context)
        return loss

    def _initialize(self, x: Tensor, context: Tensor | None) -> None:
        """Initialise data-dependent layers from the rows; the student's draws know nothing of the data."""
        if self.training and any(not part.initialized for part in self._data_dependent):
            with torch.no_grad():
                self.flow.log_prob(x, context, nan="propagate")


class WarmStart(_FromTeacher):
    """The squared error of student(z) against x for z = teacher.encode(x), per element, in units of the rows' spread.

    It lays every mode of the data where the teacher has it, before a KL is asked: the reverse KL alone would leave some
    out. It must be taken far: until the map is learned, the mean row has the least error, and a student that has shrunk
    to it gives foreign rows no density. Where latents of real rows lie beyond the noise, there is nothing to learn for
    a student that sees only noise: they are clamped to the range of as many draws of it.

    Args:
        student: the flow to train, fast to sample.
        teacher: an invertible density of the same events, contexts and latents: ``encode(x, context)``.

    Raises:
        ValueError: as ``Distillation``, and for a teacher without ``encode``, or other latents.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(student, teacher)
        if not hasattr(teacher, "encode"):
            raise ValueError(f"expected a teacher that encodes, got {type(teacher).__name__}")
        check_noise(self.flow, self.teacher)
        self.units = Standardize(self.flow.event_shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the mean squared error of each row, shape (N,)."""
        with torch.no_grad():
            target = self.units.inverse(x)
            z = self.teacher.encode(x, context)
            lowest, highest = torch.aminmax(self.flow.base.sample((len(x),)))
            z = z.clamp(lowest, highest)
        error = self.units.inverse(self.flow.decode(z, context)) - target
        return error.square().flatten(1).mean(1)
