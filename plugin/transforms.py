"""Pipeline steps that bring points and cameras of a BEVDet pipeline into one frame.

There, points stay in the LiDAR frame without BEV augmentation, or do not, while images are placed in the ego frame with it.
"""

from __future__ import annotations

import warnings
from typing import Any, Dict, Optional, Sequence

import numpy as np
import torch
from torch import Tensor

from ..adapter.checks import (
    LONGEST_GAP,
    WarnOnce,
    check_egos,
    check_file,
    check_intrinsics,
    check_mounts,
    check_poses,
    check_reach,
)
from ..method.depth import check_points, finite_points, project_points
from .host import PIPELINES
from .points import bda_matrix, find_place
from .poses import around_key, lidar_frames
from .rig import check_values, read_img_inputs

_DEPTH_PROBES = 2000  # from the front, where a keyframe's points stand before its sweeps
_DEPTH_MARGIN = 0.1  # metres
_FEWEST, _SHOWN = 20, 0.3  # of the probes in view; elsewhere, one pixel in ten has a depth


@PIPELINES.register_module()
class GeoMIMLidarFrame:
    """Carries where the points are, moves them by the BEV augmentation of the images unless that was done, and checks what it sees.

    Adds ``lidar2key`` (4, 4) float32: the points' frame before BEV augmentation, which is the teacher's, to the ego frame of the first
    camera of ``img_inputs``. Replaces ``points`` with augmented ones, and the ego poses in ``img_inputs`` with the exact ones of the
    sample's record, from that ego frame on. Stands behind LoadAnnotationsBEVDepth or BEVAug, and behind steps that project points into
    the images (PointToMultiViewDepth).

    Args:
        frame: where the points are without BEV augmentation: 'lidar', 'ego' (at the LiDAR's moment) or a camera's name (the ego frame at
            its moment); found out by the sample's file if None, else checked by it.
        augmented: whether a step before has moved them by the BEV augmentation; likewise.
        drop_nonfinite: drop points with values that are not finite, as drivers leave for beams without an echo, instead of
            refusing them; warns at the first ones and adds their number as ``dropped_points``.

    Raises:
        ValueError: steps or entries that are missing before it; an empty cloud, one out of reach, or points, images or geometry
            that are not finite or cannot be (:mod:`geomim.adapter.checks`); points in another place than told, or in one that
            cannot be known.

    Warns:
        UserWarning: values that float32 has robbed of their digits; a ``gt_depth`` that does not show the points.
    """

    def __init__(
        self, frame: Optional[str] = None, augmented: Optional[bool] = None, drop_nonfinite: bool = False
    ) -> None:
        self.frame, self.augmented, self.drop_nonfinite = frame, augmented, drop_nonfinite
        self._warn = WarnOnce()

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
                'step behind LoadAnnotationsBEVDepth or BEVAug'
            )
        info, cameras = results['curr'], [str(name) for name in results['cam_names']]
        source = f'sample {info.get("token", "without a token")}'
        frames = lidar_frames(info)
        if cameras[0] not in frames:
            raise ValueError(
                f'{source}: the info file has no camera {cameras[0]!r} (there are {", ".join(info.get("cams", {}))})'
            )
        images, sensor2egos, ego2globals, *rest, bda = map(torch.as_tensor, results['img_inputs'])
        augmentation = bda_matrix(bda, source)
        check_values(results['img_inputs'], torch.from_numpy(frames[cameras[0]]), f'{source}: img_inputs')
        self._check_rig(results['img_inputs'], torch.from_numpy(frames[cameras[0]]), cameras, source)
        points = self._checked_points(results, f'{source}: points')
        check_reach(points.tensor, f'{source}: points', self._warn)
        file = str(results.get('pts_filename') or info.get('lidar_path'))
        check_file(points.tensor.flatten(), points.tensor.shape[1], f'{source}: points of {file}')
        place = find_place(points.tensor, file, frames, bda.numpy(), self.frame, self.augmented, source)
        results['lidar2key'] = torch.from_numpy(frames[cameras[0]] @ np.linalg.inv(frames[place.frame])).float()
        ego2globals = around_key(ego2globals, [info, *results.get('adjacent', [])], cameras)
        results['img_inputs'] = (images, sensor2egos, ego2globals, *rest, bda)
        if not place.augmented:
            moved, by = points.tensor.clone(), torch.from_numpy(augmentation).to(points.tensor)
            moved[:, :3] = moved[:, :3] @ by[:3, :3].T + by[:3, 3]
            results['points'] = points.new_point(moved)
        if 'gt_depth' in results:
            _check_depth(torch.as_tensor(results['gt_depth']), results, len(cameras))
        return results

    def _checked_points(self, results: Dict[str, Any], source: str) -> Any:
        """The points, without those that are not finite where that was asked for."""
        points = results['points']
        if not self.drop_nonfinite:
            check_points(points.tensor, source)
            return points
        finite = finite_points(points.tensor, source)
        dropped = results['dropped_points'] = int((~finite).sum())
        if dropped:
            self._warn('nonfinite', f'{source}: {dropped} of {len(finite)} are not finite and dropped')
        results['points'] = points[finite]
        return results['points']

    def _check_rig(self, img_inputs: Sequence[Any], lidar2key: Tensor, cameras: Sequence[str], source: str) -> None:
        """As LoadCameraRig checks a rig of mmdet3d, by the names of BEVDet; the poses of all frames."""
        count = len(cameras)
        sensor2egos, ego2globals, intrins = (torch.as_tensor(entry).double() for entry in img_inputs[1:4])
        places = [f'{source}, camera {cameras[index % count]}' for index in range(len(intrins))]
        check_intrinsics(intrins, [f'{place}: intrins' for place in places])
        check_poses(sensor2egos, [f'{place}: sensor2egos' for place in places], self._warn)
        check_poses(lidar2key[None], [f'{source}: lidar2key'], self._warn)
        frames = len(places) // count
        egos = ego2globals[: frames * count].unflatten(0, (frames, count))
        check_egos(egos, [0.0] + [LONGEST_GAP] * (frames - 1), places, self._warn)
        lidar2ego = torch.linalg.inv(egos[0]) @ egos[0, 0] @ lidar2key
        check_mounts(sensor2egos[:count], lidar2ego, places, self._warn)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(frame={self.frame!r}, augmented={self.augmented!r}, drop_nonfinite={self.drop_nonfinite})'


