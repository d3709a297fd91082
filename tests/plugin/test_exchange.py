"""Checkpoints go both ways: pretrained by mmcv 1.x's runner or by mmengine's, loaded by either adapter."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
import torch
from mmcv.parallel import MMDataParallel
from mmcv.runner import build_runner
from mmdet3d.models import build_backbone, build_detector
from torch import Tensor

import geomim.plugin
from geomim import GeoMIM
from geomim.adapter.backbone import SwinBackbone
from geomim.checkpoints.loading import load_encoder, load_pretrained, read_checkpoint, tensors_of
from geomim.method.config import config_from_dict

State = Dict[str, Tensor]


@pytest.fixture
def pretrainer(student_config: Dict[str, Any], teacher_config: Dict[str, Any]) -> Any:
    torch.manual_seed(2)
    return build_detector(dict(type='GeoMIMPretrainer', student=student_config, teacher=teacher_config))


@pytest.fixture
def mmcv_checkpoint(pretrainer: Any, tmp_path: Path) -> Path:
    """One iteration of the encoder under mmcv's runner, with its optimizer and schedule hooks."""

    class Loss(geomim.plugin.GeoMIMPretrainer):
        def train_step(self, data: Tensor, optimizer: Any) -> Dict[str, Any]:
            loss = sum(map_.square().mean() for map_ in self.student.encoder(data))
            return dict(loss=loss, log_vars=dict(loss=float(loss)), num_samples=len(data))

    pretrainer.__class__ = Loss
    model = MMDataParallel(pretrainer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    arguments = dict(model=model, optimizer=optimizer, work_dir=str(tmp_path), logger=logging.getLogger('tests.plugin'))
    runner = build_runner(dict(type='IterBasedRunner', max_iters=1), dict(**arguments, meta=dict(seed=1)))
    runner.register_training_hooks(
        lr_config=dict(policy='CosineAnnealing', min_lr=0.0, by_epoch=False),
        optimizer_config=dict(grad_clip=dict(max_norm=35)),
        checkpoint_config=dict(interval=1, by_epoch=False),
    )
    runner.run([torch.utils.data.DataLoader(torch.randn(2, 3, 64, 96), batch_size=2)], [('train', 1)])
    return tmp_path / 'iter_1.pth'


@pytest.fixture
def other_host(repository: Path, student_config: Dict[str, Any], tmp_path: Path) -> Callable[..., None]:
    """Runs ``other_host.py`` with the Python that has mmengine."""
    python = os.environ.get('GEOMIM_MMDET3D_PYTHON', str(repository / '.venv' / 'bin' / 'python'))
    if not Path(python).is_file():
        pytest.skip(f'no Python with mmdet3d 1.x at {python}; set GEOMIM_MMDET3D_PYTHON')
    config = tmp_path / 'student.json'
    config.write_text(json.dumps(student_config))

    def run(task: str, *arguments: Any) -> None:
        script = Path(__file__).with_name('other_host.py')
        command = [python, '-W', 'ignore', str(script), task, str(config), *map(str, arguments)]
        clean = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
        done = subprocess.run(command, env={**clean, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]

    return run


def assert_equal(ours: State, theirs: State) -> None:
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_state_dict_holds_the_cores_student_and_nothing_else(pretrainer: Any, student_config: Dict[str, Any]) -> None:
    core = GeoMIM(config_from_dict(student_config)).state_dict()
    shapes = {f'student.{name}': tuple(value.shape) for name, value in core.items()}
    assert {name: tuple(value.shape) for name, value in pretrainer.state_dict().items()} == shapes


def test_a_checkpoint_of_mmcvs_runner_starts_everything(
    pretrainer: Any, mmcv_checkpoint: Path, student_config: Dict[str, Any]
) -> None:
    trained = pretrainer.student.state_dict()
    fresh = GeoMIM(config_from_dict(student_config))
    report = load_pretrained(fresh, mmcv_checkpoint)
    assert (report.layout, report.missing, report.unused) == ('geomim', (), ())
    assert_equal(fresh.state_dict(), trained)
    backbone = SwinBackbone(**student_config['encoder'])
    assert load_encoder(backbone, mmcv_checkpoint).missing == ()
    assert_equal(backbone.state_dict(), pretrainer.student.encoder.state_dict())


def test_pretrained_under_mmcv_goes_on_under_mmengine(
    pretrainer: Any, mmcv_checkpoint: Path, other_host: Callable[..., None], tmp_path: Path
) -> None:
    other_host('read', mmcv_checkpoint, tmp_path / 'taken.pth')
    taken = torch.load(str(tmp_path / 'taken.pth'))
    assert_equal(taken['student'], dict(pretrainer.student.state_dict()))
    assert_equal(taken['swin'], dict(pretrainer.student.encoder.state_dict()))
    assert taken['names'] == sorted(pretrainer.state_dict())
    assert taken['unused'] == []


def test_pretrained_under_mmengine_goes_on_under_mmcv(
    pretrainer: Any, other_host: Callable[..., None], student_config: Dict[str, Any], tmp_path: Path
) -> None:
    other_host('write', tmp_path / 'run')
    checkpoint = tmp_path / 'run' / 'iter_1.pth'
    content = read_checkpoint(checkpoint)
    assert 'message_hub' in content  # what mmengine's runner stores beside the weights is there, and is no obstacle
    stored = {name[len('student.') :]: value for name, value in tensors_of(content).items()}
    pretrainer.init_from = str(checkpoint)
    pretrainer.init_weights()
    assert_equal(dict(pretrainer.student.state_dict()), stored)
    encoder = dict(student_config['encoder'], init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)))
    swin = build_backbone(dict(type='GeoMIMSwin', **encoder))
    swin.init_weights()
    assert_equal({f'encoder.{name}': value for name, value in swin.state_dict().items()}, encoder_of(stored))
    sum(map_.square().mean() for map_ in swin.train()(torch.randn(1, 3, 64, 96))).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in swin.parameters())


def encoder_of(state: State) -> State:
    return {name: value for name, value in state.items() if name.startswith('encoder.')}
