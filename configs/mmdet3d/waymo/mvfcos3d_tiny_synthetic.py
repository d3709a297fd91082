# An MV-FCOS3D++ of 2 million parameters that trains in minutes on two CPU cores on five synthetic cameras, from the encoder
# that pretrain/geomim_five_tiny_synthetic.py leaves behind; `--cfg-options model.backbone.init_cfg=None` starts without it.
#   python -m geomim synthesize data/five --rig five && python -m geomim infos data/five --for waymo
# Waymo's own metric needs waymo-open-dataset; here mmdet3d's IndoorMetric, average precision by 3D overlap, takes its place.
_base_ = ['./mvfcos3d_swin-b_geomim_8xb2_waymoD5-3d-3class.py', '../_base_/tiny_run.py']
data_root = 'data/five/'
point_cloud_range = [-32.0, -48.0, -2.0, 64.0, 48.0, 4.0]
image_scale = (400, 225)  # width, height
dim = 16
backend_args = None

_low, _high = point_cloud_range[:2], point_cloud_range[3:5]
model = dict(
    backbone=dict(
        **_base_.tiny_swin,
        drop_path_rate=0.0,
        with_cp=False,
        init_cfg=dict(checkpoint='work_dirs/geomim_five_tiny_synthetic/encoder_mmdet.pth'),
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=dim),
    neck_3d=dict(in_channels=dim, out_channels=2 * dim),
    voxel_size=(2.0, 2.0, 0.5),
    anchor_generator=dict(ranges=[point_cloud_range]),
    bbox_head_3d=dict(
        in_channels=2 * dim,
        feat_channels=2 * dim,
        anchor_generator=dict(ranges=[[*_low, z, *_high, z] for z in (0.0, -0.1188, -0.0345)]),
    ),
    test_cfg=dict(nms_pre=500, max_num=100),
)
load = dict(type='LoadMultiViewImageFromFiles', to_float32=True, backend_args=backend_args)
annotations = dict(
    type='LoadAnnotations3D',
    with_bbox=True,
    with_label=True,
    with_attr_label=False,
    with_bbox_3d=True,
    with_label_3d=True,
    with_bbox_depth=True,
)
scaled = dict(type='RandomResize3D', scale=image_scale, ratio_range=(1.0, 1.0), keep_ratio=True)
train_pipeline = [
    load,
    annotations,
    dict(type='MultiViewWrapper', transforms=[scaled]),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectNameFilter', classes=_base_.class_names),
    dict(type='Pack3DDetInputs', keys=['img', 'gt_bboxes_3d', 'gt_labels_3d']),
]
test_pipeline = [load, dict(type='MultiViewWrapper', transforms=[scaled]), _base_.test_pipeline[-1]]
data = dict(
    data_root=data_root,
    data_prefix=dict(
        pts='training/velodyne',
        **{name: f'samples/{name}' for name in _base_.train_dataloader.dataset.data_prefix if name != 'pts'},
    ),
)
train_dataloader = dict(
    num_workers=1,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(data, pipeline=train_pipeline, load_interval=1),
)
val_dataloader = dict(
    dataset=dict(data, pipeline=test_pipeline, cam_sync_instances=True, metainfo=dict(box_type_3d='LiDAR'))
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='IndoorMetric', iou_thr=[0.25, 0.5])
test_evaluator = val_evaluator
train_cfg = dict(_delete_=True, **_base_.tiny_loop)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5))))
param_scheduler = [_base_.tiny_schedule[0], dict(_base_.tiny_schedule[1], eta_min=1e-6)]
default_hooks = _base_.tiny_hooks
custom_hooks = _base_.tiny_seeds
randomness = dict(seed=0)
log_processor = _base_.tiny_log
env_cfg = _base_.tiny_env
