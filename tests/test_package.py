"""The rules between rooms, checked on the source itself: who may import whom, and what a room may import at all."""

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

# room -> rooms that it may import, the ground floor first; `top` is geomim/__init__.py, which re-exports the method
GROUND = {'method'}
CHECKPOINTS = GROUND | {'atomic', 'checkpoints'}
ADAPTER = CHECKPOINTS | {'teachers', 'adapter'}
MMENGINE = ADAPTER | {'mmengine'}
MMDET3D = MMENGINE | {'mmdet3d'}
BEVDET = MMDET3D | {'nuscenes', 'bevdet'}
ARROWS = {
    'top': {'method', '_identity'},
    '_identity': set(),
    'method': GROUND,
    'atomic': set(),
    'checkpoints': CHECKPOINTS,
    'teachers': CHECKPOINTS | {'teachers'},
    'adapter': ADAPTER,
    'mmengine': MMENGINE,
    'mmdet3d': MMDET3D,
    'nuscenes': CHECKPOINTS | {'nuscenes'},
    'bevdet': BEVDET,
    'synthetic': {'method', 'atomic', 'synthetic'},
    'proofs': BEVDET | {'proofs'},
    'commands': BEVDET | {'synthetic', 'proofs', 'commands'},
    '__main__': {'commands'},
    'plugin': ADAPTER | {'plugin'},
}
# former module commands, which hand their arguments on to ``python -m geomim infos``
FORMER = {'bevdet/infos.py', 'mmdet3d/infos.py', 'mmdet3d/image_labels.py', 'mmdet3d/waymo_infos.py'}
# room -> top-level names that it may import besides the standard library; rooms not listed are free
TORCH = {'torch'}
OUTSIDE = {
    'top': set(),
    '_identity': set(),
    'method': TORCH,
    'atomic': set(),
    'checkpoints': {*TORCH, 'safetensors'},
    'teachers': TORCH,
    'adapter': {*TORCH, 'timm'},
    'mmengine': {'torch', 'numpy', 'cv2', 'mmengine', 'mmcv'},
    'proofs': {'torch', 'numpy', 'mmdet3d', 'mmengine'},
    'synthetic': {'numpy', 'PIL', 'cv2', 'torch', 'tqdm', 'nuscenes'},
    'commands': {'torch', 'numpy', 'tqdm'},
    '__main__': set(),
}
MAY_PRINT = {'__main__', 'commands'}
OUR_NAMES = {'geomim', 'projects', 'plugin'}
NEWER_THAN_PYTHON_38 = {'graphlib', 'tomllib', 'zoneinfo'}

Module = Tuple[str, ...]


def room_of(module: Module) -> str:
    """The room of a file given by its place in the package, such as ('mmdet3d', 'hooks.py')."""
    return module[0] if len(module) > 1 else module[0].replace('__init__', 'top').replace('.py', '')


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
    other = target[1] if len(target) > 1 and target[1] in rooms else 'top'
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
        return [f'{where}: no rule for the room {room}, add it to ARROWS']
    if where in FORMER:
        return []
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
    rooms = sorted({room_of(module) for module in files} | set(ARROWS) - {'top'})
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
    swin = PACKAGE / 'method' / 'swin.py'
    assert any('torch' in name for _, _, name in imported(ast.parse(swin.read_text()), ('method', 'swin.py')))
    rooms = {room_of(path.relative_to(PACKAGE).parts) for path in PACKAGE.rglob('*.py')}
    assert rooms | {'plugin'} == set(ARROWS), 'every rule has its room'


@needs_stdlib_names
def test_no_circle_of_rooms() -> None:
    """Taking away rooms that import no other room, again and again, leaves none."""
    left = {room: others - {room} for room, others in ARROWS.items()}
    while left:
        free = [room for room, others in left.items() if not others & set(left)]
        assert free, f'these rooms import each other in a circle: {sorted(left)}'
        left = {room: others for room, others in left.items() if room not in free}


