"""Cures for what keeps mmengine 0.10 from running on a machine without a GPU and from resuming with torch's safe loading.

Applied once when the adapter is imported; each replaces one function and changes nothing where the original works.
"""

from __future__ import annotations

import os.path as osp
from typing import Any

import mmengine.dist.utils as dist_utils
import numpy as np
import torch
import torch.distributed as torch_dist
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner.checkpoint import CheckpointLoader

_STATISTICS = ('min', 'max', 'mean', 'current')


def _statistic_of(owner: Any, name: str) -> Any:
    """The one attribute look-up that a run's own log histories need; any other is refused."""
    if owner is HistoryBuffer and name in _STATISTICS:
        return getattr(owner, name)
    raise ValueError(f'refused to look up {name!r} of {owner!r} while reading a checkpoint')


def _allowed() -> list:
    numpy_core = np._core if hasattr(np, '_core') and hasattr(np._core, 'multiarray') else np.core
    multiarray = numpy_core.multiarray
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    names = [('scalar', multiarray.scalar), ('_reconstruct', multiarray._reconstruct)]
    allowed: list = [HistoryBuffer, np.ndarray, np.dtype, *dtypes, (_statistic_of, 'builtins.getattr')]
    for room in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # numpy 1 and 2 wrote different names
        allowed += [(function, f'{room}.{name}') for name, function in names]
    return allowed


def load_local_checkpoint(filename: str, map_location: Any) -> Any:
    """Read a local checkpoint with ``weights_only=True``, allowing the log histories of mmengine's own runs.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, or with objects other than tensors, plain containers and log histories.
    """
    filename = osp.expanduser(str(filename))
    if not osp.isfile(filename):
        raise FileNotFoundError(f'checkpoint {filename} does not exist')
    if not hasattr(torch.serialization, 'safe_globals'):  # torch < 2.4 cannot be told what to allow
        return torch.load(filename, map_location=map_location)
    try:
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
    if not torch.cuda.is_available():
        dist_utils._init_dist_pytorch = _init_dist_without_gpu
