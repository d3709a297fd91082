# Map segmentation on BEVDet's features, the key frame alone. 8 GPUs of 8 samples.
_base_ = ['../finetune/bevdet-r50.py', '../_base_/bevdet/map_segmentation.py']
model = dict(pts_bbox_head=None, map_head=_base_.map_head, train_cfg=None, test_cfg=None)
bev_aug = _base_.annotate[2]
pack = dict(type='PackBEVDetInputs', keys=[])
train_pipeline = [_base_.load, _base_.image_aug, bev_aug, _base_.map_labels, pack]
test_pipeline = [
    _base_.load,
    dict(_base_.image_aug, training=False),
    dict(bev_aug, training=False),
    _base_.map_labels,
    pack,
]
train_dataloader = dict(dataset=dict(filter_empty_gt=False, pipeline=train_pipeline))  # frames without boxes count too
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, **_base_.map_evaluator)
test_evaluator = val_evaluator
