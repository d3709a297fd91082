"""The weights in a checkpoint, wherever they lie in it; writing files whole or not at all; reports."""

from __future__ import annotations

import functools
import io
import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..atomic import PathLike, atomic_path
from .reading import Checkpoint, drop_inert, is_address, keep_from_executing, read_checkpoint, reading_safely

# Entries that hold the weights as they were trained, the most usual first.
_TRAINED = ('state_dict', 'model', 'module', 'model_state_dict')
_AVERAGED = frozenset(('ema', 'swa', 'averaged', 'average'))
_WORDS = re.compile('[A-Z]+(?![a-z])|[A-Z]?[a-z]+')  # of snake_case and camelCase
_COUNTERS = ('steps', 'n_averaged')  # of a module that averages, beside the weights under `module.`
_RESUMED = ('optimizer', 'param_schedulers', 'message_hub')  # states that hosts compute with
_DEEPEST = 8  # dictionaries inside each other; a file may hold itself
_WRAPPERS = ('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module')  # no module of a model is called so


@dataclass(frozen=True)
class Origin:
    """Where in a file the weights were found.

    Args:
        entry: keys down to them, joined by dots; empty if the file holds nothing else.
        prefix: wrappers' parts that were removed from the names.
        averaged: why they are averages of the trained weights; empty if nothing says so.
        passed_over: other entries with weights.
        inert: objects beside the weights that were not built.
    """

    entry: str = ''
    prefix: str = ''
    averaged: str = ''
    passed_over: Tuple[str, ...] = ()
    inert: Tuple[str, ...] = ()

    def describe(self) -> str:
        parts = [f'entry {self.entry}' if self.entry else 'top level']
        if self.averaged:
            parts.append(f'averaged weights ({self.averaged})')
        if self.passed_over:
            parts.append(f'not taken: {", ".join(self.passed_over)}')
        if self.prefix:
            parts.append(f'prefix {self.prefix} removed')
        if self.inert:
            parts.append(f'carried objects left unbuilt: {some(self.inert)}')
        return ', '.join(parts)


@dataclass(frozen=True)
class _Found:
    tensors: Dict[str, Tensor]
    origin: Origin


def weights_of(checkpoint: Checkpoint) -> Tuple[Dict[str, Tensor], Origin]:
    """The weights of a checkpoint without wrappers' prefixes, and where they were found.

    Averages are preferred to the trained weights where they hold all of them in the same shapes: an entry whose name says
    ``ema``, ``swa`` or ``averaged``. mmengine's hook is the exception: it stores the averages as ``state_dict`` and the trained
    weights as ``module.*`` of ``ema_state_dict``.

    Raises:
        ValueError: no tensors.
    """
    found = _search(checkpoint.content, ())
    if found is None:
        keys = sorted(map(str, checkpoint.content))[:10]
        unbuilt = f'; carried objects left unbuilt: {some(checkpoint.inert)}' if checkpoint.inert else ''
        raise ValueError(f'{checkpoint.source} holds no tensors; its top-level keys are {keys}{unbuilt}')
    return found.tensors, replace(found.origin, inert=checkpoint.inert)


def tensors_of(checkpoint: Dict[str, Any], source: str = 'checkpoint') -> Dict[str, Tensor]:
    """The weights of a checkpoint's dictionary, as :func:`weights_of` finds them."""
    return weights_of(Checkpoint(checkpoint, source))[0]


def loading_safely(load: Callable[..., Any], further: Mapping[str, Any], tell: Callable[[str], None]) -> Any:
    """``load_checkpoint`` of a host's ``CheckpointLoader`` with loaders, whoever registered them, that execute nothing.

    Args:
        load: the host's function (class, file name, map_location, logger).
        further: of :func:`load_safely`.
        tell: called with sentences that name the objects which became inert, and averaged weights, of which hosts know nothing.
    """

    @functools.wraps(load)
    def load_checkpoint(cls: type, filename: str, *arguments: Any, **options: Any) -> Any:
        with reading_safely(further) as unknown:
            try:
                checkpoint = load(cls, filename, *arguments, **options)
            except KeyError as error:
                if not is_address(filename):
                    raise
                raise ValueError(
                    f'{filename}: the host knows no weights called {error}; give the path of a local file'
                ) from error
        if unknown:
            tell(f'{filename}: carried objects left unbuilt: {", ".join(unknown)}')
        found = _search(checkpoint, ()) if isinstance(checkpoint, dict) else None
        if found is not None and found.origin.averaged and found.origin.passed_over:
            tell(f'{filename}: of its weights, {found.origin.describe()}; the host itself takes state_dict')
        keep_from_executing(checkpoint)
        for state in _RESUMED if isinstance(checkpoint, dict) else ():
            drop_inert(checkpoint.get(state))
        return checkpoint

    return classmethod(load_checkpoint)


