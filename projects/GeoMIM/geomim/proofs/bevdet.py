"""Compare a detector with a reference file: BEV features, depth, encoded BEV, raw outputs, boxes or occupancy, losses."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from .. import bevdet  # noqa: F401 - registers every part
from ..bevdet.detectors import BEVDet
from ..bevdet.occupancy.detector import BEVStereo4DOCC
from ..bevdet.view.frames import SurroundFrames
from ..method.lift_splat import BEVFeatures
from .bevdet_configs import translate_model
from .bevdet_head import head_rows
from .reference_file import ReferenceFile, Row, compare_all

_INPUTS = ('imgs', 'sensor2egos', 'ego2globals', 'intrins', 'post_rots', 'post_trans', 'bda')


def build_detector(file: ReferenceFile) -> BEVDet:
    """The file's detector with its weights, in evaluation mode.

    Raises:
        ValueError: a detector that is not supported, or weights that do not fit.
    """
    model = MODELS.build(translate_model(file.config['model']))
    try:
        model.load_state_dict(file.group('param/'), strict=True)
    except RuntimeError as error:
        raise ValueError(f'{file.path}: the weights do not fit the configuration: {error}') from error
    model.eval()
    return model


def frames_of(file: ReferenceFile, num_frames: int) -> SurroundFrames:
    """The file's inputs."""
    inputs = file.group('in/')
    return SurroundFrames.from_bevdet([inputs[name] for name in _INPUTS], num_frames)


def verify_bevdet(file: ReferenceFile) -> List[Row]:
    """Rows for every output tensor of a ``bevdet`` reference file."""
    model = build_detector(file)
    inputs = file.group('in/')
    batch: Dict[str, Tensor] = dict(vars(frames_of(file, model.num_frames)))
    if 'gt_depth' in inputs:
        batch['depth_map'] = inputs['gt_depth']
    calls: List[BEVFeatures] = []
    handle = model.img_view_transformer.register_forward_hook(_recorder(calls))
    with torch.no_grad():
        features = model.extract_feat(batch)
        losses = model.depth_losses(batch, features.depth) if 'depth_map' in batch else {}
    handle.remove()
    ours = {f'bev_{index}': call.bev for index, call in enumerate(calls)}
    ours.update({f'depth_{index}': call.depth for index, call in enumerate(calls)})
    ours.update({f'loss/{name}': value for name, value in losses.items()})
    ours['bev_encoded'], ours['view_transform_calls'] = features.bev, torch.tensor(len(calls))
    rows: List[Row] = []
    if isinstance(model, BEVStereo4DOCC):
        ours.update(occupancy_outputs(model, features.bev, inputs))
    else:
        rows = head_rows(model.pts_bbox_head, features.bev, file)
    checked = {row.name for row in rows}
    others = {name: value for name, value in file.group('out/').items() if f'out/{name}' not in checked}
    return compare_all(ours, others, 'out/') + rows


def occupancy_outputs(model: BEVStereo4DOCC, volume: Tensor, inputs: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """The likeliest class of each voxel and the loss, of an encoded volume (1, C, Z, Y, X) and ``in/`` of the file."""
    with torch.no_grad():
        logits = model.occupancy_logits(volume)
        loss = model.occupancy_loss(logits, inputs['voxel_semantics'], inputs['mask_camera'])
    return {'occ_argmax': logits.argmax(dim=-1).squeeze(0), 'loss/loss_occ': loss}


def _recorder(calls: List[BEVFeatures]) -> Callable[[nn.Module, Any, BEVFeatures], None]:
    def record(module: nn.Module, arguments: Any, output: BEVFeatures) -> None:
        calls.append(output)

    return record
