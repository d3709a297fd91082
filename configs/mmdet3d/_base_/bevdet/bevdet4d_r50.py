# BEVDet4D on a ResNet-50, 256 x 704 pixels, BEV cells of 0.8 m: the published sizes.
_base_ = './nuscenes_4d.py'
model = dict(
    type='BEVDet4D',
    align_after_view_transfromation=False,
    num_adj=1,
    # Published weights were trained on images of the channels B, G, R, normalised with the numbers of R, G, B.
    data_preprocessor=dict(type='BEVDetDataPreprocessor', bgr_to_rgb=False),
    img_backbone=dict(
        type='mmdet.ResNet',
        depth=50,
        num_stages=4,
        out_indices=(2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        with_cp=True,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    img_neck=dict(type='CustomFPN', in_channels=[1024, 2048], out_channels=256, num_outs=1, start_level=0, out_ids=[0]),
    img_view_transformer=dict(
        type='LSSViewTransformer',
        grid_config=dict(x=[-51.2, 51.2, 0.8], y=[-51.2, 51.2, 0.8], z=[-5, 3, 8], depth=[1.0, 60.0, 1.0]),
        input_size=(256, 704),
        in_channels=256,
        out_channels=80,
        downsample=16,
    ),
    pre_process=dict(
        type='CustomResNet', numC_input=80, num_layer=[2], num_channels=[80], stride=[1], backbone_output_ids=[0]
    ),
    img_bev_encoder_backbone=dict(type='CustomResNet', numC_input=160, num_channels=[160, 320, 640]),
    img_bev_encoder_neck=dict(type='FPN_LSS', in_channels=800, out_channels=256),
    pts_bbox_head=dict(
        type='BEVDetCenterHead',
        in_channels=256,
        tasks=[
            dict(num_class=10, class_names=_base_.class_names),
        ],
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        share_conv_channel=64,
        bbox_coder=dict(
            type='CenterPointBBoxCoder',
            pc_range=[-51.2, -51.2],
            post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            max_num=500,
            score_threshold=0.1,
            out_size_factor=8,
            voxel_size=[0.1, 0.1],
            code_size=9,
        ),
        separate_head=dict(type='SeparateHead', final_kernel=3),
        loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'),
        loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=0.25),
        norm_bbox=True,
    ),
    train_cfg=dict(
        pts=dict(
            point_cloud_range=_base_.point_cloud_range,
            grid_size=[1024, 1024, 40],
            voxel_size=[0.1, 0.1, 0.2],
            out_size_factor=8,
            dense_reg=1,
            gaussian_overlap=0.1,
            max_objs=500,
            min_radius=2,
            code_weights=[1.0] * 10,
        )
    ),
    test_cfg=dict(
        pts=dict(
            pc_range=[-51.2, -51.2],
            post_center_limit_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            max_per_img=500,
            max_pool_nms=False,
            min_radius=[4, 12, 10, 1, 0.85, 0.175],
            score_threshold=0.1,
            out_size_factor=8,
            voxel_size=[0.1, 0.1],
            pre_max_size=1000,
            post_max_size=500,
            nms_type=['rotate'],
            nms_thr=[0.2],
            nms_rescale_factor=[[1.0, 0.7, 0.7, 0.4, 0.55, 1.1, 1.0, 1.0, 1.5, 3.5]],
        )
    ),
)
