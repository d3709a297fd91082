"""``python -m geomim infos``: info files from the tables of a nuScenes folder, made once before training."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any, Tuple

VERSIONS = ('v1.0-trainval', 'v1.0-mini', 'v1.0-test')
# what --for names -> the module of the room `nuscenes` and its function
MAKERS = {
    'bevdet': ('bevdet_infos', 'make_bevdet_infos'),
    'mmdet3d': ('infos', 'make_infos'),
    'images': ('image_labels', 'make_image_labels'),
    'waymo': ('waymo_infos', 'make_waymo_infos'),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('root', type=Path, help='nuScenes folder: samples/, sweeps/, maps/ and a version folder')
    parser.add_argument(
        '--for', dest='kind', choices=sorted(MAKERS), default='bevdet',
        help='bevdet: bevdet_infos_*.pkl, with scenes, past keyframes and camera poses, which mmdet3d reads too; mmdet3d: '
        "nuscenes_infos_*.pkl of mmdet3d's converter; images: 2D boxes and labels; waymo: for mmdet3d's WaymoDataset; default: bevdet",
    )  # fmt: skip
    parser.add_argument('--out', type=Path, help='where the files go; default: ROOT')
    parser.add_argument(
        '--version', default='', choices=('', *VERSIONS), help='of the tables; default: the first that is there'
    )
    parser.add_argument('--force', action='store_true', help='make them anew even if they are there')


def run(arguments: argparse.Namespace) -> int:
    """Make the files; those that are there are left as they are."""
    module, name = MAKERS[arguments.kind]
    try:
        make = getattr(importlib.import_module(f'..nuscenes.{module}', __package__), name)
    except ImportError as error:
        raise ValueError(f"{error}; info files need mmdet3d: pip install 'geomim[mmdet3d]'") from error
    options: Tuple[Any, ...] = (arguments.out, arguments.version, arguments.force)
    if arguments.kind == 'waymo':  # made of the other info files, beside them
        if any(options):
            raise ValueError('--for waymo takes ROOT alone: the files are made beside the info files that it reads')
        options = ()
    out = make(arguments.root, *options)
    print(f'{out}: info files for {arguments.kind}')
    return 0
