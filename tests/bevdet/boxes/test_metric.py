"""Boxes in the key ego frame, fed back as predictions, score all that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

from mmdet3d.evaluation.metrics import NuScenesMetric
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.fileio import dump, load
from mmengine.registry import METRICS

PREFIX = 'NuScenes metric/pred_instances_3d_NuScenes'
Build = Callable[..., Any]


def predicted(data: Any) -> List[Dict[str, Any]]:
    """Ground truth of every sample as an evaluator hands predictions over."""
    samples = []
    for index in range(len(data)):
        sample = data[index]['data_samples']
        truth = sample.gt_instances_3d
        truth.scores_3d = torch.ones(len(truth.labels_3d))
        sample.pred_instances_3d = truth
        sample.pred_instances = type(truth)()
        samples.append(sample.to_dict())
    return samples


def present(data: Any, within: float = 50) -> set:
    """Classes with a box in the devkit's range for them, and within that many metres."""
    ranges = dict(zip(('car', 'truck', 'bus', 'trailer', 'construction_vehicle'), [50] * 5))
    ranges.update(pedestrian=40, motorcycle=40, bicycle=40, traffic_cone=30, barrier=30)
    found = set()
    for index in range(len(data)):
        info = data.get_data_info(index)
        lidar2ego = torch.tensor(info['lidar_points']['lidar2ego']).float()
        boxes = info['ann_info']['gt_bboxes_3d'].gravity_center @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
        for label, box in zip(info['ann_info']['gt_labels_3d'], boxes):
            name = data.metainfo['classes'][label]
            found |= {name} if box[:2].norm() < min(ranges[name], within) else set()
    return found


def scores(kind: Any, data: Any, world: Path, samples: List[Dict[str, Any]], **options: Any) -> Dict[str, float]:
    metric = kind(str(world), str(world / 'bevdet_infos_val.pkl'), **options)
    metric.dataset_meta = data.metainfo
    metric.process({}, samples)
    return metric.evaluate(len(samples))


@pytest.mark.parametrize('ego_camera', [None, 'CAM_FRONT'])
def test_ground_truth_scores_all_that_there_is(
    make_dataset: Build, bevdet_pipeline: Build, bevdet_world: Path, ego_camera: Optional[str]
) -> None:
    data = make_dataset('val', pipeline=bevdet_pipeline(training=False, depth=False, ego_camera=ego_camera))
    found, there = scores(METRICS.get('EgoNuScenesMetric'), data, bevdet_world, predicted(data)), present(data)
    assert len(there) >= 8
    for name in data.metainfo['classes']:
        for distance in ('0.5', '1.0', '2.0', '4.0'):
            assert found[f'{PREFIX}/{name}_AP_dist_{distance}'] == pytest.approx(float(name in there), abs=1e-3), name
        for kind in ('trans', 'scale', 'orient', 'vel'):
            error = found[f'{PREFIX}/{name}_{kind}_err']
            assert name not in there or np.isnan(error) or error < 0.01, (name, kind)
    assert found[f'{PREFIX}/mAP'] == pytest.approx(len(there) / 10, abs=1e-3)


def test_ground_truth_scores_what_there_is_within_shorter_ranges(
    make_dataset: Build, bevdet_pipeline: Build, bevdet_world: Path
) -> None:
    data = make_dataset('val', pipeline=bevdet_pipeline(training=False, depth=False))
    kind = METRICS.get('EgoNuScenesMetric')
    found = scores(kind, data, bevdet_world, predicted(data), within=(12, 50))
    assert 0 < len(present(data, 12)) < len(present(data))
    for within, place in ((12, 'within_12m/'), (50, 'within_50m/'), (50, '')):
        assert found[f'{PREFIX}/{place}mAP'] == pytest.approx(len(present(data, within)) / 10, abs=1e-3)


def test_the_frame_matters(make_dataset: Build, bevdet_pipeline: Build, bevdet_world: Path) -> None:
    """The same boxes taken for boxes in the LiDAR frame, a quarter turn away, score next to nothing."""
    data = make_dataset('val', pipeline=bevdet_pipeline(training=False, depth=False))
    assert scores(NuScenesMetric, data, bevdet_world, predicted(data))[f'{PREFIX}/mAP'] < 0.1


def test_the_order_of_the_info_file_does_not_matter(
    make_dataset: Build, bevdet_pipeline: Build, bevdet_world: Path, tmp_path: Path
) -> None:
    """The dataset sorts by time; mmdet3d's metric looks samples up by their place in the file."""
    file = load(bevdet_world / 'bevdet_infos_val.pkl')
    dump(dict(file, data_list=file['data_list'][::-1]), tmp_path / 'reversed.pkl')
    data = make_dataset(
        'val', ann_file=str(tmp_path / 'reversed.pkl'), pipeline=bevdet_pipeline(training=False, depth=False)
    )
    metric = METRICS.get('EgoNuScenesMetric')(str(bevdet_world), str(tmp_path / 'reversed.pkl'))
    metric.dataset_meta = data.metainfo
    samples = predicted(data)
    metric.process({}, samples)
    assert metric.evaluate(len(samples))[f'{PREFIX}/mAP'] == pytest.approx(len(present(data)) / 10, abs=1e-3)
    metric.process({}, [dict(samples[0], token='nowhere')])
    with pytest.raises(ValueError, match='sample nowhere is not in'):
        metric.evaluate(1)


def test_no_box_at_all_scores_nothing(make_dataset: Build, bevdet_pipeline: Build, bevdet_world: Path) -> None:
    data = make_dataset('val', pipeline=bevdet_pipeline(training=False, depth=False))
    samples = predicted(data)
    for sample in samples:
        none = LiDARInstance3DBoxes(torch.zeros(0, 9), box_dim=9)
        sample['pred_instances_3d'] = dict(bboxes_3d=none, scores_3d=torch.zeros(0), labels_3d=torch.zeros(0).long())
    kind = METRICS.get('EgoNuScenesMetric')
    assert scores(kind, data, bevdet_world, samples) == {f'{PREFIX}/mAP': 0.0, f'{PREFIX}/NDS': 0.0}
    samples[0].pop('lidar2key_ego')
    with pytest.raises(ValueError, match='no lidar2key_ego among its meta information'):
        scores(kind, data, bevdet_world, samples)
