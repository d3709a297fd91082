"""Occupancy labels and their score: mirrored as boxes are, merged and counted as plain loops do, in the frame that they belong to."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

from mmengine.fileio import dump, load
from mmengine.registry import TRANSFORMS

from geomim.bevdet.datasets import OCCUPANCY_CLASSES, BEVDetNuScenesDataset, OccupancyMetric
from geomim.bevdet.occupancy.labels import FREE, coarser
from geomim.synthetic.labels import FREE as SYNTHETIC_FREE
from geomim.synthetic.occupancy import LOWER, SHAPE, VOXEL

Build = Callable[..., Any]
ARRAYS = ('semantics', 'mask_lidar', 'mask_camera')
CAMERAS = ('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT')
PREFIX = dict(pts='samples/LIDAR_TOP', occupancy='gts', **{name: f'samples/{name}' for name in CAMERAS})
FLIPS = dict(rot_lim=(0, 0), scale_lim=(1, 1))


def flip_config(flip_x: bool, flip_y: bool) -> Dict[str, Any]:
    return dict(FLIPS, flip_dx_ratio=float(flip_x), flip_dy_ratio=float(flip_y))


def steps(bevdet_pipeline: Build, labels: Tuple[Dict[str, Any], ...], boxes: bool = False) -> List[Any]:
    """Loading without image augmentation, mirroring, labels, packing."""
    plain = bevdet_pipeline(training=False, depth=False)
    plain = [step for step in plain if boxes or step['type'] not in ('LoadAnnotations3D', 'BoxesToKeyEgo')]
    aug = dict(type='BEVDetBEVAug', bda_aug_conf=flip_config(False, False))
    pack = dict(plain[-1], keys=['gt_bboxes_3d', 'gt_labels_3d'] if boxes else [])
    return [*[step for step in plain[:-1] if step['type'] != 'BEVDetBEVAug'], aug, *labels, pack]


@pytest.fixture(scope='module')
def occupancy_data(make_dataset: Build) -> Build:
    def build(split: str = 'train', **changes: Any) -> BEVDetNuScenesDataset:
        return make_dataset(split, data_prefix=dict(PREFIX), filter_empty_gt=False, **changes)

    return build


@pytest.fixture
def sample(occupancy_data: Build) -> Dict[str, Any]:
    """The first sample as the dataset hands it to the pipeline, the BEV left as it is."""
    info = occupancy_data().get_data_info(0)
    return dict(info, cam_names=list(CAMERAS), bev_aug_matrix=np.eye(4))


def stored(sample: Dict[str, Any]) -> Dict[str, np.ndarray]:
    with np.load(sample['occupancy_path']) as archive:
        return {name: archive[name] for name in archive.files}


def loaded(sample: Dict[str, Any], **options: Any) -> Dict[str, np.ndarray]:
    return TRANSFORMS.build(dict(type='LoadOccupancyLabels', **options))(dict(sample))['occupancy']


def with_file(sample: Dict[str, Any], path: Path, **changes: Any) -> Dict[str, Any]:
    """The sample with labels of its own; None leaves an array out."""
    arrays = {**stored(sample), **changes}
    np.savez(str(path), **{name: array for name, array in arrays.items() if array is not None})
    return dict(sample, occupancy_path=str(path))


def test_the_classes_are_those_of_the_synthetic_world() -> None:
    assert len(OCCUPANCY_CLASSES) == 18
    assert OCCUPANCY_CLASSES.index('free') == FREE == SYNTHETIC_FREE


def test_labels_are_those_of_the_file(sample: Dict[str, Any], bevdet_world: Path) -> None:
    path = Path(sample['occupancy_path'])
    assert path.relative_to(bevdet_world).parts[::2] == ('gts', sample['token'])
    ours = loaded(sample)
    for name, array in stored(sample).items():
        np.testing.assert_array_equal(ours[name], array)
        assert ours[name].dtype == np.uint8


@pytest.mark.parametrize(('flip_x', 'flip_y'), list(itertools.product((False, True), repeat=2)))
def test_labels_and_boxes_are_mirrored_alike(
    occupancy_data: Build, bevdet_pipeline: Build, flip_x: bool, flip_y: bool
) -> None:
    """Wherever a box's middle goes, the voxel around it keeps its class; nearly all hold the class of the box."""
    labels = (dict(type='LoadOccupancyLabels'),)
    aug = dict(type='BEVDetBEVAug', bda_aug_conf=flip_config(flip_x, flip_y))
    still = steps(bevdet_pipeline, labels, boxes=True)
    mirrored = [aug if step['type'] == 'BEVDetBEVAug' else step for step in still]
    before, after = (occupancy_data(pipeline=pipeline) for pipeline in (still, mirrored))
    same: List[bool] = []
    for index in range(len(before)):
        pair = [data[index]['data_samples'] for data in (before, after)]
        found = [_classes_at(part.gt_occupancy.semantics, part.gt_instances_3d.bboxes_3d) for part in pair]
        np.testing.assert_array_equal(*found)
        names = [before.metainfo['classes'][label] for label in pair[0].gt_instances_3d.labels_3d]
        same += [OCCUPANCY_CLASSES[label] == name for label, name in zip(found[0], names) if label >= 0]
        for name in ARRAYS:
            whole = [part.gt_occupancy.get(name).numpy() for part in pair]
            index_of = np.ix_(*[range(n)[:: -1 if flip else 1] for n, flip in zip(SHAPE, (flip_x, flip_y, False))])
            np.testing.assert_array_equal(whole[1], whole[0][index_of])
    assert len(same) > 30
    assert np.mean(same) > 0.7


