"""Loading: cameras, images and sweeps arrive in order, and what is missing or broken is named."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, Dict

import cv2
import numpy as np
import pytest
from mmdet3d.datasets.transforms import LoadPointsFromMultiSweeps
from mmdet3d.structures import LiDARPoints

from geomim.mmdet3d.loading import (
    CheckPointCloud,
    LoadCameraRig,
    LoadSurroundImages,
    LoadSurroundPoints,
    LoadSurroundSweeps,
)

NAMES = ['CAM_A', 'CAM_B', 'CAM_C']


def camera(focal: float = 120.0) -> Dict[str, Any]:
    eye = np.eye(4).tolist()
    return {'cam2img': [[focal, 0, 100.0], [0, focal, 60.0], [0, 0, 1]], 'cam2ego': eye, 'lidar2cam': eye}


def test_cameras_are_selected_and_ordered_with_their_images(tmp_path: Path) -> None:
    results: Dict[str, Any] = {
        'token': 'abc',
        'images': {name: camera(100 + i) for i, name in enumerate(NAMES)},
    }
    for index, name in enumerate(NAMES):
        path = str(tmp_path / f'{name}.png')
        cv2.imwrite(path, np.full((32 + index, 64, 3), index * 10, np.uint8))
        results['images'][name]['img_path'] = path
    results = LoadSurroundImages().transform(LoadCameraRig(['CAM_C', 'CAM_A']).transform(results))
    assert results['cam_names'] == ['CAM_C', 'CAM_A']
    assert results['cam2img'][:, 0, 0].tolist() == [102, 100]
    assert [image.mean() for image in results['img']] == [20, 0]
    assert [image.shape for image in results['img']] == [(34, 64, 3), (32, 64, 3)]
    assert [Path(path).stem for path in results['img_path']] == ['CAM_C', 'CAM_A']
    np.testing.assert_array_equal(results['img_aug_matrix'], np.tile(np.eye(4), (2, 1, 1)))


def test_intrinsics_of_four_rows_are_cut() -> None:
    results = {'images': {'CAM_A': camera()}}
    padded = np.eye(4)
    padded[:3, :3] = results['images']['CAM_A']['cam2img']
    results['images']['CAM_A']['cam2img'] = padded.tolist()
    assert LoadCameraRig().transform(results)['cam2img'].shape == (1, 3, 3)


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('cam2img', [[1.0, 0.0], [0.0, 1.0]], r'abc, camera CAM_B: cam2img has shape \(2, 2\)'),
        ('cam2img', [[1.0, 0, 0], [0, float('nan'), 0], [0, 0, 1]], 'CAM_B: cam2img .*not finite'),
        ('cam2img', [[-1.0, 0, 0], [0, 1.0, 0], [0, 0, 1]], 'CAM_B: focal lengths -1.0, 1.0'),
        ('lidar2cam', np.full((4, 4), np.inf).tolist(), 'CAM_B: lidar2cam .*not finite'),
        ('cam2ego', np.eye(3).tolist(), r'CAM_B: cam2ego has shape \(3, 3\)'),
        ('cam2ego', None, "CAM_B: no 'cam2ego'"),
        ('cam2img', np.eye(3).tolist(), 'abc, camera CAM_B: cam2img is the identity'),
        ('cam2ego', (2 * np.eye(4)).tolist(), 'abc, camera CAM_B: cam2ego has a last row other than 0 0 0 1'),
        ('lidar2cam', np.diag([1.2, 1.2, 1.2, 1]).tolist(), r'abc, camera CAM_B: lidar2cam is scaled by 1\.2'),
    ],
)
def test_bad_calibration_is_named(key: str, value: Any, message: str) -> None:
    results: Dict[str, Any] = {'token': 'abc', 'images': {name: camera() for name in NAMES}}
    if value is None:
        del results['images']['CAM_B'][key]
    else:
        results['images']['CAM_B'][key] = value
    with pytest.raises(ValueError, match=message):
        LoadCameraRig().transform(results)


@pytest.mark.parametrize('lidar_is_ego', [False, True])
def test_a_zero_matrix_is_named(lidar_is_ego: bool) -> None:
    results: Dict[str, Any] = {'token': 'abc', 'images': {name: camera() for name in NAMES}}
    results['images']['CAM_B']['lidar2cam'] = np.zeros((4, 4)).tolist()
    with pytest.raises(ValueError, match='abc, camera CAM_B: lidar2cam has a last row other than 0 0 0 1'):
        LoadCameraRig(lidar_is_ego=lidar_is_ego).transform(results)


def test_a_doubt_is_told_once_per_pipeline() -> None:
    rig = LoadCameraRig()
    with pytest.warns(UserWarning, match='doubtful data: sample abc, camera CAM_A: its pose lets it look straight up'):
        rig.transform({'token': 'abc', 'images': {name: camera() for name in NAMES}})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        rig.transform({'token': 'def', 'images': {name: camera() for name in NAMES}})


def test_absent_and_repeated_cameras_are_named() -> None:
    results = {'token': 'abc', 'images': {name: camera() for name in NAMES}}
    with pytest.raises(ValueError, match=r"abc: no camera CAM_X; the info file has \['CAM_A', 'CAM_B', 'CAM_C'\]"):
        LoadCameraRig(['CAM_A', 'CAM_X']).transform(results)
    with pytest.raises(ValueError, match='CAM_A more than once'):
        LoadCameraRig(['CAM_A', 'CAM_B', 'CAM_A'])
    with pytest.raises(ValueError, match='leaves no camera'):
        LoadCameraRig([])


def image_files(folder: Path) -> Dict[str, bytes]:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    whole = {name: cv2.imencode(f'.{name}', image)[1].tobytes() for name in ('jpg', 'png')}
    return {
        'cut.jpg': whole['jpg'][: len(whole['jpg']) // 2],
        'cut.png': whole['png'][: len(whole['png']) // 2],
        'head.jpg': whole['jpg'][:100],
        'empty.jpg': b'',
        'text.jpg': b'this is no image',
    }


@pytest.mark.parametrize(
    'name, reason',
    [
        ('cut.jpg', 'truncated'),
        ('cut.png', 'truncated'),
        ('head.jpg', 'cannot be decoded'),
        ('empty.jpg', 'empty file'),
        ('text.jpg', 'cannot be decoded'),
        ('absent.jpg', 'cannot be read'),
    ],
)
def test_unreadable_image_is_named(tmp_path: Path, name: str, reason: str) -> None:
    files = image_files(tmp_path)
    if name in files:
        (tmp_path / name).write_bytes(files[name])
    results = {'token': 'abc', 'images': {'CAM_A': dict(camera(), img_path=str(tmp_path / name))}}
    with pytest.raises(ValueError, match=f'abc, camera CAM_A: image .*{name}.* {reason}'):
        LoadSurroundImages().transform(results)


def test_past_sweeps_lie_where_the_vehicle_saw_them(tmp_path: Path) -> None:
    """Plain twin: a fixed world point, seen from a key pose and from a past pose of the LiDAR."""
    random = np.random.default_rng(0)
    world = random.uniform(-20, 20, (50, 3))
    poses = []
    for yaw, shift in ((0.0, (0.0, 0.0, 0.0)), (0.5, (4.0, -3.0, 0.2))):
        pose = np.eye(4)
        pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
        pose[:3, 3] = shift
        poses.append(pose)
    clouds = [(np.c_[world, np.ones(50)] @ np.linalg.inv(pose).T)[:, :3] for pose in poses]
    path = tmp_path / 'past.bin'
    np.c_[clouds[1], np.zeros((50, 2))].astype(np.float32).tofile(str(path))
    sweep = {'lidar_points': {'lidar_path': str(path), 'lidar2sensor': (np.linalg.inv(poses[1]) @ poses[0]).tolist()}}
    sweep['timestamp'] = 9.5
    key = LiDARPoints(np.c_[clouds[0], np.zeros((50, 2))].astype(np.float32), points_dim=5)
    results = {'points': key, 'timestamp': 10.0, 'lidar_sweeps': [sweep]}
    loaded = LoadSurroundSweeps(sweeps_num=9, load_dim=5, use_dim=5).transform(results)
    points = loaded['points'].tensor.numpy()
    np.testing.assert_allclose(points[50:, :3], clouds[0], atol=1e-4)
    np.testing.assert_allclose(points[50:, 4], 0.5)
    assert loaded['lidar_sweeps'][0] is sweep


def cloud_and_sweep(folder: Path, **changes: Any) -> Dict[str, Any]:
    """A key cloud and one past sweep in a file; ``changes`` of the sweep's entries."""
    points = np.random.default_rng(0).uniform(-20, 20, (50, 5)).astype(np.float32)
    points.tofile(folder / 'past.bin')
    entries = dict(lidar_path=str(folder / 'past.bin'), lidar2sensor=np.eye(4).tolist(), timestamp=9.5)
    entries.update(changes)
    sweep = dict(timestamp=entries.pop('timestamp'), lidar_points=entries)
    key = LiDARPoints(points, points_dim=5)
    return {'token': 'abc', 'lidar_path': 'key.bin', 'points': key, 'timestamp': 10.0, 'lidar_sweeps': [sweep]}


