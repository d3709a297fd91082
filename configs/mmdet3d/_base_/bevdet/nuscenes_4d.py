# nuScenes for the BEVDet family, as published: six cameras, the keyframe before, class-balanced sampling. The info files
# are made by `python -m geomim infos data/nuscenes`. A child that changes a step composes the pipelines anew:
#   train_pipeline = [dict(_base_.load, num_frames=3), _base_.image_aug, *_base_.depth, *_base_.annotate, _base_.pack]
data_root = 'data/nuscenes/'
data_version = 'v1.0-trainval'
class_names = [
    'car',
    'truck',
    'construction_vehicle',
    'bus',
    'trailer',
    'barrier',
    'motorcycle',
    'bicycle',
    'pedestrian',
    'traffic_cone',
]
point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
cameras = ['CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT']
data_prefix = dict(
    pts='samples/LIDAR_TOP',
    sweeps='sweeps/LIDAR_TOP',
    **{name: f'samples/{name}' for name in cameras},
)
data_config = dict(
    cams=cameras,
    input_size=(256, 704),
    src_size=(900, 1600),
    resize=(-0.06, 0.11),
    rot=(-5.4, 5.4),
    flip=True,
    crop_h=(0.0, 0.0),
    resize_test=0.0,
)
bda_aug_conf = dict(rot_lim=(-22.5, 22.5), scale_lim=(0.95, 1.05), flip_dx_ratio=0.5, flip_dy_ratio=0.5)
multi_adj_frame_id_cfg = (1, 2, 1)

load = dict(type='LoadSurroundFrames', data_config=data_config, num_frames=2)
image_aug = dict(type='SurroundFramesAug', data_config=data_config)
# Published weights answer in the ego frame at the time of this camera, although their images refer to the first camera's.
# Without them, None is better: one frame for both.
to_key_ego = dict(type='BoxesToKeyEgo', ego_camera='CAM_FRONT')
# points of the key frame, from which the detector makes its depth labels
depth = [dict(type='LoadSurroundPoints', coord_type='LIDAR', load_dim=5, use_dim=5)]
annotate = [
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    to_key_ego,
    dict(type='BEVDetBEVAug', bda_aug_conf=bda_aug_conf),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectNameFilter', classes=class_names),
]
pack = dict(type='PackBEVDetInputs', keys=['gt_bboxes_3d', 'gt_labels_3d'])
finish_test = [
    to_key_ego,
    dict(type='BEVDetBEVAug', bda_aug_conf=bda_aug_conf, training=False),
    dict(type='PackBEVDetInputs', keys=[]),
]
train_pipeline = [load, image_aug, *annotate, pack]
test_pipeline = [load, dict(image_aug, training=False), *finish_test]

dataset = dict(
    type='BEVDetNuScenesDataset',
    data_root=data_root,
    data_prefix=data_prefix,
    metainfo=dict(classes=class_names, version=data_version),
    multi_adj_frame_id_cfg=multi_adj_frame_id_cfg,
    use_valid_flag=True,
    box_type_3d='LiDAR',
)
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='BEVDetCBGSDataset',
        dataset=dict(dataset, ann_file='bevdet_infos_train.pkl', pipeline=train_pipeline, test_mode=False),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, ann_file='bevdet_infos_val.pkl', pipeline=test_pipeline, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='EgoNuScenesMetric', data_root=data_root, ann_file=data_root + 'bevdet_infos_val.pkl', metric='bbox'
)
test_evaluator = val_evaluator
