"""``python -m geomim synthesize``: a small world in the nuScenes format, and its info files by mmdet3d's converter."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Iterator

from .children import ends_with_parent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('out', type=Path, help='folder to make; an interrupted run goes on in OUT.partial')
    parser.add_argument(
        '--scenes',
        default='mini',
        help="'mini' (v1.0-mini: 8 + 2 scenes), a number, or TRAIN+VAL such as 80+20 (v1.0-trainval); default: mini",
    )
    parser.add_argument('--frames', type=int, default=10, help='keyframes per scene, two per second; default: 10')
    parser.add_argument(
        '--image-size', type=int, nargs=2, default=(225, 400), metavar=('H', 'W'),
        help='pixels, intrinsics are scaled along; 0 0 keeps the size of each camera in the rig; default: 225 400',
    )  # fmt: skip
    parser.add_argument('--seed', type=int, default=0, help='equal arguments and seed give equal bytes; default: 0')
    parser.add_argument(
        '--rig', default='nuscenes', help='nuscenes, five, front, truck, or a JSON file; default: nuscenes'
    )
    parser.add_argument('--camera-sweeps', action='store_true', help='cameras at 12 Hz instead of keyframes only')
    parser.add_argument(
        '--without', nargs='+', choices=('gts', 'lidarseg'), default=(), metavar='PART',
        help='labels to leave out, which saves time: gts (occupancy), lidarseg; the other files are the same',
    )  # fmt: skip
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='processes; default: one per core')
    parser.add_argument('--no-infos', action='store_true', help="leave out mmdet3d's info files")


def run(arguments: argparse.Namespace) -> int:
    """Make the world, tell what is in it, make the info files."""
    try:
        from ..synthetic import world
    except ImportError as error:
        raise ValueError(f"{error}; the generator needs OpenCV: pip install 'geomim[mmdet3d]'") from error
    recipe = world.make_recipe(
        scenes=arguments.scenes,
        frames=arguments.frames,
        image_size=tuple(arguments.image_size),
        seed=arguments.seed,
        rig=arguments.rig,
        camera_sweeps=arguments.camera_sweeps,
        without=arguments.without,
    )
    with progress_bar() as progress:
        world.write_world(arguments.out, recipe, arguments.workers, progress)
    summary = world.summarise(arguments.out, recipe.version)
    print(
        f'{arguments.out}: {recipe.version}, {", ".join(f"{n} {name}" for name, n in summary.items() if name != "boxes")}'
    )
    print(f'  boxes with points: {", ".join(f"{name} {count}" for name, count in summary["boxes"].items())}')
    return 0 if arguments.no_infos else make_infos(arguments.out)


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar over keyframes, on a terminal and, now and then, in a log."""
    from tqdm import tqdm

    with tqdm(total=None, unit='keyframe', mininterval=0.5 if sys.stderr.isatty() else 15) as bar:

        def progress(done: int, total: int) -> None:
            if bar.total is None:
                bar.total, bar.initial = total, done  # the speed is that of this run
            bar.update(done - bar.n)

        yield progress


def make_infos(root: Path) -> int:
    """Start the converter in a process of its own: it changes folder and patches the devkit."""
    package: Any = __package__
    command = [sys.executable, '-m', package.rpartition('.')[0], 'infos', str(root), '--for', 'mmdet3d']
    done = subprocess.run(ends_with_parent(command), check=False)
    if done.returncode:
        print(f"geomim synthesize: the world is complete, but mmdet3d's converter failed; it needs geomim[mmdet3d]. "
              f'Repeat it alone with: python {" ".join(command[1:])}', file=sys.stderr)  # fmt: skip
    return done.returncode
