"""Info files of a nuScenes folder by mmdet3d's own converter (``python -m geomim infos ROOT --for mmdet3d``).

The converter insists on the path ./data/nuscenes and on nuScenes' six cameras. It runs in a scratch folder with links to
the data, which stays untouched until both files are whole; for a rig of other cameras it is shown the first one six
times, and the entries of the real cameras are then put in from the tables. A rig without a LiDAR is shown with one that
stands in the ego frame at the moment of its first camera: there are its boxes then, `lidar2ego` is the identity, and no
path is named.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import mmengine
import numpy as np
from pyquaternion import Quaternion

from ..atomic import atomic_path

VERSIONS = ('v1.0-trainval', 'v1.0-mini')
SPLITS = ('train', 'val')
LIDAR = 'LIDAR_TOP'
NUSCENES_CAMERAS = ('CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_FRONT_LEFT', 'CAM_BACK', 'CAM_BACK_LEFT', 'CAM_BACK_RIGHT')


def mmdet3d_tools() -> Path:
    """The folder of mmdet3d's scripts: train.py, test.py, dataset_converters/.

    Raises:
        ValueError: an mmdet3d without them.
    """
    import mmdet3d

    package = Path(mmdet3d.__file__).parent
    for folder in (package / '.mim' / 'tools', package.parent / 'tools'):  # installed; a source checkout
        if (folder / 'train.py').is_file():
            return folder
    raise ValueError(f'mmdet3d in {package} has no tools/train.py; install it with pip or from its repository')


def find_version(root: Path) -> str:
    """The version of a nuScenes folder.

    Raises:
        ValueError: a folder without tables.
    """
    for version in VERSIONS:
        if (root / version / 'sample.json').is_file():
            return version
    raise ValueError(
        f'{root} is no nuScenes root: it has neither {VERSIONS[0]}/sample.json nor {VERSIONS[1]}/sample.json. Name the '
        'folder that holds samples/, sweeps/, maps/ and a version folder'
    )


def info_names() -> Tuple[str, ...]:
    """File names of the info files."""
    return tuple(f'nuscenes_infos_{split}.pkl' for split in SPLITS)


def make_infos(root: Path, out: Optional[Path] = None, version: str = '', force: bool = False) -> Path:
    """Make nuscenes_infos_train.pkl and nuscenes_infos_val.pkl; files that are there are left as they are.

    Args:
        root: nuScenes folder.
        out: where the files go, ``root`` if None.
        version: of the tables, found if empty.
        force: make them anew.

    Returns:
        ``out``.
    """
    root = root.expanduser().resolve()
    version, out = version or find_version(root), (out or root).expanduser().resolve()
    if all((out / name).is_file() for name in info_names()) and not force:
        return out
    cameras = _channels(root, version, 'camera')
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix='geomim-infos-') as scratch:
        view = Path(scratch) / 'data' / 'nuscenes'
        view.mkdir(parents=True)
        for entry in root.iterdir():
            if not entry.name.endswith('.pkl'):
                (view / entry.name).symlink_to(entry)
        try:
            os.chdir(scratch)
            _convert(version, cameras)
        finally:
            os.chdir(here)
        for name in info_names():
            with atomic_path(out / name) as temporary:
                Path(temporary).write_bytes((view / name).read_bytes())
    return out


def _channels(root: Path, version: str, modality: str) -> List[str]:
    sensors = mmengine.load(str(root / version / 'sensor.json'))
    return [row['channel'] for row in sensors if row['modality'] == modality]


def _convert(version: str, cameras: Sequence[str]) -> None:
    """Run the converter in the current folder, which has data/nuscenes."""
    from mmdet3d.utils import register_all_modules

    register_all_modules()
    tools = mmdet3d_tools()
    sys.path[:0] = [str(tools), str(tools.parent)]
    from dataset_converters import nuscenes_converter, update_infos_to_v2

    lidars = _channels(Path('data/nuscenes'), version, 'lidar')
    if lidars and LIDAR not in lidars:
        raise ValueError(f"sensor.json has the LiDARs {lidars}, mmdet3d's converter reads {LIDAR}; give one this name")
    if not set(NUSCENES_CAMERAS) <= set(cameras) or not lidars:
        _show_absent_sensors(cameras[0], bool(lidars))
    nuscenes_converter.create_nuscenes_infos('data/nuscenes', 'nuscenes', version=version, max_sweeps=10)
    for name in info_names():
        path = f'data/nuscenes/{name}'
        update_infos_to_v2.update_pkl_infos('nuscenes', out_dir='data/nuscenes', pkl_path=path)
        if set(cameras) != set(NUSCENES_CAMERAS):
            _put_real_cameras(path, version, cameras)
        if not lidars:
            _take_lidar_away(path)


def _show_absent_sensors(first: str, has_lidar: bool) -> None:
    """Let ``sample['data']`` of the devkit, in this process, answer every one of nuScenes' cameras with ``first``, and a LiDAR
    that is absent with one that stands in the ego frame at the moment of ``first``."""
    import nuscenes.nuscenes as devkit
    from dataset_converters import update_infos_to_v2

    class AllSensors(devkit.NuScenes):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            for sample in self.sample:
                for name in NUSCENES_CAMERAS:
                    sample['data'].setdefault(name, sample['data'][first])
            if not has_lidar:
                self._show_lidar()

        def _show_lidar(self) -> None:
            mount = {'translation': [0.0, 0.0, 0.0], 'rotation': [1.0, 0.0, 0.0, 0.0], 'camera_intrinsic': []}
            self._show('sensor', {'token': LIDAR, 'channel': LIDAR, 'modality': 'lidar'})
            self._show('calibrated_sensor', {**mount, 'token': LIDAR, 'sensor_token': LIDAR})
            for sample in self.sample:
                sample['data'][LIDAR] = f'{LIDAR} {sample["token"]}'
                own = {'token': sample['data'][LIDAR], 'calibrated_sensor_token': LIDAR, 'prev': '', 'next': ''}
                self._show('sample_data', {**self.get('sample_data', sample['data'][first]), **own})

        def _show(self, table: str, row: Dict[str, Any]) -> None:
            rows = getattr(self, table)
            self._token2ind[table][row['token']] = len(rows)
            rows.append(row)

    devkit.NuScenes = AllSensors
    update_infos_to_v2.NuScenes = AllSensors


def _take_lidar_away(path: str) -> None:
    """Leave of the shown LiDAR the frame alone; where no annotation counts a point, none is invalid for lack of them."""
    infos = mmengine.load(path)
    instances = [instance for info in infos['data_list'] for instance in info['instances']]
    for info in infos['data_list']:
        info['lidar_points'] = {'lidar2ego': info['lidar_points']['lidar2ego']}
        info.pop('lidar_sweeps', None)
    if not any(instance['bbox_3d_isvalid'] for instance in instances):
        for instance in instances:
            instance['bbox_3d_isvalid'] = True
    mmengine.dump(infos, path)


def _put_real_cameras(path: str, version: str, cameras: Sequence[str]) -> None:
    """Replace the images of every sample in an info file with those of ``cameras``."""
    from nuscenes.nuscenes import NuScenes

    tables, infos = NuScenes(version, 'data/nuscenes', verbose=False), mmengine.load(path)
    for info in infos['data_list']:
        data = tables.get('sample', info['token'])['data']
        lidar2global = np.array(info['ego2global']) @ np.array(info['lidar_points']['lidar2ego'])
        info['images'] = {name: _camera_entry(tables, data[name], lidar2global) for name in cameras if name in data}
        info.pop('cam_instances', None)
    mmengine.dump(infos, path)


def _camera_entry(tables: Any, token: str, lidar2global: np.ndarray) -> Dict[str, Any]:
    record = tables.get('sample_data', token)
    mount = tables.get('calibrated_sensor', record['calibrated_sensor_token'])
    ego = tables.get('ego_pose', record['ego_pose_token'])
    cam2ego = pose_matrix(mount)
    lidar2cam = np.linalg.inv(pose_matrix(ego) @ cam2ego) @ lidar2global
    return {
        'img_path': Path(record['filename']).name,
        'cam2img': mount['camera_intrinsic'],
        'cam2ego': cam2ego.tolist(),
        'sample_data_token': token,
        'timestamp': record['timestamp'] / 1e6,
        'lidar2cam': lidar2cam.tolist(),
    }


def pose_matrix(row: Mapping[str, Any]) -> np.ndarray:
    """(4, 4) float64 of a row of calibrated_sensor (sensor to ego) or ego_pose (ego to global), metres."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Quaternion(row['rotation']).rotation_matrix, row['translation']
    return matrix
