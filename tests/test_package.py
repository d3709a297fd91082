"""The rules between rooms, checked on the source itself: who may import whom, and what the core may import at all."""

import ast
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'projects' / 'GeoMIM' / 'geomim'
PLUGIN = ROOT / 'plugin'

# room -> rooms that it may import; the top level of the package is the core
ARROWS = {
    'core': {'core'},
    '__main__': {'core', 'commands'},
    'commands': {'core', 'commands', 'synthetic', 'proofs', 'bevdet'},
    'proofs': {'core', 'proofs', 'bevdet'},
    'synthetic': {'core', 'synthetic'},
    'mmdet3d': {'core', 'mmdet3d', 'synthetic'},
    'bevdet': {'core', 'mmdet3d', 'bevdet'},
    'plugin': {'core', 'plugin'},
}
# room -> top-level names that it may import besides the standard library; rooms not listed are free
OUTSIDE = {'core': {'torch'}, '__main__': {'torch'}, 'commands': {'torch', 'numpy', 'tqdm'}}
MAY_PRINT = {'__main__', 'commands'}
OUR_NAMES = {'geomim', 'projects', 'plugin'}
NEWER_THAN_PYTHON_38 = {'graphlib', 'tomllib', 'zoneinfo'}

Module = Tuple[str, ...]


def room_of(module: Module) -> str:
    """The room of a file given by its place in the package, such as ('mmdet3d', 'hooks.py')."""
    if len(module) > 1:
        return module[0]
    return '__main__' if module[0] == '__main__.py' else 'core'


