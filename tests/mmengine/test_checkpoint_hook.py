"""Real Runners that are killed or run out of disk while they save: what is left is whole, and the run goes on from it to its figures."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn

import geomim.mmengine
from geomim.checkpoints.files import is_whole


class Line(BaseModel):
    """One weight, which the model's output is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs: Tensor, mode: str = 'tensor') -> Any:
        output = self.weight * inputs
        return {'loss': output.square().mean()} if mode == 'loss' else [{'output': output}]


class Numbers(torch.utils.data.Dataset):
    metainfo: Dict[str, Any] = {}

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Dict[str, Tensor]:
        return {'inputs': torch.tensor(index + 1.0)}


class Score(BaseMetric):
    """How often it was asked, as a score that grows."""

    asked = 0

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(1)

    def compute_metrics(self, results: List[Any]) -> Dict[str, float]:
        Score.asked += 1
        return {'acc': float(Score.asked)}


class KilledInValidation(Hook):
    def before_val_epoch(self, runner: Runner) -> None:
        raise KeyboardInterrupt


def run(
    work_dir: Path,
    end: int = 4,
    by_epoch: bool = False,
    resume: bool = False,
    validate: bool = False,
    hooks: Optional[List[Hook]] = None,
    load_from: Optional[str] = None,
    **checkpoint: Any,
) -> Runner:
    """A training of some iterations, or of epochs of one iteration, that saves after each."""
    loader = dict(
        batch_size=2,
        num_workers=0,
        dataset=Numbers(2 if by_epoch else 16),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    loop = dict(by_epoch=True, max_epochs=end) if by_epoch else dict(by_epoch=False, max_iters=end)
    figures = dict(val_dataloader=loader, val_cfg={}, val_evaluator=Evaluator([Score()])) if validate else {}
    runner = Runner(
        model=Line(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(**loop, val_interval=end),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=by_epoch, **checkpoint)),
        custom_hooks=hooks or [],
        resume=resume,
        load_from=load_from,
        experiment_name=f'{work_dir.name}_{os.urandom(4).hex()}',
        log_level='WARNING',
        **figures,
    )
    runner.train()
    return runner


def weights(work_dir: Path) -> List[str]:
    """The files of weights; whatever lies about there is one."""
    return sorted(str(path.relative_to(work_dir)) for path in work_dir.rglob('*.pth'))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


# A run that is killed in the middle of writing its third file, by whatever function writes it.
KILLED = """
import builtins, io, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_checkpoint_hook as test

count, opened = [0], io.open
class Half:
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.file.close()
    def write(self, data):
        self.file.write(data[:len(data) // 2])
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

def open_(name, mode='r', *args, **options):
    file = opened(name, mode, *args, **options)
    if str(name).endswith('.pth') and 'w' in mode:
        count[0] += 1
        return Half(file) if count[0] == 3 else file
    return file

builtins.open = open_
test.run(Path(sys.argv[2]), max_keep_ckpts=1, by_epoch=sys.argv[3] == 'epoch')
"""


@pytest.mark.parametrize('unit', ['iter', 'epoch'])
def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(unit: str, tmp_path: Path) -> None:
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-c', KILLED, str(Path(__file__).parent), str(tmp_path / 'broken'), unit]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert f'{unit}_2.pth' in weights(tmp_path / 'broken')
    assert f'{unit}_3.pth' not in weights(tmp_path / 'broken')
    resumed = run(tmp_path / 'broken', max_keep_ckpts=1, by_epoch=unit == 'epoch', resume=True)
    whole = run(tmp_path / 'whole', max_keep_ckpts=1, by_epoch=unit == 'epoch')
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert weights(tmp_path / 'broken') == weights(tmp_path / 'whole') == [f'{unit}_4.pth']
    assert not list((tmp_path / 'broken').glob('.*'))


