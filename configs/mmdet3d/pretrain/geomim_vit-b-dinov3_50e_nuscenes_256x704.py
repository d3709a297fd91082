# ViT-B with patches of 16 pixels from DINOv3, by timm: a map of stride 16 alone, all copies in one pass.
_base_ = './geomim_swin-b_50e_nuscenes_256x704.py'
model = dict(
    init_from=None,
    student=dict(
        encoder=dict(
            _delete_=True,
            type='timm',
            name='vit_base_patch16_dinov3.lvd1689m',
            pretrained='checkpoints/vit_base_patch16_dinov3.lvd1689m.pth',
            with_cp=True,
        )
    ),
)
