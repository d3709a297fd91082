"""The set-up command: what it does before and beside the installing, which `make` itself tries."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Sequence

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import bootstrap  # noqa: E402

OPERATOR = """
template <typename T> struct PreCalc { T weight_NAME; };
template <typename T> void bilinear_interpolate_gradient(T& value) { value = PreCalc<T>{T(1)}.weight_NAME; }
template <typename T> inline void add(T* address, const T& value) { *address += value; }
#define min(a, b) ((a) < (b) ? (a) : (b))
int NAME() { int value; bilinear_interpolate_gradient(value); add(&value, 1); return min(value, 3); }
"""


@pytest.mark.skipif(shutil.which('c++') is None, reason='needs a C++ compiler')
def test_united_sources_compile_although_helpers_share_their_names(tmp_path: Path) -> None:
    csrc = tmp_path / 'mmcv' / 'ops' / 'csrc'
    files = {f'pytorch/{name}.cpp': f'int {name}_dispatch() {{ return 0; }}\n' for name in ('nms', 'roi_align')}
    files.update({f'pytorch/cpu/{name}.cpp': OPERATOR.replace('NAME', name) for name in ('nms', 'roi_align')})
    files.update({f'common/{name}': '#pragma once\n#include <algorithm>\n' for name in bootstrap.HEADERS})
    for name, text in files.items():
        (csrc / name).parent.mkdir(parents=True, exist_ok=True)
        (csrc / name).write_text(text)
    bootstrap.unite_sources(tmp_path)
    assert [p.relative_to(csrc).as_posix() for p in sorted(csrc.rglob('*.cpp'))] == [
        'pytorch/cpu/unit.cpp',
        'pytorch/unit.cpp',
    ]
    for name, text in files.items():  # the sources themselves stay as they are
        assert (csrc / (f'{name}.hpp' if name.endswith('.cpp') else name)).read_text() == text
    for unit in csrc.rglob('unit.cpp'):
        subprocess.run(['c++', '-std=c++17', '-fsyntax-only', f'-I{csrc / "common"}', str(unit)], check=True)


def test_an_environment_in_which_an_install_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    steps, venv = bootstrap.Steps(tmp_path / 'log'), tmp_path / 'venv'
    version = '{}.{}'.format(*sys.version_info[:2])
    (venv / 'bin').mkdir(parents=True)
    (venv / 'bin' / 'python').symlink_to(sys.executable)
    (venv / '.geomim').write_text('whole')
    assert bootstrap.create_venv(steps, venv, '/bin/false', version) == str(venv / 'bin' / 'python')
    (venv / '.geomim').write_text('pip at work')
    with pytest.raises(bootstrap.SetupError, match='virtual environment'):  # it calls the Python that it was given
        bootstrap.create_venv(steps, venv, '/bin/false', version)
    assert not (venv / 'bin').exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'thesis.tex').touch()
    with pytest.raises(bootstrap.SetupError, match='was not made by this command'):
        bootstrap.create_venv(bootstrap.Steps(tmp_path.with_suffix('.log')), tmp_path, sys.executable, '3.11')
    assert (tmp_path / 'thesis.tex').exists()


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    def hold() -> 'contextlib.AbstractContextManager[None]':
        return bootstrap.only_one(tmp_path / 'lock', 'trying')

    with hold(), pytest.raises(bootstrap.SetupError, match='already trying'), hold():
        pass


def test_no_suitable_python_has_a_status_of_its_own() -> None:
    with pytest.raises(bootstrap.SetupError, match='3.8') as error:
        bootstrap.find_python(bootstrap.HOSTS['bevdet'], 'no-such-python')
    assert error.value.status == 3


def test_a_failed_step_shows_the_end_of_its_log(tmp_path: Path) -> None:
    steps = bootstrap.Steps(tmp_path / 'log')
    with pytest.raises(bootstrap.SetupError, match='disk is full'):
        steps.run('doomed', [sys.executable, '-c', 'raise SystemExit("disk is full")'])


@pytest.mark.skipif(shutil.which('c++') is None, reason='needs a C++ compiler')
@pytest.mark.parametrize('works', ['ready wheel', 'two units', 'file by file'])
def test_mmcv_is_taken_ready_else_built_in_two_units_else_file_by_file(
    works: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv('GEOMIM_CACHE', str(tmp_path))
    facts = dict(torch='2.1.2+cu118', cuda='11.8', gpu=False, tag='cp311', platform='linux', headers=True)
    monkeypatch.setattr(bootstrap, 'TORCH_PROBE', f'print({json.dumps(json.dumps(facts))})')
    titles, units = [], []

    class Steps(bootstrap.Steps):
        def run(self, title: str, command: Sequence[str], **env: str) -> None:
            titles.append(title)
            folder = Path(command[command.index('-w' if '-w' in command else '-d') + 1])
            if 'source' in title:
                (tmp_path / 'made' / 'mmcv-2.1.0' / 'mmcv/ops/csrc/pytorch/cpu').mkdir(parents=True, exist_ok=True)
                shutil.make_archive(str(folder / 'mmcv-2.1.0'), 'gztar', str(tmp_path / 'made'))
            elif works in title:
                (folder / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl').touch()
                units.extend(Path(command[-1]).rglob('unit.cpp'))
            else:
                raise bootstrap.SetupError('It does not work.')

    wheel = bootstrap.mmcv_wheel(Steps(tmp_path / 'log'), sys.executable, 'mmcv==2.1.0')
    assert wheel.is_file()
    assert works in titles[-1]
    assert titles[0].startswith('ready wheel')
    assert len(units) == (2 if works == 'two units' else 0)
    assert ('file by file' in capsys.readouterr().out) == (works == 'file by file')
    titles.clear()
    assert bootstrap.mmcv_wheel(Steps(tmp_path / 'log'), sys.executable, 'mmcv==2.1.0') == wheel
    assert titles == []
