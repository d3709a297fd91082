"""Which encoder a pretraining configuration names: the Swin, a network of timm, or a backbone of the host."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any, Callable, Dict, Mapping, Optional

import torch
from torch import nn

from ..checkpoints.loading import LoadReport, load_backbone
from ..checkpoints.reading import Checkpoint
from ..method.config import config_from_dict
from ..method.masked_encoder import BackboneSpec
from ..method.pretrainer import GeoMIM, GeoMIMConfig
from .timm_backbone import TimmBackbone


def student_config(
    student: Mapping[str, Any], build_backbone: Callable[[Dict[str, Any]], nn.Module], with_weights: bool = False
) -> GeoMIMConfig:
    """The record of a configuration's ``student``.

    Args:
        student: see :func:`geomim.method.config.config_from_dict`; an ``encoder`` with a ``type`` is ``dict(type='timm', name=...)``
            with the arguments of :class:`.timm_backbone.TimmBackbone`, or the config of a backbone of the host.
        build_backbone: the host's way from a backbone's config to the module.
        with_weights: see there.

    Raises:
        ValueError: see there; a name that timm or the host does not know.
        ImportError: no timm, or another package that a ``type`` names cannot be imported.
    """
    encoder = dict(student.get('encoder', {}))
    named = encoder.get('type')
    if named is None:
        return config_from_dict(student, with_weights)
    kind: str = getattr(named, '__name__', str(named))  # configs in the newer style name the class itself
    if kind in ('timm', 'GeoMIMTimm'):
        del encoder['type']
        if 'name' not in encoder:
            raise ValueError(f"student.encoder: dict(type='timm') needs the network's name, got {encoder}")
        spec = BackboneSpec(partial(TimmBackbone, **encoder), encoder['name'].split('.')[0])
    else:
        spec = BackboneSpec(partial(_build, build_backbone, encoder, kind), kind.split('.')[-1])
    return config_from_dict({**student, 'encoder': spec}, with_weights)


def _build(build_backbone: Callable[[Dict[str, Any]], nn.Module], encoder: Dict[str, Any], kind: str) -> nn.Module:
    try:
        return build_backbone(encoder)
    except KeyError as error:  # so do the hosts' registries
        package = kind.rpartition('.')[0]
        if package:
            try:
                import_module(f'{package}.models')
            except ImportError as reason:
                what = f'type={kind!r} is of {package}, which cannot be imported here: {reason}'
                raise ImportError(f'student.encoder: {what}') from error
        raise ValueError(f'student.encoder: the host builds no type={kind!r}: {error.args[0]}') from error


def start_backbone(student: GeoMIM, read: Callable[[str], Checkpoint]) -> Optional[LoadReport]:
    """Give a backbone of another codebase the weights that its config names, as its host would.

    Args:
        student: whose encoder is meant; nothing happens to a Swin.
        read: the host's reader, which knows addresses too.

    Returns:
        What was taken, or None where the class itself drew its weights.
    """
    encoder = student.encoder
    backbone = getattr(encoder, 'backbone', None)
    if not isinstance(backbone, nn.Module):
        return None
    init_cfg = getattr(backbone, 'init_cfg', None)
    if getattr(backbone, 'convert_weights', False):  # the class itself knows the names that its published files have
        _start_itself(backbone, encoder.name)
        return None
    if isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained':
        return load_backbone(backbone, read(init_cfg['checkpoint']), encoder.name)
    if isinstance(backbone, TimmBackbone):
        return backbone.start(read)
    if hasattr(backbone, 'init_weights'):
        backbone.init_weights()  # type: ignore[operator]
    return None


def _start_itself(backbone: nn.Module, name: str) -> None:
    """``init_weights`` of a class that reads its file without a report.

    Raises:
        ValueError: nothing changed, though a file is named.
    """
    before = [value.clone() for value in backbone.parameters()]
    backbone.init_weights()  # type: ignore[operator]
    taken = any(not torch.equal(value, old) for value, old in zip(backbone.parameters(), before))
    if getattr(backbone, 'init_cfg', None) and not taken:
        raise ValueError(f'student.encoder {name}: nothing of {backbone.init_cfg} was taken')
