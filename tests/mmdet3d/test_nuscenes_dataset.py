"""Info files that do not fit: both datasets of ours take labels by name, name what they refuse, and run nothing of the file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import pytest

pytest.importorskip('mmdet3d')

import mmengine
from mmdet3d.datasets import Det3DDataset
from mmengine.config import Config
from mmengine.registry import DATASETS

import geomim.bevdet
import geomim.mmdet3d  # noqa: F401
from geomim.mmdet3d import nuscenes_dataset

from ..helpers import Attack

NAMES = {'pretraining': 'nuscenes', 'finetuning': 'bevdet'}
Build = Callable[..., Any]


@pytest.fixture(params=sorted(NAMES))
def build(request: pytest.FixtureRequest, repository: Path, bevdet_world: Path, tmp_path: Path) -> Build:
    """The dataset of a configuration over an info file that ``change`` altered, without its pipeline."""
    base = {'pretraining': '_base_/nuscenes_surround.py', 'finetuning': '_base_/bevdet/nuscenes_4d.py'}[request.param]
    config = Config.fromfile(repository / 'configs' / 'mmdet3d' / base)
    settings = config.train_dataloader.dataset.dataset.to_dict()
    file = mmengine.load(bevdet_world / f'{NAMES[request.param]}_infos_train.pkl')

    def make(change: Callable[[Dict[str, Any]], Any] = lambda file: None, metainfo: Any = None, **changes: Any) -> Any:
        changed = copy.deepcopy(file)
        returned = change(changed)
        mmengine.dump(changed if returned is None else returned, tmp_path / 'a.pkl')
        changes = {'pipeline': [], **changes}
        settings.update(data_root=f'{bevdet_world}/', ann_file=str(tmp_path / 'a.pkl'), **changes)
        settings['metainfo'] = settings['metainfo'] if metainfo is None else metainfo
        return DATASETS.build(copy.deepcopy(settings))

    return make


def named(data: Any) -> List[Any]:
    """By sample, the names and places of its boxes."""
    classes = [*data.metainfo['classes'], 'nothing']
    return [
        [(classes[label], *np.round(box[:3], 3)) for label, box in zip(info['gt_labels_3d'], info['gt_bboxes_3d'].numpy())]
        for info in (data.get_data_info(index)['ann_info'] for index in range(len(data)))
    ]  # fmt: skip


def renumber(file: Dict[str, Any], numbers: Dict[str, int]) -> None:
    """Give the file's classes other numbers."""
    to = {old: numbers[name] for name, old in file['metainfo']['categories'].items() if old >= 0}
    ignored = {name: -1 for name, old in file['metainfo']['categories'].items() if old < 0}
    file['metainfo']['categories'] = {**numbers, **ignored}
    for info in file['data_list']:
        for thing in info['instances']:
            for key in ('bbox_label', 'bbox_label_3d'):
                thing[key] = to.get(thing[key], -1)


def test_classes_go_by_their_names_whatever_their_order(build: Build) -> None:
    def other_order(file: Dict[str, Any]) -> None:
        names = [name for name, number in file['metainfo']['categories'].items() if number >= 0]
        renumber(file, {name: number for number, name in enumerate(sorted(names, reverse=True))})

    truth = named(build())
    assert sum(map(len, truth)) > 10
    assert len({box[0] for boxes in truth for box in boxes}) > 3
    assert named(build(other_order)) == truth


def test_a_file_without_categories_has_mmdet3ds_order(build: Build) -> None:
    assert named(build(lambda file: file['metainfo'].pop('categories') and None)) == named(build())


def test_a_class_of_the_file_alone_can_be_trained(build: Build) -> None:
    def with_vans(file: Dict[str, Any]) -> None:
        file['metainfo']['categories']['van'] = file['metainfo']['categories'].pop('car')

    cars = [[box for box in boxes if box[0] == 'car'] for boxes in named(build())]
    found = named(build(with_vans, metainfo=dict(classes=['pedestrian', 'van'])))
    assert [[('car', *box[1:]) for box in boxes if box[0] == 'van'] for boxes in found] == cars
    assert sum(map(len, cars)) > 3
    assert {box[0] for boxes in found for box in boxes} == {'pedestrian', 'van', 'nothing'}


def test_an_unknown_class_is_named_with_those_that_are_known(build: Build) -> None:
    with pytest.raises(ValueError, match=r"'tram', 'ship' is no class of .*a\.pkl, which has car, truck, .*categories"):
        build(metainfo=dict(classes=['car', 'tram', 'ship']))
    with pytest.raises(ValueError, match="'tram' is no class of .*which has car, truck"):
        build(lambda file: file['metainfo'].pop('categories') and None, metainfo=dict(classes=['car', 'tram']))