def _classes_at(semantics: torch.Tensor, boxes: Any) -> np.ndarray:
    """The class of the voxel around each box's middle, -1 outside."""
    index = np.floor((boxes.gravity_center.numpy().astype(np.float64) - LOWER) / VOXEL).astype(int)
    inside = ((index >= 0) & (index < SHAPE)).all(axis=1)
    found = np.full(len(index), -1)
    found[inside] = semantics.numpy()[tuple(index[inside].T)]
    return found


@pytest.mark.parametrize('conf', [dict(rot_lim=(5, 5), scale_lim=(1, 1)), dict(rot_lim=(0, 0), scale_lim=(1.05, 1.05))])
def test_more_than_mirroring_is_refused(sample: Dict[str, Any], conf: Dict[str, Any]) -> None:
    turned = TRANSFORMS.build(dict(type='BEVDetBEVAug', bda_aug_conf=conf))(dict(sample))
    with pytest.raises(ValueError, match=r'mirrored, not rotated or scaled; bda_aug_conf needs rot_lim=\(0, 0\)'):
        loaded(turned)


def test_coarser_labels_are_those_of_a_plain_loop() -> None:
    random = np.random.RandomState(3)
    labels = {'semantics': random.choice([0, 2, 4, FREE, FREE, FREE, FREE], (6, 4, 8)).astype(np.uint8)}
    labels.update({name: (random.rand(6, 4, 8) < 0.1).astype(np.uint8) for name in ARRAYS[1:]})
    found = coarser(labels, (2, 2, 4))
    kinds = set()
    for x, y, z in itertools.product(range(2), range(2), range(4)):
        block = np.s_[3 * x : 3 * x + 3, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2]
        occupied = [int(label) for label in labels['semantics'][block].ravel() if label != FREE]
        wanted = max(sorted(set(occupied)), key=occupied.count) if occupied else FREE
        kinds.add(wanted)
        assert found['semantics'][x, y, z] == wanted
        for name in ARRAYS[1:]:
            assert found[name][x, y, z] == max(labels[name][block].ravel())
    assert len(kinds) > 2
    assert {name: array.shape for name, array in found.items()} == dict.fromkeys(ARRAYS, (2, 2, 4))


def test_the_grid_moves_to_the_frame_of_the_labels(sample: Dict[str, Any]) -> None:
    """From any camera's frame at its own time to the mirrored ego frame at the LiDAR's: equal by the tables' own poses."""
    flips = np.diag([-1.0, 1.0, 1.0, 1.0])
    moved = TRANSFORMS.build(dict(type='GridToLidarEgo'))(dict(sample, bev_aug_matrix=flips))['bev_aug_matrix']
    key_ego2global = np.asarray(sample['images'][CAMERAS[0]]['ego2global'])
    point = np.array([12.0, -7.0, 0.5, 1.0])  # metres, in the ego frame at the LiDAR's time stamp
    in_key_ego = np.linalg.inv(key_ego2global) @ np.asarray(sample['ego2global']) @ point
    assert np.abs(in_key_ego - point).max() > 0.05, 'the vehicle must have moved for this to show'
    np.testing.assert_allclose(moved @ in_key_ego, flips @ point, atol=1e-9)


