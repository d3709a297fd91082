"""Full-size published configurations in BEVDet's words: they become ours, and every parameter has the name and the shape that published
checkpoints have."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import Any, Callable, Dict

import pytest

pytest.importorskip('mmdet3d')

from micro_detector import CONFIGS

import geomim.bevdet  # noqa: F401 - registers every part
from geomim.proofs.bevdet_configs import translate_model

FILES = [path for room in ('finetune', 'occupancy') for path in (CONFIGS / room).glob('bevdet-*.py')]
NAMES = sorted(path.stem for path in FILES if not path.stem.endswith('-load'))
SWIN: Dict[str, Any] = dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))


def backbone_in_bevdets_words(ours: Dict[str, Any]) -> Dict[str, Any]:
    entries = {key: value for key, value in ours.items() if key not in ('type', 'init_cfg', 'convert_weights')}
    entries['pretrained'] = ours['init_cfg']['checkpoint']
    if ours['type'] == 'mmdet.ResNet':
        return dict(entries, type='ResNet')
    entries.update(patch_norm=True, output_missing_index_as_none=False)
    if ours['type'] == 'ShiftedSwin':
        return dict(SWIN, **entries, type='SwinTransformerOri', use_abs_pos_embed=False, pretrain_style='official')
    recomputed = [2, 2, 0, 0] if entries.get('with_cp') else False  # blocks a stage
    entries.update(with_cp=recomputed, convert_weights=False)
    return dict(entries, type='SwinTransformerBEVFT', use_abs_pos_embed=True)


def in_bevdets_words(ours: Dict[str, Any]) -> Dict[str, Any]:
    """A model as BEVDet's own files have it."""
    model = copy.deepcopy(ours)
    model['img_backbone'] = backbone_in_bevdets_words(model['img_backbone'])
    losses = [model.get('loss_occ')]
    if model.get('pts_bbox_head'):
        head = model['pts_bbox_head']
        head['type'] = 'CenterHead'
        losses += [head['loss_cls'], head['loss_bbox']]
    for loss in filter(None, losses):
        loss['type'] = loss['type'].replace('mmdet.', '')
    return model


def plain(value: Any) -> Any:
    """Without a difference between lists and tuples."""
    return json.loads(json.dumps(value))


@pytest.mark.parametrize('name', NAMES)
def test_published_files_become_ours_with_the_published_names_and_shapes(
    name: str, manifest: Any, read_config: Callable[[str], Any], build_empty: Callable[[Any], Any]
) -> None:
    ours = read_config(name).model.to_dict()
    ours.pop('data_preprocessor')
    translated = translate_model(in_bevdets_words(ours))
    model = build_empty(SimpleNamespace(model=translated))
    published = manifest(name)
    if translated['img_backbone']['type'] == 'GeoMIMSwin':  # which derives these constants
        published = {key: shape for key, shape in published.items() if not key.endswith('relative_position_index')}
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == published
    settings = {key: ours.pop(key, None) for key in ('train_cfg', 'test_cfg')}
    if ours.get('pts_bbox_head'):
        ours['pts_bbox_head'].update({key: value['pts'] for key, value in settings.items()})
    backbone, found = plain(ours.pop('img_backbone')), plain(translated.pop('img_backbone'))
    assert {key: found[key] for key in backbone} == backbone
    assert plain(translated) == plain(ours)
