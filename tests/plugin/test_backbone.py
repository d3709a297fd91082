"""The backbone under mmcv 1.x: registered, started, called in the forks' own ways, and equal to a fork's Swin."""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
import torch
from mmcv.parallel import MMDataParallel
from mmcv.runner import BaseModule
from mmdet3d.models import build_backbone
from torch import Tensor

import geomim.plugin as plugin
from geomim.adapter.backbone import SwinBackbone
from geomim.checkpoints.layouts import export_encoder

SIZES: Dict[str, Any] = dict(
    embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=(4, 4, 3, 2), pretrain_img_size=32
)


def build(**changes: Any) -> plugin.GeoMIMSwin:
    return build_backbone(dict(type='GeoMIMSwin', **{**SIZES, **changes}))


def test_the_registry_builds_what_the_core_has() -> None:
    swin = build(return_stereo_feat=True, frozen_stages=1, with_cp=True, drop_path_rate=0.1)
    assert type(swin).__name__ == 'GeoMIMSwin'
    core = SwinBackbone(**SIZES, return_stereo_feat=True)
    assert {name: value.shape for name, value in swin.state_dict().items()} == {
        name: value.shape for name, value in core.state_dict().items()
    }
    core.load_state_dict(swin.state_dict())
    images = torch.randn(2, 3, 60, 90)
    outputs, expected = swin.eval()(images), core.eval()(images)
    assert isinstance(outputs, list)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs, expected))
    assert len(outputs) == len(expected) == 3


def test_an_official_entry_needs_another_type_only() -> None:
    official = dict(
        type='SwinTransformerBEVFT', with_cp=False, convert_weights=False, depths=[1, 1, 2, 1], drop_path_rate=0.2, embed_dims=8,
        num_heads=[1, 2, 2, 4], out_indices=[2, 3], patch_norm=True, window_size=[4, 4, 3, 2], use_abs_pos_embed=True,
        return_stereo_feat=True, output_missing_index_as_none=False,
    )  # fmt: skip
    assert build_backbone(dict(official, type='GeoMIMSwin')).return_stereo_feat
    with pytest.raises(ValueError, match='GeoMIMSwin has use_abs_pos_embed=True, not False'):
        build_backbone(dict(official, type='GeoMIMSwin', use_abs_pos_embed=False))


def official_stereo_feature(backbone: Any, images: Tensor) -> Tensor:
    """The calls of BEVDet's and FlashOCC's stereo detectors."""
    tokens = backbone.patch_embed(images)
    size = (backbone.patch_embed.DH, backbone.patch_embed.DW)
    if backbone.use_abs_pos_embed:
        tokens = tokens + backbone.absolute_pos_embed
    tokens = backbone.drop_after_pos(tokens)
    return first_output(backbone, tokens, size)


def geomim_stereo_feature(backbone: Any, images: Tensor) -> Tensor:
    """The calls of the GeoMIM fork's stereo detectors."""
    tokens, size = backbone.patch_embed(images)
    if backbone.use_abs_pos_embed:
        position = torch.nn.functional.interpolate(backbone.absolute_pos_embed, size=size, mode='bicubic')
        tokens = tokens + position.flatten(2).transpose(1, 2)
    tokens = backbone.drop_after_pos(tokens)
    return first_output(backbone, tokens, size)


def first_output(backbone: Any, tokens: Any, size: Any) -> Tensor:
    for index, stage in enumerate(backbone.stages):
        tokens, size, output, shape = stage(tokens, size)
        return output.view(-1, *shape, backbone.num_features[index]).permute(0, 3, 1, 2).contiguous()
    raise AssertionError('no stage')


@pytest.mark.parametrize('ask', [official_stereo_feature, geomim_stereo_feature])
@pytest.mark.parametrize('size', [(32, 32), (60, 90)])
def test_forks_reach_the_stereo_feature_in_their_own_way(ask: Any, size: Tuple[int, int]) -> None:
    swin = build(return_stereo_feat=True).eval()
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(ask(swin, images), swin(images)[0])


