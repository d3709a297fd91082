"""Transforms that load a surround-view sample: calibration, images, LiDAR sweeps; N cameras, lengths metres.

Registered under mmengine's root registry, so that mmdet3d, mmdet and mmseg find them by their bare names.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.datasets.transforms import LoadPointsFromFile, LoadPointsFromMultiSweeps
from mmengine.registry import TRANSFORMS

from ..adapter.bad_samples import UnreadableFile
from ..adapter.checks import LONGEST_GAP, WarnOnce, check_file, check_past, check_poses, check_reach, check_rig
from ..method.depth import check_cloud, check_points, finite_points
from ..mmengine.rig import sample_name
from .images import read_image


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
        ValueError: a repeated or absent camera, or calibration that is absent, misshapen, not finite, without a
            positive focal length, or refused by :func:`geomim.adapter.checks.check_rig`.
    """

    def __init__(self, cameras: Optional[Sequence[str]] = None, lidar_is_ego: bool = False) -> None:
        repeated = sorted({name for name in cameras or () if list(cameras or ()).count(name) > 1})
        if repeated:
            raise ValueError(f'LoadCameraRig: cameras={list(cameras or ())} names {", ".join(repeated)} more than once')
        if cameras is not None and len(cameras) == 0:
            raise ValueError('LoadCameraRig: cameras=[] leaves no camera; None takes all')
        self.cameras = None if cameras is None else tuple(cameras)
        self.lidar_is_ego = lidar_is_ego
        self._warn = WarnOnce()

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
        poses = None if self.lidar_is_ego else np.stack([_pose(results, name, 'cam2ego') for name in names])
        check_rig(
            *(torch.from_numpy(results[key]) for key in ('cam2img', 'lidar2cam')),
            None if poses is None else torch.from_numpy(poses),
            [f'{sample_name(results)}, camera {name}' for name in names],
            self._warn,
        )
        results['cam2ego'] = np.linalg.inv(results['lidar2cam']) if poses is None else poses
        results['img_aug_matrix'] = np.tile(np.eye(4, dtype=np.float32), (len(names), 1, 1))
        results['bev_aug_matrix'] = np.eye(4, dtype=np.float32)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(cameras={self.cameras}, lidar_is_ego={self.lidar_is_ego})'


@TRANSFORMS.register_module()
class LoadSurroundImages(BaseTransform):
    """Reads one image a camera, in the order of ``results['images']``; sizes may differ between the cameras.

    Pixels are taken as stored, whatever orientation the metadata (EXIF) tell; see :func:`geomim.mmdet3d.images.read_image`.
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
        where = f'{sample_name(results)}, camera {name}: '
        if path is None:
            raise ValueError(f"{where}image None: no 'img_path' in the info file")
        return read_image(path, self.backend_args, where)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(backend_args={self.backend_args})'


class _CheckedFile:
    """A loader of points that names a file which is absent or does not hold points of ``load_dim`` features."""

    load_dim: int

    def _load_points(self, pts_filename: str) -> np.ndarray:
        try:
            points: np.ndarray = super()._load_points(pts_filename)  # type: ignore[misc]
        except (OSError, ValueError) as error:
            raise UnreadableFile(f'point cloud {pts_filename} cannot be read: {error}') from error
        points = np.array(points, dtype=np.float32).reshape(-1)
        try:
            check_file(torch.from_numpy(points), self.load_dim, f'point cloud {pts_filename}')
        except ValueError as error:
            raise UnreadableFile(str(error)) from None
        return points


@TRANSFORMS.register_module()
class LoadSurroundPoints(_CheckedFile, LoadPointsFromFile):
    """mmdet3d's ``LoadPointsFromFile`` (same arguments) that names a file which is absent, cut, or of other features.

    Raises:
        ValueError: a file that cannot be read or was not written with ``load_dim`` features per point.
    """


def _without_close(points: np.ndarray, radius: float = 1.0) -> np.ndarray:
    """As mmdet3d's ``_remove_close``: the rows whose x or y lies ``radius`` metres away or more."""
    close = (np.abs(points[:, 0]) < radius) & (np.abs(points[:, 1]) < radius)
    return points.take(np.flatnonzero(~close), axis=0)


