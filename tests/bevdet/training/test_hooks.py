"""Averaged weights against a plain loop; past frames and SyncBN on at an epoch or iteration, in new and resumed runs."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Optional

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

import geomim.mmdet3d  # noqa: F401  the reader of checkpoints
from geomim.bevdet.training import RampedEMA, SequentialControlHook, SyncBNControlHook
from geomim.bevdet.training import hooks as hooks_module
from geomim.mmdet3d import IterationSeedHook

ITERATIONS = 3  # an epoch


class Numbers(Dataset):
    def __len__(self) -> int:
        return ITERATIONS

    def __getitem__(self, index: int) -> Tensor:
        return torch.linspace(-1, 1, 12).view(3, 4) * (index + 1)


class Detector(BaseModel):
    """Stands in for a detector of several frames."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.with_prev = True
        self.seen: List[bool] = []

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        self.seen.append(self.with_prev)
        inputs = torch.cat(list(inputs)) if isinstance(inputs, (list, tuple)) else inputs.flatten(0, 1)
        output = self.body(inputs)
        return dict(loss=(output**2 * torch.arange(4)).mean() + output.sum()) if mode == 'loss' else [output]


class Recorder(Hook):
    """Keeps the state dict of the trained model after every iteration."""

    priority = 'HIGHEST'

    def __init__(self) -> None:
        self.states: List[Dict[str, Tensor]] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        self.states.append({name: value.clone() for name, value in runner.model.state_dict().items()})


def to_inputs(batch: List[Tensor]) -> Dict[str, Tensor]:
    return dict(inputs=torch.stack(batch))


def make_runner(work_dir: Path, hooks: List[Any], by_epoch: bool = True, length: int = 3, **further: Any) -> Runner:
    loop = dict(max_epochs=length) if by_epoch else dict(type='IterBasedTrainLoop', max_iters=length)
    return Runner(
        model=Detector(),
        work_dir=str(work_dir),
        experiment_name=f'{work_dir.name}_{id(hooks)}',
        train_dataloader=dict(
            dataset=Numbers(),
            batch_size=1,
            num_workers=0,
            sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=False),
            collate_fn=to_inputs,
        ),
        train_cfg=dict(by_epoch=True, **loop) if by_epoch else loop,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05)),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=by_epoch, interval=1),
            logger=dict(type='LoggerHook', interval=100),
        ),
        custom_hooks=hooks,
        log_level='ERROR',
        **further,
    )


def plain_average(states: List[Dict[str, Tensor]], decay: float, init_updates: int, ramp: float) -> Dict[str, Tensor]:
    """The published loop over the states after each iteration, started from the first."""
    average = {name: value.clone().double() for name, value in states[0].items()}
    for update, state in enumerate(states, 1):
        now = decay * (1 - math.exp(-(init_updates + update) / ramp))
        for name, value in state.items():
            if value.is_floating_point():
                average[name] = now * average[name] + (1 - now) * value
    return average


@pytest.mark.parametrize('init_updates, ramp', [(10560, 2000.0), (0, 5.0)])
def test_ramped_average_equals_the_plain_loop(tmp_path: Path, init_updates: int, ramp: float) -> None:
    recorder = Recorder()
    ema = dict(type='EMAHook', ema_type='RampedEMA', decay=0.9, init_updates=init_updates, ramp=ramp)
    runner = make_runner(tmp_path, [recorder, ema])
    runner.train()
    expected = plain_average(recorder.states, 0.9, init_updates, ramp)
    saved = torch.load(tmp_path / 'epoch_3.pth', weights_only=False)
    assert sorted(saved['state_dict']) == sorted(expected)
    for name, value in expected.items():
        torch.testing.assert_close(saved['state_dict'][name].double(), value.double(), rtol=1e-5, atol=1e-7)
    moved = recorder.states[-1]['body.0.weight'] - saved['state_dict']['body.0.weight']
    assert moved.abs().max() > 1e-3
    assert int(saved['state_dict']['body.1.num_batches_tracked']) == 1


def test_published_numbers_are_the_defaults() -> None:
    average = RampedEMA(Detector())
    assert average.update_buffers
    assert average.interval == 1
    for updates_before, decay in ((0, 0.999 * (1 - math.exp(-10561 / 2000))), (10**6, 0.999)):
        value = torch.ones((), dtype=torch.float64)
        average.avg_func(value, torch.zeros_like(value), updates_before)
        assert float(value) == pytest.approx(decay, rel=1e-12)


