"""Samples per second and core of the training pipelines, the share of every step, and what reading and decoding alone take.

    python benchmarks/loading.py --data data/nuscenes --samples 20
    python -m geomim synthesize OUT --scenes 1+1 --frames 3 --image-size 900 1600   # a world of full-size images
    python benchmarks/loading.py --data OUT/

Pipelines are those of the configurations for the size of the images that are found (1600 x 900 or less). ``--data`` is a
folder with mmdet3d's info file, or a keyframe's folder that has one info file and bare file names. Where there is no
info file with past frames (``bevdet_infos_train.pkl``), the key frame stands in for its past. One process on one thread,
processor time (``time.process_time``); a table has medians over samples. The bound opens the files that a sample opened,
and decodes its images, in the same turns.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import cv2
import mmengine.fileio
import numpy as np
import torch
from measuring import machine
from mmdet3d.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import DATASETS

import geomim.bevdet  # noqa: F401 - registers datasets and transforms
from geomim.mmdet3d.images import read_image

CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'mmdet3d'
FULL = dict(
    pretraining='pretrain/geomim_swin-b_50e_nuscenes_256x704.py',
    bevdepth4d='finetune/bevdet-r50-4d-depth-cbgs.py',
    bevstereo4d='finetune/bevdet-r50-4d-stereo-cbgs.py',
)
TINY = dict(
    pretraining='pretrain/geomim_tiny_synthetic.py',
    bevdepth4d='finetune/bevdepth4d_tiny_synthetic.py',
    bevstereo4d='finetune/bevstereo4d_tiny_synthetic.py',
)
RECORD = 'record'


def info_file(root: Path, pipeline: str, folder: Path) -> Path:
    """Of the pipeline's kind; one in ``folder`` that is made of mmdet3d's where there is none with links."""
    name = 'nuscenes_infos_train.pkl' if pipeline == 'pretraining' else 'bevdet_infos_train.pkl'
    if (root / name).is_file():
        return root / name
    mmdet3d = root / 'nuscenes_infos_train.pkl'
    found = mmdet3d if mmdet3d.is_file() else next(root.glob('*.pkl'), None)
    if found is None:
        raise SystemExit(f'{root}: no info file; python -m geomim infos {root} --for mmdet3d makes one')
    if pipeline == 'pretraining':
        return found
    content = pickle.loads(found.read_bytes())
    for info in content['data_list']:
        info.update(scene_token=info['token'], prev='')
        for camera in info['images'].values():
            camera['ego2global'] = info['ego2global']
    made = folder / name
    made.write_bytes(pickle.dumps(content))
    return made


def build(root: Path, pipeline: str, config: Path, folder: Path) -> Any:
    """The training set of a configuration on another folder, without the balance of the classes."""
    dataset = Config.fromfile(config, import_custom_modules=False).train_dataloader.dataset
    dataset = dataset.get('dataset', dataset)
    dataset.metainfo.pop('version', None)
    infos = info_file(root, pipeline, folder).resolve()
    if not (root / 'samples').is_dir():
        dataset.data_prefix = dict.fromkeys(dataset.data_prefix, '')
    dataset.update(data_root=str(root.resolve()), ann_file=str(infos), filter_empty_gt=False)
    return DATASETS.build(dataset)


class OpenedFiles:
    """Paths under a folder that are opened while it is told to note them."""

    def __init__(self, root: Path) -> None:
        self._root, self._noted = str(root.resolve()) + os.sep, None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: Tuple[Any, ...]) -> None:
        if event == 'open' and self._noted is not None and str(arguments[0]).startswith(self._root):
            self._noted.append(str(arguments[0]))

    @contextmanager
    def noted(self) -> Iterator[List[str]]:
        self._noted = found = []
        try:
            yield found
        finally:
            self._noted = None


@contextmanager
def clock(times: Dict[str, List[float]], name: str) -> Iterator[None]:
    """Milliseconds of processor time, appended."""
    start = time.process_time()
    yield
    times.setdefault(name, []).append(1e3 * (time.process_time() - start))


def load(dataset: Any, index: int, times: Dict[str, List[float]]) -> None:
    """A sample as the dataset loads it, each step by the clock."""
    steps = dataset.pipeline.transforms

    def pipeline(results: Dict[str, Any]) -> Dict[str, Any]:
        before = time.process_time()
        times.setdefault(RECORD, []).append(1e3 * (before - start))
        for number, step in enumerate(steps):
            with clock(times, f'{number + 1}. {type(step).__name__}'):
                results = step(results)
        return results

    kept, dataset.pipeline = dataset.pipeline, pipeline
    try:
        np.random.seed(index)
        start = time.process_time()
        if dataset.prepare_data(index) is None:
            raise SystemExit(f'sample {index} of {dataset.ann_file} has nothing to train on')
    finally:
        dataset.pipeline = kept


def read_and_decode(paths: List[str], times: Dict[str, List[float]]) -> None:
    """The bound: each file's bytes, and an image's pixels."""
    with clock(times, 'reading'):
        content = [mmengine.fileio.get(path) for path in paths]
    with clock(times, 'decoding'):
        for path, data in zip(paths, content):
            if path.endswith(('.jpg', '.png')):
                cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)


def measure(dataset: Any, opened: OpenedFiles, samples: int) -> Dict[str, Any]:
    steps: Dict[str, List[float]] = {}
    bound: Dict[str, List[float]] = {}
    load(dataset, 0, {})  # first calls of libraries
    for number in range(samples):
        index = number % len(dataset)
        with opened.noted() as paths:
            load(dataset, index, steps)
        read_and_decode(paths, bound)
    medians = {name: statistics.median(values) for name, values in steps.items()}
    totals = [sum(values) for values in zip(*steps.values())]
    return dict(
        steps_ms=medians,
        total_ms=statistics.median(totals),
        range_ms=[min(totals), max(totals)],
        bound_ms={name: statistics.median(values) for name, values in bound.items()},
        files=len(paths),
    )


def report(name: str, row: Dict[str, Any], say: Callable[[str], None]) -> None:
    total, bound = row['total_ms'], sum(row['bound_ms'].values())
    low, high = row['range_ms']
    say(f'\n{name}: {total:.1f} ms a sample ({low:.1f} to {high:.1f}), {1e3 / total:.1f} samples a second and core')
    for step, milliseconds in row['steps_ms'].items():
        say(f'  {step:28} {milliseconds:8.1f} ms  {100 * milliseconds / sum(row["steps_ms"].values()):3.0f} %')
    parts = ', '.join(f'{part} {milliseconds:.1f} ms' for part, milliseconds in row['bound_ms'].items())
    say(f'  {row["files"]} files alone: {parts}; the pipeline takes {total / bound:.2f} times that')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, metavar='ROOT')
    parser.add_argument('--samples', type=int, default=20, help='measured per pipeline')
    parser.add_argument('--pipelines', nargs='+', default=list(FULL), choices=list(FULL))
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the figures here too')
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    register_all_modules(init_default_scope=True)
    opened, rows = OpenedFiles(arguments.data), {}
    first = next(path for path in sorted(arguments.data.rglob('*.jpg')))
    height, width = read_image(str(first)).shape[:2]
    line = f'{machine("cpu")}, OpenCV {cv2.__version__}, images of {width} x {height}'
    print(line)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.pipelines:
            config = CONFIGS / (TINY if width < 800 else FULL)[name]
            dataset = build(arguments.data, name, config, Path(folder))
            rows[name] = measure(dataset, opened, arguments.samples)
            report(f'{name} ({config.stem})', rows[name], print)
    if arguments.json:
        arguments.json.write_text(json.dumps(dict(machine=line, pipelines=rows), indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