def _check_depth(depths: Tensor, results: Dict[str, Any], num_cams: int) -> None:
    """Warn of depth maps (N, H, W), projected by a step before, that do not show the points which are in front of the cameras."""
    images, rig = read_img_inputs(
        [entry[None] for entry in results['img_inputs']], results['lidar2key'][None], num_cams
    )
    if depths.shape != images.shape[1:2] + images.shape[-2:] or not bool((depths > 0).any()):
        return  # of the wrong size, which the model refuses, or without a point in range
    uv, depth = project_points(results['points'].tensor[:_DEPTH_PROBES], rig, 0)
    column, row = uv.round().long().unbind(dim=-1)
    held = (column >= 0) & (column < depths.shape[2]) & (row >= 0) & (row < depths.shape[1])
    held &= (depth >= depths[depths > 0].min()) & (depth <= depths.max())
    camera = torch.arange(num_cams)[:, None].expand_as(row)[held]
    found = depths[camera, row[held], column[held]]
    shows = (found > 0) & (found <= depth[held] + _DEPTH_MARGIN)  # a nearer point may hide this one
    if len(found) >= _FEWEST and float(shows.float().mean()) < _SHOWN:
        warnings.warn(
            'GeoMIMLidarFrame: gt_depth does not show the points where the images have them. The step that projected them '
            '(PointToMultiViewDepth) saw points that were moved before it, or poses so far from 0 that its float32 loses their digits: '
            "take it out, and 'gt_depth' from the keys of Collect3D, and the model projects the points itself",
            stacklevel=2,
        )
