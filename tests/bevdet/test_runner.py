"""Detectors through mmdet3d's own train.py: from an exported encoder to scores and checkpoints, resumed, and over two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest
import torch

pytest.importorskip('mmdet3d')

from micro_detector import assert_starts_from_the_whole, log, losses, micro_config, scores, start, train

ROOT = Path(__file__).resolve().parents[2]
REAL_MINI = Path(os.environ.get('GEOMIM_REAL_MINI', ROOT.parent / 'shared' / 'tools' / 'make_real_mini.py'))
ITERATIONS = 4
DEPTH, STEREO = 'bevdepth4d_tiny_synthetic', 'bevstereo4d_tiny_synthetic'


def checkpoint(path: Path) -> Dict[str, Any]:
    from geomim.mmengine.compat import load_local_checkpoint

    return load_local_checkpoint(path, 'cpu')


@pytest.fixture(scope='module')
def unbroken(bevdet_world: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp('unbroken')
    train(work_dir, micro_config(STEREO, bevdet_world, encoder, iterations=ITERATIONS))
    return work_dir


def test_a_run_starts_from_the_whole_encoder(unbroken: Path, encoder: Path) -> None:
    assert_starts_from_the_whole(encoder, unbroken)
    count = sum(not name.endswith('relative_position_index') for name in checkpoint(encoder))
    assert f'{count} tensors taken\n' in log(unbroken)


def test_a_run_trains_validates_and_leaves_checkpoints(unbroken: Path) -> None:
    rows = losses(unbroken)
    assert [row['iter'] for row in rows] == list(range(ITERATIONS))
    assert [row['with_prev'] for row in rows] == [False, False, True, True]
    assert {'loss_depth', 'task0.loss_heatmap', 'task0.loss_xy', 'task0.loss_vel'} <= set(rows[0])
    assert all(abs(value) < float('inf') for row in rows for value in row.values())
    assert scores(unbroken)['NuScenes metric/pred_instances_3d_NuScenes/NDS'] >= 0
    saved = checkpoint(unbroken / f'iter_{ITERATIONS}.pth')
    average, weights = saved['state_dict'], saved['ema_state_dict']
    assert int(weights['steps']) == ITERATIONS
    name = 'pts_bbox_head.shared_conv.conv.weight'
    assert not torch.equal(average[name], weights[f'module.{name}'])
    assert list(unbroken.glob('*/vis_data/events.out.tfevents*'))


def test_a_checkpoint_fits_the_detector_strictly(unbroken: Path) -> None:
    from mmdet3d.registry import MODELS
    from mmengine.config import Config

    config = Config.fromfile(unbroken / 'micro.py', import_custom_modules=False)
    model = MODELS.build(config.model)
    model.load_state_dict(checkpoint(unbroken / f'iter_{ITERATIONS}.pth')['state_dict'], strict=True)


@pytest.mark.long
@pytest.mark.parametrize('name', [DEPTH, STEREO, 'bevdepth4d_map_tiny_synthetic'])
def test_the_hosts_switch_trains_in_mixed_precision(bevdet_world: Path, tmp_path: Path, name: str) -> None:
    train(tmp_path, micro_config(name, bevdet_world, iterations=3), '--amp')
    rows = losses(tmp_path)
    assert len(rows) == 3
    assert all(abs(value) < float('inf') for row in rows for value in row.values())
    saved = checkpoint(tmp_path / 'iter_3.pth')
    assert 'loss_scaler' in saved['optimizer']
    assert {value.dtype for value in saved['state_dict'].values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.long
def test_killed_run_resumes_to_the_same_bit_for_bit(
    bevdet_world: Path, encoder: Path, unbroken: Path, tmp_path: Path
) -> None:
    """Weights, their average, the optimizer, and past frames switched on before and after the break."""
    config = micro_config(STEREO, bevdet_world, encoder, iterations=ITERATIONS)
    config.custom_hooks[-1]['kill_at'] = ITERATIONS
    killed = start('train.py', tmp_path, config)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-4000:]
    config.custom_hooks[-1]['kill_at'] = -1
    train(tmp_path, config, '--resume')
    assert 'resumed epoch' in log(tmp_path)
    assert losses(tmp_path)[-1] == losses(unbroken)[-1]
    assert len(losses(tmp_path)) == ITERATIONS + 1, 'the last iteration must have been done again, and only that'
    last = f'iter_{ITERATIONS}.pth'
    ours, theirs = checkpoint(tmp_path / last), checkpoint(unbroken / last)
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert_equal(ours[part], theirs[part], part)


def assert_equal(ours: Any, theirs: Any, where: str) -> None:
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in ours.items():
            assert_equal(value, theirs[key], f'{where}.{key}')
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs)):
            assert_equal(*pair, f'{where}.{index}')
    else:
        assert ours == theirs, where


@pytest.mark.long
def test_two_processes_train_and_validate(bevdet_world: Path, encoder: Path, tmp_path: Path) -> None:
    config = micro_config(DEPTH, bevdet_world, encoder, iterations=3)
    config.train_dataloader.batch_size = 1
    train(tmp_path, config, processes=2)
    first, second = losses(tmp_path, 0), losses(tmp_path, 1)
    assert [row['with_prev'] for row in first] == [row['with_prev'] for row in second] == [False, False, True]
    assert [row['weights'] for row in first] == [row['weights'] for row in second], 'one model in both processes'
    assert len({row['weights'] for row in first}) == 3
    assert first[0]['loss_depth'] != second[0]['loss_depth'], 'each process must see samples of its own'
    assert scores(tmp_path)
    assert (tmp_path / 'iter_3.pth').is_file()


def test_an_encoder_of_another_size_is_refused(bevdet_world: Path, encoder: Path) -> None:
    from mmdet3d.registry import MODELS

    config = micro_config(DEPTH, bevdet_world, encoder)
    config.model.img_backbone.update(depths=(1, 1, 4, 1))
    model = MODELS.build(config.model)
    with pytest.raises(ValueError, match='stages.2.blocks.2'):
        model.init_weights()
    config.model.img_backbone.update(depths=(1, 1, 2, 1), embed_dims=64)
    config.model.img_neck.in_channels = 256 + 512
    model = MODELS.build(config.model)
    with pytest.raises(ValueError, match='another architecture: 78 of 83 tensors'):
        model.init_weights()


def test_a_file_without_an_encoder_is_refused(bevdet_world: Path, tmp_path: Path) -> None:
    from mmdet3d.registry import MODELS

    torch.save({'state_dict': {'layer1.0.conv1.weight': torch.zeros(1)}}, tmp_path / 'resnet.pth')
    model = MODELS.build(micro_config(DEPTH, bevdet_world, tmp_path / 'resnet.pth').model)
    with pytest.raises(ValueError, match=r'resnet\.pth'):
        model.init_weights()


@pytest.fixture(scope='module')
def real_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nuScenes tables around one real keyframe; the script that writes them is not part of the project."""
    from geomim.nuscenes.bevdet_infos import make_bevdet_infos

    if not REAL_MINI.is_file():
        pytest.skip(f'no {REAL_MINI}; set GEOMIM_REAL_MINI to a script that writes nuScenes tables of a real keyframe')
    root = tmp_path_factory.mktemp('real') / 'nuscenes'
    root.mkdir()
    subprocess.run([sys.executable, str(REAL_MINI), str(root)], check=True, capture_output=True)
    return make_bevdet_infos(root)


@pytest.mark.long
def test_the_real_keyframe_trains_and_is_scored(real_world: Path, encoder: Path, tmp_path: Path) -> None:
    config = micro_config(DEPTH, real_world, encoder, image_width=1600, iterations=2)
    config.custom_hooks = [hook for hook in config.custom_hooks if hook['type'] != 'SequentialControlHook']
    train(tmp_path, config)
    assert [row['with_prev'] for row in losses(tmp_path)] == [True, True]
    assert scores(tmp_path)['NuScenes metric/pred_instances_3d_NuScenes/NDS'] >= 0
