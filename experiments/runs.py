"""What the scripts share: commands with their output shown, training runs that are kept, options that point them to data."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple

from run_folders import read_scalars, validates

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs' / 'mmdet3d'
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
EVALUATORS = ('val_evaluator', 'test_evaluator')
SYNTHETIC_WIDTH = 400  # pixels, of the images that the tiny configurations' resize factors are for
PATIENCE = 10  # seconds that an interrupted command has for ending by itself
_RUNNING: Set[subprocess.Popen] = set()


class Data(NamedTuple):
    """A nuScenes folder, its version, where its info files are, and what a synthetic one holds ({} for real data)."""

    root: Path
    version: str
    infos: Path
    summary: Dict[str, Any]


def say(text: str) -> None:
    print(text, flush=True)


def run(title: str, command: List[str], log: Optional[Path] = None) -> None:
    """Run a step's command with its output shown, or kept in ``log``; a failure ends the script.

    The command ends when the script does, however that ends.
    """
    from geomim.commands.children import ends_with_parent

    say(f'\n=== {title}\n$ {shlex.join(command)}')
    start = time.monotonic()
    # threads that wait leave their core to the loading processes
    environment = {'OMP_WAIT_POLICY': 'PASSIVE', **os.environ, 'PYTHONWARNINGS': 'ignore'}
    with log.open('a', encoding='utf-8') if log else contextlib.nullcontext() as file:
        output: Dict[str, Any] = {'stdout': file, 'stderr': subprocess.STDOUT} if log else {}
        process = subprocess.Popen(ends_with_parent(command), cwd=ROOT, env=environment, **output)
        _RUNNING.add(process)
        try:
            status = process.wait()
        except KeyboardInterrupt:
            end_running()
            raise
        finally:
            _RUNNING.discard(process)
    if status:
        if log:
            say(f'=== failed: {title}; see {log}')
        raise subprocess.CalledProcessError(status, command)
    say(f'=== done in {time.monotonic() - start:.0f} s{f": {title}" if log else ""}')


def end_running() -> None:
    """Interrupt the commands that run, and wait until they have ended; a trainer ends its loading processes then."""
    processes = list(_RUNNING)
    # an interrupt from a terminal has reached them already, and a second one would disturb them
    for patience, stop in ((1, signal.SIGINT), (PATIENCE, signal.SIGKILL)):
        deadline = time.monotonic() + patience
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.send_signal(stop)


@contextlib.contextmanager
def side_by_side(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that run commands, so many at a time; an interrupt ends all of them."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            end_running()
            raise


def train(
    title: str, config: Path, folder: Path, iterations: int, options: List[str], log: Optional[Path] = None
) -> Path:
    """Train by mmdet3d's own script, or go on with it; returns the last checkpoint.

    A training is finished when that is whole and its validation, at the end, has been logged.
    """
    from geomim.checkpoints.files import is_whole
    from geomim.nuscenes.infos import mmdet3d_tools

    finished = folder / f'iter_{iterations}.pth'
    if is_whole(finished) and any(map(validates, read_scalars(folder))):
        say(f'\n=== {title}: {finished} is there; remove {folder} or give another OUT to train again')
        return finished
    command = [sys.executable, str(mmdet3d_tools() / 'train.py'), str(config), '--work-dir', str(folder), '--resume']
    run(title, [*command, '--cfg-options', *options], log)
    return finished


def write_text(path: Path, text: str) -> None:
    """A file that is there as a whole or not at all."""
    from geomim.atomic import atomic_path

    with atomic_path(path) as temporary:
        Path(temporary).write_text(text, encoding='utf-8')


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + '\n')


def add_config(parser: argparse.ArgumentParser) -> None:
    """The arguments that ``read_config`` reads."""
    from mmengine.config import DictAction

    parser.add_argument('config', type=Path)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='as for tools/train.py')


def read_config(arguments: argparse.Namespace) -> Any:
    from mmengine.config import Config

    config = Config.fromfile(arguments.config)
    config.merge_from_dict(arguments.cfg_options)
    return config


def without_validation(config: Any) -> None:
    """Let a Runner of this configuration train and nothing else."""
    for split in ('val', 'test'):
        for part in ('dataloader', 'evaluator', 'cfg'):
            config[f'{split}_{part}'] = None


def pipeline_steps(config: Any) -> Iterator[Tuple[str, Any]]:
    """The steps of all loaders' pipelines, each with its place in the configuration."""
    for loader in LOADERS:
        for number, step in enumerate(config[loader].dataset.pipeline):
            yield f'{loader}.dataset.pipeline.{number}', step


