"""Transforms that load a surround-view sample: calibration, images, LiDAR sweeps; N cameras, lengths metres.

Registered under mmengine's root registry, so that mmdet3d, mmdet and mmseg find them by their bare names.
"""

from __future__ import annotations

import warnings
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import mmcv
import mmengine.fileio
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.datasets.transforms import LoadPointsFromMultiSweeps
from mmengine.registry import TRANSFORMS

from ..method.depth import check_points, finite_points
from ..mmengine.rig import sample_name

# First bytes of a format, the bytes that start its image data, the bytes that end it
_FORMATS = ((b'\xff\xd8', b'\xff\xda', b'\xff\xd9'), (b'\x89PNG', b'IDAT', b'IEND'))


def _calibration(results: Mapping[str, Any], name: str, key: str) -> np.ndarray:
    """One matrix of one camera, float64, checked for presence and finite values."""
    camera = results['images'][name]
    where = f'{sample_name(results)}, camera {name}'
    if key not in camera:
        hint = ', or LoadCameraRig(lidar_is_ego=True) where points are in the ego frame' if key == 'cam2ego' else ''
        raise ValueError(
            f"{where}: no '{key}' in the info file, there are {sorted(camera)}; mmdet3d's converter writes it{hint}"
        )
    matrix = np.asarray(camera[key], dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise ValueError(f'{where}: {key} holds values that are not finite: {matrix.tolist()}')
    return matrix


def _intrinsics(results: Mapping[str, Any], name: str) -> np.ndarray:
    matrix = _calibration(results, name, 'cam2img')
    where = f'{sample_name(results)}, camera {name}'
    if matrix.shape not in ((3, 3), (3, 4), (4, 4)):
        raise ValueError(f'{where}: cam2img has shape {matrix.shape}, expected (3, 3), (3, 4) or (4, 4) in pixels')
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise ValueError(f'{where}: focal lengths {matrix[0, 0]}, {matrix[1, 1]} pixels, they must be positive')
    return matrix[:3, :3]


def _pose(results: Mapping[str, Any], name: str, key: str) -> np.ndarray:
    matrix = _calibration(results, name, key)
    if matrix.shape != (4, 4):
        raise ValueError(f'{sample_name(results)}, camera {name}: {key} has shape {matrix.shape}, expected (4, 4)')
    return matrix


@TRANSFORMS.register_module()
class LoadCameraRig(BaseTransform):
    """Selects and orders the cameras and collects their calibration.

    Goes BEFORE image loading: the selection is made in ``results['images']``, whose order image loaders follow.

    Args:
        cameras: names of the cameras to use, in order; None takes all, in the info file's order.
        lidar_is_ego: the data's points are in the ego frame, as Waymo's; camera-to-ego is then the inverse of lidar2cam.

    Writes:
        cam_names (N names), cam2img (N, 3, 3) pixels, cam2ego and lidar2cam (N, 4, 4), all float64, and the identity as
        img_aug_matrix (N, 4, 4) and bev_aug_matrix (4, 4), float32.

    Raises:
        ValueError: a repeated or absent camera, or calibration that is absent, misshapen, not finite, or without a
            positive focal length.
    """

    def __init__(self, cameras: Optional[Sequence[str]] = None, lidar_is_ego: bool = False) -> None:
        repeated = sorted({name for name in cameras or () if list(cameras or ()).count(name) > 1})
        if repeated:
            raise ValueError(f'LoadCameraRig: cameras={list(cameras or ())} names {", ".join(repeated)} more than once')
        if cameras is not None and len(cameras) == 0:
            raise ValueError('LoadCameraRig: cameras=[] leaves no camera; None takes all')
        self.cameras = None if cameras is None else tuple(cameras)
        self.lidar_is_ego = lidar_is_ego

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        if 'images' not in results:
            raise ValueError(f"{sample_name(results)}: no 'images' in the info file; cameras are needed")
        names = list(results['images']) if self.cameras is None else list(self.cameras)
        absent = [name for name in names if name not in results['images']]
        if absent:
            raise ValueError(
                f'{sample_name(results)}: no camera {", ".join(absent)}; the info file has {list(results["images"])}'
            )
        if not names:
            raise ValueError(f"{sample_name(results)}: 'images' in the info file holds no camera")
        results['images'] = {name: results['images'][name] for name in names}
        results['cam_names'] = names
        results['cam2img'] = np.stack([_intrinsics(results, name) for name in names])
        results['lidar2cam'] = np.stack([_pose(results, name, 'lidar2cam') for name in names])
        if self.lidar_is_ego:
            results['cam2ego'] = np.linalg.inv(results['lidar2cam'])
        else:
            results['cam2ego'] = np.stack([_pose(results, name, 'cam2ego') for name in names])
        results['img_aug_matrix'] = np.tile(np.eye(4, dtype=np.float32), (len(names), 1, 1))
        results['bev_aug_matrix'] = np.eye(4, dtype=np.float32)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(cameras={self.cameras}, lidar_is_ego={self.lidar_is_ego})'


def _cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end mark; OpenCV decodes such a file without an error and fills up with grey."""
    for start, scan, end in _FORMATS:
        if data.startswith(start):
            return data.rfind(end) < data.rfind(scan)
    return False


@TRANSFORMS.register_module()
class LoadSurroundImages(BaseTransform):
    """Reads one image a camera, in the order of ``results['images']``; sizes may differ between the cameras.

    Stands in for mmdet3d's ``LoadMultiViewImageFromFiles``, which pads to the largest image, fails obscurely on an
    unreadable one and takes a truncated one as it is.

    Args:
        backend_args: of ``mmengine.fileio``, for files that are not on a local disk.

    Writes:
        img (N arrays (H, W, 3), uint8 BGR), img_path (N paths), img_shape and ori_shape (N pairs (H, W)), num_views.

    Raises:
        ValueError: a file that is absent, unreadable, truncated or no image; names camera and path.
    """

    def __init__(self, backend_args: Optional[Dict[str, Any]] = None) -> None:
        self.backend_args = backend_args

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        cameras = results['images']
        results['img'] = [self._read(results, name) for name in cameras]
        results['img_path'] = [camera['img_path'] for camera in cameras.values()]
        results['img_shape'] = [image.shape[:2] for image in results['img']]
        results['ori_shape'] = list(results['img_shape'])
        results['num_views'] = len(cameras)
        return results

    def _read(self, results: Mapping[str, Any], name: str) -> np.ndarray:
        path = results['images'][name].get('img_path')
        where = f'{sample_name(results)}, camera {name}: image {path}'
        if path is None:
            raise ValueError(f"{where}: no 'img_path' in the info file")
        try:
            data = mmengine.fileio.get(path, backend_args=self.backend_args)
        except OSError as error:
            raise ValueError(f'{where} cannot be read: {error}') from error
        if not data:
            raise ValueError(f'{where} is an empty file')
        if _cut_short(data):
            raise ValueError(f'{where} is truncated: its end is missing after {len(data)} bytes')
        image = mmcv.imfrombytes(data, flag='color', backend='cv2')
        if image is None:
            raise ValueError(f'{where} cannot be decoded ({len(data)} bytes starting with {data[:8]!r})')
        return image

    def __repr__(self) -> str:
        return f'{type(self).__name__}(backend_args={self.backend_args})'


def _as_subtracted(sweep: Mapping[str, Any]) -> Dict[str, Any]:
    """The sweep with its ``lidar2sensor`` [R | t] replaced with [R | R^-1 t], which mmdet3d's loader takes for t."""
    lidar2sensor = np.asarray(sweep['lidar_points']['lidar2sensor'], dtype=np.float64)
    adapted = lidar2sensor.copy()
    adapted[:3, 3] = -np.linalg.inv(lidar2sensor)[:3, 3]
    return dict(sweep, lidar_points=dict(sweep['lidar_points'], lidar2sensor=adapted))


@TRANSFORMS.register_module()
class LoadSurroundSweeps(LoadPointsFromMultiSweeps):
    """mmdet3d's ``LoadPointsFromMultiSweeps`` (same arguments) that puts past sweeps where they belong.

    A sweep's point p lies at R^-1 p - R^-1 t in the key frame, for lidar2sensor = [R | t]; mmdet3d 1.4 computes
    R^-1 p - t, which is off by decimetres when the vehicle turns (open-mmlab/mmdetection3d issue 3054).
    """

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        sweeps: Optional[List[Dict[str, Any]]] = results.get('lidar_sweeps')
        if sweeps is None:
            return super().transform(results)
        loaded = super().transform(dict(results, lidar_sweeps=[_as_subtracted(sweep) for sweep in sweeps]))
        loaded['lidar_sweeps'] = sweeps
        return loaded


@TRANSFORMS.register_module()
class CheckPointCloud(BaseTransform):
    """Refuses an empty cloud and values that are not finite.

    Goes before ``PointsRangeFilter``, which drops NaN coordinates without a word.

    Args:
        drop_nonfinite: drop points with values that are not finite, as drivers leave for beams without an echo, instead;
            warns at the first ones.

    Writes:
        dropped_points, their number, with ``drop_nonfinite``.

    Raises:
        ValueError: names the sample, the LiDAR file and the first bad row.
    """

    def __init__(self, drop_nonfinite: bool = False) -> None:
        self.drop_nonfinite = drop_nonfinite
        self._warned = False

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        points, source = results['points'], point_source(results)
        if not self.drop_nonfinite:
            check_points(points.tensor, source)
            return results
        finite = finite_points(points.tensor, source)
        dropped = results['dropped_points'] = int((~finite).sum())
        results['points'] = points[finite]
        if dropped and not self._warned:
            self._warned = True
            warnings.warn(
                f'{source}: {dropped} of {len(finite)} points are not finite and dropped; dropped_points of a sample counts them',
                stacklevel=2,
            )
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(drop_nonfinite={self.drop_nonfinite})'


def point_source(results: Mapping[str, Any]) -> str:
    """How messages call the point cloud of a sample."""
    return f'{sample_name(results)}, {results.get("lidar_path", "points without a path")}'


def image_size(results: Mapping[str, Any]) -> Tuple[int, int]:
    """(H, W) that all images of a sample share.

    Raises:
        ValueError: images of different sizes.
    """
    sizes = {name: tuple(image.shape[:2]) for name, image in zip(results['cam_names'], results['img'])}
    if len(set(sizes.values())) != 1:
        raise ValueError(
            f'{sample_name(results)}: images of different sizes (H, W), {sizes}; SurroundImageAug brings them to one'
        )
    return next(iter(sizes.values()))
