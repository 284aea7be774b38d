"""Where to compute: on which device, in one process or many; the loop is the same under ``torchrun``."""

import atexit
import os
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffeo.errors import UserError

__all__ = ["Share", "World", "choose_device"]


def choose_device(name: str | torch.device | None) -> torch.device:
    """Return the device of this name; without one, a GPU if there is one.

    Raises:
        UserError: if there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {str(name)!r} cannot be used here ({str(error).splitlines()[0]}); use cpu") from error
    return device


class Share(NamedTuple):
    """Which rows of a batch are this process's: of ``size`` processes the ``rank``-th contiguous share."""

    rank: int = 0
    size: int = 1

    def __call__(self, rows: int) -> slice:
        """Return the share of so many rows."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)


class World:
    """The processes that train together: their number, this one's rank and device, and what they must agree on.

    Under ``torchrun`` (``WORLD_SIZE`` > 1) they join a process group, gloo on the CPU and nccl on CUDA, unless the
    program has done so already. It lasts as long as the process: a second group of the same launch may hang.
    """

    def __init__(self, device: torch.device) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.size > 1 else 0
        if device.type == "cuda" and device.index is None:
            local = int(os.environ.get("LOCAL_RANK", "0")) if self.size > 1 else torch.cuda.current_device()
            device = torch.device("cuda", local)
        self.device = device
        if self.size > 1 and not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(dist.destroy_process_group)

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and reports progress."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This process's share of a batch."""
        return Share(self.rank, self.size)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module, in ``DistributedDataParallel`` if there are several processes."""
        if self.size == 1:
            return module
        with warnings.catch_warnings():
            # Its new name, forward_sync_buffers, is unknown to the torch releases before 2.13.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
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

    def agree(
        self, loss: Tensor, norm: Tensor, weight: float, elapsed: float, pressed: bool
    ) -> tuple[float, float, float, float, bool]:
        """Return what all processes use of a step, in one synchronisation: loss, norm, weight, time, whether to stop.

        The loss is the mean over the processes, the weight the sum; the norm needs no exchange, since the averaged
        gradients are the same everywhere; the time is the leader's; one process that was interrupted is enough.
        """
        if self.size == 1:
            loss_value, norm_value = torch.stack((loss, norm)).tolist()
            return loss_value, norm_value, weight, elapsed, pressed
        local = loss.new_tensor([0.0, weight, elapsed if self.leads else 0.0, float(pressed)], dtype=torch.float64)
        local[0] = loss / self.size
        loss_value, weight, elapsed, stops, norm_value = torch.cat((self.sum(local), norm.double().reshape(1))).tolist()
        return loss_value, norm_value, weight, elapsed, stops > 0