def test_more_points_lie_in_occupied_voxels_with_it(
    occupancy_data: Build, bevdet_pipeline: Build, bevdet_world: Path
) -> None:
    """LiDAR points of the scan itself, placed as the model places what it sees."""
    shares: Dict[int, List[float]] = {}
    for frames in ((), (dict(type='GridToLidarEgo'),)):
        data = occupancy_data(pipeline=steps(bevdet_pipeline, (dict(type='LoadOccupancyLabels'), *frames)))
        hits: List[float] = []
        for index in range(len(data)):
            info, packed = data.get_data_info(index), data[index]
            points = np.fromfile(info['lidar_points']['lidar_path'], np.float32).reshape(-1, 5)[:, :3]
            lidar2global = np.asarray(info['ego2global']) @ np.asarray(info['lidar_points']['lidar2ego'])
            key_ego = np.linalg.inv(np.asarray(info['images'][CAMERAS[0]]['ego2global'])) @ lidar2global
            seen = packed['inputs']['bev_aug'].numpy().astype(np.float64) @ key_ego
            voxels = np.floor((points @ seen[:3, :3].T + seen[:3, 3] - LOWER) / VOXEL).astype(int)
            voxels = voxels[((voxels >= 0) & (voxels < SHAPE)).all(axis=1)]
            classes = packed['data_samples'].gt_occupancy.semantics.numpy()[tuple(voxels.T)]
            above = voxels[:, 2] >= 5  # the ground is the same wherever one stands
            hits.append(float((classes[above] != FREE).mean()))
        shares[len(frames)] = hits
    assert all(right > wrong for right, wrong in zip(shares[1], shares[0]))
    assert np.mean(shares[1]) > max(0.7, np.mean(shares[0]) + 0.03)


def test_a_frame_for_labels_is_no_frame_for_boxes(sample: Dict[str, Any]) -> None:
    step = TRANSFORMS.build(dict(type='GridToLidarEgo'))
    with pytest.raises(ValueError, match='moves voxels, not boxes'):
        step(dict(sample, gt_bboxes_3d=None))
    with pytest.raises(ValueError, match=r'no cam_names, bev_aug_matrix; GridToLidarEgo goes after'):
        step({key: value for key, value in sample.items() if key not in ('cam_names', 'bev_aug_matrix')})


def test_what_cannot_be_labels_is_refused(sample: Dict[str, Any], tmp_path: Path) -> None:
    path, token = tmp_path / 'labels.npz', sample['token']
    with pytest.raises(ValueError, match=rf'{token}: {path} cannot be read .*gts of Occ3D-nuScenes belongs into'):
        loaded(dict(sample, occupancy_path=str(path)))
    path.write_bytes(b'no archive')
    with pytest.raises(ValueError, match=rf'{path} is no readable \.npz archive'):
        loaded(dict(sample, occupancy_path=str(path)))
    with pytest.raises(ValueError, match='holds no mask_camera'):
        loaded(with_file(sample, path, mask_camera=None))
    with pytest.raises(ValueError, match=r'mask_lidar has shape \(200, 200\), expected \(X, Y, Z\) = \(200, 200, 16\)'):
        loaded(with_file(sample, path, mask_lidar=np.zeros((200, 200), np.uint8)))
    strange = stored(sample)['semantics']
    strange[3, 4, 5] = 18
    with pytest.raises(ValueError, match=rf'{token}: .*semantics holds 18, expected a class of 0..17 \(17 = free\)'):
        loaded(with_file(sample, path, semantics=strange))
    with pytest.raises(ValueError, match='semantics holds -1'):
        loaded(with_file(sample, path, semantics=np.full(SHAPE, -1)))
    with pytest.raises(ValueError, match='mask_camera holds 2, expected 0 or 1'):
        loaded(with_file(sample, path, mask_camera=np.full(SHAPE, 2, np.uint8)))
    with pytest.raises(ValueError, match=r'voxels \(100, 60, 16\) \(x, y, z\) must be whole parts'):
        loaded(sample, voxels=(100, 60, 16))
    with pytest.raises(ValueError, match="needs data_prefix=dict\\(occupancy='gts'"):
        loaded({key: value for key, value in sample.items() if key != 'occupancy_path'})
    with pytest.raises(ValueError, match='goes after BEVDetBEVAug'):
        loaded({key: value for key, value in sample.items() if key != 'bev_aug_matrix'})


def test_info_files_without_names_of_scenes_are_refused(
    occupancy_data: Build, bevdet_world: Path, tmp_path: Path
) -> None:
    file = load(bevdet_world / 'bevdet_infos_val.pkl')
    for info in file['data_list']:
        del info['scene_name']
    dump(file, tmp_path / 'old.pkl')
    with pytest.raises(ValueError, match=r'has no scene_name, by which occupancy labels are found; .*--force'):
        occupancy_data('val', ann_file=str(tmp_path / 'old.pkl'))


def scored(samples: List[Dict[str, Any]], **options: Any) -> Dict[str, float]:
    metric = OccupancyMetric(**options)
    for one in samples:
        metric.process({}, [one])
    return metric.evaluate(len(samples))


