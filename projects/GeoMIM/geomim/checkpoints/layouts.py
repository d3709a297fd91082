"""Names of the same weights in different layouts, as data, and the functions that apply them in both directions (METHOD 6).

Layouts:
    geomim     our pretraining model (``encoder.*``, ``fusion.*``, ``decoder.*``, ``view_transform.*``, ``head.*``)
    reference  the published pretraining checkpoints (``encoders.camera.{backbone,vtransform}.*``, ``prediction_head.*``)
    mixmae     MixMAE ImageNet checkpoints (``layers.*``)
    bevdet     the encoder alone under bare Swin names, as BEVDet and its GeoMIM fork load it
    mmdet      the encoder alone under ``backbone.*``, with a flat position embedding, as mmdetection's Swin loads it
    backbone   an encoder that is no Swin, alone, under the names of its own class
"""

from __future__ import annotations

import re
from typing import Dict, Iterable, Optional, Tuple

import torch
from torch import Tensor

from ..method.lift_splat import ViewTransformConfig
from ..method.windows import relative_position_index
from .position_bias import window_of_table

State = Dict[str, Tensor]
LAYOUTS = ('geomim', 'reference', 'mixmae', 'bevdet', 'mmdet')
ENCODER_LAYOUTS = ('bevdet', 'mmdet')

# ours -> reference, by prefix; the first match counts.
_BACKBONE = 'encoders.camera.backbone.'
_VTRANSFORM = 'encoders.camera.vtransform.'
PRETRAINING_PREFIXES: Tuple[Tuple[str, str], ...] = (
    ('encoder.', _BACKBONE),
    ('fusion.reduce.', _BACKBONE + 'up_p4_fc.'),
    ('fusion.smooth.', _BACKBONE + 'up_smooth_p4.'),
    ('fusion.norm.', _BACKBONE + 'final_norm.'),
    ('fusion.embed.', _BACKBONE + 'decoder_embed_new.'),
    ('decoder.mask_token', _BACKBONE + 'mask_token'),
    ('decoder.pos_embed', _BACKBONE + 'decoder_pos_embed'),
    ('decoder.trunk_norm.', _BACKBONE + 'decoder_norm.'),
    ('decoder.trunk.', _BACKBONE + 'decoder_blocks.'),
    ('decoder.geometry_norm.', _BACKBONE + 'decoder_norm_pix.'),
    ('decoder.geometry.', _BACKBONE + 'decoder_blocks_pix.'),
    ('decoder.gate.norm.', _BACKBONE + 'cam_pose.bn.'),
    ('decoder.gate.mlp.', _BACKBONE + 'cam_pose.depth_mlp.'),
    ('decoder.gate.reduce.', _BACKBONE + 'cam_pose.depth_se.conv_reduce.'),
    ('decoder.gate.expand.', _BACKBONE + 'cam_pose.depth_se.conv_expand.'),
    ('view_transform.depth_net.', _VTRANSFORM + 'depthnet.'),
    ('view_transform.downsample.', _VTRANSFORM + 'downsample.'),
    ('head.', 'prediction_head.'),
)
_CROSS_OURS = ('decoder.cross_view.', 'decoder.geometry_cross_view.')
_CROSS_REFERENCE = _BACKBONE + 'decoder_cross_module.'

# MixMAE -> ours, by pattern.
MIXMAE_PATTERNS: Tuple[Tuple[str, str], ...] = (
    (r'^patch_embed\.proj\.', 'encoder.patch_embed.projection.'),
    (r'^patch_embed\.norm\.', 'encoder.patch_embed.norm.'),
    (r'^absolute_pos_embed$', 'encoder.absolute_pos_embed'),
    (r'^layers\.(\d+)\.blocks\.(\d+)\.attn\.', r'encoder.stages.\1.blocks.\2.attn.w_msa.'),
    (r'^layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc1\.', r'encoder.stages.\1.blocks.\2.ffn.layers.0.0.'),
    (r'^layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.', r'encoder.stages.\1.blocks.\2.ffn.layers.1.'),
    (r'^layers\.(\d+)\.', r'encoder.stages.\1.'),
    (r'^mask_token$', 'decoder.mask_token'),
    (r'^decoder_pos_embed$', 'decoder.pos_embed'),
    (r'^decoder_blocks\.', 'decoder.trunk.'),
    (r'^decoder_norm\.', 'decoder.trunk_norm.'),
)
MIXMAE_NOT_TAKEN = ('norm.', 'head.', 'decoder_embed.', 'decoder_pred.')
_CONSTANTS = ('relative_position_index', 'attn_mask', 'num_batches_tracked')
# Our own constants: in no state dict of torch, but mmcv 1.x's runner stores every buffer.
_OUR_CONSTANTS = (
    'relative_position_index',
    *(f'view_transform.{name}' for name in ('pixels', 'depths', 'lower', 'step')),
)
_GEOMETRY_CONSTANTS = tuple(_VTRANSFORM + name for name in ('dx', 'bx', 'nx', 'frustum'))


