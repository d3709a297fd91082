# The tiny BEVDepth4D rebuilt to learn sooner, for comparisons of encoders on a CPU in half an hour. Beyond the published
# architecture: cells hold means instead of sums, the depth network is told where each cell's ray meets the ground, and
# depth learns from LiDAR alone. Besides: feature cells of 8 pixels instead of 16, a shallow BEV encoder that begins on
# the fine cells, and a higher learning rate. What a short run finds is smeared over neighbouring cells of 1.6 m, so that
# objects smaller than a cell need a wider non-maximum suppression than the published one, which is for cells of 0.8 m.
_base_ = './bevdepth4d_tiny_synthetic.py'
model = dict(
    img_neck=dict(extra_upsample=2),
    img_view_transformer=dict(
        downsample=8, average=True, detach_depth=True, ground_rays=True, depthnet_cfg=dict(use_aspp=False)
    ),
    pre_process=None,
    img_bev_encoder_backbone=dict(num_layer=[1, 1], stride=[1, 2], num_channels=[48, 64]),
    img_bev_encoder_neck=dict(in_channels=48 + 64, scale_factor=2, input_feature_index=(0, 1), extra_upsample=None),
    test_cfg=dict(pts=dict(nms_rescale_factor=[[1.0, 0.7, 0.7, 0.4, 0.55, 2.2, 2.0, 2.0, 6.0, 14.0]])),
)
optim_wrapper = dict(optimizer=dict(lr=3e-3), clip_grad=dict(max_norm=35))
