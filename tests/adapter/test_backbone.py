"""The encoder as an image backbone: outputs, freezing, loading, and arguments in other Swins' words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import pytest
import torch

from geomim import SwinConfig, SwinEncoder
from geomim.adapter.backbone import SwinBackbone, backbone_arguments

SIZES: Dict[str, Any] = dict(
    embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=(4, 4, 3, 2), pretrain_img_size=32
)


@pytest.mark.parametrize('stereo', [False, True])
def test_outputs_are_the_normalised_maps_behind_the_stereo_feature(stereo: bool) -> None:
    backbone = SwinBackbone(**SIZES, return_stereo_feat=stereo).eval()
    images = torch.randn(2, 3, 64, 96)
    outputs = backbone(images)
    plain = SwinEncoder(SwinConfig(**SIZES)).eval()
    plain.load_state_dict(backbone.state_dict())
    maps = plain(images)
    assert isinstance(outputs, list)
    assert [tuple(map_.shape) for map_ in outputs[-2:]] == [(2, 32, 4, 6), (2, 64, 2, 3)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs[-2:], maps))
    assert all(map_.is_contiguous() for map_ in outputs)
    assert len(outputs) == 2 + stereo
    if stereo:
        first = plain.stages[0](plain.embed(images), None, False)
        assert torch.equal(outputs[0], first.permute(0, 3, 1, 2))


@pytest.mark.parametrize('frozen', [-1, 0, 2, 4])
def test_frozen_stages_take_no_step(frozen: int) -> None:
    backbone = SwinBackbone(**SIZES, drop_path_rate=0.5, frozen_stages=frozen).train()
    before = {name: parameter.clone() for name, parameter in backbone.named_parameters()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1.0)
    sum(map_.square().sum() for map_ in backbone(torch.randn(1, 3, 64, 64))).backward()
    optimizer.step()
    still = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert all(torch.equal(before[name], backbone.state_dict()[name]) for name in still)
    expected = set()
    if frozen >= 0:
        places = ('patch_embed.', 'absolute_pos_embed', *(f'stages.{stage}.' for stage in range(frozen)))
        expected = {name for name in before if name.startswith(places)}
    assert still == expected
    assert [stage.training for stage in backbone.stages] == [index >= frozen for index in range(4)]
    assert backbone.patch_embed.training == (frozen < 0)


def test_the_checkpoint_of_init_cfg_is_taken(tmp_path: Path) -> None:
    torch.save(SwinBackbone(**SIZES).state_dict(), tmp_path / 'encoder.pth')
    backbone = SwinBackbone(**SIZES, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'encoder.pth')))
    report = backbone.load_pretrained()
    assert report is not None
    assert report.missing == report.unused == ()
    stored = torch.load(str(tmp_path / 'encoder.pth'))
    assert all(torch.equal(value, stored[name]) for name, value in backbone.state_dict().items())
    assert SwinBackbone(**SIZES).load_pretrained() is None


@pytest.mark.parametrize('init_cfg', [dict(type='Xavier'), dict(type='Pretrained')])
def test_another_init_cfg_is_refused(init_cfg: Dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='checkpoint=FILE'):
        SwinBackbone(**SIZES, init_cfg=init_cfg).load_pretrained()


@pytest.mark.parametrize('frozen', [-2, 5])
def test_a_stage_that_is_not_there_cannot_be_frozen(frozen: int) -> None:
    with pytest.raises(ValueError, match=rf'-1\.\.4, got {frozen}'):
        SwinBackbone(**SIZES, frozen_stages=frozen)


def test_arguments_in_other_words() -> None:
    entries = dict(
        SIZES, with_cp=[2, 0, 0, 0], patch_norm=True, use_abs_pos_embed=True, convert_weights=False, strides=[4, 2, 2, 2],
        qk_scale=None, pretrained='swin.pth', output_missing_index_as_none=False,
    )  # fmt: skip
    expected = dict(SIZES, with_cp=True, init_cfg=dict(type='Pretrained', checkpoint='swin.pth'))
    assert backbone_arguments(entries, 'a Swin') == expected
    assert backbone_arguments(dict(with_cp=0, pretrained=None), 'a Swin') == dict(with_cp=False)


@pytest.mark.parametrize(
    'entries, message',
    [
        (dict(shift=True), "a Swin: unknown entry 'shift'; known are embed_dims"),
        (dict(use_abs_pos_embed=False), 'GeoMIMSwin has use_abs_pos_embed=True, not False'),
        (dict(strides=(2, 2, 2, 2)), r'has strides=\(4, 2, 2, 2\)'),
        (dict(pretrained='a.pth', init_cfg=dict(type='Pretrained', checkpoint='b.pth')), "'a.pth'.*'b.pth'.*give one"),
    ],
)
def test_arguments_that_mean_something_else_are_refused(entries: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone_arguments(entries, 'a Swin')
