"""Projection, sparse depth maps, labels and the loss against loops over points, pixels and cells."""

from __future__ import annotations

import math
from typing import Any, Callable, List, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from geomim import CameraRig, DepthBins
from geomim.method import depth as depth_module
from geomim.method.depth import check_points, depth_labels, depth_loss, depth_maps, project_points

MakeRig = Callable[..., CameraRig]
SIZE = (64, 96)


def cloud(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 5, generator=generator, dtype=torch.float64) * 8
    points[:, 2] *= 0.2
    return points


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve(matrix, right)


def looped_depth_map(
    points: Tensor,
    rig: CameraRig,
    sample: int,
    size: Tuple[int, int],
    rule: str = 'last',
    depth_range: Tuple[float, float] = (0.0, math.inf),
) -> Tensor:
    """METHOD 2.5 and 4 for one point after the other; a later or a nearer point overwrites what its pixel holds."""
    maps = torch.zeros(rig.num_cams, *size, dtype=torch.float64)
    for n in range(rig.num_cams):
        for point in points:
            lidar = solve(rig.bev_aug[sample, :3, :3], point[:3] - rig.bev_aug[sample, :3, 3])
            pose = rig.cam2bev[sample, n]
            camera = solve(pose[:3, :3], lidar - pose[:3, 3])
            if camera[2] <= 1e-5:
                continue
            pixel = (rig.intrinsics[sample, n] @ camera / camera[2])[:2]
            a = rig.img_aug[sample, n]
            u, v = (a[:2, :2] @ pixel + a[:2, 3]).tolist()
            if 0 <= u < size[1] and 0 <= v < size[0]:
                pixel = (n, int(math.floor(v)), int(math.floor(u)))
                if not depth_range[0] <= camera[2] < depth_range[1]:
                    continue
                if rule == 'last' or maps[pixel] == 0 or camera[2] < maps[pixel]:
                    maps[pixel] = camera[2]
    return maps


@pytest.mark.parametrize('options', [(), ('last', (3.0, 12.0)), ('nearest',), ('nearest', (3.0, 12.0))])
@pytest.mark.parametrize('augmented', [False, True])
def test_depth_maps_equal_a_loop_over_points(make_rig: MakeRig, augmented: bool, options: Any) -> None:
    rig = make_rig(batch=2, cams=3, augmented=augmented, dtype=torch.float64)
    clouds = [cloud(120, 1), cloud(90, 2)]
    clouds[0] = torch.cat([clouds[0], clouds[0].flip(0) * 1.01])
    maps = depth_maps(clouds, rig, SIZE, *options)
    assert maps.shape == (2, 3, *SIZE)
    for sample in range(2):
        expected = looped_depth_map(clouds[sample], rig, sample, SIZE, *options)
        assert int((expected > 0).sum()) > 10
        torch.testing.assert_close(maps[sample], expected)


def test_of_several_points_in_a_pixel_the_last_or_the_nearest_counts(make_rig: MakeRig) -> None:
    rig = make_rig(cams=2, dtype=torch.float64)
    ahead = rig.cam2bev[0, 0, :3, 2]
    points = rig.cam2bev[0, 0, :3, 3] + torch.tensor([[4.0], [9.0], [2.0], [6.0]], dtype=torch.float64) * ahead
    for order, winner in (([0, 1, 2, 3], 6.0), ([3, 2, 1, 0], 4.0), ([0, 3, 1], 9.0)):
        maps = depth_maps([points[order]], rig, SIZE)[0, 0]
        assert int((maps > 0).sum()) == 1
        assert float(maps.max()) == pytest.approx(winner)
        assert float(depth_maps([points[order]], rig, SIZE, 'nearest').max()) == pytest.approx(
            2.0 if 2 in order else 4.0
        )
        assert float(depth_maps([points[order]], rig, SIZE, 'nearest', (2.5, 60.0)).max()) == pytest.approx(4.0)
    with pytest.raises(ValueError, match="rule must be 'last' or 'nearest', got 'first'"):
        depth_maps([points], rig, SIZE, 'first')


def test_points_behind_or_in_the_image_plane_leave_no_trace(make_rig: MakeRig) -> None:
    rig = make_rig(cams=1, dtype=torch.float64)
    centre, ahead = rig.cam2bev[0, 0, :3, 3], rig.cam2bev[0, 0, :3, 2]
    points = torch.stack([centre - 5 * ahead, centre, centre + 1e-7 * ahead])
    assert int((depth_maps([points], rig, SIZE) != 0).sum()) == 0
    _, depth = project_points(points, rig, 0)
    assert float(depth[0, 0]) == pytest.approx(-5)


