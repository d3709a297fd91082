# The paper's pretraining carried over to Waymo's five cameras, with mmdet3d's PointPillars as teacher; no run has been
# published. Both files must be there; `--cfg-options model.init_from=None` starts from random weights instead.
_base_ = [
    '../_base_/waymo_surround.py',
    '../_base_/teachers/pointpillars_waymo.py',
    '../_base_/pretrain_50e.py',
]
model = dict(
    type='GeoMIMPretrainer',
    init_from='checkpoints/mixmae_base_600ep.pth',
    student=dict(
        encoder=dict(size='base'),
        view_transform=dict(
            x_bound=(-74.88, 74.88, 0.32),
            y_bound=(-74.88, 74.88, 0.32),
            depth_bound=(1.0, 75.0, 0.5),
            axis_order=_base_.teacher.grid.axis_order,
        ),
        target=dict(channels=_base_.teacher.channels),
    ),
    teacher=dict(_base_.teacher, checkpoint='checkpoints/pointpillars_waymo.pth'),
)
# Worker processes are seeded anew each epoch, so that a resumed run repeats the unbroken one.
train_dataloader = dict(persistent_workers=False, worker_init_fn=dict(type='geomim_worker_init'))
