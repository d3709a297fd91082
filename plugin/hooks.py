"""Hooks of a pretraining run: a guard over the frozen teacher, export of the encoder.

The model is a detector with a core ``GeoMIM`` as ``.student`` and a ``.teacher`` that carries its ``record``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable, Mapping, Optional, Sequence

from mmcv.runner import Hook, master_only
from torch import nn

from ..checkpoints.loading import check_encoder_layouts, write_encoders
from ..teachers.guard import TeacherGuard
from .host import HOOKS, unwrapped


def pretraining_model(runner: Any, owner: str) -> nn.Module:
    """The runner's model without its wrappers.

    Raises:
        RuntimeError: it has no ``student`` or no ``teacher``.
    """
    model = unwrapped(runner.model)
    absent = [name for name in ('student', 'teacher') if getattr(model, name, None) is None]
    if absent:
        raise RuntimeError(
            f'{owner} belongs to a pretraining run, but {type(model).__name__} has no {" and no ".join(absent)}: take it '
            'out of custom_hooks, or train GeoMIMPretrainer'
        )
    return model


@HOOKS.register_module()
class GeoMIMTeacherGuardHook(Hook):
    """Makes sure that the teacher is frozen, stays as it was loaded, and gives the raster of the student.

    Args:
        interval: iterations between comparisons of the teacher's weights, None for the end of every epoch only.

    Raises:
        RuntimeError: a teacher that trains, or whose weights have changed; names the module or tensor.
        ValueError: a teacher's record that does not fit the student's grid.
    """

    def __init__(self, interval: Optional[int] = None) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f'GeoMIMTeacherGuardHook: interval must be at least 1 iteration, got {interval}')
        self.interval = interval
        self._guard: Optional[TeacherGuard] = None

    def before_run(self, runner: Any) -> None:
        """Check mode, gradients, optimizer and record; remember the weights."""
        model = pretraining_model(runner, type(self).__name__)
        self._guard = TeacherGuard(model.teacher)
        self._guard.check_mode()
        self._guard.check_frozen(_param_groups(runner.optimizer))
        student = model.student.config
        model.teacher.record.check_student(student.view_transform.output_grid, student.target.channels)

    def before_train_iter(self, runner: Any) -> None:
        """Check the mode at an epoch's start: the runner has just called ``model.train()``."""
        due = runner.inner_iter == 0 or (self.interval is not None and runner.iter % self.interval == 0)
        if due and self._guard is not None:
            self._guard.check_mode()

    def after_train_iter(self, runner: Any) -> None:
        """Compare the weights, if an interval is set."""
        if self._guard is not None and self.interval is not None and self.every_n_iters(runner, self.interval):
            self._guard.check_unchanged()

    def after_epoch(self, runner: Any) -> None:
        """Compare the weights with those at the start."""
        if self._guard is not None:
            self._guard.check_unchanged()


def _param_groups(optimizer: Any) -> Iterable[Mapping[str, Any]]:
    """Of one optimizer, a dictionary of several, or none."""
    optimizers = list(optimizer.values()) if isinstance(optimizer, dict) else [optimizer] if optimizer else []
    return [group for one in optimizers for group in one.param_groups]


@HOOKS.register_module()
class GeoMIMEncoderExportHook(Hook):
    """Writes the student's encoder in the layouts that finetuning loads, into the run's working directory.

    Args:
        filename: a layout's name goes before its suffix: ``encoder.pth`` becomes ``encoder_bevdet.pth``.
        layouts: names that ``geomim.checkpoints.loading.export_encoder`` knows.
        every_epoch: also after every epoch, over the same files.

    Raises:
        ValueError: no layout, or one that is not known.
        RuntimeError: a model without a student, before training.
    """

    def __init__(
        self, filename: str = 'encoder.pth', layouts: Sequence[str] = ('bevdet', 'mmdet'), every_epoch: bool = False
    ) -> None:
        self.filename, self.every_epoch = filename, every_epoch
        self.layouts = check_encoder_layouts(layouts, type(self).__name__)

    def before_run(self, runner: Any) -> None:
        """Refuse a model that has nothing to export."""
        pretraining_model(runner, type(self).__name__)

    @master_only
    def after_train_epoch(self, runner: Any) -> None:
        """Write, if every epoch was asked for."""
        if self.every_epoch:
            self._write(runner)

    @master_only
    def after_run(self, runner: Any) -> None:
        """Write."""
        self._write(runner)

    def _write(self, runner: Any) -> None:
        student = pretraining_model(runner, type(self).__name__).student
        for layout, path in write_encoders(student, Path(runner.work_dir) / self.filename, self.layouts).items():
            runner.logger.info(f'encoder for finetuning ({layout} layout): {path}')
