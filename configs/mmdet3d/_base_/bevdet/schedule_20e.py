# Optimisation of the published 20-epoch runs: AdamW, averaged weights, past frames from the fourth epoch on. The learning
# rate belongs to the published batches, 64 samples for ResNet-50 and Swin-B at 256 x 704: change both together.
epochs = 20

optim_wrapper = dict(
    type='SkipNonFiniteOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-2),
    clip_grad=dict(max_norm=5, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=200),
    dict(type='MultiStepLR', by_epoch=True, milestones=[epochs]),  # after the last epoch: the rate stays, as published
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

default_scope = 'mmdet3d'
custom_imports = dict(imports=['geomim.bevdet'], allow_failed_imports=False)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=5),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
seeds = dict(type='EpochSeedHook')
averaging = dict(type='EMAHook', ema_type='RampedEMA', decay=0.999, init_updates=10560)
past_frames = dict(type='SequentialControlHook', begin_epoch=3)
custom_hooks = [seeds, averaging, past_frames]
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends, name='visualizer')
env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl')
)
randomness = dict(seed=0)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
