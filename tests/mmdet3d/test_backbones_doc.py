"""docs/backbones.md: each block builds its detector and loads one and the same encoder file, and nothing is missed.

Only the norms of maps that the pretraining does not put out, those of strides 4 and 8, are not in the file.
"""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch

pytest.importorskip('mmdet3d')

from ..helpers import run_quietly

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / 'docs' / 'backbones.md'
CHECKOUT = 'GEOMIM_MMDET3D_CHECKOUT'
DEPTHS = (1, 1, 2, 1)
CHANNELS = (128, 256, 512, 1024)
RGB = [[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]]


def blocks() -> Dict[str, str]:
    """Heading -> its Python block."""
    sections = re.split(r'^## ', PAGE.read_text(encoding='utf-8'), flags=re.MULTILINE)[1:]
    found = {section.splitlines()[0]: re.findall(r'```python\n(.*?)```', section, re.DOTALL) for section in sections}
    assert all(len(code) == 1 for code in found.values()), found.keys()
    return {heading: code[0] for heading, code in found.items()}


BLOCKS = blocks()
IN_MMDET3D = [name for name, code in BLOCKS.items() if re.search(r"_base_ = '(mmdet3d::|mmdet::|configs/)", code)]
IN_CHECKOUT = [name for name, code in BLOCKS.items() if "_base_ = 'projects/" in code]
IN_MMSEG = [name for name, code in BLOCKS.items() if "_base_ = 'mmseg::" in code]


@pytest.fixture(scope='module')
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder that all blocks load, exported once: Swin-B's widths, fewer blocks."""
    from geomim import SwinConfig, SwinEncoder
    from geomim.checkpoints.loading import export_encoder, save_atomically

    torch.manual_seed(3)
    student = SwinEncoder(SwinConfig(depths=DEPTHS))
    with torch.no_grad():
        for value in student.parameters():
            value.add_(torch.randn_like(value) * 0.02)
    state = {f'encoder.{name}': value for name, value in student.state_dict().items()}
    path = tmp_path_factory.mktemp('encoder') / 'encoder_bevdet.pth'
    save_atomically(export_encoder(state, 'bevdet'), path)
    sums = {name: float(value.double().sum()) for name, value in student.state_dict().items()}
    path.with_suffix('.json').write_text(json.dumps(sums))
    return path


def build(tmp_path: Path, encoder: Path, names: List[str], checkout: str = '') -> Dict[str, Dict[str, Any]]:
    """The named blocks as files, built in a process of their own."""
    paths = {}
    for number, name in enumerate(names):
        code = BLOCKS[name].replace("_base_ = 'configs/", f"_base_ = '{ROOT}/configs/")
        code = code.replace("_base_ = 'projects/", f"_base_ = '{checkout}/projects/")
        path = tmp_path / f'block_{number}.py'
        path.write_text(code)
        paths[str(path)] = name
    done = run_quietly([HERE / 'build_from_page.py', encoder, *paths], cwd=tmp_path, **{CHECKOUT: checkout})
    rows = [json.loads(line[len('RESULT ') :]) for line in done.stdout.splitlines() if line.startswith('RESULT ')]
    return {paths[row['path']]: row for row in rows}


def check(name: str, found: Dict[str, Any], encoder: Path) -> None:
    written = re.search(r'out_indices=\(([\d, ]+)\)', BLOCKS[name]).group(1)
    stages = [int(index) for index in written.split(',')]
    fresh = {f'norm{stage}.{part}' for stage in stages if stage < 2 for part in ('weight', 'bias')}
    exported = json.loads(encoder.with_suffix('.json').read_text())
    assert found['own'].keys() - exported.keys() == fresh
    assert {key: found['own'][key] for key in exported} == pytest.approx(exported), name
    first, origin, *rest = found['log'].splitlines()
    assert f'{len(exported)} tensors taken' in first
    assert origin.startswith('  from ')
    what = f'{len(fresh)} ({", ".join(sorted(fresh))})'
    assert rest == ([f'  missing in the file, left at their initial values: {what}'] if fresh else [])
    sizes = [[-(-side // (4 << stage)) for side in (96, 160)] for stage in stages]
    assert found['maps'] == [[CHANNELS[stage], *size] for stage, size in zip(stages, sizes)]
    assert found['neck']
    mean, std, to_rgb = found['preprocessor']
    assert [mean, std] == [pytest.approx(numbers) for numbers in RGB], name
    assert to_rgb == (name != 'BEVFusion'), name  # whose loader gives R, G, B


@pytest.fixture(scope='module')
def built(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Dict[str, Dict[str, Any]]:
    return build(tmp_path_factory.mktemp('blocks'), encoder, IN_MMDET3D)


@pytest.mark.parametrize('name', IN_MMDET3D)
def test_a_block_on_an_installed_host_builds_and_misses_nothing(
    built: Dict[str, Dict[str, Any]], encoder: Path, name: str
) -> None:
    check(name, built[name], encoder)


@pytest.mark.parametrize('name', IN_CHECKOUT)
def test_a_block_on_a_project_of_mmdet3d_builds_and_misses_nothing(encoder: Path, tmp_path: Path, name: str) -> None:
    folder = Path(os.environ.get(CHECKOUT, ''))
    if not (folder / 'projects' / 'PETR').is_dir():
        pytest.skip(f'needs a checkout of mmdet3d 1.4, which holds projects/: set {CHECKOUT} to its folder')
    check(name, build(tmp_path, encoder, [name], str(folder.resolve()))[name], encoder)


@pytest.mark.parametrize('name', IN_MMSEG)
def test_a_block_on_mmseg_builds_and_misses_nothing(encoder: Path, tmp_path: Path, name: str) -> None:
    if find_spec('mmseg') is None:
        pytest.skip('needs mmsegmentation 1.x')
    check(name, build(tmp_path, encoder, [name])[name], encoder)


def test_the_page_is_whole() -> None:
    """Every block is tested somewhere, the table leads to every section, and links lead to files."""
    fork = ['Forks on mmcv 1.x']  # tests/plugin, under mmcv 1.x
    assert sorted([*IN_MMDET3D, *IN_CHECKOUT, *IN_MMSEG, *fork]) == sorted(BLOCKS)
    text = PAGE.read_text(encoding='utf-8')
    anchors = {re.sub(r'[^a-z0-9 -]', '', name.lower()).replace(' ', '-') for name in BLOCKS}
    assert set(re.findall(r'\(#([^)]*)\)', text)) == anchors
    for target in re.findall(r'\]\(([^)#]+)\)', text):
        assert (PAGE.parent / target).exists(), target
