"""Occupancy labels in the form of Occ3D-nuScenes (arXiv 2304.14365).

Shape legend: X x Y x Z voxels in the ego frame (x ahead, y left, z up).
"""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.fileio import get as read_file
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement

from ...adapter.bad_samples import UnreadableFile
from ...adapter.checks import WarnOnce
from ...mmengine.rig import sample_name
from ..poses import camera_pose, stored_pose

OCCUPANCY_CLASSES = (
    'others',
    'barrier',
    'bicycle',
    'bus',
    'car',
    'construction_vehicle',
    'motorcycle',
    'pedestrian',
    'traffic_cone',
    'trailer',
    'truck',
    'driveable_surface',
    'other_flat',
    'sidewalk',
    'terrain',
    'manmade',
    'vegetation',
    'free',
)
FREE = len(OCCUPANCY_CLASSES) - 1
STORED_VOXELS = (200, 200, 16)  # X, Y, Z of the files
_MASKS = ('mask_lidar', 'mask_camera')
_ARRAYS = ('semantics', *_MASKS)
_DOWNLOAD = 'the folder gts of Occ3D-nuScenes belongs into the data folder (gts/SCENE/SAMPLE/labels.npz)'


@TRANSFORMS.register_module()
class LoadOccupancyLabels(BaseTransform):
    """Reads a sample's ``labels.npz`` and mirrors it as the BEV augmentation does.

    Goes after ``BEVDetBEVAug``. The labels are taken for those of the model's frame, as in BEVDet; ``GridToLidarEgo`` makes that true.

    Args:
        voxels: (X, Y, Z) wanted. Where they are fewer than the file's, by a whole factor an axis, a voxel gets the class that most of the
            occupied ones in it have (of equally many the first), 'free' where none is occupied, and counts as seen if any of them is.
        backend_args: of ``mmengine.fileio``, for files that are not on a local disk.

    Writes:
        occupancy: semantics, mask_lidar, mask_camera, each (X, Y, Z) uint8.

    Raises:
        ValueError: a file that is absent, no readable archive, without one of the arrays, or with another shape, class or mask value; a
            BEV augmentation that is more than mirroring; voxels that are no whole parts.
    """

    def __init__(
        self,
        voxels: Sequence[int] = STORED_VOXELS,
        backend_args: Optional[Dict[str, Any]] = None,
    ) -> None:
        self.voxels = tuple(voxels)
        if len(self.voxels) != 3 or min(self.voxels) < 1 or any(b % a for a, b in zip(self.voxels, STORED_VOXELS)):
            raise ValueError(
                f'LoadOccupancyLabels: voxels {self.voxels} (x, y, z) must be whole parts of the {STORED_VOXELS} of the files'
            )
        self.backend_args = backend_args

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        flips = _flipped_axes(results)
        labels = self._read(results)
        labels = {name: np.ascontiguousarray(np.flip(array, flips)) for name, array in labels.items()}
        results['occupancy'] = coarser(labels, self.voxels)
        return results

    def _read(self, results: Mapping[str, Any]) -> Dict[str, np.ndarray]:
        if 'occupancy_path' not in results:
            raise ValueError(
                f"{sample_name(results)}: no occupancy_path; the dataset needs data_prefix=dict(occupancy='gts', ...)"
            )
        where = f'{sample_name(results)}: {results["occupancy_path"]}'
        try:
            content = read_file(results['occupancy_path'], backend_args=self.backend_args)
        except OSError as error:
            raise UnreadableFile(f'{where} cannot be read ({error}); {_DOWNLOAD}') from error
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                labels = {name: archive[name] for name in _ARRAYS if name in archive.files}
        except (ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise UnreadableFile(f'{where} is no readable .npz archive: {error}') from error
        self._check(labels, where)
        return {name: array.astype(np.uint8) for name, array in labels.items()}

    def _check(self, labels: Mapping[str, np.ndarray], where: str) -> None:
        absent = [name for name in _ARRAYS if name not in labels]
        if absent:
            raise ValueError(f'{where} holds no {", ".join(absent)}, which Occ3D has beside {sorted(labels)}')
        for name, array in labels.items():
            if array.shape != STORED_VOXELS:
                raise ValueError(f'{where}: {name} has shape {array.shape}, expected (X, Y, Z) = {STORED_VOXELS}')
            most = FREE if name == 'semantics' else 1
            strange = array[~((array >= 0) & (array <= most))]
            if strange.size:
                what = f'a class of 0..{FREE} ({FREE} = free)' if name == 'semantics' else '0 or 1'
                raise ValueError(f'{where}: {name} holds {strange[0]}, expected {what}')

    def __repr__(self) -> str:
        return f'{type(self).__name__}(voxels={self.voxels})'


def _flipped_axes(results: Mapping[str, Any]) -> Tuple[int, ...]:
    """Axes that the sample's BEV augmentation mirrors."""
    where = sample_name(results)
    if 'bev_aug_matrix' not in results:
        raise ValueError(f'{where}: LoadOccupancyLabels goes after BEVDetBEVAug')
    matrix = np.asarray(results['bev_aug_matrix'])
    signs = np.diag(matrix)[:2]
    if not np.array_equal(matrix, np.diag([*np.sign(signs), 1.0, 1.0])):
        raise ValueError(
            f'{where}: occupancy labels can be mirrored, not rotated or scaled; bda_aug_conf needs rot_lim=(0, 0) and '
            f'scale_lim=(1, 1), the BEV augmentation is {matrix.tolist()}'
        )
    return tuple(int(axis) for axis in np.nonzero(signs < 0)[0])


def coarser(labels: Mapping[str, np.ndarray], voxels: Sequence[int]) -> Dict[str, np.ndarray]:
    """Labels (X, Y, Z) on fewer voxels, as :class:`LoadOccupancyLabels` says."""
    shape = labels['semantics'].shape
    if tuple(voxels) == shape:
        return dict(labels)
    split = [side for now, then in zip(shape, voxels) for side in (then, now // then)]
    blocks = {name: array.reshape(split) for name, array in labels.items()}
    counts = np.stack([(blocks['semantics'] == label).sum(axis=(1, 3, 5)) for label in range(FREE)])
    semantics = np.where(counts.any(axis=0), counts.argmax(axis=0), FREE).astype(np.uint8)
    return {'semantics': semantics, **{name: blocks[name].max(axis=(1, 3, 5)) for name in _MASKS}}


@TRANSFORMS.register_module()
class GridToLidarEgo(BaseTransform):
    """Puts the model's voxels into the ego frame at the LiDAR's time stamp, which is that of Occ3D's labels.

    By itself the model's frame is the ego frame at the first camera's time stamp, in which a moving vehicle has not come quite as far, up
    to a voxel. Goes after ``BEVDetBEVAug`` and ``LoadOccupancyLabels``; not for published weights, which were trained without it.

    Writes:
        bev_aug_matrix (4, 4), now from the key ego frame.

    Raises:
        ValueError: boxes, which have a frame of their own; or a pose or transform that is absent or unusable.
    """

    def __init__(self) -> None:
        self._warn = WarnOnce()

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        where = sample_name(results)
        absent = [key for key in ('cam_names', 'bev_aug_matrix', 'ego2global') if key not in results]
        if absent:
            raise ValueError(
                f'{where}: no {", ".join(absent)}; GridToLidarEgo goes after LoadSurroundFrames and BEVDetBEVAug'
            )
        if 'gt_bboxes_3d' in results:
            raise ValueError(f'{where}: GridToLidarEgo moves voxels, not boxes; leave BoxesToKeyEgo and boxes out')
        key_ego2global = camera_pose(results, results['cam_names'][0])
        lidar_ego2global = stored_pose(results, 'ego2global', where, self._warn)
        results['bev_aug_matrix'] = results['bev_aug_matrix'] @ np.linalg.inv(lidar_ego2global) @ key_ego2global
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


def as_element(labels: Mapping[str, np.ndarray]) -> BaseDataElement:
    """Labels of :class:`LoadOccupancyLabels` as a sample carries them."""
    return BaseDataElement(**{name: torch.from_numpy(labels[name]) for name in _ARRAYS})
