# BEVStereo4D on a Swin-B from GeoMIM's pretraining, six tasks: published with mAP 45.33, NDS 55.1. 32 GPUs of 4 samples.
_base_ = ['./bevdet-r50-4d-stereo-cbgs.py', '../_base_/bevdet/swin_b_geomim.py']
model = dict(
    img_backbone=dict(_delete_=True, **_base_.swin_b, return_stereo_feat=True),
    img_neck=dict(_delete_=True, **dict(_base_.swin_neck, out_channels=512)),
    img_view_transformer=dict(in_channels=512),
    pts_bbox_head=dict(
        tasks=[
            dict(num_class=1, class_names=['car']),
            dict(num_class=2, class_names=['truck', 'construction_vehicle']),
            dict(num_class=2, class_names=['bus', 'trailer']),
            dict(num_class=1, class_names=['barrier']),
            dict(num_class=2, class_names=['motorcycle', 'bicycle']),
            dict(num_class=2, class_names=['pedestrian', 'traffic_cone']),
        ],
        loss_cls=dict(loss_weight=1.0),
        loss_bbox=dict(loss_weight=0.25),
    ),
    test_cfg=dict(
        pts=dict(
            post_max_size=83,
            nms_type=['rotate', 'rotate', 'rotate', 'circle', 'rotate', 'rotate'],
            nms_thr=0.125,
            nms_rescale_factor=[0.7, [0.4, 0.6], [0.3, 0.4], 0.9, [1.0, 1.0], [1.5, 2.5]],
        )
    ),
)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(_base_.layer_decay, paramwise_cfg=dict(decay_rate=0.85))
train_cfg = dict(val_interval=2)
# without statistics over all GPUs the loss may diverge
custom_hooks = [*_base_.custom_hooks, dict(type='SyncBNControlHook', begin_epoch=2)]
