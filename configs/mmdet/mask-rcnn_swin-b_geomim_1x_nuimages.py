# mmdet's Mask R-CNN with GeoMIM's Swin-B, on nuImages in COCO's format as mmdet3d's nuimage_converter.py writes it.
_base_ = [
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    '../mmdet3d/_base_/nuscenes_classes.py',
    '../mmdet3d/_base_/swin_b.py',
]
custom_imports = dict(imports=['geomim.mmengine'], allow_failed_imports=False)
data_root = 'data/nuimages/'
class_names = tuple(_base_.class_names)
model = dict(
    backbone=dict(_delete_=True, **_base_.swin_b),
    neck=dict(in_channels=[128, 256, 512, 1024]),
    roi_head=dict(bbox_head=dict(num_classes=len(class_names)), mask_head=dict(num_classes=len(class_names))),
)
train_pipeline = [
    dict(type='LoadImageFromFile', color_type='color_ignore_orientation'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=[(1280, 720), (1920, 1080)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', color_type='color_ignore_orientation'),
    dict(type='Resize', scale=(1600, 900), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    _base_.test_pipeline[-1],
]
dataset = dict(data_root=data_root, data_prefix=dict(img=''), metainfo=dict(classes=class_names))
train_dataloader = dict(dataset=dict(dataset, ann_file='annotations/nuimages_v1.0-train.json', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(dataset, ann_file='annotations/nuimages_v1.0-val.json', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/nuimages_v1.0-val.json')
test_evaluator = val_evaluator
