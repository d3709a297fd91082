"""Data that cannot be are refused with their names, doubtful ones are told once, and what is right passes in silence."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch
from torch import Tensor

from geomim.adapter.checks import (
    WarnOnce,
    check_egos,
    check_file,
    check_intrinsics,
    check_poses,
    check_reach,
    check_rig,
)

PLACES = [f'sample abc, camera CAM_{index}' for index in range(6)]


def turned(degrees: float, axis: int = 2, shift: Any = (0.0, 0.0, 0.0)) -> Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    pose = torch.eye(4, dtype=torch.float64)
    first, second = [other for other in range(3) if other != axis]
    pose[first, first] = pose[second, second] = cos
    pose[first, second], pose[second, first] = -sin, sin
    pose[:3, 3] = torch.tensor(shift)
    return pose


@pytest.fixture
def rig(make_rig: Callable[..., Any]) -> Dict[str, Tensor]:
    """Calibration of six cameras, as :func:`check_rig` takes it."""
    ring = make_rig(dtype=torch.float64)
    return dict(
        intrinsics=ring.intrinsics[0], lidar2cam=torch.linalg.inv(ring.cam2bev[0]), cam2ego=ring.cam2ego[0].clone()
    )


def told(check: Callable[[WarnOnce], None]) -> List[str]:
    """Messages of a check that runs twice with one memory."""
    warn = WarnOnce()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        check(warn)
        check(warn)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize('cams', [1, 2, 6])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('degrees', [0.0, 12.0])
def test_a_right_rig_passes_in_silence(rig: Dict[str, Tensor], cams: int, dtype: torch.dtype, degrees: float) -> None:
    """Few cameras, float32, an ego frame that rolls and pitches between the cameras' moments, calibration of four decimals."""
    rig['cam2ego'] = turned(degrees, axis=0) @ turned(degrees / 2, axis=1) @ rig['cam2ego']
    for decimals in (None, 4):
        given = {key: value[:cams].to(dtype) for key, value in rig.items()}
        if decimals:
            given = {key: (value * 1e4).round() / 1e4 for key, value in given.items()}
        assert told(lambda warn, given=given: check_rig(**given, places=PLACES[:cams], warn=warn)) == []
        only = dict(given, cam2ego=None, lidar2cam=torch.linalg.inv(given['cam2ego']))
        assert told(lambda warn, only=only: check_rig(**only, places=PLACES[:cams], warn=warn)) == []


def mirror(pose: Tensor) -> Tensor:
    return pose @ torch.diag(torch.tensor([1.0, -1, 1, 1], dtype=pose.dtype))


BAD: Dict[str, Any] = {
    'zero': (lambda pose: pose * 0, 'has a last row other than 0 0 0 1'),
    'singular': (lambda pose: pose * torch.tensor([1.0, 1, 0, 1], dtype=pose.dtype), 'is singular'),
    'scaled': (lambda pose: pose @ torch.diag(torch.tensor([1.1] * 3 + [1], dtype=pose.dtype)), r'is scaled by 1\.1'),
    'millimetres': (lambda pose: pose * 1000, 'has a last row other'),
    'sheared': (lambda pose: pose + 0.1 * turned(0).roll(1, 1) * (turned(0) * 0 + 1).tril(), 'sheared|last row'),
    'transposed': (lambda pose: pose.T, r'has a last row other than 0 0 0 1 \(transposed\?\)'),
    'last row': (lambda pose: pose + torch.eye(4, dtype=pose.dtype)[3][:, None] * 0.5, 'has a last row other'),
    'left-handed': (mirror, 'is left-handed .* and others of the sample are not'),
    'nan': (lambda pose: pose * float('nan'), 'not finite'),
    'far': (lambda pose: turned(0, shift=(3000.0, 0, 0)) @ pose, r'put the LiDAR 3\d\d\d m from the ego origin'),
}


@pytest.mark.parametrize('key', ['lidar2cam', 'cam2ego'])
@pytest.mark.parametrize('kind', BAD)
def test_an_extrinsic_that_cannot_be_is_refused(rig: Dict[str, Tensor], key: str, kind: str) -> None:
    change, message = BAD[kind]
    rig[key][4] = change(rig[key][4].clone())
    name = '.*' if kind in ('far', 'left-handed') else f': {key} '
    with pytest.raises(ValueError, match=f'sample abc, camera CAM_4{name}.*({message})'):
        check_rig(**rig, places=PLACES, warn=WarnOnce())


