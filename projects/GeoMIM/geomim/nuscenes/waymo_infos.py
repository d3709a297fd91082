"""Info files for mmdet3d's ``WaymoDataset`` from those of a nuScenes folder (``python -m geomim infos ROOT --for waymo``).

For trying the Waymo pipelines on a folder with Waymo's five cameras, such as the synthetic world's rig ``five``. Waymo's points
and boxes are in the ego frame (x ahead): info files are rewritten, and each keyframe's points are written anew below
``training/velodyne`` as (M, 6) float32: x, y, z, intensity, 0, 0. Images stay where they are. Lengths are metres.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

import mmengine
import numpy as np

from ..atomic import atomic_path
from ..checkpoints.info_files import describe_if_old, read_infos
from .infos import BESIDE, SPLITS

CAMERAS = ('CAM_FRONT', 'CAM_FRONT_LEFT', 'CAM_FRONT_RIGHT', 'CAM_SIDE_LEFT', 'CAM_SIDE_RIGHT')
CLASSES = ('Car', 'Pedestrian', 'Cyclist')
# nuScenes' detection classes -> Waymo's
NAMES = {
    'car': 'Car',
    'truck': 'Car',
    'trailer': 'Car',
    'bus': 'Car',
    'construction_vehicle': 'Car',
    'pedestrian': 'Pedestrian',
    'bicycle': 'Cyclist',
    'motorcycle': 'Cyclist',
}
POINTS = 'training/velodyne'


def waymo_info_names() -> List[str]:
    """File names of the info files."""
    return [f'waymo_infos_{split}.pkl' for split in SPLITS]


def make_waymo_infos(root: Path) -> Path:
    """Write waymo_infos_train.pkl and waymo_infos_val.pkl, and the points, below a nuScenes folder with info files.

    Returns:
        ``root``.

    Raises:
        ValueError: no info files, or a rig that lacks a LiDAR or one of Waymo's cameras.
    """
    root = root.expanduser().resolve()
    for split, name in zip(SPLITS, waymo_info_names()):
        source = root / f'nuscenes_infos_{split}.pkl'
        if describe_if_old(source):
            source = root / BESIDE / source.name
        if not source.is_file():
            raise ValueError(
                f'{source.parent} has no {source.name}; python -m geomim infos {root} --for mmdet3d makes it'
            )
        infos = read_infos(source)
        labels = {number: NAMES.get(text) for text, number in infos['metainfo']['categories'].items()}
        frames = [
            waymo_info(info, index, labels, root) for index, info in enumerate(infos['data_list'], _first_index(split))
        ]
        categories = {text: number for number, text in enumerate(CLASSES)}
        metainfo = {'categories': categories, 'dataset': 'waymo', 'version': '1.4', 'info_version': '1.1'}
        with atomic_path(root / name) as temporary:
            mmengine.dump({'metainfo': metainfo, 'data_list': frames}, str(temporary), file_format='pkl')
    return root


def _first_index(split: str) -> int:
    """Waymo's sample numbers start with the split's."""
    return SPLITS.index(split) * 1_000_000


def waymo_info(info: Mapping[str, Any], index: int, labels: Mapping[int, Any], root: Path) -> Dict[str, Any]:
    """One frame as mmdet3d's Waymo converter describes it; writes its points."""
    if 'lidar_path' not in info['lidar_points']:
        raise ValueError(f'sample {info["token"]}: no LiDAR, of which Waymo files name the points')
    lidar2ego = np.asarray(info['lidar_points']['lidar2ego'], dtype=np.float64)
    path = root / POINTS / f'{index:07d}.bin'
    source = root / 'samples' / 'LIDAR_TOP' / info['lidar_points']['lidar_path']
    if not source.is_file():
        raise ValueError(
            f'sample {info["token"]}: {source} does not exist; --for waymo takes a folder whose keyframes lie in samples/SENSOR/'
        )
    _write_points(source, path, lidar2ego)
    instances = _instances(info['instances'], labels, lidar2ego)
    return {
        'sample_idx': index,
        'timestamp': int(info['timestamp'] * 1e6),
        'context_name': str(info['token']),
        'ego2global': info['ego2global'],
        'images': _images(info, np.linalg.inv(lidar2ego)),
        'lidar_points': {'lidar_path': path.name, 'num_pts_feats': 6},
        'instances': instances,
        'cam_sync_instances': instances,
    }


def _images(info: Mapping[str, Any], ego2lidar: np.ndarray) -> Dict[str, Any]:
    absent = [name for name in CAMERAS if name not in info['images']]
    if absent:
        raise ValueError(
            f'sample {info["token"]}: no camera {", ".join(absent)}; there are {list(info["images"])}. A world with '
            "Waymo's cameras: python -m geomim synthesize OUT --rig five"
        )
    images = {}
    for name in CAMERAS:
        camera = info['images'][name]
        cam2img = np.zeros((3, 4))
        cam2img[:, :3] = np.asarray(camera['cam2img'])[:3, :3]
        lidar2cam = np.asarray(camera['lidar2cam']) @ ego2lidar
        images[name] = {
            'img_path': camera['img_path'],
            'lidar2cam': lidar2cam.tolist(),
            'cam2img': cam2img.tolist(),
            'lidar2img': (cam2img @ lidar2cam).tolist(),
        }
    return images


def _instances(
    instances: Sequence[Mapping[str, Any]], labels: Mapping[int, Any], lidar2ego: np.ndarray
) -> List[Dict[str, Any]]:
    """Boxes of Waymo's classes that a LiDAR point hits, in the ego frame."""
    kept = [row for row in instances if labels.get(row['bbox_label_3d']) and row['num_lidar_pts'] > 0]
    if not kept:
        return []
    boxes = np.array([row['bbox_3d'] for row in kept], dtype=np.float64)
    boxes[:, :3] = boxes[:, :3] @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
    boxes[:, 2] -= boxes[:, 5] / 2  # nuScenes tells the middle, Waymo the bottom
    boxes[:, 6] += np.arctan2(lidar2ego[1, 0], lidar2ego[0, 0])
    return [
        {
            'bbox': [0.0, 0.0, 0.0, 0.0],
            'bbox_label': CLASSES.index(labels[row['bbox_label_3d']]),
            'bbox_label_3d': CLASSES.index(labels[row['bbox_label_3d']]),
            'bbox_3d': box.tolist(),
            'num_lidar_pts': row['num_lidar_pts'],
            'camera_id': 0,
            'group_id': number,
        }
        for number, (row, box) in enumerate(zip(kept, boxes))
    ]


def _write_points(source: Path, target: Path, lidar2ego: np.ndarray) -> None:
    points = np.fromfile(source, dtype=np.float32).reshape(-1, 5)
    moved = np.zeros((len(points), 6), dtype=np.float32)
    moved[:, :3] = points[:, :3] @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
    moved[:, 3] = points[:, 3] / 255  # nuScenes' intensity is a byte, Waymo's about 0 to 1
    with atomic_path(target) as temporary:
        Path(temporary).write_bytes(moved.tobytes())  # `tofile` tells of no full disk
