# BEVDet4D with BEVDepth's depth network, which learns from LiDAR depth. 8 GPUs of 8 samples.
_base_ = './bevdet-r50-4d-cbgs.py'
model = dict(
    type='BEVDepth4D',
    img_neck=dict(out_channels=512),
    img_view_transformer=dict(
        type='LSSViewTransformerBEVDepth',
        grid_config=dict(depth=[1.0, 60.0, 0.5]),
        in_channels=512,
        depthnet_cfg=dict(use_dcn=False, aspp_mid_channels=96),
    ),
    pts_bbox_head=dict(loss_cls=dict(loss_weight=6.0), loss_bbox=dict(loss_weight=1.5)),
)
train_pipeline = [_base_.load, _base_.image_aug, *_base_.depth, *_base_.annotate, _base_.pack]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
