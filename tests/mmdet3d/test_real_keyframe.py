"""One real nuScenes keyframe through mmdet3d's dataset and pipeline into the tiny student: it begins to overfit.

The keyframe is not part of the project: GEOMIM_NUSCENES_FRAME names its folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet3d')

ROOT = Path(__file__).resolve().parents[2]
FRAME = Path(os.environ.get('GEOMIM_NUSCENES_FRAME', ROOT.parent / 'shared' / 'data' / 'nuscenes_frame'))
INFO = next(FRAME.glob('*.pkl'), None) if FRAME.is_dir() else None
pytestmark = pytest.mark.skipif(INFO is None, reason=f'no nuScenes keyframe in {FRAME}; set GEOMIM_NUSCENES_FRAME')


def keyframe_batch(model, config) -> dict:
    from mmengine.registry import DATASETS, init_default_scope

    init_default_scope('mmdet3d')
    dataset = config.val_dataloader.dataset
    dataset.update(data_root=str(FRAME), ann_file=INFO.name, data_prefix=dict.fromkeys(dataset.data_prefix, ''))
    dataset.metainfo.version = 'v1.0-mini'
    sample = DATASETS.build(dataset)[0]
    batch = dict(
        inputs={key: [value] for key, value in sample['inputs'].items()}, data_samples=[sample['data_samples']]
    )
    return model.data_preprocessor(batch, True)


def test_the_tiny_student_begins_to_overfit_the_keyframe() -> None:
    from mmengine.config import Config
    from mmengine.registry import MODELS

    from geomim.mmengine.model import measure

    config = Config.fromfile(ROOT / 'configs' / 'mmdet3d' / 'pretrain' / 'geomim_tiny_cpu.py')
    model = MODELS.build(config.model)
    inputs = keyframe_batch(model, config)['inputs']
    assert inputs['images'].shape == (1, 6, 3, 128, 352)
    student = model.student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    first = None
    for _ in range(30):
        result = model.run_student(inputs, generator)
        (result.reconstruction_loss + result.depth_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        first = first or result
    figures = {name: float(value.float().mean()) for name, value in measure(result).items()}
    assert figures['labelled_cells'] > 500
    assert figures['reconstruction_loss'] < figures['constant_map_loss']
    assert float(result.depth_loss) < 0.75 * float(first.depth_loss)
