"""``python -m geomim env``: a report that comes whatever is broken."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Dict

import pytest
import torch

import geomim
from geomim.__main__ import main
from geomim.commands import env

SECTIONS = ['geomim', 'versions', 'host', 'devices', 'imports', 'threads', 'environment']
BROKEN = {
    'env_test_noisy': 'import sys\nprint("geomim-env nonsense"[7:], end="")\nsys.stdout = None\n__version__ = "7.1"',
    'env_test_foreign': 'raise ImportError("libcudart.so.11.0:\\n  cannot open shared object file")',
    'env_test_dies': 'import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)',
    'env_test_leaves': 'import os, sys\nsys.stderr.write("no licence\\n")\nsys.stderr.flush()\nos._exit(3)',
    'env_test_exits': 'raise SystemExit("wrong host")',
}


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: Any) -> None:
    for name, text in BROKEN.items():
        (tmp_path / f'{name}.py').write_text(text)
    found = [str(tmp_path), *filter(None, [os.environ.get('PYTHONPATH')])]
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(found))


@pytest.fixture
def few_imports(monkeypatch: Any) -> None:
    monkeypatch.setattr(env, 'MODULES', ('numpy', 'env_test_absent'))


def test_each_way_of_breaking_is_a_row_and_the_next_module_is_still_tried(broken: None) -> None:
    names = [*BROKEN, 'env_test_absent', '.atomic']
    found = env.try_imports(names)
    assert list(found) == [*names[:-1], 'geomim.atomic']
    assert found['env_test_noisy'] == 'ok, 7.1'
    assert found['env_test_foreign'] == 'ImportError: libcudart.so.11.0: cannot open shared object file'
    assert found['env_test_dies'].startswith('the import killed its process: Segmentation fault')
    assert found['env_test_leaves'] == 'the import ended its process with status 3; no licence'
    assert found['env_test_exits'] == 'SystemExit: wrong host'
    assert found['env_test_absent'] == 'not installed'
    assert found['geomim.atomic'] == 'ok'


def test_an_import_that_never_ends_is_a_row(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / 'env_test_waits.py').write_text('import time\ntime.sleep(600)')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.setattr(env, 'SECONDS', 5)
    assert env.try_imports(['json', 'env_test_waits']) == {
        'json': 'ok, 2.0.9',
        'env_test_waits': 'no answer within 5 s',
    }


def test_report_as_text_and_as_json(few_imports: None, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv('GEOMIM_TORCH', 'torch==9')
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setenv('A_SECRET', 'x' * 20)
    assert main(['env', '--json']) == 0
    report: Dict[str, Dict[str, str]] = json.loads(capsys.readouterr().out)
    assert list(report) == SECTIONS
    assert report['geomim']['version'] == geomim.__version__
    assert report['geomim']['path'] == str(Path(geomim.__file__).resolve().parent)
    assert report['versions']['torch'].startswith(metadata.version('torch'))
    assert report['versions']['python'].startswith('.'.join(map(str, sys.version_info[:3])))
    assert report['imports']['env_test_absent'] == 'not installed'
    assert report['devices']['cores'] == f'{env.usable_cores()} of {os.cpu_count()}'
    assert report['threads']['torch'].startswith(f'{torch.get_num_threads()} within')
    assert report['environment']['GEOMIM_TORCH'] == 'torch==9'
    assert report['environment']['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] == '1'
    assert main(['env']) == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if not line.startswith(' ')] == SECTIONS
    for rows in report.values():
        for name, value in rows.items():
            assert any(line.split(None, 1)[0] == name.split()[0] and value in line for line in text.splitlines()), name
    assert 'xxxx' not in text


def test_a_fact_that_cannot_be_told_is_a_row(few_imports: None, monkeypatch: Any, capsys: Any) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError('CUDA driver\ninitialization failed')

    monkeypatch.setattr(torch.cuda, 'is_available', fails)
    monkeypatch.setattr(env.metadata, 'distributions', fails)
    assert main(['env']) == 0
    text = capsys.readouterr().out
    assert text.count('cannot tell: RuntimeError: CUDA driver initialization failed') == 2
    assert 'found  none: plain PyTorch' in text


def test_gpus_are_listed_with_memory_capability_and_driver(monkeypatch: Any) -> None:
    class Facts:
        name, total_memory, major, minor = 'A100', 40 * 2**30, 8, 0

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda index: Facts)
    monkeypatch.setattr(torch.version, 'cuda', '12.1')
    monkeypatch.setattr(torch._C, '_cuda_getDriverVersion', lambda: 12040, raising=False)
    found = env.find_gpus()
    assert found['gpu 1'] == 'A100, 40.0 GiB, capability 8.0'
    assert found['gpu runtime'].startswith('CUDA 12.1, cuDNN ')
    assert found['gpu runtime'].endswith('driver for CUDA 12.4')


@pytest.mark.parametrize(
    'importable, host',
    [
        (['mmengine', 'mmdet3d', 'bevdet'], 'mmdet3d 1.4.0 on mmengine'),
        (['mmengine'], 'mmengine without a working mmdet3d'),
        (['plugin'], 'mmcv 1.7.0'),
        ([], 'none'),
    ],
)
def test_the_host_is_the_one_whose_adapter_imports(importable: list, host: str) -> None:
    rooms = ('mmengine', 'mmdet3d', 'bevdet', 'plugin')
    imports = {f'geomim.{room}': 'ok' if room in importable else 'ImportError: no' for room in rooms}
    assert env.find_host({'mmdet3d': '1.4.0', 'mmcv': '1.7.0'}, imports).startswith(host)


def test_spconv_of_any_cuda_is_found(monkeypatch: Any) -> None:
    class Installed:
        def __init__(self, name: Any, version: str) -> None:
            self.metadata, self.version = {'Name': name}, version

    installed = [Installed('spconv-cu118', '2.3.6'), Installed('mmcv_full', '1.7.0'), Installed(None, '1')]
    monkeypatch.setattr(env.metadata, 'distributions', lambda: installed)
    found = env.find_versions()
    assert found['spconv'] == '2.3.6 (spconv-cu118)'
    assert found['mmcv'] == '1.7.0 (mmcv-full)'
    assert found['timm'] == 'not installed'
