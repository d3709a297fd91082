"""A small world of another rig than nuScenes'."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest


def unequal_rig(five: Path) -> Dict[str, Any]:
    """Five cameras, a sixth of their size (320 x 213 and 320 x 147), each with a focal length of its own."""
    rig = json.loads(five.read_text())
    for number, camera in enumerate(rig['cameras'].values()):
        intrinsics = [[value / 6 for value in row] for row in camera['camera_intrinsic'][:2]]
        for axis in (0, 1):
            intrinsics[axis][axis] *= 1 - 0.1 * number
        camera['camera_intrinsic'] = [*intrinsics, [0.0, 0.0, 1.0]]
        camera['height'], camera['width'] = camera['height'] // 6, camera['width'] // 6
    return rig


@pytest.fixture(scope='session')
def five_world(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 + 1 scenes of two keyframes seen by five cameras, v1.0-trainval; its rig lies beside it as five.json."""
    for name in ('cv2', 'nuscenes', 'mmdet3d'):
        pytest.importorskip(name)
    root = tmp_path_factory.mktemp('rig') / 'five'
    rig = root.with_suffix('.json')
    rig.write_text(json.dumps(unequal_rig(repository / 'projects/GeoMIM/geomim/synthetic/rigs/five.json')))
    command = [sys.executable, '-m', 'geomim', 'synthesize', str(root), '--rig', str(rig), '--scenes', '1+1']
    command += ['--frames', '2', '--image-size', '0', '0', '--workers', '1']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return root
