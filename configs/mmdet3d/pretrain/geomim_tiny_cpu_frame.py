# The tiny GeoMIM on the generated frames of geomim.synthetic (800 x 450 images: twice the resize factors of nuScenes).
_base_ = './geomim_tiny_cpu.py'
data_root = 'data/frame/'
image_scale = dict(resize=(0.38, 0.55), test_resize=0.48)
train_pipeline = [
    *_base_.load,
    _base_.sweeps,
    dict(_base_.image_aug, final_size=_base_.image_size, **image_scale),
    *_base_.finish_train,
]
test_pipeline = [
    *_base_.load,
    dict(_base_.sweeps, test_mode=True),
    dict(_base_.image_aug, training=False, final_size=_base_.image_size, **image_scale),
    *_base_.finish_test,
]
train_dataloader = dict(dataset=dict(data_root=data_root, pipeline=train_pipeline, metainfo=dict(version='v1.0-mini')))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline, metainfo=dict(version='v1.0-mini')))
test_dataloader = val_dataloader
