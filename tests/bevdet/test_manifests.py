"""Full-size official configurations: every parameter has the name and the shape that published checkpoints have."""

from __future__ import annotations

import contextlib
from typing import Any, ContextManager, Dict, List

import pytest

pytest.importorskip('mmdet3d')

import torch
from mmdet3d.registry import MODELS

import geomim.bevdet  # noqa: F401 - registers every part
from geomim.proofs.bevdet_configs import translate_model

ONE_TASK = [10]
SIX_TASKS = [1, 2, 2, 1, 2, 2]
GEOMIM = 'SwinTransformerBEVFT'


def image_parts(backbone: str, channels: int, stereo: bool) -> Dict[str, Any]:
    if backbone == 'ResNet':
        levels = (0, 2, 3) if stereo else (2, 3)
        return dict(
            img_backbone=dict(
                type='ResNet', depth=50, num_stages=4, out_indices=levels, frozen_stages=-1, norm_cfg=dict(type='BN'),
                norm_eval=False, with_cp=True, style='pytorch', pretrained='torchvision://resnet50',
            ),
            img_neck=dict(
                type='CustomFPN', in_channels=[1024, 2048], out_channels=channels, num_outs=1, start_level=0, out_ids=[0]
            ),
        )  # fmt: skip
    swin: Dict[str, Any] = dict(
        type=backbone, embed_dims=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], window_size=[16, 16, 16, 8],
        out_indices=[2, 3], patch_norm=True, use_abs_pos_embed=backbone == GEOMIM, output_missing_index_as_none=False,
        drop_path_rate=0.1,
    )  # fmt: skip
    if stereo:
        swin['return_stereo_feat'] = True
    neck = dict(
        type='FPN_LSS', in_channels=512 + 1024, out_channels=channels, extra_upsample=None, input_feature_index=(0, 1),
        scale_factor=2,
    )  # fmt: skip
    return dict(img_backbone=swin, img_neck=neck)


def head(tasks: List[int]) -> Dict[str, Any]:
    names = iter(range(10))
    return dict(
        type='CenterHead',
        in_channels=256,
        tasks=[dict(num_class=count, class_names=[f'class {next(names)}' for _ in range(count)]) for count in tasks],
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        share_conv_channel=64,
        bbox_coder=dict(
            type='CenterPointBBoxCoder', pc_range=[-51.2, -51.2], max_num=500, score_threshold=0.1, out_size_factor=8,
            voxel_size=[0.1, 0.1], code_size=9, post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
        ),
        separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3),
        loss_cls=dict(type='GaussianFocalLoss', reduction='mean'),
        loss_bbox=dict(type='L1Loss', reduction='mean', loss_weight=0.25),
        norm_bbox=True,
    )  # fmt: skip


def official(
    kind: str,
    backbone: str = 'ResNet',
    channels: int = 256,
    lifted: int = 80,
    past: int = 1,
    depth_step: float = 1.0,
    tasks: List[int] = ONE_TASK,
    scale: int = 1,
) -> Dict[str, Any]:
    """One of BEVDet's detectors from the few numbers in which its files differ."""
    stereo, depth = kind == 'BEVStereo4D', kind in ('BEVDepth4D', 'BEVStereo4D')
    view: Dict[str, Any] = dict(
        type={'BEVDepth4D': 'LSSViewTransformerBEVDepth', 'BEVStereo4D': 'LSSViewTransformerBEVStereo'}.get(
            kind, 'LSSViewTransformer'
        ),
        grid_config=dict(
            x=[-51.2, 51.2, 0.8 / scale], y=[-51.2, 51.2, 0.8 / scale], z=[-5, 3, 8], depth=[1.0, 60.0, depth_step]
        ),
        input_size=(256 * scale, 704 * scale),
        in_channels=channels,
        out_channels=lifted,
        downsample=16,
    )
    if depth:
        view['depthnet_cfg'] = dict(
            use_dcn=False, aspp_mid_channels=96, **(dict(stereo=True, bias=5.0) if stereo else {})
        )
        view['sid'] = stereo
    model = dict(
        type=kind,
        img_view_transformer=view,
        img_bev_encoder_backbone=dict(
            type='CustomResNet', numC_input=lifted * (past + 1), num_channels=[lifted * 2, lifted * 4, lifted * 8]
        ),
        img_bev_encoder_neck=dict(type='FPN_LSS', in_channels=lifted * 10, out_channels=256),
        pts_bbox_head=head(tasks),
        **image_parts(backbone, channels, stereo),
    )
    if kind != 'BEVDet':
        model.update(
            num_adj=past,
            align_after_view_transfromation=False,
            pre_process=dict(
                type='CustomResNet',
                numC_input=lifted,
                num_layer=[2],
                num_channels=[lifted],
                stride=[1],
                backbone_output_ids=[0],
            ),
        )
    return model


CONFIGS: Dict[str, Dict[str, Any]] = {
    'bevdet-r50': dict(kind='BEVDet', lifted=64, past=0),
    'bevdet-r50-4d-cbgs': dict(kind='BEVDet4D'),
    'bevdet-r50-4d-depth-cbgs': dict(kind='BEVDepth4D', channels=512, depth_step=0.5),
    'bevdet-r50-4d-stereo-cbgs': dict(kind='BEVStereo4D'),
    'bevdet-r50-4dlongterm-depth-cbgs': dict(kind='BEVDepth4D', channels=512, depth_step=0.5, past=8),
    'bevdet-swinb-4d-256x704-cbgs': dict(kind='BEVDet4D', backbone='SwinTransformerOri'),
    'bevdet-swinb-4d-256x704-cbgs-geomim': dict(kind='BEVDet4D', backbone=GEOMIM),
    'bevdet-swinb-4d-stereo-256x704-cbgs-geomim': dict(
        kind='BEVStereo4D', backbone=GEOMIM, channels=512, tasks=SIX_TASKS
    ),
    'bevdet-swinb-4d-stereo-512x1408-cbgs-geomim': dict(
        kind='BEVStereo4D', backbone=GEOMIM, channels=512, tasks=SIX_TASKS, depth_step=0.5, scale=2
    ),
}


@pytest.mark.parametrize('name', list(CONFIGS))
def test_names_and_shapes_are_those_of_the_published_checkpoints(name: str, manifest: Any) -> None:
    published = manifest(name)
    # mmdet's shifted Swin reads values of its constants while it is built
    shifted = CONFIGS[name].get('backbone') == 'SwinTransformerOri'
    place: ContextManager = contextlib.nullcontext() if shifted else torch.device('meta')
    with place:
        model = MODELS.build(translate_model(official(**CONFIGS[name])))
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if CONFIGS[name].get('backbone') == GEOMIM:  # which derives these constants
        published = {key: shape for key, shape in published.items() if not key.endswith('relative_position_index')}
    assert sorted(set(ours) ^ set(published)) == []
    assert {key: shape for key, shape in ours.items() if shape != published[key]} == {}
