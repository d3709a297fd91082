# The same detector on sparse voxels of 0.3 x 0.3 x 0.4 m, as the paper's teacher has them, but small: its sparse encoder
# gives maps (B, 128, Y, X) of 90 x 90 cells. Needs spconv; on a CPU it trains on one thread.
_base_ = './centerpoint_pillar_tiny_synthetic.py'
voxel_size = [0.3, 0.3, 0.4]
coding = dict(voxel_size=voxel_size[:2], out_size_factor=4)
model = dict(
    data_preprocessor=dict(
        voxel_layer=dict(max_num_points=5, voxel_size=voxel_size, max_voxels=(40000, 60000)),
    ),
    pts_voxel_encoder=dict(_delete_=True, type='HardSimpleVFE', num_features=5),
    pts_middle_encoder=dict(
        _delete_=True,
        type='SparseEncoder',
        in_channels=5,
        sparse_shape=[21, 360, 360],
        base_channels=16,
        output_channels=64,
        order=('conv', 'norm', 'act'),
        encoder_channels=((16, 16, 32), (32, 32, 64), (64, 64)),
        encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0)),
        block_type='basicblock',
    ),
    pts_backbone=dict(in_channels=128, layer_strides=[1, 2]),
    pts_bbox_head=dict(bbox_coder=coding),
    train_cfg=dict(pts=dict(grid_size=[360, 360, 20], voxel_size=voxel_size, out_size_factor=4)),
    test_cfg=dict(pts=coding),
)
custom_hooks = [dict(type='EpochSeedHook'), dict(type='SparseOnCPUHook')]
