"""A frame of the dataset with what a detector has found in it, as one picture.

Shape legend: M boxes, P points, R x S rows and columns. Metres.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

import cv2
import numpy as np
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from ...mmdet3d.images import read_image
from ..boxes.transform import transform_boxes
from .drawing import FOUND, TRUE, DrawnBoxes, draw_bev, draw_cameras

_COLUMNS, _MOSAIC_WIDTH = 3, 1600  # cameras side by side, pixels
_LEAST_VIEW = 400  # pixels of the view from above
_QUALITY = 90  # of JPEG files


def draw_frame(
    info: Mapping[str, Any], sample: Det3DDataSample, sure: InstanceData, classes: Sequence[str]
) -> np.ndarray:
    """Detections and, if there are any, annotations of a frame in all its cameras and from above.

    Args:
        info: of the dataset.
        sample: whose ``cam_names`` order the pictures and whose ``lidar2key_ego`` places the boxes.
        sure: ``InstanceData`` of the boxes to draw, in the key ego frame.
        classes: names of the labels.

    Returns:
        (R, S, 3) uint8 RGB.
    """
    lidar2ego = np.asarray(sample.lidar2key_ego, dtype=np.float64)
    captions = [f'{classes[label]} {score:.2f}' for label, score in zip(sure.labels_3d, sure.scores_3d.tolist())]
    found, truth = DrawnBoxes(sure.bboxes_3d, FOUND, captions), annotated_boxes(info, lidar2ego)
    cameras = [info['images'][name] for name in sample.cam_names]
    ego2image = np.stack([_lidar2image(camera) @ np.linalg.inv(lidar2ego) for camera in cameras])
    groups = [*([DrawnBoxes(truth, TRUE)] if truth is not None else []), found]
    width = _MOSAIC_WIDTH // min(_COLUMNS, len(cameras))
    images = [np.ascontiguousarray(read_image(camera['img_path'])[..., ::-1]) for camera in cameras]
    mosaic = draw_cameras(images, groups, ego2image, sample.cam_names, _COLUMNS, width)
    above = draw_bev(read_points(info, lidar2ego), found.boxes, truth, pixels=max(_LEAST_VIEW, mosaic.shape[0]))
    mosaic = np.pad(mosaic, ((0, above.shape[0] - mosaic.shape[0]), (0, 0), (0, 0)))
    return np.concatenate([mosaic, above], axis=1)


def annotated_boxes(info: Mapping[str, Any], lidar2ego: np.ndarray) -> Optional[LiDARInstance3DBoxes]:
    """Annotated boxes of the detector's classes, (M, 9) in the key ego frame; None without annotations."""
    annotations = info.get('eval_ann_info')
    if annotations is None:
        return None
    return transform_boxes(annotations['gt_bboxes_3d'][annotations['gt_labels_3d'] >= 0], lidar2ego)


def read_points(info: Mapping[str, Any], lidar2ego: np.ndarray) -> Optional[np.ndarray]:
    """LiDAR points (P, 3) in the key ego frame; None where the file is absent."""
    lidar = info.get('lidar_points') or {}
    path = Path(lidar.get('lidar_path') or '')
    if not path.is_file():
        return None
    values = np.fromfile(path, dtype=np.float32)
    features = int(lidar.get('num_pts_feats', 5))
    points = values[: values.size // features * features].reshape(-1, features)[:, :3]
    return points @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]


def save_jpeg(path: Path, picture: np.ndarray) -> None:
    """Write an (R, S, 3) uint8 RGB picture as a JPEG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    path.write_bytes(cv2.imencode('.jpg', picture[..., ::-1], options)[1].tobytes())


def _lidar2image(camera: Mapping[str, Any]) -> np.ndarray:
    """(4, 4): LiDAR frame to pixels of the recorded image times depth."""
    intrinsics = np.eye(4)
    intrinsics[:3, :3] = np.asarray(camera['cam2img'], dtype=np.float64)[:3, :3]
    return intrinsics @ np.asarray(camera['lidar2cam'], dtype=np.float64)
