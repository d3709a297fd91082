"""A sample as BEVDet's datasets and steps leave it, of a car that turns and moves between its sensors' moments."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from pyquaternion import Quaternion
from torch import Tensor

from geomim import CameraRig
from geomim.plugin.rig import read_img_inputs

IMAGE_SIZE = (256, 384)
CAMERAS = tuple(f'CAM_{index}' for index in range(6))
FOCAL, CENTRE = 500.0, (400.0, 225.0)


def yaw(radians: float) -> Quaternion:
    return Quaternion(axis=[0, 0, 1], radians=radians)


def matrix(rotation: Any, translation: Any) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = Quaternion(rotation).rotation_matrix, translation
    return result


def entry(prefix: str, rotation: Quaternion, translation: Any) -> Dict[str, List[float]]:
    return {f'{prefix}_rotation': list(rotation.elements), f'{prefix}_translation': list(translation)}


def sample_info(east: float = 411.2, north: float = 1180.4) -> Dict[str, Any]:
    """A keyframe as BEVDet's info files describe it, of a car that turns and moves by metres between its sensors' moments."""
    optical = Quaternion(matrix=np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]))
    info: Dict[str, Any] = dict(token='keyframe', cams={})
    info.update(entry('lidar2ego', yaw(math.radians(-90.5)), [0.94, 0.05, 1.84]))
    info.update(entry('ego2global', yaw(0.9), [east, north, 0.1]))
    for index, name in enumerate(CAMERAS):
        angle = index * math.pi / 3 + 0.2
        mount = [0.5 + 0.3 * math.cos(angle), 0.3 * math.sin(angle), 1.6]
        moved = [east + 0.5 * index - 1.1, north - 0.4 * index + 0.7, 0.1]
        info['cams'][name] = dict(
            **entry('sensor2ego', yaw(angle) * optical, mount), **entry('ego2global', yaw(0.9 + 0.04 * index), moved)
        )
    return info


def bev_augmentation(degrees: float, scale: float, flips: Tuple[bool, bool]) -> Tensor:
    """As LoadAnnotationsBEVDepth composes it: mirror after scaling after rotation."""
    mirror = np.diag([-1.0 if flips[0] else 1.0, -1.0 if flips[1] else 1.0, 1.0])
    return torch.from_numpy(mirror @ (scale * yaw(math.radians(degrees)).rotation_matrix)).float()


def img_inputs(info: Dict[str, Any], names: Tuple[str, ...], bda: Tensor) -> Tuple[Tensor, ...]:
    """What PrepareImageInputs and LoadAnnotationsBEVDepth leave behind; every other image is mirrored."""
    cams = [info['cams'][name] for name in names]
    sensor2egos = np.stack([matrix(cam['sensor2ego_rotation'], cam['sensor2ego_translation']) for cam in cams])
    ego2globals = np.stack([matrix(cam['ego2global_rotation'], cam['ego2global_translation']) for cam in cams])
    intrins = torch.tensor([[FOCAL, 0, CENTRE[0]], [0, FOCAL, CENTRE[1]], [0, 0, 1]]).repeat(len(names), 1, 1)
    post_rots, post_trans = torch.eye(3).repeat(len(names), 1, 1), torch.zeros(len(names), 3)
    post_rots[:, 0, 0] = post_rots[:, 1, 1] = 0.45
    post_trans[:, 0], post_trans[:, 1] = 12.0, 20.0
    post_rots[::2, 0, 0], post_trans[::2, 0] = -0.45, 372.0
    images = torch.zeros(len(names), 3, *IMAGE_SIZE)
    poses = [torch.from_numpy(value).float() for value in (sensor2egos, ego2globals)]
    return (images, *poses, intrins, post_rots, post_trans, bda)


def rig_of(results: Dict[str, Any]) -> CameraRig:
    batch = [value[None] for value in results['img_inputs']]
    return read_img_inputs(batch, results['lidar2key'][None], len(CAMERAS)).rig


def seen(info: Dict[str, Any], names: Tuple[str, ...], xyz: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Pixels (N, M, 2) and depths (N, M) of LiDAR positions (M, 3), from the info file's poses alone, by way of the global frame."""
    lidar = matrix(info['ego2global_rotation'], info['ego2global_translation'])
    lidar = lidar @ matrix(info['lidar2ego_rotation'], info['lidar2ego_translation'])
    pixels, depths = [], []
    for index, name in enumerate(names):
        cam = info['cams'][name]
        camera = matrix(cam['ego2global_rotation'], cam['ego2global_translation'])
        camera = camera @ matrix(cam['sensor2ego_rotation'], cam['sensor2ego_translation'])
        there = np.linalg.inv(camera) @ lidar
        x, y, depth = there[:3, :3] @ xyz.T + there[:3, 3:]
        u, v = FOCAL * x / depth + CENTRE[0], FOCAL * y / depth + CENTRE[1]
        u, v = (372 - 0.45 * u if index % 2 == 0 else 12 + 0.45 * u), 20 + 0.45 * v
        pixels.append(np.stack([u, v], axis=-1))
        depths.append(depth)
    return np.stack(pixels), np.stack(depths)
