# A BEVDepth4D of 3 million parameters that trains in minutes on two CPU cores on the synthetic world, from the encoder that
# pretrain/geomim_tiny_synthetic.py leaves behind; `--cfg-options model.img_backbone.init_cfg=None` starts without it. The
# info files are made by `python -m geomim infos data/synthetic`.
_base_ = ['./bevdet-r50-4d-depth-cbgs.py', '../_base_/bevdet/swin_b_geomim.py', '../_base_/tiny_run.py']
data_root = 'data/synthetic/'
image_size = (128, 352)
cell = dict(voxel_size=[0.2, 0.2])  # 8 of them are a BEV cell

model = dict(
    data_preprocessor=dict(bgr_to_rgb=True),  # as in the pretraining
    img_backbone=dict(
        _delete_=True,
        type='GeoMIMSwin',
        **_base_.tiny_swin,
        out_indices=(2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/geomim_tiny_synthetic/encoder_bevdet.pth'),
    ),
    img_neck=dict(_delete_=True, **dict(_base_.swin_neck, in_channels=128 + 256, out_channels=64)),
    img_view_transformer=dict(
        grid_config=dict(x=[-51.2, 51.2, 1.6], y=[-51.2, 51.2, 1.6], depth=[1.0, 60.0, 1.0]),
        input_size=image_size,
        in_channels=64,
        out_channels=32,
        depthnet_cfg=dict(aspp_mid_channels=32),
    ),
    pre_process=dict(numC_input=32, num_channels=[32]),
    img_bev_encoder_backbone=dict(numC_input=64, num_channels=[48, 64, 96]),
    img_bev_encoder_neck=dict(in_channels=48 + 96, out_channels=64),
    # a heat map that begins near zero, as boxes are rare: a short run has no time to get there
    pts_bbox_head=dict(in_channels=64, share_conv_channel=32, bbox_coder=cell, separate_head=dict(init_bias=-4.6)),
    train_cfg=dict(pts=dict(grid_size=[512, 512, 40], voxel_size=[0.2, 0.2, 0.2], min_radius=1)),
    test_cfg=dict(pts=cell),
)
data_config = dict(
    _base_.data_config,
    input_size=image_size,
    src_size=(225, 400),
    resize=(0.0, 0.04),
    rot=(0.0, 0.0),
    flip=False,
)
load = dict(_base_.load, data_config=data_config)
image_aug = dict(_base_.image_aug, data_config=data_config)
to_key_ego = dict(type='BoxesToKeyEgo')
# No BEV augmentation, as little as possible of the images': in minutes, what varies less is learnt sooner.
annotate = [_base_.annotate[0], to_key_ego, dict(_base_.annotate[2], training=False), *_base_.annotate[3:]]
finish_test = [to_key_ego, *_base_.finish_test[1:]]
train_pipeline = [load, image_aug, *_base_.depth, *annotate, _base_.pack]
test_pipeline = [load, dict(image_aug, training=False), *finish_test]
synthetic = dict(data_root=data_root, metainfo=dict(version='v1.0-mini'))
train_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        _delete_=True,
        **dict(
            _base_.train_dataloader.dataset.dataset,
            data_root=data_root,
            metainfo=dict(classes=_base_.class_names, version='v1.0-mini'),
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(num_workers=1, dataset=dict(synthetic, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file=data_root + 'bevdet_infos_val.pkl')
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(lr=2e-3),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.85),
)
param_scheduler = _base_.tiny_schedule
train_cfg = dict(_delete_=True, **_base_.tiny_loop)
default_hooks = _base_.tiny_hooks
custom_hooks = [
    *_base_.tiny_seeds,
    dict(_base_.averaging, init_updates=0),  # a memory that fits so short a run
    dict(type='SequentialControlHook', begin_iter=30),
]
log_processor = _base_.tiny_log
env_cfg = _base_.tiny_env
