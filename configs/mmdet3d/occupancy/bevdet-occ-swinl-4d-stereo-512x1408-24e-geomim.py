# Swin-L from GeoMIM's pretraining, 75 epochs: published with mIoU 46.27. 32 GPUs of 2 samples.
_base_ = './bevdet-occ-swinb-4d-stereo-512x1408-24e-geomim.py'
epochs = 75
model = dict(
    img_backbone=dict(
        embed_dims=192,
        num_heads=(6, 12, 24, 48),
        drop_path_rate=0.35,
        with_cp=True,
        init_cfg=dict(checkpoint='checkpoints/geomim_large.pth'),
    ),
    img_neck=dict(in_channels=768 + 1536),
)
param_scheduler = [_base_.param_scheduler[0], dict(type='MultiStepLR', by_epoch=True, milestones=[epochs])]
train_cfg = dict(max_epochs=epochs)
