"""Rigs other than nuScenes', by configuration alone: five cameras of unequal sizes, one ahead; from one rig to another."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

from geomim.method.depth import depth_maps
from geomim.mmengine.rig import build_rig

from ..helpers import run_quietly
from .micro import micro_config

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}


def run(work_dir: Path, data: Path, *options: str) -> Path:
    run_quietly([HERE / 'micro.py', work_dir, data, '--iters', '2', *options])
    return work_dir


def losses(work_dir: Path) -> List[Dict[str, float]]:
    return [json.loads(line) for line in (work_dir / 'losses.jsonl').read_text().splitlines()]


def train_sample(config: Any) -> Dict[str, Any]:
    from mmdet3d.registry import DATASETS
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet3d')
    return DATASETS.build(config.train_dataloader.dataset)[0]


@pytest.fixture(scope='module')
def six_cameras(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining with nuScenes' cameras: its last checkpoint and its encoders."""
    return run(tmp_path_factory.mktemp('six'), small_world)


def test_the_configuration_names_the_rig_of_the_world_that_it_asks_for() -> None:
    for rig, cams in (('five', 5), ('front', 1)):
        config = micro_config('', '', name=f'geomim_{rig}_tiny_synthetic')
        sensors = json.loads((ROOT / f'projects/GeoMIM/geomim/synthetic/rigs/{rig}.json').read_text())['cameras']
        for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
            steps = {step['type']: step for step in loader.dataset.pipeline}
            assert steps['LoadCameraRig']['cameras'] == list(sensors)
            assert len(sensors) == cams
            assert {name: loader.dataset.data_prefix[name] for name in sensors} == {n: f'samples/{n}' for n in sensors}


def test_a_sample_has_the_cameras_in_the_order_of_the_configuration(five_world: Path) -> None:
    order = ['CAM_SIDE_RIGHT', 'CAM_FRONT', 'CAM_SIDE_LEFT']
    config = micro_config('', five_world, name='geomim_five_tiny_synthetic')
    pipeline = config.train_dataloader.dataset.pipeline
    pipeline[0]['cameras'] = order
    for step in pipeline:
        if step['type'] == 'SurroundImageAug':
            step.update(training=False)
    pipeline[:] = [step for step in pipeline if step['type'] not in ('BEVFlip', 'PointShuffle')]
    sample = train_sample(config)
    meta = sample['data_samples'].metainfo
    assert meta['cam_names'] == order
    assert [Path(path).parent.name for path in meta['img_path']] == order
    mounts = json.loads(five_world.with_suffix('.json').read_text())['cameras']
    focal = [mounts[name]['camera_intrinsic'][0][0] for name in order]
    np.testing.assert_allclose(np.asarray(meta['cam2img'])[:, 0, 0], focal)
    assert len(set(focal)) == 3
    # images of unequal heights keep their lower edge: 213 and 148 rows scaled by 0.3 to the last 64
    assert tuple(sample['inputs']['img'].shape) == (3, 3, 64, 96)
    black = [int((image.sum(0) == 0).all(1).sum()) for image in sample['inputs']['img']]
    assert black == [20, 1, 20]
    maps = depth_maps([sample['inputs']['points']], build_rig([meta]), (64, 96))[0]
    for name, depth in zip(order, maps):
        assert int((depth > 0).sum()) > 20, name


def test_a_camera_that_the_data_lack_is_named(five_world: Path) -> None:
    config = micro_config('', five_world, name='geomim_five_tiny_synthetic')
    config.train_dataloader.dataset.pipeline[0]['cameras'] = ['CAM_FRONT', 'CAM_BACK']
    with pytest.raises(ValueError, match=r'no camera CAM_BACK; the info file has \[.CAM_FRONT., .CAM_FRONT_LEFT.'):
        train_sample(config)


def test_the_pages_block_makes_a_rig_by_configuration_alone(five_world: Path, tmp_path: Path) -> None:
    from mmengine.config import Config

    text = (ROOT / 'docs' / 'other_rigs.md').read_text(encoding='utf-8')
    block = re.search(r'```python\n(.*?)```', text, re.DOTALL).group(1).replace('path/to/', f'{ROOT}/')
    (tmp_path / 'rig.py').write_text(block)
    config = Config.fromfile(str(tmp_path / 'rig.py'))
    config.train_dataloader.dataset.update(data_root=f'{five_world}/', metainfo=dict(version='v1.0-trainval'))
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert len(loader.dataset.pipeline[0]['cameras']) == 3
    sample = train_sample(config)
    assert sample['data_samples'].metainfo['cam_names'] == ['CAM_FRONT', 'CAM_SIDE_LEFT', 'CAM_SIDE_RIGHT']
    assert tuple(sample['inputs']['img'].shape) == (3, 3, 128, 352)