@TRANSFORMS.register_module()
class LoadSurroundSweeps(_CheckedFile, LoadPointsFromMultiSweeps):
    """mmdet3d's ``LoadPointsFromMultiSweeps`` (same arguments) that puts past sweeps where they belong.

    A sweep's point p lies at R^-1 p - R^-1 t in the key frame, for lidar2sensor = [R | t]; mmdet3d 1.4 computes
    R^-1 p - t, which is off by decimetres when the vehicle turns (open-mmlab/mmdetection3d issue 3054). It also copies
    every cloud some times more often.

    Raises:
        ValueError: an empty key cloud; a sweep's file that cannot be read or has other features; a sweep that lies farther
            away than a vehicle drives; a time stamp of another scene, where the time is used.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._warn = WarnOnce()

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        points = results['points']
        check_cloud(points.tensor, point_source(results))
        points.tensor[:, 4] = 0
        own: np.ndarray = points.tensor.numpy()
        sweeps: Optional[List[Dict[str, Any]]] = results.get('lidar_sweeps')
        if sweeps is None:
            repeated = _without_close(own) if self.remove_close else own
            clouds = [repeated] * self.sweeps_num if self.pad_empty_sweeps else []
        else:
            if sweeps:
                self._check_sweeps(results, sweeps)
            clouds = [self._moved(sweeps[index], results['timestamp']) for index in self._choices(len(sweeps))]
        features = np.concatenate([own, *clouds])
        if list(self.use_dim) != list(range(features.shape[1])):
            features = np.ascontiguousarray(features[:, self.use_dim])
        # an empty cloud of the key cloud's kind takes them: slicing knows what the columns mean
        results['points'] = points[:0][:, list(self.use_dim)]
        results['points'].tensor = torch.from_numpy(features)
        return results

    def _choices(self, count: int) -> Sequence[int]:
        """Which sweeps to load, drawn as mmdet3d does."""
        if count <= self.sweeps_num or self.test_mode:
            return range(min(count, self.sweeps_num))
        chosen: Sequence[int] = np.random.choice(count, self.sweeps_num, replace=False)
        return chosen

    def _moved(self, sweep: Mapping[str, Any], timestamp: float) -> np.ndarray:
        """(M, load_dim) float32, the points of a sweep in the key frame, and the seconds since."""
        values = self._load_points(sweep['lidar_points']['lidar_path']).reshape(-1, self.load_dim)
        if self.remove_close:
            values = _without_close(values)
        lidar2sensor = np.asarray(sweep['lidar_points']['lidar2sensor'], dtype=np.float64)
        shift = np.linalg.inv(lidar2sensor)[:3, 3]
        turned = values[:, :3] @ lidar2sensor[:3, :3]
        for axis in range(3):  # column by column, rounded twice, gives mmdet3d's bits in a third of the time
            values[:, axis] = np.add(turned[:, axis].astype(np.float32), shift[axis], dtype=np.float64)
        values[:, 4] = timestamp - sweep['timestamp']
        return values

    def _check_sweeps(self, results: Mapping[str, Any], sweeps: Sequence[Mapping[str, Any]]) -> None:
        places = [f'{sample_name(results)}, past sweep {sweep["lidar_points"].get("lidar_path")}' for sweep in sweeps]
        poses = np.array([sweep['lidar_points']['lidar2sensor'] for sweep in sweeps], dtype=np.float64)
        check_poses(torch.from_numpy(poses), [f'{place}: lidar2sensor' for place in places], self._warn)
        for place, sweep, shift in zip(places, sweeps, np.linalg.norm(poses[:, :3, 3], axis=1)):
            seconds = float(results['timestamp']) - float(sweep['timestamp'])
            if 4 in self.use_dim and not abs(seconds) <= LONGEST_GAP:
                raise ValueError(
                    f'{place}: its time stamp lies {seconds:.6g} s before the key frame, at most {LONGEST_GAP:g} s can be; '
                    'it belongs to another scene, or time stamps are not in seconds'
                )
            check_past(float(shift), seconds, place)


@TRANSFORMS.register_module()
class CheckPointCloud(BaseTransform):
    """Refuses an empty cloud, values that are not finite, and a cloud out of every teacher's reach.

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
        self._warn = WarnOnce()

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        points, source = results['points'], point_source(results)
        if self.drop_nonfinite:
            finite = finite_points(points.tensor, source)
            dropped = results['dropped_points'] = int((~finite).sum())
            if dropped:
                self._warn(
                    'nonfinite',
                    f'{source}: {dropped} of {len(finite)} points are not finite and dropped; dropped_points of a sample '
                    'counts them',
                )
            points = results['points'] = points[finite]
        else:
            check_points(points.tensor, source)
        check_reach(points.tensor, source, self._warn)
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
