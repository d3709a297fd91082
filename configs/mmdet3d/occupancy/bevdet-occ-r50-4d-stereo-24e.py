# BEVStereo4DOCC: the class of every voxel of 0.4 m, from a BEVStereo4D detector; published with mIoU 36.01. 4 samples a GPU. The
# published file trains 100 epochs whatever its name says. Labels: the folder gts of Occ3D-nuScenes in the data folder.
_base_ = ['../finetune/bevdet-r50-4d-stereo-cbgs.py', '../_base_/bevdet/occupancy.py']
epochs = 100
grid_config = dict(x=[-40, 40, 0.4], y=[-40, 40, 0.4], z=[-1, 5.4, 0.4], depth=[1.0, 45.0, 0.5])
model = dict(
    type='BEVStereo4DOCC',
    img_view_transformer=dict(
        grid_config=dict(_delete_=True, **grid_config),
        out_channels=_base_.channels,
        sid=False,
        collapse_z=False,
        loss_depth_weight=0.05,
    ),
    pre_process=dict(_delete_=True, **_base_.volume_frame),
    img_bev_encoder_backbone=dict(_delete_=True, **_base_.volume_encoder),
    img_bev_encoder_neck=dict(_delete_=True, **_base_.volume_neck),
    out_dim=32,
    num_classes=18,
    use_mask=True,
    loss_occ=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    pts_bbox_head=None,
    train_cfg=None,
    test_cfg=None,
)
data_prefix = dict(_base_.data_prefix, occupancy='gts')
bda_aug_conf = dict(rot_lim=(0.0, 0.0), scale_lim=(1.0, 1.0), flip_dx_ratio=0.5, flip_dy_ratio=0.5)
bev_aug = dict(type='BEVDetBEVAug', bda_aug_conf=bda_aug_conf)
labels = [dict(type='LoadOccupancyLabels')]
pack = dict(type='PackBEVDetInputs', keys=[])
train_pipeline = [_base_.load, _base_.image_aug, *_base_.depth, bev_aug, *labels, pack]
test_pipeline = [_base_.load, dict(_base_.image_aug, training=False), dict(bev_aug, training=False), *labels, pack]
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        _delete_=True,
        **dict(
            _base_.train_dataloader.dataset.dataset,
            data_prefix=data_prefix,
            filter_empty_gt=False,
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(dataset=dict(data_prefix=data_prefix, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='OccupancyMetric', mask='camera')
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [_base_.param_scheduler[0], dict(type='MultiStepLR', by_epoch=True, milestones=[epochs])]
train_cfg = dict(max_epochs=epochs, val_interval=2)
custom_hooks = [_base_.seeds, _base_.averaging]
load_from = 'checkpoints/bevdet-r50-4d-stereo-cbgs.pth'  # a detection checkpoint; None starts from the backbone alone
