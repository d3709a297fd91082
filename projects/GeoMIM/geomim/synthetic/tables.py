"""The thirteen tables of nuScenes, and its ``lidarseg`` table where there are such labels, from what the keyframes' writers noted."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

import numpy as np

from .keyframe import KEYFRAME, Recipe
from .labels import ATTRIBUTES, CATEGORIES, VISIBILITY
from .layout import turn_z
from .map_expansion import location, prior_path
from .rig import LIDAR, quaternion_of

Row = Dict[str, Any]
Tables = Dict[str, List[Row]]
NAMES = (
    'category', 'attribute', 'visibility', 'instance', 'sensor', 'calibrated_sensor', 'ego_pose', 'log', 'scene',
    'sample', 'sample_data', 'sample_annotation', 'map',
)  # fmt: skip
_DAY = '2018-07-24'


def build_tables(recipe: Recipe, parts: Sequence[Sequence[Dict[str, Any]]]) -> Tables:
    """All rows.

    Args:
        parts: of each scene, what each keyframe's writer returned.
    """
    tables: Tables = {name: [] for name in NAMES}
    if 'lidarseg' not in recipe.without:
        tables['lidarseg'] = []
    for label, name in enumerate(CATEGORIES):
        row = {'token': recipe.token('category', name), 'name': name, 'description': '', 'index': label}
        tables['category'].append(row)
    for name in ATTRIBUTES:
        tables['attribute'].append({'token': recipe.token('attribute', name), 'name': name, 'description': ''})
    for token, level, _ in VISIBILITY:
        tables['visibility'].append({'token': token, 'level': level, 'description': ''})
    for channel in recipe.build_rig().channels:
        modality = 'lidar' if channel == LIDAR else 'camera'
        tables['sensor'].append({'token': recipe.token('sensor', channel), 'channel': channel, 'modality': modality})
    for index, keyframes in enumerate(parts):
        _SceneRows(recipe, index, tables).add(keyframes)
    return tables


def _link(rows: Sequence[Row]) -> None:
    """``prev`` and ``next`` of rows that follow each other."""
    for row, before, after in zip(rows, [None, *rows[:-1]], [*rows[1:], None]):
        row['prev'], row['next'] = (other['token'] if other else '' for other in (before, after))


class _SceneRows:
    """Adds one scene to the tables."""

    def __init__(self, recipe: Recipe, index: int, tables: Tables) -> None:
        self.recipe, self.index, self.tables = recipe, index, tables
        self.name = recipe.scenes[index]

    def token(self, table: str, *parts: Any) -> str:
        return self.recipe.token(table, self.index, *parts)

    def put(self, table: str, *parts: Any, **row: Any) -> None:
        """Add a row, whose token is that of ``parts``."""
        self.tables[table].append({'token': self.token(table, *parts), **row})

    def add(self, keyframes: Sequence[Dict[str, Any]]) -> None:
        self._scene()
        self._calibration()
        self._sensor_data([row for part in keyframes for row in part['sample_data']])
        self._annotations([part['boxes'] for part in keyframes])

    def _scene(self) -> None:
        frames = self.recipe.frames
        samples = [
            {
                'token': self.token('sample', frame),
                'timestamp': self.recipe.start(self.index) + frame * KEYFRAME,
                'scene_token': self.token('scene'),
            }
            for frame in range(frames)
        ]
        _link(samples)
        self.tables['sample'] += samples
        self.put(
            'scene', log_token=self.token('log'), nbr_samples=frames, first_sample_token=samples[0]['token'],
            last_sample_token=samples[-1]['token'], name=self.name, description=f'synthetic street, seed {self.recipe.seed}',
        )  # fmt: skip
        place = location(self.recipe, self.index)
        logfile = self.recipe.logfile(self.index)
        self.put('log', logfile=logfile, vehicle='geomim', date_captured=_DAY, location=place)
        filename = prior_path(self.recipe, self.index)
        self.put('map', log_tokens=[self.token('log')], category='semantic_prior', filename=filename)

    def _calibration(self) -> None:
        rig = self.recipe.build_rig()
        mounts = {camera.name: (camera.cam2ego, camera.intrinsics.tolist()) for camera in rig.cameras}
        mounts[LIDAR] = (rig.lidar.lidar2ego, [])
        for channel, (sensor2ego, intrinsics) in mounts.items():
            self.put(
                'calibrated_sensor', channel, sensor_token=self.recipe.token('sensor', channel),
                translation=sensor2ego[:3, 3].tolist(), rotation=list(quaternion_of(sensor2ego[:3, :3])),
                camera_intrinsic=intrinsics,
            )  # fmt: skip

    def _sensor_data(self, noted: Sequence[Row]) -> None:
        sizes = {camera.name: camera.size for camera in self.recipe.build_rig().cameras}
        delays = {camera.name: round(camera.delay * 1e6) for camera in self.recipe.build_rig().cameras}
        start, last = self.recipe.start(self.index), self.recipe.frames - 1
        for channel in (*sizes, LIDAR):
            rows = []
            for entry in sorted((row for row in noted if row['channel'] == channel), key=lambda row: row['timestamp']):
                time = entry['timestamp'] - start - delays.get(channel, 0)
                token = self.token('sample_data', channel, time)
                # as nuScenes' schema has it, a sweep belongs to the keyframe that follows
                frame = time // KEYFRAME if entry['is_key_frame'] else -((start - entry['timestamp']) // KEYFRAME)
                frame = min(max(frame, 0), last)
                height, width = sizes.get(channel, (0, 0))
                rows.append(
                    {
                        'token': token,
                        'sample_token': self.token('sample', frame),
                        'ego_pose_token': token,
                        'calibrated_sensor_token': self.token('calibrated_sensor', channel),
                        'timestamp': entry['timestamp'],
                        'fileformat': 'pcd' if channel == LIDAR else 'jpg',
                        'is_key_frame': entry['is_key_frame'],
                        'height': height,
                        'width': width,
                        'filename': entry['filename'],
                    }
                )
                self._ego_pose(token, entry)
                if channel == LIDAR and entry['is_key_frame'] and 'lidarseg' in self.tables:
                    filename = f'lidarseg/{self.recipe.version}/{token}_lidarseg.bin'
                    self.tables['lidarseg'].append({'token': token, 'sample_data_token': token, 'filename': filename})
            _link(rows)
            self.tables['sample_data'] += rows

    def _ego_pose(self, token: str, entry: Row) -> None:
        matrix = np.array(entry['ego2global'])
        rotation, translation = list(quaternion_of(matrix[:3, :3])), matrix[:3, 3].tolist()
        row = {'token': token, 'timestamp': entry['timestamp'], 'rotation': rotation, 'translation': translation}
        self.tables['ego_pose'].append(row)

    def _annotations(self, boxes: Sequence[Sequence[Row]]) -> None:
        """Each object is annotated from the first to the last keyframe in which a sensor sees it."""
        bodies = self.recipe.scene(self.index).bodies
        tracks: Dict[int, List[Row]] = {}
        for frame, found in enumerate(boxes):
            for box in found:
                tracks.setdefault(box['instance'], []).append(dict(box, frame=frame))
        for number, track in sorted(tracks.items()):
            seen = [place for place, box in enumerate(track) if box['seen']]
            if not seen:
                continue
            rows = [self._annotation(box, bodies[number]) for box in track[seen[0] : seen[-1] + 1]]
            _link(rows)
            self.tables['sample_annotation'] += rows
            category, ends = self.recipe.token('category', bodies[number].label), (rows[0]['token'], rows[-1]['token'])
            self.put(
                'instance', number, category_token=category, nbr_annotations=len(rows), first_annotation_token=ends[0],
                last_annotation_token=ends[1],
            )  # fmt: skip

    def _annotation(self, box: Row, body: Any) -> Row:
        attributes = [self.recipe.token('attribute', body.attribute)] if body.attribute else []
        return {
            'token': self.token('sample_annotation', box['instance'], box['frame']),
            'sample_token': self.token('sample', box['frame']),
            'instance_token': self.token('instance', box['instance']),
            'visibility_token': box['visibility'],
            'attribute_tokens': attributes,
            'translation': box['translation'],
            'size': box['size'],
            'rotation': list(quaternion_of(turn_z(box['yaw']))),
            'num_lidar_pts': box['num_lidar_pts'],
            'num_radar_pts': 0,
        }
