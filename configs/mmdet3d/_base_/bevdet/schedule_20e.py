# Optimisation of the published 20-epoch runs: AdamW, averaged weights, past frames from the fourth epoch on. The learning
# rate belongs to the published batches, 64 samples for ResNet-50 and Swin-B at 256 x 704: change both together.
_base_ = '../runtime.py'
epochs = 20

optim_wrapper = dict(
    type='OptimWrapper',
    skip_nonfinite=True,
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-2),
    clip_grad=dict(max_norm=5, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=200),
    dict(type='MultiStepLR', by_epoch=True, milestones=[epochs]),  # after the last epoch: the rate stays, as published
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=epochs)

custom_imports = dict(imports=['geomim.bevdet'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=5))
seeds = dict(type='EpochSeedHook')
averaging = dict(type='EMAHook', ema_type='RampedEMA', decay=0.999, init_updates=10560)
past_frames = dict(type='SequentialControlHook', begin_epoch=3)
custom_hooks = [seeds, averaging, past_frames]
