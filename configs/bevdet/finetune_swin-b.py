# Swin-B from GeoMIM's pretraining and learning rates that fall towards the images, for any detector of a BEVDet codebase: parts
# for a config of that codebase, see docs/bevdet.md. The backbone gives maps of 512 and 1024 channels.
geomim_backbone = dict(
    _delete_=True,
    type='GeoMIMSwin',
    embed_dims=128,
    depths=(2, 2, 18, 2),
    num_heads=(4, 8, 16, 32),
    window_size=(16, 16, 16, 8),
    out_indices=(2, 3),
    drop_path_rate=0.2,
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/encoder_bevdet.pth'),
)
# BEVStereo4D matches features of the first stage
geomim_stereo_backbone = dict(geomim_backbone, return_stereo_feat=True)
geomim_optimizer = dict(
    _delete_=True,
    type='AdamW',
    lr=2e-4,
    weight_decay=0.05,
    constructor='GeoMIMLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(decay_rate=0.85),
)
