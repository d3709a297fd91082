# What runs of minutes on two CPU cores share, to be put in the places of another schedule; and a Swin of their size.
tiny_swin = dict(embed_dims=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window_size=(8, 8, 8, 4))
tiny_loop = dict(type='IterBasedTrainLoop', max_iters=300, val_interval=300)
tiny_schedule = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', T_max=300, eta_min=2e-6, by_epoch=False, begin=0, end=300),
]
tiny_hooks = dict(
    logger=dict(interval=10, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=2),
)
tiny_seeds = [dict(type='EpochSeedHook'), dict(type='IterationSeedHook')]  # a killed run resumes bit for bit
tiny_log = dict(by_epoch=False, window_size=10)
tiny_env = dict(dist_cfg=dict(backend='gloo'))
# no device to name where there is no GPU
model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
