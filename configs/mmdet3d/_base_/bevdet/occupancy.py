# Networks of volumes, to be put in the places of those of BEV maps, for occupancy of the key frame and the one before.
channels = 32
volume_frame = dict(
    type='CustomResNet3D',
    numC_input=channels,
    num_layer=[1],
    num_channels=[channels],
    stride=[1],
    backbone_output_ids=[0],
)
volume_encoder = dict(
    type='CustomResNet3D',
    numC_input=channels * 2,
    num_layer=[1, 2, 4],
    num_channels=[channels, channels * 2, channels * 4],
    stride=[1, 2, 2],
    backbone_output_ids=[0, 1, 2],
)
volume_neck = dict(type='LSSFPN3D', in_channels=channels * 7, out_channels=channels)
