"""Reading checkpoints without executing their code, writing them whole or not at all."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, Mapping, Tuple

import torch
from torch import Tensor

from ..atomic import PathLike, atomic_path


class Inert:
    """Stands in for a class that a training run stored beside its weights; holds nothing and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass


def _inert(*_: Any, **__: Any) -> Inert:
    return Inert()


# What mmengine's and mmcv's runners store beside weights. Their values are dropped, none of their code runs.
_BOOKKEEPING: Dict[str, Callable[..., Any]] = {
    'mmengine.logging.history_buffer.HistoryBuffer': Inert,
    'mmengine.config.config.ConfigDict': Inert,
    'mmengine.config.config.Config': Inert,
    'builtins.getattr': _inert,
    'numpy.core.multiarray.scalar': _inert,
    'numpy._core.multiarray.scalar': _inert,
    'numpy.core.multiarray._reconstruct': _inert,
    'numpy._core.multiarray._reconstruct': _inert,
    'numpy.ndarray': Inert,
    'numpy.dtype': Inert,
    '_codecs.encode': _inert,
}


class _RestrictedUnpickler(pickle.Unpickler):
    """For torch < 2.5, where the weights-only reader knows no stand-ins: tensors, plain containers and inert bookkeeping."""

    further: Dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        allowed: Dict[str, Any] = {
            'collections.OrderedDict': OrderedDict,
            'torch._utils._rebuild_tensor_v2': torch._utils._rebuild_tensor_v2,
            'torch._utils._rebuild_parameter': torch._utils._rebuild_parameter,
            'torch.Size': torch.Size,
            'torch.device': torch.device,
            'builtins.set': set,
            **self.further,
        }
        room = 'builtins' if module == '__builtin__' else module  # pickle's older protocols use the older name
        full = f'{room}.{name}'
        if full in allowed:
            return allowed[full]
        if (
            module == 'torch'
            and isinstance(getattr(torch, name, None), (torch.dtype, type))
            and name.endswith('Storage')
        ):
            return getattr(torch, name)
        if full in _BOOKKEEPING:
            return _BOOKKEEPING[full]
        raise pickle.UnpicklingError(f'it refers to {full}, which is no tensor or plain container')


def restricted_reader(further: Dict[str, Any]) -> SimpleNamespace:
    """A ``pickle_module`` for ``torch.load`` that finds tensors, plain containers, inert bookkeeping and the names in ``further``."""

    class Reader(_RestrictedUnpickler):
        pass

    Reader.further = further

    def load(file: Any, **options: Any) -> Any:
        # torch reads the head of a file in its old format with this function, before it knows whether it is a checkpoint at all.
        return Reader(file, **options).load()

    return SimpleNamespace(Unpickler=Reader, load=load, __name__='restricted_pickle')


def _torch_load(path: PathLike) -> Any:
    if hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint'):
        stand_ins = [(stand_in, name) for name, stand_in in _BOOKKEEPING.items()]
        with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            return torch.load(path, map_location='cpu', weights_only=True)
    return torch.load(path, map_location='cpu', pickle_module=restricted_reader({}))


def _reason(error: Exception) -> str:
    """The telling part of an error of torch, without its advice to load the file unsafely."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith('Weights only load failed'):
        lines = [line for line in lines if 'nsupported' in line]
    telling = lines[0] if lines else 'no further reason'
    return telling.split('. Please use')[0].rpartition('WeightsUnpickler error: ')[2][:300]


def read_checkpoint(path: PathLike) -> Dict[str, Any]:
    """The dictionary in a checkpoint file, on the CPU; code in the file is refused, not executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, no checkpoint, or holding objects other than tensors, containers and runners' bookkeeping.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    if path.stat().st_size == 0:
        raise ValueError(f'checkpoint {path} is empty (0 bytes): an interrupted download or copy?')
    try:
        loaded = _torch_load(path)
    except (
        RuntimeError,
        EOFError,
        OSError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        ImportError,
        IndexError,
        UnicodeDecodeError,
    ) as error:
        raise ValueError(
            f'checkpoint {path} cannot be read ({path.stat().st_size} bytes): it is truncated, no PyTorch checkpoint, or holds '
            f'objects other than tensors and plain containers, which are refused for safety. {type(error).__name__}: {_reason(error)}'
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f'checkpoint {path} holds a {type(loaded).__name__}, expected a dictionary of tensors')
    return loaded


