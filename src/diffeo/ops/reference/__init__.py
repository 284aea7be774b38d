"""The definition of every operation in plain PyTorch: any device, any dtype, anything that traces or transforms code.

The other backends must equal it, by test.
"""

from diffeo.ops.reference.network import (
    context_sums,
    invert_network,
    mapped_network,
    network,
    solve_transposed_network,
    unroll_network,
)
from diffeo.ops.reference.solvers import adaptive
from diffeo.ops.reference.wavenet import invert_wavenet, solve_transposed_wavenet, wavenet

__all__ = [
    "adaptive",
    "context_sums",
    "invert_network",
    "invert_wavenet",
    "mapped_network",
    "network",
    "solve_transposed_network",
    "solve_transposed_wavenet",
    "unroll_network",
    "wavenet",
]
