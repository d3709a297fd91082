"""Checkpoints of LiDAR detectors: every layout that users have, a precise account, and nothing executed."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any, Dict

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv.pytorch')

from mmengine.logging import MessageHub

from geomim.mmdet3d.teacher import LidarTeacher
from geomim.teachers.probe import object_points
from geomim.teachers.sparse_kernels import sparse_convolutions, turned

from ..helpers import Attack
from .teacher_zoo import teacher_config

State = Dict[str, Tensor]
POINTS = object_points(2.0, -1.0, -1.0, 5, size=0.6)
MIDDLE = 'pts_middle_encoder.'


@pytest.fixture(scope='module')
def trained():
    """A teacher whose weights and statistics are those of no fresh one."""
    teacher = LidarTeacher(**teacher_config('bevfusion_l', seed=7))
    generator = torch.Generator().manual_seed(0)
    for name, value in teacher.detector.state_dict().items():
        if name.endswith(('running_var', 'running_mean')):
            value.uniform_(0.2, 1.0, generator=generator)
    return teacher


def weights(trained: LidarTeacher, order: str = 'spconv2') -> State:
    """The trained weights as a plain dict, with parts that a teacher does not need."""
    kernels = {f'{name}.weight' for name in sparse_convolutions(trained.detector)}
    state = {
        name: turned(value, 'spconv1').contiguous() if name in kernels and order == 'spconv1' else value.clone()
        for name, value in trained.detector.state_dict().items()
    }
    state['pts_backbone.blocks.0.0.weight'] = torch.zeros(4, 32, 3, 3)
    state['bbox_head.heatmap.weight'] = torch.zeros(3)
    return state


def as_mit(state: State) -> State:
    renamed = {name.replace(MIDDLE, 'encoders.lidar.backbone.'): value for name, value in state.items()}
    return {name.replace('pts_backbone.', 'decoder.backbone.'): value for name, value in renamed.items()}


def load(path: Any, kind: str = 'bevfusion_l', **changes: Any) -> LidarTeacher:
    return LidarTeacher(**teacher_config(kind, checkpoint=str(path), **changes))


def save(tmp_path: Any, state: Any, **beside: Any) -> Any:
    path = tmp_path / 'teacher.pth'
    torch.save({'state_dict': state, **beside}, path)
    return path


@pytest.mark.parametrize('layout', ['mmdet3d', 'mit'])
@pytest.mark.parametrize('order', ['spconv1', 'spconv2'])
@pytest.mark.parametrize('named', [True, False], ids=['layout_given', 'layout_found'])
def test_every_layout_and_kernel_order_gives_the_same_teacher(tmp_path, trained, layout, order, named):
    state = weights(trained, order)
    path = save(tmp_path, as_mit(state) if layout == 'mit' else state, meta={'epoch': 20})
    expected = trained([POINTS])
    assert not torch.equal(LidarTeacher(**teacher_config('bevfusion_l'))([POINTS]), expected)
    teacher = load(path, checkpoint_layout=layout if named else 'auto')
    assert torch.equal(teacher([POINTS]), expected)
    report = teacher.load_report
    assert (report.layout, report.kernel_order) == (layout, order)
    assert set(report.taken) == set(trained.detector.state_dict())
    assert len(report.unused) == 2
    assert f'kernels in the order of {order}): {len(report.taken)} tensors taken' in report.describe()
    assert 'without a place in the model: 2 (' in report.describe()


@pytest.mark.parametrize('kind', ['centerpoint', 'second', 'pillar'])
def test_the_other_kinds_load_their_own_names(tmp_path, kind):
    source = LidarTeacher(**teacher_config(kind, seed=3))
    path = save(tmp_path, source.detector.state_dict())
    teacher = load(path, kind)
    assert torch.equal(teacher([POINTS]), source([POINTS]))
    assert not torch.equal(LidarTeacher(**teacher_config(kind))([POINTS]), source([POINTS]))


def test_a_file_with_metadata_and_one_without_are_read_alike(tmp_path, trained):
    with_metadata = trained.detector.state_dict()
    assert isinstance(with_metadata, OrderedDict)
    assert hasattr(with_metadata, '_metadata')
    first = load(save(tmp_path, with_metadata))([POINTS])
    assert torch.equal(load(save(tmp_path, dict(with_metadata)))([POINTS]), first)
    assert torch.equal(first, trained([POINTS]))


def test_a_runs_own_checkpoint_with_histories_and_optimizer_is_read(tmp_path, trained):
    hub = MessageHub('teacher_checkpoints')
    hub.update_scalar('train/loss', np.float32(1.5))
    hub.update_info('lr', np.float64(0.1))
    beside = {
        'meta': {'seed': np.int64(3), 'epoch': 2},
        'message_hub': hub.state_dict(),
        'optimizer': {'state': {}, 'param_groups': [{'lr': 0.1, 'params': [0]}]},
    }
    path = save(tmp_path, OrderedDict(weights(trained)), **beside)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # so this file is indeed of the kind that plain loading refuses
    assert torch.equal(load(path)([POINTS]), trained([POINTS]))


def test_code_in_a_file_is_refused_and_not_run(tmp_path, trained):
    """More ways to hide code are in tests/checkpoints; here the message tells a teacher's owner what to do."""
    marker = tmp_path / 'marker'
    path = save(tmp_path, weights(trained), meta=Attack(open, str(marker), 'w'))
    with pytest.raises(ValueError, match=r'teacher\.pth .*refused for safety.*publish_model\.py'):
        load(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the attack is a real one
    assert marker.exists()


def truncated(path: Any) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda path: path.unlink(), 'no such file'),
        (lambda path: path.write_bytes(b''), 'empty'),
        (lambda path: path.write_text('<html>404</html>'), 'cannot be read'),
        (truncated, 'cannot be read'),
        (lambda path: torch.save([1, 2], path), 'holds a list'),
        (lambda path: torch.save({'meta': {}}, path), 'holds no tensors'),
    ],
    ids=['missing', 'empty', 'page', 'truncated', 'list', 'no_tensors'],
)
def test_unusable_files_are_named(tmp_path, trained, damage, message):
    path = save(tmp_path, weights(trained))
    damage(path)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def without_a_layer(state: State) -> None:
    for name in [name for name in state if 'encoder_layer2.1' in name]:
        del state[name]


