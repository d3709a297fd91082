# CenterPoint on 0.6 m pillars, small enough to be trained in minutes on two CPU cores on the synthetic world.
_base_ = ['../_base_/lidar_detection.py']
data_root = 'data/synthetic/'
data_version = 'v1.0-mini'
voxel_size = [0.6, 0.6, 8.0]
model = dict(
    type='CenterPoint',
    data_preprocessor=dict(
        type='Det3DDataPreprocessor',
        voxel=True,
        voxel_layer=dict(
            max_num_points=10,
            voxel_size=voxel_size,
            point_cloud_range=_base_.point_cloud_range,
            max_voxels=(32400, 32400),
        ),
    ),
    pts_voxel_encoder=dict(
        type='PillarFeatureNet',
        in_channels=5,
        feat_channels=(32,),
        voxel_size=tuple(voxel_size),
        point_cloud_range=tuple(_base_.point_cloud_range),
        norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01),
        legacy=False,
    ),
    pts_middle_encoder=dict(type='PointPillarsScatter', in_channels=32, output_shape=(180, 180)),
    pts_backbone=dict(
        type='SECOND',
        in_channels=32,
        out_channels=[64, 96],
        layer_nums=[2, 3],
        layer_strides=[2, 2],
        norm_cfg=dict(type='BN', eps=1e-3, momentum=0.01),
        conv_cfg=dict(type='Conv2d', bias=False),
    ),
    pts_neck=dict(
        type='SECONDFPN',
        in_channels=[64, 96],
        out_channels=[32, 32],
        upsample_strides=[1, 2],
        norm_cfg=dict(type='BN', eps=1e-3, momentum=0.01),
        upsample_cfg=dict(type='deconv', bias=False),
        use_conv_for_no_stride=True,
    ),
    pts_bbox_head=dict(
        type='CenterHead',
        in_channels=64,
        tasks=[dict(num_class=10, class_names=_base_.class_names)],
        common_heads=dict(reg=(2, 1), height=(1, 1), dim=(3, 1), rot=(2, 1), vel=(2, 1)),
        share_conv_channel=48,
        bbox_coder=dict(
            type='CenterPointBBoxCoder',
            pc_range=_base_.point_cloud_range[:2],
            post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            max_num=300,
            score_threshold=0.05,
            out_size_factor=2,
            voxel_size=voxel_size[:2],
            code_size=9,
        ),
        separate_head=dict(type='SeparateHead', head_conv=48, init_bias=-4.6, final_kernel=3),
        loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'),
        loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=1.0),
        norm_bbox=True,
    ),
    train_cfg=dict(
        pts=dict(
            point_cloud_range=_base_.point_cloud_range,
            grid_size=[180, 180, 1],
            voxel_size=voxel_size,
            out_size_factor=2,
            dense_reg=1,
            gaussian_overlap=0.1,
            max_objs=300,
            min_radius=1,
            code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
        )
    ),
    test_cfg=dict(
        pts=dict(
            post_center_limit_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            pc_range=_base_.point_cloud_range[:2],
            max_per_img=300,
            max_pool_nms=False,
            min_radius=[1.0],
            score_threshold=0.05,
            out_size_factor=2,
            voxel_size=voxel_size[:2],
            nms_type='circle',
            pre_max_size=1000,
            post_max_size=200,
            nms_thr=0.2,
        )
    ),
)
dataset = dict(data_root=data_root, metainfo=dict(classes=_base_.class_names, version=data_version))
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file=data_root + 'nuscenes_infos_val.pkl')
test_evaluator = val_evaluator