def test_a_zero_matrix_of_data_whose_points_are_in_the_ego_frame_is_named(rig: Dict[str, Tensor]) -> None:
    rig['lidar2cam'][2] = 0
    with pytest.raises(ValueError, match='sample abc, camera CAM_2: lidar2cam has a last row'):
        check_rig(rig['intrinsics'], rig['lidar2cam'], None, PLACES, WarnOnce())


@pytest.mark.parametrize(
    'change',
    [
        lambda rig: rig['cam2ego'][4:5].copy_(torch.linalg.inv(rig['cam2ego'][4:5])),
        lambda rig: rig['lidar2cam'][4:5].copy_(torch.linalg.inv(rig['lidar2cam'][4:5])),
        lambda rig: rig['cam2ego'].copy_(torch.linalg.inv(rig['cam2ego'])),
        lambda rig: rig['lidar2cam'].copy_(torch.linalg.inv(rig['lidar2cam'])),
        lambda rig: rig['cam2ego'].copy_(rig['cam2ego'][[0, 2, 1, 3, 4, 5]]),
        lambda rig: rig['cam2ego'][1].copy_(turned(25) @ rig['cam2ego'][1]),
        lambda rig: rig['cam2ego'][1, 0, 3].add_(8),
        lambda rig: rig['cam2ego'][:, 0, 3].add_(30),
    ],
    ids=['one camera', 'one LiDAR', 'all cameras', 'all LiDARs', 'cameras swapped', 'turned', 'beside', 'metres away'],
)
def test_what_can_hardly_be_is_told_once(rig: Dict[str, Tensor], change: Callable[[Dict[str, Tensor]], Any]) -> None:
    change(rig)
    messages = told(lambda warn: check_rig(**rig, places=PLACES, warn=warn))
    assert messages
    assert len(set(messages)) == len(messages) <= 2
    assert all(message.startswith('doubtful data: sample abc, camera CAM_') for message in messages)


@pytest.mark.parametrize('key', ['lidar2cam', 'cam2ego'])
def test_a_lone_camera_that_is_inverted_is_told(rig: Dict[str, Tensor], key: str) -> None:
    """Unless it looks to the right, with a symmetric rotation: that cannot be known."""
    rig = {name: value[1:2] for name, value in rig.items()}
    rig[key] = torch.linalg.inv(rig[key])
    assert told(lambda warn: check_rig(**rig, places=PLACES[:1], warn=warn))


def test_a_world_that_is_left_handed_as_a_whole_and_rounded_rotations_are_told(rig: Dict[str, Tensor]) -> None:
    """Its geometry is consistent, so a training on it was right before."""
    mirrored = torch.stack([mirror(pose) for pose in rig['cam2ego']])
    (message,) = told(lambda warn: check_poses(mirrored, PLACES, warn))
    assert 'CAM_0 is left-handed, as all of the sample' in message
    rig['cam2ego'][3] = rig['cam2ego'][3] @ torch.diag(torch.tensor([1.002, 1, 1, 1], dtype=torch.float64))
    (message,) = told(lambda warn: check_poses(rig['cam2ego'], PLACES, warn))
    assert 'CAM_3 is no rotation to more than 0.004' in message


@pytest.mark.parametrize(
    'matrix, message',
    [
        (torch.eye(3), 'CAM_1 is the identity'),
        (torch.tensor([[0.8, 0, 0.5], [0, 1.4, 0.5], [0, 0, 1]]), 'CAM_1 is not in pixels: a focal length of 0.8'),
        (torch.tensor([[800.0, 0, 0], [0, 800, 0], [800, 450, 1]]), r'CAM_1 has a last row other than 0 0 1 \(transp'),
        (torch.tensor([[800.0, 0, 400], [0, 800, 200], [0, 0, 2]]), 'CAM_1 has a last row'),
        (torch.zeros(3, 3), 'CAM_1 has a last row'),
        (torch.full((3, 3), float('nan')), 'CAM_1 has a last row'),
    ],
)
def test_intrinsics_that_cannot_be_are_refused(matrix: Tensor, message: str) -> None:
    right = torch.tensor([[800.0, 0.3, 400], [0, 810, 200], [0, 0, 1]])
    check_intrinsics(right[None], PLACES)
    with pytest.raises(ValueError, match=message):
        check_intrinsics(torch.stack([right, matrix]), PLACES)


def egos(frames: int = 3, cams: int = 3) -> Tensor:
    """Ego poses in UTM of a vehicle that turns, climbs and rolls at 30 m/s, 0.5 s between frames."""
    poses = torch.stack([turned(3 * t) @ turned(9, axis=0) @ turned(-6, axis=1) for t in range(frames * cams)])
    for index, pose in enumerate(poses):
        frame, cam = divmod(index, cams)
        pose[:3, 3] = torch.tensor([5e5 - 15.0 * frame + cam, 4.6e6, 120.0])
    return poses.view(frames, cams, 4, 4)


