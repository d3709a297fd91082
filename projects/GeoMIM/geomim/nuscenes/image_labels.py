"""2D labels for the keyframes' images of a nuScenes folder (``python -m geomim infos ROOT --for images``).

For each split: ``nuscenes_2d_SPLIT.json``, boxes and outlines of objects in COCO's format as mmdet3d's converter writes
them for nuImages; and, where the folder has nuScenes-lidarseg, ``nuscenes_2d_SPLIT.txt`` with the images' names (without
suffix) and ``semantic_2d/NAME.png``, the labels of the LiDAR points that fall into them. An outline is the convex hull of a
3D box as the image shows it, not the silhouette of the object.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import cv2
import numpy as np
from mmengine.logging import print_log

from ..atomic import atomic_path
from ..checkpoints.info_files import read_infos
from .infos import find_version, info_names, make_infos, splits_of

CLASSES = (
    'car', 'truck', 'trailer', 'bus', 'construction_vehicle', 'bicycle', 'motorcycle', 'pedestrian', 'traffic_cone',
    'barrier',
)  # fmt: skip
SEMANTIC_FOLDER = 'semantic_2d'
UNLABELLED = 255
SEEN = ('2', '3', '4')  # visibility tokens: at least 40 % of the object is in some image
MIN_SIDE = 2.0  # pixels
NEAREST = 1.0  # metres along the optical axis, nearer points are on the vehicle itself


def make_image_labels(root: Path, out: Optional[Path] = None, version: str = '', force: bool = False) -> Path:
    """Make the files; those that are there are left as they are.

    Args:
        root: nuScenes folder.
        out: where the files go, ``root`` if None. mmdet3d's info files, which tell the splits, are taken from there or
            made there.
        version: of the tables, found if empty.
        force: make them anew.

    Returns:
        ``out``.

    Raises:
        ValueError: no nuScenes folder.
    """
    from nuscenes.nuscenes import NuScenes

    root = root.expanduser().resolve()
    version, out = version or find_version(root), (out or root).expanduser().resolve()
    if all((out / f'nuscenes_2d_{split}.json').is_file() for split in splits_of(version)) and not force:
        return out
    base = make_infos(root, out, version)
    tables = NuScenes(version, str(root), verbose=False)
    for split, name in zip(splits_of(version), info_names(version)):
        infos = read_infos(base / name)['data_list']
        if all('pts_semantic_mask_path' in info for info in infos):
            _write_semantics(tables, infos, out, split)
        else:
            print_log(f'{root} has no lidarseg/{version}: boxes only, no semantic labels for {split}', logger='current')
        _write(out / f'nuscenes_2d_{split}.json', json.dumps(coco_annotations(tables, infos)))
    return out


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        Path(temporary).write_text(text, encoding='utf-8')


def _images(tables: Any, info: Mapping[str, Any]) -> List[Tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(row of sample_data, entry of the info file) of a keyframe's images."""
    return [(tables.get('sample_data', entry['sample_data_token']), entry) for entry in info['images'].values()]


# ------------------------------------------------------------------------------------------------------------- objects


def coco_annotations(tables: Any, infos: List[Dict[str, Any]]) -> Dict[str, Any]:
    """COCO's dictionary of all images of ``infos``; files are named from the nuScenes folder on, categories are numbered from 0."""
    images: List[Dict[str, Any]] = []
    annotations: List[Dict[str, Any]] = []
    for info in infos:
        for row, _ in _images(tables, info):
            size = {'width': row['width'], 'height': row['height']}
            images.append({'id': len(images), 'token': row['token'], 'file_name': row['filename'], **size})
            for found in _objects(tables, row):
                annotations.append({'id': len(annotations), 'image_id': images[-1]['id'], **found})
    categories = [{'id': number, 'name': name} for number, name in enumerate(CLASSES)]
    return {'images': images, 'annotations': annotations, 'categories': categories}


