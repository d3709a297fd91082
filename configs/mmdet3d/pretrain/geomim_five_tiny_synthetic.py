# The tiny GeoMIM on five cameras with Waymo's viewing directions, which leave the rear open; sizes may differ between them:
#   python -m geomim synthesize data/five --rig five
# Another rig needs its names in `cameras` and scales that fit its images; the model does not count cameras.
_base_ = './geomim_tiny_synthetic.py'
data_root = 'data/five/'
cameras = ['CAM_FRONT', 'CAM_FRONT_LEFT', 'CAM_FRONT_RIGHT', 'CAM_SIDE_LEFT', 'CAM_SIDE_RIGHT']

load = [dict(_base_.load[0], cameras=cameras), *_base_.load[1:]]
image_aug = dict(_base_.image_aug, **_base_.image_scale)
train_pipeline = [*load, _base_.sweeps, image_aug, *_base_.finish_train[1:]]
test_pipeline = [*load, dict(_base_.sweeps, test_mode=True), dict(image_aug, training=False), *_base_.finish_test]
dataset = dict(data_root=data_root, data_prefix={name: f'samples/{name}' for name in cameras})
train_dataloader = dict(dataset=dict(dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
