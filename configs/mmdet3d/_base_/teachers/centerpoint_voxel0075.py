# mmdet3d's CenterPoint, tapped behind its sparse encoder: maps (B, 256, Y, X) of 180 x 180.
# checkpoint: any of mmdet3d's centerpoint_voxel0075_second_secfpn_*: their encoders are alike, heads are not used.
teacher = dict(
    type='GeoMIMLidarTeacher',
    detector='mmdet3d::centerpoint/centerpoint_voxel0075_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d.py',
    tap='pts_middle_encoder',
    grid=dict(x_bound=(-54.0, 54.0, 0.6), y_bound=(-54.0, 54.0, 0.6), axis_order='yx'),
    channels=256,
    checkpoint=None,
)
