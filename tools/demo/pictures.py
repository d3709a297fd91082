"""Pictures for the demonstration's report, from the tables of nuscenes-devkit: boxes in all cameras, points and boxes from above."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import cv2
import numpy as np
import report

PLACES = (
    ('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT'),
    ('CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT'),
)
REACH, PIXELS = 50.0, 700  # metres to each side, pixels of the view from above
TRUE, FOUND = (40, 120, 40), (200, 30, 30)  # RGB
MIN_SCORE = 0.2


def open_tables(root: Path, version: str) -> Any:
    from nuscenes import NuScenes

    return NuScenes(version, str(root), verbose=False)


def validation_samples(tables: Any, version: str) -> List[Dict[str, Any]]:
    """The keyframes of the validation split, as far as the data has them."""
    from nuscenes.utils import splits

    names = set(splits.mini_val if version == 'v1.0-mini' else splits.val)
    scenes = {row['token'] for row in tables.scene if row['name'] in names}
    return [sample for sample in tables.sample if sample['scene_token'] in scenes]


def camera_mosaic(tables: Any, sample: Dict[str, Any]) -> np.ndarray:
    """The six cameras of a keyframe with the annotated boxes, (rows, columns, 3) uint8 RGB."""
    rows = []
    for names in PLACES:
        tiles = [annotated_image(tables, sample['data'][name]) for name in names if name in sample['data']]
        if tiles:
            height = min(tile.shape[0] for tile in tiles)
            rows.append(np.concatenate([fit_height(tile, height) for tile in tiles], axis=1))
    width = min(row.shape[1] for row in rows)
    return np.concatenate([row[:, :width] for row in rows])


def fit_height(image: np.ndarray, height: int) -> np.ndarray:
    width = round(image.shape[1] * height / image.shape[0])
    return image if image.shape[0] == height else cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def annotated_image(tables: Any, token: str) -> np.ndarray:
    """One image with its boxes, at most 640 pixels wide."""
    path, boxes, intrinsics = tables.get_sample_data(token)
    image = np.ascontiguousarray(cv2.imread(path)[..., ::-1])
    scale = min(1.0, 640 / image.shape[1])
    image = np.ascontiguousarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    intrinsics = np.diag([scale, scale, 1.0]) @ intrinsics
    for box in boxes:
        colour = tuple(int(value) for value in reversed(tables.colormap[box.name]))  # the devkit turns it for OpenCV
        box.render_cv2(image, intrinsics, normalize=True, colors=(colour, colour, colour), linewidth=1)
    return image


def top_view(tables: Any, sample: Dict[str, Any], found: Sequence[Dict[str, Any]] = ()) -> np.ndarray:
    """Points, annotated boxes (green) and detections (red) from above; ahead is up, (PIXELS, PIXELS, 3) uint8 RGB."""
    from nuscenes.utils.data_classes import LidarPointCloud
    from pyquaternion import Quaternion

    path, boxes, _ = tables.get_sample_data(sample['data']['LIDAR_TOP'])
    image = np.full((PIXELS, PIXELS, 3), 255, dtype=np.uint8)
    columns, rows = to_pixels(LidarPointCloud.from_file(path).points[:2])
    inside = (columns >= 0) & (columns < PIXELS) & (rows >= 0) & (rows < PIXELS)
    image[rows[inside], columns[inside]] = (150, 150, 160)
    draw_boxes(image, [box for box in boxes if tables.get('sample_annotation', box.token)['num_lidar_pts'] > 0], TRUE)
    record = tables.get('sample_data', sample['data']['LIDAR_TOP'])
    moved = [detected_box(entry) for entry in found]
    for box in moved:
        for table in ('ego_pose', 'calibrated_sensor'):
            pose = tables.get(table, record[f'{table}_token'])
            box.translate(-np.array(pose['translation']))
            box.rotate(Quaternion(pose['rotation']).inverse)
    draw_boxes(image, moved, FOUND)
    return image


def detected_box(entry: Mapping[str, Any]) -> Any:
    """An entry of a results file as the devkit's box, global."""
    from nuscenes.utils.data_classes import Box
    from pyquaternion import Quaternion

    return Box(entry['translation'], entry['size'], Quaternion(entry['rotation']))