def detect_layout(names: Iterable[str]) -> Optional[str]:
    """The layout that a checkpoint's names belong to, or None."""
    names = set(names)
    marks = (
        ('reference', _BACKBONE + 'patch_embed.projection.weight'),
        ('geomim', 'encoder.patch_embed.projection.weight'),
        ('geomim', 'student.encoder.patch_embed.projection.weight'),
        ('geomim', 'decoder.mask_token'),
        ('geomim', 'student.decoder.mask_token'),
        ('mixmae', 'layers.0.blocks.0.attn.qkv.weight'),
        ('mmdet', 'backbone.patch_embed.projection.weight'),
        ('bevdet', 'img_backbone.patch_embed.projection.weight'),
        ('bevdet', 'patch_embed.projection.weight'),
    )
    return next((layout for layout, mark in marks if mark in names), None)


def is_derived(name: str) -> bool:
    """Whether a stored tensor is a constant that follows from the sizes (window indices, attention masks, grid, frustum)."""
    return name.endswith((*_CONSTANTS, *_OUR_CONSTANTS)) or name in _GEOMETRY_CONSTANTS


def strip_prefix(state: State, prefix: str) -> State:
    """The tensors under ``prefix``, without it; ``state`` itself if there are none."""
    under = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    return under or dict(state)


def _rename(name: str, pairs: Iterable[Tuple[str, str]]) -> Optional[str]:
    return next((new + name[len(old) :] for old, new in pairs if name.startswith(old)), None)


def _cross_view_counts(state: State) -> int:
    """Number of cross-view blocks of the trunk."""
    pattern = re.compile(re.escape(_CROSS_OURS[0]) + r'(\d+)\.')
    return 1 + max((int(match.group(1)) for match in map(pattern.match, state) if match), default=-1)


def from_reference(state: State, trunk_cross_views: int = 2) -> State:
    """Reference names -> ours. Derived constants (indices, frustum) and the LiDAR encoder are left out; unknown names keep theirs.

    The reference counts all cross-view blocks in one list: the first ``trunk_cross_views`` are the trunk's.
    """
    pairs = [(theirs, ours) for ours, theirs in PRETRAINING_PREFIXES if ours != 'encoder.']
    pairs.append((_BACKBONE, 'encoder.'))
    renamed: State = {}
    for name, value in state.items():
        if (
            name.endswith('relative_position_index')
            or name in _GEOMETRY_CONSTANTS
            or name.startswith('encoders.lidar.')
        ):
            continue
        if name.startswith(_CROSS_REFERENCE):
            number, rest = name[len(_CROSS_REFERENCE) :].split('.', 1)
            branch, index = (
                (0, int(number)) if int(number) < trunk_cross_views else (1, int(number) - trunk_cross_views)
            )
            renamed[f'{_CROSS_OURS[branch]}{index}.{rest}'] = value
        else:
            renamed[_rename(name, pairs) or name] = value
    return renamed


def to_reference(state: State, view: Optional[ViewTransformConfig] = None) -> State:
    """Our names -> the reference's, with the constants that its checkpoints hold (position indices, grid, frustum).

    Raises:
        ValueError: a ``view`` whose depth bins do not fit the weights.
    """
    view = view or ViewTransformConfig()
    offset = _cross_view_counts(state)
    renamed: State = {}
    for name, value in state.items():
        if name.startswith(_CROSS_OURS[1]):
            number, rest = name[len(_CROSS_OURS[1]) :].split('.', 1)
            target = f'{_CROSS_REFERENCE}{int(number) + offset}.{rest}'
        elif name.startswith(_CROSS_OURS[0]):
            target = _CROSS_REFERENCE + name[len(_CROSS_OURS[0]) :]
        else:
            target = _rename(name, PRETRAINING_PREFIXES) or name
        renamed[target] = value
        if target.endswith('relative_position_bias_table'):
            index = relative_position_index(window_of_table(value.shape[0]))
            renamed[target.replace('bias_table', 'index')] = index
    renamed.update(_geometry_constants(state, view))
    return renamed


def _geometry_constants(state: State, view: ViewTransformConfig) -> State:
    last = state.get('view_transform.depth_net.6.weight')
    expected = view.depth_bins.count + view.channels
    if last is not None and last.shape[0] != expected:
        raise ValueError(
            f'the depth network ends in {last.shape[0]} channels, but {view.depth_bins.count} depth bins and {view.channels} context '
            f'channels make {expected}: give the view transformation that the weights were trained with'
        )
    bounds = torch.tensor([view.grid.x_bound, view.grid.y_bound, view.grid.z_bound])
    (height, width), (rows, cols) = view.image_size, view.feature_size
    depths = view.depth_bins.values()
    frustum = torch.empty(len(depths), rows, cols, 3)
    frustum[..., 0] = torch.linspace(0, width - 1, cols)
    frustum[..., 1] = torch.linspace(0, height - 1, rows)[:, None]
    frustum[..., 2] = depths[:, None, None]
    cells = torch.tensor([view.grid.num_x, view.grid.num_y, view.grid.num_z])
    values = (bounds[:, 2], bounds[:, 0] + bounds[:, 2] / 2, cells, frustum)
    return dict(zip(_GEOMETRY_CONSTANTS, values))


