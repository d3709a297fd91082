"""Layer-wise learning rates under mmcv 1.x, by its own builder, wrapper and schedule; the published groups are in tests/adapter."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import pytest
import torch
from mmcv.parallel import MMDataParallel
from mmcv.runner import build_optimizer
from mmcv.runner.hooks import StepLrUpdaterHook
from mmdet3d.models import build_backbone
from torch import nn

import geomim.plugin
from geomim.adapter.layer_decay import LayerDecay

LR, DECAY = 2e-4, 0.05
NAME = geomim.plugin.GeoMIMLayerDecayOptimizerConstructor.__name__


class Detector(nn.Module):
    """A small Swin behind the name that BEVDet gives it, and a head."""

    def __init__(self) -> None:
        super().__init__()
        sizes = dict(embed_dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window_size=(4, 4, 4, 2))
        sizes.update(pretrain_img_size=32)
        self.img_backbone = build_backbone(dict(type='GeoMIMSwin', return_stereo_feat=True, **sizes))
        self.pts_bbox_head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


def optimizer_of(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return build_optimizer(
        model, dict(type='AdamW', lr=LR, weight_decay=DECAY, constructor=NAME, paramwise_cfg=dict(options))
    )


def settings(model: nn.Module, optimizer: torch.optim.Optimizer) -> Dict[str, Tuple[float, float]]:
    """(factor of the learning rate, weight decay) of every parameter in the optimizer."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group['lr'] / LR, group['weight_decay'])
        for group in optimizer.param_groups
        for parameter in group['params']
    }


def test_the_optimizer_holds_the_groups() -> None:
    model = Detector()
    expected, found = LayerDecay(0.85).groups(model, LR, DECAY), optimizer_of(model, decay_rate=0.85).param_groups
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert (ours['lr'], ours['weight_decay']) == (theirs['lr'], theirs['weight_decay'])
        assert [id(parameter) for parameter in ours['params']] == [id(parameter) for parameter in theirs['params']]


def test_a_wrapped_model_gives_the_same_groups_and_frozen_parameters_stay_out() -> None:
    model = Detector()
    expected = settings(model, optimizer_of(model, decay_rate=0.7))
    assert settings(model, optimizer_of(MMDataParallel(model), decay_rate=0.7)) == expected
    model.img_backbone.patch_embed.requires_grad_(False)
    left = settings(model, optimizer_of(model, decay_rate=0.7))
    assert left == {name: value for name, value in expected.items() if '.patch_embed.' not in name}


def test_a_schedule_keeps_the_factors() -> None:
    """mmcv's step schedule multiplies what each group began with; its log shows the first."""

    class Runner:
        epoch, iter, data_loader = 0, 0, range(1)

        def current_lr(self) -> Any:
            return [group['lr'] for group in self.optimizer.param_groups]

    runner = Runner()
    runner.optimizer = optimizer_of(Detector(), decay_rate=0.5)
    before = runner.current_lr()
    hook = StepLrUpdaterHook(step=[1], gamma=0.1)
    hook.before_run(runner)
    runner.epoch = 1
    hook.before_train_epoch(runner)
    assert runner.current_lr() == pytest.approx([0.1 * lr for lr in before])
    assert before[0] == LR
    assert len(set(before)) == 7


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(), f'{NAME}: paramwise_cfg needs decay_rate'),
        (dict(num_layers=24, layer_decay_rate=0.85), r"got \['layer_decay_rate', 'num_layers'\]"),
        (dict(decay_rate=0.0), r'lie in \(0, 1\], got 0.0'),
        (dict(decay_rate=0.5, num_layers=4), 'num_layers 4 is less than the 5 blocks of img_backbone'),
        (dict(decay_rate=0.5, backbone='pts_bbox_head'), 'its pts_bbox_head is a Sequential'),
    ],
)
def test_wrong_options_are_named(options: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimizer_of(Detector(), **options)
