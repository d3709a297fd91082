"""Small networks that come with the package, each a file in float16 beside a card that says how it was made and its hash.

Addresses name them wherever a configuration takes weights:
    geomim://NAME          what one starts from: a student's encoder under the names that finetuning loads, or a LiDAR detector
    geomim://NAME/student  the whole student
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

from torch import Tensor

from ...atomic import PathLike
from ..layouts import export_encoder

SCHEME = 'geomim://'
STUDENT = 'student'
_FOLDER = Path(__file__).resolve().parent


def names() -> List[str]:
    """What there is."""
    return sorted(path.stem for path in _FOLDER.glob('*.json'))


def card(name: str) -> Dict[str, Any]:
    """How a network was made and what it can do; ``kind`` is ``'student'`` or ``'teacher'``.

    Raises:
        ValueError: an unknown name.
    """
    if name not in names():
        raise ValueError(f'no network {name!r} comes with the package; there are {", ".join(names())}')
    content: Dict[str, Any] = json.loads((_FOLDER / f'{name}.json').read_text(encoding='utf-8'))
    return content


def path_of(name: str) -> Path:
    """The file, once its content has been compared with the hash on its card.

    Raises:
        ValueError: an unknown name, or another content.
        FileNotFoundError: the file is not there.
    """
    expected = str(card(name)['sha256'])
    path = _FOLDER / f'{name}.pth'
    if not path.is_file():
        raise FileNotFoundError(f'{path} is not there, though its card is: install the package again')
    stamp = path.stat()
    found = _digest(path, stamp.st_size, stamp.st_mtime_ns)
    if found != expected:
        raise ValueError(
            f'{path} ({stamp.st_size} bytes) has the sha256 {found}, its card says {expected}: it is damaged or was replaced; '
            'install the package again'
        )
    return path


@functools.lru_cache(maxsize=None)
def _digest(path: Path, size: int, changed: int) -> str:
    """The sha256 of a file, read once for each of its states."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_shipped(source: PathLike) -> bool:
    """Whether ``source`` is one of our addresses."""
    return str(source).startswith(SCHEME)


def locate(address: str) -> Tuple[Path, str]:
    """The file of an address, and which part of it is meant: ``'student'``, or all that there is to start from: ``''``.

    Raises:
        ValueError: an unknown name or part, or a damaged file.
    """
    name, _, part = address[len(SCHEME) :].partition('/')
    kind = card(name)['kind']
    if part and part != kind:
        known = ' and '.join([SCHEME + name, *([f'{SCHEME}{name}/{STUDENT}'] if kind == STUDENT else [])])
        raise ValueError(f'{address}: no part {part!r}; of {name} there is {known}')
    return path_of(name), part if kind == STUDENT else kind


def part_of(state: Dict[str, Tensor], part: str) -> Dict[str, Tensor]:
    """The weights of the part that :func:`locate` told, in float32."""
    if not part:
        foreign = any('encoder.backbone.' in name for name in state)
        state = export_encoder(state, 'backbone' if foreign else 'bevdet')
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
