# A ConvNeXt of 3.4 million parameters instead of the Swin.
_base_ = './geomim_tiny_synthetic.py'
model = dict(student=dict(encoder=dict(_delete_=True, type='timm', name='convnext_atto')))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
