"""Info files of a nuScenes folder by mmdet3d's own converter (``python -m geomim infos ROOT --for mmdet3d``).

The converter insists on the path ./data/nuscenes and on nuScenes' six cameras. It runs in a scratch folder with links to
the data, which stays untouched until both files are whole; for a rig of other cameras it is shown the first one six
times, and the entries of the real cameras are then put in from the tables. A rig without a LiDAR is shown with one that
stands in the ego frame at the moment of its first camera: there are its boxes then, `lidar2ego` is the identity, and no
path is named.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import posixpath
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

import mmengine
import numpy as np
from mmengine.logging import print_log
from pyquaternion import Quaternion

from ..atomic import atomic_path, room_for
from ..checkpoints.info_files import describe_if_old, read_infos

TEST = 'v1.0-test'
VERSIONS = ('v1.0-trainval', 'v1.0-mini', TEST)
SPLITS = ('train', 'val')
BESIDE = 'mmdet3d-1.1'  # folder for new info files where those of an older version have their names
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
    """The version of a nuScenes folder; where there are several, the first of ``VERSIONS``.

    Raises:
        ValueError: a folder without tables.
    """
    for version in VERSIONS:
        if (root / version / 'sample.json').is_file():
            return version
    raise ValueError(
        f'{root} is no nuScenes root: it has neither {" nor ".join(f"{version}/sample.json" for version in VERSIONS)}. '
        'Name the folder that holds samples/, sweeps/, maps/ and a version folder'
    )


def read_table(path: Path) -> Any:
    """The rows of a table.

    Raises:
        ValueError: a file that is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'table {path} is no JSON ({error}): an interrupted download or copy?') from error


def splits_of(version: str) -> Tuple[str, ...]:
    """The splits that the scenes of a version fall into."""
    return ('test',) if version == TEST else SPLITS


def info_names(version: str = '') -> Tuple[str, ...]:
    """File names of a version's info files; empty is any version with annotations."""
    return tuple(f'nuscenes_infos_{split}.pkl' for split in splits_of(version))


def make_infos(root: Path, out: Optional[Path] = None, version: str = '', force: bool = False) -> Path:
    """Make nuscenes_infos_train.pkl and nuscenes_infos_val.pkl, or nuscenes_infos_test.pkl; what is there is left as it is.

    Args:
        root: nuScenes folder.
        out: where the files go, ``root`` if None.
        version: of the tables, found if empty. All scenes of v1.0-test are its split, without annotations.
        force: make them anew.

    Returns:
        ``out``; its folder ``mmdet3d-1.1`` where files of an older version of mmdet3d have the names and ``force`` is not set.
    """
    root = root.expanduser().resolve()
    version, out = version or find_version(root), (out or root).expanduser().resolve()
    names = info_names(version)
    if not force:
        out = beside_old(out, names)
        if has_infos(out, names):
            return out
    cameras = _channels(root, version, 'camera')
    here = Path.cwd()
    with _view_of(root, out) as view:
        try:
            os.chdir(view.parents[1])
            _convert(version, cameras)
        finally:
            os.chdir(here)
        for name in names:
            with atomic_path(out / name) as temporary:
                Path(temporary).write_bytes((view / name).read_bytes())
    return out


def has_infos(folder: Path, names: Sequence[str]) -> bool:
    """Whether a folder has all of these info files, and none of them is of mmdet3d before 1.1."""
    return all((folder / name).is_file() and not describe_if_old(folder / name) for name in names)


def beside_old(folder: Path, names: Sequence[str]) -> Path:
    """Where new info files go: ``folder``, or its folder ``mmdet3d-1.1`` if files of an older version have their names there."""
    old = [text for text in (describe_if_old(folder / name) for name in names) if text]
    if not old:
        return folder
    print_log(f'{old[0]}: they go into {folder / BESIDE}, the old ones stay', 'current', level=logging.WARNING)
    return folder / BESIDE


