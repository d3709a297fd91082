"""The folder projects/GeoMIM dropped into another checkout works without installing anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet3d')
ROOT = Path(__file__).resolve().parents[2]

CODE = """
import sys
sys.path[:] = [entry for entry in sys.path if 'site-packages' in entry or 'lib/python' in entry or entry == {checkout!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in type(finder).__name__.lower() + str(finder).lower()]
from mmengine.config import Config
from mmengine.registry import MODELS
config = Config.fromfile({config!r})
assert 'projects.GeoMIM.geomim.mmdet3d' in sys.modules and 'geomim' not in sys.modules
model = MODELS.build(config.model)
assert type(model).__module__ == 'projects.GeoMIM.geomim.mmengine.model', type(model).__module__
try:
    sys.path.append({source!r})
    import geomim
except ImportError as error:
    assert 'already' in str(error), error
else:
    raise AssertionError('a second copy under another name must be refused')
print('built', type(model).__name__)
"""


@pytest.mark.long
def test_dropped_into_a_checkout(tmp_path: Path) -> None:
    checkout = tmp_path / 'checkout'
    shutil.copytree(
        ROOT / 'projects', checkout / 'projects', ignore=shutil.ignore_patterns('__pycache__', '*.egg-info')
    )
    config = checkout / 'mine.py'
    base = ROOT / 'configs' / 'mmdet3d' / 'pretrain' / 'geomim_tiny_cpu.py'
    config.write_text(
        f'_base_ = {str(base)!r}\n'
        "custom_imports = dict(imports=['projects.GeoMIM.geomim.mmdet3d'], allow_failed_imports=False)\n"
    )
    code = CODE.format(checkout=str(checkout), config=str(config), source=str(ROOT / 'projects' / 'GeoMIM'))
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    environment.update(PYTHONPATH=str(checkout), PYTHONWARNINGS='ignore')
    done = subprocess.run([sys.executable, '-c', code], cwd=checkout, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'built GeoMIMPretrainer' in done.stdout
