"""Whole detectors in the published layout and ours: there and back bit for bit, by function and by command."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from mmdet.models.backbones.swin import WindowMSA
from torch import Tensor

from geomim.__main__ import main
from geomim.checkpoints.detector_layouts import (
    convert_detector,
    describe_detector,
    detector_layout,
    to_bevdet,
    to_mmdet3d,
)
from geomim.checkpoints.loading import load_encoder, read_checkpoint, save_atomically
from geomim.checkpoints.position_bias import resize_position_bias, resize_windows, window_of_table
from geomim.method.windows import relative_position_index
from geomim.mmdet3d import GeoMIMSwin

State = Dict[str, Tensor]
GEOMIM_BASE = 'bevdet-swinb-4d-stereo-256x704-cbgs-geomim'
DESCRIPTIONS = {
    'bevdet-r50': 'BEVDet on a ResNet, 1 tasks',
    'bevdet-r50-4d-cbgs': 'BEVDet4D on a ResNet, 1 tasks',
    'bevdet-r50-4d-depth-cbgs': 'BEVDepth4D on a ResNet, 1 tasks',
    'bevdet-r50-4d-stereo-cbgs': 'BEVStereo4D on a ResNet, 1 tasks',
    'bevdet-r50-4dlongterm-depth-cbgs': 'BEVDepth4D on a ResNet, 1 tasks',
    'bevdet-swinb-4d-256x704-cbgs': 'BEVDet4D on a Swin with shifted windows, 1 tasks',
    'bevdet-swinb-4d-256x704-cbgs-geomim': 'BEVDet4D on a Swin of GeoMIM, 1 tasks',
    GEOMIM_BASE: 'BEVStereo4D on a Swin of GeoMIM, 6 tasks',
    'bevdet-swinb-4d-stereo-512x1408-cbgs-geomim': 'BEVStereo4D on a Swin of GeoMIM, 6 tasks',
    'bevdet-occ-r50-4d-stereo-24e': 'BEVStereo4DOCC on a ResNet',
    'bevdet-occ-swinb-4d-stereo-512x1408-24e-geomim': 'BEVStereo4DOCC on a Swin of GeoMIM',
    'bevdet-occ-swinl-4d-stereo-512x1408-24e-geomim': 'BEVStereo4DOCC on a Swin of GeoMIM',
}


@pytest.fixture(scope='module')
def published(manifest: Any) -> Any:
    def make(name: str, narrow: bool = True) -> State:
        """Random weights under the names of a published checkpoint; ``narrow`` cuts every other axis than a table's to 2."""
        state: State = {}
        for key, shape in manifest(name).items():
            if key.endswith('relative_position_index'):
                state[key] = relative_position_index(int(shape[0] ** 0.5))
            elif key.endswith('num_batches_tracked'):
                state[key] = torch.tensor(len(state))
            elif key.endswith('relative_position_bias_table'):
                state[key] = torch.randn(shape)
            else:
                state[key] = torch.randn([min(size, 2) for size in shape] if narrow else shape)
        return state

    return make


def assert_same(one: State, other: State) -> None:
    assert list(one) == list(other)
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), name


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize('name', sorted(DESCRIPTIONS))
def test_published_detectors_come_back_bit_for_bit(published: Any, name: str) -> None:
    state = published(name)
    ours = to_mmdet3d(state)
    assert_same(to_bevdet(ours), state)
    assert_same(to_mmdet3d(to_bevdet(ours)), ours)
    assert describe_detector(state) == describe_detector(ours) == DESCRIPTIONS[name]
    geomim = 'img_backbone.absolute_pos_embed' in state
    assert detector_layout(state) == 'bevdet'
    assert detector_layout(ours) == ('mmdet3d' if geomim else 'bevdet')
    dropped = state.keys() - ours.keys()
    assert len(dropped) == (24 if geomim else 0)
    assert all(key.endswith('relative_position_index') for key in dropped)


