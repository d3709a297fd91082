# V2-99 (VoVNet with effective squeeze-and-excitation), by timm. A project's own class works as well: its `type` and arguments in
# place of these, its module in `custom_imports`.
_base_ = './geomim_convnext-s_50e_nuscenes_256x704.py'
model = dict(student=dict(encoder=dict(name='ese_vovnet99b', pretrained='checkpoints/ese_vovnet99b.pth')))
