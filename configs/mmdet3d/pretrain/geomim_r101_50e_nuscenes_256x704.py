# ResNet-101, from ImageNet weights.
_base_ = './geomim_r50_50e_nuscenes_256x704.py'
model = dict(
    student=dict(encoder=dict(depth=101, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101')))
)
