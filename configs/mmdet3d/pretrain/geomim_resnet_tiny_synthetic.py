# A ResNet of 2.8 million parameters instead of the Swin, pretrained in minutes: the kind that learns soonest from few frames.
_base_ = './geomim_tiny_synthetic.py'
model = dict(
    student=dict(
        encoder=dict(
            _delete_=True,
            type='mmdet.ResNet',
            depth=18,
            base_channels=32,
            stem_channels=32,
            out_indices=(2, 3),
            norm_eval=False,
        )
    )
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
