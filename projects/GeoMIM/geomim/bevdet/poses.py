"""Ego poses of the cameras of a sample and of its past frames, lengths metres."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

import numpy as np
import torch

from ..adapter.checks import WarnOnce, check_poses
from ..mmengine.rig import sample_name

MAKE_INFOS = 'python -m geomim infos ROOT writes info files with it'


def camera_pose(frame: Mapping[str, Any], name: str) -> np.ndarray:
    """(4, 4) float64, ego to global at the time stamp of a camera of a frame (a sample or one of its past frames).

    Raises:
        ValueError: a camera or pose that is absent, misshapen or not finite.
    """
    where = f'{sample_name(frame)}, camera {name}'
    if name not in frame['images']:
        raise ValueError(f'{where}: no such camera; the info file has {list(frame["images"])}')
    camera = frame['images'][name]
    if 'ego2global' not in camera:
        raise ValueError(f"{where}: no 'ego2global' in the info file, there are {sorted(camera)}; {MAKE_INFOS}")
    matrix = np.asarray(camera['ego2global'], dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f'{where}: ego2global must be (4, 4) and finite, got {matrix.tolist()}')
    return matrix


def stored_pose(holder: Mapping[str, Any], key: str, where: str, warn: WarnOnce) -> np.ndarray:
    """(4, 4) float64 of ``key`` in a part of a sample.

    Args:
        where: how messages call the sample.

    Raises:
        ValueError: a pose that is absent, misshapen, not finite or no rigid motion.
    """
    if key not in holder:
        raise ValueError(f"{where}: no '{key}' in the info file, there are {sorted(holder)}")
    matrix = np.asarray(holder[key], dtype=np.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f'{where}: {key} has shape {matrix.shape}, expected (4, 4)')
    check_poses(torch.from_numpy(matrix[None]), [f'{where}: {key}'], warn)
    return matrix


def lidar_frame(info: Mapping[str, Any]) -> Dict[str, Any]:
    """``lidar_points`` of a sample of an info file; of a rig without a LiDAR, whose boxes are in the ego frame, the identity
    as its ``lidar2ego``."""
    return info.get('lidar_points') or {'lidar2ego': np.eye(4).tolist()}


def frame_poses(frames: List[Mapping[str, Any]]) -> np.ndarray:
    """Ego poses (F, N, 4, 4) float64 of all frames and cameras in the key ego frame (first frame, first camera).

    The global origin lies kilometres away, where float32 resolves a fifth of a millimetre at best; any common frame does.
    """
    poses = np.stack([frame['cam_ego2global'] for frame in frames])
    return np.linalg.inv(poses[0, 0]) @ poses
