"""Every detector at full size on torch's ``meta`` device, where nothing is computed: an operation with a constant of the host, a value that
is read back, a shape that hangs on data raise there, so a training step that passes clings to no device.

The assignment of boxes to cells reads values, in the host's code too; the heads' losses start from made-up targets of its shapes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from torch import Tensor

pytest.importorskip('mmdet3d')
from mmdet.models.losses import l1_loss
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData, PixelData

import geomim.bevdet  # noqa: F401 - registers the detectors

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'mmdet3d'
FULL_SIZE = sorted(
    path
    for folder in ('finetune', 'occupancy', 'map_segmentation')
    for path in (CONFIGS / folder).glob('*.py')
    if 'synthetic' not in path.name
)
META = torch.device('meta')


def without_weights(config: Any) -> Any:
    """The configuration without files to start from."""
    if isinstance(config, dict):
        return type(config)(
            {key: None if key == 'init_cfg' else without_weights(value) for key, value in config.items()}
        )
    return [without_weights(entry) for entry in config] if isinstance(config, (list, tuple)) else config


def build(config: Any) -> torch.nn.Module:
    """Built on the host and moved, so that a constant which is no buffer stays behind and shows."""
    return MODELS.build({**without_weights(config.model), 'data_preprocessor': None}).to(META)


def batch_of(model: Any, config: Any) -> Dict[str, Tensor]:
    """Inputs of one sample at the size of the configuration's pipeline."""
    data = config.data_config
    (height, width), cams, frames = data['input_size'], len(data['cams']), model.num_frames
    shape = (1, frames, cams)
    return dict(
        images=torch.empty(*shape, 3, height, width, device=META),
        cam2ego=torch.empty(*shape, 4, 4, device=META),
        ego2global=torch.empty(*shape, 4, 4, device=META),
        intrinsics=torch.empty(*shape, 3, 3, device=META),
        img_aug=torch.empty(*shape, 4, 4, device=META),
        bev_aug=torch.empty(1, 4, 4, device=META),
        depth_map=torch.empty(1, cams, height, width, device=META),
    )


def box_targets(head: Any) -> Any:
    """``get_targets`` of a head for one sample: lists over tasks of heat maps, boxes, indices, masks, each with the sample in front."""
    config = head.target_config
    (cells_x, cells_y), slots = config.shape, config.max_objects
    tasks = config.classes_per_task
    return lambda _: (
        [torch.empty(1, count, cells_y, cells_x, device=META) for count in tasks],
        [torch.empty(1, slots, config.channels, device=META) for _ in tasks],
        [torch.empty(1, slots, dtype=torch.long, device=META) for _ in tasks],
        [torch.empty(1, slots, dtype=torch.uint8, device=META) for _ in tasks],
    )


def samples_of(model: Any) -> List[Any]:
    """One sample with what the heads' losses read."""
    sample = Det3DDataSample(gt_instances_3d=InstanceData())
    if hasattr(model, 'map_head'):
        spec = model.map_head.spec
        labels = torch.empty(len(spec.classes), spec.grid.num_y, spec.grid.num_x, device=META)
        sample.gt_bev_map = PixelData(metainfo=spec.as_meta(), data=labels)
    if hasattr(model, 'voxels'):
        voxels = tuple(model.voxels)
        sample.gt_occupancy = BaseDataElement(
            semantics=torch.empty(voxels, dtype=torch.uint8, device=META),
            mask_camera=torch.empty(voxels, dtype=torch.bool, device=META),
        )
    return [sample]


@pytest.mark.parametrize('path', FULL_SIZE, ids=lambda path: path.stem)
def test_a_training_step_clings_to_no_device(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.fromfile(path, import_custom_modules=False)
    model = build(config).train()
    if hasattr(model, 'pts_bbox_head'):
        monkeypatch.setattr(model.pts_bbox_head, 'get_targets', box_targets(model.pts_bbox_head))
        # mmdet's L1Loss asks whether any weight is above 0; the function behind it does not
        monkeypatch.setattr(model.pts_bbox_head.loss_bbox, 'forward', partial(l1_loss, reduction='mean'))
    losses = model.loss(batch_of(model, config), samples_of(model))
    assert losses
    assert all(value.device == META and value.shape == () for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    untouched = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert untouched == set(), untouched
    with torch.no_grad():
        outputs = model.eval()._forward(batch_of(model, config))
    assert outputs is not None
