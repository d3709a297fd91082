"""Info files of the BEVDet family: links and poses are those of the tables, and nothing else changes."""

from __future__ import annotations

import importlib
import json
import pickle
import re
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest

pytest.importorskip('mmdet3d')

import mmengine
from nuscenes.nuscenes import NuScenes
from pyquaternion import Quaternion

from geomim.__main__ import main
from geomim.checkpoints.info_files import read_infos
from geomim.commands.infos import MAKERS
from geomim.nuscenes import bevdet_infos as infos
from geomim.nuscenes.bevdet_infos import bevdet_info_names, make_bevdet_infos
from geomim.nuscenes.infos import info_names

from ..helpers import Attack, linked_world, run_quietly

LinkWorld = Callable[[Path], Path]


def stamps(root: Path) -> Dict[str, Any]:
    return {name: ((root / name).stat().st_mtime_ns, (root / name).stat().st_ino) for name in bevdet_info_names()}


def with_tables(root: Path, small_world: Path, **changed: Any) -> Path:
    """The linked world with tables of its own, in which some rows are others."""
    tables = root / 'v1.0-trainval'
    tables.unlink()
    tables.mkdir()
    for path in (small_world / 'v1.0-trainval').iterdir():
        (tables / path.name).symlink_to(path)
    for name, rows in changed.items():
        (tables / f'{name}.json').unlink()
        (tables / f'{name}.json').write_text(json.dumps(rows))
    return root


def test_links_and_poses_are_those_of_the_tables(bevdet_world: Path) -> None:
    tables = NuScenes('v1.0-trainval', str(bevdet_world), verbose=False)
    count = 0
    for name, base in zip(bevdet_info_names(), info_names()):
        file, before = mmengine.load(str(bevdet_world / name)), mmengine.load(str(bevdet_world / base))
        assert file['metainfo'] == before['metainfo']
        for info, old in zip(file['data_list'], before['data_list']):
            sample = tables.get('sample', info['token'])
            assert {key: info.pop(key) for key in ('scene_token', 'prev', 'next')} == {
                key: sample[key] for key in ('scene_token', 'prev', 'next')
            }
            assert info.pop('scene_name') == tables.get('scene', sample['scene_token'])['name']
            for channel, camera in info['images'].items():
                pose = tables.get('ego_pose', tables.get('sample_data', sample['data'][channel])['ego_pose_token'])
                matrix = np.array(camera.pop('ego2global'))
                np.testing.assert_allclose(matrix[:3, 3], pose['translation'], atol=1e-12)
                np.testing.assert_allclose(matrix[:3, :3], Quaternion(pose['rotation']).rotation_matrix, atol=1e-12)
                # the same camera as mmdet3d's lidar2cam, which has passed through float32
                cam2lidar = np.linalg.inv(np.array(camera['lidar2cam']))
                lidar2global = np.array(info['ego2global']) @ np.array(info['lidar_points']['lidar2ego'])
                difference = lidar2global @ cam2lidar - matrix @ np.array(camera['cam2ego'])
                assert np.abs(difference).max() < 2e-4
                count += 1
            assert repr(info) == repr(old)  # velocities may be NaN
        assert len(file['data_list']) == len(before['data_list'])
    assert count == 6 * 6


def test_a_second_call_leaves_the_files_and_force_does_not(
    small_world: Path, link_world: LinkWorld, tmp_path: Path
) -> None:
    root = link_world(tmp_path / 'world')
    out = tmp_path / 'out'
    assert make_bevdet_infos(root, out) == out
    assert sorted(path.name for path in out.iterdir()) == sorted(bevdet_info_names())  # mmdet3d's are taken from root
    before = stamps(out)
    make_bevdet_infos(root, out)
    assert stamps(out) == before
    content = (out / bevdet_info_names()[0]).read_bytes()
    make_bevdet_infos(root, out, force=True)
    assert all(stamps(out)[name] != before[name] for name in before)
    assert (out / bevdet_info_names()[0]).read_bytes() == content


