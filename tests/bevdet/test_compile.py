"""torch.compile takes every detector's forward as one graph."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

import pytest
import torch

pytest.importorskip('mmdet3d')

from mmdet3d.registry import MODELS
from mmengine.config import Config
from torch import Tensor

from .test_meta_device import CONFIGS, batch_of, without_weights

TINY = sorted(
    path
    for folder in ('finetune', 'occupancy', 'map_segmentation')
    for path in (CONFIGS / folder).glob('*tiny_synthetic.py')
)
pytestmark = pytest.mark.skipif(
    not hasattr(torch.library, 'custom_op'), reason='torch < 2.4 has no operators of a package'
)


def on_cpu(batch: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The same shapes with numbers: one camera after the other at one place, images of noise."""
    generator = torch.Generator().manual_seed(0)
    filled = {name: torch.rand(value.shape, generator=generator) for name, value in batch.items()}
    for name in ('cam2ego', 'ego2global', 'img_aug', 'bev_aug'):
        filled[name][:] = torch.eye(4)
    filled['cam2ego'][..., :3, :3] = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    filled['intrinsics'][:] = torch.tensor([[200.0, 0.0, 176.0], [0.0, 200.0, 64.0], [0.0, 0.0, 1.0]])
    return filled


@pytest.mark.parametrize('path', TINY, ids=lambda path: path.stem)
def test_no_detector_breaks_its_graph(path: Path) -> None:
    config = Config.fromfile(path, import_custom_modules=False)
    model = MODELS.build({**without_weights(config.model), 'data_preprocessor': None}).train()
    inputs = on_cpu(batch_of(model, config))
    torch._dynamo.reset()
    compiled = torch.compile(model._forward, backend='eager', fullgraph=True)
    assert compiled(inputs) is not None
