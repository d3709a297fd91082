# The same with stereo matching of the frames: BEVStereo4D.
_base_ = './bevdepth4d_tiny_synthetic.py'
model = dict(
    type='BEVStereo4D',
    img_backbone=dict(return_stereo_feat=True),
    img_view_transformer=dict(type='LSSViewTransformerBEVStereo', sid=True, depthnet_cfg=dict(stereo=True, bias=5.0)),
)
load = dict(_base_.load, num_frames=3)
train_pipeline = [load, _base_.image_aug, *_base_.depth, *_base_.annotate, _base_.pack]
test_pipeline = [load, dict(_base_.image_aug, training=False), *_base_.finish_test]
train_dataloader = dict(dataset=dict(stereo=True, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(stereo=True, pipeline=test_pipeline))
test_dataloader = val_dataloader
