# The same without GeoMIM: a Swin-B with shifted windows from ImageNet weights, one learning rate. Published with mAP 33.98,
# NDS 47.19. 32 GPUs of 4 samples. checkpoint: Swin's own file, whose names are converted.
_base_ = './bevdet-swinb-4d-256x704-cbgs-geomim.py'
model = dict(
    img_backbone=dict(
        _delete_=True,
        type='ShiftedSwin',
        window_size=(16, 16, 16, 8),
        out_indices=(2, 3),
        drop_path_rate=0.1,
        convert_weights=True,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/swin_base_patch4_window7_224.pth'),
    )
)
optim_wrapper = dict(
    _delete_=True,
    type='SkipNonFiniteOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-2),
    clip_grad=dict(max_norm=5, norm_type=2),
)
