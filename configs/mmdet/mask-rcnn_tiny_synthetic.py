# A Mask R-CNN of 2 million parameters that trains in minutes on two CPU cores, on the labels that
# `python -m geomim infos data/synthetic --for images` derives from the synthetic world, from the encoder that
# mmdet3d/pretrain/geomim_tiny_synthetic.py leaves behind; `--cfg-options model.backbone.init_cfg=None` starts without it.
_base_ = ['./mask-rcnn_swin-b_geomim_1x_nuimages.py', '../mmdet3d/_base_/tiny_run.py']
data_root = 'data/synthetic/'
dim = 32
model = dict(
    backbone=dict(
        **_base_.tiny_swin,
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint='work_dirs/geomim_tiny_synthetic/encoder_mmdet.pth'),
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=dim),
    rpn_head=dict(in_channels=dim, feat_channels=dim, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=dim),
        bbox_head=dict(in_channels=dim, fc_out_channels=128),
        mask_roi_extractor=dict(out_channels=dim),
        mask_head=dict(num_convs=1, in_channels=dim, conv_out_channels=dim),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=200), rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(max_per_img=200), rcnn=dict(score_thr=0.01)),  # a short run is sure of nothing
)
train_pipeline = [
    dict(type='LoadImageFromFile', color_type='color_ignore_orientation'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', color_type='color_ignore_orientation'),
    dict(type='Resize', scale_factor=1.0, keep_ratio=True),
    *_base_.test_pipeline[2:],
]
train_dataloader = dict(
    num_workers=1,
    sampler=dict(type='InfiniteSampler'),
    batch_sampler=None,
    dataset=dict(data_root=data_root, ann_file='nuscenes_2d_train.json', pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=1, dataset=dict(data_root=data_root, ann_file='nuscenes_2d_val.json', pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'nuscenes_2d_val.json')
test_evaluator = val_evaluator
train_cfg = dict(_delete_=True, **_base_.tiny_loop)
optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=10))
param_scheduler = _base_.tiny_schedule
default_hooks = _base_.tiny_hooks
custom_hooks = _base_.tiny_seeds
randomness = dict(seed=0)
log_processor = _base_.tiny_log
env_cfg = _base_.tiny_env
