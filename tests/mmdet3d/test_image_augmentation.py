"""Image augmentation: pictures follow the recorded matrices, and the numbers are those of the published recipe."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, Dict, List, Tuple

import cv2
import numpy as np
import pytest
from PIL import Image

from geomim.bevdet.datasets import SurroundFramesAug
from geomim.mmdet3d.transforms import ImageDraw, SurroundImageAug, warp_image

FRAME = Path(os.environ.get('GEOMIM_NUSCENES_FRAME', Path(__file__).parents[2].parent / 'shared/data/nuscenes_frame'))


def make_results(size: tuple = (128, 192)) -> Dict[str, Any]:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(3)]
    return {'img': images, 'img_aug_matrix': np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))}


@pytest.mark.parametrize('size', [(900, 1600), (450, 800), (256, 400)])
@pytest.mark.parametrize('seed', range(4))
def test_markers_land_where_the_matrix_says(size: tuple, seed: int) -> None:
    random = np.random.default_rng(seed)
    scale = 800 / size[1]
    aug = SurroundImageAug((256, 704), resize=(0.8 * scale, 1.1 * scale), rotation=(-20, 20))
    np.random.seed(seed)
    seen = 0
    for _ in range(20):
        u, v = random.uniform(0.1, 0.9, 2) * size[::-1]
        columns, rows = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
        blob = 250 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * (4 / scale) ** 2))
        image = np.repeat(blob.astype(np.float32)[..., None], 3, -1)
        results = aug.transform({'img': [image], 'img_aug_matrix': np.eye(4, dtype=np.float32)[None]})
        matrix = results['img_aug_matrix'][0]
        expected = matrix[:2, :2] @ [u, v] + matrix[:2, 3]
        if not (15 < expected[0] < 689 and 15 < expected[1] < 241):
            continue
        seen += 1
        out = results['img'][0][..., 0]
        columns, rows = np.meshgrid(np.arange(704) + 0.5, np.arange(256) + 0.5)
        centroid = np.array([(out * columns).sum(), (out * rows).sum()]) / out.sum()
        assert np.abs(centroid - expected).max() < 0.15
    assert seen >= 3


@pytest.mark.parametrize('mirror', [False, True])
@pytest.mark.parametrize('angle', [0.0, 5.4, -3.0])
def test_image_and_matrix_equal_the_step_by_step_augmentation(mirror: bool, angle: float) -> None:
    """Twin: PIL's scaling, cropping, mirroring and rotating one after the other, and the matrix of each step."""
    columns, rows = np.meshgrid(np.linspace(0, 9, 800), np.linspace(0, 7, 450))
    image = np.stack([127 + 60 * np.sin(columns + i) + 60 * np.cos(rows * (i + 1)) for i in range(3)], -1).astype(
        np.uint8
    )
    height, width, scale, left, top = 128, 256, 0.5, 61, 90
    draw = ImageDraw(scale, left, top, mirror, angle)
    twin = Image.fromarray(image).resize((400, 225)).crop((left, top, left + width, top + height))
    steps = [np.diag([scale, scale, 1.0]), np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]])]
    if mirror:
        twin = twin.transpose(Image.FLIP_LEFT_RIGHT)
        steps.append(np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1]]))
    twin = twin.rotate(angle, Image.BILINEAR)
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    there = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
    steps.append(there @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) @ np.linalg.inv(there))
    expected = np.eye(3)
    for step in steps:
        expected = step @ expected
    matrix = draw.matrix((height, width))
    np.testing.assert_allclose(matrix, expected, atol=1e-9)
    difference = np.abs(warp_image(image, matrix, (height, width)).astype(float) - np.asarray(twin))
    # Where the rotated crop ends PIL shows black, the single resampling shows the image
    known = np.array(Image.new('L', (width, height), 255).rotate(angle, Image.BILINEAR))
    held = cv2.erode(np.pad(known, 1), np.ones((3, 3), np.uint8))[1:-1, 1:-1] == 255
    assert held.mean() > 0.8
    assert difference[held].max() <= 4
    assert difference[held].mean() < 0.7


