"""What the benchmarks count without a clock."""

from __future__ import annotations

from types import ModuleType
from typing import Callable

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet3d')
pytestmark = pytest.mark.skipif(torch.__version__ < '2.4', reason='needs torch with FakeTensorMode as it is now')
SIDE = 256
SQUARE = 4 * SIDE * SIDE  # bytes


@pytest.fixture
def volumes(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script('benchmarks/volumes.py')


def test_peak_memory_is_that_of_a_count_by_hand(volumes: ModuleType) -> None:
    """Two square layers without bias on a square input, with tanh between them."""
    model = nn.Sequential(nn.Linear(SIDE, SIDE, bias=False), nn.Tanh(), nn.Linear(SIDE, SIDE, bias=False))
    found = volumes.account(model, lambda: [torch.empty(SIDE, SIDE)], lambda x: model(x).sum(), False)
    # input, two weights, two moments of each; AdamW counts steps in scalars
    assert found['start'] == pytest.approx(7 * SQUARE, rel=0.01)
    # gradients of both weights, and whatever of AdamW's temporaries is larger than what the backward holds: at least one square
    assert 9 * SQUARE < found['peak'] <= 12.01 * SQUARE
    # forward, and backward for weights and activations, except the input's: 2 + 3 products
    assert found['flop'] == 5 * 2 * SIDE**3
    assert found['gradients'] == 2 * SQUARE
    # ten layers more: an activation and 3 + 1 squares each
    deeper = nn.Sequential(model, *(nn.Sequential(nn.Tanh(), nn.Linear(SIDE, SIDE, bias=False)) for _ in range(10)))
    more = volumes.account(deeper, lambda: [torch.empty(SIDE, SIDE)], lambda x: deeper(x).sum(), False)
    assert more['start'] == pytest.approx(37 * SQUARE, rel=0.01)
    assert 47 * SQUARE < more['peak'] - found['peak'] + 11 * SQUARE < 62 * SQUARE


def test_checkpointing_needs_less_and_bf16_halves_activations(volumes: ModuleType) -> None:
    layers = [nn.Sequential(nn.Linear(SIDE, 8 * SIDE), nn.GELU(), nn.Linear(8 * SIDE, SIDE)) for _ in range(4)]

    def step(recompute: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(x: torch.Tensor) -> torch.Tensor:
            for layer in layers:
                x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
            return x.sum()

        return run

    def of(recompute: bool, bf16: bool) -> float:
        model = nn.Sequential(*layers)
        return volumes.account(model, lambda: [torch.empty(64 * SIDE, SIDE)], step(recompute), bf16)['peak']

    plain = of(False, False)
    assert of(True, False) < 0.6 * plain
    assert of(False, True) < 0.7 * plain
