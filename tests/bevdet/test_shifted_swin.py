"""The baseline's Swin: mmdet's own where the windows agree, windows of their own a stage, and mmdet's way to ImageNet weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from mmdet.models.backbones.swin import SwinTransformer
from torch import Tensor

from geomim.bevdet.shifted_swin import ShiftedSwin
from geomim.checkpoints.position_bias import resize_position_bias

SIZES: Dict[str, Any] = dict(embed_dims=8, depths=(2, 2, 3), num_heads=(1, 2, 2), strides=(4, 2, 2), out_indices=(1, 2))


def test_it_is_mmdets_swin_where_the_windows_agree() -> None:
    ours, theirs = ShiftedSwin(window_size=(4, 4, 4), **SIZES), SwinTransformer(window_size=4, **SIZES)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 96)
    ours.train(False)
    theirs.train(False)
    with torch.no_grad():
        for found, expected in zip(ours(images), theirs(images)):
            assert torch.equal(found, expected)


def test_every_stage_has_its_window_and_half_of_it_as_shift() -> None:
    swin = ShiftedSwin(window_size=(6, 4, 3), **SIZES)
    found = [[(b.attn.window_size, b.attn.shift_size, b.attn.w_msa.window_size) for b in s.blocks] for s in swin.stages]
    assert found == [
        [(6, 0, (6, 6)), (6, 3, (6, 6))],
        [(4, 0, (4, 4)), (4, 2, (4, 4))],
        [(3, 0, (3, 3)), (3, 1, (3, 3)), (3, 0, (3, 3))],
    ]
    tables = [s.blocks[1].attn.w_msa.relative_position_bias_table.shape for s in swin.stages]
    assert tables == [(121, 1), (49, 2), (25, 2)]
    shapes = [tuple(value.shape) for value in swin(torch.randn(1, 3, 72, 100))]
    assert shapes == [(1, 16, 9, 13), (1, 32, 5, 7)]


def test_a_window_reaches_as_far_as_its_stage_says() -> None:
    """One image cell changed: of a stage's first block, the outputs of that cell's window change and no others."""
    swin = ShiftedSwin(window_size=(6, 4, 3), **SIZES)
    swin.train(False)
    block = swin.stages[0].blocks[0]
    tokens = torch.randn(1, 12 * 12, 8)
    changed = tokens.clone()
    changed[0, 0] = torch.randn(8)
    with torch.no_grad():
        moved = (block(tokens, (12, 12)) - block(changed, (12, 12))).abs().amax(-1).view(12, 12) > 1e-6
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[:6, :6] = True
    assert torch.equal(moved, expected)


def test_weights_of_another_window_are_resized(tmp_path: Path) -> None:
    source = SwinTransformer(window_size=7, **SIZES)
    source.init_weights()
    state = {'backbone.' + name: value for name, value in source.state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'swin.pth')
    started = dict(type='Pretrained', checkpoint=str(tmp_path / 'swin.pth'))
    swin = ShiftedSwin(window_size=(7, 4, 7), **SIZES, init_cfg=started)
    swin.init_weights()
    theirs = source.state_dict()
    for name, value in swin.state_dict().items():
        if '.1.blocks.' in name and name.endswith('bias_table'):
            assert torch.equal(value, resize_position_bias(theirs[name], 4))
        elif '.1.blocks.' in name and name.endswith('index'):
            assert value.shape == (16, 16)
        else:
            assert torch.equal(value, theirs[name]), name


def as_swin_names_it(name: str, value: Tensor) -> Dict[str, Tensor]:
    """Names of Swin's own files; patch merging there has its four corners one after the other."""
    for ours, theirs in (
        ('stages.', 'layers.'),
        ('patch_embed.projection', 'patch_embed.proj'),
        ('attn.w_msa.', 'attn.'),
        ('ffn.layers.0.0.', 'mlp.fc1.'),
        ('ffn.layers.1.', 'mlp.fc2.'),
    ):
        name = name.replace(ours, theirs)
    if 'downsample' in name:
        value = value.unflatten(-1, (-1, 4))[..., [0, 2, 1, 3]].transpose(-1, -2).flatten(-2)
    return {name: value}


def test_swins_own_file(tmp_path: Path) -> None:
    source = ShiftedSwin(window_size=(4, 4, 4), **SIZES)
    source.init_weights()
    own: Dict[str, Tensor] = {'head.weight': torch.zeros(5, 32), 'head.bias': torch.zeros(5)}
    for name, value in source.state_dict().items():
        own.update(as_swin_names_it(name, value + torch.rand_like(value) if value.is_floating_point() else value))
    torch.save({'model': own}, tmp_path / 'swin.pth')
    started = dict(type='Pretrained', checkpoint=str(tmp_path / 'swin.pth'))
    swin = ShiftedSwin(window_size=(4, 4, 4), convert_weights=True, init_cfg=started, **SIZES)
    swin.init_weights()
    for name, value in swin.state_dict().items():
        for renamed, expected in as_swin_names_it(name, value).items():
            assert torch.equal(own[renamed], expected), name
    with pytest.raises(ValueError, match='lacks .* tensors that ShiftedSwin needs: patch_embed'):
        ShiftedSwin(window_size=(4, 4, 4), init_cfg=started, **SIZES).init_weights()


def test_a_window_a_stage() -> None:
    with pytest.raises(ValueError, match=r'each of the 3 stages, got \(4, 4\)'):
        ShiftedSwin(window_size=(4, 4), **SIZES)
