"""Transforms that augment a surround-view sample and record exactly how; N cameras, H x W pixels, lengths metres.

Pixel convention: image coordinates are continuous, pixel (column i, row j) covers [i, i + 1) x [j, j + 1). In it the
published augmentation's matrix is exact (scaling by s is u' = s u, mirroring is u' = W - u, rotation is about the point
(W / 2, H / 2)), and a projected point belongs to the pixel floor(u), floor(v), as in ``geomim.method.depth.depth_maps``.

Registered under mmengine's root registry, so that mmdet3d, mmdet and mmseg find them by their bare names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.datasets.transforms import Pack3DDetInputs
from mmengine.registry import TRANSFORMS

from ..method.depth import depth_maps
from ..mmengine.rig import RIG_KEYS, build_rig
from .loading import image_size

IMAGE_MULTIPLE = 32  # pixels; stride of the encoder's last stage and side of a mask cell
_NEARLY_WHOLE = 0.8  # from this scale on, interpolation sees about every pixel of the image
_MOST_POINTS = 4  # per pixel, along each axis
_HALF_PIXEL = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # OpenCV puts pixel centres on whole numbers


@dataclass(frozen=True)
class ImageDraw:
    """One camera's augmentation: scale, crop offset (left, top) in pixels of the scaled image, mirroring, degrees."""

    scale: float
    left: int
    top: int
    mirror: bool
    angle: float

    def matrix(self, size: Tuple[int, int]) -> np.ndarray:
        """(3, 3) float64, pixels before -> after, for output ``size`` (H, W)."""
        height, width = size
        matrix = np.array([[self.scale, 0, -self.left], [0, self.scale, -self.top], [0, 0, 1]], dtype=np.float64)
        if self.mirror:
            matrix = np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1]]) @ matrix
        cos, sin = np.cos(np.deg2rad(self.angle)), np.sin(np.deg2rad(self.angle))
        turn = np.array([[cos, sin], [-sin, cos]])  # positive angles turn the picture counter-clockwise, v points down
        centre = np.array([width / 2, height / 2])
        about_centre = np.eye(3)
        about_centre[:2, :2] = turn
        about_centre[:2, 2] = centre - turn @ centre
        return about_centre @ matrix


def warp_image(image: np.ndarray, matrix: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """The image under ``matrix`` (3, 3), black where there is none, with output ``size`` (H, W).

    A matrix that shrinks takes an area average, against aliasing. Where that leaves a move by whole pixels, as in testing,
    nothing is interpolated. Else, as interpolating averaged pixels would blur them, the image is interpolated at several
    points per pixel, which are then averaged. The result follows the matrix either way and is about as sharp.
    """
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    times = 1
    if scale < 1:
        average, remaining = _averaging(image, matrix, scale)
        if _moves_whole_pixels(remaining, average):
            image, matrix = cv2.resize(image, average, interpolation=cv2.INTER_AREA), remaining
        else:
            times = 1 if scale >= _NEARLY_WHOLE else min(max(2, round(1 / scale)), _MOST_POINTS)
            if scale * _MOST_POINTS < 1:
                average, matrix = _averaging(image, matrix, scale * _MOST_POINTS)
                image = cv2.resize(image, average, interpolation=cv2.INTER_AREA)
    at_centres = np.linalg.inv(_HALF_PIXEL) @ np.diag([times, times, 1.0]) @ matrix @ _HALF_PIXEL
    points = (size[1] * times, size[0] * times)
    warped = cv2.warpAffine(image, at_centres[:2], points, flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0))
    return warped if times == 1 else cv2.resize(warped, (size[1], size[0]), interpolation=cv2.INTER_AREA)


def _averaging(image: np.ndarray, matrix: np.ndarray, scale: float) -> Tuple[Tuple[int, int], np.ndarray]:
    """(width, height) of the image times ``scale``, whole numbers, and the matrix from there on."""
    height, width = image.shape[:2]
    small = max(1, round(width * scale)), max(1, round(height * scale))
    return small, matrix @ np.diag([width / small[0], height / small[1], 1.0])


def _moves_whole_pixels(matrix: np.ndarray, size: Tuple[int, int]) -> bool:
    """Whether all pixels of an image of ``size`` (width, height) fall onto pixels; OpenCV tells 1 / 32 pixel apart."""
    return bool((np.abs(matrix - matrix.round())[:2] @ [*size, 1] < 1 / 64).all())


