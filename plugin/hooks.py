"""Hooks of a pretraining run: a guard over the frozen teacher, export of the encoder; and checkpoints that are whole, in any run.

The model is a detector with a core ``GeoMIM`` as ``.student`` and a ``.teacher`` that carries its ``record``.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping

from mmcv.fileio.file_client import HardDiskBackend
from mmcv.runner import CheckpointHook, Hook, master_only
from torch import nn

from ..adapter.hooks import ExportsEncoder, GuardsTeacher, SavesWhole
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
class GeoMIMTeacherGuardHook(GuardsTeacher, Hook):
    """Checks and arguments are those of :class:`geomim.adapter.hooks.GuardsTeacher`."""

    def before_run(self, runner: Any) -> None:
        """Check everything; remember the weights."""
        self.start_guarding(pretraining_model(runner, type(self).__name__), _param_groups(runner.optimizer))

    def before_train_iter(self, runner: Any) -> None:
        """Check the mode at an epoch's start: the runner has just called ``model.train()``."""
        self.check_mode(runner.inner_iter == 0, runner.iter)

    def after_train_iter(self, runner: Any) -> None:
        """Compare the weights, if an interval is set."""
        if self.interval is not None and self.every_n_iters(runner, self.interval):
            self.check_unchanged()

    def after_epoch(self, runner: Any) -> None:
        """Compare the weights with those at the start."""
        self.check_unchanged()


def _param_groups(optimizer: Any) -> Iterable[Mapping[str, Any]]:
    """Of one optimizer, a dictionary of several, or none."""
    optimizers = list(optimizer.values()) if isinstance(optimizer, dict) else [optimizer] if optimizer else []
    return [group for one in optimizers for group in one.param_groups]


@HOOKS.register_module()
class GeoMIMEncoderExportHook(ExportsEncoder, Hook):
    """Files and arguments are those of :class:`geomim.adapter.hooks.ExportsEncoder`."""

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
        self.export(student, runner.work_dir, runner.logger.info)


@HOOKS.register_module(name=['GeoMIMCheckpointHook', 'CheckpointHook'], force=True)
class GeoMIMCheckpointHook(CheckpointHook):
    """mmcv's ``CheckpointHook``, in whose place it is: a killed run leaves whole checkpoints only. Arguments are the same.

    A checkpoint is written beside and moved into place, ``latest.pth`` after it.
    """

    @master_only
    def _save_checkpoint(self, runner: Any) -> None:
        client = getattr(self, 'file_client', None)  # before mmcv 1.3.16 there is none, and all folders are local
        local = client is None or isinstance(client.client, HardDiskBackend)
        super()._save_checkpoint(SavesWhole(runner) if local else runner)
