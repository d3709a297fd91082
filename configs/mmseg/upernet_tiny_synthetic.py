# A UPerNet of 2 million parameters that trains in minutes on two CPU cores, on the labels that
# `python -m geomim infos data/synthetic --for images` derives from the synthetic world, from the encoder that
# mmdet3d/pretrain/geomim_tiny_synthetic.py leaves behind; `--cfg-options model.backbone.init_cfg=None` starts without it.
_base_ = './upernet_swin-b_geomim_8xb2-80k_nuscenes-512x1024.py'
data_root = 'data/synthetic/'
iterations = 300
lr = 2e-3
batch_norm = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=None, size_divisor=32),
    backbone=dict(
        embed_dims=32,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        window_size=(8, 8, 8, 4),
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint='work_dirs/geomim_tiny_synthetic/encoder_mmdet.pth'),
    ),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=32, dropout_ratio=0.0, norm_cfg=batch_norm),
    auxiliary_head=dict(in_channels=128, channels=32, dropout_ratio=0.0, norm_cfg=batch_norm),
)
train_pipeline = [*_base_.load, dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')]
train_dataloader = dict(batch_size=2, num_workers=1, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=lr), clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=iterations // 10),
    dict(type='CosineAnnealingLR', T_max=iterations, eta_min=lr * 1e-3, by_epoch=False, begin=0, end=iterations),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=iterations // 3, max_keep_ckpts=2))
custom_hooks = [dict(type='EpochSeedHook'), dict(type='IterationSeedHook')]  # a killed run resumes bit for bit
randomness = dict(seed=0)
log_processor = dict(window_size=10)
# no device to name where there is no GPU
model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
env_cfg = dict(cudnn_benchmark=False, dist_cfg=dict(backend='gloo'))