def _check_range(name: str, value: Sequence[float], lower: float, upper: float) -> Tuple[float, float]:
    if len(value) != 2 or not lower <= value[0] <= value[1] <= upper:
        raise ValueError(f'SurroundImageAug: {name} must be (low, high) within [{lower}, {upper}], got {tuple(value)}')
    return float(value[0]), float(value[1])


def _check_final_size(size: Sequence[int]) -> Tuple[int, int]:
    if len(size) != 2:
        raise ValueError(f'SurroundImageAug: final_size must be (height, width), got {tuple(size)}')
    for name, length in zip(('height', 'width'), size):
        if length != int(length) or length < 1 or length % IMAGE_MULTIPLE:
            below = int(length) // IMAGE_MULTIPLE * IMAGE_MULTIPLE
            fitting = ' or '.join(str(value) for value in (below, below + IMAGE_MULTIPLE) if value > 0)
            raise ValueError(
                f'SurroundImageAug: final_size {tuple(size)}: a {name} of {length} pixels is no multiple of '
                f'{IMAGE_MULTIPLE}; {fitting} would be'
            )
    return int(size[0]), int(size[1])


@TRANSFORMS.register_module()
class SurroundImageAug(BaseTransform):
    """Scales, crops to the bottom, mirrors and rotates every camera's image by itself, in one resampling.

    Args:
        final_size: (H, W) of the result, multiples of 32.
        resize: range of the scale, in pixels of the original image; for 1600 x 900 in the recipe.
        rotation: range of the angle, degrees, counter-clockwise, about the centre of the crop.
        flip: probability of mirroring left and right.
        bottom_crop: range of the share of the scaled height that is cut off at the bottom.
        training: random numbers (NumPy's global generator), or their fixed middle: ``test_resize``, centred, unrotated.
        test_resize: scale when not training.

    Writes:
        img (N, all of ``final_size``), img_shape, img_aug_matrix (N, 4, 4), to which the augmentation is composed.

    Raises:
        ValueError: a size that is no multiple of 32, or a range that is none.

    Source: METHOD 5; the numbers are drawn as in BEVFusion's image augmentation.
    """

    def __init__(
        self,
        final_size: Sequence[int] = (256, 704),
        resize: Sequence[float] = (0.38, 0.55),
        rotation: Sequence[float] = (-5.4, 5.4),
        flip: float = 0.5,
        bottom_crop: Sequence[float] = (0.0, 0.0),
        training: bool = True,
        test_resize: float = 0.48,
    ) -> None:
        self.final_size = _check_final_size(final_size)
        self.resize = _check_range('resize', resize, 1e-3, 1e3)
        self.rotation = _check_range('rotation', rotation, -180, 180)
        self.flip = _check_range('flip', (flip, flip), 0, 1)[0]
        self.bottom_crop = _check_range('bottom_crop', bottom_crop, 0, 1)
        self.training = training
        self.test_resize = _check_range('test_resize', (test_resize, test_resize), 1e-3, 1e3)[0]

    def draw(self, image_shape: Sequence[int]) -> ImageDraw:
        """The augmentation of one image of ``image_shape`` (H, W, ...)."""
        height, width = self.final_size
        random = np.random
        scale = random.uniform(*self.resize) if self.training else self.test_resize
        new_height, new_width = int(image_shape[0] * scale), int(image_shape[1] * scale)
        bottom = random.uniform(*self.bottom_crop) if self.training else float(np.mean(self.bottom_crop))
        spare = max(0, new_width - width)
        return ImageDraw(
            scale=scale,
            left=int(random.uniform(0, spare)) if self.training else spare // 2,
            top=int((1 - bottom) * new_height) - height,
            mirror=self.training and bool(random.uniform() < self.flip),
            angle=random.uniform(*self.rotation) if self.training else 0.0,
        )

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        images: List[np.ndarray] = []
        matrices: List[np.ndarray] = []
        for image, before in zip(results['img'], results['img_aug_matrix']):
            matrix = self.draw(image.shape).matrix(self.final_size)
            images.append(warp_image(image, matrix, self.final_size))
            recorded = np.eye(4)
            recorded[:2, :2], recorded[:2, 3] = matrix[:2, :2], matrix[:2, 2]
            matrices.append(recorded @ before)
        results['img'] = images
        results['img_shape'] = [self.final_size] * len(images)
        results['img_aug_matrix'] = np.stack(matrices).astype(np.float32)
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(final_size={self.final_size}, resize={self.resize}, rotation={self.rotation}, '
            f'flip={self.flip}, bottom_crop={self.bottom_crop}, training={self.training}, '
            f'test_resize={self.test_resize})'
        )