@needs_stdlib_names
def test_checker_accepts_what_is_allowed(tmp_path: Path) -> None:
    files = {
        'geomim/__init__.py': 'from .method.swin import Swin\nfrom . import _identity',
        'geomim/__main__.py': 'from .commands import verify\nprint(1)',
        'geomim/_identity.py': 'import sys',
        'geomim/atomic.py': 'import os',
        'geomim/method/swin.py': 'from __future__ import annotations\nimport torch.nn as nn\nimport math\nfrom . import windows',
        'geomim/commands/verify.py': 'import numpy\nfrom ..method.swin import Swin\nfrom . import table\nprint(1)\n'
        'def f():\n    from ..proofs import bevdet',
        'geomim/checkpoints/files.py': 'from ..atomic import atomic_path\nfrom ..method.swin import Swin',
        'geomim/mmengine/model.py': 'import mmengine\nfrom ..adapter import step\nfrom ..atomic import atomic_path',
        'geomim/mmdet3d/teacher/tap.py': 'import mmdet3d\nfrom ...method.swin import Swin\nfrom ...mmengine.model import Model',
        'geomim/bevdet/boxes/head.py': 'import mmdet\nfrom ...nuscenes import infos\nfrom ..detectors import BEVDet',
        'geomim/bevdet/infos.py': 'from ..__main__ import main',
        'geomim/synthetic/world.py': 'import numpy\nfrom ..method.camera import CameraRig',
        'plugin/model.py': 'from mmcv.runner import BaseModule\nfrom ..method.swin import Swin\nfrom .teacher import T',
    }
    write_tree(tmp_path, files)
    assert violations(tmp_path / 'geomim', tmp_path / 'plugin') == []


@needs_stdlib_names
@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('geomim/method/swin.py', 'import numpy', 'method may not import numpy'),
        ('geomim/method/swin.py', 'from mmengine.model import BaseModule', 'method may not import mmengine.model'),
        ('geomim/method/swin.py', 'def f():\n    import numpy.linalg', 'swin.py:2: method may not import numpy.linalg'),
        ('geomim/method/swin.py', "import importlib\nimportlib.import_module('timm')", 'method may not import timm'),
        ('geomim/method/swin.py', 'import tomllib', 'method may not import tomllib'),
        ('geomim/method/swin.py', 'from ..checkpoints import files', 'method may not import checkpoints'),
        ('geomim/method/swin.py', 'from ..atomic import atomic_path', 'method may not import atomic'),
        ('geomim/method/swin.py', 'def f():\n    from ..bevdet import depth', 'method may not import bevdet'),
        ('geomim/method/swin.py', 'from .. import GeoMIM', 'method may not import top'),
        ('geomim/method/swin.py', 'print(1)', 'print, use a logger'),
        ('geomim/__init__.py', 'from . import mmdet3d', 'top may not import mmdet3d'),
        ('geomim/atomic.py', 'import torch', 'atomic may not import torch'),
        ('geomim/checkpoints/files.py', 'import numpy', 'checkpoints may not import numpy'),
        ('geomim/checkpoints/files.py', 'from ..teachers import base', 'checkpoints may not import teachers'),
        ('geomim/teachers/base.py', 'from ..adapter import step', 'teachers may not import adapter'),
        ('geomim/adapter/step.py', 'import mmengine', 'adapter may not import mmengine'),
        ('geomim/adapter/step.py', 'from ..mmengine import model', 'adapter may not import mmengine'),
        ('geomim/mmengine/model.py', 'import mmdet3d', 'mmengine may not import mmdet3d'),
        ('geomim/mmengine/model.py', 'from ..mmdet3d import loading', 'mmengine may not import mmdet3d'),
        ('geomim/mmdet3d/model.py', 'from ..bevdet import depth', 'mmdet3d may not import bevdet'),
        ('geomim/mmdet3d/model.py', 'from ..nuscenes import infos', 'mmdet3d may not import nuscenes'),
        ('geomim/mmdet3d/model.py', 'from geomim.method.swin import Swin', 'absolute import of geomim.method.swin'),
        ('geomim/mmdet3d/model.py', 'import projects.GeoMIM', 'absolute import of projects.GeoMIM'),
        ('geomim/mmdet3d/model.py', 'from ... import swin', 'leaves the package'),
        ('geomim/mmdet3d/model.py', 'def f():\n    print(1)', 'model.py:2: print'),
        ('geomim/nuscenes/infos.py', 'from ..mmdet3d import loading', 'nuscenes may not import mmdet3d'),
        ('geomim/synthetic/world.py', 'from ..mmdet3d import loading', 'synthetic may not import mmdet3d'),
        ('geomim/__main__.py', 'from .mmdet3d import model', '__main__ may not import mmdet3d'),
        ('geomim/commands/verify.py', 'import mmengine', 'commands may not import mmengine'),
        ('plugin/model.py', 'from ..mmdet3d import model', 'plugin may not import mmdet3d'),
        ('plugin/model.py', 'from ..mmengine import model', 'plugin may not import mmengine'),
        ('plugin/model.py', 'print(1)', 'print, use a logger'),
        ('geomim/extra/thing.py', '', 'no rule for the room extra'),
        ('geomim/thing.py', '', 'no rule for the room thing'),
    ],
)
def test_checker_finds_each_fault(tmp_path: Path, name: str, text: str, message: str) -> None:
    write_tree(tmp_path, {name: text})
    found = violations(tmp_path / 'geomim', tmp_path / 'plugin')
    assert len(found) == 1
    assert message in found[0]


