"""Steps of the scripts: when a training is finished, and that no command outlives its script."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Iterator, List

import pytest
import torch

from ..helpers import runs_still, wait_until

on_linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='a signal of Linux')


@pytest.fixture
def runs(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script('experiments/runs.py')


@pytest.fixture
def started(runs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> List[List[str]]:
    """The commands that would have been run."""
    from geomim.nuscenes import infos

    commands: List[List[str]] = []
    monkeypatch.setattr(runs, 'run', lambda title, command, log=None: commands.append(command))
    monkeypatch.setattr(infos, 'mmdet3d_tools', lambda: Path('tools'))
    return commands


def log(folder: Path, **row: float) -> None:
    path = folder / '20260101_000000' / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a', encoding='utf-8') as file:
        file.write(json.dumps(row) + '\n')


def test_a_training_is_finished_when_its_checkpoint_is_whole_and_its_validation_logged(
    runs: ModuleType, started: List[List[str]], tmp_path: Path
) -> None:
    def train() -> int:
        started.clear()
        assert runs.train('a step', Path('config.py'), tmp_path, 4, []) == path
        assert all('--resume' in command for command in started)
        return len(started)

    path = tmp_path / 'iter_4.pth'
    assert train() == 1
    torch.save({'state_dict': {'weight': torch.zeros(1000)}}, path)
    log(tmp_path, step=4, iter=4, loss=1.0, lr=0.1)
    assert train() == 1  # killed during its validation
    log(tmp_path, step=0, mAP=0.5)
    assert train() == 0
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):  # killed while it was written
        path.write_bytes(whole[:size])
        assert train() == 1


SCRIPT = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background
sys.path.insert(0, sys.argv[1])
import runs

child = (
    'import os, sys, time; open(sys.argv[1], "w").write(str(os.getpid())); os.rename(sys.argv[1], sys.argv[2]); time.sleep(60)'
)
def command(name):
    return [sys.executable, '-c', child, sys.argv[3] + '/.' + name, sys.argv[3] + '/' + name]

if sys.argv[2] == 'alone':
    runs.run('one', command('one'))
else:
    with runs.side_by_side(2) as pool:
        list(pool.map(lambda name: runs.run(name, command(name)), ('one', 'two', 'three')))
"""


@pytest.fixture
def script(repository: Path, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Starts a script with one command or several at a time; gives its process and those of its commands."""
    processes: List[subprocess.Popen] = []

    def start(kind: str) -> Any:
        arguments = [str(repository / 'experiments'), kind, str(tmp_path)]
        process = subprocess.Popen([sys.executable, '-c', SCRIPT, *arguments], start_new_session=True)
        processes.append(process)
        files = [tmp_path / name for name in (('one',) if kind == 'alone' else ('one', 'two'))]
        wait_until(lambda: all(file.is_file() for file in files))
        return process, [int(file.read_text()) for file in files]

    yield start
    for process in processes:  # what a failed test leaves
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@on_linux
@pytest.mark.parametrize('kind', ['alone', 'side by side'])
def test_an_interrupted_script_leaves_no_command(script: Callable[[str], Any], kind: str, tmp_path: Path) -> None:
    process, children = script(kind)
    process.send_signal(signal.SIGINT)  # to it alone, as another program would
    process.wait(20)
    assert process.returncode
    assert not any(map(runs_still, children))
    assert not (tmp_path / 'three').exists()


@on_linux
@pytest.mark.parametrize('ending', [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_script_leaves_no_command(script: Callable[[str], Any], ending: signal.Signals) -> None:
    process, children = script('side by side')
    process.send_signal(ending)
    process.wait(20)
    wait_until(lambda: not any(map(runs_still, children)), 10)


def test_a_failed_command_is_named_without_its_launcher(runs: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, '-c', 'print("said"); raise SystemExit(3)']
    with pytest.raises(subprocess.CalledProcessError) as error:
        runs.run('a step', command, tmp_path / 'step.log')
    assert (error.value.cmd, error.value.returncode) == (command, 3)
    assert (tmp_path / 'step.log').read_text() == 'said\n'


def test_official_scores_come_before_those_at_shorter_ranges(runs: ModuleType, tmp_path: Path) -> None:
    place = 'NuScenes metric/pred_instances_3d_NuScenes'
    log(tmp_path, step=4, **{f'{place}/within_20m/mAP': 0.5, f'{place}/mAP': 0.25})
    folders = sys.modules['run_folders']
    assert folders.metric(folders.last_scores(tmp_path), 'mAP') == 0.25
