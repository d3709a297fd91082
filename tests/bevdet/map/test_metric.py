"""IoU of maps against a plain loop; labels fed back as predictions score everything."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, List

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

from mmengine.registry import METRICS
from mmengine.structures import PixelData

from geomim.bevdet.map.spec import MAP_CLASSES, MapSpec

THRESHOLDS = (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)
SPEC = MapSpec.create(['walkway', 'divider', 'stop_line'], dict(x=[-4.0, 4.0, 1.0], y=[-3.0, 3.0, 1.0]))


def sample(predicted: torch.Tensor, truth: torch.Tensor, spec: MapSpec = SPEC) -> Dict[str, Any]:
    """As an evaluator hands it over."""
    meta = spec.as_meta()
    return {
        'token': 'abc',
        'pred_bev_map': PixelData(metainfo=meta, data=predicted).to_dict(),
        'gt_bev_map': PixelData(metainfo=meta, data=truth).to_dict(),
    }


def evaluate(samples: List[Dict[str, Any]], **options: Any) -> Dict[str, float]:
    metric = METRICS.build(dict(type='BEVMapIoU', **options))
    for one in samples:
        metric.process({}, [one])
    return metric.evaluate(len(samples))


def test_scores_are_those_of_a_plain_loop() -> None:
    random = np.random.default_rng(5)
    samples, cells = [], []
    for _ in range(3):
        truth = random.uniform(size=SPEC.shape) < 0.4
        found = np.clip(truth * 0.25 + random.uniform(size=SPEC.shape) * 0.7, 0, 1).astype(np.float32)
        samples.append(sample(torch.from_numpy(found), torch.from_numpy(truth)))
        cells.append((found, truth))
    scores = evaluate(samples)
    bests = []
    for index, name in enumerate(SPEC.classes):
        ious = []
        for threshold in THRESHOLDS:
            both = either = 0
            for found, truth in cells:
                for probability, label in zip(found[index].flat, truth[index].flat):
                    chosen = probability >= np.float32(threshold)
                    both += chosen and label
                    either += chosen or label
            ious.append(100 * both / either)
            assert scores[f'map/IoU_{name}@{threshold:.2f}'] == pytest.approx(ious[-1])
        bests.append(max(ious))
        assert scores[f'map/IoU_{name}'] == pytest.approx(bests[-1])
    assert scores['map/mIoU'] == pytest.approx(sum(bests) / 3)
    assert len(scores) == 1 + 3 + 3 * 7
    assert len({round(best, 3) for best in bests}) == 3


def test_a_threshold_belongs_to_what_is_found() -> None:
    truth = torch.zeros(SPEC.shape, dtype=torch.bool)
    truth[:, 0] = True
    scores = evaluate([sample(truth.float() * 0.5, truth)], thresholds=[0.5, 0.51])
    assert scores['map/IoU_divider@0.50'] == 100
    assert scores['map/IoU_divider@0.51'] == 0


def test_a_class_without_a_label_does_not_count() -> None:
    truth = torch.rand(SPEC.shape) < 0.5
    truth[2] = False
    scores = evaluate([sample(truth.float(), truth)])
    assert math.isnan(scores['map/IoU_stop_line'])
    assert scores['map/mIoU'] == 100
    found = truth.float()
    found[2] = 1.0
    assert math.isnan(evaluate([sample(found, truth)])['map/IoU_stop_line'])
    nothing = evaluate([sample(torch.zeros(SPEC.shape), torch.zeros(SPEC.shape, dtype=torch.bool))])
    assert math.isnan(nothing['map/mIoU'])


def test_labels_of_the_street_score_everything(
    make_dataset: Callable[..., Any], bevdet_pipeline: Callable[..., Any], bevdet_world: Any
) -> None:
    steps = bevdet_pipeline(training=False, depth=False)
    label = dict(type='LoadBEVMapLabels', data_root=str(bevdet_world))
    data = make_dataset('val', pipeline=[*steps[:-1], label, steps[-1]])
    samples = []
    for index in range(len(data)):
        element = data[index]['data_samples']
        element.pred_bev_map = PixelData(metainfo=element.gt_bev_map.metainfo, data=element.gt_bev_map.data.float())
        samples.append(element.to_dict())
    scores = evaluate(samples)
    there = [name for name in MAP_CLASSES if not math.isnan(scores[f'map/IoU_{name}'])]
    assert set(MAP_CLASSES) - set(there) <= {'stop_line', 'ped_crossing'}
    assert {scores['map/mIoU'], *(scores[f'map/IoU_{name}'] for name in there)} == {100.0}


def test_what_cannot_be_scored() -> None:
    truth = torch.zeros(SPEC.shape, dtype=torch.bool)
    good = sample(truth.float(), truth)
    for key in ('gt_bev_map', 'pred_bev_map'):
        with pytest.raises(ValueError, match=f'sample abc: no {key} to score'):
            evaluate([{name: value for name, value in good.items() if name != key}])
    other = MapSpec.create(['divider', 'walkway', 'stop_line'], dict(x=[-4.0, 4.0, 1.0], y=[-3.0, 3.0, 1.0]))
    mixed = dict(good, pred_bev_map=sample(truth.float(), truth, other)['pred_bev_map'])
    with pytest.raises(ValueError, match='classes of the predicted map'):
        evaluate([mixed])
    for thresholds in ([], [0.0, 0.5], [1.2]):
        with pytest.raises(ValueError, match='thresholds must lie between 0 and 1'):
            evaluate([good], thresholds=thresholds)
