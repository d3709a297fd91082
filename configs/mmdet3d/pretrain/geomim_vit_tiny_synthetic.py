# A plain vision transformer of 2.8 million parameters instead of the Swin: stride 16 alone, an attention mask.
_base_ = './geomim_tiny_synthetic.py'
model = dict(student=dict(encoder=dict(_delete_=True, type='timm', name='vit_tiny_patch16_224', depth=6)))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