def _channels(root: Path, version: str, modality: str) -> List[str]:
    sensors = read_table(root / version / 'sensor.json')
    return [row['channel'] for row in sensors if row['modality'] == modality]


@contextlib.contextmanager
def _view_of(root: Path, out: Path) -> Iterator[Path]:
    """A scratch folder's data/nuscenes with the entries of ``root`` but its info files.

    By symbolic links; where there are none, as for most users of Windows, by hard links, for which the scratch folder lies in
    ``out``, and by copies of what lies on another drive.
    """
    entries = [entry for entry in root.iterdir() if not entry.name.endswith('.pkl')]
    place, link = _scratch_place(out)
    with tempfile.TemporaryDirectory(prefix='.geomim-infos-', dir=place) as scratch:
        view = Path(scratch) / 'data' / 'nuscenes'
        view.mkdir(parents=True)
        with room_for(scratch):
            for entry in entries:
                link(entry, view / entry.name)
            yield view


def _scratch_place(out: Path) -> Tuple[Optional[Path], Callable[[Path, Path], None]]:
    """Where to put a scratch folder, None for the system's place, and how to bring files and folders into it."""
    with tempfile.TemporaryDirectory(prefix='geomim-infos-') as probe:
        try:
            Path(probe, 'link').symlink_to(probe, target_is_directory=True)
        except (OSError, NotImplementedError) as error:
            print_log(
                f'no symbolic links here ({error}): while info files are made, {out} has hard links to the data, and copies '
                'of what lies on another drive',
                'current',
                level=logging.WARNING,
            )
            out.mkdir(parents=True, exist_ok=True)
            return out, _hard_link
    return None, lambda source, target: target.symlink_to(source)


def _hard_link(source: Path, target: Path) -> None:
    """A file's hard link, or copy if there can be none; a folder's with all its files."""
    if source.is_dir():
        target.mkdir()
        for entry in source.iterdir():
            _hard_link(entry, target / entry.name)
        return
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


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
    folder = Path('data/nuscenes', version)
    all_scenes = _all_scenes_are_the_test_split(folder) if version == TEST else contextlib.nullcontext()
    with all_scenes, _boxes_in_sight_alone():
        nuscenes_converter.create_nuscenes_infos('data/nuscenes', 'nuscenes', version=version, max_sweeps=10)
    files = _keyframe_files(folder)
    for name in info_names(version):
        path = f'data/nuscenes/{name}'
        try:
            with _boxes_in_sight_alone():
                update_infos_to_v2.update_pkl_infos('nuscenes', out_dir='data/nuscenes', pkl_path=path)
        except UnboundLocalError as error:  # what the converter makes of a split without a keyframe
            found = ', '.join(row['name'] for row in read_table(folder / 'scene.json')[:3])
            raise ValueError(
                f'{name} would hold nothing: no scene of {version} with its files there falls into this split. Scenes do by their '
                f'names, which nuscenes.utils.splits lists (train, val; mini_train, mini_val); scene.json has {found}, ...'
            ) from error
        infos = read_infos(path)
        if set(cameras) != set(NUSCENES_CAMERAS):
            _put_real_cameras(infos, version, cameras)
        files.put_into(infos)
        if not lidars:
            _take_lidar_away(infos)
        mmengine.dump(infos, path)


@contextlib.contextmanager
def _all_scenes_are_the_test_split(folder: Path) -> Iterator[None]:
    """The converter would pass over scenes that the devkit does not name."""
    from nuscenes.utils import splits

    named = splits.test
    splits.test = [row['name'] for row in read_table(folder / 'scene.json')]
    try:
        yield
    finally:
        splits.test = named


