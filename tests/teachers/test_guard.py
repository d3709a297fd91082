"""The guard over a frozen teacher sees modes, gradients, optimizers and every bit of its tensors."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import nn

from geomim.teachers.guard import TeacherGuard, checksums, whole_teacher


class Hiding(nn.Module):
    """A teacher whose network its parents' parameters do not list."""

    def __init__(self) -> None:
        super().__init__()
        network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        object.__setattr__(self, 'detector', network.requires_grad_(False).eval())
        self.eval()


class Open(Hiding):
    """A teacher whose network is an ordinary child."""

    def __init__(self) -> None:
        super().__init__()
        self.network = self.detector


def add_a_millionth(teacher: Any) -> None:
    with torch.no_grad():
        teacher.detector[0].weight[2, 1] += 1e-6


@pytest.mark.parametrize('kind, name', [(Hiding, 'detector'), (Open, 'teacher.network')])
def test_an_untouched_teacher_passes_and_a_touched_one_is_named(kind: Callable[[], nn.Module], name: str) -> None:
    teacher = kind()
    guard = TeacherGuard(teacher)
    guard.check_mode()
    guard.check_frozen(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0).param_groups)
    guard.check_unchanged()
    add_a_millionth(teacher)
    with pytest.raises(RuntimeError, match=rf'changed.*first in {name}\.0\.weight \(1 of 7 tensors\)'):
        guard.check_unchanged()


def test_a_statistic_that_moves_is_a_change() -> None:
    teacher = Hiding()
    guard = TeacherGuard(teacher)
    teacher.detector[1].num_batches_tracked.add_(1)
    with pytest.raises(RuntimeError, match=r'detector\.1\.num_batches_tracked'):
        guard.check_unchanged()


def test_a_tensor_that_vanishes_is_a_change() -> None:
    teacher = Hiding()
    guard = TeacherGuard(teacher)
    teacher.detector[0].bias = None
    with pytest.raises(RuntimeError, match=r'detector\.0\.bias \(1 of 6'):
        guard.check_unchanged()


def test_training_mode_is_caught() -> None:
    teacher = Hiding()
    guard = TeacherGuard(teacher)
    teacher.detector[1].train()
    with pytest.raises(RuntimeError, match=r'1 of its modules are in training mode, first detector\.1'):
        guard.check_mode()


def test_gradients_and_optimizers_are_caught() -> None:
    teacher = Open()
    guard = TeacherGuard(teacher)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=1.0)
    with pytest.raises(
        RuntimeError, match=r'4 parameters of the teacher are in the optimizer, first teacher\.network\.0'
    ):
        guard.check_frozen(optimizer.param_groups)
    teacher.detector[0].bias.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r'1 of its parameters require a gradient, first teacher\.network\.0\.bias'):
        guard.check_frozen([])


def test_a_hidden_network_is_found_once() -> None:
    assert len(list(whole_teacher(Hiding()).parameters())) == len(list(whole_teacher(Open()).parameters())) == 4


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_checksums_see_every_bit(dtype: torch.dtype) -> None:
    module = nn.BatchNorm1d(5).to(dtype)
    before = checksums(module)
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[module.weight.element_size()]
    module.weight.data.view(bits)[2] ^= 1
    after = checksums(module)
    assert [name for name in before if before[name] != after[name]] == ['weight']
    assert checksums(nn.Identity()) == {}
