"""Cells in sight of a camera against points projected one by one, under image and BEV augmentation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from geomim import BEVGrid, CameraRig, GeoMIMConfig
from geomim.method.config import config_from_dict
from geomim.method.depth import project_points
from geomim.method.target import reconstruction_loss
from geomim.method.visibility import seen_cells

Make = Callable[..., Any]
SIZE = (64, 96)
GRID = BEVGrid((-12.0, 12.0, 1.5), (-9.0, 9.0, 1.0), (-3.0, 2.0, 5.0))


def projected(rig: CameraRig, grid: BEVGrid, heights: int) -> Tensor:
    """(B, X, Y): whether one of so many points above each cell's centre falls into an image."""
    x = torch.arange(grid.num_x).double() * grid.x_bound[2] + grid.x_bound[0] + grid.x_bound[2] / 2
    y = torch.arange(grid.num_y).double() * grid.y_bound[2] + grid.y_bound[0] + grid.y_bound[2] / 2
    z = torch.linspace(grid.z_bound[0], grid.z_bound[1], heights, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(x, y, z, indexing='ij'), dim=-1).reshape(-1, 3)
    seen = []
    for sample in range(rig.batch_size):
        uv, depth = project_points(points, rig, sample)
        inside = (depth > 0) & (uv >= 0).all(-1) & (uv[..., 0] <= SIZE[1]) & (uv[..., 1] <= SIZE[0])
        seen.append(inside.any(0).view(grid.num_x, grid.num_y, heights).any(-1))
    return torch.stack(seen)


@pytest.mark.parametrize('augmented', [False, True])
@pytest.mark.parametrize('cams', [1, 2, 6])
def test_cells_are_those_of_points_projected_one_by_one(make_rig: Make, cams: int, augmented: bool) -> None:
    whole = make_rig(2, 6, SIZE, augmented, torch.float64)
    rig = CameraRig(
        *(getattr(whole, name)[:, :cams] for name in ('intrinsics', 'cam2ego', 'cam2bev', 'img_aug')), whole.bev_aug
    )
    seen, expected = seen_cells(rig, GRID, SIZE), projected(rig, GRID, 400)
    assert tuple(seen.shape) == (2, 16, 18)
    assert not (expected & ~seen).any(), 'no cell is left out'
    assert int((seen & ~expected).sum()) <= 2, 'what the vertical enters between two of the points'
    assert 0 < int(seen.sum()) < seen.numel() or cams == 6
    assert cams == 6 or not torch.equal(seen[0], seen[1])
    single = seen_cells(rig.to(torch.float32), GRID, SIZE)
    assert int((single != seen).sum()) <= 1
    assert torch.equal(seen_cells(rig, replace(GRID, axis_order='yx'), SIZE), seen.transpose(1, 2))


def test_cells_follow_the_bev_augmentation(make_rig: Make) -> None:
    """A camera ahead: mirrored in x, the cells behind are in sight."""
    rig = make_rig(1, 6, SIZE, dtype=torch.float64)
    ahead = CameraRig(
        *(getattr(rig, name)[:, :1] for name in ('intrinsics', 'cam2ego', 'cam2bev', 'img_aug')), rig.bev_aug
    )
    mirrored = replace(ahead, bev_aug=torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))[None])
    seen = seen_cells(ahead, GRID, SIZE)[0]
    assert seen[12:].any()
    assert not seen[:8].any()
    assert torch.equal(seen_cells(mirrored, GRID, SIZE)[0], seen.flip(0))


def test_cells_need_no_device_and_no_half_precision(make_rig: Make) -> None:
    rig = make_rig(2, 3, SIZE, augmented=True)
    expected = seen_cells(rig, GRID, SIZE)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(seen_cells(rig, GRID, SIZE), expected)
    if torch.__version__ >= '2':  # before, matrix products know no `meta`
        shape_only = seen_cells(rig.to('meta'), GRID, SIZE)  # a value that is read back would raise
        assert tuple(shape_only.shape) == tuple(expected.shape)


def test_the_loss_counts_the_cells_alone() -> None:
    target, cells = torch.randn(2, 3, 4, 5), torch.rand(2, 4, 5) < 0.4
    predictions = [torch.randn(2, 3, 4, 5, requires_grad=True) for _ in range(2)]
    with torch.no_grad():
        predictions[0][:, 1].masked_fill_(~cells, float('nan'))
    loss = reconstruction_loss(predictions, target, cells)
    counted = [(p - target).square().permute(0, 2, 3, 1)[cells].mean() for p in predictions]
    torch.testing.assert_close(loss, (counted[0] + counted[1]) / 2)
    gradients = torch.autograd.grad(loss, predictions)
    assert all(torch.equal(gradient.abs().sum(1) > 0, cells) for gradient in gradients)
    everywhere = reconstruction_loss(predictions[1:], target, torch.ones_like(cells))
    torch.testing.assert_close(everywhere, reconstruction_loss(predictions[1:], target))
    assert float(reconstruction_loss(predictions, target, torch.zeros_like(cells)).detach()) == 0
    half = reconstruction_loss([predictions[1].bfloat16()], target, cells)
    assert half.dtype == torch.float32


def test_pretraining_of_a_view_ahead_reconstructs_what_it_sees(
    make_rig: Make, make_config: Make, make_inputs: Make, make_model: Make
) -> None:
    config: GeoMIMConfig = make_config()
    whole = make_rig(1, 6, augmented=True)
    rig = CameraRig(
        *(getattr(whole, name)[:, :1] for name in ('intrinsics', 'cam2ego', 'cam2bev', 'img_aug')), whole.bev_aug
    )
    inputs = make_inputs(config, rig)
    everything, seen = (make_model(replace(config, seen_cells_only=only))(**inputs) for only in (False, True))
    view = config.view_transform
    assert everything.cells is None
    assert torch.equal(seen.cells, seen_cells(rig, view.output_grid, view.image_size))
    assert 0 < int(seen.cells.sum()) < seen.cells.numel() / 2
    assert torch.equal(seen.predictions[0], everything.predictions[0])
    torch.testing.assert_close(
        seen.reconstruction_loss, reconstruction_loss(everything.predictions, seen.target, seen.cells)
    )
    assert not torch.equal(seen.reconstruction_loss, everything.reconstruction_loss)
    assert torch.equal(seen.depth_loss, everything.depth_loss)


def test_the_option_is_a_key_of_the_student() -> None:
    assert config_from_dict(dict(seen_cells_only=True)).seen_cells_only
    assert not config_from_dict({}).seen_cells_only
