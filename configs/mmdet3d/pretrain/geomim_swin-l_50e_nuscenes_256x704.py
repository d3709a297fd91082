_base_ = './geomim_swin-b_50e_nuscenes_256x704.py'
model = dict(init_from='checkpoints/mixmae_large_600ep.pth', student=dict(encoder=dict(size='large')))
