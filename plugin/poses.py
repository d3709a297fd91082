"""Poses of a BEVDet sample in float64, from its record: ``img_inputs`` holds them in float32, which at UTM coordinates is decimetres.

Shape legend: n images of all frames, frame by frame; N cameras. Metres.
"""

from __future__ import annotations

import warnings
from typing import Any, Dict, Mapping, Sequence

import numpy as np
import torch
from pyquaternion import Quaternion
from torch import Tensor

Record = Mapping[str, Any]
_COARSE = 0.01  # metres; numbers that lie this far apart misplace a camera by half of it
_ROUNDING = 1e-5  # of a rotation that was computed in float32


def pose(record: Record, name: str, source: str) -> np.ndarray:
    """(4, 4) float64 of ``name`` (lidar2ego, ego2global): a quaternion (w, x, y, z) and a translation of ``record``.

    Raises:
        ValueError: they are not there or no rotation; ``source`` says where.
    """
    absent = [entry for entry in (f'{name}_rotation', f'{name}_translation') if entry not in record]
    if absent:
        raise ValueError(f'{source}: the info file has no {", ".join(absent)}')
    translation = np.asarray(record[f'{name}_translation'])
    warn_if_coarse(translation, f'{name}_translation of the info file', 'write it in float64')
    rotation = Quaternion(record[f'{name}_rotation'])
    if not 0 < rotation.norm < np.inf:  # NaN, too
        raise ValueError(
            f'{source}: {name}_rotation of the info file is {list(rotation.elements)}, which is no rotation'
        )
    matrix = np.eye(4)
    matrix[:3, :3] = rotation.rotation_matrix
    matrix[:3, 3] = translation
    return matrix


def warn_if_coarse(metres: np.ndarray, what: str, remedy: str) -> None:
    """Warn of numbers that are too far from 0 for their type. Python repeats no warning of the same text, so they are rounded."""
    far = np.abs(metres).max()
    if np.issubdtype(metres.dtype, np.floating) and np.spacing(far) > _COARSE:
        warnings.warn(
            f'GeoMIMLidarFrame: {what} is {far:.1e} m in {metres.dtype}, whose numbers lie {np.spacing(far):.2g} m apart there: '
            f'cameras and points move against each other; {remedy}, or put the origin of the poses near the recording',
            stacklevel=2,
        )


def lidar_frames(info: Record) -> Dict[str, np.ndarray]:
    """(4, 4) float64 from the LiDAR at its own moment to each frame into which BEVDet codebases put points.

    By name: 'lidar', 'ego' at the LiDAR's moment and, by a camera's name, the ego frame at the camera's.

    Args:
        info: a keyframe of BEVDet's info files.

    Raises:
        ValueError: a pose that is not there.
    """
    source = f'sample {info.get("token", "without a token")}'
    lidar2ego = pose(info, 'lidar2ego', source)
    lidar2global = pose(info, 'ego2global', source) @ lidar2ego
    frames = {'lidar': np.eye(4), 'ego': lidar2ego}
    for camera, view in info.get('cams', {}).items():
        frames[camera] = np.linalg.inv(pose(view, 'ego2global', f'{source}, {camera}')) @ lidar2global
    return frames


def around_key(ego2globals: Tensor, records: Sequence[Record], cameras: Sequence[str]) -> Tensor:
    """Ego poses (n, 4, 4) with the first camera's ego frame in the place of the global one: small numbers, which float32 holds.

    A pose that is the rounded copy of its record's is replaced by it. Another one, which a step of the pipeline has changed, is taken
    as it is, with a warning if it has lost its digits.

    Args:
        records: the keyframe and the other frames, in the order of ``ego2globals``.
        cameras: the N cameras of each frame, in order.
    """
    given = ego2globals.cpu().numpy()
    poses = given.astype(np.float64)
    views = [record['cams'][camera] for record in records for camera in cameras]
    for index, view in enumerate(views[: len(poses)]):
        camera = cameras[index % len(cameras)]
        recorded = pose(view, 'ego2global', camera)
        if (np.abs(recorded - poses[index]) <= _ROUNDING + np.spacing(np.abs(given[index]))).all():
            poses[index] = recorded
        elif index < len(cameras):  # the other frames are not looked at
            warn_if_coarse(
                given[index, :3, 3],
                f"ego2globals of {camera} in img_inputs, another pose than the sample's record has,",
                'take out the step that changes it, let that step give float64',
            )
    return torch.from_numpy(np.linalg.inv(poses[0]) @ poses).to(ego2globals.dtype)
