# nuScenes for pretraining: six cameras, ten LiDAR sweeps, no labels; augmentation as published. Folder and info files
# are those of mmdet3d 1.4's converter. A child that changes a step composes the pipeline anew from its parts:
#   train_pipeline = [*_base_.load, _base_.sweeps, dict(_base_.image_aug, resize=(0.6, 0.9)), *_base_.finish_train]
#   train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
_base_ = './nuscenes.py'
dataset_type = 'PlainNuScenesDataset'
cameras = ['CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_FRONT_LEFT', 'CAM_BACK', 'CAM_BACK_LEFT', 'CAM_BACK_RIGHT']
data_prefix = dict(
    pts='samples/LIDAR_TOP',
    sweeps='sweeps/LIDAR_TOP',
    **{name: f'samples/{name}' for name in cameras},
)

load = [
    dict(type='LoadCameraRig', cameras=cameras),
    dict(type='LoadSurroundImages'),
    dict(type='LoadSurroundPoints', coord_type='LIDAR', load_dim=5, use_dim=5),
]
# x, y, z, intensity, seconds since the sweep; of a scene's first frame, which has no sweeps, the points are repeated
sweeps = dict(type='LoadSurroundSweeps', sweeps_num=9, load_dim=5, use_dim=5, pad_empty_sweeps=True, remove_close=True)
image_aug = dict(
    type='SurroundImageAug',
    final_size=(256, 704),
    resize=(0.38, 0.55),
    rotation=(-5.4, 5.4),
    flip=0.5,
    test_resize=0.48,
)
finish_test = [
    dict(type='CheckPointCloud'),
    dict(type='PointsRangeFilter', point_cloud_range=_base_.point_cloud_range),
    dict(type='PackGeoMIMInputs'),
]
finish_train = [dict(type='BEVFlip', flip_x=0.5, flip_y=0.5), *finish_test]

# The published configuration names a step that pastes LiDAR objects of other frames into the cloud, which the images do
# not show, and stops it before the first epoch (`stop_epoch: -1`). So nothing is pasted, nor are points shuffled.
# To paste: make nuscenes_dbinfos_train.pkl (mmdet3d's tools/create_data.py), see that the file has every class, set
# `numpy.long = numpy.int64` (mmdet3d 1.4 uses the name, numpy 1.24 dropped it), put after `sweeps`:
#   dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
#   dict(type='ObjectSample', db_sampler=dict(
#       data_root=data_root, info_path=data_root + 'nuscenes_dbinfos_train.pkl', rate=1.0, classes=_base_.class_names,
#       prepare=dict(filter_by_difficulty=[-1], filter_by_min_points={name: 5 for name in _base_.class_names}),
#       sample_groups=dict(car=2, truck=3, construction_vehicle=7, bus=4, trailer=6, barrier=2, motorcycle=6, bicycle=6,
#                          pedestrian=2, traffic_cone=2),
#       points_loader=dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5))),
train_pipeline = [*load, sweeps, image_aug, *finish_train]
test_pipeline = [*load, dict(sweeps, test_mode=True), dict(image_aug, training=False), *finish_test]

dataset = dict(
    type=dataset_type,
    data_root=_base_.data_root,
    data_prefix=data_prefix,
    metainfo=dict(classes=_base_.class_names, version=_base_.data_version),
    modality=dict(use_lidar=True, use_camera=True),
    use_valid_flag=True,
    box_type_3d='LiDAR',
)
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='GeoMIMCBGSDataset',
        dataset=dict(
            dataset,
            ann_file='nuscenes_infos_train.pkl',
            pipeline=train_pipeline,
            filter_empty_gt=False,  # pretraining needs no boxes; they only balance the classes
            test_mode=False,
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, ann_file='nuscenes_infos_val.pkl', pipeline=test_pipeline, test_mode=True),
)
test_dataloader = val_dataloader
