# ResNet-50, the backbone of BEVDet's official configs, from ImageNet weights. The run leaves encoder_resnet.pth, which
# finetune/bevdet-r50*-geomim.py start from.
_base_ = './geomim_swin-b_50e_nuscenes_256x704.py'
model = dict(
    init_from=None,
    student=dict(
        encoder=dict(
            _delete_=True,
            type='mmdet.ResNet',
            depth=50,
            out_indices=(2, 3),
            norm_eval=False,
            with_cp=True,
            init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
        )
    ),
)
