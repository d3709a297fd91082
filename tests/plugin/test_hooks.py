"""Hooks in mmcv's real runner: the guard sees a teacher that moves, the exported encoder loads, a resumed run draws the same."""

from __future__ import annotations

import errno
import logging
import os
import random
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import pytest
import torch
from mmcv.fileio.file_client import HardDiskBackend
from mmcv.parallel import MMDataParallel
from mmcv.runner import Hook, build_runner
from torch import Tensor, nn

import geomim.plugin
from geomim import BEVGrid, GeoMIM, SwinEncoder
from geomim.adapter.seeds import mask_generator
from geomim.checkpoints.files import is_whole
from geomim.checkpoints.loading import load_encoder
from geomim.method.config import config_from_dict
from geomim.teachers.base import TeacherRecord


class HidingTeacher(nn.Module):
    """A network that its parents' parameters do not list, as that of ``GeoMIMLidarTeacher``."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).requires_grad_(False)
        object.__setattr__(self, 'detector', network.eval())
        view = config.view_transform
        self.record = TeacherRecord('tap', view.output_grid, config.target.channels)
        self.train()

    def train(self, mode: bool = True) -> HidingTeacher:
        del mode
        return super().train(False)


class Pretrainer(nn.Module):
    """What the hooks know of a pretrainer; its loss is a sum of its encoder's maps, its random numbers are kept."""

    def __init__(self, student: Dict[str, Any]) -> None:
        super().__init__()
        self.student = GeoMIM(config_from_dict(student))
        self.teacher = HidingTeacher(self.student.config)
        self.iteration = -1
        self.drawn: List[Any] = []

    def train_step(self, data: Tensor, optimizer: Any) -> Dict[str, Any]:
        masks = self.student.draw_masks(data.device, mask_generator(3, self.iteration, 0))
        self.drawn.append((self.iteration, masks[0].flatten().tolist(), float(torch.rand(1)), float(data.sum())))
        loss = sum(map_.square().mean() for map_ in self.student.encoder(data, masks))
        return dict(loss=loss, log_vars=dict(loss=float(loss)), num_samples=len(data))

    val_step = train_step