def shifted(metres: float) -> Any:
    matrix = np.eye(4)
    matrix[0, 3] = metres
    return matrix.tolist()


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(lidar_path='gone.bin'), r'point cloud gone\.bin cannot be read'),
        (
            dict(lidar2sensor=shifted(3000.0)),
            r'abc, past sweep .*past\.bin lies 3000 m from the key frame, 0\.5 s apart',
        ),
        (dict(lidar2sensor=np.zeros((4, 4)).tolist()), r'abc, past sweep .*past\.bin: lidar2sensor has a last row'),
        (
            dict(lidar2sensor=np.full((4, 4), np.nan).tolist()),
            r'past\.bin: lidar2sensor holds values that are not finite',
        ),
        (dict(timestamp=-990.0), r'abc, past sweep .*past\.bin: its time stamp lies 1000 s before'),
        (dict(timestamp=9.5e6), r'past\.bin: its time stamp lies .* time stamps are not in seconds'),
        (dict(timestamp=float('nan')), r'past\.bin: its time stamp lies nan s'),
    ],
)
def test_a_sweep_that_cannot_belong_is_named(tmp_path: Path, changes: Dict[str, Any], message: str) -> None:
    step = LoadSurroundSweeps(sweeps_num=9, load_dim=5, use_dim=5)
    assert len(step.transform(cloud_and_sweep(tmp_path))['points']) == 100
    with pytest.raises(ValueError, match=message):
        step.transform(cloud_and_sweep(tmp_path, **changes))


