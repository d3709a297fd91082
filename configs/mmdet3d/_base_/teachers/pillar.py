# A light pillar encoder on the paper's raster, to try the code without spconv or a checkpoint: maps (B, 256, Y, X) of
# 180 x 180. It gives each 0.6 m pillar random, fixed features of its points. Pretrain with a trained detector.
teacher = dict(
    type='GeoMIMLidarTeacher',
    detector=dict(
        type='CenterPoint',
        data_preprocessor=dict(
            type='Det3DDataPreprocessor',
            voxel=True,
            voxel_layer=dict(
                max_num_points=20,
                voxel_size=[0.6, 0.6, 8.0],
                point_cloud_range=[-54.0, -54.0, -5.0, 54.0, 54.0, 3.0],
                max_voxels=(32400, 32400),
            ),
        ),
        pts_voxel_encoder=dict(
            type='PillarFeatureNet',
            in_channels=5,
            feat_channels=(256,),
            voxel_size=(0.6, 0.6, 8.0),
            point_cloud_range=(-54.0, -54.0, -5.0, 54.0, 54.0, 3.0),
            norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01),
            legacy=False,
        ),
        pts_middle_encoder=dict(type='PointPillarsScatter', in_channels=256, output_shape=(180, 180)),
    ),
    tap='pts_middle_encoder',
    grid=dict(x_bound=(-54.0, 54.0, 0.6), y_bound=(-54.0, 54.0, 0.6), axis_order='yx'),
    channels=256,
    checkpoint=None,
)
