"""Where the sensors sit and what they see: rigs as small JSON files in the words of nuScenes' ``calibrated_sensor`` table.

Lengths are metres, pixels (column, row); frames: ego (x ahead, y left, z up), camera (x right, y down, z ahead), LiDAR.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple, Union

import numpy as np

RIGS = Path(__file__).parent / 'rigs'
LIDAR = 'LIDAR_TOP'


@dataclass(frozen=True)
class Camera:
    """One camera: its name, cam2ego (4, 4), intrinsics (3, 3) pixels, image size (H, W), and delay, the seconds from the
    LiDAR's time stamp to its exposure (negative: before)."""

    name: str
    cam2ego: np.ndarray
    intrinsics: np.ndarray
    size: Tuple[int, int]
    delay: float


@dataclass(frozen=True)
class Lidar:
    """A spinning LiDAR: lidar2ego (4, 4), elevations of its rings (radians, ring 0 first), columns a turn, range (m)."""

    lidar2ego: np.ndarray
    elevations: np.ndarray
    columns: int
    reach: float

    @cached_property
    def directions(self) -> np.ndarray:
        """(3, rings, columns) float32 unit vectors of the beams, LiDAR frame."""
        azimuth, elevation = np.meshgrid(np.arange(self.columns) * (2 * np.pi / self.columns), self.elevations)
        flat = np.cos(elevation)
        return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)]).astype(np.float32)


@dataclass(frozen=True)
class Rig:
    """All sensors of a vehicle."""

    cameras: Tuple[Camera, ...]
    lidar: Lidar

    @property
    def channels(self) -> Tuple[str, ...]:
        return (*(camera.name for camera in self.cameras), LIDAR)


