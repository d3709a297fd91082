# Swin-B from GeoMIM's pretraining, to be put in the place of another backbone. checkpoint: an exported encoder or a pretraining
# checkpoint.
swin_b = dict(
    type='GeoMIMSwin',
    embed_dims=128,
    depths=(2, 2, 18, 2),
    num_heads=(4, 8, 16, 32),
    window_size=(16, 16, 16, 8),
    out_indices=(0, 1, 2, 3),
    drop_path_rate=0.2,
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/geomim_base.pth'),
)
