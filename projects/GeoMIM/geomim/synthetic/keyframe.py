"""One keyframe and the sweeps that follow it: renders, writes the files, and tells the tables what was written.

A keyframe depends on the recipe, its scene and its number alone, so that any number of processes write the same bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np

from .cast import freeze, rotate
from .labels import VISIBILITY
from .layout import Body, Scene, make_scene, turn_z
from .occupancy import Observer, Occupancy
from .rig import LIDAR, Rig, build_rig
from .sensors import Scan, View, photograph, scan

KEYFRAME = 500_000  # microseconds
SWEEPS = 10  # LiDAR turns a keyframe interval
CAMERA_FRAMES = 6  # camera frames a keyframe interval, if camera sweeps are wanted
ANNOTATED = 60.0  # metres around the ego vehicle
OPTIONAL = ('gts', 'lidarseg')  # folders with labels that not every task needs
FIRST_TIME = 1_532_402_927_000_000  # microseconds since 1970
SCENE_SPACING = 1000_000_000


@dataclass(frozen=True)
class Recipe:
    """What a world is made from; equal recipes give equal bytes.

    Args:
        version: of the tables, 'v1.0-mini' or 'v1.0-trainval'.
        scenes: their names, from the official splits.
        frames: keyframes a scene.
        image_size: (H, W) pixels, 0 for each camera's own.
        seed: of everything.
        rig: record of the rig.
        camera_sweeps: cameras at 12 Hz instead of keyframes only.
        without: those of ``OPTIONAL`` that are left out; all other files are the same without them.
    """

    version: str
    scenes: Tuple[str, ...]
    frames: int
    image_size: Tuple[int, int]
    seed: int
    rig: Dict[str, Any]
    camera_sweeps: bool = False
    without: Tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Seconds from the first to the last keyframe."""
        return (self.frames - 1) * KEYFRAME / 1e6

    def build_rig(self) -> Rig:
        return build_rig(self.rig, image_width=self.image_size[1], image_height=self.image_size[0])

    def scene(self, index: int) -> Scene:
        return make_scene(self.seed, index, self.duration)

    def start(self, index: int) -> int:
        """Time stamp of a scene's first keyframe, microseconds."""
        return FIRST_TIME + index * SCENE_SPACING

    def logfile(self, index: int) -> str:
        return f'geomim-{self.seed}-{self.scenes[index]}'

    def token(self, *parts: Any) -> str:
        """32 hexadecimal digits for a thing of this world."""
        return hashlib.md5('/'.join(map(str, ('geomim', self.seed, *parts))).encode()).hexdigest()


def place_scene(recipe: Recipe, index: int, scene: Optional[Scene] = None) -> Tuple[np.ndarray, Tuple[float, float]]:
    """world2global (4, 4) of a scene and the extent (metres along x, y) of its map, which begins at the origin.

    Args:
        scene: ``recipe.scene(index)``, where it has been made already.
    """
    scene = scene or recipe.scene(index)
    heading = float(np.random.default_rng([recipe.seed, index, 2]).uniform(-np.pi, np.pi))
    ends = [freeze(scene, time).position for time in (0.0, recipe.duration)]
    turned = np.stack(ends, axis=1).reshape(-1, 3) @ turn_z(heading).T
    margin = 30.0
    lower, upper = turned[:, :2].min(axis=0) - margin, turned[:, :2].max(axis=0) + margin
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:2, 3] = turn_z(heading), -lower
    return matrix, (float(upper[0] - lower[0]), float(upper[1] - lower[1]))


