"""Every official configuration starts from a fresh environment: without torchvision, and with a clear word where a file is absent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict, Iterator, Set

import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine import Config
from mmengine.runner.checkpoint import CheckpointLoader

import geomim.bevdet  # noqa: F401 - registers, and installs the safe reader

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'mmdet3d'
# TPVFormer's extends a file of an mmdet3d checkout.
OFFICIAL = sorted(
    path for path in CONFIGS.glob('[!_]*/*.py') if not any(word in path.stem for word in ('tiny', 'tpvformer'))
)


def sources_of(node: Any) -> Iterator[str]:
    """Every file or address that a configuration takes weights from."""
    if isinstance(node, (list, tuple)):
        for one in node:
            yield from sources_of(one)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ('checkpoint', 'init_from', 'load_from', 'pretrained') and isinstance(value, str):
                yield value
            else:
                yield from sources_of(value)


def all_sources() -> Dict[str, Set[str]]:
    """Source -> names of the configurations that start from it."""
    found: Dict[str, Set[str]] = {}
    for path in OFFICIAL:
        for source in sources_of(Config.fromfile(path).to_dict()):
            found.setdefault(source, set()).add(path.stem)
    return found


@pytest.fixture
def fresh(web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No torchvision, no cache, no network; a folder whose files can be downloaded by their names."""
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    monkeypatch.chdir(tmp_path)
    return web


def test_every_source_is_a_file_to_provide_or_an_address_that_the_host_knows(fresh: Path) -> None:
    sources = all_sources()
    assert any('://' in source for source in sources), 'none of the configurations names an address'
    assert any('bevdet-r50' in name for name in set().union(*sources.values()))
    for source, names in sources.items():
        if '://' in source:
            with pytest.raises(ValueError, match=r'cannot be downloaded .*put that file at \S+\.pth, or give the path'):
                CheckpointLoader.load_checkpoint(source)
        else:
            with pytest.raises(FileNotFoundError, match=f'checkpoint {source} does not exist'):
                CheckpointLoader.load_checkpoint(source)
            assert source.startswith('checkpoints/'), names  # where the documentation puts files


@pytest.mark.parametrize('name', ['finetune/bevdet-r50', 'map_segmentation/bevdet-r50-map-256x704'])
@pytest.mark.parametrize('given', ['download', 'local file'])
def test_a_resnet_starts_from_torchvisions_weights(fresh: Path, name: str, given: str) -> None:
    config = Config.fromfile(CONFIGS / f'{name}.py').model.img_backbone
    weights = MODELS.build({**config, 'init_cfg': None}).state_dict()
    local = fresh / 'resnet50-0676ba61.pth'
    torch.save(weights, local)
    if given == 'local file':
        config.init_cfg.checkpoint = str(local)
    backbone = MODELS.build(config)
    assert not torch.equal(backbone.conv1.weight, weights['conv1.weight'])
    backbone.init_weights()
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_every_resnet_configuration_has_the_same_backbone(fresh: Path) -> None:
    """So that the two that are built above stand for all."""
    backbones = [
        Config.fromfile(path).model.img_backbone
        for path in OFFICIAL
        if 'r50' in path.stem and 'geomim' not in path.stem
    ]
    assert len(backbones) >= 6
    assert {(one.type, one.depth, one.init_cfg.checkpoint) for one in backbones} == {
        ('mmdet.ResNet', 50, 'torchvision://resnet50')
    }
