"""Pictures for the demonstration's report: keyframes of nuscenes-devkit's tables as ``geomim.bevdet.inference.drawing`` draws them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np
import report

from geomim.bevdet.inference import drawing
from geomim.mmdet3d.images import read_image

PLACES = (
    ('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT'),
    ('CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT'),
)
REACH, PIXELS = 50.0, 700  # metres to each side, pixels of the view from above
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


def detected_box(entry: Mapping[str, Any]) -> Any:
    """An entry of a results file as the devkit's box, global."""
    from nuscenes.utils.data_classes import Box
    from pyquaternion import Quaternion

    return Box(entry['translation'], entry['size'], Quaternion(entry['rotation']))


def world_pictures(root: Path, version: str) -> List[report.Figure]:
    """A validation keyframe as its cameras show it."""
    tables = open_tables(root, version)
    samples = validation_samples(tables, version) or tables.sample
    sample = samples[len(samples) // 3]
    by_class: Dict[str, List[Any]] = {}
    for box in tables.get_boxes(sample['data']['LIDAR_TOP']):
        by_class.setdefault(box.name, []).append(box)
    groups = [(boxes, tables.colormap[name]) for name, boxes in by_class.items()]
    caption = (
        "A validation keyframe: its cameras with the annotated boxes, in nuscenes-devkit's colours of the classes."
    )
    return [report.Figure(cameras(tables, sample, groups), caption)]


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
        found = [detected_box(entry) for entry in sure]
        figures.append(report.Figure(from_above(tables, sample, annotated(tables, sample), found), caption))
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
    truth = annotated(tables, sample)
    sure = entries[: len(truth)]
    what = 'annotated boxes with LiDAR points (green), '
    if sure:
        scores = f'scores from {sure[0]["detection_score"]:.2f} to {sure[-1]["detection_score"]:.2f}'
        what += f'the {len(sure)} surest of {len(entries)} detections (red; {scores})'
    else:
        what += 'no detection'
    found = [detected_box(entry) for entry in sure]
    pictures = (
        cameras(tables, sample, [(truth, drawing.TRUE), (found, drawing.FOUND)]),
        from_above(tables, sample, truth, found),
    )
    seen = 'The LiDAR points are for the eye; the detector did not see them.'
    return [
        report.Figure(pictures[0], f'The detector started from GeoMIM, in the cameras: {what}.'),
        report.Figure(
            pictures[1], f'The same keyframe from above; ahead is up, circles are 20 m apart: {what}. {seen}'
        ),
    ]


def annotated(tables: Any, sample: Dict[str, Any]) -> List[Any]:
    """The annotated boxes with LiDAR points, global."""
    boxes = tables.get_boxes(sample['data']['LIDAR_TOP'])
    return [box for box in boxes if tables.get('sample_annotation', box.token)['num_lidar_pts'] > 0]


def cameras(
    tables: Any, sample: Dict[str, Any], groups: Sequence[Tuple[Sequence[Any], Tuple[int, int, int]]]
) -> np.ndarray:
    """A keyframe's cameras with groups of the devkit's global boxes and their colours, (R, S, 3) uint8 RGB."""
    ego2global, _ = poses(tables, sample['data']['LIDAR_TOP'])
    drawn = [drawing.DrawnBoxes(ego_boxes(boxes, np.linalg.inv(ego2global)), tuple(colour)) for boxes, colour in groups]
    names = [name for row in PLACES for name in row if name in sample['data']]
    images, projections = [], []
    for name in names:
        path, _, intrinsics = tables.get_sample_data(sample['data'][name])
        images.append(read_image(path)[..., ::-1])
        camera_ego2global, camera2ego = poses(tables, sample['data'][name])
        projections.append(intrinsics @ (np.linalg.inv(camera_ego2global @ camera2ego) @ ego2global)[:3])
    return drawing.draw_cameras(images, drawn, np.stack(projections), names)


def from_above(tables: Any, sample: Dict[str, Any], truth: Sequence[Any], found: Sequence[Any]) -> np.ndarray:
    """A keyframe's LiDAR points and the devkit's global boxes from above, (R, S, 3) uint8 RGB."""
    from nuscenes.utils.data_classes import LidarPointCloud

    ego2global, lidar2ego = poses(tables, sample['data']['LIDAR_TOP'])
    found_boxes, true_boxes = (ego_boxes(boxes, np.linalg.inv(ego2global)) for boxes in (found, truth))
    cloud = LidarPointCloud.from_file(tables.get_sample_data_path(sample['data']['LIDAR_TOP']))
    points = cloud.points[:3].T @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
    return drawing.draw_bev(points, found_boxes, true_boxes, REACH, PIXELS)


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
