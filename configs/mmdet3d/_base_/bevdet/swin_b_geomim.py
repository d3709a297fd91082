# Swin-B from GeoMIM's pretraining, its neck and its learning rates by layer, to be put in the places of ResNet-50's.
_base_ = '../swin_b.py'
swin_b = dict(out_indices=(2, 3))
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
