# Waymo for pretraining: five cameras, the key frame's points, no labels. Folder and info files are those of mmdet3d 1.4's
# converter, whose points are in the ego frame: x ahead, y left. A child composes a changed pipeline from these parts.
dataset_type = 'WaymoDataset'
data_root = 'data/waymo/kitti_format/'
class_names = ['Pedestrian', 'Cyclist', 'Car']
cameras = ['CAM_FRONT', 'CAM_FRONT_LEFT', 'CAM_FRONT_RIGHT', 'CAM_SIDE_LEFT', 'CAM_SIDE_RIGHT']
point_cloud_range = [-74.88, -74.88, -2.0, 74.88, 74.88, 4.0]
data_prefix = dict(pts='training/velodyne', **{name: f'training/image_{number}' for number, name in enumerate(cameras)})

load = [
    dict(type='LoadCameraRig', cameras=cameras, lidar_is_ego=True),
    dict(type='LoadSurroundImages'),
    dict(type='LoadSurroundPoints', coord_type='LIDAR', load_dim=6, use_dim=5),
]
# 1920 x 1280 and 1920 x 886 pixels: scaled to cover the width, cut at the top
image_aug = dict(
    type='SurroundImageAug',
    final_size=(256, 704),
    resize=(0.34, 0.48),
    rotation=(-5.4, 5.4),
    flip=0.5,
    test_resize=0.37,
)
finish_test = [
    dict(type='CheckPointCloud'),
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='PackGeoMIMInputs'),
]
finish_train = [dict(type='BEVFlip', flip_x=0.5, flip_y=0.5), *finish_test]
train_pipeline = [*load, image_aug, *finish_train]
test_pipeline = [*load, dict(image_aug, training=False), *finish_test]

dataset = dict(
    type=dataset_type,
    data_root=data_root,
    data_prefix=data_prefix,
    metainfo=dict(classes=class_names),
    modality=dict(use_lidar=True, use_camera=True),
    box_type_3d='LiDAR',
    filter_empty_gt=False,
    load_interval=5,
)
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(dataset, ann_file='waymo_infos_train.pkl', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, ann_file='waymo_infos_val.pkl', pipeline=test_pipeline, test_mode=True),
)
test_dataloader = val_dataloader