def random_samples(count: int, shape: Tuple[int, ...] = (7, 5, 4)) -> List[Dict[str, Any]]:
    """Labels of classes 0 to 9 and 17, and predictions that agree half of the time."""
    random = np.random.RandomState(7)
    samples = []
    for index in range(count):
        truth = random.choice([*range(10), FREE], shape)
        found = np.where(random.rand(*shape) < 0.5, truth, random.choice([*range(11), FREE], shape))
        masks = {name: torch.from_numpy((random.rand(*shape) < 0.7).astype(np.uint8)) for name in ARRAYS[1:]}
        labels = dict(semantics=torch.from_numpy(truth.astype(np.uint8)), **masks)
        prediction = dict(semantics=torch.from_numpy(found.astype(np.uint8)))
        samples.append(dict(token=f'{index}', gt_occupancy=labels, pred_occupancy=prediction))
    return samples


def plain_scores(samples: List[Dict[str, Any]], mask: str) -> Dict[str, float]:
    """Occ3D's figures, a voxel at a time."""
    hits, union = [0] * 18, [0] * 18
    for one in samples:
        for index in itertools.product(*map(range, one['pred_occupancy']['semantics'].shape)):
            if mask and not one['gt_occupancy'][mask][index]:
                continue
            truth = int(one['gt_occupancy']['semantics'][index])
            found = int(one['pred_occupancy']['semantics'][index])
            hits[truth] += truth == found
            for label in {truth, found}:
                union[label] += 1
    ious = {OCCUPANCY_CLASSES[k]: 100 * hits[k] / union[k] if union[k] else float('nan') for k in range(17)}
    return {'mIoU': float(np.mean([iou for iou in ious.values() if iou == iou])), **ious}


@pytest.mark.parametrize('mask', ['camera', 'lidar', None])
def test_scores_are_those_of_a_plain_loop(mask: Any) -> None:
    samples = random_samples(3)
    ours, plain = scored(samples, mask=mask), plain_scores(samples, mask and f'mask_{mask}')
    assert ours.pop('occupancy/mIoU') == pytest.approx(plain.pop('mIoU'))
    assert ours == pytest.approx({f'occupancy/IoU_{name}': iou for name, iou in plain.items()}, nan_ok=True)
    assert np.isnan(ours['occupancy/IoU_vegetation'])
    assert ours['occupancy/IoU_truck'] == 0, 'found but not there'


def test_the_ground_truth_scores_all_that_there_is(occupancy_data: Build, bevdet_pipeline: Build) -> None:
    data = occupancy_data('val', pipeline=steps(bevdet_pipeline, (dict(type='LoadOccupancyLabels'),)))
    samples, wrong = [], []
    for index in range(len(data)):
        truth = data[index]['data_samples']
        truth.pred_occupancy = truth.gt_occupancy.clone()
        samples.append(truth.to_dict())
        unseen = truth.gt_occupancy.mask_camera == 0
        truth.pred_occupancy.semantics = truth.gt_occupancy.semantics.clone().masked_fill(unseen, 3)
        wrong.append(truth.to_dict())
    scores = scored(samples)
    assert scores['occupancy/mIoU'] == 100
    there = [name for name, value in scores.items() if not np.isnan(value)]
    assert all(scores[name] == 100 for name in there)
    assert len(there) > 10
    assert scored(wrong) == pytest.approx(scores, nan_ok=True), 'voxels that no camera sees do not count'
    assert scored(wrong, mask=None)['occupancy/mIoU'] < 99


def test_nothing_to_see_has_no_score() -> None:
    (sample,) = random_samples(1)
    sample['gt_occupancy']['mask_camera'] = torch.zeros(7, 5, 4)
    assert np.isnan(scored([sample])['occupancy/mIoU'])


def test_what_cannot_be_scored_is_refused() -> None:
    (sample,) = random_samples(1)
    with pytest.raises(ValueError, match="mask must be 'camera', 'lidar' or None, got 'radar'"):
        OccupancyMetric(mask='radar')
    with pytest.raises(ValueError, match='sample 0: no gt_occupancy to score; labels come from LoadOccupancyLabels'):
        scored([{key: value for key, value in sample.items() if key != 'gt_occupancy'}])
    with pytest.raises(ValueError, match=r'sample 0: \(5, 4\) voxels predicted, \(7, 5, 4\) labelled'):
        scored([dict(sample, pred_occupancy=dict(semantics=torch.zeros(5, 4)))])
    with pytest.raises(ValueError, match=r'prediction of class 18, there are 0\.\.17'):
        scored([dict(sample, pred_occupancy=dict(semantics=torch.full((7, 5, 4), 18)))])
