"""A killed run loses nothing: its checkpoints are whole, it goes on from the newest whole one, and it ends with its figures."""

from __future__ import annotations

import logging
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Container, Dict, Iterator, List, Optional, Tuple

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner import find_latest_checkpoint as named_checkpoint

from ..adapter.hooks import SavesWhole
from ..checkpoints.files import is_whole


class _RemovesLater:
    """A file backend that keeps what it is told to remove."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._waiting: List[Tuple[Callable[[Any], None], str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: Any) -> None:
        self._waiting.append((self._backend.remove, str(path)))

    def rmtree(self, path: Any) -> None:
        self._waiting.append((self._backend.rmtree, str(path)))

    def remove_now(self, kept: Container[str]) -> None:
        """Remove it, but for what has been written anew meanwhile."""
        for remove, path in self._waiting:
            if path not in kept:
                remove(path)


@HOOKS.register_module(name=['GeoMIMCheckpointHook', 'CheckpointHook'], force=True)
class GeoMIMCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, in whose place it is, so that a run may be killed at any moment. Arguments are the same.

    A checkpoint is written beside and moved into place. Only then the one that it replaces leaves, so that there is room
    for one more than ``max_keep_ckpts`` on the disk; where there is none, the run ends with the host's error and the old
    checkpoint stays. A resumed run that has nothing left to train, since it ended during its last validation, validates.
    """

    def before_train(self, runner: Runner) -> None:
        """Set up; make up for the last validation."""
        super().before_train(runner)
        if runner.val_loop is not None and _ends_before_it_starts(runner.train_loop):
            runner.logger.info('Nothing is left to train: validating, since the run may have ended before its figures.')
            runner.val_loop.run()

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: Dict[str, Any]) -> None:
        with _gathered_states(runner), self._nothing_lost(runner) as saving:
            super()._save_checkpoint_with_step(saving, step, meta)

    def _save_best_checkpoint(self, runner: Any, metrics: Dict[str, Any]) -> None:
        if self.save_best:
            with _gathered_states(runner), self._nothing_lost(runner) as saving:
                super()._save_best_checkpoint(saving, metrics)

    @contextmanager
    def _nothing_lost(self, runner: Any) -> Iterator[Any]:
        """The runner that saves whole files, while removals wait for the end of the outermost block.

        Another process than the first saves nothing, and runners other than ``Runner`` may save sharded folders by all
        processes together: both go the host's way.
        """
        if not (isinstance(runner, Runner) and is_main_process()):
            yield runner
            return
        backend = self.file_backend
        self.file_backend = later = _RemovesLater(backend)
        try:
            yield SavesWhole(runner) if _is_local(backend) else runner
        finally:
            self.file_backend = backend
        best = getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()
        later.remove_now({str(path) for path in (self.last_ckpt, *best)})


@contextmanager
def _gathered_states(runner: Any) -> Iterator[None]:
    """The states of optimizers that are spread over the processes (ZeRO), gathered by all of them.

    The host would ask for them while it saves, on the first process alone, which would wait for the others for ever.
    """
    wrappers = getattr(runner, 'optim_wrapper', None)
    found = [
        wrapper.optimizer for wrapper in (wrappers.values() if hasattr(wrappers, 'values') else [wrappers]) if wrapper
    ]
    spread = [optimizer for optimizer in found if hasattr(optimizer, 'consolidate_state_dict')]
    for optimizer in spread:
        optimizer.consolidate_state_dict()
        optimizer.consolidate_state_dict = lambda *_, **__: None
    try:
        yield
    finally:
        for optimizer in spread:
            del optimizer.consolidate_state_dict


def _is_local(backend: Any) -> bool:
    return isinstance(getattr(backend, 'client', backend), LocalBackend)  # the client is that of an older FileClient


def _ends_before_it_starts(loop: Any) -> bool:
    """Whether a training loop has been resumed at its end, where a validation was due."""
    by_iteration = isinstance(loop, IterBasedTrainLoop)
    done, end = (loop.iter, loop.max_iters) if by_iteration else (loop.epoch, loop.max_epochs)
    return bool(0 < end <= done and done >= loop.val_begin)


def find_latest_checkpoint(path: str) -> Optional[str]:
    """mmengine's: what ``last_checkpoint`` in a work directory names; where that is missing or truncated, the newest whole one.

    It is looked for beside the one that is named and in ``path``. The log says which it is.

    Raises:
        ValueError: there is no whole one.
    """
    named = _named(path)
    if named is None or '://' in named or os.path.isdir(named) or is_whole(named):
        return named
    state = 'is not whole' if named and os.path.exists(named) else 'is missing'
    what = f'{os.path.join(path, "last_checkpoint")} names {named!r}, which {state}'
    folders = dict.fromkeys(os.path.abspath(folder) for folder in (os.path.dirname(named) or path, path))
    found = next(filter(is_whole, _newest_first(folders, os.path.basename(named))), None)
    if found is None:
        raise ValueError(
            f'{what}, and there is no whole checkpoint in {" or ".join(folders)}: remove last_checkpoint to start from the '
            'beginning, or name a checkpoint to resume from'
        )
    print_log(f'{what}: resuming from {found}, the newest whole one', logger='current', level=logging.WARNING)
    return str(found)


def _named(path: str) -> Optional[str]:
    """What ``last_checkpoint`` names; nothing in one that a crash has filled with zeros or other bytes."""
    try:
        named = named_checkpoint(path)
    except UnicodeDecodeError:
        return ''
    return '' if named and '\0' in named else named


def _newest_first(folders: Any, name: str) -> List[Path]:
    """The checkpoints that are called like one, such as iter_20.pth, but for the number; by default the host's names.

    Order is by time: a folder may hold those of an earlier, longer run too.
    """
    pattern = (
        re.sub(r'\d+(?=\D*$)', r'(\\d+)', re.escape(name)) if re.search(r'\d', name) else r'(?:epoch|iter)_(\d+)\.pth'
    )
    found = []
    for folder in filter(os.path.isdir, folders):
        for path in Path(folder).iterdir():
            number = re.fullmatch(pattern, path.name)
            if number:
                found.append((path.stat().st_mtime_ns, int(number[1]), path))
    return [path for _, _, path in sorted(found, reverse=True)]
