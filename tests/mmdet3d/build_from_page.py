"""Builds detectors from configurations, loads their backbones as the host does, and says what came of it.

python build_from_page.py ENCODER CONFIG...: a JSON line a configuration. Only the Swin is smaller: it has fewer blocks than Swin-B.
Projects come from the checkout in GEOMIM_MMDET3D_CHECKOUT, behind the installed packages, of which a checkout has one too.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope

DEPTHS = (1, 1, 2, 1)
IMAGE_SIZE = (96, 160)
# compiled for CUDA only; nothing here calls them
COMPILED = {
    'projects.BEVFusion.bevfusion.ops.bev_pool.bev_pool_ext': (),
    'projects.BEVFusion.bevfusion.ops.voxel.voxel_layer': (
        'dynamic_voxelize',
        'hard_voxelize',
        'dynamic_point_to_voxel_backward',
        'dynamic_point_to_voxel_forward',
    ),
}


class Lines(logging.Handler):
    """Keeps the messages that start with a name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.start, self.lines = f'{name}: ', []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self.start):
            self.lines.append(record.getMessage())

    def only_line(self) -> str:
        assert len(self.lines) == 1, self.lines
        return self.lines[0]


def stand_in(names: Dict[str, Any]) -> None:
    for name, functions in names.items():
        module = ModuleType(name)
        for function in functions:
            setattr(module, function, None)
        sys.modules[name] = module


def build(path: str, encoder: str) -> Dict[str, Any]:
    text = Path(path).read_text()
    stand_in(COMPILED if 'BEVFusion' in text else {})
    config = Config.fromfile(path)
    key = 'img_backbone' if 'img_backbone' in config.model else 'backbone'
    backbone_config = config.model[key]
    assert backbone_config.init_cfg.checkpoint == 'encoder_bevdet.pth'
    backbone_config.update(depths=DEPTHS, init_cfg=dict(type='Pretrained', checkpoint=encoder))
    for part in config.model.values():  # checkpoints of others: not here
        if isinstance(part, dict) and part is not backbone_config:
            part.pop('init_cfg', None)
    init_default_scope(config.get('default_scope', 'mmdet3d'))
    model = MODELS.build(without_head(config.model) if 'DETR3D' in text else config.model)
    log = Lines('GeoMIMSwin')
    MMLogger.get_current_instance().addHandler(log)
    model.init_weights()
    backbone = getattr(model.eval(), key)  # batches of one have no statistics
    maps = backbone(torch.zeros(1, 3, *IMAGE_SIZE))
    return dict(
        log=log.only_line(),
        own={name: float(value.double().sum()) for name, value in backbone.state_dict().items()},
        maps=[list(value.shape[1:]) for value in maps],
        neck=run_neck(model, maps),
        preprocessor=normalisation(model.data_preprocessor),
    )


def without_head(model: Any) -> Any:
    """Images only: the head of mmdet3d 1.4's DETR3D was written for an older mmdet and does not build, whatever the backbone."""
    return {name: part for name, part in model.items() if name not in ('pts_bbox_head', 'train_cfg', 'test_cfg')}


def run_neck(model: torch.nn.Module, maps: Any) -> bool:
    """Whether what follows the backbone takes its maps."""
    neck = getattr(model, 'img_neck', None) or getattr(model, 'neck', None)
    if neck is not None:
        return len(neck(tuple(maps))) > 0
    return len(model.decode_head(maps)) == len(model.auxiliary_head(maps)) == 1


def normalisation(preprocessor: Any) -> List[Any]:
    mean, std = (getattr(preprocessor, name).flatten().tolist() for name in ('mean', 'std'))
    names = ('bgr_to_rgb', '_channel_conversion', 'channel_conversion')  # ours, mmengine's, mmseg's
    swaps = next(getattr(preprocessor, name) for name in names if hasattr(preprocessor, name))
    return [mean, std, swaps]


def main() -> None:
    encoder, *paths = sys.argv[1:]
    sys.path += [entry for entry in (os.environ.get('GEOMIM_MMDET3D_CHECKOUT'),) if entry]
    for path in paths:
        sys.stdout.write('RESULT ' + json.dumps(dict(path=path, **build(path, encoder))) + '\n')


if __name__ == '__main__':
    main()