def test_the_command(link_world: LinkWorld, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = link_world(tmp_path / 'world')
    run_quietly(['-m', 'geomim', 'infos', root])
    assert all((root / name).is_file() for name in bevdet_info_names())
    assert main(['infos', str(tmp_path)]) == 2
    assert re.search('geomim infos: .* is no nuScenes root', capsys.readouterr().err)


def test_nothing_is_left_when_a_pose_is_missing(small_world: Path, link_world: LinkWorld, tmp_path: Path) -> None:
    poses = mmengine.load(str(small_world / 'v1.0-trainval/ego_pose.json'))
    root = with_tables(link_world(tmp_path / 'world'), small_world, ego_pose=poses[: len(poses) // 2])
    with pytest.raises(ValueError, match=r'camera CAM_\w+: no ego pose of sample_data \w+'):
        make_bevdet_infos(root)
    assert not list(root.glob('*bevdet*'))


def test_infos_of_other_tables_are_refused(small_world: Path, link_world: LinkWorld, tmp_path: Path) -> None:
    samples = mmengine.load(str(small_world / 'v1.0-trainval/sample.json'))
    changed = [dict(row, token=f'other-{row["token"]}') for row in samples]
    root = with_tables(link_world(tmp_path / 'world'), small_world, sample=changed)
    with pytest.raises(ValueError, match='is not in sample.json; make the file anew'):
        make_bevdet_infos(root)
    with pytest.raises(ValueError, match=r'was made of v1.0-trainval, the tables are .*v1.0-mini'):
        make_bevdet_infos(root, version='v1.0-mini')


def test_the_old_file_stays_when_writing_fails(
    link_world: LinkWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = link_world(tmp_path / 'world')
    for name in bevdet_info_names():
        (root / name).write_bytes(b'old')

    def fail(obj: Any, path: str, **_: Any) -> None:
        Path(path).write_bytes(b'half')
        raise OSError('no space left')

    monkeypatch.setattr(infos.mmengine, 'dump', fail)
    with pytest.raises(OSError, match='no space left'):
        make_bevdet_infos(root, force=True)
    assert {(root / name).read_bytes() for name in bevdet_info_names()} == {b'old'}
    assert not list(root.glob('.*'))


def test_files_of_an_older_mmdet3d_stay_beside_new_ones(
    small_world: Path, link_world: LinkWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = link_world(tmp_path / 'world')
    old = pickle.dumps({'infos': [{'token': 'a'}], 'metadata': {'version': 'v1.0-trainval'}})
    for name in info_names():
        (root / name).unlink()
        (root / name).write_bytes(old)

    def convert(version: str, cameras: Any) -> None:
        for name in info_names(version):
            Path('data/nuscenes', name).write_bytes((small_world / name).read_bytes())

    monkeypatch.setattr('geomim.nuscenes.infos._convert', convert)
    assert make_bevdet_infos(root) == root.resolve()
    assert {(root / name).read_bytes() for name in info_names()} == {old}
    for name, ours in zip(info_names(), bevdet_info_names()):
        made, base = mmengine.load(str(root / ours)), mmengine.load(str(small_world / name))
        assert [info['token'] for info in made['data_list']] == [info['token'] for info in base['data_list']]


def test_files_of_our_names_that_are_of_an_older_mmdet3d_stay_too(bevdet_world: Path, tmp_path: Path) -> None:
    root = linked_world(bevdet_world, tmp_path / 'world')
    old = pickle.dumps({'infos': [{'token': 'a'}], 'metadata': {'version': 'v1.0-trainval'}})
    for name in bevdet_info_names():
        (root / name).unlink(missing_ok=True)
        (root / name).write_bytes(old)
    beside = make_bevdet_infos(root)
    assert beside == root.resolve() / 'mmdet3d-1.1'
    assert {(root / name).read_bytes() for name in bevdet_info_names()} == {old}
    for name in bevdet_info_names():
        assert len(read_infos(beside / name)['data_list']) == len(read_infos(bevdet_world / name)['data_list'])
    assert make_bevdet_infos(root, force=True) == root.resolve()
    assert read_infos(root / bevdet_info_names()[0])['data_list']


def test_code_in_an_info_file_does_not_run(small_world: Path, link_world: LinkWorld, tmp_path: Path) -> None:
    root = link_world(tmp_path / 'world')
    name = info_names()[0]
    file = mmengine.load(str(root / name))
    file['data_list'][0]['extra'] = Attack(open, str(tmp_path / 'ran'), 'w')
    (root / name).unlink()
    mmengine.dump(file, str(root / name))
    for kind in ('bevdet', 'images', 'waymo'):
        module, maker = MAKERS[kind]
        make = getattr(importlib.import_module(f'geomim.nuscenes.{module}'), maker)
        with pytest.raises(ValueError, match=rf'{name} cannot be read .*it refers to'):
            make(root)
    assert not (tmp_path / 'ran').exists()
