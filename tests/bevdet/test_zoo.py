"""Detectors, teachers and pretraining start from the networks that come with the package by one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine import Config
from mmengine.logging import MMLogger

import geomim.bevdet  # noqa: F401 - registers
from geomim.checkpoints import zoo
from geomim.checkpoints.reading import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'mmdet3d'
TEACHER = 'geomim://centerpoint_pillar_tiny_synthetic'


def student_config() -> Any:
    config = Config.fromfile(CONFIGS / 'pretrain' / 'geomim_resnet_tiny_synthetic.py').model
    config.teacher.checkpoint = None
    return config


@pytest.fixture
def student(tmp_path: Path, load_script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a student with random weights, packed as those that are shipped."""
    torch.save({'state_dict': MODELS.build(student_config()).state_dict()}, tmp_path / 'iter_1.pth')
    (tmp_path / 'net.json').write_text('{"kind": "student", "text": "a net"}')
    load_script('experiments/pack.py').pack(tmp_path / 'iter_1.pth', tmp_path / 'net.json', tmp_path / 'zoo')
    monkeypatch.setattr(zoo, '_FOLDER', tmp_path / 'zoo')
    return 'geomim://net'


@pytest.mark.parametrize('name', ['bevdet_resnet_tiny_synthetic', 'bevdepth4d_resnet_tiny_synthetic'])
def test_a_detector_takes_every_tensor_of_the_encoder(
    name: str, student: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Config.fromfile(CONFIGS / 'finetune' / f'{name}.py').model
    model.img_backbone.init_cfg.checkpoint = student
    detector = MODELS.build(model)
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        detector.init_weights()
    finally:
        logger.removeHandler(caplog.handler)
    told = ' '.join(caplog.messages)
    assert student in told
    assert 'missing keys' not in told
    assert 'unexpected key' not in told
    given, own = read_checkpoint(student)['state_dict'], detector.img_backbone.state_dict()
    assert given.keys() == own.keys()
    assert all(torch.equal(given[key], own[key].to(given[key].dtype)) for key in own)


def test_pretraining_goes_on_from_a_whole_student(student: str) -> None:
    config = student_config()
    config.init_from = f'{student}/student'
    model = MODELS.build(config)
    model.init_weights()
    given, own = read_checkpoint(config.init_from)['state_dict'], model.state_dict()
    assert given.keys() == own.keys(), 'load_from takes it, too'
    assert all(torch.equal(given[key], own[key].to(given[key].dtype)) for key in own)


def test_the_tiny_pretraining_has_a_trained_teacher_without_a_training() -> None:
    config = Config.fromfile(CONFIGS / 'pretrain' / 'geomim_resnet_tiny_synthetic.py').model
    assert config.teacher.checkpoint == TEACHER
    teacher = MODELS.build(config.teacher)
    given = read_checkpoint(TEACHER)['state_dict']
    own = teacher.detector.state_dict()
    assert 'pts_backbone.blocks.0.0.weight' in own
    assert all(torch.equal(value, given[name].to(value.dtype)) for name, value in own.items())


def test_a_card_names_a_configuration_that_is_there() -> None:
    assert all((ROOT / zoo.card(name)['config']).is_file() for name in zoo.names())


def test_packed_weights_are_halved_but_for_statistics(
    tmp_path: Path, load_script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script('experiments/pack.py')
    state = {'bn.running_var': torch.rand(3), 'conv.weight': torch.rand(3), 'bn.num_batches_tracked': torch.tensor(1)}
    torch.save({'state_dict': state, 'optimizer': {'state': torch.rand(9)}}, tmp_path / 'iter_1.pth')
    (tmp_path / 'net.json').write_text('{"kind": "teacher", "text": "a net"}')
    out = tmp_path / 'zoo'
    script.pack(tmp_path / 'iter_1.pth', tmp_path / 'net.json', out)
    monkeypatch.setattr(zoo, '_FOLDER', out)
    found = torch.load(zoo.path_of('net'))['state_dict']
    assert [found[name].dtype for name in state] == [torch.float32, torch.float16, torch.int64]
    assert zoo.card('net')['parameters'] == 7
    (tmp_path / 'net.json').write_text('{"kind": "encoder", "text": "a net"}')
    with pytest.raises(ValueError, match='kind must be student or teacher'):
        script.pack(tmp_path / 'iter_1.pth', tmp_path / 'net.json', out)
    large = {'conv.weight': torch.tensor([1e6])}
    with pytest.raises(ValueError, match='float16'):
        script.halved(large)
