"""``python -m geomim inspect`` and ``convert``: what a checkpoint holds, and the same weights in another layout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Dict, Optional, Tuple

from torch import Tensor

from ..checkpoints.detector_layouts import (
    DETECTOR_LAYOUTS,
    convert_detector,
    describe_detector,
    detector_layout,
    is_detector,
)
from ..checkpoints.files import Origin, check_finite, not_finite, weights_of
from ..checkpoints.loading import (
    LAYOUTS,
    detect_layout,
    from_geomim,
    save_atomically,
    to_geomim,
)
from ..checkpoints.position_bias import resize_windows, window_of_table
from ..checkpoints.reading import open_checkpoint
from ..method.depth import DepthBins
from ..method.grid import BEVGrid
from ..method.lift_splat import ViewTransformConfig

SOURCES = (*LAYOUTS, 'mmdet3d')
TARGETS = (*(name for name in SOURCES if name != 'mixmae'), 'backbone')


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('file', type=Path)
    parser.add_argument('--names', action='store_true', help='list every tensor with its shape and type')


def run_inspect(arguments: argparse.Namespace) -> int:
    """Print layout, sizes and, on request, every tensor."""
    opened = open_checkpoint(arguments.file)
    checkpoint = opened.content
    state, origin = weights_of(opened)
    layout = _layout_of(state)
    values = sum(value.numel() for value in state.values())
    print(f'{arguments.file}: {layout or "unknown"} layout, {len(state)} tensors, {values / 1e6:.2f} M values')
    beside = sorted(str(key) for key in checkpoint if not isinstance(checkpoint[key], Tensor))
    print(f'  top-level entries: {", ".join(beside) or "tensors only"}')
    print(f'  weights: {origin.describe()}')
    if is_detector(state):
        print(f'  whole detector: {describe_detector(state)}{_averaged(origin)}')
    meta = checkpoint.get('meta')
    if isinstance(meta, dict):
        shown = {key: meta[key] for key in ('epoch', 'iter', 'time', 'mmengine_version') if key in meta}
        print(f'  meta: {shown}')
    groups: Dict[str, list] = {}
    for name, value in state.items():
        groups.setdefault('.'.join(name.split('.')[:2]), []).append(value)
    for name, members in groups.items():
        print(f'  {name:<44} {len(members):>5} tensors {sum(m.numel() for m in members) / 1e6:>10.3f} M values')
    windows = _windows(state)
    if windows:
        print(f'  attention windows by stage: {windows}')
    bad = not_finite(state)
    if bad:
        print(f'  NOT FINITE: {", ".join(bad)}')
    if arguments.names:
        for name, value in state.items():
            print(f'  {name} {tuple(value.shape)} {str(value.dtype).replace("torch.", "")}')
    return 0 if layout else 1


def _layout_of(state: Dict[str, Tensor]) -> Optional[str]:
    return detector_layout(state) or detect_layout(state)


def _averaged(origin: Origin) -> str:
    return f', averaged weights ({origin.averaged})' if origin.averaged else ''


def _windows(state: Dict[str, Tensor]) -> Dict[str, int]:
    found = {}
    for name, value in state.items():
        if name.endswith('relative_position_bias_table') and '.blocks.0.' in name:
            stage = next((part for part in name.split('.') if part.isdigit()), '?')
            found[stage] = window_of_table(value.shape[0])
    return found


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('input', type=Path)
    parser.add_argument('output', type=Path)
    parser.add_argument('--from', dest='source', default='auto', choices=('auto', *SOURCES), help='layout of the input')
    parser.add_argument(
        '--to',
        dest='target',
        required=True,
        choices=TARGETS,
        help='layout of the output; mmdet3d and, from there, bevdet take whole detectors, else they take encoders; backbone is an '
        "encoder that is no Swin under its class's own names",
    )
    parser.add_argument(
        '--window', type=int, nargs='+', metavar='W', help='resize the position bias tables, one window per stage'
    )
    parser.add_argument(
        '--prefix', default='', help="before the names of a backbone, for classes that look for them under 'backbone.'"
    )
    parser.add_argument('--force', action='store_true', help='overwrite the output')
    view = parser.add_argument_group(
        'view transformation', "constants that reference checkpoints hold; the defaults are the paper's"
    )
    view.add_argument('--image-size', type=int, nargs=2, default=(256, 704), metavar=('H', 'W'))
    view.add_argument('--x-bound', type=float, nargs=3, default=(-54.0, 54.0, 0.3), metavar=('LOWER', 'UPPER', 'STEP'))
    view.add_argument('--y-bound', type=float, nargs=3, default=(-54.0, 54.0, 0.3), metavar=('LOWER', 'UPPER', 'STEP'))
    view.add_argument('--z-bound', type=float, nargs=3, default=(-10.0, 10.0, 20.0), metavar=('LOWER', 'UPPER', 'STEP'))
    view.add_argument(
        '--depth-bound', type=float, nargs=3, default=(1.0, 60.0, 0.5), metavar=('LOWER', 'UPPER', 'STEP')
    )


def _view_config(arguments: argparse.Namespace, state: Dict[str, Tensor]) -> Optional[ViewTransformConfig]:
    if arguments.target != 'reference':
        return None
    head = state.get('head.weight')
    grid = BEVGrid(tuple(arguments.x_bound), tuple(arguments.y_bound), tuple(arguments.z_bound))
    return ViewTransformConfig(
        image_size=tuple(arguments.image_size),
        grid=grid,
        depth_bins=DepthBins(*arguments.depth_bound),
        channels=int(head.shape[1]) if head is not None else 80,
        downsample=2 if 'view_transform.downsample.0.weight' in state else 1,
    )


def run_convert(arguments: argparse.Namespace) -> int:
    """Write the same weights in another layout."""
    if arguments.output.exists() and not arguments.force:
        raise ValueError(f'{arguments.output} exists; give another name or --force')
    state, origin = weights_of(open_checkpoint(arguments.input))
    layout = _layout_of(state) if arguments.source == 'auto' else arguments.source
    if layout is None:
        raise ValueError(
            f'{arguments.input} is in no known layout ({", ".join(SOURCES)}); its names start with {sorted(state)[:5]}'
        )
    whole = _converts_whole(state, layout, arguments.target)
    converted, resized, kept = (_whole if whole else _pretrained)(arguments, state, layout)
    save_atomically({'state_dict': {name: value.contiguous() for name, value in converted.items()}}, arguments.output)
    print(
        f'{arguments.input} ({layout}, {len(state)} tensors) -> {arguments.output} ({arguments.target}, {len(converted)} tensors)'
    )
    print(f'  weights: {origin.describe()}')
    if whole:
        print(f'  whole detector: {describe_detector(state)}{_averaged(origin)}')
    if resized:
        print(f'  {resized} position bias tables resized to windows {arguments.window}')
    if kept < len(state):
        print(
            f'  {len(state) - kept} tensors of the input have no place in {arguments.target} or are derived constants'
        )
    return 0


def _converts_whole(state: Dict[str, Tensor], layout: str, target: str) -> bool:
    """Whether a whole detector is asked for; a published detector that goes to bevdet gives its GeoMIM encoder."""
    if target == 'mmdet3d':
        return True
    holds_encoder = 'img_backbone.absolute_pos_embed' in state
    return target in DETECTOR_LAYOUTS and is_detector(state) and (layout == 'mmdet3d' or not holds_encoder)


def _whole(arguments: argparse.Namespace, state: Dict[str, Tensor], layout: str) -> Tuple[Dict[str, Tensor], int, int]:
    """The detector in the target's layout, how many tables were resized, and how many tensors were taken over."""
    check_finite(state, arguments.input)
    if not is_detector(state):
        raise ValueError(
            f'{arguments.input} ({layout} layout) holds no whole detector, which mmdet3d is for; '
            'an encoder alone converts to bevdet or mmdet'
        )
    resized = 0
    if arguments.window:
        state, resized = resize_windows(state, arguments.window, 'img_backbone.')
    converted = convert_detector(state, arguments.target)
    return converted, resized, len(converted.keys() & state.keys())


