"""Info files with what the BEVDet family needs beyond mmdet3d's own (``python -m geomim infos ROOT``).

To a copy of each of mmdet3d's info files (made first if need be) come, from the nuScenes tables: every sample's scene and
the keyframes before and after it (``scene_token``, ``prev``, ``next``; an empty text where the scene ends), the scene's name
(``scene_name``, by which Occ3D files its labels), and the ego pose of every camera at its own time stamp
(``images[camera]['ego2global']``). mmdet3d's dataset and metric read them too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import mmengine

from ..atomic import atomic_path
from ..checkpoints.info_files import read_infos
from .infos import (
    BESIDE,
    beside_old,
    find_version,
    has_infos,
    info_names,
    make_infos,
    pose_matrix,
    read_table,
    splits_of,
)

LINKS = ('scene_token', 'prev', 'next')


def bevdet_info_names(version: str = '') -> Tuple[str, ...]:
    """File names of the info files, in the order of ``geomim.nuscenes.infos.info_names(version)``."""
    return tuple(f'bevdet_infos_{split}.pkl' for split in splits_of(version))


def make_bevdet_infos(root: Path, out: Optional[Path] = None, version: str = '', force: bool = False) -> Path:
    """Make bevdet_infos_train.pkl and bevdet_infos_val.pkl, or bevdet_infos_test.pkl; what is there is left as it is.

    Args:
        root: nuScenes folder.
        out: where the files go; ``root`` if None. mmdet3d's info files are taken from there, else from ``root``, else
            made there; those of mmdet3d before 1.1 do not count.
        version: of the tables, found if empty.
        force: make them anew; mmdet3d's own are made only if they are absent.

    Returns:
        ``out``, or its folder ``mmdet3d-1.1`` as :func:`make_infos`.

    Raises:
        ValueError: no nuScenes folder, or info files and tables that do not belong together.
    """
    root = root.expanduser().resolve()
    version, out = version or find_version(root), (out or root).expanduser().resolve()
    place = out if force else beside_old(out, bevdet_info_names(version))
    if has_infos(place, bevdet_info_names(version)) and not force:
        return place
    names = info_names(version)
    folders = [folder for folder in (out, root, out / BESIDE, root / BESIDE) if has_infos(folder, names)]
    base = folders[0] if folders else make_infos(root, out, version)
    files = {name: read_infos(base / name) for name in names}
    for name, file in files.items():
        found = file['metainfo'].get('version', version)
        if found != version:
            raise ValueError(f'{base / name} was made of {found}, the tables are {root / version}; make it anew first')
    links, poses = _read_tables(root / version, [info for file in files.values() for info in file['data_list']])
    for (name, file), ours in zip(files.items(), bevdet_info_names(version)):
        extended = dict(file, data_list=[_extended(info, links, poses, base / name) for info in file['data_list']])
        with atomic_path(place / ours) as temporary:
            mmengine.dump(extended, temporary, file_format='pkl')
    return place


def _read_tables(folder: Path, infos: Sequence[Mapping[str, Any]]) -> Tuple[Dict[str, Any], Dict[str, List[Any]]]:
    """Rows of sample.json by token, with their scenes' names, and ego-to-global (4, 4) by the token of the camera's sample_data.

    One table at a time: the full data set's sample_data and ego_pose hold millions of rows, of which few are kept.
    """
    wanted = {camera['sample_data_token'] for info in infos for camera in info['images'].values()}
    scenes = {row['token']: row['name'] for row in read_table(folder / 'scene.json')}
    samples = {
        row['token']: dict(row, scene_name=scenes.get(row['scene_token'])) for row in read_table(folder / 'sample.json')
    }
    pose_of = {
        row['token']: row['ego_pose_token'] for row in read_table(folder / 'sample_data.json') if row['token'] in wanted
    }
    wanted_poses = set(pose_of.values())
    matrices = {
        row['token']: pose_matrix(row).tolist()
        for row in read_table(folder / 'ego_pose.json')
        if row['token'] in wanted_poses
    }
    return samples, {token: matrices[pose] for token, pose in pose_of.items() if pose in matrices}


def _extended(
    info: Mapping[str, Any], samples: Mapping[str, Any], poses: Mapping[str, List[Any]], source: Path
) -> Dict[str, Any]:
    """A copy of one sample's info with the links and the poses."""
    row = samples.get(info['token'])
    if row is None:
        raise ValueError(
            f'{source}: sample {info["token"]} is not in sample.json; make the file anew from these tables'
        )
    images = {}
    for name, camera in info['images'].items():
        pose = poses.get(camera['sample_data_token'])
        if pose is None:
            raise ValueError(
                f'{source}: sample {info["token"]}, camera {name}: no ego pose of sample_data '
                f'{camera["sample_data_token"]} in sample_data.json and ego_pose.json'
            )
        images[name] = dict(camera, ego2global=pose)
    return dict(info, images=images, **{key: row[key] for key in (*LINKS, 'scene_name')})
