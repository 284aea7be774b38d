"""Where to compute."""

import torch

from diffeo.errors import UserError

__all__ = ["choose_device"]


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
