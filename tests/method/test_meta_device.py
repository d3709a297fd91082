"""The student at full size on torch's ``meta`` device, where nothing is computed: an operation with a constant of the host, a value that is
read back, a shape that hangs on data raise there, so a step that passes clings to no device."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import Tensor, nn

from geomim import CameraRig, GeoMIM, GeoMIMConfig
from geomim.adapter.step import PretrainBatch, pretrain_step

META = torch.device('meta')
pytestmark = pytest.mark.skipif(torch.__version__ < '2.1', reason='older ones lack operations on the meta device')


def batch_of(config: GeoMIMConfig, samples: int, cams: int) -> PretrainBatch:
    empty = lambda *shape: torch.empty(*shape, device=META)  # noqa: E731
    rig = CameraRig(
        empty(samples, cams, 3, 3), *(empty(samples, cams, 4, 4) for _ in range(3)), bev_aug=empty(samples, 4, 4)
    )
    clouds = [empty(30000 + sample, 5) for sample in range(samples)]
    return PretrainBatch(empty(samples, cams, 3, *config.view_transform.image_size), rig, clouds)


def teacher_of(config: GeoMIMConfig) -> Callable[[Any], Tensor]:
    shape = config.view_transform.output_grid.shape
    return lambda clouds: torch.empty(len(clouds), config.target.channels, *shape, device=META)


@pytest.mark.parametrize(('samples', 'cams', 'recompute'), [(1, 6, False), (2, 5, True)])
def test_a_pretraining_step_clings_to_no_device(samples: int, cams: int, recompute: bool) -> None:
    """From clouds and images to the losses and every gradient."""
    config = GeoMIMConfig(activation_checkpointing=recompute)
    student = GeoMIM(config).to(META)  # not built there: a constant that is no buffer stays behind and shows
    result = pretrain_step(batch_of(config, samples, cams), student, teacher_of(config), torch.Generator())
    losses = (result.reconstruction_loss, result.depth_loss)
    assert all(loss.device == META and loss.shape == () for loss in losses)
    sum(losses).backward()
    assert [name for name, parameter in student.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    'fault',
    [
        lambda x: x * torch.ones(3),
        lambda x: x if bool((x > 0).any()) else -x,
        lambda x: x * float(x.max()),
        lambda x: x[x > 0],
    ],
    ids=['constant of the host', 'branch on a value', 'value read back', 'shape from data'],
)
def test_what_clings_to_the_host_raises_here(fault: Callable[[Tensor], Tensor]) -> None:
    class Clinging(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return fault(x)

    with pytest.raises((RuntimeError, NotImplementedError)):
        Clinging()(torch.empty(2, 3, device=META))
