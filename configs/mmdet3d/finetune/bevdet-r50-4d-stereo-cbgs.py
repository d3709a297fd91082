# BEVStereo4D: depth also from matching the frames; one more past frame, for the oldest to match. 8 GPUs of 8 samples.
_base_ = './bevdet-r50-4d-cbgs.py'
model = dict(
    type='BEVStereo4D',
    img_backbone=dict(out_indices=(0, 2, 3)),
    img_view_transformer=dict(
        type='LSSViewTransformerBEVStereo',
        sid=True,
        depthnet_cfg=dict(use_dcn=False, aspp_mid_channels=96, stereo=True, bias=5.0),
    ),
    pts_bbox_head=dict(loss_cls=dict(loss_weight=6.0), loss_bbox=dict(loss_weight=1.5)),
)
load = dict(_base_.load, num_frames=3)
train_pipeline = [load, _base_.image_aug, *_base_.depth, *_base_.annotate, _base_.pack]
test_pipeline = [load, dict(_base_.image_aug, training=False), *_base_.finish_test]
train_dataloader = dict(dataset=dict(dataset=dict(stereo=True, pipeline=train_pipeline)))
val_dataloader = dict(dataset=dict(stereo=True, pipeline=test_pipeline))
test_dataloader = val_dataloader
