"""Maximum likelihood."""

from torch import Tensor

from diffeo.objectives.base import Objective

__all__ = ["MaximumLikelihood"]


class MaximumLikelihood(Objective):
    r"""The negative log-likelihood, :math:`-\log p(x \mid c)`, in nats, per example.

    Args:
        flow: a density: anything with ``log_prob(x, context, nan=)``.

    Example:
        >>> flow, x = diffeo.maf(features=3, hidden=(8,)).eval(), torch.randn(5, 3)
        >>> torch.equal(diffeo.MaximumLikelihood(flow)(x), -flow.log_prob(x))
        True
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return -log p of each row of x, shape (N,)."""
        # A bad row costs a step, it does not end the training.
        log_prob: Tensor = self.flow.log_prob(x, context, nan="propagate")
        return -log_prob
