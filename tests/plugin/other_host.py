"""The mmengine side of the exchange of checkpoints, run by the tests with the other environment's Python.

python other_host.py write STUDENT.json WORK_DIR     one iteration by mmengine's Runner, whose checkpoint is WORK_DIR/iter_1.pth
python other_host.py read STUDENT.json CHECKPOINT OUT    what mmdet3d's adapter takes from CHECKPOINT, into OUT
"""

from __future__ import annotations

import json
import sys
from typing import Any, Dict

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor

import geomim.mmdet3d  # noqa: F401
from geomim.checkpoints.loading import load_pretrained


def pretrainer(student: Dict[str, Any], **options: Any) -> BaseModel:
    """The adapter's model; its teacher makes no maps here."""
    return MODELS.build(dict(type='GeoMIMPretrainer', student=student, teacher=dict(type='NoTeacher'), **options))


@MODELS.register_module()
class NoTeacher(torch.nn.Module):
    pass


class Trained(BaseModel):
    """A loss that reaches the encoder of a real pretrainer."""

    def __init__(self, student: Dict[str, Any]) -> None:
        super().__init__()
        self.student = pretrainer(student).student

    def forward(self, inputs: Tensor, mode: str = 'loss') -> Dict[str, Tensor]:
        return dict(loss=sum(map_.square().mean() for map_ in self.student.encoder(torch.stack(inputs))))


def write(student: Dict[str, Any], work_dir: str) -> None:
    torch.manual_seed(5)
    data = [dict(inputs=torch.randn(3, 64, 96)) for _ in range(2)]
    Runner(
        model=Trained(student),
        work_dir=work_dir,
        train_dataloader=dict(
            dataset=data,
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler'),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        param_scheduler=dict(type='LinearLR', start_factor=0.5, by_epoch=False),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)),
    ).train()


def read(student: Dict[str, Any], checkpoint: str, out: str) -> None:
    torch.manual_seed(9)
    model = pretrainer(student, init_from=checkpoint)
    model.init_weights()
    sizes = {**student['encoder'], 'init_cfg': dict(type='Pretrained', checkpoint=checkpoint)}
    swin = MODELS.build(dict(type='GeoMIMSwin', **sizes))
    swin.init_weights()
    report = load_pretrained(model.student, checkpoint)
    torch.save(
        dict(
            student=dict(model.student.state_dict()),
            names=sorted(model.state_dict()),
            swin=dict(swin.state_dict()),
            unused=list(report.unused),
        ),
        out,
    )


if __name__ == '__main__':
    with open(sys.argv[2]) as file:
        config = json.load(file)
    (write if sys.argv[1] == 'write' else read)(config, *sys.argv[3:])
