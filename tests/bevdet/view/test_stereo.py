"""Cost volume against a loop over pixels, depths and channels; the feature that is compared, from every backbone."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict

import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

pytest.importorskip('mmdet3d')

from mmdet3d.registry import MODELS

from geomim import CameraRig
from geomim.bevdet.backbones import check_stereo_backbone, first_stage
from geomim.bevdet.view import stereo as stereo_module
from geomim.bevdet.view.stereo import StereoPair, cost_volume, matching_cost, matching_cost_by_pixel, sampling_grid
from geomim.method.lift_splat import feature_pixels
from geomim.mmdet3d import GeoMIMSwin  # noqa: F401 - registers the backbone

MakeRig = Callable[..., CameraRig]
SIZE = (16, 24)
CELLS = (4, 6)
DEPTHS = torch.tensor([1.5, 4.0, 11.0])
BACKBONES: Dict[str, Dict[str, Any]] = {
    'resnet': dict(type='mmdet.ResNet', depth=18, base_channels=8, out_indices=(0, 2, 3)),
    'resnet with a deep stem': dict(type='mmdet.ResNet', depth=18, base_channels=8, out_indices=(0, 3), deep_stem=True),
    'geomim': dict(
        type='GeoMIMSwin', embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=(4, 4, 2, 2),
        pretrain_img_size=32, return_stereo_feat=True,
    ),
    'shifted swin': dict(
        type='StereoShiftedSwin', embed_dims=8, depths=(2, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4, out_indices=(2, 3)
    ),
}  # fmt: skip


def motion(angle: float, forward: float) -> Tensor:
    matrix = torch.eye(4)
    matrix[0, 0] = matrix[2, 2] = math.cos(angle)
    matrix[0, 2], matrix[2, 0] = math.sin(angle), -math.sin(angle)
    matrix[2, 3] = forward
    return matrix


def scene(make_rig: MakeRig, batch: int = 2, cams: int = 2, channels: int = 8) -> tuple:
    """Features with exact zeros among them, as behind a ReLU; a motion that differs by image."""
    rig = make_rig(batch, cams, SIZE, augmented=True)
    moves = [motion(0.02 * (i + 1), 0.5 * i - 0.7) for i in range(batch * cams)]
    current, older = torch.randn(2, batch * cams, channels, *CELLS).relu()
    return rig, StereoPair(current, older, torch.stack(moves).view(batch, cams, 4, 4))


def looped_cost(pair: StereoPair, rig: CameraRig, bias: float) -> Tensor:
    """(M, D, h, w) before the softmax, float64."""
    rig = rig.to(torch.float64)
    images, channels = pair.current.shape[:2]
    cost = torch.zeros(images, len(DEPTHS), *CELLS, dtype=torch.float64)
    for image in range(images):
        b, n = divmod(image, rig.num_cams)
        older = pair.older[image].double().numpy()
        intrinsics, augmentation, move = rig.intrinsics[b, n], rig.img_aug[b, n], pair.current2older[b, n].double()
        for index, metres in enumerate(DEPTHS.double()):
            for row in range(CELLS[0]):
                for col in range(CELLS[1]):
                    u, v = col * (SIZE[1] - 1) / (CELLS[1] - 1), row * (SIZE[0] - 1) / (CELLS[0] - 1)
                    moved = torch.tensor([u, v, 1.0], dtype=torch.float64) - augmentation[:3, 3]
                    camera = torch.linalg.inv(intrinsics) @ torch.linalg.inv(augmentation[:3, :3]) @ moved * metres
                    seen = move[:3, :3] @ camera + move[:3, 3]
                    warped = torch.zeros(channels, dtype=torch.float64)
                    if seen[2] >= 1e-3:
                        pixel = augmentation[:2, :2] @ (intrinsics @ seen / seen[2])[:2] + augmentation[:2, 3]
                        x = float(pixel[0]) / (SIZE[1] - 1) * (CELLS[1] - 1)
                        y = float(pixel[1]) / (SIZE[0] - 1) * (CELLS[0] - 1)
                        warped = torch.tensor(
                            [map_coordinates(one, [[y], [x]], order=1, mode='grid-constant')[0] for one in older]
                        )
                    cost[image, index, row, col] = (pair.current[image, :, row, col] - warped).abs().sum()
                    if warped[channels - 4] == 0:
                        cost[image, index, row, col] += bias
    return cost


@pytest.mark.parametrize('bias', [0.0, 5.0])
def test_costs_are_those_of_a_plain_loop(make_rig: MakeRig, bias: float) -> None:
    rig, pair = scene(make_rig)
    expected = looped_cost(pair, rig, bias)
    grid = sampling_grid(feature_pixels(SIZE, CELLS), DEPTHS, rig, pair.current2older)
    for function in (matching_cost, matching_cost_by_pixel):
        torch.testing.assert_close(function(pair, grid, bias).double(), expected, rtol=1e-4, atol=1e-4)
    volume = cost_volume(pair, feature_pixels(SIZE, CELLS), DEPTHS, rig, bias)
    torch.testing.assert_close(volume.double(), (-expected).softmax(1), rtol=1e-3, atol=1e-4)


def test_a_camera_at_rest_matches_at_every_depth(make_rig: MakeRig) -> None:
    rig, pair = scene(make_rig)
    still = StereoPair(pair.current, pair.current, torch.eye(4).expand(2, 2, 4, 4))
    grid = sampling_grid(feature_pixels(SIZE, CELLS), DEPTHS, rig, still.current2older)
    assert float(matching_cost(still, grid, 0.0).max()) < 1e-3


def test_what_lies_behind_the_older_camera_is_not_seen(make_rig: MakeRig) -> None:
    rig, pair = scene(make_rig)
    turned = StereoPair(pair.current, pair.older + 1, motion(math.pi, 0.0).expand(2, 2, 4, 4))
    grid = sampling_grid(feature_pixels(SIZE, CELLS), DEPTHS, rig, turned.current2older)
    expected = pair.current.sum(1, keepdim=True) + 5
    torch.testing.assert_close(matching_cost(turned, grid, 5.0), expected.expand(-1, 3, -1, -1))


def test_a_moved_camera_matches_at_the_true_depth(make_rig: MakeRig) -> None:
    """The older view is made from a plane at 4 m by the sampling positions themselves: there the cost is the least."""
    rig = make_rig(1, 1, SIZE)
    pixels, move = feature_pixels(SIZE, CELLS), motion(0.0, 1.0).expand(1, 1, 4, 4)
    grid = sampling_grid(pixels, DEPTHS[1:2], rig, move).view(*CELLS, 2)
    last = torch.tensor([CELLS[1] - 1, CELLS[0] - 1])
    where = (grid + 1) / 2 * last  # cells of the older view
    rows, cols = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing='ij')
    older = torch.stack([cols, rows, cols + rows, cols - rows])[None]
    current = torch.stack([where[..., 0], where[..., 1], where[..., 0] + where[..., 1], where[..., 0] - where[..., 1]])[
        None
    ]
    volume = cost_volume(StereoPair(current, older, move), pixels, DEPTHS, rig, 0.0)
    inside = ((where > 0) & (where < last)).all(-1)
    off_centre = (pixels - rig.intrinsics[0, 0, :2, 2]).abs().amin(-1) > 2
    chosen = volume[0].argmax(0)[inside & off_centre]
    assert len(chosen) > 5
    assert set(chosen.tolist()) == {1}


@pytest.mark.parametrize('channels', [8, 11])
def test_both_ways_to_compare_agree_in_and_out_of_the_image(make_rig: MakeRig, channels: int) -> None:
    _, pair = scene(make_rig, channels=channels)
    grid = torch.rand(4, 5 * CELLS[0], CELLS[1], 2) * 4 - 2
    grid[:, ::5] = -2.0
    grid[:, 1::5, :2] = torch.tensor([[3e8, -3e8], [-3e8, 0.0]])
    grid[:, 2::5, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    expected = matching_cost(pair, grid, 5.0)
    torch.testing.assert_close(matching_cost_by_pixel(pair, grid, 5.0), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('bound', ['_MOST_SAMPLES', '_CACHED_SAMPLES'])
def test_chunks_change_nothing(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    rig, pair = scene(make_rig)
    pixels = feature_pixels(SIZE, CELLS)
    whole = cost_volume(pair, pixels, DEPTHS, rig, 5.0)
    monkeypatch.setattr(stereo_module, bound, 1)
    torch.testing.assert_close(cost_volume(pair, pixels, DEPTHS, rig, 5.0), whole)
    torch.testing.assert_close(whole.sum(1), torch.ones(4, *CELLS))


def test_autocast_leaves_the_comparison_alone(make_rig: MakeRig) -> None:
    rig, pair = scene(make_rig)
    arguments = (pair, feature_pixels(SIZE, CELLS), DEPTHS, rig, 5.0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        under_autocast = cost_volume(*arguments)
    assert torch.equal(under_autocast, cost_volume(*arguments))


def test_no_gradient_flows_through_the_comparison(make_rig: MakeRig) -> None:
    rig, pair = scene(make_rig)
    pair.current.requires_grad_()
    assert not cost_volume(pair, feature_pixels(SIZE, CELLS), DEPTHS, rig, 0.0).requires_grad


def test_features_that_do_not_fit(make_rig: MakeRig) -> None:
    rig, pair = scene(make_rig)
    pixels = feature_pixels(SIZE, CELLS)
    with pytest.raises(ValueError, match=r'both must have \(4, 6\) cells'):
        cost_volume(
            StereoPair(pair.current[..., :5], pair.older[..., :5], pair.current2older), pixels, DEPTHS, rig, 0.0
        )
    with pytest.raises(ValueError, match='the same channels'):
        cost_volume(StereoPair(pair.current, pair.older[:, :4], pair.current2older), pixels, DEPTHS, rig, 0.0)
    few = StereoPair(pair.current[:, :3], pair.older[:, :3], pair.current2older)
    with pytest.raises(ValueError, match='at least 4 channels, got 3'):
        cost_volume(few, pixels, DEPTHS, rig, 0.0)


@pytest.mark.parametrize('name', list(BACKBONES))
def test_the_first_stage_alone_gives_the_stereo_feature(name: str) -> None:
    backbone = MODELS.build(BACKBONES[name])
    backbone.eval()
    check_stereo_backbone(backbone)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        alone, outputs = first_stage(backbone, images), backbone(images)
    assert alone.shape == (2, 8, 16, 24)
    assert torch.equal(alone, outputs[0])
    assert [tuple(output.shape[-2:]) for output in outputs[-2:]] == (
        [(4, 6), (2, 3)] if len(outputs) == 3 else [(16, 24), (2, 3)]
    )


@pytest.mark.parametrize(
    'config, message',
    [
        (dict(BACKBONES['resnet'], out_indices=(2, 3)), 'stage 0'),
        (dict(BACKBONES['geomim'], return_stereo_feat=False), 'GeoMIMSwin gives no stereo feature'),
        (dict(type='mmdet.SwinTransformer', embed_dims=8, num_heads=(1, 1, 2, 2)), 'SwinTransformer gives no stereo'),
    ],
)
def test_backbones_without_a_stereo_feature(config: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_stereo_backbone(MODELS.build(config))
    with pytest.raises(ValueError, match='Linear gives no stereo feature'):
        first_stage(torch.nn.Linear(1, 1), torch.zeros(1, 3, 32, 32))