def _unfold_order(weight: Tensor) -> Tensor:
    """Last axis (4 * C) of patch merging: corner-major (top-left, bottom-left, top-right, bottom-right) -> ``nn.Unfold`` order."""
    corners = weight.unflatten(-1, (4, -1)) if hasattr(weight, 'unflatten') else weight.view(*weight.shape[:-1], 4, -1)
    return corners[..., [0, 2, 1, 3], :].transpose(-1, -2).reshape(weight.shape)


def _square_map(flat: Tensor) -> Tensor:
    """(1, L, C) -> (1, C, sqrt(L), sqrt(L))."""
    side = round(flat.shape[1] ** 0.5)
    if flat.dim() != 3 or side * side != flat.shape[1]:
        raise ValueError(f'a MixMAE position embedding must be (1, side * side, C), got {tuple(flat.shape)}')
    return flat.view(1, side, side, flat.shape[2]).permute(0, 3, 1, 2).contiguous()


def from_mixmae(state: State) -> State:
    """MixMAE names and orders -> ours. Its final norm, decoder embedding and pixel prediction have no place here and are dropped."""
    renamed: State = {}
    for name, value in state.items():
        if name.startswith(MIXMAE_NOT_TAKEN) or name.endswith(_CONSTANTS):
            continue
        target = name
        for pattern, replacement in MIXMAE_PATTERNS:
            target, hits = re.subn(pattern, replacement, name)
            if hits:
                break
        if '.downsample.' in target:
            value = _unfold_order(value)
        elif target in ('encoder.absolute_pos_embed', 'decoder.pos_embed'):
            value = _square_map(value)
        renamed[target] = value
    return renamed


def from_encoder(state: State) -> State:
    """Encoder names of any host (bare, ``backbone.``, ``img_backbone.``) -> ours (``encoder.*``); other names are dropped."""
    for prefix in ('img_backbone.', 'backbone.'):
        state = strip_prefix(state, prefix)
    renamed = {}
    for name, value in state.items():
        if not re.match(r'(patch_embed|stages|norm\d|absolute_pos_embed)', name) or name.endswith(
            'relative_position_index'
        ):
            continue
        if name == 'absolute_pos_embed' and value.dim() == 3:
            value = _square_map(value)
        renamed['encoder.' + name] = value
    return renamed


def to_geomim(state: State, layout: str, trunk_cross_views: int = 2) -> State:
    """Any layout -> our names; ``trunk_cross_views`` as in :func:`from_reference`."""
    if layout == 'geomim':
        stripped = strip_prefix(state, 'student.')
        return {name: value for name, value in stripped.items() if not name.endswith(_OUR_CONSTANTS)}
    if layout == 'reference':
        return from_reference(state, trunk_cross_views)
    if layout == 'mixmae':
        return from_mixmae(state)
    if layout in ('bevdet', 'mmdet'):
        return from_encoder(state)
    raise ValueError(f'unknown checkpoint layout {layout!r}; known are {", ".join(LAYOUTS)}')


def export_encoder(state: State, layout: str = 'bevdet') -> State:
    """The encoder of our pretraining weights, for finetuning, under the names of a host: a Swin ``'bevdet'`` or ``'mmdet'``, any
    other as ``'backbone'``.

    Raises:
        ValueError: no encoder in ``state``, or a layout that is not that of the encoder.
    """
    encoder = {
        name[len('encoder.') :]: value
        for name, value in strip_prefix(state, 'student.').items()
        if name.startswith('encoder.')
    }
    if not encoder:
        raise ValueError(f'no encoder.* tensors to export; the names start with {sorted(state)[:5]}')
    if any(name.startswith('backbone.') for name in encoder):
        own = strip_prefix(encoder, 'backbone.')  # without what masking adds
        if layout != 'backbone':
            raise ValueError(f"the encoder is no Swin, and can be exported as 'backbone' alone, not {layout!r}")
        return own
    for name in [name for name in encoder if name.endswith('relative_position_bias_table')]:
        index = relative_position_index(window_of_table(encoder[name].shape[0]))
        encoder[name.replace('bias_table', 'index')] = index
    if layout == 'bevdet':
        return encoder
    if layout == 'mmdet':
        position = encoder['absolute_pos_embed']
        encoder['absolute_pos_embed'] = position.flatten(2).transpose(1, 2).contiguous()
        return {'backbone.' + name: value for name, value in encoder.items()}
    raise ValueError(f"an encoder can be exported as 'bevdet' or 'mmdet', not {layout!r}")


def from_geomim(state: State, layout: str, view: Optional[ViewTransformConfig] = None) -> State:
    """Our names -> ``'geomim'``, ``'reference'``, ``'bevdet'``, ``'mmdet'`` or ``'backbone'``."""
    if layout == 'geomim':
        return dict(state)
    if layout == 'reference':
        return to_reference(state, view)
    return export_encoder(state, layout)