def test_versions_agree() -> None:
    """The version of the installed distribution, of the source, of the changelog's first entry and of the citation."""
    written = re.findall(r"^__version__ = '([^']+)'$", (PACKAGE / '__init__.py').read_text(), re.MULTILINE)
    released = re.findall(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)
    cited = re.findall(r'^version: (\S+)$', (ROOT / 'CITATION.cff').read_text(), re.MULTILINE)
    assert written == released[:1] == cited
    try:
        installed = metadata.version('geomim')
    except metadata.PackageNotFoundError:
        pytest.skip('not installed: used as a folder of another checkout')
    assert installed == written[0]


def test_the_projects_page_lists_every_room_and_every_file_of_the_method() -> None:
    page = (PACKAGE.parent / 'README.md').read_text()
    files = {path.name for path in (PACKAGE / 'method').glob('*.py')} - {'__init__.py'}
    rooms = {f'{path.parent.name}/' for path in PACKAGE.glob('*/__init__.py')} - {'method/'} | {'atomic.py'}
    assert {name for name in files | rooms if f'\n| `{name}` |' not in page} == set()
    listed = re.findall(r'^\| `(\w+(?:\.py|/))` \|', page, re.MULTILINE)
    assert set(listed) == files | rooms, 'no row for a file that is gone'


def test_links_of_the_pages_lead_to_files_and_headings() -> None:
    pages = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', PACKAGE.parent / 'README.md']
    pages += sorted([*ROOT.glob('docs/*.md'), *ROOT.glob('constraints/*.md')])
    dead = []
    for page in pages:
        for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text(encoding='utf-8')):
            place, _, anchor = target.partition('#')
            other = page.parent / place if place else page
            if '://' not in target and (not other.exists() or anchor and anchor not in anchors(other)):
                dead.append(f'{page.name}: {target}')
    assert dead == []


def anchors(page: Path) -> List[str]:
    """How GitHub names the headings of a page."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(encoding='utf-8'), re.MULTILINE)
    return [re.sub(r'[^a-z0-9 _-]', '', heading.lower()).replace(' ', '-') for heading in headings]