class Images(torch.utils.data.Dataset):
    """Two images an epoch, drawn anew whenever they are asked for."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.random.rand(3, 64, 96).astype(np.float32)) + index + random.random()


def run(
    model: nn.Module,
    work_dir: Path,
    hooks: List[Any],
    epochs: int = 2,
    resume: Optional[Path] = None,
    kind: str = 'EpochBasedRunner',
    parameters: Optional[List[Tensor]] = None,
) -> Any:
    model = MMDataParallel(model)
    span = dict(max_epochs=epochs) if kind == 'EpochBasedRunner' else dict(max_iters=2 * epochs)
    runner = build_runner(
        dict(type=kind, **span),
        dict(
            model=model,
            optimizer=torch.optim.AdamW(parameters or [p for p in model.parameters() if p.requires_grad], lr=1e-3),
            work_dir=str(work_dir),
            logger=logging.getLogger('tests.plugin'),
            meta=dict(seed=11),
        ),
    )
    by_epoch = kind == 'EpochBasedRunner'
    runner.register_training_hooks(
        lr_config=dict(policy='fixed'),
        optimizer_config=dict(grad_clip=dict(max_norm=1.0)),
        checkpoint_config=dict(interval=1, by_epoch=by_epoch),
        custom_hooks_config=hooks,
    )
    if resume is not None:
        runner.resume(str(resume))
    runner.run([torch.utils.data.DataLoader(Images(), batch_size=1, shuffle=True)], [('train', 1)])
    return runner


@pytest.fixture
def pretrainer(student_config: Dict[str, Any]) -> Callable[[], Pretrainer]:
    def build() -> Pretrainer:
        torch.manual_seed(1)
        return Pretrainer(student_config)

    return build


class Meddler(Hook):
    """Does something to the teacher in the second epoch."""

    def __init__(self, deed: Callable[[Any], None]) -> None:
        self.deed = deed

    def before_train_epoch(self, runner: Any) -> None:
        if runner.epoch == 1:
            self.deed(runner.model.module.teacher)


@pytest.mark.parametrize('kind', ['EpochBasedRunner', 'IterBasedRunner'])
def test_a_frozen_teacher_passes_the_guard(pretrainer: Any, tmp_path: Path, kind: str) -> None:
    runner = run(pretrainer(), tmp_path, [dict(type='GeoMIMTeacherGuardHook', interval=1)], kind=kind)
    assert runner.iter == 4


def write_weight(teacher: Any) -> None:
    teacher.detector[0].weight[2, 0] += 1e-6


def write_statistic(teacher: Any) -> None:
    teacher.detector[1].num_batches_tracked.add_(1)


@pytest.mark.parametrize(
    'deed, name', [(write_weight, r'detector\.0\.weight'), (write_statistic, r'detector\.1\.num_batches_tracked')]
)
@pytest.mark.parametrize('interval', [None, 1])
def test_a_changed_teacher_is_caught_and_the_tensor_named(
    pretrainer: Any, tmp_path: Path, deed: Any, name: str, interval: Optional[int]
) -> None:
    model = pretrainer()
    with pytest.raises(RuntimeError, match=rf'teacher changed.*{name} \(1 of'):
        run(model, tmp_path, [Meddler(deed), dict(type='GeoMIMTeacherGuardHook', interval=interval)], epochs=3)
    assert len(model.drawn) == (3 if interval else 4)


def test_a_teacher_put_into_training_mode_is_caught(pretrainer: Any, tmp_path: Path) -> None:
    model = pretrainer()
    hooks = [Meddler(lambda teacher: teacher.detector[1].train()), dict(type='GeoMIMTeacherGuardHook')]
    with pytest.raises(RuntimeError, match=r'evaluation mode.*first detector\.1'):
        run(model, tmp_path, hooks)
    assert len(model.drawn) == 2


def thaw(model: Any) -> List[Tensor]:
    model.teacher.detector[0].bias.requires_grad_(True)
    return []


def train_it_too(model: Any) -> List[Tensor]:
    return [*model.student.parameters(), model.teacher.detector[0].weight]


@pytest.mark.parametrize(
    'deed, message',
    [(thaw, r'frozen.*detector\.0\.bias'), (train_it_too, r'1 parameters of the teacher are in the optimizer')],
)
def test_a_teacher_that_would_train_is_caught_before_training(
    pretrainer: Any, tmp_path: Path, deed: Any, message: str
) -> None:
    model = pretrainer()
    with pytest.raises(RuntimeError, match=message):
        run(model, tmp_path, [dict(type='GeoMIMTeacherGuardHook')], parameters=deed(model))
    assert model.drawn == []


def test_a_record_that_does_not_fit_is_caught(pretrainer: Any, tmp_path: Path) -> None:
    model = pretrainer()
    model.teacher.record = TeacherRecord('tap', BEVGrid((-12.0, 12.0, 1.5), (-9.0, 9.0, 1.5)), 7)
    with pytest.raises(ValueError, match='7 channels'):
        run(model, tmp_path, [dict(type='GeoMIMTeacherGuardHook')])


@pytest.mark.parametrize('every_epoch', [False, True])
def test_the_exported_encoder_loads_and_holds_the_trained_weights(
    pretrainer: Any, tmp_path: Path, every_epoch: bool
) -> None:
    seen: List[bool] = []

    class Looker(Hook):
        def after_train_epoch(self, runner: Any) -> None:
            seen.append((tmp_path / 'start_bevdet.pth').exists())

    hook = dict(type='GeoMIMEncoderExportHook', filename='start.pth', every_epoch=every_epoch)
    model = pretrainer()
    run(model, tmp_path, [hook, Looker()])
    assert seen == [every_epoch] * 2
    trained = model.student.encoder.state_dict()
    for layout in ('bevdet', 'mmdet'):
        fresh = SwinEncoder(model.student.config.encoder)
        assert not load_encoder(fresh, tmp_path / f'start_{layout}.pth').missing
        assert all(torch.equal(value, trained[name]) for name, value in fresh.state_dict().items())
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith('.')]


@pytest.mark.parametrize('kind', ['GeoMIMEncoderExportHook', 'GeoMIMTeacherGuardHook'])
def test_a_finetuning_model_is_refused_before_training(tmp_path: Path, kind: str) -> None:
    with pytest.raises(
        RuntimeError, match=f'{kind} belongs to a pretraining run, but Conv2d has no student and no teacher'
    ):
        run(nn.Conv2d(3, 4, 1), tmp_path, [dict(type=kind)])


@pytest.mark.parametrize('layouts, message', [((), 'layouts is empty'), (('bevdet', 'mixmae'), "names 'mixmae'")])
def test_an_impossible_export_is_refused_when_the_hook_is_built(layouts: Tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        geomim.plugin.GeoMIMEncoderExportHook(layouts=layouts)


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match='at least 1 iteration, got 0'):
        geomim.plugin.GeoMIMTeacherGuardHook(interval=0)


def test_a_resumed_run_draws_and_learns_what_the_unbroken_one_does(pretrainer: Any, tmp_path: Path) -> None:
    seeds = [dict(type='GeoMIMSeedHook')]
    whole, first, second = pretrainer(), pretrainer(), pretrainer()
    run(whole, tmp_path / 'whole', seeds, epochs=3)
    run(first, tmp_path / 'broken', seeds, epochs=1)
    torch.rand(100), np.random.rand(100), random.random()  # another process stands elsewhere
    run(second, tmp_path / 'broken', seeds, epochs=3, resume=tmp_path / 'broken' / 'epoch_1.pth')
    assert [*first.drawn, *second.drawn] == whole.drawn
    assert [entry[0] for entry in whole.drawn] == list(range(6))
    for part in (2, 3):  # torch's numbers and the data change with every iteration
        assert len({entry[part] for entry in whole.drawn}) == 6
    assert len({str(entry[1]) for entry in whole.drawn}) > 1  # few cells: two masks may well be equal
    trained = whole.student.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in second.student.state_dict().items())


def test_another_seed_draws_something_else(pretrainer: Any, tmp_path: Path) -> None:
    drawn = []
    for name, hook in (('run', dict()), ('given', dict(seed=11)), ('other', dict(seed=12))):
        model = pretrainer()
        run(model, tmp_path / name, [dict(type='GeoMIMSeedHook', **hook)], epochs=1)
        drawn.append([entry[2:] for entry in model.drawn])
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize('kind', ['EpochBasedRunner', 'IterBasedRunner'])
def test_a_run_that_ends_while_it_saves_leaves_whole_checkpoints(
    pretrainer: Any, tmp_path: Path, monkeypatch: Any, kind: str
) -> None:
    put = HardDiskBackend.put
    last = 'epoch_3.pth' if kind == 'EpochBasedRunner' else 'iter_3.pth'

    def full(self: HardDiskBackend, data: bytes, path: Any) -> None:
        part = len(data) // 2 if str(path).endswith(last) else len(data)
        put(self, data[:part], path)
        if part < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(HardDiskBackend, 'put', full)
        with pytest.raises(OSError, match='No space'):
            run(pretrainer(), tmp_path, [], epochs=3, kind=kind)
    before = last.replace('3', '2')
    assert sorted(path.name for path in tmp_path.rglob('*.pth')) == [before.replace('2', '1'), before, 'latest.pth']
    assert os.readlink(str(tmp_path / 'latest.pth')) == before
    assert all(is_whole(path) for path in tmp_path.glob('*.pth'))
    if kind == 'EpochBasedRunner':  # the other resumes on a GPU only
        run(pretrainer(), tmp_path, [], epochs=3, kind=kind, resume=tmp_path / 'latest.pth')
        assert is_whole(tmp_path / last)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith('.')] == []
