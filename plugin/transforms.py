"""Pipeline steps that bring points and cameras of a BEVDet pipeline into one frame.

There, points stay in the LiDAR frame without BEV augmentation while images are placed in the ego frame with it.
"""

from __future__ import annotations

import warnings
from typing import Any, Dict, Mapping

import numpy as np
import torch
from pyquaternion import Quaternion

from ..method.depth import check_points, finite_points
from .host import PIPELINES
from .rig import check_values


def pose(rotation: Any, translation: Any) -> np.ndarray:
    """(4, 4) float64 of a quaternion (w, x, y, z) and a translation in metres."""
    matrix = np.eye(4)
    matrix[:3, :3] = Quaternion(rotation).rotation_matrix
    matrix[:3, 3] = np.asarray(translation, dtype=np.float64)
    return matrix


def lidar_to_key(info: Mapping[str, Any], camera: str) -> np.ndarray:
    """(4, 4) float64: LiDAR at its own moment to the ego frame at a camera's moment.

    Args:
        info: a keyframe of BEVDet's info files.
        camera: whose ego frame is the key one.

    Raises:
        ValueError: an entry that is not there.
    """
    names = ('lidar2ego_rotation', 'lidar2ego_translation', 'ego2global_rotation', 'ego2global_translation')
    absent = [name for name in names if name not in info]
    if absent or camera not in info.get('cams', {}):
        what = ', '.join(absent) or f'camera {camera!r} (there are {", ".join(info.get("cams", {}))})'
        raise ValueError(f'sample {info.get("token", "without a token")}: the info file has no {what}')
    lidar2ego, ego2global = pose(info[names[0]], info[names[1]]), pose(info[names[2]], info[names[3]])
    view = info['cams'][camera]
    key2global = pose(view['ego2global_rotation'], view['ego2global_translation'])
    return np.linalg.inv(key2global) @ ego2global @ lidar2ego


@PIPELINES.register_module()
class GeoMIMLidarFrame:
    """Carries where the LiDAR is, moves the points by the BEV augmentation of the images, and checks what it sees.

    Adds ``lidar2key`` (4, 4) float32: LiDAR to the ego frame of the first camera of ``img_inputs``. Replaces ``points`` with
    augmented ones; the teacher's frame is the LiDAR's, with the same augmentation as the student's. Stands behind
    LoadAnnotationsBEVDepth, and behind steps that project points into the images (PointToMultiViewDepth).

    Args:
        drop_nonfinite: drop points with values that are not finite, as drivers leave for beams without an echo, instead of
            refusing them; warns at the first ones and adds their number as ``dropped_points``.

    Raises:
        ValueError: steps or entries that are missing before it; an empty cloud, or points, images or geometry that are not
            finite.
    """

    def __init__(self, drop_nonfinite: bool = False) -> None:
        self.drop_nonfinite = drop_nonfinite
        self._warned = False

    def __call__(self, results: Dict[str, Any]) -> Dict[str, Any]:
        for key, step in (
            ('img_inputs', 'PrepareImageInputs'),
            ('points', 'LoadPointsFromFile'),
            ('curr', 'a BEVDet dataset'),
        ):
            if key not in results:
                raise ValueError(
                    f'GeoMIMLidarFrame: no {key} in the results, which comes from {step}; it must stand before'
                )
        if len(results['img_inputs']) != 7:
            raise ValueError(
                f'GeoMIMLidarFrame: img_inputs has {len(results["img_inputs"])} entries and no BEV augmentation yet; put this '
                'step behind LoadAnnotationsBEVDepth'
            )
        camera = str(results['cam_names'][0])
        results['lidar2key'] = torch.from_numpy(lidar_to_key(results['curr'], camera)).float()
        source = f'sample {results["curr"].get("token", "without a token")}'
        check_values(results['img_inputs'], results['lidar2key'], f'{source}: img_inputs')
        self._check_points(results, f'{source}: points')
        points, bda = results['points'], torch.as_tensor(results['img_inputs'][6])[:3, :3]
        moved = points.tensor.clone()
        moved[:, :3] = moved[:, :3] @ bda.to(moved).T
        results['points'] = points.new_point(moved)
        return results

    def _check_points(self, results: Dict[str, Any], source: str) -> None:
        points = results['points']
        if not self.drop_nonfinite:
            check_points(points.tensor, source)
            return
        finite = finite_points(points.tensor, source)
        dropped = results['dropped_points'] = int((~finite).sum())
        results['points'] = points[finite]
        if dropped and not self._warned:
            self._warned = True
            warnings.warn(f'{source}: {dropped} of {len(finite)} are not finite and dropped', stacklevel=3)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(drop_nonfinite={self.drop_nonfinite})'