def _pretrained(
    arguments: argparse.Namespace, state: Dict[str, Tensor], layout: str
) -> Tuple[Dict[str, Tensor], int, int]:
    """The pretraining model or its encoder in the target's layout; the numbers as in :func:`_whole`."""
    ours = to_geomim(state, 'bevdet' if layout == 'mmdet3d' else layout)
    if not any(name.startswith('encoder.') for name in ours):
        raise ValueError(
            f'{arguments.input} holds no encoder in {layout} layout; its names start with {sorted(state)[:5]}'
        )
    check_finite(ours, arguments.input)
    if arguments.target == 'reference' and 'head.weight' not in ours:
        raise ValueError(
            f'{arguments.input} ({layout} layout) holds no whole pretraining model, which the reference layout is for; '
            'an encoder alone converts to bevdet or mmdet'
        )
    foreign = any(name.startswith('encoder.backbone.') for name in ours)
    if arguments.target == 'reference' and foreign:
        raise ValueError(f'{arguments.input}: its encoder is no Swin, which alone the reference layout has')
    if arguments.prefix and arguments.target != 'backbone':
        raise ValueError(f'--prefix goes with --to backbone, not with --to {arguments.target}')
    resized = 0
    if arguments.window:
        ours, resized = resize_windows(ours, arguments.window, 'encoder.')
    converted = from_geomim(ours, arguments.target, _view_config(arguments, ours))
    converted = {arguments.prefix + name: value for name, value in converted.items()}
    inside = 'encoder.backbone.' if foreign else 'encoder.'
    kept = sum(arguments.target in ('geomim', 'reference') or name.startswith(inside) for name in ours)
    return converted, resized, kept
