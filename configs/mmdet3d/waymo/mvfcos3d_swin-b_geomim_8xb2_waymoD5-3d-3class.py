# mmdet3d's MV-FCOS3D++ with GeoMIM's Swin-B in the place of ResNet-101, on Waymo's five cameras. Evaluation needs the
# package waymo-open-dataset and Waymo's cam_gt.bin, as mmdet3d's own configuration does.
_base_ = 'mmdet3d::mvfcos3d/multiview-fcos3d_r101-dcn_8xb2_waymoD5-3d-3class.py'
custom_imports = dict(imports=['geomim.mmdet3d'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='GeoMIMSwin',
        embed_dims=128,
        depths=(2, 2, 18, 2),
        num_heads=(4, 8, 16, 32),
        window_size=(16, 16, 16, 8),
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.2,
        with_cp=True,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/geomim_base.pth'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
