# A very small pillar encoder for tests and demonstrations on a CPU: maps (B, 32, Y, X) of 90 x 90 cells of 1.2 m; random, fixed features.
_base_ = './pillar.py'
teacher = dict(
    detector=dict(
        data_preprocessor=dict(voxel_layer=dict(voxel_size=[1.2, 1.2, 8.0], max_voxels=(8100, 8100))),
        pts_voxel_encoder=dict(feat_channels=(32,), voxel_size=(1.2, 1.2, 8.0)),
        pts_middle_encoder=dict(in_channels=32, output_shape=(90, 90)),
    ),
    grid=dict(x_bound=(-54.0, 54.0, 1.2), y_bound=(-54.0, 54.0, 1.2)),
    channels=32,
)
