"""Scalars of a run beside its losses: how fast it is, and in pretraining how well depth and reconstruction do."""

from __future__ import annotations

from typing import Any, Dict, Optional

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..adapter.measures import RunningMeans, measure
from ..method.pretrainer import GeoMIM, PretrainOutput
from .hooks import unwrapped


@HOOKS.register_module()
class GeoMIMScalarsHook(Hook):
    """Gives scalars to the Runner's ``LoggerHook`` whenever that logs, each over the iterations since it did last.

    ``samples_per_s`` of all ranks, and ``loader_wait``, the share of the time that the host's ``IterTimerHook`` counts as
    ``data_time``. Of a model with a core :class:`GeoMIM` as ``student`` also ``explained``, 1 - error of the reconstruction / error of the
    best constant map, and the depth figures of :func:`geomim.adapter.measures.measure`, all of this rank's samples.

    Figures are summed on the device and read back when they are logged.
    """

    priority = 'NORMAL'  # after IterTimerHook, which is of the host's own, and before LoggerHook

    def __init__(self) -> None:
        self._means = RunningMeans()
        self._iterations = self._samples = 0
        self._interval = 1
        self._watching: Any = None

    def before_train(self, runner: Runner) -> None:
        """Look up how often there is a log; start to watch the student."""
        self._interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 1)
        student = getattr(unwrapped(runner.model), 'student', None)
        if isinstance(student, GeoMIM):
            self._watching = student.register_forward_hook(self._note)

    def after_train(self, runner: Runner) -> None:
        """Leave the student alone."""
        if self._watching is not None:
            self._watching.remove()

    @torch.no_grad()
    def _note(self, student: nn.Module, _: Any, result: PretrainOutput) -> None:
        if student.training:  # not for a picture
            self._means.add(measure(result, student.config.view_transform.depth_bins))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        """Count; hand over, if there is a log."""
        self._iterations += 1
        self._samples += _batch_size(data_batch)
        if self.every_n_inner_iters(batch_idx, self._interval) or self.end_of_epoch(runner.train_dataloader, batch_idx):
            for name, value in {**self._speed(runner), **self._figures()}.items():
                runner.message_hub.update_scalar(f'train/{name}', value)
            self._iterations = self._samples = 0

    def _speed(self, runner: Runner) -> Dict[str, float]:
        """Of the iterations since the last time; nothing without the host's timer."""
        scalars = runner.message_hub.log_scalars
        if 'train/time' not in scalars:
            return {}
        seconds, waiting = (scalars[f'train/{name}'].mean(self._iterations) for name in ('time', 'data_time'))
        each = self._samples / self._iterations * get_world_size()
        return {'samples_per_s': float(each / seconds), 'loader_wait': float(waiting / seconds)}

    def _figures(self) -> Dict[str, float]:
        means = self._means.take()
        figures = {name: value for name, value in means.items() if name.startswith('depth_') and name != 'depth_loss'}
        if means:
            figures['explained'] = 1 - means['reconstruction_loss'] / means['constant_map_loss']
        return figures


def _batch_size(data_batch: Any) -> int:
    """Samples of a batch of ``pseudo_collate``; 0 of one of another make."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    return len(samples) if isinstance(samples, (list, tuple)) else 0