def rotation_matrix(quaternion: Any) -> np.ndarray:
    """(w, x, y, z), normalised here -> (3, 3)."""
    w, x, y, z = np.asarray(quaternion, dtype=np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_of(rotation: np.ndarray) -> Tuple[float, float, float, float]:
    """(3, 3) -> (w, x, y, z) with w >= 0, by its largest component."""
    m = np.asarray(rotation, dtype=np.float64)
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    squares = np.array([trace, m[0, 0], m[1, 1], m[2, 2]])
    k = int(squares.argmax())
    if k == 0:
        q = np.array([1 + trace, m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    else:
        i, j, n = [(0, 1, 2), (1, 2, 0), (2, 0, 1)][k - 1]
        q = np.zeros(4)
        q[0], q[1 + i] = m[n, j] - m[j, n], 1 + 2 * m[i, i] - trace
        q[1 + j], q[1 + n] = m[j, i] + m[i, j], m[n, i] + m[i, n]
    q = q / np.linalg.norm(q) * (1 if q[0] >= 0 else -1)
    return float(q[0]), float(q[1]), float(q[2]), float(q[3])


def pose(quaternion: Any, translation: Any) -> np.ndarray:
    """(4, 4) from a quaternion (w, x, y, z) and a translation (3,), metres."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation_matrix(quaternion), translation
    return matrix


def rig_names() -> Tuple[str, ...]:
    """The rigs that come with the package."""
    return tuple(sorted(path.stem for path in RIGS.glob('*.json')))


def read_rig(source: Union[str, Path]) -> Dict[str, Any]:
    """The record of a rig that comes with the package, by name, or of a JSON file.

    Raises:
        ValueError: no such name or file, or a file that is no JSON object.
    """
    path = RIGS / f'{source}.json' if str(source) in rig_names() else Path(source)
    if not path.is_file():
        raise ValueError(f'rig {str(source)!r} is neither a file nor one of {", ".join(rig_names())}')
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'rig {path} is no JSON: {error}') from error
    if not isinstance(record, dict):
        raise ValueError(f'rig {path}: an object with "cameras" and "lidar" is needed, got a {type(record).__name__}')
    return record


def _numbers(record: Mapping[str, Any], key: str, shape: Tuple[int, ...], where: str) -> np.ndarray:
    if not isinstance(record, dict):
        raise ValueError(f'{where}: an object with "{key}" is needed, got {record!r}')
    if key not in record:
        raise ValueError(f'{where}: no "{key}"; there are {sorted(record)}')
    try:
        values = np.asarray(record[key], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{where}: "{key}" must be numbers of shape {shape}, got {record[key]!r}') from error
    if values.shape != shape or not np.isfinite(values).all():
        raise ValueError(f'{where}: "{key}" must be finite and of shape {shape}, got {record[key]!r}')
    return values


def _mount(record: Mapping[str, Any], where: str) -> np.ndarray:
    quaternion = _numbers(record, 'rotation', (4,), where)
    if abs(np.linalg.norm(quaternion) - 1) > 0.01:
        raise ValueError(f'{where}: "rotation" must be a unit quaternion (w, x, y, z), got {quaternion.tolist()}')
    return pose(quaternion, _numbers(record, 'translation', (3,), where))


def build_rig(record: Mapping[str, Any], image_width: int = 0, image_height: int = 0) -> Rig:
    """A rig from its record.

    Args:
        record: ``{"cameras": {name: {"translation": [x, y, z], "rotation": [w, x, y, z], "camera_intrinsic": 3 x 3,
            "height": H, "width": W, "delay": seconds}}, "lidar": {"translation", "rotation", "elevation_degrees": [first,
            last], "rings", "columns", "range"}}``; poses are sensor to ego.
        image_width, image_height: size of the images, pixels; intrinsics are scaled along. 0 keeps each camera's own.

    Raises:
        ValueError: an entry that is absent, misshapen or impossible.
    """
    cameras = []
    named = record.get('cameras')
    if not isinstance(named, dict) or not named:
        raise ValueError('rig: "cameras" must name at least one camera')
    for name, entry in named.items():
        where = f'rig, camera {name}'
        if not name.startswith('CAM_'):
            raise ValueError(f'{where}: names must start with CAM_, as those of nuScenes do')
        height, width = (int(_numbers(entry, key, (), where)) for key in ('height', 'width'))
        intrinsics = _numbers(entry, 'camera_intrinsic', (3, 3), where)
        if height < 1 or width < 1 or intrinsics[0, 0] <= 0 or intrinsics[1, 1] <= 0:
            raise ValueError(
                f'{where}: size {height} x {width} and focal lengths must be positive: {intrinsics.tolist()}'
            )
        if intrinsics[0, 1] or intrinsics[1, 0] or intrinsics[2].tolist() != [0, 0, 1]:
            raise ValueError(
                f'{where}: "camera_intrinsic" must have no skew and end in 0, 0, 1, got {intrinsics.tolist()}'
            )
        size = (image_height or height, image_width or width)
        scale = np.diag([size[1] / width, size[0] / height, 1.0])
        delay = float(_numbers({'delay': 0.0, **entry}, 'delay', (), where))
        cameras.append(Camera(name, _mount(entry, where), scale @ intrinsics, size, delay))
    return Rig(tuple(cameras), _build_lidar(record.get('lidar')))


def _build_lidar(entry: Any) -> Lidar:
    where = 'rig, lidar'
    if not isinstance(entry, dict):
        raise ValueError('rig: no "lidar"')
    first, last = _numbers(entry, 'elevation_degrees', (2,), where)
    rings, columns = (int(_numbers(entry, key, (), where)) for key in ('rings', 'columns'))
    if rings < 1 or rings > 255 or columns < 8:
        raise ValueError(f'{where}: 1 to 255 rings and at least 8 columns are needed, got {rings} and {columns}')
    if rings > 1 and not -90 < first < last < 90:
        raise ValueError(f'{where}: "elevation_degrees" must rise from the first ring to the last, got {first}, {last}')
    reach = float(_numbers(entry, 'range', (), where))
    if reach <= 0:
        raise ValueError(f'{where}: "range" must be positive, got {reach:g}')
    return Lidar(_mount(entry, where), np.deg2rad(np.linspace(first, last, rings)), columns, reach)
