# The same without GeoMIM: a Swin-B with shifted windows from ImageNet weights, one learning rate. Published with mAP 33.98,
# NDS 47.19. 32 GPUs of 4 samples. checkpoint: Swin's own file, whose names are converted.
_base_ = ['./bevdet-r50-4d-cbgs.py', '../_base_/bevdet/swin_b_geomim.py']
model = dict(
    img_backbone=dict(
        _delete_=True,
        type='ShiftedSwin',
        window_size=(16, 16, 16, 8),
        out_indices=(2, 3),
        drop_path_rate=0.1,
        convert_weights=True,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/swin_base_patch4_window7_224.pth'),
    ),
    img_neck=dict(_delete_=True, **_base_.swin_neck),
)
train_dataloader = dict(batch_size=4)
train_cfg = dict(val_interval=2)
