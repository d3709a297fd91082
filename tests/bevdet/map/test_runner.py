"""Map segmentation through mmdet3d's own train.py and test.py: from an exported encoder to scores and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch

pytest.importorskip('mmdet3d')

from micro_detector import assert_starts_from_the_whole, losses, micro_config, scores, start, train
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, MODELS

TINY, ITERATIONS = 'bevdepth4d_map_tiny_synthetic', 3


@pytest.fixture(scope='module')
def unbroken(bevdet_world: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp('unbroken')
    train(work_dir, micro_config(TINY, bevdet_world, encoder, iterations=ITERATIONS))
    return work_dir


def test_a_run_trains_from_the_encoder_and_is_scored(unbroken: Path, encoder: Path) -> None:
    assert_starts_from_the_whole(encoder, unbroken)
    rows = losses(unbroken)
    assert [row['iter'] for row in rows] == list(range(ITERATIONS))
    assert {'loss_depth', 'map.loss_drivable_area', 'map.loss_divider'} <= set(rows[0])
    assert all(abs(value) < float('inf') for row in rows for value in row.values())
    found = scores(unbroken)
    assert 0 <= found['map/mIoU'] <= 100
    assert 0 <= found['map/IoU_drivable_area@0.50'] <= found['map/IoU_drivable_area']


@pytest.mark.long
def test_a_checkpoint_scores_again_what_it_scored(unbroken: Path, bevdet_world: Path, tmp_path: Path) -> None:
    saved = unbroken / f'iter_{ITERATIONS}.pth'
    done = start('test.py', tmp_path, micro_config(TINY, bevdet_world), saved)
    assert done.returncode == 0, done.stderr[-4000:]
    (found,) = [json.loads(path.read_text()) for path in tmp_path.glob('*/*.json') if 'map/mIoU' in path.read_text()]
    wanted = scores(unbroken)
    for name in ('map/mIoU', 'map/IoU_walkway', 'map/IoU_drivable_area@0.35'):
        assert found[name] == pytest.approx(wanted[name], abs=1e-4)


@pytest.mark.long
def test_a_few_frames_are_learnt_better_than_their_mean(bevdet_world: Path) -> None:
    """A map that is the same for every frame cannot be right for two streets; one that is seen in the images can."""
    config = micro_config(TINY, bevdet_world)
    config.model.img_view_transformer.loss_depth_weight = 0.1
    pipeline = config.train_dataloader.dataset.pipeline
    for step in pipeline:
        if 'data_config' in step:
            step.data_config.update(rot=(0.0, 0.0), flip=False)
        if step.type == 'BEVDetBEVAug':
            step.training = False
    data = DATASETS.build(config.train_dataloader.dataset)
    frames = [data[index] for index in (0, len(data) - 1)]
    assert len({data.get_data_info(index)['scene_token'] for index in (0, len(data) - 1)}) == 2
    model = MODELS.build(config.model)
    model.init_weights()
    optimizer = build_optim_wrapper(model, dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=6e-3)))
    for _ in range(80):
        model.train_step(pseudo_collate(frames), optimizer)
    model.eval()
    learnt = [model.val_step(pseudo_collate([frame]))[0].pred_bev_map.data for frame in frames]
    labels = torch.stack([frame['data_samples'].gt_bev_map.data for frame in frames]).float()
    found, mean, full = (
        scores_of(frames, maps) for maps in (learnt, [labels.mean(0)] * 2, [torch.ones_like(labels[0])] * 2)
    )
    for name in ('drivable_area', 'divider'):
        assert found[name] > mean[name] > full[name]
    names = ('drivable_area', 'divider', 'walkway', 'carpark_area')
    assert sum(found[name] for name in names) > sum(mean[name] for name in names) > sum(full[name] for name in names)


def scores_of(frames: List[Dict[str, Any]], maps: List[torch.Tensor]) -> Dict[str, float]:
    """IoU of each class, by its name."""
    metric = METRICS.build(dict(type='BEVMapIoU', prefix='it'))
    for frame, found in zip(frames, maps):
        sample = frame['data_samples'].to_dict()
        sample['pred_bev_map'] = dict(sample['gt_bev_map'], data=found)
        metric.process({}, [sample])
    return {name.replace('it/IoU_', ''): value for name, value in metric.evaluate(len(frames)).items()}
