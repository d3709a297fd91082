# mmdet3d's CenterPoint on 0.2 m pillars, tapped at the second stage of its backbone: maps (B, 128, Y, X) of 128 x 128
# cells of 0.8 m. Needs no spconv. A student that fits: bounds (-51.2, 51.2, 0.4), downsample 2, axis order 'yx', 128
# target channels, 16-cell patches.
teacher = dict(
    type='GeoMIMLidarTeacher',
    detector='mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d.py',
    tap='pts_backbone',
    index=1,
    grid=dict(x_bound=(-51.2, 51.2, 0.8), y_bound=(-51.2, 51.2, 0.8), axis_order='yx'),
    channels=128,
    checkpoint=None,
)
