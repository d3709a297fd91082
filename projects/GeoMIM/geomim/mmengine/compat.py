"""Cures for what keeps mmengine 0.10 from running without a GPU or torchvision, and from reading checkpoints without executing them.

Applied once when the adapter is imported; each replaces one function and changes nothing where the original works.
"""

from __future__ import annotations

import functools
import os.path as osp
from typing import Any, Callable, Dict

import mmengine
import mmengine.dist.utils as dist_utils
import mmengine.optim.optimizer.amp_optimizer_wrapper as host_amp
import mmengine.runner.checkpoint as host_checkpoint
import mmengine.runner.runner as host_runner
import numpy as np
import torch
import torch.distributed as torch_dist
from mmengine.device import get_device
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner.checkpoint import CheckpointLoader

from ..checkpoints.files import loading_safely
from ..checkpoints.reading import Checkpoint, Inert, arrays_of, is_address, open_checkpoint
from .checkpoint_hook import find_latest_checkpoint

_STATISTICS = ('min', 'max', 'mean', 'current')


def _statistic_of(owner: Any, name: str) -> Any:
    """The one attribute look-up that a run's own log histories need; none in what was not built, any other is refused."""
    if owner is Inert:
        return Inert()
    if owner is HistoryBuffer and name in _STATISTICS:
        return getattr(owner, name)
    raise ValueError(f'refused to look up {name!r} of {owner!r} while reading a checkpoint')


def _allowed() -> Dict[str, Any]:
    """What the log histories of mmengine's own runs are built from, by the names that files use."""
    history = f'{HistoryBuffer.__module__}.{HistoryBuffer.__qualname__}'
    return {**arrays_of(np), history: HistoryBuffer, 'builtins.getattr': _statistic_of}


def load_local_checkpoint(filename: str, map_location: Any) -> Any:
    """Read a local checkpoint without executing anything, building the log histories of mmengine's own runs.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, no checkpoint, or naming functions that run code.
    """
    checkpoint = open_checkpoint(filename, map_location, _allowed())
    if checkpoint.inert:
        _tell(f'{filename}: carried objects left unbuilt: {", ".join(checkpoint.inert)}')
    return checkpoint.content


def _tell(sentence: str) -> None:
    print_log(sentence, logger='current')


def open_source(source: str) -> Checkpoint:
    """A checkpoint from a path, or from an address by the host's loader for it and through the host's cache."""
    if not is_address(source):
        return open_checkpoint(source)
    return Checkpoint(CheckpointLoader.load_checkpoint(source, map_location='cpu'), source)


def _torchvision_models(find: Callable[[], Any]) -> Callable[[], Any]:
    """mmengine's list of torchvision's addresses: where torchvision is absent, or built for another torch, the
    one that mmengine brings along."""

    @functools.wraps(find)
    def get_torchvision_models() -> Any:
        try:
            return find()
        except (ImportError, RuntimeError, OSError, AttributeError):  # whatever a build for another torch ends with
            return mmengine.load(osp.join(mmengine.__path__[0], 'hub/torchvision_0.12.json'))

    return get_torchvision_models


def _init_dist_without_gpu(backend: str, init_backend: str = 'torch', **kwargs: Any) -> None:
    """mmengine's ``_init_dist_pytorch`` where there is no GPU: gloo, and no device to select."""
    if backend != 'gloo':
        print_log(f'no GPU: torch.distributed uses gloo instead of {backend}')
    torch_dist.init_process_group(backend='gloo', **kwargs)


def _bfloat16_on_cpu(start: Callable[..., None]) -> Callable[..., None]:
    """mmengine's ``AmpOptimWrapper.__init__`` where there is nothing but a CPU: it takes bfloat16, and refuses other types at once.

    The host refuses a CPU here, although its autocast has one, and other types in the first forward.
    """

    @functools.wraps(start)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        if self.cast_dtype not in (None, torch.bfloat16):
            raise ValueError(
                f"optim_wrapper: dtype={self.cast_dtype} needs a GPU; on a CPU mixed precision is dtype='bfloat16', which is also "
                'what no dtype means there'
            )

    return __init__


def apply() -> None:
    """Install the cures."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_local_checkpoint, force=True)
    host_runner.find_latest_checkpoint = find_latest_checkpoint
    loads = CheckpointLoader.load_checkpoint.__func__  # type: ignore[attr-defined]
    CheckpointLoader.load_checkpoint = loading_safely(loads, _allowed(), _tell)  # type: ignore[method-assign]
    host_checkpoint.get_torchvision_models = _torchvision_models(host_checkpoint.get_torchvision_models)
    if not torch.cuda.is_available():
        dist_utils._init_dist_pytorch = _init_dist_without_gpu
    if get_device() == 'cpu':
        host_amp.is_cuda_available = lambda: True  # asked there for nothing but to refuse a CPU
        host_amp.AmpOptimWrapper.__init__ = _bfloat16_on_cpu(host_amp.AmpOptimWrapper.__init__)
