"""``--amp`` of the hosts' training scripts: they take every configuration, and the step is a mixed one that is left out when not finite."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, List

import pytest
import torch

pytest.importorskip('mmdet3d')

from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from geomim.mmengine.optim_wrappers import SkipNonFiniteMixin
from geomim.nuscenes.infos import mmdet3d_tools

from ..helpers import run_quietly
from .micro import micro_config

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FOR_2D = sorted(path for host in ('mmdet', 'mmseg') for path in (CONFIGS / host).glob('*.py'))
# those of TPVFormer need a checkout of mmdet3d; their optimisation is its own, as that of MV-FCOS3D
FILES = sorted(path for path in CONFIGS.glob('mmdet3d/[!_]*/*.py') if path.parent.name != 'segmentation')


def with_amp(path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Config:
    """The configuration that mmdet3d's script gives to its Runner."""
    spec = importlib.util.spec_from_file_location('train_script', mmdet3d_tools() / 'train.py')
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    given: List[Config] = []

    class Recorder:
        def train(self) -> None:
            pass

    Recorder.from_cfg = lambda config: given.append(config) or Recorder()
    monkeypatch.setattr(script, 'Runner', Recorder)
    monkeypatch.setattr(sys, 'argv', ['train.py', str(path), '--amp', *options])
    monkeypatch.setenv('LOCAL_RANK', '0')
    script.main()
    return given[0]


def wrapper_of(config: Config) -> Any:
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    settings = {
        key: value for key, value in config.optim_wrapper.items() if key not in ('constructor', 'paramwise_cfg')
    }
    return OPTIM_WRAPPERS.build({**settings, 'optimizer': optimizer})


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_configuration_takes_the_switch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = wrapper_of(with_amp(path, monkeypatch))
    assert isinstance(wrapper, AmpOptimWrapper)
    assert isinstance(wrapper, SkipNonFiniteMixin) == ('mvfcos3d' not in path.stem)


def test_a_users_child_keeps_what_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / 'child.py'
    base = CONFIGS / 'mmdet3d' / 'finetune' / 'bevdet-r50.py'
    child.write_text(f"_base_ = '{base}'\noptim_wrapper = dict(optimizer=dict(lr=1e-5), limit=3)\n")
    config = with_amp(child, monkeypatch, '--cfg-options', 'optim_wrapper.dtype=bfloat16')
    assert (config.optim_wrapper.optimizer.type, config.optim_wrapper.optimizer.lr) == ('AdamW', 1e-5)
    wrapper = wrapper_of(config)
    assert (wrapper.limit, wrapper.cast_dtype) == (3, torch.bfloat16)
    assert wrapper.clip_grad_kwargs == dict(max_norm=5, norm_type=2)


@pytest.mark.long
def test_a_pretraining_goes_on_in_mixed_precision(small_world: Path, tmp_path: Path) -> None:
    """As the host's script runs it, from a checkpoint in float32."""
    config = micro_config(tmp_path, small_world)
    config.custom_hooks = [hook for hook in config.custom_hooks if hook.type != 'MicroRecordHook']
    config.dump(str(tmp_path / 'micro.py'))
    script = [mmdet3d_tools() / 'train.py', tmp_path / 'micro.py', '--work-dir', tmp_path]
    run_quietly([*script, '--cfg-options', 'train_cfg.max_iters=3'])
    run_quietly(
        [*script, '--resume', '--amp', '--cfg-options', 'train_cfg.max_iters=4', 'optim_wrapper.dtype=bfloat16']
    )
    states = [torch.load(tmp_path / f'iter_{number}.pth', weights_only=False) for number in (3, 4)]
    assert ['loss_scaler' in state['optimizer'] for state in states] == [False, True]
    weights = states[1]['state_dict']
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert any(not torch.equal(value, weights[name]) for name, value in states[0]['state_dict'].items())


@pytest.mark.parametrize('path', FOR_2D, ids=lambda path: path.stem)
def test_the_2d_configurations_have_a_type_that_their_hosts_scripts_know(path: Path) -> None:
    assert Config.fromfile(path, import_custom_modules=False).optim_wrapper.type in ('OptimWrapper', 'AmpOptimWrapper')
