"""Encoders and necks: shapes of every option, and settings that do not fit."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip('mmdet3d')

from mmengine.registry import MODELS

from geomim.bevdet.backbones import CustomResNet
from geomim.bevdet.necks import FPN_LSS, LSSFPN3D, CustomFPN


def test_encoders_and_necks_of_odd_settings() -> None:
    x = torch.randn(1, 8, 16, 16)
    maps = CustomResNet(8, num_layer=[1, 2], num_channels=[8, 16], stride=[1, 2], with_cp=True)(x)
    assert [tuple(value.shape) for value in maps] == [(1, 8, 16, 16), (1, 16, 8, 8)]
    neck = FPN_LSS(24, 8, scale_factor=2, input_feature_index=(0, 1), extra_upsample=None)
    assert neck(maps).shape == (1, 8, 16, 16)
    with pytest.raises(ValueError, match='scale_factor must fit'):
        FPN_LSS(24, 8, scale_factor=4, input_feature_index=(0, 1))(maps)
    with pytest.raises(ValueError, match=r'2 maps for input_feature_index \(0, 2\)'):
        FPN_LSS(24, 8)(maps)
    with pytest.raises(ValueError, match=r'in_channels must be one number, .* got \[8, 16\]'):
        FPN_LSS([8, 16], 8)
    fpn = CustomFPN([8, 16], 4, out_ids=[1])
    assert fpn(maps).shape == (1, 4, 8, 8)
    with pytest.raises(ValueError, match='1 maps, expected 2'):
        fpn(maps[:1])
    for settings in (dict(out_ids=[2]), dict(out_ids=[]), dict(start_level=2)):
        with pytest.raises(ValueError, match='do not fit 2 inputs'):
            CustomFPN([8, 16], 4, **settings)
    for settings in (dict(stride=[1]), dict(num_channels=[8])):
        with pytest.raises(ValueError, match='one entry a stage'):
            CustomResNet(8, num_layer=[1, 2], **{'stride': [1, 2], **settings})
    with pytest.raises(ValueError, match='backbone_output_ids'):
        CustomResNet(8, backbone_output_ids=[3])


def test_volumes_through_encoder_and_neck() -> None:
    backbone = MODELS.build(
        dict(type='CustomResNet3D', numC_input=4, num_layer=[1, 1, 1], num_channels=[4, 8, 16], stride=[1, 2, 2])
    )
    volumes = backbone(torch.randn(1, 4, 4, 8, 8))
    assert LSSFPN3D(28, 6)(volumes).shape == (1, 6, 4, 8, 8)