def imported(tree: ast.AST, module: Module) -> Iterator[Tuple[int, Optional[Module], str]]:
    """(line, target inside the package or None, absolute name) of every import, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, None, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, None, node.module or ''
        elif isinstance(node, ast.ImportFrom):
            base = ('geomim', *module[:-1])
            base = base[: len(base) - (node.level - 1)]
            inner = tuple(node.module.split('.')) if node.module else ()
            for alias in node.names:
                # `from . import x` may name a module, `from .x import y` names x
                yield node.lineno, (*base, *inner, *(() if inner else (alias.name,))), ''
        elif isinstance(node, ast.Call) and call_name(node) in ('import_module', '__import__') and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str) and not name.value.startswith('.'):
                yield node.lineno, None, name.value


def call_name(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, 'attr', '')


def inner_violation(room: str, target: Module, rooms: List[str]) -> Optional[str]:
    """What is wrong with a relative import of `target`, None if nothing."""
    if target[:1] != ('geomim',):
        return 'a relative import that leaves the package'
    other = target[1] if len(target) > 1 and target[1] in rooms else 'core'
    return None if other in ARROWS[room] else f'{room} may not import {other}'


def outer_violation(room: str, name: str) -> Optional[str]:
    """What is wrong with an absolute import of `name`, None if nothing."""
    top = name.partition('.')[0]
    if top in OUR_NAMES:
        return f'absolute import of {name}: imports inside the package are relative'
    standard = set(sys.stdlib_module_names) - NEWER_THAN_PYTHON_38
    if room in OUTSIDE and top not in standard | OUTSIDE[room]:
        return f'{room} may not import {name}'
    return None


def check_file(path: Path, module: Module, rooms: List[str]) -> List[str]:
    """All violations of one file, as 'place:line: what'."""
    room = room_of(module)
    where = '/'.join(module)
    if room not in ARROWS:
        return [f'{where}: no rule for the folder {room}/, add it to ARROWS']
    tree = ast.parse(path.read_text(encoding='utf-8'), str(path))
    found = []
    for line, target, name in imported(tree, module):
        what = outer_violation(room, name) if target is None else inner_violation(room, target, rooms)
        if what:
            found.append(f'{where}:{line}: {what}')
    if room not in MAY_PRINT:
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        found += [
            f'{where}:{call.lineno}: print, use a logger'
            for call in calls
            if isinstance(call.func, ast.Name) and call.func.id == 'print'
        ]
    return found


def violations(package: Path, plugin: Path) -> List[str]:
    """All violations of the package and of the plugin, which is imported as geomim.plugin."""
    files = {path.relative_to(package).parts: path for path in sorted(package.rglob('*.py'))}
    files.update({('plugin', *path.relative_to(plugin).parts): path for path in sorted(plugin.rglob('*.py'))})
    rooms = sorted({module[0] for module in files if len(module) > 1} | set(ARROWS) - {'core', '__main__'})
    return [text for module, path in files.items() for text in check_file(path, module, rooms)]


def write_tree(root: Path, files: Dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


needs_stdlib_names = pytest.mark.skipif(sys.version_info < (3, 10), reason='sys.stdlib_module_names is 3.10 on')


@needs_stdlib_names
def test_rooms_import_only_what_they_may() -> None:
    assert violations(PACKAGE, PLUGIN) == []


@needs_stdlib_names
def test_checker_reads_the_real_package() -> None:
    """An empty walk would pass whatever the code says."""
    assert (PACKAGE / 'swin.py').is_file()
    assert any('torch' in name for _, _, name in imported(ast.parse((PACKAGE / 'swin.py').read_text()), ('swin.py',)))


@needs_stdlib_names
def test_checker_accepts_what_is_allowed(tmp_path: Path) -> None:
    files = {
        'geomim/__init__.py': 'from .swin import Swin\nfrom . import swin',
        'geomim/__main__.py': 'from .commands import verify\nprint(1)',
        'geomim/swin.py': 'from __future__ import annotations\nimport torch.nn as nn\nimport math',
        'geomim/commands/verify.py': 'import numpy\nfrom ..swin import Swin\nfrom . import table\nprint(1)\n'
        'def f():\n    from ..proofs import bevdet',
        'geomim/mmdet3d/model.py': 'import mmengine\nfrom .. import swin\nfrom ..synthetic import world',
        'geomim/mmdet3d/teacher/tap.py': 'from ...swin import Swin\nfrom ..model import Model',
        'geomim/synthetic/world.py': 'import numpy',
        'plugin/model.py': 'from mmcv.runner import BaseModule\nfrom ..swin import Swin\nfrom .teacher import T',
    }
    write_tree(tmp_path, files)
    assert violations(tmp_path / 'geomim', tmp_path / 'plugin') == []


@needs_stdlib_names
@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('geomim/swin.py', 'import numpy', 'core may not import numpy'),
        ('geomim/swin.py', 'from mmengine.model import BaseModule', 'core may not import mmengine.model'),
        ('geomim/swin.py', 'def f():\n    import numpy.linalg', 'swin.py:2: core may not import numpy.linalg'),
        ('geomim/swin.py', "import importlib\nimportlib.import_module('timm')", 'core may not import timm'),
        ('geomim/swin.py', 'import tomllib', 'core may not import tomllib'),
        ('geomim/__init__.py', 'from . import mmdet3d', 'core may not import mmdet3d'),
        ('geomim/swin.py', 'from .mmdet3d.model import M', 'core may not import mmdet3d'),
        ('geomim/swin.py', 'def f():\n    from .bevdet import depth', 'core may not import bevdet'),
        ('geomim/swin.py', 'from .synthetic import world', 'core may not import synthetic'),
        ('geomim/swin.py', 'from .commands import verify', 'core may not import commands'),
        ('geomim/swin.py', 'from .plugin import model', 'core may not import plugin'),
        ('geomim/__main__.py', 'from .mmdet3d import model', '__main__ may not import mmdet3d'),
        ('geomim/commands/verify.py', 'import mmengine', 'commands may not import mmengine'),
        ('geomim/commands/verify.py', 'from ..mmdet3d import model', 'commands may not import mmdet3d'),
        ('geomim/mmdet3d/model.py', 'from ..bevdet import depth', 'mmdet3d may not import bevdet'),
        ('geomim/mmdet3d/model.py', 'from geomim.swin import Swin', 'absolute import of geomim.swin'),
        ('geomim/mmdet3d/model.py', 'import projects.GeoMIM', 'absolute import of projects.GeoMIM'),
        ('geomim/mmdet3d/model.py', 'from ... import swin', 'leaves the package'),
        ('geomim/mmdet3d/model.py', 'def f():\n    print(1)', 'model.py:2: print'),
        ('geomim/swin.py', 'print(1)', 'print, use a logger'),
        ('plugin/model.py', 'from ..mmdet3d import model', 'plugin may not import mmdet3d'),
        ('plugin/model.py', 'print(1)', 'print, use a logger'),
        ('geomim/extra/thing.py', '', 'no rule for the folder extra/'),
    ],
)
def test_checker_finds_each_fault(tmp_path: Path, name: str, text: str, message: str) -> None:
    write_tree(tmp_path, {name: text})
    found = violations(tmp_path / 'geomim', tmp_path / 'plugin')
    assert len(found) == 1
    assert message in found[0]


def test_versions_agree() -> None:
    """The version of the installed distribution, of the source and of the changelog's first entry."""
    written = re.findall(r"^__version__ = '([^']+)'$", (PACKAGE / '__init__.py').read_text(), re.MULTILINE)
    released = re.findall(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)
    assert written == released[:1]
    try:
        installed = metadata.version('geomim')
    except metadata.PackageNotFoundError:
        pytest.skip('not installed: used as a folder of another checkout')
    assert installed == written[0]
