# BEVDet4D, published with NDS 44.85. 8 GPUs of 8 samples.
_base_ = [
    '../_base_/bevdet/bevdet4d_r50.py',
    '../_base_/bevdet/schedule_20e.py',
]
