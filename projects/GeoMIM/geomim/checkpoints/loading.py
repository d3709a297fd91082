"""Loading weights of any known layout into our models, with a precise account of what was taken and what was not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Sequence, Tuple, Union

from torch import Tensor, nn

from ..atomic import PathLike
from ..method.pretrainer import GeoMIM
from ..method.swin import SwinEncoder
from .files import LoadReport, Origin, check_finite, other_shapes, save_atomically, some, tensors_of, weights_of
from .layouts import ENCODER_LAYOUTS, LAYOUTS, detect_layout, export_encoder, from_geomim, is_derived, to_geomim
from .position_bias import fit_tables
from .reading import Checkpoint, open_checkpoint, read_checkpoint

__all__ = [
    'LAYOUTS',
    'LoadReport',
    'check_encoder_layouts',
    'detect_layout',
    'export_encoder',
    'from_geomim',
    'load_backbone',
    'load_encoder',
    'load_pretrained',
    'read_checkpoint',
    'save_atomically',
    'tensors_of',
    'to_geomim',
    'write_encoders',
]
_OPTIONAL = ('num_batches_tracked',)


Weights = Union[PathLike, Dict[str, Tensor], Checkpoint]


@dataclass(frozen=True)
class _Opened:
    state: Dict[str, Tensor]
    layout: str
    source: str
    origin: Origin


def _open(weights: Weights, layout: str) -> _Opened:
    if isinstance(weights, dict):
        weights = Checkpoint(weights, 'the given state dict')
    elif not isinstance(weights, Checkpoint):
        weights = open_checkpoint(weights)
    state, origin = weights_of(weights)
    detected = detect_layout(state) if layout == 'auto' else layout
    if detected is None:
        raise ValueError(
            f'{weights.source} is no checkpoint of a known layout ({", ".join(LAYOUTS)}); its names start with '
            f'{some(tuple(sorted(state)), 5)}'
        )
    return _Opened(state, detected, weights.source, origin)


def _fit(
    model: nn.Module,
    state: Dict[str, Tensor],
    opened: _Opened,
    unused: Tuple[str, ...],
    needs: Callable[[str], bool],
) -> LoadReport:
    """Load what fits and resize bias tables; refuse other shapes and absent tensors that the model ``needs``, before anything changes."""
    source, layout = opened.source, opened.layout
    own = model.state_dict()
    values, resized = fit_tables({name: state[name] for name in sorted(own.keys() & state.keys())}, own)
    wrong = other_shapes(own, values)
    if wrong:
        raise ValueError(
            f'{source} belongs to another architecture: {len(wrong)} of {len(own)} tensors have other shapes: {some(wrong, 4)}'
        )
    check_finite(values, source)
    missing = tuple(sorted(name for name in own.keys() - values.keys() if not name.endswith(_OPTIONAL)))
    required = tuple(name for name in missing if needs(name))
    if required:
        raise ValueError(
            f'{source} ({layout} layout) lacks {len(required)} tensors that the model needs: {some(required)}'
        )
    model.load_state_dict(values, strict=False)
    return LoadReport(
        source=source,
        layout=layout,
        taken=tuple(sorted(values.keys() - set(resized))),
        resized=resized,
        missing=missing,
        unused=unused,
        origin=opened.origin,
    )


def _without_place(state: Dict[str, Tensor], layout: str, model: nn.Module, prefix: str = '') -> Tuple[str, ...]:
    """Names in the file whose tensors the model has no place for; constants derived from sizes do not count."""
    own = {prefix + name for name in model.state_dict()}
    named = (name for name in state if not is_derived(name))
    return tuple(sorted(name for name in named if not own & to_geomim({name: state[name]}, layout).keys()))


def load_pretrained(model: GeoMIM, weights: Weights, layout: str = 'auto') -> LoadReport:
    """Start a pretraining model from a file or state dict.

    MixMAE and encoder-only files fill a part (the report names the rest); pretraining checkpoints must fill the whole model.

    Raises:
        ValueError: an unknown layout, another architecture, an incomplete encoder or checkpoint.
    """
    opened = _open(weights, layout)
    state, layout = opened.state, opened.layout
    partial = layout not in ('geomim', 'reference')
    renamed = to_geomim(state, layout, len(model.config.decoder.cross_view_after))
    unused = _without_place(state, layout, model)
    return _fit(model, renamed, opened, unused, lambda name: not partial or _belongs_to_encoder(name, layout))


def _belongs_to_encoder(name: str, layout: str) -> bool:
    # MixMAE trains one norm behind its last stage; the two output norms start anew.
    return name.startswith('encoder.') and not (layout == 'mixmae' and name.startswith('encoder.norm'))


def load_encoder(encoder: SwinEncoder, weights: Weights, layout: str = 'auto') -> LoadReport:
    """Start a finetuning encoder from a pretraining checkpoint, an exported encoder or a MixMAE file; everything else is dropped.

    Raises:
        ValueError: an unknown layout, another architecture, or an incomplete encoder (output norms may be missing).
    """
    opened = _open(weights, layout)
    state, layout = opened.state, opened.layout
    renamed = to_geomim(state, layout)
    own = {name[len('encoder.') :]: value for name, value in renamed.items() if name.startswith('encoder.')}
    if not own:
        raise ValueError(
            f'{opened.source} ({layout} layout) holds no encoder; its names start with {some(tuple(sorted(state)), 5)}'
        )
    unused = _without_place(state, layout, encoder, 'encoder.')
    return _fit(encoder, own, opened, unused, lambda name: not name.startswith('norm'))


# under which a backbone's own names stand in files: a pretraining run, an export or a classifier, detectors of the hosts
_BACKBONE_PREFIXES = ('', 'student.encoder.backbone.', 'encoder.backbone.', 'img_backbone.', 'backbone.', 'model.')


def load_backbone(backbone: nn.Module, weights: Weights, owner: str, optional: Tuple[str, ...] = ()) -> LoadReport:
    """Start a backbone of another codebase from a file with its own parameter names, whatever prefix they have there.

    Args:
        backbone: gets the weights.
        weights: an exported encoder, a pretraining or detector checkpoint, a classifier.
        owner: how messages call the backbone.
        optional: starts of names that the file may lack.

    Raises:
        ValueError: another architecture, or tensors that are absent.
    """
    opened = _open(weights, f'{owner} names')
    state, own = opened.state, backbone.state_dict().keys()
    prefix = max(_BACKBONE_PREFIXES, key=lambda prefix: sum(prefix + name in state for name in own))
    if not any(prefix + name in state for name in own):
        raise ValueError(
            f'{opened.source} holds no weights of {owner}: its names start with {some(tuple(sorted(state)), 4)}, those of '
            f'the backbone with {some(tuple(sorted(own)), 4)}'
        )
    under = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    unused = tuple(sorted(name for name in under.keys() - own if not is_derived(name)))
    return _fit(backbone, under, opened, unused, lambda name: not name.startswith(optional))


def check_encoder_layouts(layouts: Sequence[str], owner: str) -> Tuple[str, ...]:
    """The layouts, unless there is none or one in which no encoder can be exported: ``ValueError``."""
    unknown = [layout for layout in layouts if layout not in ENCODER_LAYOUTS]
    if not layouts or unknown:
        what = f'names {unknown[0]!r}' if unknown else 'is empty'
        raise ValueError(f'{owner}: layouts {what}; an encoder can be exported as {" or ".join(ENCODER_LAYOUTS)}')
    return tuple(layouts)


def write_encoders(model: GeoMIM, path: PathLike, layouts: Sequence[str]) -> Dict[str, Path]:
    """Write a pretraining model's encoder for finetuning, whole or not at all.

    Args:
        model: the student.
        path: a layout's name goes before its suffix: ``encoder.pth`` becomes ``encoder_bevdet.pth``.
        layouts: names that :func:`geomim.checkpoints.layouts.export_encoder` knows; a backbone of another codebase has its own
            names alone and gives one file, named after it: ``encoder_resnet.pth``.

    Returns:
        The file of each layout, or of ``'backbone'``.

    Raises:
        ValueError: a layout that is not known.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    path = Path(path)
    if not isinstance(model.encoder, SwinEncoder):
        named = path.with_name(f'{path.stem}_{model.encoder.name.lower()}{path.suffix}')
        return {'backbone': save_atomically(export_encoder(state, 'backbone'), named)}
    encoders = {layout: export_encoder(state, layout) for layout in layouts}
    return {
        layout: save_atomically(encoder, path.with_name(f'{path.stem}_{layout}{path.suffix}'))
        for layout, encoder in encoders.items()
    }
