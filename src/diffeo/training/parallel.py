"""One process or many: the same loop under ``torchrun``."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["World"]


class World:
    """The processes that train together: their number, this one's rank and device, and what they must agree on.

    Under ``torchrun`` (``WORLD_SIZE`` > 1) entering it joins a process group, gloo on the CPU and nccl on CUDA, unless
    the program has done so already; leaving it ends a group that it began.
    """

    def __init__(self, device: torch.device) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.size > 1 else 0
        if device.type == "cuda" and device.index is None:
            local = int(os.environ.get("LOCAL_RANK", "0")) if self.size > 1 else torch.cuda.current_device()
            device = torch.device("cuda", local)
        self.device = device
        self._mine = False

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and talks."""
        return self.rank == 0

    def __enter__(self) -> "World":
        if self.size > 1 and not dist.is_initialized():
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            self._mine = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mine:
            dist.destroy_process_group()

    def own_noise(self) -> AbstractContextManager[None]:
        """Return a block after which the caller's random generators are as they were before."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    def share(self, rows: int) -> slice:
        """Return this process's contiguous share of a batch of so many rows."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module, in ``DistributedDataParallel`` if there are several processes."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module, broadcast_buffers=False)

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def copy_from_leader(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                data = tensor.detach()
                # gloo cannot send bool, and some tensors (0-d, strided) cannot be viewed: send a flat copy
                sent = data.contiguous().reshape(-1).view(torch.uint8).clone()
                dist.broadcast(sent, 0)
                data.copy_(sent.view(data.dtype).reshape(data.shape))

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def agree(self, loss: Tensor, norm: Tensor, elapsed: float, pressed: bool) -> tuple[float, float, float, bool]:
        """Return what all processes use of a step, in one synchronisation: loss, norm, time and wish to stop.

        The loss is the mean over the processes; the norm needs no exchange, since the averaged gradients are the same
        everywhere; the time is the leader's; one wish to stop is enough.
        """
        if self.size == 1:
            loss_value, norm_value = torch.stack((loss, norm)).tolist()
            return loss_value, norm_value, elapsed, pressed
        mine = loss.new_tensor([0.0, elapsed if self.leads else 0.0, float(pressed)], dtype=torch.float64)
        mine[0] = loss / self.size
        loss_value, elapsed, wishes, norm_value = torch.cat((self.sum(mine), norm.double().reshape(1))).tolist()
        return loss_value, norm_value, elapsed, wishes > 0
