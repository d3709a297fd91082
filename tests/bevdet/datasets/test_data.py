"""The dataset's past frames, class-balanced sampling, and batches."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

import mmengine
from mmdet3d.datasets import CBGSDataset
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS

from geomim.bevdet.datasets import BEVDET_CLASSES, BEVDetCBGSDataset, BEVDetDataPreprocessor
from geomim.bevdet.datasets.dataset import past_offsets

Build = Callable[..., Any]
STEREO = dict(multi_adj_frame_id_cfg=(1, 2, 1), stereo=True)


def changed(world: Path, path: Path, change: Callable[[List[Dict[str, Any]]], Any], name: str = 'train') -> str:
    """An info file in which ``change`` has altered the list of samples, in place or by its return value."""
    file = copy.deepcopy(mmengine.load(str(world / f'bevdet_infos_{name}.pkl')))
    returned = change(file['data_list'])
    mmengine.dump(dict(file, data_list=file['data_list'] if returned is None else returned), str(path))
    return str(path)


@pytest.mark.parametrize(
    'given, stereo, offsets',
    [
        (None, False, ()),
        ((1, 1 + 1, 1), False, (1,)),
        ((1, 8 + 1, 1), False, (1, 2, 3, 4, 5, 6, 7, 8)),
        ((1, 1 + 1, 1), True, (1, 2)),
        ((2, 7, 2), False, (2, 4, 6)),
    ],
)
def test_offsets_are_bevdets(given: Any, stereo: bool, offsets: Any) -> None:
    assert past_offsets(given, stereo) == offsets


@pytest.mark.parametrize(
    'given, stereo', [((0, 2, 1), False), ((1, 2), False), ((1, 4, 2), True), ((2, 3, 1), True), (None, True)]
)
def test_offsets_that_are_none(given: Any, stereo: bool) -> None:
    with pytest.raises(ValueError, match='multi_adj_frame_id_cfg'):
        past_offsets(given, stereo)


def test_past_frames_and_what_stands_in_for_them(make_dataset: Build, bevdet_world: Path, tmp_path: Path) -> None:
    """Within the scene, newest first; before its start the key frame itself."""
    data = make_dataset(**STEREO)
    assert len(data) == 4
    assert data.num_frames == 3
    infos = [data.get_data_info(index) for index in range(4)]
    assert [info['scene_token'] for info in infos][::2] == [info['scene_token'] for info in infos][1::2]
    for first, second in (infos[:2], infos[2:]):
        assert first['timestamp'] < second['timestamp']
        assert [frame['token'] for frame in first['past_frames']] == [first['token']] * 2
        assert [frame['token'] for frame in second['past_frames']] == [first['token'], second['token']]
        past = second['past_frames'][0]
        assert past['images'] == first['images']
        assert all(Path(camera['img_path']).is_file() for camera in past['images'].values())
    # whatever the order of the file, and of a part of it
    file = changed(bevdet_world, tmp_path / 'a.pkl', lambda samples: samples[::-1])
    other = make_dataset(ann_file=file, **STEREO)
    assert [other.get_data_info(index)['token'] for index in range(4)] == [info['token'] for info in infos]
    part = make_dataset(indices=[1], **STEREO)
    assert part.get_data_info(0)['past_frames'] == infos[1]['past_frames']


def published_past(scenes: List[str], index: int, offsets: Sequence[int]) -> List[int]:
    """BEVDet's ``get_adj_info``, over the scenes of all samples in the order of time: indices of the past frames."""
    places = [max(index - offset, 0) for offset in offsets]
    return [place if scenes[place] == scenes[index] else index for place in places]


@pytest.mark.parametrize(
    'settings', [STEREO, dict(multi_adj_frame_id_cfg=(1, 5, 2)), dict(multi_adj_frame_id_cfg=None)]
)
def test_the_published_rule_before_the_first_scene(make_dataset: Build, settings: Dict[str, Any]) -> None:
    """Without the switch the first scene is like every other."""
    for clamp in (True, False):
        data = make_dataset(clamp_first_scene=clamp, **settings)
        infos = [data.get_data_info(index) for index in range(len(data))]
        start = 0 if clamp else 9  # samples of another scene, as if one came before
        scenes = ['another'] * start + [info['scene_token'] for info in infos]
        for index, info in enumerate(infos):
            wanted = [infos[place - start]['token'] for place in published_past(scenes, start + index, data.offsets)]
            assert [frame['token'] for frame in info['past_frames']] == wanted, (clamp, index)


def test_sample_idx_stays_that_of_the_file(make_dataset: Build, bevdet_world: Path, tmp_path: Path) -> None:
    """mmdet3d's metric finds samples by it."""
    file = mmengine.load(str(bevdet_world / 'bevdet_infos_train.pkl'))['data_list']
    data = make_dataset()
    for index in range(len(data)):
        info = data.get_data_info(index)
        assert file[info['sample_idx']]['token'] == info['token']