def test_fine_stripes_do_not_alias() -> None:
    stripes = np.zeros((900, 1600, 3), np.uint8)
    stripes[:, ::2] = 255
    out = warp_image(stripes, ImageDraw(0.4, 0, 100, False, 0.0).matrix((256, 640)), (256, 640))
    assert abs(float(out.mean()) - 127.5) < 3
    assert out.std() < 30
    turned = warp_image(stripes, ImageDraw(0.45, 0, 100, False, 3.0).matrix((256, 640)), (256, 640))[20:-20, 20:-20]
    assert abs(float(turned.mean()) - 127.5) < 3
    assert turned.std() < 30


@functools.lru_cache(maxsize=None)
def scene() -> List[np.ndarray]:
    """A (900, 1600, 3) uint8 picture like a photograph: amplitudes that fall with the frequency, blurred by a lens."""
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(900)[:, None], np.fft.rfftfreq(1600)[None])
    frequency[0, 0] = 1
    grey = np.fft.irfft2(np.fft.rfft2(random.normal(size=(900, 1600))) / frequency, (900, 1600))
    grey = cv2.GaussianBlur(128 + 40 * grey / grey.std(), (0, 0), 0.7)
    return [np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)]


@functools.lru_cache(maxsize=None)
def real_scene() -> List[np.ndarray]:
    files = sorted(FRAME.glob('*.jpg'))
    if not files:
        pytest.skip(f'no nuScenes keyframe in {FRAME}; set GEOMIM_NUSCENES_FRAME to a folder with one')
    return [cv2.imread(str(file)) for file in files]


def in_pretraining(image: np.ndarray, scale: float, size: Tuple[int, int], training: bool) -> Tuple[Any, Any]:
    step = SurroundImageAug(size, resize=(scale, scale), test_resize=scale, training=training)
    results = step.transform({'img': [image], 'img_aug_matrix': np.eye(4)[None]})
    return results['img'][0], results['img_aug_matrix'][0].astype(np.float64)


def in_finetuning(image: np.ndarray, scale: float, size: Tuple[int, int], training: bool) -> Tuple[Any, Any]:
    offset = scale - size[1] / image.shape[1]
    config = dict(input_size=size, resize=(offset, offset), resize_test=offset)
    frame = {'img': [image], 'img_aug_matrix': np.eye(4)[None], 'cam_names': ['CAM_A']}
    frame = SurroundFramesAug(config, training).transform({'frames': [frame]})['frames'][0]
    return frame['img'][0], frame['img_aug_matrix'][0]


def sharpness(image: np.ndarray, matrix: np.ndarray, shape: Tuple[int, int]) -> float:
    """Variance of the Laplacian where the result (H, W, 3) shows the picture of ``shape`` (H, W), off its border."""
    height, width = image.shape[:2]
    pixels = np.stack([*np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)], axis=-1)
    before = (pixels - matrix[:2, 3]) @ np.linalg.inv(matrix[:2, :2]).T
    reach = 4 / np.sqrt(abs(np.linalg.det(matrix[:2, :2])))  # pixels of the picture
    inside = ((before > reach) & (before < np.array(shape)[::-1] - reach)).all(axis=-1)
    inside[:2], inside[-2:], inside[:, :2], inside[:, -2:] = False, False, False, False
    return float(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.CV_64F)[inside].var())


@pytest.mark.parametrize('augmented', [in_pretraining, in_finetuning])
@pytest.mark.parametrize('images', [scene, real_scene])
@pytest.mark.parametrize(
    'scale, size',
    [
        (0.2, (128, 256)),
        (0.38, (256, 704)),
        (0.44, (256, 704)),
        (0.48, (256, 704)),
        (0.55, (256, 704)),
        (0.7, (256, 704)),
        (0.88, (512, 1408)),
    ],
)
def test_training_images_are_as_sharp_as_test_images(augmented: Any, images: Any, scale: float, size: Any) -> None:
    """Published steps give 1.13 on photographs: each pixel is one of the turned picture, with jagged edges."""
    np.random.seed(0)
    trained, tested = 0.0, 0.0
    for image in images():
        tested += sharpness(*augmented(image, scale, size, False), image.shape[:2])
        trained += np.mean([sharpness(*augmented(image, scale, size, True), image.shape[:2]) for _ in range(2)])
    assert 0.85 < trained / tested < 1.15


