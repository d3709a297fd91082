# Optimisation of the published pretraining: 50 epochs, AdamW, cosine; and what watches over the run.
# The learning rate belongs to the published batch of 2 samples a GPU; change both together.
_base_ = './runtime.py'
epochs = 50
lr = 2e-4

optim_wrapper = dict(
    type='OptimWrapper',
    skip_nonfinite=True,
    optimizer=dict(type='AdamW', lr=lr, weight_decay=0.01),
    clip_grad=dict(max_norm=35, norm_type=2),
)
# As published, the rate falls once an epoch: `param_scheduler.1.convert_to_iter_based=True` takes a step every iteration.
param_scheduler = [
    dict(type='LinearLR', start_factor=1.0 / 3, by_epoch=False, begin=0, end=501),  # the whole rate at iteration 500
    dict(type='CosineAnnealingLR', T_max=epochs, eta_min=lr * 1e-3, by_epoch=True, begin=0, end=epochs),
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
val_evaluator = dict(type='ReconstructionMetric')
test_evaluator = val_evaluator

custom_imports = dict(imports=['geomim.mmdet3d'], allow_failed_imports=False)
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(type='GeoMIMTeacherGuardHook'),
    dict(type='ReconstructionPicturesHook', interval=1000),
    dict(type='GeoMIMEncoderExportHook'),
]
