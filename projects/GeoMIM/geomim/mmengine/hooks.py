"""Hooks of a pretraining run: pictures of the reconstruction, a guard over the frozen teacher, export of the encoder.

The model is a ``BaseModel`` with a core ``GeoMIM`` as ``.student`` and, unless its maps are given, a ``.teacher``.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..adapter.hooks import ExportsEncoder, GuardsTeacher
from ..adapter.step import PretrainBatch
from .pictures import PanelConfig, reconstruction_panel

_SEED = 0  # of what is drawn for a picture, so that pictures compare over time


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a distributed wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradient, a random state of its own; every module's mode and every generator is restored."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == 'cuda'})
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            # Not torch.manual_seed: it would also reach devices that are not restored.
            for generator in (torch.default_generator, *(torch.cuda.default_generators[index] for index in devices)):
                generator.manual_seed(_SEED)
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(states[0])
        np.random.set_state(states[1])


@HOOKS.register_module()
class ReconstructionPicturesHook(Hook):
    """Hands pictures of the reconstruction to the Runner's visualizer, whose backends write PNG or TensorBoard files.

    Training is not affected: modes, random state, weights and statistics are those of a run without the hook. All
    pictures of a run have the same masks. Rank 0 draws.

    Args:
        interval: iterations between pictures; the last iteration gets one too.
        num_samples: samples drawn, from the start of the batch.
        samples: ``'current'`` for the current batch, ``'first'`` for the first one that this process trained on.
        width: columns of a picture, pixels.

    Raises:
        ValueError: a number below 1, or another word for ``samples``.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 500, num_samples: int = 1, samples: str = 'current', width: int = 1920) -> None:
        for name, value in (('interval', interval), ('num_samples', num_samples), ('width', width)):
            if value < 1:
                raise ValueError(f'ReconstructionPicturesHook: {name} must be at least 1, got {value}')
        if samples not in ('current', 'first'):
            raise ValueError(f"ReconstructionPicturesHook: samples must be 'current' or 'first', got {samples!r}")
        self.interval, self.num_samples, self.samples, self.width = interval, num_samples, samples, width
        self._kept: Optional[PretrainBatch] = None

    @master_only
    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        """Draw, if it is time."""
        keeps = self.samples == 'first' and self._kept is None
        due = self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)
        if not (keeps or due):
            return
        model = unwrapped(runner.model)
        with left_as_found(model):
            kept = self._kept if self._kept is not None else self._prepare(model, data_batch)
            if self.samples == 'first':
                self._kept = kept
            if due:
                self._draw(runner, model, kept)

    def _prepare(self, model: nn.Module, data_batch: Any) -> PretrainBatch:
        return PretrainBatch(**model.data_preprocessor(data_batch, False)['inputs']).first(self.num_samples)

    def _draw(self, runner: Runner, model: nn.Module, batch: PretrainBatch) -> None:
        output = model(vars(batch), mode='tensor')
        view = model.student.config.view_transform
        statistics = _pixel_statistics(model.data_preprocessor)
        config = PanelConfig(view.depth_bins, view.stride, view.output_grid, width=self.width, **statistics)
        for sample in range(batch.rig.batch_size):
            panel = reconstruction_panel(output, batch.images, batch.rig, config, sample)
            runner.visualizer.add_image(f'reconstruction_{sample}', panel, runner.iter + 1)


def _pixel_statistics(preprocessor: nn.Module) -> Dict[str, Tuple[float, ...]]:
    """The preprocessor's mean and standard deviation; nothing, which stands for ImageNet's, where it has none."""
    found = {name: getattr(preprocessor, name, None) for name in ('mean', 'std')}
    return {name: tuple(value.flatten().tolist()) for name, value in found.items() if value is not None}


@HOOKS.register_module(name=['GeoMIMTeacherGuardHook', 'TeacherGuardHook'])
class GeoMIMTeacherGuardHook(GuardsTeacher, Hook):
    """Checks and arguments are those of :class:`geomim.adapter.hooks.GuardsTeacher`."""

    def before_train(self, runner: Runner) -> None:
        """Check everything; remember the weights."""
        model = unwrapped(runner.model)
        if getattr(model, 'teacher', None) is None:
            runner.logger.info(f'{type(self).__name__}: the model has no teacher, nothing to guard')
            return
        optimizers = [wrapper.optimizer for wrapper in _wrappers(runner.optim_wrapper)]
        self.start_guarding(model, (group for optimizer in optimizers for group in optimizer.param_groups))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Check the mode at an epoch's start: the loop has just called ``model.train()``."""
        self.check_mode(batch_idx == 0, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        """Compare the weights, if an interval is set."""
        if self.interval is not None and self.every_n_train_iters(runner, self.interval):
            self.check_unchanged()

    def after_train_epoch(self, runner: Runner) -> None:
        """Compare the weights with those at the start."""
        self.check_unchanged()


def _wrappers(optim_wrapper: Any) -> List[Any]:
    return list(optim_wrapper.values()) if hasattr(optim_wrapper, 'values') else [optim_wrapper]


@HOOKS.register_module(name=['GeoMIMEncoderExportHook', 'EncoderExportHook'])
class GeoMIMEncoderExportHook(ExportsEncoder, Hook):
    """Files and arguments are those of :class:`geomim.adapter.hooks.ExportsEncoder`."""

    priority = 'VERY_LOW'

    @master_only
    def after_train_epoch(self, runner: Runner) -> None:
        """Write, if every epoch was asked for."""
        if self.every_epoch:
            self._write(runner)

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Write."""
        self._write(runner)

    def _write(self, runner: Runner) -> None:
        self.export(unwrapped(runner.model).student, runner.work_dir, runner.logger.info)


# their former names
TeacherGuardHook, EncoderExportHook = GeoMIMTeacherGuardHook, GeoMIMEncoderExportHook
