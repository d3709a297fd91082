"""Seeds are functions of their stream and numbers alone, and tell them apart."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import torch

from geomim.adapter.seeds import derived_seed, mask_generator


def test_streams_and_numbers_tell_seeds_apart() -> None:
    numbers = [
        *itertools.product(range(3), repeat=2),
        *itertools.product(range(3), repeat=3),
        (12,),
        (1, 2),
        (2**40, 0),
    ]
    seeds = [derived_seed(stream, *of) for stream in ('epoch', 'masks') for of in sorted(set(numbers))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_another_process_draws_the_same() -> None:
    code = "from geomim.adapter.seeds import derived_seed; print(derived_seed('masks', 3, 17, 1))"
    environment = {**os.environ, 'PYTHONHASHSEED': '7'}
    done = subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, env=environment, check=True)
    assert int(done.stdout) == derived_seed('masks', 3, 17, 1)


def test_masks_depend_on_iteration_and_rank_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    drawn = {
        place: torch.randperm(64, generator=mask_generator(3, *place)).tolist() for place in ((0, 0), (1, 0), (0, 1))
    }
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn[0, 0] == torch.randperm(64, generator=mask_generator(3, 0, 0)).tolist()
    assert len({tuple(order) for order in drawn.values()}) == 3
