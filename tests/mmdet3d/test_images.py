"""Reading of image files: pixels come as stored, and every kind of damage that can be noticed is named."""

from __future__ import annotations

import os
import warnings
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Dict

import cv2
import numpy as np
import pytest
from PIL import Image

from geomim.bevdet.datasets import LoadSurroundFrames
from geomim.mmdet3d import images
from geomim.mmdet3d.images import read_image
from geomim.mmdet3d.loading import LoadSurroundImages

from ..helpers import oriented_image

CAMERA = {'cam2img': np.diag([120.0, 120.0, 1.0]), 'cam2ego': np.eye(4), 'lidar2cam': np.eye(4)}


def picture(height: int = 64, width: int = 96) -> np.ndarray:
    """(height, width, 3) uint8, smooth, without any symmetry."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 2, rows * 3, (columns + 7 * rows) // 4], axis=-1).astype(np.uint8)


def load(path: Path) -> np.ndarray:
    results = {'token': 'abc', 'images': {'CAM_A': dict(CAMERA, img_path=str(path))}}
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
    frame = dict(CAMERA, img_path=str(turned), ego2global=np.eye(4).tolist())
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
