"""Configurations in BEVDet's words in ours. That they build to the published models is in test_manifests.py."""

from __future__ import annotations

import copy
from typing import Any, Dict

import pytest

pytest.importorskip('mmdet3d')

from geomim.proofs.bevdet_configs import translate_model


def bevdet(**changes: Any) -> Dict[str, Any]:
    """A configuration as far as translation looks at it."""
    separate = dict(type='SeparateHead', init_bias=-2.19, in_channels=8, heads=dict(heatmap=(2, 2)), num_cls=2)
    model = dict(
        type='BEVDet',
        img_backbone=dict(type='ResNet', depth=18),
        pts_bbox_head=dict(type='CenterHead', separate_head=separate, loss_cls=dict(type='GaussianFocalLoss')),
        train_cfg=dict(pts=dict(max_objs=3)),
        test_cfg=dict(pts=dict(max_per_img=5)),
    )
    return {**model, **changes}


def test_the_head_takes_the_detectors_settings_and_forgets_those_of_a_built_one() -> None:
    translated = translate_model(bevdet())
    assert translated['pts_bbox_head'] == dict(
        type='BEVDetCenterHead',
        separate_head=dict(type='SeparateHead', init_bias=-2.19),
        loss_cls=dict(type='mmdet.GaussianFocalLoss'),
        train_cfg=dict(max_objs=3),
        test_cfg=dict(max_per_img=5),
    )
    assert not {'train_cfg', 'test_cfg'} & set(translated)


def test_translation_changes_no_argument() -> None:
    config = bevdet(type='BEVStereo4D')
    before = copy.deepcopy(config)
    translate_model(config)
    assert config == before


def test_backbones_in_other_words() -> None:
    resnet_ = translate_model(bevdet(img_backbone=dict(type='ResNet', depth=18, pretrained='torchvision://resnet18')))
    assert resnet_['img_backbone']['type'] == 'mmdet.ResNet'
    assert resnet_['img_backbone']['init_cfg'] == dict(type='Pretrained', checkpoint='torchvision://resnet18')
    stereo = translate_model(
        bevdet(
            type='BEVStereo4D',
            img_backbone=dict(
                type='SwinTransformer', window_size=12, embed_dims=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], out_indices=(2, 3),
                use_abs_pos_embed=False, return_stereo_feat=True, pretrain_style='official', pretrained='swin.pth',
                output_missing_index_as_none=False,
            ),
        )
    )['img_backbone']  # fmt: skip
    assert (stereo['type'], stereo['window_size'], stereo['convert_weights']) == ('StereoShiftedSwin', [12] * 4, True)
    assert stereo['init_cfg'] == dict(type='Pretrained', checkpoint='swin.pth')
    geomim = dict(type='SwinTransformerBEVFT', embed_dims=128, patch_norm=True, convert_weights=False, with_cp=False)
    translated = translate_model(bevdet(img_backbone=geomim))['img_backbone']
    assert translated == dict(type='GeoMIMSwin', embed_dims=128, with_cp=False)


def test_occupancy_in_other_words() -> None:
    given = dict(
        type='BEVStereo4DOCC',
        img_backbone=dict(type='SwinTransformerBEVFT', with_cp=[2, 2, 0, 0]),
        loss_occ=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        use_mask=True,
        class_wise=False,
    )
    assert translate_model(given) == dict(
        type='BEVStereo4DOCC',
        img_backbone=dict(type='GeoMIMSwin', with_cp=True),
        loss_occ=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        use_mask=True,
    )


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(type='BEVFusion'), "'BEVFusion' is not supported"),
        (dict(img_backbone=dict(type='VoVNet')), "'VoVNet' is not supported"),
        (dict(img_backbone=dict(type='SwinTransformerBEVFT', patch_norm=False)), 'has patch_norm=True, not False'),
        (dict(img_backbone=dict(type='SwinTransformerBEVFT', shift=True)), "unknown entry 'shift'"),
        (dict(img_backbone=dict(type='SwinTransformerOri')), 'position embeddings'),
        (dict(img_backbone=dict(type='SwinTransformer', shift=True)), "unknown entry 'shift'"),
        (dict(pts_bbox_head=dict(type='TransFusionHead')), "'TransFusionHead'"),
    ],
)
def test_what_is_not_translated(changes: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        translate_model({**bevdet(), **changes})
