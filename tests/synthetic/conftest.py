"""One small world for all tests of this room, with what its sensors saw, and the plain twins."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, Iterator, List, Tuple

import cv2
import numpy as np
import pytest

from geomim.synthetic import keyframe
from geomim.synthetic.keyframe import KEYFRAME, Recipe
from geomim.synthetic.layout import Scene
from geomim.synthetic.sensors import Scan, View
from geomim.synthetic.world import make_recipe, write_world

from . import plain as plain_world

SIZE = (113, 200)


@pytest.fixture(autouse=True, scope='session')
def _one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


@pytest.fixture(scope='session')
def plain() -> ModuleType:
    return plain_world


@dataclass(frozen=True)
class Moment:
    """A keyframe: views by camera name, its scan, and the poses and rows of the tables that go with them."""

    index: int
    frame: int
    scene: Scene
    views: Dict[str, View]
    scan: Scan
    world2global: np.ndarray
    sample: Dict[str, Any]

    @property
    def time(self) -> float:
        return self.frame * KEYFRAME / 1e6


@dataclass(frozen=True)
class World:
    root: Path
    recipe: Recipe
    views: Dict[Tuple[int, str, int], View]
    scans: Dict[Tuple[int, int], Scan]


@pytest.fixture(scope='session')
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """1 + 1 scenes of three keyframes, written by the real thing, which is overheard while it writes."""
    recipe = make_recipe(scenes='1+1', frames=3, image_size=SIZE, seed=3)
    views: Dict[Tuple[int, str, int], View] = {}
    scans: Dict[Tuple[int, int], Scan] = {}
    camera, lidar = keyframe._Writer.camera, keyframe._Writer.lidar

    def overheard_camera(writer: Any, sensor: Any, time: int, key: bool) -> View:
        views[writer.index, sensor.name, time] = camera(writer, sensor, time, key)
        return views[writer.index, sensor.name, time]

    def overheard_lidar(writer: Any, time: int, key: bool) -> Scan:
        scans[writer.index, time] = lidar(writer, time, key)
        return scans[writer.index, time]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyframe._Writer, 'camera', overheard_camera)
        patch.setattr(keyframe._Writer, 'lidar', overheard_lidar)
        root = write_world(tmp_path_factory.mktemp('synthetic') / 'world', recipe)
    return World(root, recipe, views, scans)


@pytest.fixture(scope='session')
def tables(world: World) -> Any:
    """The devkit's reader of the world; any warning of its is an error."""
    from nuscenes.nuscenes import NuScenes

    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return NuScenes(world.recipe.version, str(world.root), verbose=False)


@pytest.fixture(scope='session')
def moments(world: World, tables: Any) -> List[Moment]:
    moments = []
    for index, name in enumerate(world.recipe.scenes):
        token = next(row['first_sample_token'] for row in tables.scene if row['name'] == name)
        for frame in range(world.recipe.frames):
            sample = tables.get('sample', token)
            views = {camera: world.views[index, camera, frame * KEYFRAME] for camera in _cameras(world)}
            scan = world.scans[index, frame * KEYFRAME]
            world2global = keyframe.place_scene(world.recipe, index)[0]
            moments.append(Moment(index, frame, world.recipe.scene(index), views, scan, world2global, sample))
            token = sample['next']
    return moments


def _cameras(world: World) -> Tuple[str, ...]:
    return tuple(camera.name for camera in world.recipe.build_rig().cameras)


@pytest.fixture(scope='session')
def table_pose(tables: Any) -> Any:
    """sensor2global (4, 4) of a sample_data token, by the tables alone."""
    from nuscenes.utils.geometry_utils import transform_matrix
    from pyquaternion import Quaternion

    def pose(token: str) -> np.ndarray:
        data = tables.get('sample_data', token)
        matrices = [
            transform_matrix(row['translation'], Quaternion(row['rotation']))
            for row in (
                tables.get('ego_pose', data['ego_pose_token']),
                tables.get('calibrated_sensor', data['calibrated_sensor_token']),
            )
        ]
        return matrices[0] @ matrices[1]

    return pose
