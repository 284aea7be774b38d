"""The operations in C, built at first use by the machine's own compiler, for float32 on the CPU.

Every function returns None where it does not take what it is given. This folder can be deleted: then the reference
computes everything. ``DIFFEO_NATIVE=0`` in the environment switches it off.
"""

from diffeo.ops.cpu.build import library, usable
from diffeo.ops.cpu.maps import map_values
from diffeo.ops.cpu.network import invert_network, mapped_network, network
from diffeo.ops.cpu.ode import adaptive, matching
from diffeo.ops.cpu.update import FusedUpdate
from diffeo.ops.cpu.wavenet import invert_wavenet, release, wavenet

__all__ = [
    "FusedUpdate",
    "adaptive",
    "invert_network",
    "invert_wavenet",
    "library",
    "map_values",
    "mapped_network",
    "matching",
    "network",
    "release",
    "usable",
    "wavenet",
]
