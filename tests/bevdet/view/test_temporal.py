"""Frames and their geometry; past BEV features moved to the key frame, against a loop over cells."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import List, Tuple

import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

pytest.importorskip('mmdet3d')

from geomim import BEVGrid
from geomim.bevdet.view.frames import SurroundFrames
from geomim.bevdet.view.temporal import ego_motion, shift_feature

GRID = BEVGrid((-8.0, 8.0, 1.0), (-6.0, 6.0, 1.5), axis_order='yx')  # 16 x 8 cells
B, F, N = 2, 3, 4


def pose(yaw: float, x: float, y: float, z: float = 0.0, tilt: float = 0.0) -> Tensor:
    turn, lean = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    turn[0, 0] = turn[1, 1] = math.cos(yaw)
    turn[1, 0], turn[0, 1] = math.sin(yaw), -math.sin(yaw)
    lean[1, 1] = lean[2, 2] = math.cos(tilt)
    lean[2, 1], lean[1, 2] = math.sin(tilt), -math.sin(tilt)
    turn[:3, 3] = torch.tensor([x, y, z], dtype=torch.float64)
    return turn @ lean


def make_frames() -> SurroundFrames:
    """Every matrix differs; the map is kilometres wide."""
    grid = [(b, f, n) for b in range(B) for f in range(F) for n in range(N)]
    sensors = [pose(0.5 * n + 0.01 * f, 1 + 0.1 * n, 0.2 * b, 1.5, 0.3 * n) for b, f, n in grid]
    egos = [pose(1.0 + 0.03 * f + 0.5 * b, 1042.0 - 2.5 * f + 0.1 * n, 887.0 + 0.4 * f, 0.1 * f) for b, f, n in grid]
    augmentation = torch.eye(4).repeat(B, F, N, 1, 1)
    augmentation[..., :2, :2] += 0.1 * torch.randn(B, F, N, 2, 2)
    augmentation[..., :2, 3] = torch.randn(B, F, N, 2)
    bev_aug = torch.eye(4).repeat(B, 1, 1)
    bev_aug[:, :3, :3] += 0.1 * torch.randn(B, 3, 3)
    return SurroundFrames(
        images=torch.randn(B, F, N, 3, 4, 6),
        cam2ego=torch.stack(sensors).view(B, F, N, 4, 4).float(),
        ego2global=torch.stack(egos).view(B, F, N, 4, 4).float(),
        intrinsics=torch.randn(B, F, N, 3, 3),
        img_aug=augmentation,
        bev_aug=bev_aug,
    )


def as_bevdet(frames: SurroundFrames) -> List[Tensor]:
    """The list of seven, built one image and one matrix after the other."""
    images = torch.stack([frames.images[:, f, n] for n in range(N) for f in range(F)], dim=1)

    def frame_major(matrices: Tensor) -> Tensor:
        return torch.stack([matrices[:, f, n] for f in range(F) for n in range(N)], dim=1)

    return [
        images,
        frame_major(frames.cam2ego),
        frame_major(frames.ego2global),
        frame_major(frames.intrinsics),
        frame_major(frames.img_aug[..., :3, :3]),
        frame_major(frames.img_aug[..., :3, 3]),
        frames.bev_aug[:, :3, :3],
    ]


def test_bevdets_list_of_seven() -> None:
    frames = make_frames()
    read = SurroundFrames.from_bevdet(as_bevdet(frames), F)
    for field in fields(frames):
        assert torch.equal(getattr(read, field.name), getattr(frames, field.name)), field.name
    assert (read.batch_size, read.num_frames, read.num_cams) == (B, F, N)


def test_inputs_by_name_leave_other_keys_alone() -> None:
    frames = make_frames()
    read = SurroundFrames.from_inputs({**vars(frames), 'depth_map': torch.zeros(1)})
    assert all(getattr(read, field.name) is getattr(frames, field.name) for field in fields(frames))
    with pytest.raises(ValueError, match='ego2global, bev_aug missing'):
        SurroundFrames.from_inputs({k: v for k, v in vars(frames).items() if k not in ('ego2global', 'bev_aug')})


@pytest.mark.parametrize(
    'name, shape, message',
    [
        ('images', (B, F, N, 4, 6), r'expected \(B, F, N, 3, H, W\)'),
        ('images', (B, 0, N, 3, 4, 6), 'none of them 0'),
        ('cam2ego', (B, F, N - 1, 4, 4), r'expected \(B, F, N, 4, 4\) = \(2, 3, 4, 4, 4\)'),
        ('ego2global', (B, F - 1, N, 4, 4), 'ego2global'),
        ('intrinsics', (B, F, N, 4, 4), r'\(2, 3, 4, 3, 3\)'),
        ('img_aug', (B, F, N, 3, 3), 'img_aug'),
        ('bev_aug', (B, 3, 3), 'bev_aug'),
    ],
)
def test_shapes_that_do_not_fit(name: str, shape: Tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(make_frames(), **{name: torch.zeros(shape)})


def test_lists_that_do_not_fit() -> None:
    listed = as_bevdet(make_frames())
    with pytest.raises(ValueError, match='got 6 tensors'):
        SurroundFrames.from_bevdet(listed[:-1], F)
    for frames in (5, 0):
        with pytest.raises(ValueError, match=f'12 images a sample do not make {frames} frames'):
            SurroundFrames.from_bevdet(listed, frames)
    listed[2] = listed[2][:, :8]
    with pytest.raises(ValueError, match='12 images a sample, but ego2globals'):
        SurroundFrames.from_bevdet(listed, F)


def test_cameras_in_the_key_ego_frame() -> None:
    frames = make_frames()
    found = frames.cam2key()
    assert found.dtype == torch.float32
    for b, f, n in ((0, 0, 0), (1, 2, 3), (0, 1, 2)):
        to_map = frames.ego2global[b, f, n].double() @ frames.cam2ego[b, f, n].double()
        expected = torch.linalg.inv(frames.ego2global[b, 0, 0].double()) @ to_map
        torch.testing.assert_close(found[b, f, n], expected.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[:, 0, 0], frames.cam2ego[:, 0, 0], rtol=0, atol=1e-6)


def test_cameras_one_frame_earlier() -> None:
    """A point of the map is where both cameras see it."""
    frames = make_frames()
    older = frames.cam2older()
    assert older.shape == (B, F - 1, N, 4, 4)
    point = torch.tensor([1050.0, 880.0, 2.0, 1.0], dtype=torch.float64)
    to_map = frames.ego2global.double() @ frames.cam2ego.double()
    seen = torch.linalg.inv(to_map) @ point
    for f in range(F - 1):
        moved = torch.einsum('bnij,bnj->bni', older[:, f].double(), seen[:, f])
        torch.testing.assert_close(moved, seen[:, f + 1], rtol=1e-5, atol=1e-4)


def test_poses_keep_the_precision_that_is_given() -> None:
    frames = make_frames()
    exact = replace(frames, cam2ego=frames.cam2ego.double(), ego2global=frames.ego2global.double())
    assert exact.cam2key().dtype == exact.cam2older().dtype == torch.float64
    torch.testing.assert_close(exact.cam2older().float(), frames.cam2older(), rtol=0, atol=0)
    half = replace(frames, cam2ego=frames.cam2ego.half(), ego2global=frames.ego2global.half())
    assert half.cam2key().dtype == half.cam2older().dtype == torch.float32


def test_rigs_of_frames() -> None:
    frames = make_frames()
    poses = frames.cam2key()
    rig = frames.rig(2, poses)
    assert torch.equal(rig.cam2bev, poses[:, 2])
    assert torch.equal(rig.cam2ego, poses[:, 0])
    assert torch.equal(rig.intrinsics, frames.intrinsics[:, 2])
    assert torch.equal(rig.img_aug, frames.img_aug[:, 2])
    assert torch.equal(frames.rig(2, poses, placed=0).cam2bev, poses[:, 0])


def planar(yaw: float, x: float, y: float) -> Tensor:
    return pose(yaw, x, y)[None].float()


def test_without_motion_nothing_moves() -> None:
    features = torch.randn(2, 3, 8, 16)
    key = torch.stack([pose(0.4, 1, 2, 3, 0.2), pose(-1, 3, 1, 2, 0.4)]).float()
    bev_aug = torch.stack([pose(0.3, 0, 0), pose(0.7, 0, 0)]).float() * torch.tensor([1.04, 1.04, 1.04, 1.0])
    torch.testing.assert_close(
        shift_feature(features, ego_motion(key, key, bev_aug), GRID), features, rtol=0, atol=1e-4
    )


def test_a_step_of_whole_cells() -> None:
    """The past camera stood 3 m behind and 1.5 m to the left: in its map a place lies three columns further and one row lower."""
    features = torch.randn(1, 2, 8, 16)
    motion = ego_motion(torch.eye(4)[None], planar(0, -3, 1.5), torch.eye(4)[None])
    moved = shift_feature(features, motion, GRID)
    expected = torch.zeros_like(features)
    expected[:, :, 1:, :-3] = features[:, :, :-1, 3:]
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


def looped_shift(features: Tensor, motion: Tensor) -> Tensor:
    """Bilinear, zero outside, float64."""
    channels, rows, cols = features.shape
    moved = torch.zeros(features.shape, dtype=torch.float64)
    for row in range(rows):
        for col in range(cols):
            metres = torch.tensor([col * 1.0 - 8, row * 1.5 - 6, 1.0], dtype=torch.float64)
            past = motion.double() @ metres
            place = [[float(past[1] + 6) / 1.5], [float(past[0] + 8) / 1.0]]
            for channel in range(channels):
                values = features[channel].double().numpy()
                moved[channel, row, col] = map_coordinates(values, place, order=1, mode='grid-constant')[0]
    return moved


def test_turns_and_augmentation_against_a_plain_loop() -> None:
    features = torch.randn(2, 3, 8, 16)
    key = torch.stack([pose(0.4, 1, 2, 1.5, 0.2), pose(-1.0, 1.5, 1, 1.4, 0.1)])
    past = torch.stack([pose(0.6, -1.3, 2.2, 1.6, 0.25), pose(-1.2, 0.3, 0.2, 1.4, 0.1)])
    bev_aug = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    bev_aug[0] = pose(0.3, 0, 0) * torch.tensor([1.04, 1.04, 1.04, 1.0])
    bev_aug[1, 1, 1] = -1
    motion = ego_motion(key.float(), past.float(), bev_aug.float())
    moved = shift_feature(features, motion, GRID)
    for b in range(2):
        full = (bev_aug[b] @ key[b]) @ torch.linalg.inv(bev_aug[b] @ past[b])
        expected = looped_shift(features[b], full[[0, 1, 3]][:, [0, 1, 3]])
        torch.testing.assert_close(moved[b].double(), expected, rtol=0, atol=1e-4)


def test_autocast_leaves_geometry_alone() -> None:
    features, frames = torch.randn(2, 3, 8, 16), make_frames()

    def moved() -> Tensor:
        poses = frames.cam2key()
        return shift_feature(features, ego_motion(poses[:, 0, 0], poses[:, 2, 0], frames.bev_aug), GRID)

    with torch.autocast('cpu', dtype=torch.bfloat16):
        under_autocast = moved()
    assert torch.equal(under_autocast, moved())


def test_volumes_move_layer_by_layer() -> None:
    volume = torch.randn(1, 2, 3, 8, 16)
    motion = ego_motion(torch.eye(4)[None], planar(0.2, -1.3, 0.4), torch.eye(4)[None])
    moved = shift_feature(volume, motion, GRID)
    for layer in range(3):
        assert torch.equal(moved[:, :, layer], shift_feature(volume[:, :, layer], motion, GRID))


@pytest.mark.parametrize('shape', [(1, 2, 16, 8), (2, 8, 16), (1, 2, 8, 15)])
def test_features_off_the_grid(shape: Tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match='do not lie on a grid'):
        shift_feature(torch.zeros(shape), torch.eye(3)[None], GRID)
