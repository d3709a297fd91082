"""Learning rate and weight decay of every parameter in mmengine's optimizer; the published groups are in tests/adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from torch import nn

from geomim.adapter.layer_decay import LayerDecay
from geomim.bevdet.training import LayerDecayOptimWrapperConstructor
from geomim.mmdet3d import GeoMIMSwin

LR, DECAY = 2e-4, 0.05


def wrapper_of(model: nn.Module, **options: Any) -> Any:
    return build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
            constructor=LayerDecayOptimWrapperConstructor.__name__,
            paramwise_cfg=dict(options),
        ),
    )


def settings(model: nn.Module, **options: Any) -> Dict[str, Tuple[float, float]]:
    """(factor of the learning rate, weight decay) of every parameter in the optimizer."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in wrapper_of(model, **options).optimizer.param_groups:
        for parameter in group['params']:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group['lr'] / LR, group['weight_decay'])
    return found


class Detector(nn.Module):
    """A Swin with an output norm, a neck and a head."""

    def __init__(self) -> None:
        super().__init__()
        sizes = dict(embed_dims=8, depths=(1, 2, 1), num_heads=(1, 1, 1), window_size=(4, 4, 4))
        self.img_backbone = GeoMIMSwin(**sizes, out_indices=(2,), pretrain_img_size=32)
        self.img_neck = nn.Conv2d(32, 4, 1)
        self.pts_bbox_head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


def test_the_optimizer_holds_the_groups() -> None:
    model = Detector()
    expected, found = LayerDecay(0.5).groups(model, LR, DECAY), wrapper_of(model, decay_rate=0.5).optimizer.param_groups
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert (ours['lr'], ours['weight_decay']) == (theirs['lr'], theirs['weight_decay'])
        assert [id(parameter) for parameter in ours['params']] == [id(parameter) for parameter in theirs['params']]


def test_frozen_parameters_stay_out_and_more_layers_may_be_counted() -> None:
    model = Detector()
    model.img_backbone.patch_embed.requires_grad_(False)
    found = settings(model, decay_rate=0.5, num_layers=6)
    assert 'img_backbone.patch_embed.projection.weight' not in found
    assert found['img_backbone.stages.2.blocks.0.attn.w_msa.qkv.weight'] == (0.5**3, DECAY)
    assert found['img_neck.weight'] == (1.0, DECAY)


def test_a_wrapped_model_gives_the_same_groups(tmp_path: Path) -> None:
    model = Detector()
    expected = settings(model, decay_rate=0.7)
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    try:
        wrapped = MMDistributedDataParallel(model, device_ids=None)
        found = settings(wrapped, decay_rate=0.7)
    finally:
        torch.distributed.destroy_process_group()
    assert {name[len('module.') :]: value for name, value in found.items()} == expected


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.img_backbone = nn.Conv2d(3, 4, 1)


@pytest.mark.parametrize(
    'model, options, message',
    [
        (Detector, dict(), 'needs decay_rate'),
        (Detector, dict(decay_rate=0.5, custom_keys={}), r"got \['custom_keys', 'decay_rate'\]"),
        (Detector, dict(decay_rate=1.5), r'lie in \(0, 1\], got 1.5'),
        (Detector, dict(decay_rate=0.5, num_layers=3), 'num_layers 3 is less than the 4 blocks'),
        (Detector, dict(decay_rate=0.5, backbone='body'), 'no Swin, plain vision transformer or ConvNeXt under body'),
        (Plain, dict(decay_rate=0.5), 'its img_backbone is a Conv2d'),
    ],
)
def test_wrong_options_are_named(model: Any, options: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrapper_of(model(), **options)
