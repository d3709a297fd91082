"""The README's block of plain PyTorch, as it stands: with random weights and with an encoder file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict

import pytest
import torch

from geomim import SwinConfig, SwinEncoder
from geomim.checkpoints.layouts import export_encoder
from geomim.checkpoints.loading import save_atomically

README = Path(__file__).resolve().parents[2] / 'README.md'
DEPTHS = (1, 1, 2, 1)


@pytest.fixture
def block(tmp_path: Path, monkeypatch: Any) -> str:
    """The code, to be run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding='utf-8')
    return re.search(r'^## In plain PyTorch\n.*?```python\n(.*?)```', text, re.DOTALL | re.MULTILINE).group(1)


def execute(code: str) -> Dict[str, Any]:
    names: Dict[str, Any] = {}
    exec(code, names)
    assert tuple(names['stride16'].shape) == (1, 512, 16, 44)
    assert tuple(names['stride32'].shape) == (1, 1024, 8, 22)
    assert all(bool(names[name].isfinite().all()) for name in ('stride16', 'stride32'))
    return names


def test_without_a_file_the_weights_are_random(block: str, capsys: Any) -> None:
    execute(block)
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('layout', ['bevdet', 'mmdet'])
def test_a_file_is_loaded_whole(block: str, layout: str, capsys: Any) -> None:
    """Swin-B's widths with fewer blocks, for a file of a size for tests."""
    exported = SwinEncoder(SwinConfig(depths=DEPTHS))
    state = {f'encoder.{name}': value for name, value in exported.state_dict().items()}
    save_atomically(export_encoder(state, layout), Path('encoder_bevdet.pth'))
    names = execute(block.replace('SwinBackbone(', f'SwinBackbone(depths={DEPTHS}, '))
    assert f'{len(exported.state_dict())} tensors taken' in capsys.readouterr().out
    loaded = names['encoder'].state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in exported.state_dict().items())
