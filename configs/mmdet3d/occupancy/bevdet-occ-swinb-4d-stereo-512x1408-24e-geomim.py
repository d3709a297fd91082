# Swin-B from GeoMIM's pretraining: published with mIoU 45.0. 32 GPUs of 2 samples.
_base_ = ['./bevdet-occ-r50-4d-stereo-24e.py', '../_base_/bevdet/swin_b_geomim.py']
image_size = (512, 1408)
model = dict(
    img_backbone=dict(
        _delete_=True,
        **dict(_base_.swin_b, window_size=(16, 16, 16, 16), drop_path_rate=0.25, return_stereo_feat=True),
    ),
    img_neck=dict(_delete_=True, **dict(_base_.swin_neck, out_channels=512)),
    img_view_transformer=dict(input_size=image_size, in_channels=512),
)
data_config = dict(_base_.data_config, input_size=image_size)
load = dict(_base_.load, data_config=data_config)
image_aug = dict(_base_.image_aug, data_config=data_config)
train_pipeline = [load, image_aug, *_base_.depth, _base_.bev_aug, *_base_.labels, _base_.pack]
test_pipeline = [
    load,
    dict(image_aug, training=False),
    dict(_base_.bev_aug, training=False),
    *_base_.labels,
    _base_.pack,
]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.85),
)
custom_hooks = [*_base_.custom_hooks, dict(type='SyncBNControlHook', begin_epoch=0)]
load_from = None
