"""What a step does with the gradients."""

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from diffeo import ops
from diffeo.training.average import Average
from diffeo.training.optimizer import BETAS, EPSILON, adamw, groups_of, set_learning_rate

__all__ = ["Update"]

Groups = dict[str, dict[str, Tensor]]


class Update:
    """AdamW on the trainable parameters of a module, and the moving average of the weights.

    In float32 on the CPU the norm of the gradients is one call, and all the rest another one (``ops.fused_update``).

    Args:
        module: whose parameters; see ``groups_of`` for their rates.
        lr: the full learning rate.
        weight_decay: AdamW's.
        ema: the decay of the average.
    """

    def __init__(self, module: nn.Module, lr: float, weight_decay: float, ema: float) -> None:
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.groups = groups_of(module, lr, weight_decay)
        self.moments: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)  # by their names in PyTorch's AdamW
        self.average = Average(list(self.parameters.values()), ema)
        self._fused: Any = None

    @cached_property
    def optimizer(self) -> torch.optim.AdamW:
        """The same in PyTorch's operations, made where it is needed."""
        optimizer = adamw(self.groups)
        optimizer.state = self.moments
        return optimizer

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def norm(self) -> Tensor:
        """The norm of all gradients together, a number."""
        fused = self._kernel()
        if fused is not None:
            return fused.norm()
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self._gradients())))

    def take(self, factor: float, scale: float) -> None:
        """Take a step at ``factor`` of the full rates along ``scale`` of the gradients, and move the average."""
        fused = self._kernel()
        if fused is not None:
            fused.take(factor, scale, self.average.advance())
            return
        if scale != 1:
            torch._foreach_mul_(self._gradients(), scale)
        set_learning_rate(self.optimizer, factor)
        self.optimizer.step()
        self.average.update()

    def tensors(self) -> Groups:
        """All that the next steps depend on, but the parameters: the average, and the moments as ``exp_avg:name``."""
        return {
            "average": dict(zip(self.parameters, self.average.averages, strict=True)),
            "optimizer": {
                f"{key}:{name}": tensor
                for name, p in self.parameters.items()
                if p in self.moments
                for key, tensor in self.moments[p].items()
            },
        }

    def restore(self, groups: Mapping[str, Mapping[str, Tensor]], updates: int) -> None:
        """Take up what ``tensors`` gave after so many steps."""
        self.average.restore([groups["average"][name] for name in self.parameters], updates)
        for full_name, tensor in groups.get("optimizer", {}).items():
            key, _, name = full_name.partition(":")
            parameter = self.parameters[name]
            # A copy in torch's own memory, not the mapped file: kernels may round differently with the alignment.
            copied = torch.empty_like(tensor, device=parameter.device).copy_(tensor)
            self.moments[parameter][key] = copied
        self._fused = None

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def _kernel(self) -> Any:
        """What does it in one call, where there is a kernel for all parameters."""
        if self._fused is not None and self._fused.current:
            return self._fused
        parameters = list(self.parameters.values())
        fused_update = ops.fused_update(parameters)
        if fused_update is None:
            return None
        averages = dict(zip(parameters, self.average.averages, strict=True))
        trained = []
        for group in self.groups:
            for p in group.parameters:
                state = self.moments[p]
                if not state:  # as AdamW begins
                    state.update(step=p.new_zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                moments = state["exp_avg"], state["exp_avg_sq"], state["step"]
                trained.append(ops.Trained(p, averages[p], *moments, group.rate, group.decay))
        self._fused = fused_update(trained, BETAS, EPSILON)
        return self._fused
