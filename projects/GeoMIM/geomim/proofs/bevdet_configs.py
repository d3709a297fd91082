"""Model configurations in BEVDet's vocabulary (mmcv 1.x) to those of this package (mmengine)."""

from __future__ import annotations

import copy
from typing import Any, Callable, Dict, Mapping, Optional

from ..adapter.backbone import backbone_arguments

DETECTORS = ('BEVDet', 'BEVDet4D', 'BEVDepth4D', 'BEVStereo4D', 'BEVStereo4DOCC')
_TORCHVISION = 'torchvision://'
_SHIFTED_SWIN = (
    'embed_dims', 'depths', 'num_heads', 'window_size', 'mlp_ratio', 'out_indices', 'pretrain_img_size', 'drop_path_rate',
    'with_cp', 'frozen_stages', 'init_cfg', 'patch_norm', 'use_abs_pos_embed', 'patch_size', 'in_channels', 'strides', 'qkv_bias',
    'qk_scale', 'drop_rate', 'attn_drop_rate', 'act_cfg', 'norm_cfg',
)  # fmt: skip
_WITHOUT_EFFECT = ('class_wise',)  # entries that the published detectors take and do not use
_LOADING_ONLY = ('convert_weights', 'pretrain_style', 'pretrained')  # ours tell weights apart by their names


def head_config(entry: Mapping[str, Any]) -> Dict[str, Any]:
    """BEVDet's ``pts_bbox_head`` as mmengine's registries want it.

    Args:
        entry: its configuration with ``train_cfg`` and ``test_cfg``.
    """
    config = copy.deepcopy(dict(entry))
    config['type'] = 'BEVDetCenterHead'
    for name in ('loss_cls', 'loss_bbox'):
        if name in config:
            config[name] = _mmdet_loss(config[name])
    return config


def _mmdet_loss(entry: Mapping[str, Any]) -> Dict[str, Any]:
    return dict(entry, type=entry['type'] if '.' in entry['type'] else f'mmdet.{entry["type"]}')


def _resnet(config: Dict[str, Any]) -> Dict[str, Any]:
    """mmdet's ResNet; the old ``pretrained`` becomes an ``init_cfg``."""
    pretrained = config.pop('pretrained', None)
    if pretrained is not None:
        config['init_cfg'] = dict(type='Pretrained', checkpoint=pretrained)
    return {**config, 'type': 'mmdet.ResNet'}


def _geomim_swin(config: Dict[str, Any]) -> Dict[str, Any]:
    """GeoMIMSwin, which has fewer switches: those at another value than its own are refused."""
    entries = {name: value for name, value in config.items() if name != 'type'}
    return {**backbone_arguments(entries, f'img_backbone {config["type"]}'), 'type': 'GeoMIMSwin'}


def _shifted_swin(config: Dict[str, Any]) -> Dict[str, Any]:
    """Shifted-window Swin."""
    if config.get('use_abs_pos_embed', config['type'] == 'SwinTransformerOri'):
        raise ValueError(
            f'img_backbone {config["type"]}: position embeddings are supported by SwinTransformerBEVFT only'
        )
    for name in sorted(set(config) - {'type', 'return_stereo_feat', 'output_missing_index_as_none', *_SHIFTED_SWIN}):
        if name not in _LOADING_ONLY:
            raise ValueError(f'img_backbone {config["type"]}: unknown entry {name!r}')
    translated = {name: config[name] for name in _SHIFTED_SWIN if name in config}
    stereo = config.get('return_stereo_feat', False)
    if isinstance(translated.get('window_size', 7), int):
        stages = len(translated.get('depths', (2, 2, 18, 2)))
        translated['window_size'] = [translated.get('window_size', 7)] * stages
    checkpoint = config.get('pretrained')
    if checkpoint is not None:
        translated['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint)
    if translated.get('init_cfg') is not None:
        translated['convert_weights'] = config.get('convert_weights', config.get('pretrain_style') == 'official')
    return {**translated, 'type': 'StereoShiftedSwin' if stereo else 'ShiftedSwin'}


_BACKBONES: Mapping[str, Callable[[Dict[str, Any]], Dict[str, Any]]] = {
    'ResNet': _resnet,
    'SwinTransformer': _shifted_swin,
    'SwinTransformerOri': _shifted_swin,
    'SwinTransformerBEVFT': _geomim_swin,
}


def _translate_head(config: Mapping[str, Any], model: Mapping[str, Any]) -> Dict[str, Any]:
    """The head with its training and test settings, which BEVDet keeps beside it under ``pts``."""
    if config.get('type') != 'CenterHead':
        raise ValueError(f"pts_bbox_head must be a 'CenterHead', got {config.get('type')!r}")
    head = head_config(config)
    # A configuration that was written back after the build holds the sizes of the last task.
    for name in ('in_channels', 'heads', 'num_cls'):
        head.get('separate_head', {}).pop(name, None)
    for name in ('train_cfg', 'test_cfg'):
        settings: Optional[Mapping[str, Any]] = model.get(name)
        if head.get(name) is None and settings is not None:
            head[name] = copy.deepcopy(settings['pts'])
    return head


def translate_model(model: Mapping[str, Any]) -> Dict[str, Any]:
    """A ``model`` of BEVDet's configurations to one that mmengine's registries build.

    Args:
        model: as in BEVDet's files; not changed.

    Raises:
        ValueError: a detector, backbone or head that is not supported, or an entry that ours does not know.
    """
    config = copy.deepcopy(dict(model))
    kind = config.get('type')
    if kind not in DETECTORS:
        raise ValueError(f'detector {kind!r} is not supported; known are {", ".join(DETECTORS)}')
    backbone = dict(config['img_backbone'])
    if backbone.get('type') not in _BACKBONES:
        raise ValueError(f'img_backbone {backbone.get("type")!r} is not supported; known are {", ".join(_BACKBONES)}')
    config['img_backbone'] = _BACKBONES[backbone['type']](backbone)
    if config.get('pts_bbox_head') is not None:
        config['pts_bbox_head'] = _translate_head(config['pts_bbox_head'], config)
    if config.get('loss_occ') is not None:
        config['loss_occ'] = _mmdet_loss(config['loss_occ'])
    for name in ('train_cfg', 'test_cfg', *_WITHOUT_EFFECT):
        config.pop(name, None)
    return config
