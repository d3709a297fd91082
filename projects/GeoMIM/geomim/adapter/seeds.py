"""Seeds of named streams: what is drawn is a function of the run's seed, the place in the run, and the rank, under every host."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(stream: str, *numbers: int) -> int:
    """A 32-bit seed for a named stream and its numbers; different ones give unrelated seeds."""
    text = ' '.join([stream, *(str(int(number)) for number in numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], 'little')


def mask_generator(seed: int, iteration: int, rank: int) -> torch.Generator:
    """A CPU generator for the masks of an iteration on a rank; it leaves the global generator alone."""
    return torch.Generator().manual_seed(derived_seed('masks', seed, iteration, rank))
