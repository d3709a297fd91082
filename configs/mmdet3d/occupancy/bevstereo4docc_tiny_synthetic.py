# Occupancy of voxels of 0.8 m by a network of 2 million parameters, small enough for two CPU cores, on the synthetic world, from the
# encoder that pretrain/geomim_tiny_synthetic.py leaves behind; `--cfg-options model.img_backbone.init_cfg=None` starts without it. The
# info files are made by `python -m geomim infos data/synthetic`.
_base_ = ['../finetune/bevstereo4d_tiny_synthetic.py', '../_base_/bevdet/occupancy.py']
channels = 8
model = dict(
    type='BEVStereo4DOCC',
    img_view_transformer=dict(
        grid_config=dict(x=[-40, 40, 0.8], y=[-40, 40, 0.8], z=[-1, 5.4, 0.8], depth=[1.0, 45.0, 1.0]),
        out_channels=channels,
        sid=False,
        collapse_z=False,
        loss_depth_weight=0.05,
    ),
    pre_process=dict(_delete_=True, **dict(_base_.volume_frame, numC_input=channels, num_channels=[channels])),
    img_bev_encoder_backbone=dict(
        _delete_=True,
        **dict(
            _base_.volume_encoder,
            numC_input=channels * 2,
            num_layer=[1, 1, 1],
            num_channels=[channels, channels * 2, channels * 4],
        ),
    ),
    img_bev_encoder_neck=dict(
        _delete_=True, **dict(_base_.volume_neck, in_channels=channels * 7, out_channels=channels)
    ),
    out_dim=16,
    use_mask=True,
    pts_bbox_head=None,
    train_cfg=None,
    test_cfg=None,
)
data_prefix = dict(_base_.data_prefix, occupancy='gts')
bev_aug = dict(type='BEVDetBEVAug', training=False)  # what varies less is learnt sooner
labels = [dict(type='LoadOccupancyLabels', voxels=(100, 100, 8)), dict(type='GridToLidarEgo')]
pack = dict(type='PackBEVDetInputs', keys=[])
train_pipeline = [_base_.load, _base_.image_aug, *_base_.depth, bev_aug, *labels, pack]
test_pipeline = [_base_.load, dict(_base_.image_aug, training=False), bev_aug, *labels, pack]
train_dataloader = dict(dataset=dict(data_prefix=data_prefix, filter_empty_gt=False, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_prefix=data_prefix, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='OccupancyMetric', mask='camera')
test_evaluator = val_evaluator
