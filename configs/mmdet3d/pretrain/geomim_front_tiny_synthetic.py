# The tiny GeoMIM on one camera ahead:
#   python -m geomim synthesize data/front --rig front
# The camera gate normalises calibrations with the statistics of a batch, so a single camera takes two samples a step at
# least. The map's rear half is seen by no camera: what is learnt there is the mean, and the losses count it.
_base_ = './geomim_five_tiny_synthetic.py'
data_root = 'data/front/'
cameras = ['CAM_FRONT']

load = [dict(_base_.load[0], cameras=cameras), *_base_.load[1:]]
train_pipeline = [*load, _base_.sweeps, _base_.image_aug, *_base_.finish_train[1:]]
test_pipeline = [
    *load,
    dict(_base_.sweeps, test_mode=True),
    dict(_base_.image_aug, training=False),
    *_base_.finish_test,
]
train_dataloader = dict(batch_size=2, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
