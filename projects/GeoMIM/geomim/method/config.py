"""Configuration records from plain nested dictionaries, as configuration files hold them."""

from __future__ import annotations

import math
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, Dict, Mapping, Tuple, Type, TypeVar

from .decoder import DecoderConfig
from .depth import DepthBins
from .grid import BEVGrid
from .lift_splat import ViewTransformConfig
from .masked_encoder import EncoderSpec
from .pretrainer import GeoMIMConfig
from .swin import SwinConfig
from .target import TargetConfig

Record = TypeVar('Record')
SWIN_SIZES = {'tiny': SwinConfig.tiny, 'base': SwinConfig.base, 'large': SwinConfig.large}


def _record(kind: Type[Record], entries: Mapping[str, Any], where: str) -> Record:
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(entries) - set(known))
    if unknown:
        raise ValueError(f'{where}: unknown entries {", ".join(unknown)}; known are {", ".join(known)}')
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in entries:
            _check_numbers(entries[field.name], str(field.type), f'{where}.{field.name}')
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in entries.items()})


def _check_numbers(value: Any, kind: str, where: str) -> None:
    """Raise ``ValueError`` for what is no number, or none of the record's kind, which is ``int`` or ``float`` or holds such."""
    for number in value if isinstance(value, (list, tuple)) else (value,):
        if number is None and 'Optional' in kind:
            continue
        if 'int' in kind and not isinstance(number, Integral):
            raise ValueError(f'{where} must be a whole number, got {number!r}')
        if 'float' in kind and not (isinstance(number, Real) and math.isfinite(number)):
            raise ValueError(f'{where} must be a finite number, got {number!r}')


def _bound(value: Any, where: str) -> Tuple[float, float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise ValueError(f'{where} must be (lower, upper, step) in metres, got {value!r}')
    return float(value[0]), float(value[1]), float(value[2])


def swin_config(entries: Mapping[str, Any]) -> SwinConfig:
    """``dict(size='tiny' | 'base' | 'large', **changes)`` or all sizes one by one."""
    changes = dict(entries)
    size = changes.pop('size', 'base')
    if size not in SWIN_SIZES:
        raise ValueError(f'student.encoder: size {size!r} is unknown; known are {", ".join(SWIN_SIZES)}')
    base = SWIN_SIZES[size]()
    return _record(
        SwinConfig,
        {**{field.name: getattr(base, field.name) for field in fields(SwinConfig)}, **changes},
        'student.encoder',
    )


def view_transform_config(entries: Mapping[str, Any]) -> ViewTransformConfig:
    """``x_bound``, ``y_bound``, ``z_bound``, ``axis_order`` (grid), ``depth_bound``, and the fields of ViewTransformConfig."""
    left = dict(entries)
    where = 'student.view_transform'
    defaults = ViewTransformConfig()
    x_bound, y_bound, z_bound = (
        _bound(left.pop(name, getattr(defaults.grid, name)), f'{where}.{name}')
        for name in ('x_bound', 'y_bound', 'z_bound')
    )
    grid = BEVGrid(x_bound, y_bound, z_bound, left.pop('axis_order', defaults.grid.axis_order))
    bins = defaults.depth_bins
    depth_bins = DepthBins(
        *_bound(left.pop('depth_bound', (bins.lower, bins.upper, bins.step)), f'{where}.depth_bound')
    )
    return _record(ViewTransformConfig, {**left, 'grid': grid, 'depth_bins': depth_bins}, where)


def config_from_dict(student: Mapping[str, Any], with_weights: bool = False) -> GeoMIMConfig:
    """The record of a nested dictionary with the entries ``encoder`` (a Swin's sizes, or any
    :class:`geomim.method.masked_encoder.EncoderSpec`), ``decoder``, ``view_transform``, ``target`` and the plain fields of
    :class:`geomim.GeoMIMConfig`.

    Args:
        student: the dictionary.
        with_weights: a checkpoint fills the model; what it leaves out starts as published unless ``linear_init`` is given.

    Raises:
        ValueError: an unknown entry, named with its place, or values that do not fit.
    """
    plain: Dict[str, Any] = {
        name: value for name, value in student.items() if name not in ('encoder', 'decoder', 'view_transform', 'target')
    }
    encoder = student.get('encoder', {})
    if with_weights:
        plain.setdefault('linear_init', 'torch')
    parts = {
        'encoder': encoder if isinstance(encoder, EncoderSpec) else swin_config(encoder),
        'decoder': _record(DecoderConfig, student.get('decoder', {}), 'student.decoder'),
        'view_transform': view_transform_config(student.get('view_transform', {})),
        'target': _record(TargetConfig, student.get('target', {}), 'student.target'),
    }
    return _record(GeoMIMConfig, {**plain, **parts}, 'student')