def test_stages_can_be_walked_to_the_end() -> None:
    swin = build(out_indices=(0, 1, 2, 3)).eval()
    images = torch.randn(1, 3, 60, 90)
    tokens, size = swin.patch_embed(images) + swin.absolute_pos_embed
    for index, (stage, expected) in enumerate(zip(swin.stages, swin(images))):
        tokens, size, output, shape = stage(tokens, size)
        normalised = getattr(swin, f'norm{index}')(output)
        map_ = normalised.view(-1, *shape, swin.num_features[index]).permute(0, 3, 1, 2)
        torch.testing.assert_close(map_, expected)


def test_averages_and_parallel_wrappers_take_it() -> None:
    swin = build(return_stereo_feat=True).eval()
    images = torch.randn(1, 3, 64, 64)
    twin = copy.deepcopy(swin)
    with torch.no_grad():
        twin.absolute_pos_embed.add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(MMDataParallel(swin)(images), swin(images)))
    assert not torch.equal(twin(images)[0], swin(images)[0])
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(swin)
    assert all(torch.equal(a, b) for a, b in zip(converted(images), swin(images)))


@pytest.mark.parametrize('with_cp', [False, True])
def test_gradients_are_those_of_the_core(with_cp: bool) -> None:
    swin = build(with_cp=with_cp).train()
    core = SwinBackbone(**SIZES).train()
    core.load_state_dict(swin.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for model in (swin, core):
        sum(map_.square().sum() for map_ in model(images)).backward()
    for (name, ours), theirs in zip(swin.named_parameters(), core.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_a_fork_that_says_pretrained_starts_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As mmdet and mmdet3d detectors start their parts: ``init_weights`` of the parent, or ``init_cfg`` set afterwards."""
    stored = build().state_dict()
    torch.save(stored, tmp_path / 'encoder.pth')

    class Parent(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.img_backbone = build(pretrained=str(tmp_path / 'encoder.pth'))

    parent = Parent()
    assert not torch.equal(parent.img_backbone.patch_embed.projection.weight, stored['patch_embed.projection.weight'])
    with caplog.at_level(logging.INFO):
        logger = plugin.host.run_logger()
        logger.addHandler(caplog.handler)
        parent.init_weights()
        logger.removeHandler(caplog.handler)
    assert all(torch.equal(value, stored[name]) for name, value in parent.img_backbone.state_dict().items())
    assert f'{len(stored)} tensors taken' in caplog.text
    late = Parent()
    late.img_backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'encoder.pth'))
    late.init_weights()
    assert torch.equal(
        late.img_backbone.stages[3].blocks[0].attn.w_msa.qkv.weight, stored['stages.3.blocks.0.attn.w_msa.qkv.weight']
    )


def test_takes_the_place_of_a_checkouts_swin(tmp_path: Path) -> None:
    """BEVStereo4D of the published Swin-B configuration, images of 128 x 256, started from an exported encoder of other windows."""
    place = os.environ.get('GEOMIM_BEVDET_CHECKOUT')
    if not place:
        pytest.skip('set GEOMIM_BEVDET_CHECKOUT to a BEVDet checkout with configs/bevdet_geomim')
    encoder = SwinBackbone(window_size=(14, 14, 14, 7))
    for name, parameter in encoder.named_parameters():
        if parameter.dim() == 1 or name.endswith('bias_table'):  # these start as zeros, ones, or next to zero
            parameter.data.add_(torch.randn_like(parameter) * (0.05 if parameter.dim() == 1 else 0.5))
    state = {f'encoder.{name}': value for name, value in encoder.state_dict().items()}
    torch.save(export_encoder(state, 'bevdet'), tmp_path / 'encoder.pth')
    scripts = [str(Path(__file__).with_name(name)) for name in ('in_checkout.py', 'swin_in_checkout.py')]
    config = 'configs/bevdet_geomim/bevdet-swinb-4d-stereo-256x704-cbgs-geomim.py'
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', *scripts, config, str(tmp_path / 'encoder.pth'), '128', '256'],
        cwd=place,
        env={**os.environ, 'PYTHONPATH': place, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found['detectors'] == [
        ['BEVStereo4D', 'geomim.plugin.backbone'],
        ['BEVStereo4D', 'mmdet3d.models.backbones.swin_bev'],
    ]
    assert [len(found['backbone'][f'stereo={stereo}']) for stereo in (False, True)] == [2, 3]
    differences = [value for values in found['backbone'].values() for value in values]
    assert max([*differences, found['feats'], found['depth'], found['heads']]) <= 1e-5
    assert found['control'] > 1e-3
