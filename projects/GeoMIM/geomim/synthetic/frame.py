"""A few generated keyframes in mmdet3d 1.4's nuScenes format: six cameras and a spinning LiDAR look at the same solids.

Every pixel and every LiDAR beam is a ray, cast against the same scene, so that images and points agree, occlusion
included. Frames: ego (x ahead, y left, z up, origin on the ground under the rear axle), LiDAR (x right, y ahead, z up).
Lengths are metres; pixel (column i, row j) covers [i, i + 1) x [j, j + 1), its ray goes through the middle.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple, Union

import cv2
import numpy as np

from .scene import CLASSES, GROUND, SKY, Scene, colours, make_scene

# camera: x, y, z in the ego frame (metres), viewing direction (degrees, 0 ahead, counter-clockwise), focal length
# (pixels of an image 1600 wide)
CAMERAS: Dict[str, Tuple[float, float, float, float, float]] = {
    'CAM_FRONT': (1.70, 0.00, 1.51, 0, 1260),
    'CAM_FRONT_RIGHT': (1.55, -0.50, 1.50, -55, 1260),
    'CAM_FRONT_LEFT': (1.55, 0.50, 1.50, 55, 1260),
    'CAM_BACK': (0.05, 0.00, 1.56, 180, 810),
    'CAM_BACK_LEFT': (1.03, 0.48, 1.56, 110, 1260),
    'CAM_BACK_RIGHT': (1.03, -0.48, 1.56, -110, 1260),
}
LIDAR_POSITION = (0.94, 0.0, 1.84)  # ego frame
LIDAR_ELEVATIONS = np.deg2rad(np.linspace(-30.67, 10.67, 32))
LIDAR_AZIMUTHS = np.deg2rad(np.arange(1086) * (360 / 1086))
MARKER = 'geomim_synthetic.json'


def camera_geometry(name: str, size: Tuple[int, int]) -> Tuple[np.ndarray, np.ndarray]:
    """(3, 3) intrinsics, pixels of images of ``size`` (H, W); (4, 4) camera (x right, y down, z ahead) to ego."""
    x, y, z, degrees, focal = CAMERAS[name]
    height, width = size
    focal *= width / 1600
    intrinsics = np.array([[focal, 0, width * 0.505], [0, focal, height * 0.545], [0, 0, 1]])
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    cam2ego = np.array([[sin, 0, cos, x], [-cos, 0, sin, y], [0, -1, 0, z], [0, 0, 0, 1]])
    return intrinsics, cam2ego


def render_camera(scene: Scene, name: str, size: Tuple[int, int]) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One camera's view of the scene.

    Args:
        name: one of ``CAMERAS``.
        size: (H, W), pixels.

    Returns:
        Image (H, W, 3) uint8 RGB; depth (H, W), metres along the optical axis; what each pixel shows (H, W), as
        ``Scene.cast`` says.
    """
    intrinsics, cam2ego = camera_geometry(name, size)
    columns, rows = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
    pixels = np.stack([columns.ravel(), rows.ravel(), np.ones(columns.size)])
    rays = (cam2ego[:3, :3] @ np.linalg.inv(intrinsics) @ pixels).astype(np.float32)
    depth, hit = scene.cast(cam2ego[:3, 3], rays)
    points = cam2ego[:3, 3:] + rays * np.where(hit == SKY, 0, depth)
    image = colours(scene, hit, points, rays).astype(np.uint8).T.reshape(*size, 3)
    return image, depth.reshape(size), hit.reshape(size)


def lidar2ego() -> np.ndarray:
    """(4, 4); the LiDAR's y axis points ahead."""
    x, y, z = LIDAR_POSITION
    return np.array([[0, 1, 0, x], [-1, 0, 0, y], [0, 0, 1, z], [0, 0, 0, 1]], dtype=np.float64)


def scan_lidar(scene: Scene) -> Tuple[np.ndarray, np.ndarray]:
    """Points (M, 5) float32 (x, y, z in the LiDAR frame, intensity, ring) and what each one hit, as ``Scene.cast``."""
    azimuth, elevation = np.meshgrid(LIDAR_AZIMUTHS, LIDAR_ELEVATIONS, indexing='ij')
    flat = np.cos(elevation)
    rays = np.stack([flat * np.sin(azimuth), flat * np.cos(azimuth), np.sin(elevation)]).reshape(3, -1)
    pose = lidar2ego()
    distance, hit = scene.cast(pose[:3, 3], pose[:3, :3] @ rays)
    ring = np.tile(np.arange(len(LIDAR_ELEVATIONS)), len(LIDAR_AZIMUTHS))
    back = hit != SKY
    rays, distance, hit, ring = rays[:, back], distance[back], hit[back], ring[back]
    intensity = np.where(hit == GROUND, 12, 25 + (hit * 37) % 60)
    return np.column_stack([(rays * distance).T, intensity, ring]).astype(np.float32), hit