def link(samples: List[Dict[str, Any]], **new: Any) -> None:
    next(sample for sample in samples if sample['prev']).update(new)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda samples: link(samples, scene_token='elsewhere'), r'belongs to scene \w+; a past frame must come from'),
        (lambda samples: link(samples, prev='gone'), 'keyframe before it, gone, is not in the file'),
        (lambda samples: link(samples, timestamp=0.0), 'is not earlier'),
        (lambda samples: samples[0].pop('scene_token') and None, r'no scene_token; python -m geomim infos ROOT'),
    ],
)
def test_links_that_cannot_be(
    make_dataset: Build, bevdet_world: Path, tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_dataset(ann_file=changed(bevdet_world, tmp_path / 'a.pkl', change), **STEREO)


def test_mmdet3ds_own_infos_are_refused(make_dataset: Build) -> None:
    with pytest.raises(ValueError, match=r'no scene_token, prev; python -m geomim infos ROOT'):
        make_dataset(ann_file='nuscenes_infos_train.pkl')


def test_class_order_is_bevdets(make_dataset: Build, bevdet_world: Path) -> None:
    data = make_dataset()
    assert tuple(data.metainfo['classes']) == BEVDET_CLASSES
    file = mmengine.load(str(bevdet_world / 'bevdet_infos_train.pkl'))
    names = {number: name for name, number in file['metainfo']['categories'].items()}
    for index in range(len(data)):
        info = data.get_data_info(index)
        valid = [row for row in file['data_list'][info['sample_idx']]['instances'] if row['bbox_3d_isvalid']]
        labels = info['ann_info']['gt_labels_3d']
        assert [BEVDET_CLASSES[label] for label in labels] == [names[row['bbox_label_3d']] for row in valid]
    assert make_dataset(metainfo=dict(classes=('bus',))).metainfo['classes'] == ('bus',)


def without(name: str) -> Callable[[List[Dict[str, Any]]], None]:
    label = ('car', 'truck', 'trailer', 'bus', 'construction_vehicle', 'bicycle', 'motorcycle').index(name)

    def change(samples: List[Dict[str, Any]]) -> None:
        for sample in samples:
            sample['instances'] = [row for row in sample['instances'] if row['bbox_label_3d'] != label]

    return change


def test_an_absent_class_does_not_stop_class_balancing(make_dataset: Build, bevdet_world: Path, tmp_path: Path) -> None:
    file = changed(bevdet_world, tmp_path / 'a.pkl', without('bus'))
    with pytest.raises(ZeroDivisionError):
        CBGSDataset(make_dataset(ann_file=file))
    data = make_dataset(ann_file=file, **STEREO)
    holders = Counter(label for index in range(len(data)) for label in data.get_cat_ids(index))
    holders.pop(-1, None)
    assert BEVDET_CLASSES.index('bus') not in holders
    balanced = BEVDetCBGSDataset(data)
    assert len(balanced) == len(holders) * max(1, int(sum(holders.values()) / 10))
    assert set(balanced.sample_indices) <= set(range(len(data)))
    for index in range(len(balanced)):
        info = balanced.get_data_info(index)
        assert info['past_frames'] == data.get_data_info(balanced.sample_indices[index])['past_frames']
    nothing = changed(
        bevdet_world, tmp_path / 'b.pkl', lambda samples: [sample.update(instances=[]) for sample in samples] and None
    )
    with pytest.raises(ValueError, match='none of the 4 samples has a box'):
        BEVDetCBGSDataset(make_dataset(ann_file=nothing))


def test_class_balancing_draws_as_mmdet3d_does(make_dataset: Build) -> None:
    """On data that has all of the classes."""

    class Listed(type(make_dataset())):  # type: ignore[misc]
        def get_cat_ids(self, idx: int) -> set:
            return set(range(10)) if idx else {0, 3, 9}

    data = make_dataset()
    data.__class__ = Listed
    np.random.seed(3)
    expected = CBGSDataset(data).sample_indices
    np.random.seed(3)
    assert BEVDetCBGSDataset(data).sample_indices == expected


@pytest.fixture(scope='module')
def packed(make_dataset: Build, bevdet_pipeline: Build) -> List[Dict[str, Any]]:
    data = make_dataset(pipeline=bevdet_pipeline(frames=3), **STEREO)
    np.random.seed(0)
    return [data[index] for index in (1, 3)]


def test_no_annotation_is_needed_in_testing(make_dataset: Build, bevdet_pipeline: Build) -> None:
    steps = [
        step for step in bevdet_pipeline(frames=3, training=False, depth=False) if step['type'] != 'LoadAnnotations3D'
    ]
    data = make_dataset('val', pipeline=steps, test_mode=True, **STEREO)
    for index in range(len(data)):
        sample = data[index]
        assert torch.equal(sample['inputs']['bev_aug'], torch.eye(4))
        assert sample['data_samples'].lidar2key_ego.shape == (4, 4)
        assert len(sample['data_samples'].gt_instances_3d) == 0


def batch_of(packed: List[Dict[str, Any]]) -> Dict[str, Any]:
    """A collated copy."""
    return pseudo_collate([{**copy.deepcopy(sample)} for sample in packed])


def test_batches_are_stacked_and_normalised(packed: List[Dict[str, Any]]) -> None:
    given = batch_of(packed)
    batch = MODELS.build(dict(type='BEVDetDataPreprocessor'))(given, training=True)
    shapes = {key: tuple(value.shape) for key, value in batch['inputs'].items()}
    assert shapes == {
        'images': (2, 3, 6, 3, 128, 224),
        'cam2ego': (2, 3, 6, 4, 4),
        'ego2global': (2, 3, 6, 4, 4),
        'intrinsics': (2, 3, 6, 3, 3),
        'img_aug': (2, 3, 6, 4, 4),
        'bev_aug': (2, 4, 4),
        'depth_map': (2, 6, 128, 224),
    }
    assert {value.dtype for value in batch['inputs'].values()} == {torch.float32}
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    for index, sample in enumerate(packed):
        bgr = sample['inputs']['images'].float()
        for channel in range(3):
            expected = (bgr[:, :, 2 - channel] - mean[channel]) / std[channel]
            torch.testing.assert_close(batch['inputs']['images'][index, :, :, channel], expected)
        assert batch['data_samples'][index].token == sample['data_samples'].token
    published = BEVDetDataPreprocessor(bgr_to_rgb=False)(batch_of(packed))['inputs']['images']
    expected = (packed[0]['inputs']['images'][:, :, 0].float() - mean[0]) / std[0]
    torch.testing.assert_close(published[0, :, :, 0], expected)  # blue, with the numbers of red


def edit(key: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Dict[str, Any]], None]:
    def change(batch: Dict[str, Any]) -> None:
        batch['inputs'][key][1] = function(batch['inputs'][key][1])

    return change


