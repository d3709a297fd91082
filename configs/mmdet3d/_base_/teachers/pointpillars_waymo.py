# mmdet3d's PointPillars for Waymo on 0.32 m pillars, tapped at the second stage of its backbone: maps (B, 128, Y, X) of
# 234 x 234 cells of 0.64 m. Needs no spconv.
teacher = dict(
    type='GeoMIMLidarTeacher',
    detector='mmdet3d::pointpillars/pointpillars_hv_secfpn_sbn-all_16xb2-2x_waymoD5-3d-3class.py',
    tap='pts_backbone',
    index=1,
    grid=dict(x_bound=(-74.88, 74.88, 0.64), y_bound=(-74.88, 74.88, 0.64), axis_order='yx'),
    channels=128,
    checkpoint=None,
)
