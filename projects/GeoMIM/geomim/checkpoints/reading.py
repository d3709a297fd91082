"""Reading checkpoints without executing or building anything that they carry beside tensors and plain containers."""

from __future__ import annotations

import ast
import pickle
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import torch

from ..atomic import PathLike
from . import zoo

_MOST_GPUS = 4096
_LOAD = torch.load  # `reading_safely` replaces the name for a while


class Inert:
    """Stands in for whatever a training run stored beside its weights; holds nothing and does nothing."""

    dump_patches = False  # torch asks a module's class in the older format

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def _ignore(self, *_: Any, **__: Any) -> None:
        pass

    # Taken by pickle on the class as well, so that a file cannot alter it.
    __setstate__ = __setitem__ = append = extend = add = update = _ignore

    def __call__(self, *_: Any, **__: Any) -> Inert:
        return self


def _inert(*_: Any, **__: Any) -> Inert:
    return Inert()


def _plain_dict(*_: Any) -> Dict[Any, Any]:
    return {}


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
_PLAIN: Dict[str, Any] = {
    'collections.OrderedDict': OrderedDict,
    'collections.defaultdict': _plain_dict,
    'torch._utils._rebuild_tensor_v2': torch._utils._rebuild_tensor_v2,
    'torch._utils._rebuild_parameter': torch._utils._rebuild_parameter,
    'torch.Size': torch.Size,
    'torch.device': torch.device,
    'builtins.set': set,
}
# A file that names functions of these rooms attacks its reader: it is refused, though inert stand-ins would do no harm.
_RUNS_CODE = (
    '_ctypes', '_io', '_operator', '_pickle', '_posixsubprocess', 'asyncio', 'code', 'codeop', 'commands', 'ctypes',
    'importlib', 'io', 'marshal', 'multiprocessing', 'nt', 'operator', 'os', 'pdb', 'pickle', 'pip', 'posix',
    'profile', 'pty', 'runpy', 'shutil', 'signal', 'socket', 'subprocess', 'sys', 'tempfile', 'timeit', 'webbrowser',
)  # fmt: skip
_BUILTINS_THAT_RUN_CODE = (
    '__import__', 'breakpoint', 'compile', 'delattr', 'eval', 'exec', 'execfile', 'file', 'getattr', 'globals', 'input', 'locals',
    'open', 'setattr', 'vars',
)  # fmt: skip


class _RestrictedUnpickler(pickle._Unpickler):  # the one in Python: what sets attributes can be looked at
    """Finds tensors, plain containers and the names in ``further``; anything else becomes inert and is noted in ``unknown``."""

    further: Mapping[str, Any] = {}
    unknown: List[str] = []
    stack: List[Any]
    dispatch = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        """State is for objects that the file made; the classes and functions that it names belong to the process."""
        owner = self.stack[-2]
        if isinstance(owner, (type, FunctionType)) and owner is not Inert:
            raise pickle.UnpicklingError(f'it sets attributes of {owner!r}')
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]

    def find_class(self, module: str, name: str) -> Any:
        room = 'builtins' if module == '__builtin__' else module  # pickle's older protocols use the older name
        full = f'{room}.{name}'
        for known in (self.further, _PLAIN, _BOOKKEEPING):
            if full in known:
                return known[full]
        found = getattr(torch, name, None) if module == 'torch' else None
        if isinstance(found, torch.dtype) or (isinstance(found, type) and name.endswith('Storage')):
            return found
        if room == 'builtins' and name in _BUILTINS_THAT_RUN_CODE or room.split('.')[0] in _RUNS_CODE:
            raise pickle.UnpicklingError(f'it refers to {full}, which is no tensor or plain container and may run code')
        if room != 'builtins' and full not in self.unknown:
            self.unknown.append(full)
        return Inert


def restricted_reader(further: Mapping[str, Any]) -> SimpleNamespace:
    """A ``pickle_module`` for ``torch.load``; its ``unknown`` lists the names that became inert."""

    class Reader(_RestrictedUnpickler):
        pass

    Reader.further, Reader.unknown = further, []

    def load(file: Any, **options: Any) -> Any:
        # torch reads the head of a file in its old format with this function, before it knows whether it is a checkpoint at all.
        return Reader(file, **options).load()

    return SimpleNamespace(Unpickler=Reader, load=load, unknown=Reader.unknown, __name__='restricted_pickle')