@TRANSFORMS.register_module()
class BEVFlip(BaseTransform):
    """Mirrors the LiDAR frame; images stay as they are, ``bev_aug_matrix`` keeps them consistent with the points.

    Args:
        flip_x: probability that x coordinates change their sign (nuScenes: x points to the right, left and right swap).
        flip_y: probability that y coordinates change their sign (nuScenes: y points ahead, front and back swap).

    Writes:
        points and, if there are any, gt_bboxes_3d (centres, yaw, velocities): mirrored copies, in which of a point's
        features only x and y change; bev_aug_matrix (4, 4), to which the mirror is composed.

    Raises:
        ValueError: a probability outside [0, 1].
    """

    def __init__(self, flip_x: float = 0.5, flip_y: float = 0.5) -> None:
        for name, value in (('flip_x', flip_x), ('flip_y', flip_y)):
            if not 0 <= value <= 1:
                raise ValueError(f'BEVFlip: {name} is a probability, it must lie in [0, 1], got {value}')
        self.flip_x = flip_x
        self.flip_y = flip_y

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        mirror = np.eye(4, dtype=np.float32)
        # mmdet3d's words: 'vertical' mirrors x, 'horizontal' mirrors y
        directions: List[str] = []
        for axis, (direction, probability) in enumerate((('vertical', self.flip_x), ('horizontal', self.flip_y))):
            if np.random.uniform() < probability:
                mirror[axis, axis] = -1
                directions.append(direction)
        for key in ('points', 'gt_bboxes_3d'):
            if key in results:
                results[key] = results[key].clone()
                for direction in directions:
                    results[key].flip(direction)
        results['bev_aug_matrix'] = mirror @ results['bev_aug_matrix']
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(flip_x={self.flip_x}, flip_y={self.flip_y})'


@TRANSFORMS.register_module()
class PointsToDepthMap(BaseTransform):
    """Projects the points into the augmented images; goes after every image and BEV augmentation.

    For pipelines that want the depth maps themselves: without it the model makes the same ones on its device.

    Writes:
        depth_map (N, H, W) float32, metres along the optical axis, 0 = no point.

    Raises:
        ValueError: images of different sizes.
    """

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        maps = depth_maps([results['points'].tensor], build_rig([results]), image_size(results))
        results['depth_map'] = maps[0].numpy()
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


@TRANSFORMS.register_module()
class PackGeoMIMInputs(Pack3DDetInputs):
    """mmdet3d's packing, with the geometry that ``GeoMIMDataPreprocessor`` needs.

    Args:
        keys: what to pack; of inputs, img (N, 3, H, W), points (M, F) and, where a transform has made one, depth_map
            (N, H, W), and any of mmdet3d's annotation keys.
        meta_keys: what ``data_samples`` carry.

    Raises:
        ValueError: img or points that no transform has written, or images of different sizes.
    """

    INPUTS_KEYS = [*Pack3DDetInputs.INPUTS_KEYS, 'depth_map']

    def __init__(
        self,
        keys: Sequence[str] = ('img', 'points', 'depth_map'),
        meta_keys: Sequence[str] = (*RIG_KEYS, 'sample_idx', 'token', 'lidar_path', 'img_path', 'dropped_points'),
    ) -> None:
        super().__init__(keys=tuple(keys), meta_keys=tuple(meta_keys))

    def pack_single_results(self, results: Dict[str, Any]) -> Dict[str, Any]:
        absent = [key for key in self.keys if key in Pack3DDetInputs.INPUTS_KEYS and key not in results]
        if absent:
            raise ValueError(f'PackGeoMIMInputs: no earlier transform has written {", ".join(absent)}')
        if 'img' in self.keys:
            image_size(results)
        packed: Dict[str, Any] = super().pack_single_results(results)
        if 'depth_map' in packed['inputs']:
            packed['inputs']['depth_map'] = torch.as_tensor(packed['inputs']['depth_map'])
        return packed
