"""make upstream: foreign folders are refused, and a checkout's own lint configuration passes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, List

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools' / 'upstream'
CHECKOUT = 'GEOMIM_MMDET3D_CHECKOUT'
PRE_COMMIT = """
repos:
  - repo: https://github.com/PyCQA/flake8
    rev: 5.0.4
    hooks: [{id: flake8}]
  - repo: https://github.com/pre-commit/mirrors-yapf
    rev: v0.32.0
    hooks: [{id: yapf}]
"""


@pytest.fixture
def upstream(monkeypatch: Any) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location('upstream', TOOLS / 'lay_out.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What is looked for in a checkout."""
    root = tmp_path / 'checkout'
    (root / 'projects').mkdir(parents=True)
    (root / 'mmdet3d').mkdir()
    (root / 'mmdet3d' / 'version.py').write_text("__version__ = '1.4.0'\n")
    (root / 'setup.cfg').write_text('[yapf]\nBASED_ON_STYLE = pep8\n')
    (root / '.pre-commit-config.yaml').write_text(PRE_COMMIT)
    return root


def test_what_is_no_checkout_is_refused(upstream: ModuleType, checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(upstream.UpstreamError, match='is no checkout of mmdet3d: it has no mmdet3d/version.py'):
        upstream.lay_out(tmp_path)
    (checkout / 'mmdet3d' / 'version.py').write_text("__version__ = '1.0.0rc4'\n")
    with pytest.raises(upstream.UpstreamError, match=r'holds mmdet3d 1.0.0rc4, not 1.4'):
        upstream.lay_out(checkout)


def test_foreign_changes_are_refused_and_left_alone(
    upstream: ModuleType, checkout: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv('GEOMIM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(upstream, 'formatters', lambda checkout: checkout)
    monkeypatch.setattr(upstream, 'format_project', lambda *_: None)
    target = upstream.lay_out(checkout)
    assert (target / 'geomim' / 'method' / 'swin.py').is_file()
    assert (target / 'README.md').is_file()
    assert not list(target.rglob('__pycache__'))
    assert not list(target.glob('*.egg-info'))
    assert [path.name for path in (checkout / 'projects').iterdir()] == ['GeoMIM']
    upstream.lay_out(checkout)  # its own may be renewed
    mine = target / 'geomim' / 'method' / 'swin.py'
    mine.write_text('mine\n')
    with pytest.raises(upstream.UpstreamError, match=r'1 files differ, first geomim/method/swin.py. It is left alone'):
        upstream.lay_out(checkout)
    assert mine.read_text() == 'mine\n'


def test_a_failure_leaves_nothing_behind(
    upstream: ModuleType, checkout: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*_: Any) -> None:
        raise upstream.UpstreamError('no')

    monkeypatch.setenv('GEOMIM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(upstream, 'formatters', lambda checkout: checkout)
    monkeypatch.setattr(upstream, 'format_project', fail)
    with pytest.raises(upstream.UpstreamError, match='no'):
        upstream.lay_out(checkout)
    assert list((checkout / 'projects').iterdir()) == []


def test_configs_name_the_package_as_the_checkout_does(upstream: ModuleType) -> None:
    config = "custom_imports = dict(imports=['geomim.mmdet3d', 'geomim.bevdet'])\n# python -m geomim synthesize\n"
    assert upstream.by_checkout_name(config, imports=True) == (
        "custom_imports = dict(imports=['projects.GeoMIM.geomim.mmdet3d', 'projects.GeoMIM.geomim.bevdet'])\n"
        '# python -m projects.GeoMIM.geomim synthesize\n'
    )


def test_versions_are_the_checkouts(upstream: ModuleType, checkout: Path) -> None:
    with pytest.raises(upstream.UpstreamError, match='names no codespell, docformatter, isort, mdformat'):
        upstream.hooks_of(checkout)
    names = re.sub(r'\[\{id: yapf\}\]', '[{id: yapf}, {id: isort}, {id: codespell}, {id: docformatter}]', PRE_COMMIT)
    names += '  - repo: https://github.com/executablebooks/mdformat\n    rev: 0.7.9\n'
    names += '    hooks: [{id: mdformat, additional_dependencies: [linkify-it-py]}]\n'
    (checkout / '.pre-commit-config.yaml').write_text(names)
    assert {'flake8==5.0.4', 'yapf==0.32.0', 'mdformat==0.7.9', 'linkify-it-py'} <= set(upstream.hooks_of(checkout))


@pytest.fixture(scope='module')
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a real checkout with the project laid into it."""
    source = Path(os.environ.get(CHECKOUT, ''))
    if not (source / 'projects' / 'example_project').is_dir():
        pytest.skip(f'needs a checkout of mmdet3d 1.4: set {CHECKOUT} to its folder')
    root = tmp_path_factory.mktemp('upstream') / 'checkout'
    ignore = shutil.ignore_patterns('.git', 'docs', 'data', 'resources', 'GeoMIM')
    shutil.copytree(source, root, ignore=ignore)
    done = subprocess.run([sys.executable, str(TOOLS / 'lay_out.py'), str(root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


def test_the_checkouts_own_lint_passes(laid_out: Path, upstream: ModuleType) -> None:
    tools = upstream.formatters(laid_out)
    files = [str(path) for path in (laid_out / 'projects' / 'GeoMIM').rglob('*.py')]
    pages = [str(path) for path in (laid_out / 'projects' / 'GeoMIM').rglob('*.md')]
    commands: List[List[str]] = [
        ['flake8', *files],
        ['isort', '--check-only', *files],
        ['yapf', '--diff', '--parallel', *files],
        ['docformatter', '--check', '--wrap-descriptions', '79', *files],
        ['codespell', *files, *pages],
        ['mdformat', '--number', '--check', *pages],
    ]
    for name, *arguments in commands:
        done = subprocess.run([str(tools / name), *arguments], cwd=laid_out, capture_output=True, text=True)
        assert done.returncode == 0, name + done.stdout[-2000:] + done.stderr[-2000:]


def test_a_short_training_from_inside_succeeds(laid_out: Path, small_world: Path, tmp_path: Path) -> None:
    pytest.importorskip('mmdet3d')
    folder = 'projects/GeoMIM/configs/mmdet3d/pretrain'
    options = ['model.teacher.checkpoint=None', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2']
    options.append('default_hooks.logger.interval=1')
    for loader in ('train_dataloader', 'val_dataloader'):
        options += [f'{loader}.dataset.data_root={small_world}/', f'{loader}.dataset.metainfo.version=v1.0-trainval']
        options += [f'{loader}.num_workers=0', f'{loader}.persistent_workers=False']
    command = [sys.executable, 'tools/train.py', f'{folder}/geomim_tiny_synthetic.py', '--work-dir', str(tmp_path)]
    environment = {**os.environ, 'PYTHONPATH': '.', 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    done = subprocess.run(
        [*command, '--cfg-options', *options], cwd=laid_out, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'iter_2.pth').is_file()
    assert (tmp_path / 'encoder_bevdet.pth').is_file()
    scalars = next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()
    assert any('loss_reconstruction' in json.loads(line) for line in scalars)
