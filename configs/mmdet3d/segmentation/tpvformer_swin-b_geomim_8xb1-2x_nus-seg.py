# TPVFormer of mmdet3d 1.4's source tree with GeoMIM's Swin-B in the place of ResNet-101: LiDAR segmentation from six
# cameras. GEOMIM_MMDET3D_CHECKOUT names a checkout of mmdet3d 1.4.
# The Swin's maps of strides 8, 16 and 32 are those that the ResNet gives, so that the neck and all behind it stay.
_base_ = [
    '{{$GEOMIM_MMDET3D_CHECKOUT:}}/projects/TPVFormer/configs/tpvformer_8xb1-2x_nus-seg.py',
    '../_base_/swin_b.py',
]
# the second one imports TPVFormer and cures what keeps it from a CPU, and its prediction, which fails everywhere
custom_imports = dict(imports=['geomim.mmdet3d', 'geomim.mmdet3d.tpvformer'], allow_failed_imports=False)
model = dict(
    # as in the pretraining
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(_delete_=True, **dict(_base_.swin_b, out_indices=(1, 2, 3), with_cp=True)),
    neck=dict(in_channels=[256, 512, 1024], init_cfg=None),
)