def test_our_names_are_those_of_our_backbone(published: Any) -> None:
    ours = to_mmdet3d(published(GEOMIM_BASE, narrow=False))
    with torch.device('meta'):
        backbone = GeoMIMSwin(return_stereo_feat=True)
    prefix = 'img_backbone.'
    shapes = {name[len(prefix) :]: value.shape for name, value in ours.items() if name.startswith(prefix)}
    assert shapes == {name: value.shape for name, value in backbone.state_dict().items()}


def test_indices_are_those_that_mmdet_stores() -> None:
    for window in (2, 7, 8):
        stored = WindowMSA(4, 1, (window, window)).relative_position_index
        assert torch.equal(relative_position_index(window), stored)


def test_the_command_goes_there_and_back(published: Any, tmp_path: Path, capsys: Any) -> None:
    state = published(GEOMIM_BASE)
    source = save_atomically({'state_dict': state, 'meta': {'epoch': 20}}, tmp_path / 'published.pth')
    there, back = tmp_path / 'ours.pth', tmp_path / 'back.pth'
    assert run('convert', source, there, '--from', 'bevdet', '--to', 'mmdet3d') == 0
    out = capsys.readouterr().out
    assert '(bevdet, 904 tensors)' in out
    assert '(mmdet3d, 880 tensors)' in out
    assert 'whole detector: BEVStereo4D on a Swin of GeoMIM, 6 tasks' in out
    assert '24 tensors of the input have no place in mmdet3d or are derived constants' in out
    assert_same(read_checkpoint(there)['state_dict'], to_mmdet3d(state))
    assert run('convert', there, back, '--from', 'mmdet3d', '--to', 'bevdet') == 0
    assert 'derived' not in capsys.readouterr().out
    assert_same(read_checkpoint(back)['state_dict'], state)
    assert run('convert', there, back, '--to', 'bevdet', '--force') == 0
    assert_same(read_checkpoint(back)['state_dict'], state)


def test_the_command_copies_detectors_whose_names_agree(published: Any, tmp_path: Path) -> None:
    state = published('bevdet-r50-4d-depth-cbgs')
    source = save_atomically({'state_dict': state}, tmp_path / 'published.pth')
    for target in ('mmdet3d', 'bevdet'):
        assert run('convert', source, tmp_path / f'{target}.pth', '--to', target) == 0
        assert_same(read_checkpoint(tmp_path / f'{target}.pth')['state_dict'], state)


def test_averaged_checkpoints_of_both_hosts(published: Any, tmp_path: Path, capsys: Any) -> None:
    state = published('bevdet-swinb-4d-256x704-cbgs-geomim')
    theirs = {'epoch': 19, 'state_dict': state, 'updates': 12345}
    source = save_atomically(theirs, tmp_path / 'epoch_20_ema.pth')
    assert run('inspect', source) == 0
    out = capsys.readouterr().out
    assert 'bevdet layout, 546 tensors' in out
    assert 'whole detector: BEVDet4D on a Swin of GeoMIM, 1 tasks, averaged weights (updates beside them)' in out
    assert "attention windows by stage: {'0': 16, '1': 16, '2': 16, '3': 8}" in out
    assert run('convert', source, tmp_path / 'ours.pth', '--to', 'mmdet3d') == 0
    ours = read_checkpoint(tmp_path / 'ours.pth')['state_dict']
    assert_same(ours, to_mmdet3d(state))
    raw = {'module.' + name: value + 1 for name, value in ours.items()}
    source = save_atomically({'state_dict': ours, 'ema_state_dict': raw}, tmp_path / 'epoch_20.pth')
    capsys.readouterr()
    assert run('inspect', source) == 0
    out = capsys.readouterr().out
    assert 'mmdet3d layout, 522 tensors' in out
    assert 'averaged weights (ema_state_dict beside them)' in out
    assert run('convert', source, tmp_path / 'back.pth', '--to', 'bevdet') == 0
    assert_same(read_checkpoint(tmp_path / 'back.pth')['state_dict'], state)


