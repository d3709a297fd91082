"""The figures of a pretrained student on unseen frames."""

from __future__ import annotations

from types import ModuleType
from typing import Callable

import pytest
import torch


@pytest.fixture
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script('experiments/evaluate_pretraining.py')


def test_the_loss_of_one_map_for_all_frames_needs_only_their_mean_and_power(script: ModuleType) -> None:
    targets, bev = torch.randn(7, 3, 4, 5).double(), torch.randn(3, 4, 5).double()
    loss = script.same_map_loss(bev, targets.mean(dim=0), float(targets.square().mean()))
    assert loss == pytest.approx(float((targets - bev).square().mean()))


def test_cells_right_within_one_bin_are_counted_in_their_range(script: ModuleType) -> None:
    labels = torch.tensor([[3, 5, -1, 15, 15]])
    guess = torch.tensor([[4, 8, 0, 15, 13]])
    counts = [[0, 0] for _ in script.RANGES]
    script.count_near(counts, guess, labels, labels.clamp(min=0) + 1.0)
    assert script.shares(counts) == {
        '0-10 m': [0.5, 2],
        '10-20 m': [0.5, 2],
        '20-40 m': [0.0, 0],
        'all': [0.5, 4],
    }