def to_pixels(points: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """LiDAR x, y (2, M), metres -> columns, rows."""
    scale = PIXELS / (2 * REACH)
    columns, rows = np.floor((points[0] + REACH) * scale), np.floor((REACH - points[1]) * scale)
    return columns.astype(int), rows.astype(int)


def draw_boxes(image: np.ndarray, boxes: Sequence[Any], colour: Tuple[int, int, int]) -> None:
    for box in boxes:
        corners = np.stack(to_pixels(box.bottom_corners()[:2]), axis=1).astype(np.int32)
        cv2.polylines(image, [corners], True, colour, 1, cv2.LINE_AA)


def world_pictures(root: Path, version: str) -> List[report.Figure]:
    """A validation keyframe as its cameras show it."""
    tables = open_tables(root, version)
    samples = validation_samples(tables, version) or tables.sample
    caption = 'A validation keyframe: its cameras with the annotated boxes, drawn by nuscenes-devkit.'
    return [report.Figure(camera_mosaic(tables, samples[len(samples) // 3]), caption)]


def read_results(tables: Any, version: str, results: Path) -> List[Tuple[Dict[str, Any], List[Dict[str, Any]]]]:
    """The validation keyframes of the newest results file under ``results``, each with its detections, the surest first."""
    files = sorted(results.rglob('results_nusc.json'), key=lambda path: path.stat().st_mtime)
    found = json.loads(files[-1].read_text(encoding='utf-8'))['results'] if files else {}
    return [
        (sample, sorted(found[sample['token']], key=lambda entry: -entry['detection_score']))
        for sample in validation_samples(tables, version)
        if sample['token'] in found
    ]


def detection_pictures(root: Path, version: str, results: Path, count: int = 2) -> List[report.Figure]:
    """What the teacher found in validation keyframes, from the newest results file under ``results``; none without one."""
    tables = open_tables(root, version)
    keyframes = read_results(tables, version, results)
    figures = []
    for number in range(min(count, len(keyframes))):
        sample, entries = keyframes[(2 * number + 1) * len(keyframes) // (2 * count)]
        sure = [entry for entry in entries if entry['detection_score'] >= MIN_SCORE]
        caption = (
            "From above: LiDAR points, annotated boxes (green), the teacher's detections with a score of at least "
            f'{MIN_SCORE:g} (red).'
        )
        figures.append(report.Figure(top_view(tables, sample, sure), caption))
    return figures


def detector_pictures(root: Path, version: str, results: Path) -> List[report.Figure]:
    """What the camera detector found in a validation keyframe, in all cameras and from above; none without a results file.

    It is the keyframe of ``world_pictures``. Drawn are as many detections as there are annotated boxes, the surest ones.
    """
    tables = open_tables(root, version)
    keyframes = read_results(tables, version, results)
    if not keyframes:
        return []
    sample, entries = keyframes[len(keyframes) // 3]
    truth = [box for box in tables.get_boxes(sample['data']['LIDAR_TOP']) if points_inside(tables, box) > 0]
    sure = entries[: len(truth)]
    what = 'annotated boxes with LiDAR points (green), '
    if sure:
        scores = f'scores from {sure[0]["detection_score"]:.2f} to {sure[-1]["detection_score"]:.2f}'
        what += f'the {len(sure)} surest of {len(entries)} detections (red; {scores})'
    else:
        what += 'no detection'
    cameras, above = keyframe_pictures(tables, sample, truth, [detected_box(entry) for entry in sure])
    seen = 'The LiDAR points are for the eye; the detector did not see them.'
    return [
        report.Figure(cameras, f'The detector started from GeoMIM, in the cameras: {what}.'),
        report.Figure(above, f'The same keyframe from above; ahead is up, circles are 20 m apart: {what}. {seen}'),
    ]


def points_inside(tables: Any, box: Any) -> int:
    count: int = tables.get('sample_annotation', box.token)['num_lidar_pts']
    return count


def keyframe_pictures(
    tables: Any, sample: Dict[str, Any], truth: Sequence[Any], found: Sequence[Any]
) -> Tuple[np.ndarray, np.ndarray]:
    """A keyframe's cameras and its view from above with the devkit's boxes, which are global; (R, S, 3) uint8 RGB."""
    from nuscenes.utils.data_classes import LidarPointCloud

    from geomim.bevdet import drawing

    ego2global, lidar2ego = poses(tables, sample['data']['LIDAR_TOP'])
    boxes = [ego_boxes(group, np.linalg.inv(ego2global)) for group in (truth, found)]
    groups = [drawing.DrawnBoxes(*pair) for pair in zip(boxes, (drawing.TRUE, drawing.FOUND))]
    names = [name for row in PLACES for name in row if name in sample['data']]
    images, projections = [], []
    for name in names:
        path, _, intrinsics = tables.get_sample_data(sample['data'][name])
        images.append(cv2.imread(path)[..., ::-1])
        camera_ego2global, camera2ego = poses(tables, sample['data'][name])
        projections.append(intrinsics @ (np.linalg.inv(camera_ego2global @ camera2ego) @ ego2global)[:3])
    cloud = LidarPointCloud.from_file(tables.get_sample_data_path(sample['data']['LIDAR_TOP']))
    points = cloud.points[:3].T @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
    mosaic = drawing.draw_cameras(images, groups, np.stack(projections), names)
    return mosaic, drawing.draw_bev(points, boxes[1], boxes[0], REACH, PIXELS)


def poses(tables: Any, token: str) -> Tuple[np.ndarray, np.ndarray]:
    """Ego to global and sensor to ego, (4, 4), at a sensor's own time stamp."""
    from nuscenes.utils.geometry_utils import transform_matrix
    from pyquaternion import Quaternion

    record = tables.get('sample_data', token)
    rows = [tables.get(table, record[f'{table}_token']) for table in ('ego_pose', 'calibrated_sensor')]
    ego, sensor = (transform_matrix(row['translation'], Quaternion(row['rotation'])) for row in rows)
    return ego, sensor


def ego_boxes(boxes: Sequence[Any], global2ego: np.ndarray) -> Any:
    """The devkit's global boxes as mmdet3d's, upright in the ego frame."""
    import torch
    from mmdet3d.structures import LiDARInstance3DBoxes

    rows = []
    for box in boxes:
        centre = global2ego[:3, :3] @ box.center + global2ego[:3, 3]
        heading = global2ego[:3, :3] @ box.rotation_matrix[:, 0]
        width, length, height = box.wlh
        rows.append([*centre, length, width, height, np.arctan2(heading[1], heading[0])])
    tensor = torch.tensor(np.array(rows).reshape(-1, 7), dtype=torch.float32)
    return LiDARInstance3DBoxes(tensor, origin=(0.5, 0.5, 0.5))
