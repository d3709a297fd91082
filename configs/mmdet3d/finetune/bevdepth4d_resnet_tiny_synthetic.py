# A BEVDepth4D of 4 million parameters on the residual network that pretrain/geomim_resnet_tiny_synthetic.py leaves behind, for
# runs of minutes on a CPU core; `--cfg-options model.img_backbone.init_cfg=None` starts without it. Against
# bevdepth4d_tiny_synthetic: feature cells of 8 pixels instead of 16, and a BEV encoder that is shallow and begins on the fine
# cells.
_base_ = './bevdepth4d_tiny_synthetic.py'
model = dict(
    img_backbone=dict(
        _delete_=True,
        type='mmdet.ResNet',
        depth=18,
        base_channels=32,
        stem_channels=32,
        out_indices=(2, 3),
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/geomim_resnet_tiny_synthetic/encoder_resnet.pth'),
    ),
    img_neck=dict(extra_upsample=2),
    img_view_transformer=dict(downsample=8, depthnet_cfg=dict(use_aspp=False)),
    pre_process=dict(num_layer=[1]),
    img_bev_encoder_backbone=dict(num_layer=[1, 1], stride=[1, 2], num_channels=[48, 64]),
    img_bev_encoder_neck=dict(in_channels=48 + 64, scale_factor=2, input_feature_index=(0, 1), extra_upsample=None),
)
# no rates by layer, as for the published detectors on a ResNet
optim_wrapper = dict(
    optimizer=dict(lr=1.5e-3),
    clip_grad=dict(max_norm=35),
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=None,
)
