# A UPerNet of 2 million parameters that trains in minutes on two CPU cores, on the labels that
# `python -m geomim infos data/synthetic --for images` derives from the synthetic world, from the encoder that
# mmdet3d/pretrain/geomim_tiny_synthetic.py leaves behind; `--cfg-options model.backbone.init_cfg=None` starts without it.
_base_ = ['./upernet_swin-b_geomim_8xb2-80k_nuscenes-512x1024.py', '../mmdet3d/_base_/tiny_run.py']
data_root = 'data/synthetic/'
iterations = _base_.tiny_loop.max_iters
batch_norm = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=None, size_divisor=32),
    backbone=dict(
        **_base_.tiny_swin,
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
train_cfg = _base_.tiny_loop
optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=10))
param_scheduler = _base_.tiny_schedule
default_hooks = _base_.tiny_hooks
custom_hooks = _base_.tiny_seeds
randomness = dict(seed=0)
log_processor = _base_.tiny_log
env_cfg = dict(_base_.tiny_env, cudnn_benchmark=False)