@contextlib.contextmanager
def _boxes_in_sight_alone() -> Iterator[None]:
    """Spare the converter, in this process, two thirds of its time: work of which nothing reaches the info files.

    It has the devkit make the boxes of every camera and throws them away, and then projects every box of a sample into
    every camera to find that most lie behind it or beside its image.
    """
    import nuscenes.nuscenes as devkit
    from dataset_converters import nuscenes_converter, update_infos_to_v2

    project = update_infos_to_v2.get_nuscenes_2d_boxes
    modules = (devkit, nuscenes_converter, update_infos_to_v2)
    known = [module.NuScenes for module in modules]

    class WithoutCameraBoxes(update_infos_to_v2.NuScenes):
        def get_sample_data(self, token: str, *args: Any, **kwargs: Any) -> Any:
            mount = self.get('calibrated_sensor', self.get('sample_data', token)['calibrated_sensor_token'])
            if self.get('sensor', mount['sensor_token'])['modality'] == 'camera':
                kwargs['selected_anntokens'] = []
            return super().get_sample_data(token, *args, **kwargs)

    for module in modules:
        module.NuScenes = WithoutCameraBoxes
    update_infos_to_v2.get_nuscenes_2d_boxes = lambda tables, token, visibilities: project(
        _InSight(tables, token), token, visibilities
    )
    try:
        yield
    finally:
        update_infos_to_v2.get_nuscenes_2d_boxes = project
        for module, before in zip(modules, known):
            module.NuScenes = before


class _InSight:
    """The devkit's tables, whose samples have only the annotations that mmdet3d's converter may find in one image."""

    CANVAS = (1600, 900)  # pixels, whatever the image's own size
    SLACK = 1.0  # pixels, and thousandths of a metre of depth: what is as near to the border as that is left to the converter

    def __init__(self, tables: Any, token: str) -> None:
        self.tables = tables
        data = tables.get('sample_data', token)
        tokens = tables.get('sample', data['sample_token'])['anns']
        rows = [tables.get('sample_annotation', annotation) for annotation in tokens]
        mount = tables.get('calibrated_sensor', data['calibrated_sensor_token'])
        sensor2global = pose_matrix(tables.get('ego_pose', data['ego_pose_token'])) @ pose_matrix(mount)
        shown = self._may_be_seen(rows, np.linalg.inv(sensor2global), np.array(mount['camera_intrinsic']))
        self.annotations = [annotation for annotation, seen in zip(tokens, shown) if seen]

    def _may_be_seen(self, rows: Sequence[Mapping[str, Any]], global2sensor: np.ndarray, intrinsics: np.ndarray) -> Any:
        """(n,) bool; of a box that reaches behind the camera, the converter projects the corners before it."""
        if not rows:
            return []
        signs = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
        corners = signs * np.array([row['size'] for row in rows])[:, None, [1, 0, 2]]  # width, length, height
        poses = np.array([pose_matrix(row) for row in rows])
        corners = corners @ poses[:, :3, :3].transpose(0, 2, 1) + poses[:, None, :3, 3]
        local = corners @ global2sensor[:3, :3].T + global2sensor[:3, 3]
        depth = local[..., 2]
        ahead = depth > self.SLACK / 1000
        pixels = local @ intrinsics.T
        pixels = pixels[..., :2] / np.where(ahead, depth, 1)[..., None]
        lower = np.where(ahead[..., None], pixels, np.inf).min(axis=1)
        upper = np.where(ahead[..., None], pixels, -np.inf).max(axis=1)
        crosses = (upper >= -self.SLACK).all(axis=1) & (lower <= np.array(self.CANVAS) + self.SLACK).all(axis=1)
        return crosses | (np.abs(depth) <= self.SLACK / 1000).any(axis=1)

    def get(self, table: str, token: str) -> Any:
        row = self.tables.get(table, token)
        return dict(row, anns=self.annotations) if table == 'sample' else row

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tables, name)


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


def _take_lidar_away(infos: Mapping[str, Any]) -> None:
    """Leave of the shown LiDAR the frame alone; where no annotation counts a point, none is invalid for lack of them."""
    instances = [instance for info in infos['data_list'] for instance in info.get('instances', [])]
    for info in infos['data_list']:
        info['lidar_points'] = {'lidar2ego': info['lidar_points']['lidar2ego']}
        info.pop('lidar_sweeps', None)
    if not any(instance['bbox_3d_isvalid'] for instance in instances):
        for instance in instances:
            instance['bbox_3d_isvalid'] = True