def schedule(iterations: int, warm_up: int) -> Dict[str, int]:
    """What sets a run's length, by its place in the configuration."""
    return {
        'train_cfg.max_iters': iterations,
        'train_cfg.val_interval': iterations,
        'param_scheduler.0.end': max(1, warm_up),
        'param_scheduler.1.T_max': iterations,
        'param_scheduler.1.end': iterations,
        'default_hooks.checkpoint.interval': max(1, iterations // 3),
    }


def schedule_options(iterations: int, warm_up: int) -> List[str]:
    """Options that set a run's length."""
    return [f'{place}={value}' for place, value in schedule(iterations, warm_up).items()]


def data_options(data: Data, prefix: str = 'nuscenes') -> List[str]:
    """Options that point a configuration to the data and its info files, ``{prefix}_infos_train.pkl`` and ``.._val.pkl``."""
    options = []
    for loader, split in zip(LOADERS, ('train', 'val', 'val')):
        options += [f'{loader}.dataset.data_root={data.root}/', f'{loader}.dataset.metainfo.version={data.version}']
        options.append(f'{loader}.dataset.ann_file={data.infos}/{prefix}_infos_{split}.pkl')
    return options


def evaluator_options(data: Data, results: Path, prefix: str = 'nuscenes') -> List[str]:
    """Options that point the nuScenes metric to the data, and let it leave the boxes below ``results``."""
    options = []
    for evaluator in EVALUATORS:
        options += [f'{evaluator}.data_root={data.root}/', f'{evaluator}.ann_file={data.infos}/{prefix}_infos_val.pkl']
        options.append(f'{evaluator}.jsonfile_prefix={results}')
    return options


def labelled_scenes(names: Iterable[str], share: float) -> List[str]:
    """The scenes whose labels are used: the first of a fixed order, so that a larger share holds a smaller one.

    The order is that of the names' hashes: it depends on nothing but the names, and the nth scene is any scene.

    Raises:
        ValueError: a share that is not in (0, 1], or no scenes.
    """
    if not 0 < share <= 1:
        raise ValueError(f'a share of labels must be above 0 and at most 1, got {share:g}')
    order = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if not order:
        raise ValueError('no scenes to label')
    return order[: max(1, round(share * len(order)))]


def image_size(data: Data) -> Tuple[int, int]:
    """(height, width) of the cameras' images, pixels, from the tables."""
    rows = json.loads((data.root / data.version / 'sample_data.json').read_text(encoding='utf-8'))
    return next((row['height'], row['width']) for row in rows if row['width'])


def image_options(content: Any, data: Data) -> List[str]:
    """Options that fit a configuration's image augmentation, made for ``SYNTHETIC_WIDTH``, to the data's images."""
    height, width = image_size(data)
    options = []
    for place, step in pipeline_steps(content):
        given = step.get('data_config')
        if given and tuple(given['src_size']) != (height, width):
            lower, upper = (value * given['src_size'][1] / width for value in given['resize'])
            options.append(f'{place}.data_config.src_size=({height},{width})')
            options.append(f'{place}.data_config.resize=({lower:.5f},{upper:.5f})')
        elif step['type'] == 'SurroundImageAug' and width != SYNTHETIC_WIDTH:
            lower, upper, test = (factor * SYNTHETIC_WIDTH / width for factor in (*step['resize'], step['test_resize']))
            options.append(f'{place}.resize=({lower:.5f},{upper:.5f})')
            options.append(f'{place}.test_resize={test:.5f}')
    return options
