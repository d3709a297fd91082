# mmseg's UPerNet with GeoMIM's Swin-B, on nuScenes-lidarseg seen by the cameras: the labels of the LiDAR points that fall
# into an image, 255 elsewhere, as `python -m geomim infos data/nuscenes --for images` makes them.
_base_ = [
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
    '../mmdet3d/_base_/swin_b.py',
]
custom_imports = dict(imports=['geomim.mmengine'], allow_failed_imports=False)
data_root = 'data/nuscenes/'
crop_size = (512, 1024)
iterations = 80000
class_names = (
    'barrier',
    'bicycle',
    'bus',
    'car',
    'construction_vehicle',
    'motorcycle',
    'pedestrian',
    'traffic_cone',
    'trailer',
    'truck',
    'driveable_surface',
    'other_flat',
    'sidewalk',
    'terrain',
    'manmade',
    'vegetation',
)
palette = [
    [255, 120, 50],
    [255, 192, 203],
    [255, 255, 0],
    [0, 150, 245],
    [0, 255, 255],
    [255, 127, 0],
    [255, 0, 0],
    [255, 240, 150],
    [135, 60, 0],
    [160, 32, 240],
    [255, 0, 255],
    [139, 137, 137],
    [75, 0, 75],
    [150, 240, 80],
    [230, 230, 250],
    [0, 175, 0],
]
labelled = dict(avg_non_ignore=True)  # few pixels have a label: means are taken over those
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(_delete_=True, **dict(_base_.swin_b, drop_path_rate=0.3)),
    decode_head=dict(in_channels=[128, 256, 512, 1024], num_classes=len(class_names), loss_decode=labelled),
    auxiliary_head=dict(in_channels=512, num_classes=len(class_names), loss_decode=labelled),
)
load = [dict(type='LoadImageFromFile', color_type='color_ignore_orientation'), dict(type='LoadAnnotations')]
train_pipeline = [
    *load,
    dict(type='RandomResize', scale=(1600, 900), ratio_range=(0.6, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [*load, dict(type='PackSegInputs')]
tta_pipeline = [load[0], *_base_.tta_pipeline[1:]]
dataset = dict(
    _delete_=True,
    type='BaseSegDataset',
    data_root=data_root,
    data_prefix=dict(img_path='', seg_map_path='semantic_2d'),
    metainfo=dict(classes=class_names, palette=palette),
)
train_dataloader = dict(dataset=dict(dataset, ann_file='nuscenes_2d_train.txt', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(dataset, ann_file='nuscenes_2d_val.txt', pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=iterations, val_interval=iterations // 10)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=iterations, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=iterations // 10))
