"""``python -m geomim infos``: each kind reaches its maker with what was asked for, and what cannot be is named."""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from pathlib import Path
from typing import Any, List, Tuple

import pytest

from geomim.__main__ import build_parser, main
from geomim.commands.infos import MAKERS

KINDS = ('bevdet', 'images', 'mmdet3d', 'waymo')


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> List[Tuple[Any, ...]]:
    """What the makers were called with; they make nothing."""
    pytest.importorskip('mmengine')
    made: List[Tuple[Any, ...]] = []

    def stand_in(name: str) -> Any:
        return lambda *arguments: made.append((name, *arguments)) or tmp_path

    for kind, (module, name) in MAKERS.items():
        monkeypatch.setattr(importlib.import_module(f'geomim.nuscenes.{module}'), name, stand_in(kind))
    return made


def test_bevdet_is_the_default_and_there_are_four_kinds() -> None:
    arguments = build_parser().parse_args(['infos', 'ROOT'])
    assert (arguments.root, arguments.kind) == (Path('ROOT'), 'bevdet')
    assert (arguments.out, arguments.version, arguments.force) == (None, '', False)
    assert sorted(MAKERS) == list(KINDS)


@pytest.mark.parametrize('kind', KINDS)
def test_each_kind_reaches_its_maker(calls: List[Tuple[Any, ...]], tmp_path: Path, kind: str, capsys: Any) -> None:
    assert main(['infos', str(tmp_path), '--for', kind]) == 0
    options = () if kind == 'waymo' else (None, '', False)
    assert calls == [(kind, tmp_path, *options)]
    assert capsys.readouterr().out == f'{tmp_path}: info files for {kind}\n'


@pytest.mark.parametrize('kind', ['bevdet', 'images', 'mmdet3d'])
def test_options_are_handed_on(calls: List[Tuple[Any, ...]], tmp_path: Path, kind: str) -> None:
    options = ['--out', str(tmp_path / 'out'), '--version', 'v1.0-mini', '--force']
    assert main(['infos', str(tmp_path), '--for', kind, *options]) == 0
    assert calls == [(kind, tmp_path, tmp_path / 'out', 'v1.0-mini', True)]


@pytest.mark.parametrize('option', [['--out', 'out'], ['--version', 'v1.0-mini'], ['--force']])
def test_waymo_takes_its_folder_alone(calls: List[Tuple[Any, ...]], option: List[str], capsys: Any) -> None:
    assert main(['infos', 'ROOT', '--for', 'waymo', *option]) == 2
    assert '--for waymo takes ROOT alone' in capsys.readouterr().err
    assert calls == []


@pytest.mark.parametrize('option', [['--for', 'kitti'], ['--version', 'v2.0']])
def test_what_is_not_known_is_refused(option: List[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as error:
        main(['infos', 'ROOT', *option])
    assert error.value.code == 2
    assert option[1] in capsys.readouterr().err


@pytest.mark.parametrize('kind', KINDS)
def test_a_folder_without_data_is_named(tmp_path: Path, kind: str, capsys: Any) -> None:
    pytest.importorskip('mmengine')
    assert main(['infos', str(tmp_path), '--for', kind]) == 2
    error = capsys.readouterr().err
    assert error.startswith('geomim infos: ')
    assert str(tmp_path) in error
    assert os.listdir(tmp_path) == []


def test_without_mmdet3d_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delitem(sys.modules, 'geomim.nuscenes.infos', raising=False)
    monkeypatch.setitem(sys.modules, 'mmengine', None)  # what Python does where a package is missing
    assert main(['infos', str(tmp_path), '--for', 'mmdet3d']) == 2
    assert "pip install 'geomim[mmdet3d]'" in capsys.readouterr().err


def test_the_former_name_makes_the_same(
    calls: List[Tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, 'argv', ['infos', str(tmp_path)])
    monkeypatch.delitem(sys.modules, 'geomim.bevdet.infos', raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module('geomim.bevdet.infos', run_name='__main__')
    assert ended.value.code == 0
    assert calls == [('bevdet', tmp_path, None, '', False)]