@pytest.mark.parametrize('key', ['bbox_label', 'bbox_label_3d'])
@pytest.mark.parametrize('label', [57, -2, 'car'])
def test_a_label_beyond_the_classes_is_named(build: Build, key: str, label: Any) -> None:
    tokens = []

    def change(file: Dict[str, Any]) -> None:
        tokens.append(file['data_list'][1]['token'])
        file['data_list'][1]['instances'][2][key] = label

    with pytest.raises(ValueError, match=rf'a\.pkl: sample \w+ has a thing of class {label!r}, .*categories') as error:
        build(change)
    assert tokens[0] in str(error.value)


def test_a_key_that_is_missing_is_no_label(build: Build) -> None:
    with pytest.raises(KeyError, match='bbox_3d'):
        build(lambda file: file['data_list'][0]['instances'][1].pop('bbox_3d') and None)


LOAD = dict(type='LoadSurroundPoints', coord_type='LIDAR', load_dim=5, use_dim=5)


def test_a_sample_without_a_lidar_is_named_where_points_are_loaded(build: Build) -> None:
    def take_away(file: Dict[str, Any]) -> None:
        for info in file['data_list']:
            del info['lidar_points']['lidar_path']
            info.pop('lidar_sweeps', None)

    assert len(build(take_away)) == len(build())
    with pytest.raises(ValueError, match=r'a.pkl: sample \w+ has no LiDAR.* pretraining and the depth labels .* do'):
        build(take_away, pipeline=[LOAD])


def test_a_file_without_annotations_is_not_trained_on(build: Build) -> None:
    def take_away(file: Dict[str, Any]) -> None:
        for info in file['data_list']:
            info['instances'] = []
            info.pop('cam_instances', None)

    with pytest.raises(ValueError, match='a.pkl has no annotation, as that of the test split'):
        build(take_away, filter_empty_gt=True)
    assert len(build(take_away, filter_empty_gt=False)) == len(build())
    assert len(build(take_away, filter_empty_gt=True, test_mode=True)) == len(build())


def test_a_box_of_other_numbers_is_named(build: Build) -> None:
    def cut(file: Dict[str, Any]) -> None:
        file['data_list'][0]['instances'][1]['bbox_3d'] = [1.0, 2.0, 3.0, 4.0, 5.0]

    with pytest.raises(ValueError, match=r'a.pkl: sample \w+ has a bbox_3d of 5 numbers, it needs 7'):
        build(cut)


def test_samples_without_an_entry_for_annotations_have_no_boxes(build: Build) -> None:
    """As pretraining needs none; a recording's info file may leave the entry out."""

    def leave_out(file: Dict[str, Any]) -> None:
        for info in file['data_list']:
            del info['instances']

    assert set(map(len, named(build(leave_out, filter_empty_gt=False)))) == {0}


def test_files_that_are_none_are_named(build: Build) -> None:
    with pytest.raises(ValueError, match=r'a\.pkl has no sample'):
        build(lambda file: file['data_list'].clear())
    with pytest.raises(ValueError, match=r'before 1\.1 .*python -m geomim infos'):
        build(lambda file: dict(infos=file['data_list'], metadata=dict(version='v1.0-trainval')))


def test_code_in_an_info_file_does_not_run(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'a\.pkl cannot be read .*it refers to _?io\.open'):
        build(lambda file: file['data_list'][0].update(extra=Attack(open, str(tmp_path / 'ran'), 'w')))
    assert not (tmp_path / 'ran').exists()