def _put_real_cameras(infos: Mapping[str, Any], version: str, cameras: Sequence[str]) -> None:
    """Replace the images of every sample of an info file with those of ``cameras``."""
    from nuscenes.nuscenes import NuScenes

    tables = NuScenes(version, 'data/nuscenes', verbose=False)
    for info in infos['data_list']:
        data = tables.get('sample', info['token'])['data']
        lidar2global = np.array(info['ego2global']) @ np.array(info['lidar_points']['lidar2ego'])
        info['images'] = {name: _camera_entry(tables, data[name], lidar2global) for name in cameras if name in data}
        info.pop('cam_instances', None)


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


@dataclass(frozen=True)
class KeyframeFiles:
    """How info files name the keyframes' files: from the folder on that all keyframes of a sensor share, its ``data_prefix``.

    mmdet3d's converter takes the last part of each path, which is enough for nuScenes' samples/SENSOR/, and the same for
    several files where every scene has a folder of its own.

    Args:
        names: by sample and sensor.
        sweeps_differ: whether no two sweeps of the LiDAR have the same last part, by which mmdet3d's dataset finds them.
    """

    names: Mapping[Tuple[str, str], str]
    sweeps_differ: bool

    def put_into(self, infos: Mapping[str, Any]) -> None:
        """Name the files of an info file, in place; sweeps that mmdet3d would mistake for each other are left out."""
        for info in infos['data_list']:
            for name, image in info['images'].items():
                image['img_path'] = self.names[info['token'], name]
            if (info['token'], LIDAR) in self.names:
                info['lidar_points']['lidar_path'] = self.names[info['token'], LIDAR]
            if not self.sweeps_differ:
                info.pop('lidar_sweeps', None)


def _keyframe_files(folder: Path) -> KeyframeFiles:
    """Of a version's tables; says what is not as in nuScenes."""
    sensors = {row['token']: row for row in read_table(folder / 'sensor.json') if row['modality'] != 'radar'}
    mounts = {row['token']: sensors.get(row['sensor_token']) for row in read_table(folder / 'calibrated_sensor.json')}
    paths: Dict[Tuple[str, str], PurePosixPath] = {}
    places: Dict[str, Set[str]] = {}
    sweeps: Set[PurePosixPath] = set()
    for row in read_table(folder / 'sample_data.json'):
        sensor, path = mounts[row['calibrated_sensor_token']], PurePosixPath(row['filename'])
        if sensor and row['is_key_frame']:
            paths[row['sample_token'], sensor['channel']] = path
            places.setdefault(sensor['channel'], set()).add(str(path.parent))
        if sensor and sensor['channel'] == LIDAR:
            sweeps.add(path)
    prefix = {name: posixpath.commonpath(folders) for name, folders in places.items()}
    if any(place != f'samples/{name}' for name, place in prefix.items()):
        keys = {('pts' if name == LIDAR else name): place for name, place in prefix.items()}
        print_log(f'datasets over these info files take data_prefix={keys}', 'current', level=logging.WARNING)
    sweeps_differ = len({path.name for path in sweeps}) == len(sweeps)
    if not sweeps_differ:
        print_log(
            f"{LIDAR}'s files have the same names in different folders; mmdet3d's datasets look for all sweeps in one "
            'folder, so the info files have none: clouds are those of the keyframes alone',
            'current',
            level=logging.WARNING,
        )
    return KeyframeFiles({key: str(path.relative_to(prefix[key[1]])) for key, path in paths.items()}, sweeps_differ)


def pose_matrix(row: Mapping[str, Any]) -> np.ndarray:
    """(4, 4) float64 of a row of calibrated_sensor (sensor to ego) or ego_pose (ego to global), metres."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Quaternion(row['rotation']).rotation_matrix, row['translation']
    return matrix
