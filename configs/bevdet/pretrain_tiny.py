# A GeoMIM of a few million parameters that trains on a CPU, for trying a codebase: no file is needed but the data. The teacher gives each
# pillar of 1.2 m random, fixed features of its points; pretrain with a trained detector.
_base_ = './pretrain_swin-b.py'
geomim_model = dict(
    init_from=None,
    student=dict(
        encoder=dict(
            _delete_=True, embed_dims=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window_size=(8, 8, 8, 4)
        ),
        decoder=dict(dim=64, num_heads=4),
        view_transform=dict(
            image_size=(128, 352),
            x_bound=(-54.0, 54.0, 0.6),
            y_bound=(-54.0, 54.0, 0.6),
            depth_bound=(1.0, 60.0, 1.0),
            channels=32,
        ),
        target=dict(channels=32),
    ),
    teacher=dict(
        detector=dict(
            _delete_=True,
            type='CenterPoint',
            pts_voxel_layer=dict(
                max_num_points=20,
                voxel_size=[1.2, 1.2, 8.0],
                point_cloud_range=[-54.0, -54.0, -5.0, 54.0, 54.0, 3.0],
                max_voxels=(8100, 8100),
            ),
            pts_voxel_encoder=dict(
                type='PillarFeatureNet',
                in_channels=5,
                feat_channels=[32],
                voxel_size=(1.2, 1.2, 8.0),
                point_cloud_range=(-54.0, -54.0, -5.0, 54.0, 54.0, 3.0),
                norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01),
                legacy=False,
            ),
            pts_middle_encoder=dict(type='PointPillarsScatter', in_channels=32, output_shape=(90, 90)),
        ),
        grid=dict(x_bound=(-54.0, 54.0, 1.2), y_bound=(-54.0, 54.0, 1.2)),
        channels=32,
        checkpoint=None,
    ),
)
geomim_pipeline = [
    dict(
        type='PrepareImageInputs',
        is_train=True,
        data_config=dict(
            cams=['CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT'],
            Ncams=6,
            input_size=(128, 352),
            src_size=(900, 1600),
            resize=(-0.03, 0.055),
            rot=(-5.4, 5.4),
            flip=True,
            crop_h=(0.0, 0.0),
            resize_test=0.02,
        ),
    ),
    {{_base_.geomim_annotate}},
    {{_base_.geomim_points}},
    {{_base_.geomim_sweeps}},
    {{_base_.geomim_frame}},
    {{_base_.geomim_range}},
    {{_base_.geomim_format}},
    {{_base_.geomim_collect}},
]