def with_points(points: torch.Tensor) -> Callable[[Dict[str, Any]], None]:
    return lambda batch: batch['inputs'].update(points=[torch.zeros(1, 3), points])


def spoil(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[5] = float('nan')
    return tensor


@pytest.mark.parametrize(
    'change, message',
    [
        (
            edit('images', lambda images: images[:2]),
            r'equal numbers of frames and cameras .* \(3, 6, .* of sample \w+ \(2, 6',
        ),
        (edit('images', lambda images: images[:, :5]), r'\(3, 6, .* of sample \w+ \(3, 5'),
        (edit('images', lambda images: images[..., :192]), r'equal image sizes'),
        (edit('images', lambda images: images[0]), r'images has shape .*expected \(F, N, 3, H, W\)'),
        (
            edit('ego2global', lambda poses: poses[:, :5]),
            r'ego2global has shape \(3, 5, 4, 4\), expected \(3, 6, 4, 4\)',
        ),
        (edit('depth_map', lambda maps: maps[:, :64]), r'depth_map has shape \(6, 64, 224\), expected \(6, 128, 224\)'),
        (edit('img_aug', spoil), r'sample \w+: img_aug\[0, 0, 1, 1\] is nan'),
        (lambda batch: batch['inputs'].pop('cam2ego'), 'no cam2ego among the inputs'),
        (lambda batch: batch['inputs'].update(radar=[0, 0]), "unknown input 'radar'"),
        (with_points(torch.zeros(0, 3)), r'sample \w+, .*pcd.bin: the point cloud is empty'),
        (with_points(torch.full((2, 3), float('nan'))), r'sample \w+, .*pcd.bin: 2 of 2 points are not finite'),
        (lambda batch: batch['inputs'].update(cam2lidar=[torch.eye(4)] * 2), r'cam2lidar has shape \(4, 4\)'),
        (lambda batch: batch['inputs']['bev_aug'].pop(), '1 of bev_aug for 2 samples'),
        (
            lambda batch: batch['data_samples'][1].set_metainfo(dict(cam_names=['CAM_A'] * 6)),
            'need the same cameras in the same order',
        ),
        (
            lambda batch: [sample.set_metainfo(dict(cam_names=['CAM_A'])) for sample in batch['data_samples']],
            'images of 6 cameras for the cameras',
        ),
    ],
)
def test_samples_that_do_not_fit(packed: List[Dict[str, Any]], change: Callable[..., Any], message: str) -> None:
    batch = batch_of(packed)
    change(batch)
    with pytest.raises(ValueError, match=message):
        BEVDetDataPreprocessor()(batch)


def test_the_registries_know_the_names() -> None:
    for name in ('BEVDetNuScenesDataset', 'BEVDetCBGSDataset'):
        assert DATASETS.get(name).__name__ == name
