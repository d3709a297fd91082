# mmdet3d's MV-FCOS3D++ with GeoMIM's Swin-B in the place of ResNet-101, on Waymo's five cameras. Evaluation needs the
# package waymo-open-dataset and Waymo's cam_gt.bin, as mmdet3d's own configuration does.
_base_ = ['mmdet3d::mvfcos3d/multiview-fcos3d_r101-dcn_8xb2_waymoD5-3d-3class.py', '../_base_/swin_b.py']
custom_imports = dict(imports=['geomim.mmdet3d'], allow_failed_imports=False)
model = dict(
    backbone=dict(_delete_=True, **_base_.swin_b, with_cp=True),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