def test_a_detector_of_parallel_training_loses_its_prefix(published: Any, tmp_path: Path) -> None:
    state = published('bevdet-r50')
    wrapped = {'module.' + name: value for name, value in state.items()}
    source = save_atomically({'state_dict': wrapped}, tmp_path / 'wrapped.pth')
    assert run('convert', source, tmp_path / 'ours.pth', '--to', 'mmdet3d') == 0
    assert_same(read_checkpoint(tmp_path / 'ours.pth')['state_dict'], state)


@pytest.mark.parametrize('name', [GEOMIM_BASE, 'bevdet-swinb-4d-256x704-cbgs'])
def test_windows_can_be_resized_on_the_way(published: Any, tmp_path: Path, name: str) -> None:
    state = published(name)
    source = save_atomically({'state_dict': state}, tmp_path / 'published.pth')
    assert run('convert', source, tmp_path / 'ours.pth', '--to', 'mmdet3d', '--window', 16, 16, 16, 16) == 0
    ours = read_checkpoint(tmp_path / 'ours.pth')['state_dict']
    changed = []
    tables = {key: value for key, value in ours.items() if key.endswith('relative_position_bias_table')}
    for key, table in tables.items():
        assert window_of_table(table.shape[0]) == 16
        if key.startswith('img_backbone.stages.3.'):
            assert torch.equal(table, resize_position_bias(state[key], 16))
            changed.append(key)
        else:
            assert torch.equal(table, state[key])
    assert len(changed) == 2
    back = to_bevdet(ours)
    assert back['img_backbone.stages.3.blocks.1.attn.w_msa.relative_position_index'].shape == (256, 256)
    assert list(back) == list(state)


def test_the_encoder_of_a_detector_of_ours_can_be_taken(published: Any, tmp_path: Path) -> None:
    state = published(GEOMIM_BASE, narrow=False)
    path = save_atomically({'state_dict': to_mmdet3d(state)}, tmp_path / 'ours.pth')
    backbone = GeoMIMSwin()
    report = load_encoder(backbone, path)
    assert report.missing == ()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state['img_backbone.' + name]), name
    assert run('convert', path, tmp_path / 'encoder.pth', '--to', 'mmdet') == 0
    encoder = read_checkpoint(tmp_path / 'encoder.pth')['state_dict']
    assert all(name.startswith('backbone.') for name in encoder)


def test_what_is_no_detector_is_refused(published: Any, tmp_path: Path, capsys: Any) -> None:
    state = {name: value for name, value in published(GEOMIM_BASE).items() if name.startswith('img_backbone.')}
    source = save_atomically({'state_dict': state}, tmp_path / 'encoder.pth')
    assert run('convert', source, tmp_path / 'out.pth', '--to', 'mmdet3d') == 2
    assert 'holds no whole detector, which mmdet3d is for' in capsys.readouterr().err
    assert not (tmp_path / 'out.pth').exists()
    with pytest.raises(ValueError, match='no whole detector of the BEVDet family'):
        convert_detector(state, 'bevdet')
    with pytest.raises(ValueError, match="bevdet or mmdet3d, not 'mmdet'"):
        convert_detector(state, 'mmdet')
    with pytest.raises(ValueError, match='2 windows are given, but img_backbone.stages.2.'):
        resize_windows(state, [16, 16], 'img_backbone.')


def test_values_that_are_not_finite_are_refused(published: Any, tmp_path: Path, capsys: Any) -> None:
    state = published('bevdet-r50')
    state['img_neck.fpn_convs.0.conv.bias'].fill_(float('nan'))
    source = save_atomically({'state_dict': state}, tmp_path / 'broken.pth')
    assert run('convert', source, tmp_path / 'out.pth', '--to', 'mmdet3d') == 2
    assert 'not finite: img_neck.fpn_convs.0.conv.bias' in capsys.readouterr().err