def test_points_are_not_changed_and_precision_may_differ(make_rig: MakeRig) -> None:
    rig = make_rig(batch=1, cams=3, augmented=True)
    points = cloud(200).float()
    before = points.clone()
    maps = depth_maps([points], rig, SIZE)
    assert torch.equal(points, before)
    assert maps.dtype == torch.float32
    assert int((depth_maps([points.half()], rig, SIZE) > 0).sum()) > 0


def test_values_that_are_not_finite_mark_no_pixel(make_rig: MakeRig) -> None:
    rig, points = make_rig(cams=3), cloud(50).float()
    spoiled = torch.cat([points, torch.full((1, 5), math.nan), torch.full((1, 5), math.inf), torch.full((1, 5), 1e30)])
    assert torch.equal(depth_maps([spoiled], rig, SIZE), depth_maps([points], rig, SIZE))


def test_one_cloud_a_sample(make_rig: MakeRig) -> None:
    with pytest.raises(ValueError, match='1 point clouds for 2 samples'):
        depth_maps([cloud(3).float()], make_rig(batch=2), SIZE)


@pytest.mark.parametrize('path', ['newest', 'oldest'])
def test_both_ways_to_find_the_last_point_equal_a_loop(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    if path == 'oldest':
        monkeypatch.setattr(torch, '__version__', '1.10.2')
    elif not hasattr(torch.Tensor, 'scatter_reduce_'):
        pytest.skip(f'torch {torch.__version__} has no scatter_reduce_')
    slots = torch.randint(0, 9, (3, 40))
    slots[0, :] = 4
    winners = depth_module._winner_per_slot(slots, 12)
    expected = torch.full((3, 12), -1)
    for row in range(3):
        for index, slot in enumerate(slots[row].tolist()):
            expected[row, slot] = index
    assert torch.equal(winners, expected)
    assert torch.equal(depth_module._winner_per_slot(slots[:, :0], 5), torch.full((3, 5), -1))


@pytest.mark.parametrize('bins', [DepthBins(1.0, 60.0, 0.5), DepthBins(2.0, 14.0, 1.5), DepthBins(1.0, 2.0, 1.0)])
def test_labels_equal_a_loop_over_cells(bins: DepthBins) -> None:
    maps = torch.rand(2, 3, 32, 48, dtype=torch.float64) * 66
    maps[torch.rand(maps.shape) < 0.97] = 0
    maps[0, 0, :16, :16] = 0
    labels = depth_labels(maps, bins, 16)
    assert labels.shape == (2, 3, 2, 3)
    for b in range(2):
        for n in range(3):
            for i in range(2):
                for j in range(3):
                    block = maps[b, n, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16]
                    seen = block[block > 0]
                    expected = -1
                    if len(seen):
                        published = math.floor((float(seen.min()) - (bins.lower - bins.step)) / bins.step)
                        expected = published - 1 if 1 <= published <= bins.count else -1
                    assert int(labels[b, n, i, j]) == expected


def test_labels_at_the_ends_of_the_range() -> None:
    bins = DepthBins(1.0, 3.0, 0.5)
    depths = torch.tensor([0.2, 0.999, 1.0, 1.49, 1.5, 2.99, 3.0, 80.0, 0.0])
    labels = depth_labels(depths[:, None, None], bins, 1).flatten()
    assert labels.tolist() == [-1, -1, 0, 0, 1, 3, -1, -1, -1]


def test_a_bin_contains_the_depths_above_its_frustum_point() -> None:
    bins = DepthBins()
    assert bins.count == 118
    labels = depth_labels((bins.values() + 0.1)[:, None, None], bins, 1).flatten()
    assert labels.tolist() == list(range(118))


def test_maps_that_cannot_be_cut_and_impossible_bins_are_named() -> None:
    with pytest.raises(ValueError, match='40 x 32 pixels cannot be cut into 16-pixel cells'):
        depth_labels(torch.zeros(1, 40, 32), DepthBins(), 16)
    with pytest.raises(ValueError, match='must start above 0 m, got 0.0'):
        DepthBins(0.0, 10.0, 1.0)
    with pytest.raises(ValueError, match='depth_bound .* 0.7 m does not divide'):
        DepthBins(1.0, 60.0, 0.7)


def looped_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of each labelled cell against its one-hot label, as torch computes it."""
    total, cells = probabilities.new_zeros(()), 0
    for image in range(len(labels)):
        for i in range(labels.shape[1]):
            for j in range(labels.shape[2]):
                label = int(labels[image, i, j])
                if label >= 0:
                    one_hot = F.one_hot(torch.tensor(label), probabilities.shape[1]).to(probabilities)
                    total = total + F.binary_cross_entropy(probabilities[image, :, i, j], one_hot, reduction='sum')
                    cells += 1
    return total / max(1, cells)


def test_loss_and_gradient_equal_torch_cell_by_cell() -> None:
    logits = (torch.randn(3, 7, 2, 4, dtype=torch.float64) * 3).requires_grad_()
    labels = torch.randint(-1, 7, (3, 2, 4))
    probabilities = logits.softmax(1)
    ours, theirs = depth_loss(probabilities, labels), looped_loss(probabilities, labels)
    torch.testing.assert_close(ours, theirs)
    (a,), (b,) = (torch.autograd.grad(loss, logits, retain_graph=True) for loss in (ours, theirs))
    torch.testing.assert_close(a, b)


def test_without_labels_the_loss_is_zero_and_keeps_its_graph() -> None:
    logits = torch.randn(1, 4, 2, 2, requires_grad=True)
    loss = depth_loss(logits.softmax(1), torch.full((1, 2, 2), -1))
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize('gap', [20.0, 40.0, 95.0, 101.0, 110.0, 1000.0])
def test_a_saturated_softmax_gives_the_loss_of_torch_and_finite_gradients(gap: float) -> None:
    """float32 softmax reaches exactly 1 and 0, and subnormal values between."""
    logits = torch.zeros(1, 4, 1, 3)
    logits[0, 1] = gap  # bin 1 is certain; the cells are labelled right, wrong and not at all
    logits.requires_grad_()
    labels = torch.tensor([[[1, 2, -1]]])
    probabilities = logits.softmax(1)
    loss = depth_loss(probabilities, labels)
    torch.testing.assert_close(loss, looped_loss(probabilities, labels), rtol=1e-5, atol=1e-6)
    loss.backward()
    assert bool(torch.isfinite(logits.grad).all())
    assert torch.equal(logits.grad[..., 2], torch.zeros(1, 4, 1))
    if gap < 85:  # a wrong certainty is still corrected
        assert float(logits.grad[0, 2, 0, 1]) < -0.2


@pytest.mark.parametrize(
    'points, message',
    [
        (torch.zeros(4, 2), r'sweep.bin: a point cloud must be \(M, >= 3\), got shape \(4, 2\)'),
        (torch.zeros(4), r'got shape \(4,\)'),
        (torch.zeros(0, 5), 'sweep.bin: the point cloud is empty'),
        (
            torch.tensor([[0.0, 1, 2], [3, math.nan, 5], [math.inf, 0, 0]]),
            '2 of 3 points are not finite, the first in row 1',
        ),
        (torch.tensor([[0.0, 1, math.inf], [3, 4, -math.inf]]), '2 of 2 points are not finite, the first in row 0'),
    ],
)
def test_point_clouds_that_cannot_be_used_are_named(points: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_points(points, 'sweep.bin')
    check_points(torch.zeros(1, 3))
    check_points(torch.full((4, 3), 3e38))  # finite, though their sum is not


def test_projection_of_all_cameras_equals_each_alone(make_rig: MakeRig) -> None:
    rig = make_rig(batch=2, cams=4, augmented=True, dtype=torch.float64)
    points = cloud(30)
    uv, depth = project_points(points, rig, 1)
    collected: List[Any] = []
    for n in range(4):
        alone = CameraRig.create(
            rig.intrinsics[1:, n : n + 1],
            rig.cam2ego[1:, n : n + 1],
            rig.cam2bev[1:, n : n + 1],
            rig.img_aug[1:, n : n + 1],
            rig.bev_aug[1:],
        )
        collected.append(project_points(points, alone, 0))
    torch.testing.assert_close(uv, torch.cat([one[0] for one in collected]))
    torch.testing.assert_close(depth, torch.cat([one[1] for one in collected]))


def test_autocast_leaves_the_projection_alone(make_rig: MakeRig) -> None:
    rig = make_rig(batch=1, cams=2, augmented=True)
    points = cloud(30)
    uv, depth = project_points(points, rig, 0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        uv_under_autocast, depth_under_autocast = project_points(points, rig, 0)
    assert torch.equal(uv_under_autocast, uv)
    assert torch.equal(depth_under_autocast, depth)