def test_time_stamps_do_not_matter_where_the_time_is_not_used(tmp_path: Path) -> None:
    step = LoadSurroundSweeps(sweeps_num=9, load_dim=5, use_dim=4)
    assert step.transform(cloud_and_sweep(tmp_path, timestamp=9.5e6))['points'].shape == (100, 4)


@pytest.mark.parametrize(
    'size, message', [(0, 'is empty'), (402, '402 values are no whole'), (399.5, 'cannot be read')]
)
def test_a_file_of_points_that_is_cut_is_named(tmp_path: Path, size: float, message: str) -> None:
    """Of the key frame and of a sweep."""
    path = tmp_path / 'cut.bin'
    path.write_bytes(np.ones(1000, np.float32).tobytes()[: int(size * 4)])
    loader = LoadSurroundPoints(coord_type='LIDAR', load_dim=5, use_dim=5)
    with pytest.raises(ValueError, match=rf'cut\.bin.* {message}|cut\.bin: {message}'):
        loader.transform({'lidar_points': {'lidar_path': str(path)}})
    with pytest.raises(ValueError, match=rf'cut\.bin.* {message}|cut\.bin: {message}'):
        LoadSurroundSweeps(load_dim=5, use_dim=5).transform(cloud_and_sweep(tmp_path, lidar_path=str(path)))


