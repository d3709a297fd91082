# BEVDet at the same size: the key frame alone, no labels of depth, as in the paper's finetuning.
_base_ = './bevdepth4d_resnet_tiny_synthetic.py'
model = dict(
    _delete_=True,
    type='BEVDet',
    data_preprocessor=_base_.model.data_preprocessor,
    img_backbone=_base_.model.img_backbone,
    img_neck=_base_.model.img_neck,
    img_view_transformer=dict(
        type='LSSViewTransformer',
        grid_config=_base_.model.img_view_transformer.grid_config,
        input_size=_base_.image_size,
        in_channels=64,
        out_channels=32,
        downsample=8,
    ),
    img_bev_encoder_backbone=dict(_base_.model.img_bev_encoder_backbone, numC_input=32),
    img_bev_encoder_neck=_base_.model.img_bev_encoder_neck,
    pts_bbox_head=_base_.model.pts_bbox_head,
    train_cfg=dict(pts=dict(_base_.model.train_cfg.pts, code_weights=[1.0] * 8 + [0.2] * 2)),
    test_cfg=_base_.model.test_cfg,
)
load = dict(_base_.load, num_frames=1)
train_pipeline = [load, _base_.image_aug, *_base_.annotate, _base_.pack]
test_pipeline = [load, dict(_base_.image_aug, training=False), *_base_.finish_test]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, multi_adj_frame_id_cfg=None))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, multi_adj_frame_id_cfg=None))
test_dataloader = val_dataloader
custom_hooks = [*_base_.tiny_seeds, dict(_base_.averaging, init_updates=0)]
