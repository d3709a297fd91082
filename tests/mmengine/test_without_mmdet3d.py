"""``geomim.mmengine`` alone: mmdet and mmseg users need no mmdet3d for the backbone and for this repository's configurations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmengine')

ROOT = Path(__file__).resolve().parents[2]
TINY = {'mmdet': 'mask-rcnn_tiny_synthetic.py', 'mmseg': 'upernet_tiny_synthetic.py'}
# HOST CONFIG: what Python does where a package is missing, then the host's own way from a configuration to a model
SCRIPT = """
import importlib, sys
sys.modules['mmdet3d'] = None
host, path = sys.argv[1:]
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
config = Config.fromfile(path)  # imports what custom_imports names
assert config.custom_imports.imports == ['geomim.mmengine'], config.custom_imports
config.model.backbone.init_cfg = None
init_default_scope(host)
models = importlib.import_module(f'{host}.registry').MODELS
importlib.import_module(f'{host}.models')
model = models.build(config.model).eval()
swin = models.build(dict(type='GeoMIMSwin', embed_dims=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), out_indices=(2, 3)))
assert type(model.backbone) is type(swin) is sys.modules['geomim.mmengine'].GeoMIMSwin
with torch.no_grad():
    assert [tuple(one.shape) for one in model.backbone(torch.zeros(1, 3, 64, 96))] == [
        (1, 32, 16, 24), (1, 64, 8, 12), (1, 128, 4, 6), (1, 256, 2, 3)
    ]
hooks = importlib.import_module('mmengine.registry').HOOKS
assert all(hooks.get(entry['type']) for entry in config.custom_hooks)
assert not [name for name in sys.modules if name.startswith(('mmdet3d.', 'geomim.mmdet3d', 'geomim.bevdet'))]
print('built')
"""


@pytest.mark.parametrize('host', TINY)
def test_a_configuration_of_the_host_builds_where_mmdet3d_is_missing(host: str, tmp_path: Path) -> None:
    pytest.importorskip(host)
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    command = [sys.executable, '-c', SCRIPT, host, str(ROOT / 'configs' / host / TINY[host])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith('built\n')


def test_the_adapter_of_mmdet3d_says_that_it_is_missing(tmp_path: Path) -> None:
    code = "import sys; sys.modules['mmdet3d'] = None; import geomim.mmdet3d"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=str(tmp_path))
    assert done.returncode == 1
    assert 'mmdet3d' in done.stderr.strip().splitlines()[-1]
