# A TPVFormer of 2 million parameters that trains in minutes on two CPU cores on the synthetic world, from the encoder that
# pretrain/geomim_tiny_synthetic.py leaves behind; `--cfg-options model.backbone.init_cfg=None` starts without it.
_base_ = './tpvformer_swin-b_geomim_8xb1-2x_nus-seg.py'
data_root = 'data/synthetic/'
version = 'v1.0-mini'
iterations = 300
lr = 2e-3
planes = dict(tpv_h=50, tpv_w=50, tpv_z=8)  # cells of 2 m, 1 m high
dim = 64
levels = 3

_layers = _base_.model.encoder.transformerlayers
across = dict(_layers[0].attn_cfgs[0], **planes, embed_dims=dim, num_heads=4, num_anchors=4, num_points=4, dropout=0.0)
into_images = dict(
    _layers[0].attn_cfgs[1],
    **planes,
    embed_dims=dim,
    dropout=0.0,
    deformable_attention=dict(
        _layers[0].attn_cfgs[1].deformable_attention,
        **planes,
        embed_dims=dim,
        num_heads=4,
        num_levels=levels,
        num_points=[4, 8, 8],
        num_z_anchors=[4, 8, 8],
    ),
)
layer = dict(_layers[0], attn_cfgs=[across, into_images], feedforward_channels=2 * dim, ffn_dropout=0.0)

model = dict(
    data_preprocessor=dict(
        voxel_layer=dict(grid_shape=[planes['tpv_h'], planes['tpv_w'], planes['tpv_z']]),
        batch_augments=None,
    ),
    backbone=dict(
        embed_dims=32,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        window_size=(8, 8, 8, 4),
        drop_path_rate=0.0,
        with_cp=False,
        init_cfg=dict(checkpoint='work_dirs/geomim_tiny_synthetic/encoder_bevdet.pth'),
    ),
    neck=dict(in_channels=[64, 128, 256], out_channels=dim, num_outs=levels, add_extra_convs=False),
    encoder=dict(
        **planes,
        embed_dims=dim,
        num_layers=2,
        num_feature_levels=levels,
        num_points_in_pillar=[4, 8, 8],
        num_points_in_pillar_cross_view=[4, 4, 4],
        transformerlayers=[layer, layer],
        positional_encoding=dict(num_feats=[24, 24, 16], h=planes['tpv_h'], w=planes['tpv_w'], z=planes['tpv_z']),
    ),
    decode_head=dict(**planes, in_dims=dim, hidden_dims=2 * dim, out_dims=dim),
)

# No augmentation: in minutes, what varies less is learnt sooner.
train_pipeline = [step for step in _base_.train_pipeline if step['type'] != 'MultiViewWrapper']
data = dict(data_root=data_root, data_prefix=dict(pts_semantic_mask=f'lidarseg/{version}'))
train_dataloader = dict(
    num_workers=1, sampler=dict(type='InfiniteSampler'), dataset=dict(data, pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=1, dataset=data)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=iterations // 10),
    dict(type='CosineAnnealingLR', T_max=iterations, eta_min=lr * 1e-3, by_epoch=False, begin=0, end=iterations),
]
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations)
default_hooks = dict(
    logger=dict(interval=10, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=iterations // 3, max_keep_ckpts=2),
)
custom_hooks = [dict(type='EpochSeedHook'), dict(type='IterationSeedHook')]  # a killed run resumes bit for bit
randomness = dict(seed=0)
log_processor = dict(by_epoch=False, window_size=10)
# no device to name where there is no GPU
model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
env_cfg = dict(dist_cfg=dict(backend='gloo'))
