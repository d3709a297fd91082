# ConvNeXt-S from ImageNet-12k weights, by timm.
_base_ = './geomim_r50_50e_nuscenes_256x704.py'
model = dict(
    student=dict(
        encoder=dict(
            _delete_=True,
            type='timm',
            name='convnext_small.in12k_ft_in1k',
            pretrained='checkpoints/convnext_small.in12k_ft_in1k.pth',
            with_cp=True,
        )
    )
)