def test_four_features_read_as_five_are_refused(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform((-40, -40, -2, 0), (40, 40, 1, 255), (4000, 4)).astype(np.float32)
    points.tofile(tmp_path / 'four.bin')
    where = {'lidar_points': {'lidar_path': str(tmp_path / 'four.bin')}}
    with pytest.raises(ValueError, match=r'four\.bin: read as points of 5 features.*load_dim=4'):
        LoadSurroundPoints(coord_type='LIDAR', load_dim=5, use_dim=5).transform(dict(where))
    loaded = LoadSurroundPoints(coord_type='LIDAR', load_dim=4, use_dim=4).transform(dict(where))
    np.testing.assert_array_equal(loaded['points'].tensor.numpy(), points)


def test_clouds_that_teach_nothing_are_refused(tmp_path: Path) -> None:
    """An empty key frame, which past sweeps would hide, and a cloud out of reach."""
    results = cloud_and_sweep(tmp_path)
    beyond = LiDARPoints(results['points'].tensor + 1000, points_dim=5)
    with pytest.raises(ValueError, match=r'abc, key\.bin: no point lies within 200 m of the LiDAR'):
        CheckPointCloud().transform(dict(results, points=beyond))
    results['points'] = results['points'][:0]
    with pytest.raises(ValueError, match=r'abc, key\.bin: the point cloud is empty'):
        LoadSurroundSweeps(load_dim=5, use_dim=5).transform(results)


def test_first_keyframe_without_sweeps_is_padded() -> None:
    results = {'points': LiDARPoints(np.ones((10, 5), np.float32), points_dim=5), 'timestamp': 1.0}
    loaded = LoadSurroundSweeps(sweeps_num=9, load_dim=5, use_dim=5, pad_empty_sweeps=True).transform(results)
    assert loaded['points'].tensor.shape == (100, 5)


@pytest.mark.parametrize(
    'options',
    [
        dict(use_dim=5, remove_close=True),
        dict(use_dim=[0, 1, 2, 4]),
        dict(use_dim=5, sweeps_num=2, remove_close=True),
        dict(use_dim=4, sweeps_num=2, test_mode=True),
    ],
)
@pytest.mark.parametrize('count', [None, 0, 3])
def test_sweeps_are_mmdet3ds_to_the_bit(tmp_path: Path, options: Dict[str, Any], count: Any) -> None:
    """Plain twin: mmdet3d's own step with the translations that it would need; the draws are its, too."""
    random = np.random.default_rng(0)
    results: Dict[str, Any] = {'token': 'abc', 'timestamp': 10.0}
    if count is not None:
        results['lidar_sweeps'] = []
    for number in range(count or 0):
        path = str(tmp_path / f'{number}.bin')
        random.normal(0, 3, (500, 5)).astype(np.float32).tofile(path)
        pose = np.eye(4)
        pose[:3, :3] = np.linalg.qr(random.normal(size=(3, 3)))[0]
        pose[:3, 3] = random.normal(0, 3, 3)
        points = {'lidar_path': path, 'lidar2sensor': (pose * [1, 1, np.sign(np.linalg.det(pose)), 1]).tolist()}
        results['lidar_sweeps'].append({'timestamp': 9.95 - 0.05 * number, 'lidar_points': points})
    key = random.normal(0, 3, (400, 5)).astype(np.float32)
    adapted = copy.deepcopy(results)
    for sweep in adapted.get('lidar_sweeps', ()):
        matrix = np.array(sweep['lidar_points']['lidar2sensor'])
        matrix[:3, 3] = -np.linalg.inv(matrix)[:3, 3]
        sweep['lidar_points']['lidar2sensor'] = matrix
    found = []
    for step, given in ((LoadSurroundSweeps, results), (LoadPointsFromMultiSweeps, adapted)):
        np.random.seed(3)
        given['points'] = LiDARPoints(key.copy(), points_dim=5, attribute_dims=dict(intensity=3, time=4))
        loaded = step(load_dim=5, pad_empty_sweeps=True, **options).transform(given)['points']
        found.append((loaded, np.random.uniform()))
    (ours, draw), (plain, its_draw) = found
    assert ours.tensor.numpy().tobytes() == plain.tensor.numpy().tobytes()
    assert ours.tensor.is_contiguous()
    assert (type(ours), ours.points_dim, ours.attribute_dims) == (type(plain), plain.points_dim, plain.attribute_dims)
    assert draw == its_draw


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('feature', [0, 2, 3, 4])
def test_points_that_are_not_finite_are_refused_or_dropped_and_counted(value: float, feature: int) -> None:
    cloud = np.arange(30, dtype=np.float32).reshape(6, 5)
    cloud[[1, 4], feature] = value
    results = {'token': 'abc', 'points': LiDARPoints(cloud, points_dim=5)}
    with pytest.raises(ValueError, match='sample abc, .*2 of 6 points are not finite.* drop_nonfinite=True'):
        CheckPointCloud()(dict(results))
    step = CheckPointCloud(drop_nonfinite=True)
    with pytest.warns(UserWarning, match='sample abc, .*2 of 6 points are not finite and dropped'):
        checked = step(dict(results))
    np.testing.assert_array_equal(checked['points'].tensor.numpy(), cloud[[0, 2, 3, 5]])
    assert checked['dropped_points'] == 2
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # the first sample is named, the others count
        assert step(dict(results))['dropped_points'] == 2
        assert step(dict(results, points=LiDARPoints(cloud[:1], points_dim=5)))['dropped_points'] == 0


@pytest.mark.parametrize(
    'cloud, message', [(np.full((3, 5), np.nan), 'none of the 3 points is finite'), (np.ones((0, 5)), 'empty')]
)
def test_a_cloud_of_which_nothing_is_left_is_refused(cloud: np.ndarray, message: str) -> None:
    results = {'token': 'abc', 'points': LiDARPoints(cloud.astype(np.float32), points_dim=5)}
    with pytest.raises(ValueError, match=f'sample abc, .*{message}'):
        CheckPointCloud(drop_nonfinite=True)(results)