def fill_disk(monkeypatch: pytest.MonkeyPatch, when: Callable[[str], bool]) -> None:
    """Half a file, then no space, for the files of which ``when`` says so."""
    put = LocalBackend.put

    def full(self: LocalBackend, data: bytes, path: Any) -> None:
        if when(str(path)):
            put(self, data[: len(data) // 2], path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(self, data, path)

    monkeypatch.setattr(LocalBackend, 'put', full)


@pytest.mark.parametrize('keep', [1, 2])
def test_a_full_disk_leaves_the_checkpoint_before(keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fill_disk(patch, lambda path: path.endswith('iter_3.pth'))
        with pytest.raises(OSError, match='No space'):
            run(tmp_path, max_keep_ckpts=keep)
    assert weights(tmp_path) == [f'iter_{number}.pth' for number in range(3 - keep, 3)]
    assert run(tmp_path, max_keep_ckpts=keep, resume=True).iter == 4
    assert weights(tmp_path) == [f'iter_{number}.pth' for number in range(5 - keep, 5)]


def test_the_best_checkpoint_leaves_after_the_better_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Dict[str, Any] = dict(validate=True, save_best='acc', max_keep_ckpts=1)
    run(tmp_path, end=2, **options)
    assert weights(tmp_path) == ['best_acc_iter_2.pth', 'iter_2.pth']
    with monkeypatch.context() as patch:
        fill_disk(patch, lambda path: 'best_acc_iter_4' in path)
        with pytest.raises(OSError, match='No space'):
            run(tmp_path, resume=True, **options)
    assert weights(tmp_path) == ['best_acc_iter_2.pth', 'iter_4.pth']
    run(tmp_path, resume=True, **options)
    assert weights(tmp_path) == ['best_acc_iter_4.pth', 'iter_4.pth']
    run(tmp_path, resume=True, **options)  # a better score of the same step: the file written anew stays
    assert weights(tmp_path) == ['best_acc_iter_4.pth', 'iter_4.pth']
    assert all(is_whole(path) for path in tmp_path.glob('*.pth'))


UNREADABLE = {
    'last_checkpoint emptied': b'',
    'last_checkpoint zeroed': bytes(40),
    'last_checkpoint overwritten': b'\xff' * 9,
}


@pytest.mark.parametrize('damage', ['missing', 'truncated', 'emptied', *UNREADABLE, 'folder moved'])
def test_a_run_resumes_from_the_newest_whole_checkpoint_and_says_so(damage: str, tmp_path: Path, capfd: Any) -> None:
    run(tmp_path / 'run', end=4)
    last, expected = tmp_path / 'run' / 'iter_4.pth', 'iter_3.pth'
    (tmp_path / 'run' / 'iter_40.pth').write_bytes((tmp_path / 'run' / 'iter_1.pth').read_bytes())
    os.utime(tmp_path / 'run' / 'iter_40.pth', (1, 1))  # of an earlier, longer run
    if damage == 'missing':
        last.unlink()
    elif damage == 'truncated':
        cut(last)
    elif damage == 'emptied':
        last.write_bytes(b'')
    elif damage in UNREADABLE:
        (tmp_path / 'run' / 'last_checkpoint').write_bytes(UNREADABLE[damage])
        expected = 'iter_4.pth'
    else:
        (tmp_path / 'run').rename(tmp_path / 'moved')
        expected = 'iter_4.pth'
    folder = tmp_path / ('moved' if damage == 'folder moved' else 'run')
    resumed = run(folder, end=6, resume=True)
    text = capfd.readouterr()
    assert re.search(
        rf'last_checkpoint names .*: resuming from \S*{expected}, the newest whole one', text.out + text.err
    )
    assert torch.equal(resumed.model.weight, run(tmp_path / 'unbroken', end=6).model.weight)


def test_checkpoints_in_another_folder_and_with_other_names_are_found(tmp_path: Path) -> None:
    options: Dict[str, Any] = dict(out_dir=str(tmp_path / 'out'), filename_tmpl='step{}-of-run.pth')
    run(tmp_path / 'run', **options)
    cut(tmp_path / 'out' / 'run' / 'step4-of-run.pth')
    assert run(tmp_path / 'run', end=6, resume=True, **options).iter == 6


def test_nothing_whole_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    run(tmp_path, end=2, max_keep_ckpts=1)
    cut(tmp_path / 'iter_2.pth')
    with pytest.raises(ValueError, match=r'iter_2.pth.*not whole.*no whole checkpoint in .*remove last_checkpoint'):
        run(tmp_path, resume=True)


def test_torchs_older_files_are_whole_or_not(tmp_path: Path) -> None:
    path = tmp_path / 'iter_1.pth'
    torch.save({'state_dict': {'weight': torch.zeros(9)}}, path, _use_new_zipfile_serialization=False)
    assert is_whole(path)
    cut(path)
    assert not is_whole(path)
    assert not is_whole(tmp_path)
    assert not is_whole(tmp_path / 'absent.pth')


@pytest.mark.parametrize('by_epoch', [False, True])
def test_a_run_that_ended_in_its_last_validation_validates_when_resumed(by_epoch: bool, tmp_path: Path) -> None:
    options: Dict[str, Any] = dict(end=2, by_epoch=by_epoch, validate=True)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, hooks=[KilledInValidation()], **options)
    Score.asked = 0
    resumed = run(tmp_path, resume=True, **options)
    assert Score.asked == 1
    assert resumed.iter == 2
    logged = [line for path in tmp_path.glob('*/vis_data/scalars.json') for line in path.read_text().splitlines()]
    assert any('"acc": 1.0' in line for line in logged)
    run(tmp_path, resume=True, by_epoch=by_epoch, validate=True, end=3)  # something is left to train: once, at the end
    assert Score.asked == 2


def test_a_run_without_validation_resumes_at_its_end_as_ever(tmp_path: Path) -> None:
    run(tmp_path, end=2)
    assert run(tmp_path, end=2, resume=True).iter == 2


def test_other_processes_than_the_first_save_and_remove_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = geomim.mmengine.GeoMIMCheckpointHook(interval=1, by_epoch=False, max_keep_ckpts=1)
    runner = run(tmp_path, end=1)
    hook.before_train(runner)
    monkeypatch.setattr(geomim.mmengine.checkpoint_hook, 'is_main_process', lambda: False)
    with hook._nothing_lost(runner) as saving:
        assert saving is runner
