# LiDAR detection on nuScenes' tables for teachers that are trained here: ten sweeps, all classes, nuScenes' own metric.
# Counted in iterations, so that a budget of minutes is easily set: --cfg-options iterations=... does not reach derived
# values; tools/demo/demo.py shows which ones to set along.
_base_ = ['./nuscenes.py', './runtime.py']
iterations = 600
lr = 3e-3
data_prefix = dict(pts='samples/LIDAR_TOP', sweeps='sweeps/LIDAR_TOP', img='')

load = [
    dict(type='LoadSurroundPoints', coord_type='LIDAR', load_dim=5, use_dim=5),
    dict(type='LoadSurroundSweeps', sweeps_num=9, load_dim=5, use_dim=5, pad_empty_sweeps=True, remove_close=True),
]
train_pipeline = [
    *load,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(
        type='GlobalRotScaleTrans',
        rot_range=[-0.1, 0.1],
        scale_ratio_range=[0.98, 1.02],
        translation_std=[0, 0, 0],
    ),
    dict(type='RandomFlip3D', sync_2d=False, flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5),
    dict(type='CheckPointCloud'),
    dict(type='PointsRangeFilter', point_cloud_range=_base_.point_cloud_range),
    dict(type='ObjectRangeFilter', point_cloud_range=_base_.point_cloud_range),
    dict(type='ObjectNameFilter', classes=_base_.class_names),
    dict(type='PointShuffle'),  # a full voxel then keeps points of all its surfaces, not of its first columns
    dict(type='Pack3DDetInputs', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d']),
]
test_pipeline = [
    load[0],
    dict(load[1], test_mode=True),
    dict(type='PointsRangeFilter', point_cloud_range=_base_.point_cloud_range),
    dict(type='Pack3DDetInputs', keys=['points']),
]
dataset = dict(
    type='PlainNuScenesDataset',
    data_root=_base_.data_root,
    data_prefix=data_prefix,
    metainfo=dict(classes=_base_.class_names, version=_base_.data_version),
    modality=dict(use_lidar=True, use_camera=False),
    use_valid_flag=True,
    box_type_3d='LiDAR',
)
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(dataset, ann_file='nuscenes_infos_train.pkl', pipeline=train_pipeline, test_mode=False),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, ann_file='nuscenes_infos_val.pkl', pipeline=test_pipeline, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='GeoMIMNuScenesMetric',
    data_root=_base_.data_root,
    ann_file=_base_.data_root + 'nuscenes_infos_val.pkl',
    metric='bbox',
)
test_evaluator = val_evaluator

train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations)
optim_wrapper = dict(
    type='OptimWrapper',
    skip_nonfinite=True,
    optimizer=dict(type='AdamW', lr=lr, weight_decay=0.01),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=iterations // 10),
    dict(type='CosineAnnealingLR', T_max=iterations, eta_min=lr * 1e-3, by_epoch=False, begin=0, end=iterations),
]

custom_imports = dict(imports=['geomim.mmdet3d'], allow_failed_imports=False)
default_hooks = dict(
    logger=dict(interval=10, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=iterations // 4),
)
custom_hooks = [dict(type='EpochSeedHook')]
log_processor = dict(window_size=10, by_epoch=False)