def _objects(tables: Any, row: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """Annotations of one image, the nearest object last."""
    from nuscenes.eval.detection.utils import category_to_detection_name
    from nuscenes.utils.geometry_utils import BoxVisibility

    _, boxes, intrinsics = tables.get_sample_data(row['token'], box_vis_level=BoxVisibility.NONE)
    found = []
    for box in sorted(boxes, key=lambda one: -one.center[2]):
        name = category_to_detection_name(box.name)
        seen = tables.get('sample_annotation', box.token)['visibility_token'] in SEEN
        hull = outline(box.corners(), intrinsics, row['width'], row['height']) if name and seen else None
        if hull is not None:
            found.append({'category_id': CLASSES.index(name), **_measures(hull), 'iscrowd': 0})
    return found


def outline(corners: np.ndarray, intrinsics: np.ndarray, width: int, height: int) -> Optional[np.ndarray]:
    """The part of a box's projection that lies in the image.

    Args:
        corners: (3, 8) in the camera's frame, metres. Those behind the camera are left out, as the devkit does.
        intrinsics: (3, 3) pixels.
        width, height: of the image, pixels.

    Returns:
        (n, 2) corners of a convex polygon in pixels; None if nothing, or less than ``MIN_SIDE`` pixels on a side, is left.
    """
    from shapely.geometry import MultiPoint, Polygon, box

    corners = corners[:, corners[2] > 0]
    if corners.shape[1] < 3:
        return None
    projected = intrinsics @ corners
    hull = MultiPoint((projected[:2] / projected[2]).T).convex_hull.intersection(box(0, 0, width, height))
    if not isinstance(hull, Polygon) or hull.is_empty:
        return None
    left, top, right, bottom = hull.bounds
    return None if min(right - left, bottom - top) < MIN_SIDE else np.array(hull.exterior.coords[:-1])


def _measures(hull: np.ndarray) -> Dict[str, Any]:
    from shapely.geometry import Polygon

    (left, top), (right, bottom) = hull.min(axis=0), hull.max(axis=0)
    bbox = [round(float(value), 2) for value in (left, top, right - left, bottom - top)]
    return {
        'bbox': bbox,
        'area': float(Polygon(hull).area),
        'segmentation': [[round(float(value), 2) for value in hull.reshape(-1)]],
    }


# ----------------------------------------------------------------------------------------------------------- semantics


def _write_semantics(tables: Any, infos: List[Dict[str, Any]], out: Path, split: str) -> None:
    to_class = semantic_classes(tables)
    names = []
    for info in infos:
        scan = tables.get('sample_data', tables.get('sample', info['token'])['data']['LIDAR_TOP'])
        points = np.fromfile(os.path.join(tables.dataroot, scan['filename']), np.float32).reshape(-1, 5)[:, :3]
        path = tables.get('lidarseg', scan['token'])['filename']
        labels = to_class[np.fromfile(os.path.join(tables.dataroot, path), np.uint8)]
        for row, entry in _images(tables, info):
            names.append(row['filename'].rpartition('.')[0])
            pixels = points_in_image(points, labels, entry, row['width'], row['height'])
            file = out / SEMANTIC_FOLDER / f'{names[-1]}.png'
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(cv2.imencode('.png', pixels)[1].tobytes())
    _write(out / f'nuscenes_2d_{split}.txt', '\n'.join(names) + '\n')


def semantic_classes(tables: Any) -> np.ndarray:
    """(256,) uint8: the class, 0 to 15 in the order of the nuScenes-lidarseg challenge, of each label; else ``UNLABELLED``."""
    from nuscenes.eval.lidarseg.utils import LidarsegClassMapper

    table = np.full(256, UNLABELLED, dtype=np.uint8)
    for label, number in LidarsegClassMapper(tables).fine_idx_2_coarse_idx_mapping.items():
        if number > 0:  # 0 is the challenge's class of ignored points
            table[label] = number - 1
    return table


def points_in_image(
    points: np.ndarray, labels: np.ndarray, camera: Mapping[str, Any], width: int, height: int
) -> np.ndarray:
    """Labels of LiDAR points at the pixels that they fall into, the nearest point's where several do.

    Args:
        points: (M, 3) in the LiDAR's frame, metres.
        labels: (M,) uint8.
        camera: its entry of mmdet3d's info file: ``lidar2cam`` (4, 4), ``cam2img`` (3, 3).
        width, height: of the image, pixels.

    Returns:
        (height, width) uint8, ``UNLABELLED`` where there is no point.
    """
    lidar2cam, cam2img = np.array(camera['lidar2cam']), np.array(camera['cam2img'])[:3, :3]
    seen = points @ lidar2cam[:3, :3].T + lidar2cam[:3, 3]
    seen, labels = seen[seen[:, 2] > NEAREST], labels[seen[:, 2] > NEAREST]
    order = np.argsort(-seen[:, 2], kind='stable')
    projected = seen[order] @ cam2img.T
    column, row = np.floor(projected[:, :2] / projected[:, 2:]).astype(int).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    image = np.full((height, width), UNLABELLED, dtype=np.uint8)
    image[row[inside], column[inside]] = labels[order][inside]
    return image
