"""Loading: cameras, images and sweeps arrive in order, and what is missing or broken is named."""

from __future__ import annotations

import os
import warnings
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Dict

import cv2
import numpy as np
import pytest
from mmdet3d.structures import LiDARPoints
from PIL import Image

from geomim.bevdet.datasets import LoadSurroundFrames
from geomim.mmdet3d import images
from geomim.mmdet3d.images import read_image
from geomim.mmdet3d.loading import LoadCameraRig, LoadSurroundImages, LoadSurroundSweeps

from ..helpers import oriented_image

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


def picture(height: int = 64, width: int = 96) -> np.ndarray:
    """(height, width, 3) uint8, smooth, without any symmetry."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 2, rows * 3, (columns + 7 * rows) // 4], axis=-1).astype(np.uint8)


def load(path: Path) -> np.ndarray:
    results = {'token': 'abc', 'images': {'CAM_A': dict(camera(), img_path=str(path))}}
    return LoadSurroundImages().transform(results)['img'][0]


@pytest.mark.parametrize('orientation', range(2, 9))
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_pixels_are_taken_as_stored(tmp_path: Path, kind: str, orientation: int) -> None:
    """Intrinsics refer to them; metadata that tell viewers to turn or mirror the picture do not count."""
    plain, turned = tmp_path / 'plain', tmp_path / 'turned'
    plain.write_bytes(oriented_image(picture(), 1, kind))
    turned.write_bytes(oriented_image(picture(), orientation, kind))
    assert Image.open(turned).getexif()[274] == orientation
    np.testing.assert_array_equal(load(turned), load(plain))
    assert np.abs(load(turned).astype(int) - picture()).mean() < 8  # not turned together either
    frame = dict(camera(), img_path=str(turned), ego2global=np.eye(4).tolist())
    frames = LoadSurroundFrames(dict(cams=['CAM_A'])).transform({'images': {'CAM_A': frame}})['frames']
    np.testing.assert_array_equal(frames[0]['img'][0], load(plain))


def test_other_kinds_of_images_become_eight_bit_bgr_as_before(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    kinds = {
        'grey.png': random.integers(0, 256, (32, 48), dtype=np.uint8),
        'grey.jpg': picture()[..., 0],
        'alpha.png': random.integers(0, 256, (32, 48, 4), dtype=np.uint8),
        'deep.png': random.integers(0, 65536, (32, 48, 3), dtype=np.uint16),
        'deep_grey.png': random.integers(0, 65536, (32, 48), dtype=np.uint16),
        'colour.bmp': picture(),
        'colour.tiff': picture(),
    }
    for name, image in kinds.items():
        assert cv2.imwrite(str(tmp_path / name), image)
        np.testing.assert_array_equal(load(tmp_path / name), cv2.imread(str(tmp_path / name), cv2.IMREAD_COLOR))


def with_thumbnail(jpeg: bytes, thumbnail: bytes) -> bytes:
    """The JPEG with a segment of metadata that holds another one."""
    return jpeg[:2] + b'\xff\xe1' + (len(thumbnail) + 8).to_bytes(2, 'big') + b'Exif\0\0' + thumbnail + jpeg[2:]


def jpeg_kinds() -> Dict[str, bytes]:
    """Whole files: plain, in several scans, with marks for restarts, with a thumbnail, and with fill bytes."""
    image, settings = picture(128, 192), [cv2.IMWRITE_JPEG_QUALITY, 95]
    encoded = {
        'plain': cv2.imencode('.jpg', image, settings)[1].tobytes(),
        'scans': cv2.imencode('.jpg', image, [*settings, cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes(),
        'restarts': cv2.imencode('.jpg', image, [*settings, cv2.IMWRITE_JPEG_RST_INTERVAL, 4])[1].tobytes(),
    }
    thumbnail = cv2.imencode('.jpg', image[::4, ::4])[1].tobytes()
    encoded['thumbnail'] = with_thumbnail(encoded['plain'], thumbnail)
    encoded['thumbnail and scans'] = with_thumbnail(encoded['scans'], thumbnail)
    encoded['filled'] = encoded['plain'][:2] + b'\xff\xff' + encoded['plain'][2:]
    return encoded


@pytest.mark.parametrize('kind', list(jpeg_kinds()))
@pytest.mark.parametrize('behind', ['nothing', 'zeros', 'marks', 'noise', 'preview', 'cut preview'])
def test_bytes_behind_the_end_of_an_image_do_not_count(tmp_path: Path, kind: str, behind: str) -> None:
    whole = jpeg_kinds()
    tails = {
        'nothing': b'',
        'zeros': bytes(4096),
        'marks': b'\xff\xda' * 20,
        'noise': np.random.default_rng(1).integers(0, 256, 200_000, dtype=np.uint8).tobytes(),
        'preview': whole['plain'],
        'cut preview': whole['plain'][:-300],
    }
    path = tmp_path / 'image.jpg'
    path.write_bytes(whole[kind] + tails[behind])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        loaded = load(path)
    np.testing.assert_array_equal(loaded, cv2.imdecode(np.frombuffer(whole[kind], np.uint8), cv2.IMREAD_COLOR))


def test_bytes_behind_the_end_of_a_png_do_not_count(tmp_path: Path) -> None:
    encoded = cv2.imencode('.png', picture())[1].tobytes()
    (tmp_path / 'image.png').write_bytes(encoded + b'IDAT' * 100)
    np.testing.assert_array_equal(load(tmp_path / 'image.png'), picture())
    for length in range(len(encoded) // 10, len(encoded) - 12, len(encoded) // 10):
        (tmp_path / 'image.png').write_bytes(encoded[:length])
        with pytest.raises(ValueError, match='truncated'):
            load(tmp_path / 'image.png')


@pytest.mark.parametrize('kind', list(jpeg_kinds()))
@pytest.mark.parametrize('preview', [False, True])
def test_a_jpeg_cut_anywhere_is_refused(tmp_path: Path, kind: str, preview: bool) -> None:
    """Even where the decoder would fill up with grey, and where another image lies inside it or behind it."""
    whole, path = jpeg_kinds(), tmp_path / 'image.jpg'
    data, scan = whole[kind], whole[kind].rfind(b'\xff\xda')
    first = data.find(b'\xff\xda', 2 + int.from_bytes(data[4:6], 'big') if 'thumbnail' in kind else 0)
    for length in np.linspace(first + 2, len(data) - 2, 12).astype(int):
        path.write_bytes(data[:length] + (whole['plain'] if preview else b''))
        with pytest.raises(ValueError, match='CAM_A: image .*image.jpg is truncated'):
            load(path)
    assert 0 < first <= scan
    for length in np.linspace(10, first, 8).astype(int):  # before the scan nothing can be decoded
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match='CAM_A: image .*image.jpg (is truncated|cannot be decoded)'):
            load(path)


def damaged(data: bytes, count: int, seed: int, zeros: bool) -> bytes:
    """The JPEG with ``count`` bytes of its only scan overwritten."""
    random = np.random.default_rng(seed)
    at = int(random.integers(data.rfind(b'\xff\xda') + 20, len(data) - count - 100))
    new = bytes(count) if zeros else random.integers(0, 256, count, dtype=np.uint8).tobytes()
    return data[:at] + new + data[at + count :]


@pytest.mark.parametrize('zeros', [False, True])
def test_overwritten_bytes_are_named(tmp_path: Path, zeros: bool, capfd: Any) -> None:
    """In the words of the decoder, which itself would not say which image; once for each file."""
    noise = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)
    whole = cv2.imencode('.jpg', cv2.GaussianBlur(noise, (5, 5), 0), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    for seed in range(10):
        path = tmp_path / f'{seed}.jpg'
        path.write_bytes(damaged(whole, 512, seed, zeros))
        with pytest.warns(UserWarning, match=f'abc, camera CAM_A: image .*{seed}.jpg is damaged.*Corrupt JPEG data'):
            assert load(path).shape == (128, 192, 3)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('default')
        for _ in range(3):
            load(path)
    assert len(seen) == 1
    assert capfd.readouterr().err == ''


def test_damage_is_told_of_the_right_file_in_threads_and_beside_forks(tmp_path: Path) -> None:
    whole = cv2.imencode('.jpg', picture(300, 400), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    for number in range(60):
        data = damaged(whole, 512, 0, True) if number % 7 == 0 else whole
        (tmp_path / f'{number}.jpg').write_bytes(data)
    with warnings.catch_warnings(record=True) as seen, ThreadPool(4) as pool:
        warnings.simplefilter('always')
        output = os.fstat(2).st_ino
        reading = pool.map_async(read_image, [str(tmp_path / f'{number}.jpg') for number in range(60)])
        while not reading.ready():
            child = os.fork()
            if child == 0:
                try:
                    read_image(str(tmp_path / '1.jpg'))
                finally:
                    os._exit(int(os.fstat(2).st_ino != output))
            assert os.waitpid(child, 0)[1] == 0
        reading.get()
    named = {
        int(str(one.message).partition('.jpg')[0].rpartition('/')[2]) for one in seen if one.category is UserWarning
    }
    assert named == set(range(0, 60, 7))


def test_what_others_write_meanwhile_is_not_lost(tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), picture())
    decode = cv2.imdecode

    def noisy(*arguments: Any) -> np.ndarray:
        os.write(2, b'another thread: hello\n')
        return decode(*arguments)

    monkeypatch.setattr(images.cv2, 'imdecode', noisy)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        np.testing.assert_array_equal(read_image(str(path)), picture())
    assert capfd.readouterr().err == 'another thread: hello\n'


@pytest.mark.parametrize('call', ['tempfile.TemporaryFile', 'os.dup'])
def test_images_are_read_where_nothing_can_be_redirected(tmp_path: Path, monkeypatch: Any, call: str) -> None:
    def full(*_: Any) -> None:
        raise OSError('none')

    cv2.imwrite(str(tmp_path / 'image.png'), picture())
    monkeypatch.setattr(f'geomim.mmdet3d.images.{call}', full)
    np.testing.assert_array_equal(read_image(str(tmp_path / 'image.png')), picture())


def test_sizes_beyond_reason_are_named(tmp_path: Path) -> None:
    data = bytearray(cv2.imencode('.png', picture())[1].tobytes())
    data[16:24] = (2**31 - 1).to_bytes(4, 'big') * 2
    (tmp_path / 'image.png').write_bytes(bytes(data))
    with pytest.raises(ValueError, match='CAM_A: image .*image.png cannot be decoded'):
        load(tmp_path / 'image.png')


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


def test_first_keyframe_without_sweeps_is_padded() -> None:
    results = {'points': LiDARPoints(np.ones((10, 5), np.float32), points_dim=5), 'timestamp': 1.0}
    loaded = LoadSurroundSweeps(sweeps_num=9, load_dim=5, use_dim=5, pad_empty_sweeps=True).transform(results)
    assert loaded['points'].tensor.shape == (100, 5)
