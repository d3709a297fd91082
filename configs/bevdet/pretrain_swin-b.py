# The paper's pretraining in BEVDet's vocabulary: Swin-B from MixMAE weights, 50 epochs, on 2 samples a GPU. A config takes these parts
# beside one of its own codebase, see docs/bevdet.md; the names are new to it, since mmcv 1.x lets two bases share none. Paths
# are relative to the checkout. The teacher is mmdet3d's CenterPoint behind its sparse encoder: maps (B, 256, Y, X) of 180 x 180.
geomim_model = dict(
    _delete_=True,
    type='GeoMIMPretrainer',
    init_from='checkpoints/mixmae_base_600ep.pth',
    student=dict(encoder=dict(size='base'), view_transform=dict(axis_order='yx')),
    teacher=dict(
        type='GeoMIMLidarTeacher',
        detector='configs/centerpoint/centerpoint_0075voxel_second_secfpn_4x8_cyclic_20e_nus.py',
        tap='pts_middle_encoder',
        grid=dict(x_bound=(-54.0, 54.0, 0.6), y_bound=(-54.0, 54.0, 0.6), axis_order='yx'),
        channels=256,
        checkpoint='checkpoints/centerpoint_0075voxel.pth',
    ),
)

geomim_class_names = [
    'car', 'truck', 'construction_vehicle', 'bus', 'trailer', 'barrier', 'motorcycle', 'bicycle', 'pedestrian', 'traffic_cone',
]  # fmt: skip
# scales 0.38 to 0.55: `resize` is added to the one that fits the width
geomim_data_config = dict(
    cams=['CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT'],
    Ncams=6,
    input_size=(256, 704),
    src_size=(900, 1600),
    resize=(-0.06, 0.11),
    rot=(-5.4, 5.4),
    flip=True,
    crop_h=(0.0, 0.0),
    resize_test=0.04,
)
geomim_bda_aug = dict(rot_lim=(0.0, 0.0), scale_lim=(1.0, 1.0), flip_dx_ratio=0.5, flip_dy_ratio=0.5)
geomim_point_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]

geomim_images = dict(type='PrepareImageInputs', is_train=True, data_config=geomim_data_config)
geomim_annotate = dict(
    type='LoadAnnotationsBEVDepth', bda_aug_conf=geomim_bda_aug, classes=geomim_class_names, is_train=True
)
geomim_points = dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5)
# x, y, z, intensity, seconds since the sweep; where the info file lists no sweeps, the points are repeated
geomim_sweeps = dict(
    type='LoadPointsFromMultiSweeps', sweeps_num=9, use_dim=[0, 1, 2, 3, 4], pad_empty_sweeps=True, remove_close=True
)
# The model projects the points on its device. A pipeline of its own can do it in the workers: this step before the next one, and
# 'gt_depth' among the keys of Collect3D. Of several points in a pixel, this step takes the nearest, the model the last.
geomim_depth = dict(type='PointToMultiViewDepth', downsample=1, grid_config=dict(depth=[1.0, 60.0, 1.0]))
geomim_frame = dict(type='GeoMIMLidarFrame')
geomim_range = dict(type='PointsRangeFilter', point_cloud_range=geomim_point_range)
geomim_format = dict(type='DefaultFormatBundle3D', class_names=geomim_class_names)
geomim_collect = dict(type='Collect3D', keys=['img_inputs', 'points', 'lidar2key'])
geomim_pipeline = [
    geomim_images,
    geomim_annotate,
    geomim_points,
    geomim_sweeps,
    geomim_frame,
    geomim_range,
    geomim_format,
    geomim_collect,
]

geomim_optimizer = dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=0.01)
geomim_optimizer_config = dict(_delete_=True, grad_clip=dict(max_norm=35, norm_type=2))
# as published: down by the cosine once an epoch; `by_epoch=False` takes a step every iteration
geomim_lr_config = dict(
    _delete_=True,
    policy='CosineAnnealing',
    warmup='linear',
    warmup_iters=500,
    warmup_ratio=1.0 / 3,
    min_lr_ratio=1e-3,
)
# the published configuration inherits it
geomim_momentum_config = dict(policy='cyclic', target_ratio=(0.85 / 0.95, 1), cyclic_times=1, step_ratio_up=0.4)
geomim_runner = dict(_delete_=True, type='EpochBasedRunner', max_epochs=50)
geomim_hooks = [
    dict(type='GeoMIMSeedHook'),
    dict(type='GeoMIMTeacherGuardHook'),
    dict(type='GeoMIMEncoderExportHook'),
]
