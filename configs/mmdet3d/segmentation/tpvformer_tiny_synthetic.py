# A TPVFormer of 2 million parameters that trains in minutes on two CPU cores on the synthetic world, from the encoder that
# pretrain/geomim_tiny_synthetic.py leaves behind; `--cfg-options model.backbone.init_cfg=None` starts without it.
_base_ = ['./tpvformer_swin-b_geomim_8xb1-2x_nus-seg.py', '../_base_/tiny_run.py']
data_root = 'data/synthetic/'
version = 'v1.0-mini'
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
        **_base_.tiny_swin,
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
train_cfg = dict(_delete_=True, **_base_.tiny_loop)
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5))))
param_scheduler = _base_.tiny_schedule
default_hooks = _base_.tiny_hooks
custom_hooks = _base_.tiny_seeds
randomness = dict(seed=0)
log_processor = _base_.tiny_log
env_cfg = _base_.tiny_env
