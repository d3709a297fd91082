# Optimisation of the published pretraining: 50 epochs, AdamW, cosine; and what watches over the run.
# The learning rate belongs to the published batch of 2 samples a GPU; change both together.
epochs = 50
lr = 2e-4

optim_wrapper = dict(
    type='SkipNonFiniteOptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=0.01),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1.0 / 3, by_epoch=False, begin=0, end=500),
    dict(
        type='CosineAnnealingLR',
        T_max=epochs,
        eta_min=lr * 1e-3,
        by_epoch=True,
        begin=0,
        end=epochs,
        convert_to_iter_based=True,
    ),
    # The published configuration inherits a cyclic momentum (beta1 0.9 -> 0.9 * 0.85 / 0.95 -> 0.9, turning at 40 %).
    dict(
        type='CosineAnnealingMomentum',
        T_max=0.4 * epochs,
        eta_min=0.9 * 0.85 / 0.95,
        by_epoch=True,
        begin=0,
        end=0.4 * epochs,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingMomentum',
        T_max=0.6 * epochs,
        eta_min=0.9,
        by_epoch=True,
        begin=0.4 * epochs,
        end=epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
val_evaluator = dict(type='ReconstructionMetric')
test_evaluator = val_evaluator

default_scope = 'mmdet3d'
custom_imports = dict(imports=['geomim.mmdet3d'], allow_failed_imports=False)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(type='TeacherGuardHook'),
    dict(type='ReconstructionPicturesHook', interval=1000),
    dict(type='EncoderExportHook'),
]
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