def _instances(scene: Scene, hit: np.ndarray) -> List[Dict[str, Any]]:
    ego2lidar = np.linalg.inv(lidar2ego())
    instances = []
    for index, solid in enumerate(scene.solids):
        if solid.name:
            centre = ego2lidar[:3, :3] @ solid.centre + ego2lidar[:3, 3]
            count, label = int((hit == index).sum()), list(CLASSES).index(solid.name)
            box = [*centre.tolist(), *solid.size.tolist(), solid.yaw + np.pi / 2]
            labels = {'bbox_label': label, 'bbox_label_3d': label, 'bbox_3d_isvalid': count > 0}
            counts = {'num_lidar_pts': count, 'num_radar_pts': 0}
            instances.append({'bbox_3d': box, **labels, **counts, 'velocity': [0.0, 0.0]})
    return instances


def _write_sample(root: Path, seed: int, frame: int, size: Tuple[int, int]) -> Dict[str, Any]:
    """One keyframe's files under ``root``; returns its entry of the info file."""
    scene, token = make_scene(seed, frame), hashlib.md5(f'geomim/{seed}/{frame}'.encode()).hexdigest()
    random = np.random.default_rng([seed, frame, 1])
    images: Dict[str, Dict[str, Any]] = {}
    for name in CAMERAS:
        image, _, _ = render_camera(scene, name, size)
        sensor_noise = random.integers(-5, 6, image.shape, dtype=np.int16)
        image = np.clip(image + sensor_noise, 0, 255).astype(np.uint8)
        path = root / 'samples' / name / f'{token}__{name}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
        intrinsics, cam2ego = camera_geometry(name, size)
        lidar2cam = np.linalg.inv(cam2ego) @ lidar2ego()
        matrices = {'cam2img': intrinsics, 'cam2ego': cam2ego, 'lidar2cam': lidar2cam}
        images[name] = {key: matrix.tolist() for key, matrix in matrices.items()}
        images[name].update(img_path=path.name, timestamp=frame * 0.5, sample_data_token=f'{token}-{name}')
    points, hit = scan_lidar(scene)
    path = root / 'samples' / 'LIDAR_TOP' / f'{token}__LIDAR_TOP.pcd.bin'
    path.parent.mkdir(parents=True, exist_ok=True)
    points.tofile(str(path))
    ego2global = np.eye(4)
    ego2global[0, 3] = 100.0 * frame
    return {
        'sample_idx': frame,
        'token': token,
        'timestamp': frame * 0.5,
        'ego2global': ego2global.tolist(),
        'images': images,
        'lidar_points': {'num_pts_feats': 5, 'lidar_path': path.name, 'lidar2ego': lidar2ego().tolist()},
        'instances': _instances(scene, hit),
    }


def write_frame(
    root: Union[str, Path], seed: int = 0, num_frames: int = 4, image_size: Tuple[int, int] = (450, 800)
) -> Path:
    """Writes keyframes and their info files in mmdet3d 1.4's nuScenes format (class ``NuScenesDataset`` reads them).

    The folder appears complete or not at all; one of the same arguments is left as it is, one of others is replaced.
    The last frame is the validation set, the others (or the only one) are for training.

    Args:
        root: folder to make; receives samples/, nuscenes_infos_train.pkl and nuscenes_infos_val.pkl.
        seed: of the layouts.
        num_frames: keyframes, each with its own layout.
        image_size: (H, W), pixels.

    Returns:
        ``root``.

    Raises:
        ValueError: a folder that this function has not written, or fewer than one frame.
    """
    root = Path(root)
    if num_frames < 1:
        raise ValueError(f'num_frames must be at least 1, got {num_frames}')
    record = {'format': 1, 'seed': seed, 'num_frames': num_frames, 'image_size': list(image_size)}
    marker = root / MARKER
    if root.exists() and not marker.is_file() and not (root.is_dir() and next(root.iterdir(), None) is None):
        raise ValueError(f'{root} exists and is no synthetic frame (it has no {MARKER}); name a new folder')
    if marker.is_file() and json.loads(marker.read_text()) == record:
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=str(root.parent)))
    try:
        samples = [_write_sample(staging, seed, frame, image_size) for frame in range(num_frames)]
        _write_infos(staging, samples)
        (staging / MARKER).write_text(json.dumps(record))
        if marker.is_file():
            os.replace(str(root), f'{staging}-old')
        os.replace(str(staging), str(root))
    finally:
        for leftover in (str(staging), f'{staging}-old'):
            shutil.rmtree(leftover, ignore_errors=True)
    return root


def _write_infos(root: Path, samples: List[Dict[str, Any]]) -> None:
    categories = {name: index for index, name in enumerate(CLASSES)}
    metainfo = {'categories': categories, 'dataset': 'nuscenes', 'version': 'v1.0-mini', 'info_version': '1.1'}
    for split, part in (('train', samples[:-1] or samples), ('val', samples[-1:])):
        with open(root / f'nuscenes_infos_{split}.pkl', 'wb') as file:
            pickle.dump({'metainfo': metainfo, 'data_list': part}, file)
