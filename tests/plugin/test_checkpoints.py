"""Checkpoints through mmcv's own loaders: nothing that a file or an address holds is executed, a resumed run goes on."""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.runner import EpochBasedRunner
from mmcv.runner.checkpoint import CheckpointLoader

from geomim.plugin.host import open_source

from ..helpers import Attack

ADDRESS = 'https://example.org/models/file-00000000.pth'


def place(content: Any, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A path or an address at which mmcv finds ``content``."""
    path = folder / 'file.pth'
    torch.save(content, str(path))
    monkeypatch.setenv('TORCH_HOME', str(folder / 'cache'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda _, target, *a, **k: shutil.copy(str(path), target))
    monkeypatch.setattr('mmcv.runner.checkpoint.get_external_models', lambda: {'file': ADDRESS})
    return {'local': str(path), 'https': ADDRESS, 'open-mmlab': 'open-mmlab://file'}[kind]


@pytest.mark.parametrize('kind', ['local', 'https', 'open-mmlab'])
def test_no_loader_of_the_host_executes_a_file(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = place(
        {'state_dict': {'a': torch.ones(1)}, 'x': Attack(open, str(tmp_path / 'ran'), 'w')}, kind, tmp_path, monkeypatch
    )
    with pytest.raises(ValueError, match='refused for safety'):
        CheckpointLoader.load_checkpoint(source, map_location='cpu')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('kind', ['local', 'https', 'open-mmlab'])
def test_weights_are_read_from_everywhere(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {'state_dict': {'a': torch.ones(1)}, 'args': argparse.Namespace(x=1), 'best': np.float64(0.5)}
    source = place(content, kind, tmp_path, monkeypatch)
    assert torch.equal(open_source(source).content['state_dict']['a'], torch.ones(1))
    loaded = CheckpointLoader.load_checkpoint(source)
    assert not isinstance(loaded['args'], argparse.Namespace)
    assert loaded['best'] == 0.5


def test_networks_of_the_package_are_found_by_their_address() -> None:
    address = 'geomim://centerpoint_pillar_tiny_synthetic'
    for loaded in (CheckpointLoader.load_checkpoint(address), open_source(address).content):
        assert loaded['state_dict']['pts_backbone.blocks.0.0.weight'].dtype == torch.float32
    with pytest.raises(ValueError, match="no network 'other' comes with the package"):
        CheckpointLoader.load_checkpoint('geomim://other')


@pytest.mark.parametrize('gpu_ids, iteration', [('gpu_ids = range(0, 2)', 20), ('gpu_ids = [0]', 10), ('', 10)])
def test_resuming_executes_no_configuration(tmp_path: Path, gpu_ids: str, iteration: int) -> None:
    """And still scales the iteration by the number of GPUs that the text names."""
    path, marker = tmp_path / 'epoch_1.pth', tmp_path / 'ran'
    model = torch.nn.Linear(1, 1)
    config = f'{gpu_ids}\nopen({str(marker)!r}, "w")\n'
    hooks = {'best_score': np.float64(0.25)}
    meta = {'epoch': 1, 'iter': 10, 'config': config, 'hook_msgs': hooks}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, str(path))
    model.train_step = lambda *_: None
    runner = EpochBasedRunner(model, work_dir=str(tmp_path), logger=logging.getLogger('test'), max_epochs=2)
    runner.resume(str(path), resume_optimizer=False, map_location='cpu')
    assert not marker.exists()
    assert (runner.epoch, runner.iter) == (1, iteration)
    assert runner.meta['hook_msgs']['best_score'] == 0.25
    assert runner.meta['config_text'] == config
