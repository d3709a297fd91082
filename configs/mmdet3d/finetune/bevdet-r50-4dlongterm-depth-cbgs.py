# Eight past frames: published with NDS 51.94. 8 GPUs of 8 samples.
_base_ = './bevdet-r50-4d-depth-cbgs.py'
num_adj = 8
multi_adj_frame_id_cfg = (1, num_adj + 1, 1)
model = dict(num_adj=num_adj, img_bev_encoder_backbone=dict(numC_input=80 * (num_adj + 1)))
load = dict(_base_.load, num_frames=num_adj + 1)
train_pipeline = [load, _base_.image_aug, *_base_.depth, *_base_.annotate, _base_.pack]
test_pipeline = [load, dict(_base_.image_aug, training=False), *_base_.finish_test]
dataset = dict(multi_adj_frame_id_cfg=multi_adj_frame_id_cfg)
train_dataloader = dict(dataset=dict(dataset=dict(dataset, pipeline=train_pipeline)))
val_dataloader = dict(dataset=dict(dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
