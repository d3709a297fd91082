"""Switches of a finetuning run: past frames, and batch statistics over all GPUs, from a certain epoch or iteration on.

Both hooks decide from the runner's progress alone, so that a resumed run stands where an unbroken one would.
"""

from __future__ import annotations

from typing import Any, Optional

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a distributed wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model


class SwitchHook(Hook):
    """Calls :meth:`switch` with whether the run has come to its beginning: before training and whenever that changes.

    Args:
        begin_epoch: finished epochs, for loops that count epochs.
        begin_iter: finished iterations.

    Raises:
        ValueError: none or both of the two, a negative number, or epochs in a loop that counts iterations.
    """

    def __init__(self, begin_epoch: Optional[int] = None, begin_iter: Optional[int] = None) -> None:
        name = type(self).__name__
        if (begin_epoch is None) == (begin_iter is None):
            raise ValueError(f'{name}: give begin_epoch or begin_iter, got {begin_epoch} and {begin_iter}')
        if (begin_epoch or 0) < 0 or (begin_iter or 0) < 0:
            raise ValueError(f'{name}: the beginning must be at least 0, got {begin_epoch or begin_iter}')
        self.begin_epoch, self.begin_iter = begin_epoch, begin_iter
        self._state: Optional[bool] = None

    def before_train(self, runner: Runner) -> None:
        """Switch to what the run, new or resumed, begins with."""
        if self.begin_epoch is not None and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                f'{type(self).__name__}: an IterBasedTrainLoop counts no epochs; give begin_iter instead of '
                f'begin_epoch={self.begin_epoch}'
            )
        self._state = None
        self._update(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Switch, if it is time."""
        self._update(runner)

    def switch(self, runner: Runner, on: bool) -> None:
        raise NotImplementedError

    def _update(self, runner: Runner) -> None:
        on = runner.iter >= self.begin_iter if self.begin_epoch is None else runner.epoch >= self.begin_epoch
        if on != self._state:
            self._state = on
            self.switch(runner, on)


@HOOKS.register_module()
class SequentialControlHook(SwitchHook):
    """Trains on key frames alone at first: sets the detector's ``with_prev``, on from the beginning that is given.

    Validation during training follows; testing by itself uses past frames as the detector is configured.
    """

    def switch(self, runner: Runner, on: bool) -> None:
        """Set ``with_prev``.

        Raises:
            ValueError: a detector without it.
        """
        detector = unwrapped(runner.model)
        if not hasattr(detector, 'with_prev'):
            raise ValueError(
                f'SequentialControlHook: {type(detector).__name__} has no with_prev; only detectors of several frames '
                'can go without the past ones'
            )
        detector.with_prev = on
        runner.logger.info(f'past frames are {"used" if on else "left out"} from iteration {runner.iter} on')


@HOOKS.register_module()
class SyncBNControlHook(SwitchHook):
    """Turns every batch normalisation into one over all GPUs, from the beginning that is given.

    Parameters, statistics and their names stay the same objects. A single process, or a CPU, goes on as it is.
    """

    def switch(self, runner: Runner, on: bool) -> None:
        """Convert, once."""
        if not on:
            return
        detector = unwrapped(runner.model)
        if get_world_size() == 1 or _on_cpu(detector):
            where = 'a CPU has no SyncBN' if _on_cpu(detector) else 'there is one process'
            runner.logger.info(f'SyncBNControlHook: {where}, batch statistics stay those of the process')
            return
        nn.SyncBatchNorm.convert_sync_batchnorm(detector)  # in place, since a detector is no norm itself
        count = sum(isinstance(module, nn.SyncBatchNorm) for module in detector.modules())
        runner.logger.info(
            f'{count} batch normalisations take statistics over all GPUs from iteration {runner.iter} on'
        )


def _on_cpu(model: nn.Module) -> bool:
    return next(model.parameters()).device.type == 'cpu'
