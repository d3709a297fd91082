# Map segmentation on the key frame alone and the tiny residual network, the sister of finetune/bevdet_resnet_tiny_synthetic.py.
_base_ = '../finetune/bevdet_resnet_tiny_synthetic.py'
map_grid = dict(x=[-50.0, 50.0, 1.0], y=[-50.0, 50.0, 1.0])
map_classes = ['drivable_area', 'ped_crossing', 'walkway', 'carpark_area', 'divider']
model = dict(
    pts_bbox_head=None,
    map_head=dict(type='BEVMapSegHead', in_channels=64, classes=map_classes, map_grid=map_grid),
    train_cfg=None,
    test_cfg=None,
)
bev_aug = dict(type='BEVDetBEVAug', training=False)
map_labels = dict(type='LoadBEVMapLabels', data_root=_base_.data_root, classes=map_classes, map_grid=map_grid)
pack = dict(type='PackBEVDetInputs', keys=[])
train_pipeline = [_base_.load, _base_.image_aug, bev_aug, map_labels, pack]
test_pipeline = [_base_.load, dict(_base_.image_aug, training=False), bev_aug, map_labels, pack]
train_dataloader = dict(dataset=dict(filter_empty_gt=False, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='BEVMapIoU')
test_evaluator = val_evaluator