def _search(level: Mapping[Any, Any], path: Tuple[str, ...]) -> Optional[_Found]:
    """The weights at or below one dictionary of a file, ``path`` being the keys down to it."""
    if len(path) > _DEEPEST:
        return None
    inner = {str(key): value for key, value in level.items() if isinstance(value, dict)}
    trained = _first(inner, [key for key in _TRAINED if key in inner], path) or _at(level, path)
    averages = [key for key in inner if _AVERAGED & {word.lower() for word in _WORDS.findall(key)}]
    averaged = _first(inner, averages, path) or _below(inner, averages, path)
    if averaged is None:
        if trained is not None and 'updates' in level:  # BEVDet's hook counts them beside its averages
            return replace(trained, origin=replace(trained.origin, averaged='updates beside them'))
        return trained
    averaged = replace(averaged, origin=replace(averaged.origin, averaged='as the name says'))
    if trained is None:
        return averaged
    origins = (trained.origin.entry, averaged.origin.entry, trained.origin.prefix, averaged.origin.prefix)
    swapped = (
        origins == ('.'.join((*path, 'state_dict')), '.'.join((*path, 'ema_state_dict')), '', 'module.')
        and 'n_averaged' not in inner['ema_state_dict']
    )
    if swapped:
        trained = replace(trained, origin=replace(trained.origin, averaged='ema_state_dict beside them'))
    taken, left = (trained, averaged) if swapped or not _covers(averaged, trained) else (averaged, trained)
    passed_over = (*taken.origin.passed_over, left.origin.entry or 'top level')
    return replace(taken, origin=replace(taken.origin, passed_over=passed_over))


def _first(inner: Mapping[str, Any], keys: Sequence[str], path: Tuple[str, ...]) -> Optional[_Found]:
    return next(filter(None, (_search(inner[key], (*path, key)) for key in keys)), None)


def _below(inner: Mapping[str, Any], keys: Sequence[str], path: Tuple[str, ...]) -> Optional[_Found]:
    """The weights in whatever dictionary stands inside those of ``keys``, such as ``shadow``."""
    levels = (
        (key, {str(name): value for name, value in inner[key].items() if isinstance(value, dict)}) for key in keys
    )
    return next(filter(None, (_first(level, list(level), (*path, key)) for key, level in levels)), None)


def _covers(averaged: _Found, trained: _Found) -> bool:
    """Whether the averages can stand for the trained weights; constants and counters may be absent."""
    return all(
        name in averaged.tensors and averaged.tensors[name].shape == value.shape
        for name, value in trained.tensors.items()
        if value.is_floating_point()
    )


def _at(level: Mapping[Any, Any], path: Tuple[str, ...]) -> Optional[_Found]:
    """The tensors of one dictionary without wrappers' parts in their names."""
    tensors = {str(name): value for name, value in level.items() if isinstance(value, Tensor)}
    removed = []
    for part in _WRAPPERS:
        shorter = {name.replace(f'{part}.', ''): value for name, value in tensors.items()}
        if len(shorter) == len(tensors) and shorter.keys() != tensors.keys():
            tensors = shorter
            removed.append(f'{part}.')
    counter = next((name for name in _COUNTERS if name in tensors), '')
    while True:
        inside = {name[len('module.') :]: value for name, value in tensors.items() if name.startswith('module.')}
        if not inside or tensors.keys() - {f'module.{name}' for name in inside} - set(_COUNTERS):
            break
        tensors = inside
        removed.append('module.')
    if not tensors:
        return None
    averaged = f'{counter} beside them' if counter and 'module.' in removed else ''
    return _Found(tensors, Origin('.'.join(path), ''.join(removed), averaged))


def save_atomically(obj: Any, path: PathLike) -> Path:
    """``torch.save`` that leaves either the whole new file or what was there before.

    Raises:
        OSError: no room on the disk, with the path. torch's own writer would end older versions' process instead, and tell
            of a position in others, thus it writes into memory.
    """
    content = io.BytesIO()
    torch.save(obj, content)
    with atomic_path(path) as temporary:
        Path(temporary).write_bytes(content.getbuffer())
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
        origin: the entry and prefix of the weights in the file.
    """

    source: str
    layout: str
    taken: Tuple[str, ...]
    resized: Tuple[str, ...] = ()
    missing: Tuple[str, ...] = ()
    unused: Tuple[str, ...] = ()
    kernel_order: str = ''
    origin: Origin = Origin()

    def describe(self) -> str:
        order = f', kernels in the order of {self.kernel_order}' if self.kernel_order else ''
        lines = [f'{self.source} ({self.layout} layout{order}): {len(self.taken) + len(self.resized)} tensors taken']
        lines.append(f'  from {self.origin.describe()}')
        for title, names in (
            ('of them, position bias tables resized', self.resized),
            ('missing in the file, left at their initial values', self.missing),
            ('in the file, but without a place in the model', self.unused),
        ):
            if names:
                lines.append(f'  {title}: {len(names)} ({some(names)})')
        return '\n'.join(lines)