def test_another_version_is_told(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def mini(file: Dict[str, Any]) -> None:
        file['metainfo']['version'] = 'v1.0-mini'

    told: List[str] = []
    monkeypatch.setattr(nuscenes_dataset, 'print_log', lambda text, *_, **__: told.append(text))
    assert build(mini).metainfo['version'] == 'v1.0-trainval'
    assert len(told) == 1
    assert 'was made of v1.0-mini, but metainfo.version of the dataset is v1.0-trainval' in told[0]
    assert build(mini, metainfo=dict(classes=['car'])).metainfo['version'] == 'v1.0-mini'
    assert build(metainfo=dict(version='v1.0-trainval')).metainfo['version'] == 'v1.0-trainval'
    assert len(told) == 1


@pytest.mark.parametrize('serialize_data', [True, False])
def test_samples_are_mmdet3ds_and_no_step_reaches_the_next(build: Build, serialize_data: bool) -> None:
    """Plain twin: mmdet3d's own method, which copies a record before the pipeline sees it."""
    data = build(serialize_data=serialize_data, filter_empty_gt=False)

    def content(info: Dict[str, Any]) -> Dict[str, Any]:
        info = copy.deepcopy(info)
        info['ann_info']['gt_bboxes_3d'] = info['ann_info']['gt_bboxes_3d'].numpy()
        return info

    data.pipeline = content
    plain, ours = (prepare(data, 1) for prepare in (Det3DDataset.prepare_data, type(data).prepare_data))
    np.testing.assert_equal(ours, plain)

    def wreck(info: Dict[str, Any]) -> Dict[str, Any]:
        info['ann_info'].clear()
        for camera in info['images'].values():
            camera['cam2img'][0][0] = -1
        return info

    data.pipeline = wreck
    data[1]
    data.pipeline = content
    np.testing.assert_equal(data[1], plain)


@pytest.mark.parametrize('kind', ['truncated', 'absent'])
def test_a_sample_that_cannot_be_read_stops_or_is_skipped(build: Build, tmp_path: Path, kind: str) -> None:
    steps = [dict(type='LoadCameraRig'), dict(type='LoadSurroundImages')]
    settings = dict(pipeline=steps, filter_empty_gt=False)
    whole, path = build(**settings), tmp_path / 'broken.jpg'
    if kind == 'truncated':
        path.write_bytes(Path(whole[1]['img_path'][2]).read_bytes()[:-500])

    def breaks(file: Dict[str, Any]) -> None:
        by_token = {info['token']: info for info in file['data_list']}
        list(by_token[whole[1]['token']]['images'].values())[2]['img_path'] = str(path)

    with pytest.raises(ValueError, match=f'{whole[1]["token"]}, camera .*broken.jpg (is truncated|cannot be read)'):
        build(breaks, **settings)[1]
    data = build(breaks, on_bad_sample='skip', **settings)
    with pytest.warns(UserWarning, match=r'bad sample 1 is skipped.*1 so far, max_bad_samples=10.*broken\.jpg'):
        stand_in = data[1]
    assert stand_in['token'] in {whole[index]['token'] for index in (0, 2, 3)}
    assert data.bad_samples.number == 1
    assert data[2]['token'] == whole[2]['token']
    with pytest.warns(UserWarning, match='bad sample 1'):
        assert build(breaks, on_bad_sample='skip', **settings)[-3]['token'] == stand_in['token']


@pytest.mark.filterwarnings('ignore:bad sample')
def test_points_that_cannot_be_read_are_skipped(build: Build, tmp_path: Path) -> None:
    """A file that is cut short; one bad sample more than allowed ends the run and tells of the file."""
    (tmp_path / 'cut.bin').write_bytes(bytes(4 * 5 * 300 + 4))
    settings = dict(pipeline=[dict(type='LoadSurroundPoints', coord_type='LIDAR', load_dim=5)], filter_empty_gt=False)

    def breaks(file: Dict[str, Any]) -> None:
        for info in file['data_list'][:2]:
            info['lidar_points']['lidar_path'] = str(tmp_path / 'cut.bin')

    data = build(breaks, on_bad_sample='skip', **settings)
    with pytest.warns(UserWarning, match=r'bad sample 0 .*cut\.bin: 1501 values are no whole number of points'):
        assert len(data[0]['points']) > 1000
    limited = build(breaks, on_bad_sample='skip', max_bad_samples=1, **settings)
    with pytest.raises(ValueError, match=r'2 samples .* max_bad_samples=1; .*cut\.bin'):
        list(map(limited.__getitem__, (0, 1)))


def test_scores_are_not_made_of_other_samples(build: Build) -> None:
    with pytest.raises(ValueError, match='scores need every sample'):
        build(on_bad_sample='skip', test_mode=True)


def test_entries_by_camera_are_mmdet3ds(small_world: Path) -> None:
    cameras = ('CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_FRONT_LEFT', 'CAM_BACK', 'CAM_BACK_LEFT', 'CAM_BACK_RIGHT')
    settings = dict(
        data_root=f'{small_world}/', ann_file='nuscenes_infos_val.pkl', load_type='mv_image_based', test_mode=True,
        data_prefix={name: f'samples/{name}' for name in cameras}, modality=dict(use_camera=True), box_type_3d='Camera',
        load_eval_anns=False, pipeline=[],
    )  # fmt: skip
    ours, theirs = (DATASETS.build(dict(settings, type=f'{name}NuScenesDataset')) for name in ('Plain', 'mmdet3d.'))
    assert len(ours) == len(theirs) == 2 * 6
    assert repr([ours[index] for index in range(12)]) == repr([theirs[index] for index in range(12)])