def tensors_of(checkpoint: Dict[str, Any], source: str = 'checkpoint') -> Dict[str, Tensor]:
    """The weights of a checkpoint: its ``state_dict``, ``model`` or ``module`` entry, or itself, without a ``module.`` prefix.

    Raises:
        ValueError: no tensors.
    """
    state: Any = checkpoint
    for key in ('state_dict', 'model', 'module'):
        if isinstance(checkpoint.get(key), dict):
            state = checkpoint[key]
            break
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f'{source} holds no tensors; its top-level keys are {sorted(map(str, checkpoint))[:10]}')
    if all(name.startswith('module.') for name in tensors):
        tensors = {name[len('module.') :]: value for name, value in tensors.items()}
    return tensors


def save_atomically(obj: Any, path: PathLike) -> Path:
    """``torch.save`` that leaves either the whole new file or what was there before."""
    with atomic_path(path) as temporary:
        torch.save(obj, temporary)
    return Path(path)


def is_whole(path: PathLike) -> bool:
    """Whether a checkpoint is there to its end: torch's archives end with their table of contents, its older files are read."""
    try:
        with zipfile.ZipFile(path):
            return True
    except OSError:  # absent, or a folder
        return False
    except zipfile.BadZipFile:
        pass
    try:
        return bool(read_checkpoint(path))
    except ValueError:
        return False


def not_finite(state: Dict[str, Tensor]) -> Tuple[str, ...]:
    """Names of the tensors that hold values that are not finite."""
    return tuple(
        name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())
    )


def check_finite(state: Dict[str, Tensor], source: PathLike) -> None:
    """Raise ``ValueError`` with the names of tensors that hold values that are not finite."""
    bad = not_finite(state)
    if bad:
        raise ValueError(f'{source}: {len(bad)} tensors hold values that are not finite: {some(bad, 4)}')


def some(names: Tuple[str, ...], limit: int = 8) -> str:
    """The first names of a long list, for messages."""
    shown = ', '.join(names[:limit])
    return shown if len(names) <= limit else f'{shown} and {len(names) - limit} more'


def other_shapes(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Tuple[str, ...]:
    """The tensors of ``given`` that have another shape than those of ``own``, with both shapes, for messages."""
    return tuple(
        f'{name} {tuple(given[name].shape)} instead of {tuple(value.shape)}'
        for name, value in own.items()
        if name in given and tuple(given[name].shape) != tuple(value.shape)
    )


@dataclass(frozen=True)
class LoadReport:
    """What a file gave to a model, pretraining, detector or teacher; names are the model's, except ``unused``.

    Args:
        source, layout: the file and how its names were read.
        taken: tensors loaded as they were.
        resized: relative position bias tables brought to another window size.
        missing: tensors of the model that the file lacks; they keep their initial values.
        unused: tensors of the file that the model has no place for.
        kernel_order: 'spconv1' or 'spconv2', the order of a LiDAR teacher's sparse kernels in the file.
    """

    source: str
    layout: str
    taken: Tuple[str, ...]
    resized: Tuple[str, ...] = ()
    missing: Tuple[str, ...] = ()
    unused: Tuple[str, ...] = ()
    kernel_order: str = ''

    def describe(self) -> str:
        order = f', kernels in the order of {self.kernel_order}' if self.kernel_order else ''
        lines = [f'{self.source} ({self.layout} layout{order}): {len(self.taken) + len(self.resized)} tensors taken']
        for title, names in (
            ('of them, position bias tables resized', self.resized),
            ('missing in the file, left at their initial values', self.missing),
            ('in the file, but without a place in the model', self.unused),
        ):
            if names:
                lines.append(f'  {title}: {len(names)} ({some(names)})')
        return '\n'.join(lines)
