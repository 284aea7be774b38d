"""Mixture: a density that is the weighted mean of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from diffeo.bases import Base
from diffeo.flow import Flow, as_sample_shape
from diffeo.summary import Summary
from diffeo.transforms.base import Transform

__all__ = ["Mixture", "OutOfFold"]

LIGHT = 0.01  # weight below which a member is not named


class Mixture(Flow):
    r"""The weighted mean of flows of the same data; a member may be a mixture itself.

    .. math:: p(x) = \sum_k w_k p_k(x), \qquad \sum_k w_k = 1

    A sample is drawn from a member that is drawn by the weights. No bijection belongs to a mixture: ``encode``,
    ``decode``, ``transform`` and ``base`` are those of its ``principal`` member.

    Args:
        members: flows of one event shape and one context shape.
        weights: one for each, not negative; equal by default. They are brought to a sum of 1, and kept as they are.

    Raises:
        ValueError: for no members, members of different shapes, or weights that are none.

    Example:
        >>> mixture = diffeo.Mixture([diffeo.maf(2, hidden=(8,)), diffeo.nsf(2, hidden=(8,))], weights=[3, 1])
        >>> mixture.weights
        [0.75, 0.25]
        >>> mixture.log_prob(mixture.sample(4)).shape
        torch.Size([4])
    """

    log_weights: Tensor

    def __init__(self, members: Iterable[Flow], weights: Sequence[float] | Tensor | None = None) -> None:
        nn.Module.__init__(self)
        flows = list(members)
        shapes = {(flow.event_shape, flow.context_shape) for flow in flows}
        if len(shapes) != 1:
            raise ValueError(f"expected members of one event shape and one context shape, got {sorted(shapes)}")
        self.members: Any = nn.ModuleList(flows)
        ((self.event_shape, self.context_shape),) = shapes
        self.recipe = None
        shares = torch.ones(len(flows)) if weights is None else torch.as_tensor(weights)
        shares = shares.double()
        if shares.shape != (len(flows),) or not (torch.isfinite(shares) & (shares >= 0)).all() or not shares.sum() > 0:
            raise ValueError(f"expected {len(flows)} weights that are not negative, got {weights}")
        self.register_buffer("log_weights", (shares / shares.sum()).log())

    def _summary(self) -> Summary:
        fast = ", ".join(sorted(self.fast)) or "neither log_prob nor sample"
        return Summary(self._title(f" of {len(self.members)} densities"), {"members": self._named(), "fast": fast})

    def _named(self) -> str:
        """The members with their weights; several in a row that are alike as one."""
        heavy = [(weight, flow) for weight, flow in zip(self.weights, self.members, strict=True) if weight >= LIGHT]
        each = [f"{weight:.2f} {_within(flow)}" for weight, flow in heavy]
        groups = [(text, len([*alike])) for text, alike in groupby(each)]
        if len(groups) == 1 and len(each) == len(self.members) > 1:
            return f"{len(each)} x {_within(self.members[0])}"
        named = [text if count == 1 else f"{count} x {text}" for text, count in groups]
        light = len(self.members) - len(heavy)
        return ", ".join([*named, f"{light} of less than {LIGHT}"] if light else named)

    @property
    def weights(self) -> list[float]:
        """The weight of each member; their sum is 1."""
        return list(self.log_weights.exp().tolist())

    @property
    def principal(self) -> Flow:
        """The member with the most parameters, of several the heaviest; of a mixture among them its principal one."""

        def size(k: int) -> tuple[int, float]:
            return sum(parameter.numel() for parameter in self.members[k].parameters()), float(self.log_weights[k])

        member: Flow = self.members[max(range(len(self.members)), key=size)]
        return member.principal if isinstance(member, Mixture) else member

    # Of the principal member, in place of a flow's attributes.

    @property
    def base(self) -> Base:  # type: ignore[override]
        """The noise of the principal member."""
        return self.principal.base

    @property
    def transform(self) -> Transform:  # type: ignore[override]
        """The bijection of the principal member."""
        return self.principal.transform

    @property
    def context_transform(self) -> Transform | None:  # type: ignore[override]
        """That of the principal member."""
        return self.principal.context_transform

    @property
    def embedding(self) -> nn.Module | None:  # type: ignore[override]
        """That of the principal member."""
        return self.principal.embedding

    # Of all members.

    @property
    def fast(self) -> frozenset[str]:
        """What costs one parallel pass of every member."""
        return frozenset.intersection(*(member.fast for member in self.members))

    @property
    def has_log_prob(self) -> bool:
        """Whether every member has a density."""
        return all(member.has_log_prob for member in self.members)

    @property
    def has_rsample(self) -> bool:
        """False: which member a sample comes from has no gradient."""
        return False

    @property
    def any_order(self) -> bool:
        """Whether every member has the density of any elements given any others."""
        return all(member.any_order for member in self.members)

    def sample(self, shape: int | Sequence[int] = (), context: Tensor | None = None) -> Tensor:
        """Draw a member for each sample, and the sample from it; see ``Flow.sample``.

        Args:
            shape: how many, a number or a shape, for every context.
            context: ``(*batch, *context_shape)``.

        Returns:
            ``(*shape, *batch, *event)``.

        Raises:
            ValueError: for what is no shape, or a missing or superfluous context.
        """
        batch = as_sample_shape(shape)
        self._check_context(context)
        contexts = None
        if context is not None:
            batch += context.shape[: context.dim() - len(self.context_shape)]
            contexts = context.expand(*batch, *self.context_shape).reshape(-1, *self.context_shape)
        count = math.prod(batch)
        which = torch.multinomial(self.log_weights.exp(), max(1, count), replacement=True)[:count]

        def drawn(member: Flow, rows: Tensor) -> Tensor:
            return member.sample(len(rows)) if contexts is None else member.sample((), contexts[rows])

        with torch.no_grad():
            return self._gathered(which, drawn).reshape(*batch, *self.event_shape)

    def sample_and_log_prob(
        self, shape: int | Sequence[int] = (), context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw samples, without gradients, and score them by all members; see ``Flow.sample_and_log_prob``.

        Args:
            shape: how many, a number or a shape, for every context.
            context: ``(*batch, *context_shape)``.

        Returns:
            Samples ``(*shape, *batch, *event)`` and their log-densities ``(*shape, *batch)``, in nats.

        Raises:
            ValueError: for what is no shape, or a missing or superfluous context.
        """
        x = self.sample(shape, context)
        return x, self.log_prob(x, context)

    def log_prob_given(self, x: Tensor, known: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of the other elements given the known: each member weighs as much as it expects what is known.

        Args:
            x: ``(*batch, features)``; NaN is a missing value.
            known: booleans that broadcast to x, true for what the density is conditional on.
            context: broadcastable to ``(*batch, *context_shape)``.

        Returns:
            ``(*batch,)``, in nats.

        Raises:
            ValueError: for members of one order, or a wrong shape.
        """
        expects = self._stacked(lambda member: member.log_prob_of(x, known, context))
        conditional = torch.stack([member.log_prob_given(x, known, context) for member in self.members], -1)
        return torch.logsumexp(expects + conditional, -1) - torch.logsumexp(expects, -1)

    def log_prob_of(self, x: Tensor, wanted: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of the wanted elements alone; see ``Flow.log_prob_of``.

        Args:
            x: ``(*batch, features)``; NaN is a missing value.
            wanted: booleans that broadcast to x.
            context: broadcastable to ``(*batch, *context_shape)``.

        Returns:
            ``(*batch,)``, in nats.

        Raises:
            ValueError: for members of one order, or a wrong shape.
        """
        return torch.logsumexp(self._stacked(lambda member: member.log_prob_of(x, wanted, context)), -1)

    def complete(self, x: Tensor, known: Tensor, context: Tensor | None = None, gaps: bool = True) -> Tensor:
        """Draw what is not known, each row by a member drawn by how much it expects what is; see ``Flow.complete``.

        Args:
            x: ``(*batch, features)``; NaN among the known ones is a missing value.
            known: booleans that broadcast to x, true for what stays as it is.
            context: broadcastable to ``(*batch, *context_shape)``.
            gaps: whether a missing value (NaN) may be drawn.

        Returns:
            ``(*batch, features)``.

        Raises:
            ValueError: for members of one order, or a wrong shape.
        """
        rows, contexts, batch = self._rows(x, context, self.event_shape, "x")
        masks = self._known(known, batch)
        with torch.no_grad():
            expects = self._stacked(lambda member: member.log_prob_of(rows, masks, contexts))
            shares = torch.where(torch.isfinite(expects).any(-1, keepdim=True), expects, self.log_weights).softmax(-1)
            which = torch.multinomial(shares, 1)[:, 0] if len(rows) else shares.new_zeros(0, dtype=torch.long)

            def drawn(member: Flow, chosen: Tensor) -> Tensor:
                theirs = None if contexts is None else contexts[chosen]
                return member.complete(rows[chosen], masks[chosen], theirs, gaps)

            return self._gathered(which, drawn).reshape(*batch, *self.event_shape)

    def _gathered(self, which: Tensor, rows: Callable[[Flow, Tensor], Tensor]) -> Tensor:
        """Rows (n, *event) that each member gives, of the numbers where ``which`` (n,) names it."""
        marker = self.base.device_marker
        result = marker.new_empty(len(which), *self.event_shape)
        for k, member in enumerate(self.members):
            mine = (which == k).nonzero()[:, 0]
            if len(mine):
                result[mine] = rows(member, mine)
        return result

    def _stacked(self, score: Callable[[Flow], Tensor]) -> Tensor:
        """Log-densities of every member that has a weight, each times its weight: ``(*batch, K)``."""
        each = [score(member) + weight for member, weight in zip(self.members, self.log_weights, strict=True)]
        return torch.stack(each, -1)

    def _log_prob(self, x: Tensor, context: Tensor | None) -> tuple[Tensor]:
        each = self._stacked(lambda member: member._log_prob(x, context)[0])
        return (torch.logsumexp(each, -1).to(x.dtype),)


def _within(flow: Flow) -> str:
    """What a member is called."""
    return f"({flow._named()})" if isinstance(flow, Mixture) else flow._named()


class OutOfFold(Mixture):
    """The member that a row was held out of: a density given the number k of its fold, -1 for one that none has seen.

    The context is (k, c), c that of the members if they have one: log p(x | k, c) is that of ``mixture.members[k]``, or
    of the whole mixture. So rows, samples and noise of a stack can be compared as
    those of any conditional flow, without asking a member about rows that it was trained on.

    Args:
        mixture: of a member for each fold, as ``fit_folds`` makes; its modules are shared, not copied.
    """

    def __init__(self, mixture: Mixture) -> None:
        super().__init__([*mixture.members, mixture])
        self.context_shape = torch.Size([1 + mixture.context_shape.numel() * bool(mixture.context_shape)])

    @property
    def mixture(self) -> Mixture:
        """The mixture that it was made of."""
        whole: Mixture = self.members[-1]
        return whole

    def sample(self, shape: int | Sequence[int] = (), context: Tensor | None = None) -> Tensor:
        """Draw from the member of each context; see ``Mixture.sample``.

        Args:
            shape: how many, a number or a shape, for every context.
            context: ``(*batch, 1 + C)``.

        Returns:
            ``(*shape, *batch, *event)``.

        Raises:
            ValueError: for what is no shape, or a missing context.
        """
        batch = as_sample_shape(shape)
        self._check_context(context)
        assert context is not None
        batch += context.shape[:-1]
        rows = context.expand(*batch, -1).reshape(-1, context.shape[-1])
        with torch.no_grad():
            drawn = self._by_fold(
                rows, rows, lambda member, few, c: member.sample(len(few)) if c is None else member.sample((), c)
            )
        return drawn.reshape(*batch, *self.event_shape)

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise by the principal flow of each row's member; see ``Flow.encode``.

        Args:
            x: ``(n, *event)``.
            context: ``(n, 1 + C)``.
        """
        return self._by_fold(x, context, lambda member, few, c: member.encode(few, c))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Data by the principal flow of each row's member; see ``Flow.decode``.

        Args:
            z: ``(n, *event)``.
            context: ``(n, 1 + C)``.
        """
        return self._by_fold(z, context, lambda member, few, c: member.decode(few, c))

    def _log_prob(self, x: Tensor, context: Tensor | None) -> tuple[Tensor]:
        return (self._by_fold(x, context, lambda member, few, c: member._log_prob(few, c)[0]),)

    def _by_fold(
        self, x: Tensor, context: Tensor | None, function: Callable[[Flow, Tensor, Tensor | None], Tensor]
    ) -> Tensor:
        """Apply to the rows of each fold the function of its member: ``(n, ...)``."""
        assert context is not None
        fold = context[:, 0].long()
        parts: list[Tensor] = []
        places: list[Tensor] = []
        for k in fold.unique().tolist():
            mine = (fold == k).nonzero()[:, 0]
            rest = context[mine, 1:] if context.shape[1] > 1 else None
            parts.append(function(self.members[k], x[mine], rest))
            places.append(mine)
        if not parts:
            return function(self.mixture, x, None if context.shape[1] == 1 else context[:, 1:])
        return torch.cat(parts)[torch.cat(places).argsort()]