@pytest.mark.parametrize('wrong', [dict(decay=1.0), dict(init_updates=-1), dict(ramp=0.0)])
def test_wrong_numbers_of_an_average_are_refused(wrong: Dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        RampedEMA(Detector(), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    'begin, expected',
    [
        (dict(begin_epoch=2), [False] * 6 + [True] * 3),
        (dict(begin_iter=4), [False] * 4 + [True] * 5),
        (dict(begin_epoch=0), [True] * 9),
        (dict(begin_epoch=7), [False] * 9),
    ],
)
def test_past_frames_come_in_at_the_beginning(tmp_path: Path, begin: Dict[str, int], expected: List[bool]) -> None:
    runner = make_runner(tmp_path, [SequentialControlHook(**begin)])
    assert runner.train().seen == expected


def test_past_frames_in_a_loop_of_iterations(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, [SequentialControlHook(begin_iter=4)], by_epoch=False, length=7)
    assert runner.train().seen == [False] * 4 + [True] * 3
    with pytest.raises(ValueError, match='give begin_iter instead of begin_epoch=1'):
        make_runner(tmp_path, [SequentialControlHook(begin_epoch=1)], by_epoch=False).train()


@pytest.mark.parametrize('done, expected', [(1, [False] * 3 + [True] * 3), (2, [True] * 3)])
def test_past_frames_of_a_resumed_run(tmp_path: Path, done: int, expected: List[bool]) -> None:
    make_runner(tmp_path / 'first', [], length=done).train()
    checkpoint = str(tmp_path / 'first' / f'epoch_{done}.pth')
    hook = SequentialControlHook(begin_epoch=2)
    assert make_runner(tmp_path / 'rest', [hook], load_from=checkpoint, resume=True).train().seen == expected


def test_a_detector_of_one_frame_is_refused(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, [SequentialControlHook(begin_epoch=1)])
    del runner.model.with_prev
    with pytest.raises(ValueError, match='Detector has no with_prev'):
        runner.train()


@pytest.mark.parametrize('kind', [SequentialControlHook, SyncBNControlHook])
@pytest.mark.parametrize('wrong', [dict(), dict(begin_epoch=1, begin_iter=1), dict(begin_iter=-1)])
def test_a_beginning_must_be_clear(kind: Any, wrong: Dict[str, int]) -> None:
    with pytest.raises(ValueError, match=kind.__name__):
        kind(**wrong)


def test_one_process_keeps_its_batch_norms(tmp_path: Path) -> None:
    model = make_runner(tmp_path, [SyncBNControlHook(begin_epoch=1)]).train()
    assert type(model.body[1]) is nn.BatchNorm1d


@pytest.mark.parametrize('done, expected', [(0, [0, 0, 1]), (2, [1])])
def test_sync_bn_is_switched_on_once_also_after_a_resume(
    tmp_path: Path, monkeypatch: Any, done: int, expected: List[int]
) -> None:
    """A CPU cannot run SyncBN: what is counted is the calls, an epoch each."""
    resume: Dict[str, Any] = {}
    if done:
        make_runner(tmp_path / 'first', [], length=done).train()
        resume = dict(load_from=str(tmp_path / 'first' / f'epoch_{done}.pth'), resume=True)
    calls: List[nn.Module] = []
    epochs: List[int] = []

    class Count(Hook):
        def after_train_epoch(self, runner: Runner) -> None:
            epochs.append(len(calls))

    monkeypatch.setattr(hooks_module, 'get_world_size', lambda: 2)
    monkeypatch.setattr(hooks_module, '_on_cpu', lambda model: False)
    monkeypatch.setattr(nn.SyncBatchNorm, 'convert_sync_batchnorm', calls.append)
    runner = make_runner(tmp_path / 'rest', [SyncBNControlHook(begin_epoch=2), Count()], **resume)
    runner.train()
    assert epochs == expected
    assert calls == [runner.model]


def test_synchronised_norms_share_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks_module, 'get_world_size', lambda: 2)
    monkeypatch.setattr(hooks_module, '_on_cpu', lambda model: False)
    model = nn.Sequential(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), nn.LayerNorm(3), nn.BatchNorm1d(3))
    before = dict(model.state_dict(keep_vars=True))
    said: List[str] = []
    runner = SimpleNamespace(model=model, iter=0, logger=SimpleNamespace(info=said.append))
    SyncBNControlHook(begin_iter=0).switch(runner, True)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert [type(module).__name__ for module in model.modules()].count('SyncBatchNorm') == 2
    assert said[0].startswith('2 batch normalisations')


def test_chance_of_an_iteration_depends_on_its_number_and_the_seed_alone() -> None:
    def draw(iteration: int, seed: int) -> Tensor:
        IterationSeedHook().before_train_iter(SimpleNamespace(iter=iteration, seed=seed), 0)
        return torch.rand(8)

    first = draw(5, 0)
    torch.rand(3)
    data = np.random.get_state()[1].copy()
    assert torch.equal(draw(5, 0), first)
    assert not torch.equal(draw(6, 0), first)
    assert not torch.equal(draw(5, 1), first)
    assert (np.random.get_state()[1] == data).all(), "the data's chance is not this hook's"
