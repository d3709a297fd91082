# The tiny GeoMIM on the synthetic world, with a LiDAR detector trained on a larger one as its teacher. The tap is the first
# block of its backbone, (B, 64, Y, X) of 90 x 90 cells of 1.2 m: local, as the sparse encoder's output in the paper. Behind
# the neck, most of a map is a pattern that hardly changes from frame to frame. The images have 400 x 225 pixels.
_base_ = './geomim_tiny_cpu.py'
data_root = 'data/synthetic/'
model = dict(
    # shallower than the tiny one, so that minutes hold some hundred iterations
    student=dict(
        decoder=dict(dim=64, num_heads=4, depth=4, cross_view_after=(2,), geometry_from=3),
        target=dict(channels=64),
    ),
    teacher=dict(
        _delete_=True,
        type='GeoMIMLidarTeacher',
        detector='{{ fileDirname }}/../teacher/centerpoint_pillar_tiny_synthetic.py',
        tap='pts_backbone.blocks.0',
        grid=dict(x_bound=(-54.0, 54.0, 1.2), y_bound=(-54.0, 54.0, 1.2), axis_order='yx'),
        channels=64,
        checkpoint='geomim://centerpoint_pillar_tiny_synthetic',  # comes with the package
    ),
)
# Next to no augmentation, one sample a step: in minutes, what varies less is learnt sooner.
image_scale = dict(final_size=_base_.image_size, resize=(0.88, 0.92), rotation=(0.0, 0.0), flip=0.0, test_resize=0.88)
train_pipeline = [*_base_.load, _base_.sweeps, dict(_base_.image_aug, **image_scale), *_base_.finish_train[1:]]
test_pipeline = [
    *_base_.load,
    dict(_base_.sweeps, test_mode=True),
    dict(_base_.image_aug, training=False, **image_scale),
    *_base_.finish_test,
]
dataset = dict(data_root=data_root, metainfo=dict(version='v1.0-mini'))
train_dataloader = dict(batch_size=1, num_workers=1, dataset=dict(dataset, pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2e-3, betas=(0.9, 0.95)))
default_hooks = dict(logger=dict(log_metric_by_epoch=False))
