# bevdet-r50-4d-cbgs.py from the ResNet-50 of
# pretrain/geomim_r50_50e_nuscenes_256x704.py, which saw the channels as R, G, B.
_base_ = './bevdet-r50-4d-cbgs.py'
checkpoint = 'checkpoints/encoder_resnet.pth'
model = dict(
    data_preprocessor=dict(bgr_to_rgb=True),
    img_backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
)
