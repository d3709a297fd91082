"""``python -m geomim detect``: a finetuned detector over a nuScenes folder, results and pictures."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Iterator

from .synthesize import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', type=Path, help='configuration of a detector, such as configs/mmdet3d/finetune/*.py')
    parser.add_argument('checkpoint', type=Path, help="of a finetuning run, or one of BEVDet's published ones")
    parser.add_argument('--data', type=Path, required=True, metavar='ROOT', help='nuScenes folder with its info files')
    parser.add_argument('--out', type=Path, required=True, metavar='FOLDER', help='folder to make')
    parser.add_argument(
        '--split', choices=('val', 'train', 'test'), help='default: val, or test where ROOT has v1.0-test alone'
    )
    parser.add_argument('--ann-file', type=Path, help='info file; default: bevdet_infos_SPLIT.pkl in ROOT')
    parser.add_argument('--max-frames', type=int, metavar='N', help='the first N frames; default: all')
    parser.add_argument(
        '--score-threshold', type=float, default=0.3, metavar='S',
        help='lowest score in pictures and counts; the results file has all boxes; default: 0.3',
    )  # fmt: skip
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ...; default: the first GPU, else the CPU')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='changes of the configuration'
    )
    parser.add_argument('--no-pictures', action='store_true', help='write the results file alone')
    parser.add_argument('--force', action='store_true', help='replace a folder of earlier results')


def run(arguments: argparse.Namespace) -> int:
    """Detect, then tell what was found and where it is."""
    try:
        from ..bevdet.inference import detect as inference
    except ImportError as error:
        raise ValueError(f"{error}; detectors need mmdet3d: pip install 'geomim[mmdet3d]'") from error
    request = inference.DetectionRequest(
        config=arguments.config,
        checkpoint=arguments.checkpoint,
        data=arguments.data,
        out=arguments.out,
        split=arguments.split,
        ann_file=arguments.ann_file,
        max_frames=arguments.max_frames,
        score_threshold=arguments.score_threshold,
        device=arguments.device,
        options=arguments.cfg_options,
        pictures=not arguments.no_pictures,
        force=arguments.force,
    )
    with cleaning_up_when_terminated(), progress_bar() as progress:
        summary = inference.detect(request, progress)
    print_summary(arguments, summary)
    return 0


def print_summary(arguments: argparse.Namespace, summary: Any) -> None:
    """Frames, boxes per class, and where the files are."""
    of_all = '' if summary.frames == summary.frames_of_split else f' of the {summary.frames_of_split}'
    print(f'{summary.folder}: {summary.frames}{of_all} frames of {arguments.data}, {summary.model}')
    shown = ', '.join(f'{name} {count}' for name, count in summary.shown.items() if count)
    print(f'  boxes with a score of at least {arguments.score_threshold:g}: {shown or "none"}')
    print(f'  {summary.folder / "results_nusc.json"}: {summary.boxes} boxes of all scores')
    if not arguments.no_pictures:
        print(f'  {summary.folder / "pictures"}: one picture per frame, detections red, annotations green')
    if of_all:
        print('  nuscenes-devkit scores whole splits only')


@contextlib.contextmanager
def cleaning_up_when_terminated() -> Iterator[None]:
    """SIGTERM ends the program through its clean-ups, as the keyboard's interrupt does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
