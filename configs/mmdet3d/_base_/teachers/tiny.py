# A very small pillar encoder for tests and demonstrations on a CPU: maps (B, 32, Y, X) of 90 x 90 cells of 1.2 m, of
# random, fixed features.
teacher = dict(
    type='LidarTeacher',
    detector=dict(
        type='CenterPoint',
        data_preprocessor=dict(
            type='Det3DDataPreprocessor',
            voxel=True,
            voxel_layer=dict(
                max_num_points=20,
                voxel_size=[1.2, 1.2, 8.0],
                point_cloud_range=[-54.0, -54.0, -5.0, 54.0, 54.0, 3.0],
                max_voxels=(8100, 8100),
            ),
        ),
        pts_voxel_encoder=dict(
            type='PillarFeatureNet',
            in_channels=5,
            feat_channels=(32,),
            voxel_size=(1.2, 1.2, 8.0),
            point_cloud_range=(-54.0, -54.0, -5.0, 54.0, 54.0, 3.0),
            norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01),
            legacy=False,
        ),
        pts_middle_encoder=dict(type='PointPillarsScatter', in_channels=32, output_shape=(90, 90)),
    ),
    tap='pts_middle_encoder',
    grid=dict(x_bound=(-54.0, 54.0, 1.2), y_bound=(-54.0, 54.0, 1.2), axis_order='yx'),
    channels=32,
    checkpoint=None,
)
