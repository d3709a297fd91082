# BEVDet, the key frame alone, no class-balanced sampling: published with NDS 35.00. 8 GPUs of 8 samples.
_base_ = './bevdet-r50-4d-cbgs.py'
epochs = 24
model = dict(
    _delete_=True,
    type='BEVDet',
    data_preprocessor=_base_.model.data_preprocessor,
    img_backbone=_base_.model.img_backbone,
    img_neck=_base_.model.img_neck,
    img_view_transformer=dict(_base_.model.img_view_transformer, out_channels=64),
    img_bev_encoder_backbone=dict(type='CustomResNet', numC_input=64, num_channels=[128, 256, 512]),
    img_bev_encoder_neck=dict(type='FPN_LSS', in_channels=640, out_channels=256),
    pts_bbox_head=_base_.model.pts_bbox_head,
    train_cfg=dict(pts=dict(_base_.model.train_cfg.pts, code_weights=[1.0] * 8 + [0.2] * 2)),
    test_cfg=_base_.model.test_cfg,
)
load = dict(_base_.load, num_frames=1)
train_pipeline = [load, _base_.image_aug, *_base_.annotate, _base_.pack]
test_pipeline = [load, dict(_base_.image_aug, training=False), *_base_.finish_test]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        **dict(
            _base_.train_dataloader.dataset.dataset,
            pipeline=train_pipeline,
            multi_adj_frame_id_cfg=None,
        ),
    )
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, multi_adj_frame_id_cfg=None))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(weight_decay=1e-7))
param_scheduler = [_base_.param_scheduler[0], dict(type='MultiStepLR', by_epoch=True, milestones=[epochs])]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
custom_hooks = [_base_.seeds, _base_.averaging]
