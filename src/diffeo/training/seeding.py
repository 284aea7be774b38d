"""Randomness as a function of (seed, purpose, step): nothing to store, nothing to restore on resume."""

import hashlib

import torch

__all__ = ["derive", "seed_noise"]


def derive(seed: int, *keys: object) -> int:
    """Return 63 well-mixed bits that depend on the seed and on every key."""
    text = "/".join(map(str, (seed, *keys)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def seed_noise(device: torch.device, value: int) -> None:
    """Seed what a model on ``device`` draws from (``torch.manual_seed`` seeds all devices: 90 microseconds, not 1)."""
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)