def write_keyframe(root: Path, recipe: Recipe, index: int, frame: int) -> Dict[str, Any]:
    """Write the files of one keyframe and of the sweeps up to the next.

    Returns:
        Rows for the tables, JSON: ``sample_data`` (channel, time stamp, file, whether key, ego2global) and ``boxes``.
    """
    writer = _Writer(root, recipe, index)
    scene, rig = writer.scene, writer.rig
    key = frame * KEYFRAME
    views = [writer.camera(camera, key, True) for camera in rig.cameras]
    cloud = writer.lidar(key, True)
    if 'lidarseg' not in recipe.without:
        writer.lidarseg(cloud, frame)
    if 'gts' not in recipe.without:
        writer.occupancy(Observer(rig).observe(scene, key / 1e6, views, cloud), frame)
    if frame + 1 < recipe.frames:
        for turn in range(1, SWEEPS):
            writer.lidar(key + turn * KEYFRAME // SWEEPS, False)
        if recipe.camera_sweeps:
            for step in range(1, CAMERA_FRAMES):
                for camera in rig.cameras:
                    writer.camera(camera, key + step * KEYFRAME // CAMERA_FRAMES, False)
    return {'sample_data': writer.rows, 'boxes': _boxes(writer.world2global, scene, views, cloud, key / 1e6)}


class _Writer:
    """Writes one scene's files and remembers them."""

    def __init__(self, root: Path, recipe: Recipe, index: int) -> None:
        self.root, self.recipe, self.index = root, recipe, index
        self.scene, self.rig = recipe.scene(index), recipe.build_rig()
        self.world2global, _ = place_scene(recipe, index, self.scene)
        self.rows: List[Dict[str, Any]] = []

    def _path(self, channel: str, time: int, key: bool, suffix: str) -> Path:
        stamp = self.recipe.start(self.index) + time
        name = f'{self.recipe.logfile(self.index)}__{channel}__{stamp}{suffix}'
        ego2global = self.world2global @ self.scene.ego2world(time / 1e6)
        row = {'channel': channel, 'timestamp': stamp, 'is_key_frame': key, 'ego2global': ego2global.tolist()}
        row['filename'] = f'{"samples" if key else "sweeps"}/{channel}/{name}'
        self.rows.append(row)
        path = self.root / row['filename']
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _random(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self.recipe.seed, self.index, 3, *numbers])

    def camera(self, camera: Any, time: int, key: bool) -> View:
        number = self.rig.cameras.index(camera)
        exposure = time + round(camera.delay * 1e6)
        view = photograph(self.scene, camera, exposure / 1e6, self._random(number, time))
        encoded = cv2.imencode('.jpg', view.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        self._path(camera.name, exposure, key, '.jpg').write_bytes(encoded.tobytes())
        return view

    def lidar(self, time: int, key: bool) -> Scan:
        cloud = scan(self.scene, self.rig.lidar, time / 1e6, self._random(len(self.rig.cameras), time))
        self._path(LIDAR, time, key, '.pcd.bin').write_bytes(cloud.points.tobytes())
        return cloud

    def lidarseg(self, cloud: Scan, frame: int) -> None:
        token = self.recipe.token('sample_data', self.index, LIDAR, frame * KEYFRAME)
        path = self.root / 'lidarseg' / self.recipe.version / f'{token}_lidarseg.bin'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cloud.labels.tobytes())

    def occupancy(self, labels: Occupancy, frame: int) -> None:
        token = self.recipe.token('sample', self.index, frame)
        folder = self.root / 'gts' / self.recipe.scenes[self.index] / token
        folder.mkdir(parents=True, exist_ok=True)
        masks = {'mask_lidar': labels.mask_lidar, 'mask_camera': labels.mask_camera}
        save_npz(folder / 'labels.npz', {'semantics': labels.semantics, **masks})


def save_npz(path: Path, arrays: Dict[str, np.ndarray]) -> None:
    """``numpy.savez_compressed`` without the time of day in the archive."""
    import io
    import zipfile

    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=4) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array))
            archive.writestr(
                zipfile.ZipInfo(f'{name}.npy', (1980, 1, 1, 0, 0, 0)), buffer.getvalue(), zipfile.ZIP_DEFLATED
            )


class PointIndex:
    """Points (M, 3), sorted along x so that those near a box are found quickly."""

    def __init__(self, points: np.ndarray) -> None:
        self.points = points[np.argsort(points[:, 0], kind='stable')]

    def count_in_box(self, position: np.ndarray, yaw: float, size: Sequence[float]) -> int:
        """How many points lie in the box (length, width, height) that stands on ``position``."""
        length, width, height = size
        reach = np.hypot(length, width) / 2
        first, last = np.searchsorted(self.points[:, 0], [position[0] - reach, position[0] + reach])
        local = self.points[first:last] - position
        cos, sin = np.cos(yaw), np.sin(yaw)
        along, across = local[:, 0] * cos + local[:, 1] * sin, local[:, 1] * cos - local[:, 0] * sin
        flat = (np.abs(along) <= length / 2) & (np.abs(across) <= width / 2)
        return int(np.count_nonzero(flat & (local[:, 2] >= 0) & (local[:, 2] <= height)))


def _boxes(
    world2global: np.ndarray, scene: Scene, views: Sequence[View], cloud: Scan, time: float
) -> List[Dict[str, Any]]:
    """Every road user near the ego vehicle: its box, and how much of it the sensors see."""
    ego = scene.ego2world(time)[:3, 3]
    count = len(scene.bodies)
    alone = np.sum([view.hits.alone for view in views], axis=0)
    seen = np.sum([view.hits.seen(view.frozen.owner, count) for view in views], axis=0)
    local = cloud.points[:, :3].T.astype(np.float64)
    points = PointIndex((rotate(cloud.lidar2world[:3, :3], local) + cloud.lidar2world[:3, 3:]).T)
    boxes = []
    for number, body in enumerate(scene.bodies):
        position, yaw = cloud.frozen.position[number], float(cloud.frozen.yaw[number])
        if not body.detection or np.hypot(*(position - ego)[:2]) > ANNOTATED:
            continue
        inside = points.count_in_box(position, yaw, body.size)
        boxes.append(_box(body, number, world2global, position, yaw, inside, seen[number] / max(1, alone[number])))
    return boxes


def _box(
    body: Body, number: int, world2global: np.ndarray, position: np.ndarray, yaw: float, points: int, share: float
) -> Dict[str, Any]:
    centre = world2global @ np.append(position + [0, 0, body.size[2] / 2], 1)
    length, width, height = body.size
    return {
        'instance': number,
        'translation': centre[:3].tolist(),
        'size': [width, length, height],
        'yaw': yaw + float(np.arctan2(world2global[1, 0], world2global[0, 0])),
        'num_lidar_pts': points,
        'visibility': next(token for token, _, upper in VISIBILITY if share < upper),
        'seen': bool(points > 0 or share > 0),
    }