def _refuse_script(file: Any) -> None:
    """``torch.load`` hands archives of TorchScript, which are programs, to another reader."""
    with torch.serialization._open_file_like(file, 'rb') as opened:
        if torch.serialization._is_zipfile(opened):
            with torch.serialization._open_zipfile_reader(opened) as archive:
                if 'constants.pkl' in archive.get_all_records():
                    raise pickle.UnpicklingError('it is a TorchScript archive, which holds a program')


def load_safely(
    file: Any, map_location: Any = 'cpu', further: Optional[Mapping[str, Any]] = None
) -> Tuple[Any, Tuple[str, ...]]:
    """``torch.load`` that executes and builds nothing but tensors, plain containers and ``further``.

    torch's own weights-only reader comes first where it knows stand-ins (torch >= 2.5); what it does not know is read with
    :func:`restricted_reader`, in the zip format and the older one.

    Args:
        file: a path, or a binary file that can be rewound.
        map_location: of ``torch.load``.
        further: full names of a file -> what may be built for them.

    Returns:
        What the file holds, and the names of the objects that became :class:`Inert`.

    Raises:
        Exception: whatever torch and pickle raise for a broken file; ``pickle.UnpicklingError`` for one that names functions
            which run code.
    """
    further = further or {}
    options: Dict[str, Any] = {}
    rewind = getattr(file, 'seek', lambda _: None)
    if hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint'):
        stand_ins = [(stand_in, name) for name, stand_in in {**_BOOKKEEPING, **further}.items()]
        try:
            with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
                return _LOAD(file, map_location=map_location, weights_only=True), ()
        except pickle.UnpicklingError:
            rewind(0)
        options['weights_only'] = False  # which is torch's word for a reader of one's own
    _refuse_script(file)
    rewind(0)
    reader = restricted_reader(further)
    loaded = _LOAD(file, map_location=map_location, pickle_module=reader, **options)
    return loaded, tuple(reader.unknown)


def _reason(error: Exception) -> str:
    """The telling part of an error of torch, without its advice to load the file unsafely."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = lines[0] if lines else 'no further reason'
    return telling.split('. Please use')[0][:300]


def _refusal(name: str, error: Exception, size: str = '') -> ValueError:
    return ValueError(
        f'checkpoint {name} cannot be read{size}: it is truncated, no PyTorch checkpoint, or names functions that run code, which are '
        f'refused for safety. {type(error).__name__}: {_reason(error)}'
    )


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Args:
        content: its dictionary.
        source: path or address, for messages.
        inert: full names of the objects beside weights that were not built.
    """

    content: Dict[str, Any]
    source: str
    inert: Tuple[str, ...] = ()


def open_checkpoint(
    path: PathLike, map_location: Any = 'cpu', further: Optional[Mapping[str, Any]] = None
) -> Checkpoint:
    """A checkpoint file, read by :func:`load_safely`, or one of the safetensors format, which holds nothing but tensors; or a network
    that comes with the package, by its address ``geomim://NAME``.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a ``.safetensors`` file, and the package of that name is not installed.
        ValueError: truncated, no checkpoint, no dictionary, or naming functions that run code.
    """
    if zoo.is_shipped(path):
        file, part = zoo.locate(str(path))
        state = open_checkpoint(file, map_location).content['state_dict']
        return Checkpoint({'state_dict': zoo.part_of(state, part)}, str(path))
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    if path.stat().st_size == 0:
        raise ValueError(f'checkpoint {path} is empty (0 bytes): an interrupted download or copy?')
    load_file = _safetensors_reader(path) if path.suffix == '.safetensors' else None
    try:
        loaded, inert = (load_file(str(path)), ()) if load_file else load_safely(path, map_location, further)
    except Exception as error:
        raise _refusal(f'{path}', error, f' ({path.stat().st_size} bytes)') from error
    if not isinstance(loaded, dict):
        raise ValueError(f'checkpoint {path} holds a {type(loaded).__name__}, expected a dictionary of tensors')
    return Checkpoint(loaded, str(path), inert)


def _safetensors_reader(path: Path) -> Callable[[str], Dict[str, torch.Tensor]]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f'{path} is a safetensors file, which needs pip install "geomim[timm]" ({error})') from error
    return load_file


def read_checkpoint(path: PathLike) -> Dict[str, Any]:
    """The dictionary in a checkpoint file, on the CPU; arguments and errors are those of :func:`open_checkpoint`."""
    return open_checkpoint(path).content


