# BEVDet4D on a Swin-B from GeoMIM's pretraining: published with mAP 42.25, NDS 53.1. 32 GPUs of 4 samples.
_base_ = ['./bevdet-r50-4d-cbgs.py', '../_base_/bevdet/swin_b_geomim.py']
model = dict(
    img_backbone=dict(_delete_=True, **_base_.swin_b),
    img_neck=dict(_delete_=True, **_base_.swin_neck),
)
train_dataloader = dict(batch_size=4)
optim_wrapper = _base_.layer_decay
train_cfg = dict(val_interval=2)