@pytest.mark.long
def test_six_cameras_weights_go_on_with_five(five_world: Path, six_cameras: Path, tmp_path: Path) -> None:
    from geomim.checkpoints.loading import read_checkpoint

    name = 'geomim_five_tiny_synthetic'
    work_dir = run(tmp_path, five_world, '--config', name, '--load-from', str(six_cameras / 'iter_2.pth'))
    assert all(np.isfinite(list(row.values())).all() for row in losses(work_dir))
    before, after = (read_checkpoint(folder / 'iter_2.pth')['state_dict'] for folder in (six_cameras, work_dir))
    assert {key: value.shape for key, value in before.items()} == {key: value.shape for key, value in after.items()}
    log = next(work_dir.glob('*/*.log')).read_text()
    assert 'unexpected key' not in log
    assert 'missing keys' not in log
    changes = [float((after[key] - before[key]).abs().max()) for key in before if key.startswith('student.encoder')]
    assert 0 < max(changes) < 0.1, 'two steps away from the weights it was given'


@pytest.mark.long
def test_one_camera_ahead_pretrains(five_world: Path, tmp_path: Path) -> None:
    work_dir = run(tmp_path, five_world, '--config', 'geomim_front_tiny_synthetic')
    assert len(losses(work_dir)) == 2
    assert all(np.isfinite(list(row.values())).all() for row in losses(work_dir))
    assert (work_dir / 'encoder_bevdet.pth').is_file()


def rig_of_your_own(tmp_path: Path, data_root: Path) -> Any:
    """The configuration of five cameras that docs/finetuning.md gives."""
    from mmengine.config import Config

    text = (ROOT / 'docs' / 'finetuning.md').read_text()
    block = re.search(r'## A rig of your own\n.*?```python\n(.*?)```', text, re.DOTALL).group(1)
    block = block.replace('path/to/', f'{ROOT}/').replace('data/five/', f'{data_root}/')
    path = tmp_path / 'five.py'
    path.write_text(block)
    return Config.fromfile(str(path))


@pytest.mark.long
def test_a_detector_of_five_cameras_finetunes_from_the_encoder_of_six(
    five_world: Path, six_cameras: Path, tmp_path: Path
) -> None:
    from mmdet3d.registry import DATASETS, MODELS
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import init_default_scope

    from geomim.checkpoints.loading import read_checkpoint

    linked = tmp_path / 'linked'
    linked.mkdir()
    for entry in five_world.iterdir():
        (linked / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, '-m', 'geomim', 'infos', str(linked)], check=True, env=ENVIRONMENT)
    config = rig_of_your_own(tmp_path, linked)
    backbone = config.model.img_backbone
    backbone.update(embed_dims=8, num_heads=(1, 2, 2, 4), window_size=(4, 4, 3, 2))
    backbone.init_cfg.checkpoint = str(six_cameras / 'encoder_bevdet.pth')
    config.model.img_neck.in_channels = 32 + 64
    for step in config.train_dataloader.dataset.pipeline:
        if 'data_config' in step:
            step.data_config.src_size = (213, 320)
    init_default_scope('mmdet3d')
    model = MODELS.build(config.model)
    model.init_weights()
    pretrained = read_checkpoint(six_cameras / 'iter_2.pth')['state_dict']
    for name, value in model.img_backbone.state_dict().items():
        assert torch.equal(value, pretrained[f'student.encoder.{name}']), name
    dataset = DATASETS.build(config.train_dataloader.dataset)
    data = model.data_preprocessor(pseudo_collate([dataset[0], dataset[1]]), True)
    found = model.train()(**data, mode='loss')
    total = sum(value for name, value in found.items() if 'loss' in name)
    total.backward()
    assert bool(torch.isfinite(total))
    gradients = {name: value.grad for name, value in model.img_backbone.named_parameters()}
    assert all(float(value.abs().max()) > 0 for name, value in gradients.items() if name.startswith('patch_embed'))
