"""Info files of data sets as plain data. They are pickles, which may hold code; here it never runs."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Callable, Dict, Optional

from ..atomic import PathLike
from .reading import latin1

REMEDY = 'python -m geomim infos ROOT makes new ones beside'
_OLD = (
    'an info file of mmdet3d before 1.1 (`infos` and `metadata`, where later ones have `data_list` and `metainfo`), which '
    f'mmdet3d 1.x does not read; {REMEDY}'
)
_BUILTINS = (
    'bool',
    'bytearray',
    'bytes',
    'complex',
    'dict',
    'float',
    'frozenset',
    'int',
    'list',
    'range',
    'set',
    'slice',
    'str',
    'tuple',
)
_PYTHON2 = {'long': 'int', 'unicode': 'str', 'xrange': 'range'}  # pickle's older protocols write these names
_NUMPY = {
    'multiarray': ('_reconstruct', 'scalar'),
    'numeric': ('_frombuffer',),  # arrays in pickle's fifth protocol
}


class _Maker:
    """A class or function of Python in a file's hands: it can be called, and no attribute of it can be set."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f'it sets attributes of {self._make!r}')


class _PlainUnpickler(pickle.Unpickler):
    """Finds the names that numpy's arrays and Python's containers are pickled by, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        room = 'builtins' if module == '__builtin__' else module
        if module == '__builtin__':
            name = _PYTHON2.get(name, name)
        if room == 'builtins' and name in _BUILTINS or room == 'numpy' and name in ('ndarray', 'dtype'):
            return super().find_class(room, name)
        if room == 'collections' and name in ('OrderedDict', 'defaultdict'):
            return super().find_class(room, name)
        if room.startswith('pathlib') and name.endswith('Path'):
            return _Maker(PureWindowsPath if 'Windows' in name else PurePosixPath)
        if (room, name) == ('_codecs', 'encode'):
            return _Maker(latin1)
        for part, names in _NUMPY.items():
            if room in (f'numpy.core.{part}', f'numpy._core.{part}') and name in names:
                return _Maker(self._of_numpy(part, name))
        raise pickle.UnpicklingError(f'it refers to {module}.{name}, which is neither a container nor of numpy')

    def _of_numpy(self, part: str, name: str) -> Any:
        """numpy 2 calls its core numpy._core; each reads the other's files."""
        try:
            return super().find_class(f'numpy._core.{part}', name)
        except ImportError:
            return super().find_class(f'numpy.core.{part}', name)


def read_infos(path: PathLike, content: Optional[bytes] = None) -> Dict[str, Any]:
    """An info file of mmdet3d 1.x: a dictionary with ``metainfo`` and ``data_list``; code in the file is refused, not executed.

    Args:
        path: a pickle, or JSON if it ends so.
        content: of the file, where it is not on a local disk.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, no info file, one of an older version, or one with objects other than plain data.
    """
    if content is None:
        with open(path, 'rb') as file:
            content = file.read()
    try:
        found = json.loads(content) if str(path).endswith('.json') else _PlainUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # a broken pickle may raise anything
        raise ValueError(
            f'info file {path} cannot be read ({len(content)} bytes): it is truncated, no info file, or holds objects '
            f'other than numpy arrays and plain containers, which are refused because info files are pickles and pickles '
            f'may be code. {type(error).__name__}: {error}'
        ) from error
    if isinstance(found, list) or isinstance(found, dict) and 'infos' in found and 'data_list' not in found:
        raise ValueError(f'{path} is {_OLD}')
    absent = [key for key in ('metainfo', 'data_list') if not isinstance(found, dict) or key not in found]
    if absent:
        holds = sorted(map(str, found))[:10] if isinstance(found, dict) else f'a {type(found).__name__}'
        raise ValueError(f'{path} is no info file: it has no {", ".join(absent)} but {holds}; {REMEDY}')
    return found


def describe_if_old(path: PathLike) -> str:
    """What an info file of mmdet3d before 1.1 is, from its first bytes; empty for any other file, and where there is none."""
    try:
        with open(path, 'rb') as file:
            for opcode, value, _ in pickletools.genops(file):
                if opcode.name == 'EMPTY_LIST' or value in ('infos', 'metadata'):
                    return f'{path} is {_OLD}'
                if isinstance(value, str):
                    return ''
    except (FileNotFoundError, ValueError):  # no pickle: whoever reads it says so
        pass
    return ''
