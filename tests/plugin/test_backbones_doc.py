"""The block of docs/backbones.md for forks on mmcv 1.x: it imports, builds beside a neck of the channels that it names, and loads."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from mmcv import Config
from mmdet3d.models import build_backbone, build_neck

from geomim import SwinConfig, SwinEncoder
from geomim.checkpoints.loading import export_encoder, save_atomically

DEPTHS = (1, 1, 2, 1)


def test_the_forks_block_builds_and_misses_nothing(repository: Path, tmp_path: Path) -> None:
    text = (repository / 'docs' / 'backbones.md').read_text(encoding='utf-8')
    block = re.search(r'^## Forks on mmcv 1\.x\n.*?```python\n(.*?)```', text, re.DOTALL | re.MULTILINE).group(1)
    torch.manual_seed(3)
    student = SwinEncoder(SwinConfig(depths=DEPTHS))
    encoder = tmp_path / 'encoder_bevdet.pth'
    save_atomically(export_encoder({f'encoder.{k}': v for k, v in student.state_dict().items()}, 'bevdet'), encoder)
    path = tmp_path / 'block.py'
    path.write_text(block)
    config = Config.fromfile(str(path))
    config.model.img_backbone.pop('_delete_')
    assert config.model.img_backbone.init_cfg.checkpoint == 'encoder_bevdet.pth'
    config.model.img_backbone.init_cfg.checkpoint = str(encoder)
    backbone = build_backbone(dict(config.model.img_backbone, depths=DEPTHS))
    report = backbone.load_pretrained()
    assert len(report.taken) == len(student.state_dict())
    assert report.missing == report.unused == report.resized == ()
    neck = build_neck(dict(type='FPN', in_channels=config.model.img_neck.in_channels, out_channels=16, num_outs=2))
    with torch.no_grad():
        maps = neck(backbone(torch.zeros(1, 3, 64, 96)))
    assert [tuple(value.shape[2:]) for value in maps] == [(4, 6), (2, 3)]
