"""Cures for what keeps mmengine 0.10 from running on a machine without a GPU and from resuming with torch's safe loading.

Applied once when the adapter is imported; each replaces one function and changes nothing where the original works.
"""

from __future__ import annotations

import os.path as osp
from typing import Any

import mmengine.dist.utils as dist_utils
import mmengine.runner.runner as host_runner
import numpy as np
import torch
import torch.distributed as torch_dist
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner.checkpoint import CheckpointLoader

from ..checkpoints.files import restricted_reader
from .checkpoint_hook import find_latest_checkpoint

_STATISTICS = ('min', 'max', 'mean', 'current')


def _statistic_of(owner: Any, name: str) -> Any:
    """The one attribute look-up that a run's own log histories need; any other is refused."""
    if owner is HistoryBuffer and name in _STATISTICS:
        return getattr(owner, name)
    raise ValueError(f'refused to look up {name!r} of {owner!r} while reading a checkpoint')


def _latin1(text: str, encoding: str) -> bytes:
    """How pickle writes bytes in its older protocols."""
    if encoding != 'latin1':
        raise ValueError(f'refused to encode with {encoding!r} while reading a checkpoint')
    return text.encode(encoding)


def _allowed() -> list:
    numpy_core = np._core if hasattr(np, '_core') and hasattr(np._core, 'multiarray') else np.core
    multiarray = numpy_core.multiarray
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    names = [('scalar', multiarray.scalar), ('_reconstruct', multiarray._reconstruct)]
    allowed: list = [HistoryBuffer, np.ndarray, np.dtype, *dtypes, (_statistic_of, 'builtins.getattr')]
    for room in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # numpy 1 and 2 wrote different names
        allowed += [(function, f'{room}.{name}') for name, function in names]
    return allowed


def _allowed_by_name() -> dict:
    named = {entry[1]: entry[0] for entry in _allowed() if isinstance(entry, tuple)}
    classes = (entry for entry in _allowed() if not isinstance(entry, tuple))
    by_name = {f'{kind.__module__}.{kind.__qualname__}': kind for kind in classes}
    return {**by_name, **named, 'numpy.dtype': np.dtype, '_codecs.encode': _latin1}


def load_local_checkpoint(filename: str, map_location: Any) -> Any:
    """Read a local checkpoint with ``weights_only=True``, allowing the log histories of mmengine's own runs.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, or with objects other than tensors, plain containers and log histories.
    """
    filename = osp.expanduser(str(filename))
    if not osp.isfile(filename):
        raise FileNotFoundError(f'checkpoint {filename} does not exist')
    try:
        if not hasattr(
            torch.serialization, 'get_unsafe_globals_in_checkpoint'
        ):  # an older torch cannot be told what to allow
            reader = restricted_reader(_allowed_by_name())
            return torch.load(filename, map_location=map_location, pickle_module=reader)
        with torch.serialization.safe_globals(_allowed()):
            return torch.load(filename, map_location=map_location, weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else ''
        raise ValueError(
            f'checkpoint {filename} cannot be read: it is truncated, no PyTorch checkpoint, or holds objects other than tensors, plain '
            f'containers and log histories, which are refused for safety. {type(error).__name__}: {reason}'
        ) from error


def _init_dist_without_gpu(backend: str, init_backend: str = 'torch', **kwargs: Any) -> None:
    """mmengine's ``_init_dist_pytorch`` where there is no GPU: gloo, and no device to select."""
    if backend != 'gloo':
        print_log(f'no GPU: torch.distributed uses gloo instead of {backend}')
    torch_dist.init_process_group(backend='gloo', **kwargs)


def apply() -> None:
    """Install the cures."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_local_checkpoint, force=True)
    host_runner.find_latest_checkpoint = find_latest_checkpoint
    if not torch.cuda.is_available():
        dist_utils._init_dist_pytorch = _init_dist_without_gpu
