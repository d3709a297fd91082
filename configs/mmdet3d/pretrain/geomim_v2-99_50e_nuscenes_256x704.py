# V2-99 (VoVNet with effective squeeze-and-excitation), by timm. A project's own class works as well: its `type` and arguments in
# place of these, its module in `custom_imports`.
_base_ = './geomim_swin-b_50e_nuscenes_256x704.py'
model = dict(
    init_from=None,
    student=dict(
        encoder=dict(
            _delete_=True, type='timm', name='ese_vovnet99b', pretrained='checkpoints/ese_vovnet99b.pth', with_cp=True
        )
    ),
)