def test_ego_poses_that_jump_are_refused() -> None:
    places, seconds = [f'{frame}, {cam}' for frame in ('key', 'old', 'oldest') for cam in 'abc'], [0.0, 0.5, 1.0]
    assert told(lambda warn: check_egos(egos(), seconds, places, warn)) == []
    for frame, cam, place in ((0, 0, 'key, a'), (0, 2, 'key, c'), (2, 1, 'oldest, b')):
        poses = egos()
        poses[frame, cam, 1, 3] += 3000
        with pytest.raises(ValueError, match=f'{place}: ego2global lies 3000 m from the key frame'):
            check_egos(poses, seconds, places, WarnOnce())
        poses[frame, cam] = float('nan')
        with pytest.raises(ValueError, match=f'{place}: ego2global holds values that are not finite'):
            check_egos(poses, seconds, places, WarnOnce())


def sweep(features: int, points: int = 4200) -> Tensor:
    """(M, F) as a spinning LiDAR writes it: x, y, z, intensity, ring, and seconds."""
    generator = torch.Generator().manual_seed(3)
    turn = torch.arange(points) // 32 * 0.01
    ring = torch.arange(points) % 32
    distance = torch.rand(points, generator=generator) * 40 + 2
    intensity = torch.rand(points, generator=generator) ** 4 * 255
    height = distance * torch.tan((ring - 20) * 0.02)
    columns = [distance * turn.cos(), distance * turn.sin(), height, intensity, ring.float(), turn * 0.01]
    return torch.stack(columns[:features], dim=1).float()


@pytest.mark.parametrize('read', [3, 4, 5, 6])
@pytest.mark.parametrize('written', [3, 4, 5, 6])
def test_points_of_another_number_of_features_are_recognised(read: int, written: int) -> None:
    values = sweep(written).flatten()
    if read == written:
        check_file(values, read, 'a.bin')
    elif written != 2 * read:  # half points are a cloud, too
        with pytest.raises(ValueError, match=rf'a\.bin: read as points of {read} .*load_dim={written}\)'):
            check_file(values, read, 'a.bin')


def test_files_that_say_nothing_about_their_features_pass() -> None:
    for values in (torch.ones(5000), torch.rand(6000), sweep(4, 40).flatten(), torch.full((6000,), float('nan'))):
        check_file(values, 5, 'a.bin')


def test_a_file_of_no_whole_number_of_points_is_named() -> None:
    with pytest.raises(ValueError, match=r'a\.bin: 404 values are no whole number of points of 5 features, but of 4 '):
        check_file(sweep(4, 101).flatten(), 5, 'a.bin')
    with pytest.raises(ValueError, match=r'a\.bin: 499 values .*; the file is cut short'):
        check_file(torch.rand(499), 5, 'a.bin')
    with pytest.raises(ValueError, match=r'a\.bin is empty'):
        check_file(torch.rand(0), 5, 'a.bin')


def test_a_cloud_out_of_reach_is_refused_and_half_of_one_told() -> None:
    cloud = sweep(5)
    assert told(lambda warn: check_reach(cloud, 'abc', warn)) == []
    beyond = cloud + torch.tensor([5e5, 4.6e6, 100, 0, 0])
    with pytest.raises(ValueError, match='abc: no point lies within 200 m of the LiDAR'):
        check_reach(beyond, 'abc', WarnOnce())
    beyond[7] = cloud[7]
    (message,) = told(lambda warn: check_reach(beyond, 'abc', warn))
    assert 'most points lie beyond 200 m' in message
    with pytest.raises(ValueError, match='abc: the point cloud is empty'):
        check_reach(cloud[:0], 'abc', WarnOnce())


def test_the_page_has_the_messages_of_the_code(repository: Path) -> None:
    rows = [
        line.split(' | ') for line in (repository / 'docs' / 'checks.md').read_text().splitlines() if line[:2] == '| '
    ]
    rows = [row for row in rows if row[0] != '| what']
    code = [*(repository / 'projects').rglob('*.py'), *(repository / 'plugin').glob('*.py')]
    text = '\n'.join(path.read_text() for path in code)
    assert len(rows) > 25
    for row in rows:
        assert row[1] in ('refused', 'told'), row
        for message in re.findall('`(.*?)`', row[2]):
            assert message in text, message
