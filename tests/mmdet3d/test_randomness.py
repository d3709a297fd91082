"""Seeds are functions of their stream and numbers, the same under both adapters."""

from __future__ import annotations

from geomim.mmdet3d.randomness import derived_seed


def test_seeds_are_the_numbers_that_the_other_adapter_has() -> None:
    """As in tests/plugin/test_hooks.py: equal runs of both adapters draw equal masks."""
    assert derived_seed('masks', 3, 17, 1) == 142086545
    assert derived_seed('epoch', 0, 2, 0) == 4158717079


def test_streams_and_numbers_tell_seeds_apart() -> None:
    seeds = [derived_seed(stream, *numbers) for stream in ('epoch', 'masks') for numbers in ((0, 1), (1, 0), (1, 1))]
    assert len(set(seeds)) == 6
