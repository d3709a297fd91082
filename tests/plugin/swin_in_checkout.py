"""Runs a BEVDet checkout's stereo detector with its own Swin and with ours, in a process of its own; prints the largest
differences, each divided by the largest value, as JSON. ``control`` is that of a backbone with one table changed.

python in_checkout.py swin_in_checkout.py CONFIG ENCODER HEIGHT WIDTH    (in the checkout's root, which is on PYTHONPATH)
"""

from __future__ import annotations

import copy
import json
import sys
from typing import Any, Dict, List, Sequence, Tuple

import torch
from torch import Tensor


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    assert len(ours) == len(theirs)
    assert all(a.shape == b.shape for a, b in zip(ours, theirs))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs))


def tensors(value: Any) -> List[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    children = value.values() if isinstance(value, dict) else value
    return [tensor for child in children for tensor in tensors(child)]


def backbones(entry: Dict[str, Any], encoder: str, stereo: bool) -> Tuple[Any, Any]:
    """Ours and theirs, from the checkout's entry and one checkpoint."""
    from mmdet3d.models import build_backbone

    entry = dict(entry, return_stereo_feat=stereo, init_cfg=dict(type='Pretrained', checkpoint=encoder))
    pair = build_backbone(dict(entry, type='GeoMIMSwin')), build_backbone(entry)
    for backbone in pair:
        backbone.init_weights()
        backbone.eval()
    return pair


def stereo_inputs(size: Tuple[int, int]) -> List[Tensor]:
    """``img_inputs`` of six cameras that look outward, at three moments."""
    cams, frames = 6, 3
    height, width = size
    turn = torch.arange(cams) * (2 * 3.14159265 / cams)
    ahead, right = torch.stack([turn.cos(), turn.sin()]), torch.stack([turn.sin(), -turn.cos()])
    sensor2ego = torch.eye(4).repeat(1, frames * cams, 1, 1)
    for index in range(frames * cams):
        cam = index % cams
        axes = torch.zeros(3, 3)
        axes[:2, 0], axes[2, 1], axes[:2, 2] = right[:, cam], -1.0, ahead[:, cam]
        sensor2ego[0, index, :3, :3] = axes
        sensor2ego[0, index, :3, 3] = torch.tensor([0.5, 0.1 * cam, 1.5])
    ego2global = torch.eye(4).repeat(1, frames * cams, 1, 1)
    ego2global[0, :, 0, 3] = -0.7 * (torch.arange(frames * cams) // cams)
    intrinsics = torch.tensor([[0.7 * width, 0, width / 2], [0, 0.7 * width, height / 2], [0, 0, 1]])
    images = torch.randn(1, cams * frames, 3, height, width)
    rotation = torch.eye(3).repeat(1, frames * cams, 1, 1)
    shift = torch.zeros(1, frames * cams, 3)
    return [
        images,
        sensor2ego,
        ego2global,
        intrinsics.repeat(1, frames * cams, 1, 1),
        rotation,
        shift,
        torch.eye(3)[None],
    ]


def detector(config: Any, backbone: Dict[str, Any], size: Tuple[int, int]) -> Any:
    from mmdet3d.models import build_model

    model = copy.deepcopy(config.model)
    model.img_view_transformer.input_size = size
    model.img_backbone = dict(backbone, init_cfg=None)
    torch.manual_seed(0)
    return build_model(model).eval()


def main() -> None:
    path, encoder, size = sys.argv[1], sys.argv[2], (int(sys.argv[3]), int(sys.argv[4]))
    from mmcv import Config

    config = Config.fromfile(path)
    import geomim.plugin  # noqa: F401

    entry = dict(config.model.img_backbone)
    found: Dict[str, Any] = {'backbone': {}, 'detectors': []}
    torch.manual_seed(3)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        for stereo in (False, True):
            ours, theirs = backbones(entry, encoder, stereo)
            outputs, expected = ours(images), theirs(images)
            assert len(outputs) == len(expected) == 2 + stereo
            found['backbone'][f'stereo={stereo}'] = [difference([a], [b]) for a, b in zip(outputs, expected)]
            ours.stages[0].blocks[0].attn.w_msa.relative_position_bias_table.mul_(2)
            found['control'] = difference(ours(images), expected)
        whole = detector(config, entry, size)
        whole.img_backbone.load_state_dict(theirs.state_dict())
        weights = whole.state_dict()
        inputs = stereo_inputs(size)
        results = []
        for kind in (dict(entry, type='GeoMIMSwin'), entry):
            model = detector(config, kind, size)
            model.load_state_dict(weights)
            found['detectors'].append([type(model).__name__, type(model.img_backbone).__module__])
            feats, depth = model.extract_img_feat(inputs, None)
            results.append(dict(feats=feats, depth=depth, heads=model.pts_bbox_head(feats)))
        for name in ('feats', 'depth', 'heads'):
            found[name] = difference(*(tensors(result[name]) for result in results))
    sys.stdout.write('\n' + json.dumps(found) + '\n')


if __name__ == '__main__':
    main()
