# A GeoMIM of 2.7 million parameters that pretrains in seconds on a CPU: for trying, demonstrating and testing.
_base_ = [
    '../_base_/nuscenes_surround.py',
    '../_base_/teachers/tiny.py',
    '../_base_/pretrain_50e.py',
]
iterations = 60
image_size = (128, 352)
lr = 4e-3

model = dict(
    type='GeoMIMPretrainer',
    student=dict(
        encoder=dict(embed_dims=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window_size=(8, 8, 8, 4)),
        decoder=dict(dim=64, num_heads=4),
        view_transform=dict(
            image_size=image_size,
            x_bound=(-54.0, 54.0, 0.6),
            y_bound=(-54.0, 54.0, 0.6),
            depth_bound=(1.0, 60.0, 1.0),
            channels=32,
            axis_order=_base_.teacher.grid.axis_order,
        ),
        target=dict(channels=_base_.teacher.channels),
        depth_loss_weight=0.2,  # the paper's 0.01 is for 50 epochs; a run of minutes learns depth sooner with more
    ),
    teacher=_base_.teacher,
)
small_images = dict(final_size=image_size, resize=(0.19, 0.275), test_resize=0.24)
train_pipeline = [*_base_.load, _base_.sweeps, dict(_base_.image_aug, **small_images), *_base_.finish_train]
test_pipeline = [
    *_base_.load,
    dict(_base_.sweeps, test_mode=True),
    dict(_base_.image_aug, training=False, **small_images),
    *_base_.finish_test,
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        _delete_=True,
        **dict(_base_.train_dataloader.dataset.dataset, pipeline=train_pipeline, use_valid_flag=False),
    ),
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations)
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [
    dict(type='LinearLR', start_factor=1.0 / 3, by_epoch=False, begin=0, end=iterations // 10),
    dict(type='CosineAnnealingLR', T_max=iterations, eta_min=lr * 1e-3, by_epoch=False, begin=0, end=iterations),
]
default_hooks = dict(
    logger=dict(interval=5),
    checkpoint=dict(by_epoch=False, interval=iterations // 3),
)
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(type='GeoMIMTeacherGuardHook'),
    dict(type='ReconstructionPicturesHook', interval=iterations // 3),
    dict(type='GeoMIMEncoderExportHook'),
]
log_processor = dict(by_epoch=False, window_size=5)
# no device to name where there is no GPU
model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
env_cfg = dict(dist_cfg=dict(backend='gloo'))
