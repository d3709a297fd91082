# The same on a Swin-B from GeoMIM's pretraining. 16 GPUs of 4 samples.
_base_ = ['./bevdet-r50-map-256x704.py', '../_base_/bevdet/swin_b_geomim.py']
model = dict(
    img_backbone=dict(_delete_=True, **_base_.swin_b),
    img_neck=dict(_delete_=True, **_base_.swin_neck),
)
train_dataloader = dict(batch_size=4)
optim_wrapper = _base_.layer_decay
