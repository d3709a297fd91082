# ViT-B with patches of 16 pixels from DINOv3, by timm: a map of stride 16 alone, all copies in one pass.
_base_ = './geomim_convnext-s_50e_nuscenes_256x704.py'
model = dict(
    student=dict(
        encoder=dict(
            name='vit_base_patch16_dinov3.lvd1689m',
            pretrained='checkpoints/vit_base_patch16_dinov3.lvd1689m.pth',
        )
    )
)