def test_recorded_matrix_has_the_published_form() -> None:
    np.random.seed(1)
    results = SurroundImageAug((64, 96), resize=(0.6, 0.9)).transform(make_results())
    for matrix in results['img_aug_matrix']:
        np.testing.assert_array_equal(matrix[2], [0, 0, 1, 0])
        np.testing.assert_array_equal(matrix[3], [0, 0, 0, 1])
        np.testing.assert_array_equal(matrix[:2, 2], [0, 0])
        scale = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
        assert 0.6 <= scale <= 0.9
        np.testing.assert_allclose(matrix[:2, :2] @ matrix[:2, :2].T, scale**2 * np.eye(2), atol=1e-5)
    assert results['img_aug_matrix'].dtype == np.float32
    assert not np.allclose(results['img_aug_matrix'][0], results['img_aug_matrix'][1])
    assert [image.shape for image in results['img']] == [(64, 96, 3)] * 3


def test_draws_stay_in_the_published_ranges() -> None:
    np.random.seed(0)
    draws = [SurroundImageAug(bottom_crop=(0.0, 0.1)).draw((900, 1600)) for _ in range(300)]
    for draw in draws:
        new_height, new_width = int(900 * draw.scale), int(1600 * draw.scale)
        assert 0.38 <= draw.scale <= 0.55
        assert 0 <= draw.left <= max(0, new_width - 704)
        assert int(0.9 * new_height) - 256 <= draw.top <= new_height - 256
        assert abs(draw.angle) <= 5.4
    assert 100 < sum(draw.mirror for draw in draws) < 200


def test_testing_is_centred_and_repeatable() -> None:
    aug = SurroundImageAug(training=False)
    assert aug.draw((900, 1600)) == ImageDraw(0.48, 32, 176, False, 0.0)
    image = np.random.default_rng(0).integers(0, 256, (900, 1600, 3), dtype=np.uint8)
    out = aug.transform({'img': [image], 'img_aug_matrix': np.eye(4)[None]})['img'][0]
    small = cv2.resize(image, (768, 432), interpolation=cv2.INTER_AREA)
    assert np.abs(out.astype(int) - small[176:432, 32:736]).max() <= 1


def test_augmentation_follows_numpys_seed() -> None:
    runs = []
    for seed in (3, 3, 4):
        np.random.seed(seed)
        runs.append(SurroundImageAug((64, 96), resize=(0.6, 0.9)).transform(make_results())['img_aug_matrix'])
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.allclose(runs[0], runs[2])


def test_matrices_compose() -> None:
    first, second = SurroundImageAug((96, 160), resize=(0.8, 0.9)), SurroundImageAug((64, 96), resize=(0.6, 0.7))
    np.random.seed(0)
    both = second.transform(first.transform(make_results()))['img_aug_matrix']
    np.random.seed(0)
    one = first.transform(make_results())
    before = one['img_aug_matrix'].copy()
    one['img_aug_matrix'] = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    after = second.transform(one)['img_aug_matrix']
    np.testing.assert_allclose(both, after @ before, atol=1e-4)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'final_size': (250, 704)}, 'height of 250 .* 32; 224 or 256'),
        ({'final_size': (256, 700)}, 'width of 700 .* 32; 672 or 704'),
        ({'final_size': (20, 704)}, 'height of 20 .* 32; 32 would be'),
        ({'final_size': (256,)}, r'\(height, width\)'),
        ({'resize': (0.5, 0.4)}, r'resize .*\(0.5, 0.4\)'),
        ({'resize': (0.0, 0.4)}, 'resize'),
        ({'flip': 1.5}, 'flip .*1.5'),
        ({'test_resize': -0.4}, 'test_resize'),
        ({'rotation': (float('nan'), 3)}, 'rotation'),
    ],
)
def test_bad_augmentation_is_refused(arguments: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SurroundImageAug(**arguments)
