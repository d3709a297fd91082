# Swin-B from GeoMIM's pretraining, its neck and its learning rates by layer, to be put in the places of ResNet-50's.
# checkpoint: an exported encoder or a pretraining checkpoint.
swin_b = dict(
    type='GeoMIMSwin',
    embed_dims=128,
    depths=(2, 2, 18, 2),
    num_heads=(4, 8, 16, 32),
    window_size=(16, 16, 16, 8),
    out_indices=(2, 3),
    drop_path_rate=0.2,
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/geomim_base.pth'),
)
swin_neck = dict(
    type='FPN_LSS',
    in_channels=512 + 1024,
    out_channels=256,
    extra_upsample=None,
    input_feature_index=(0, 1),
    scale_factor=2,
)
layer_decay = dict(
    optimizer=dict(weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.8),
)
