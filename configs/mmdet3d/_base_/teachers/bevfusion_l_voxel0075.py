# BEVFusion's LiDAR-only detector up to its sparse encoder, the teacher of the paper: maps (B, 256, X, Y) of 180 x 180.
# checkpoint: mmdet3d's bevfusion_lidar_voxel0075_second_secfpn_8xb4-cyclic-20e_nus-3d, or MIT's lidar-only-det.pth.
teacher = dict(
    type='GeoMIMLidarTeacher',
    detector=dict(
        type='CenterPoint',
        data_preprocessor=dict(
            type='Det3DDataPreprocessor',
            voxel=True,
            voxel_layer=dict(
                max_num_points=10,
                voxel_size=[0.075, 0.075, 0.2],
                point_cloud_range=[-54.0, -54.0, -5.0, 54.0, 54.0, 3.0],
                max_voxels=(120000, 160000),
            ),
        ),
        pts_voxel_encoder=dict(type='HardSimpleVFE', num_features=5),
        pts_middle_encoder=dict(
            type='BEVFusionLSparseEncoder',
            in_channels=5,
            sparse_shape=(1440, 1440, 41),
            encoder_channels=((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128)),
            encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0, (1, 1, 0)), (0, 0)),
            block_type='basicblock',
        ),
    ),
    tap='pts_middle_encoder',
    grid=dict(x_bound=(-54.0, 54.0, 0.6), y_bound=(-54.0, 54.0, 0.6), axis_order='xy'),
    channels=256,
    checkpoint=None,
)