def is_address(source: PathLike) -> bool:
    """Whether ``source`` is a name such as ``https://...`` or ``torchvision://...`` and no path."""
    return '://' in str(source)


@contextmanager
def reading_safely(further: Mapping[str, Any]) -> Iterator[List[str]]:
    """Everything that calls ``torch.load`` inside reads safely, whoever wrote the call; a failed download says what to do offline.

    Args:
        further: of :func:`load_safely`.

    Yields:
        Names of the objects that became inert, filled while reading.
    """
    unknown: List[str] = []
    load, download = torch.load, torch.hub.download_url_to_file

    def safe_load(f: Any, map_location: Any = None, *_: Any, **__: Any) -> Any:
        try:
            loaded, inert = load_safely(f, map_location, further)
        except Exception as error:
            raise _refusal(str(f), error) from error
        unknown.extend(name for name in inert if name not in unknown)
        return loaded

    def told_download(url: str, dst: str, *arguments: Any, **options: Any) -> None:
        try:
            download(url, dst, *arguments, **options)
        except OSError as error:
            raise ValueError(
                f'{url} cannot be downloaded ({error}). Without a network, put that file at {dst}, or give the path of a local '
                'file instead of the address'
            ) from error

    torch.load, torch.hub.download_url_to_file = safe_load, told_download
    try:
        yield unknown
    finally:
        torch.load, torch.hub.download_url_to_file = load, download


def keep_from_executing(checkpoint: Any) -> None:
    """Leave nothing of ``meta['config']`` but ``gpu_ids``: a host that resumes executes that text as Python to look them up.

    The text stays, under ``meta['config_text']``.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if not isinstance(meta, dict) or 'config' not in meta:
        return
    text = meta.pop('config')
    meta.setdefault('config_text', text)
    gpu_ids = _gpu_ids(text)
    if gpu_ids is not None:
        meta['config'] = f'gpu_ids = {gpu_ids}\n'


def drop_inert(content: Any) -> None:
    """Drop the entries of dictionaries, at any depth of ``content``, that became :class:`Inert`.

    A host that resumes keeps its own value where a file has none, such as the function of a schedule, and would compute with
    a stand-in.
    """
    waiting, seen = [content], set()
    while waiting:
        level = waiting.pop()
        if id(level) in seen or not isinstance(level, (dict, list)):
            continue
        seen.add(id(level))
        if isinstance(level, dict):
            for key in [key for key, value in level.items() if isinstance(value, Inert) or value is Inert]:
                del level[key]
        waiting.extend(level.values() if isinstance(level, dict) else level)


def _gpu_ids(text: Any) -> Optional[List[int]]:
    """``gpu_ids`` of a configuration's text, a list or a ``range``, without executing it; None for anything else."""
    try:
        assignments = [one for one in ast.parse(text).body if isinstance(one, ast.Assign)]
        values = [
            one.value for one in assignments if [getattr(target, 'id', '') for target in one.targets] == ['gpu_ids']
        ]
        value = values[-1]
        if isinstance(value, ast.Call) and getattr(value.func, 'id', '') == 'range':
            numbers = range(*(ast.literal_eval(argument) for argument in value.args))
        else:
            numbers = ast.literal_eval(value)
        found = list(numbers[:_MOST_GPUS])
    except Exception:
        return None
    return found if all(type(one) is int for one in found) else None


def latin1(text: str, encoding: str) -> bytes:
    """How pickle writes bytes in its older protocols."""
    if encoding != 'latin1':
        raise ValueError(f'refused to encode with {encoding!r} while reading a checkpoint')
    return text.encode(encoding)


def arrays_of(numpy: Any) -> Dict[str, Any]:
    """What arrays and scalars of ``numpy``, the host's module, are built from, by the names that files use."""
    core = numpy._core if hasattr(getattr(numpy, '_core', None), 'multiarray') else numpy.core
    dtypes = [type(numpy.dtype(kind)) for kind in ('float64', 'float32', 'int64', 'int32', 'bool')]
    allowed: Dict[str, Any] = {f'{kind.__module__}.{kind.__qualname__}': kind for kind in dtypes}
    allowed.update({'numpy.ndarray': numpy.ndarray, 'numpy.dtype': numpy.dtype, '_codecs.encode': latin1})
    for room in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # numpy 1 and 2 wrote different names
        allowed.update({f'{room}.{name}': getattr(core.multiarray, name) for name in ('scalar', '_reconstruct')})
    return allowed