@pytest.mark.parametrize(
    'change, message',
    [
        (without_a_layer, r'lacks 10 of the \d+ tensors .*encoder_layer2\.1\.conv1\.weight'),
        (lambda state: state.update({MIDDLE + 'extra.bias': torch.zeros(1)}), r'no place for 1 tensors .*extra\.bias'),
        (
            lambda state: state.update({MIDDLE + 'conv_out.1.bias': torch.zeros(99)}),
            r'conv_out\.1\.bias \(99,\) instead of \(16,\)',
        ),
        (
            lambda state: state.update({MIDDLE + 'conv_input.0.weight': torch.zeros(8, 3, 3, 3, 4)}),
            r'conv_input\.0\.weight \(8, 3, 3, 3, 4\) instead of \(8, 3, 3, 3, 5\)',
        ),
    ],
    ids=['missing_layer', 'further_layer', 'other_width', 'other_features'],
)  # fmt: skip
def test_another_architecture_is_named(tmp_path, trained, change, message):
    state = weights(trained)
    change(state)
    with pytest.raises(ValueError, match=message):
        load(save(tmp_path, state))


def test_a_detector_of_another_kind_is_named(tmp_path, trained):
    with pytest.raises(ValueError, match=r'lacks \d+ of the \d+ .*its own names start with bbox_head\.heatmap\.weight'):
        load(save(tmp_path, weights(trained)), 'second')
    with pytest.raises(ValueError, match=r'\(mmdet3d names\) lacks'):
        load(save(tmp_path, as_mit(weights(trained))), checkpoint_layout='mmdet3d')


def test_counters_of_batch_normalisation_may_be_absent(tmp_path, trained):
    state = {name: value for name, value in weights(trained).items() if not name.endswith('num_batches_tracked')}
    assert torch.equal(load(save(tmp_path, state))([POINTS]), trained([POINTS]))
