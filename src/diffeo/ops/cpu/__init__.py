"""The only hardware-aware code: each fast path beside a plain PyTorch twin that it equals by test.

``DIFFEO_NATIVE=0`` in the environment switches all of it off.
"""
