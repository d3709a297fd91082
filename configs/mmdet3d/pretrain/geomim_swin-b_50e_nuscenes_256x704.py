# The paper's pretraining: Swin-B from MixMAE weights, BEVFusion's LiDAR-only detector as teacher, 50 epochs on nuScenes.
# Both files must be there; `--cfg-options model.init_from=None` starts from random weights instead.
_base_ = [
    '../_base_/nuscenes_surround.py',
    '../_base_/teachers/bevfusion_l_voxel0075.py',
    '../_base_/pretrain_50e.py',
]
model = dict(
    type='GeoMIMPretrainer',
    init_from='checkpoints/mixmae_base_600ep.pth',
    student=dict(encoder=dict(size='base')),
    teacher=dict(_base_.teacher, checkpoint='checkpoints/bevfusion_lidar_only.pth'),
)
# Worker processes are seeded anew each epoch, so that a resumed run repeats the unbroken one.
train_dataloader = dict(persistent_workers=False, worker_init_fn=dict(type='geomim_worker_init'))
