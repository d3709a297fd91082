"""How long a synthetic world takes, and that its time grows with the number of frames alone.

    python benchmarks/synthesize.py --scenes 8+2 --frames 2 5 10 --workers 2

Every size runs in a process of its own, start included. The line through the sizes is a least-squares fit.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import List, Tuple

import numpy as np


def run_once(scenes: str, frames: int, size: Tuple[int, int], workers: int) -> Tuple[float, int]:
    """Seconds, and keyframes made."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / 'world'
        command = [sys.executable, '-m', 'geomim', 'synthesize', str(out), '--scenes', scenes, '--frames', str(frames)]
        command += ['--image-size', *map(str, size), '--workers', str(workers), '--no-infos']
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        return seconds, len(json.loads(next(out.glob('v1.0-*/sample.json')).read_text(encoding='utf-8')))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--scenes', default='mini')
    parser.add_argument('--frames', type=int, nargs='+', default=[2, 5, 10])
    parser.add_argument('--image-size', type=int, nargs=2, default=(225, 400), metavar=('H', 'W'))
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=1)
    arguments = parser.parse_args()
    print(f'{platform.processor() or platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}')
    points: List[Tuple[int, float]] = []
    for frames in arguments.frames:
        runs = [
            run_once(arguments.scenes, frames, arguments.image_size, arguments.workers)
            for _ in range(arguments.repeats)
        ]
        seconds, keyframes = [run[0] for run in runs], runs[0][1]
        median = statistics.median(seconds)
        points.append((keyframes, median))
        spread = f' ({min(seconds):.1f} to {max(seconds):.1f})' if len(seconds) > 1 else ''
        print(f'{keyframes:>6} keyframes: {median:7.1f} s{spread}, {median / keyframes:.2f} s per keyframe')
    if len(points) > 2:
        x, y = np.array(points).T
        slope, start = np.polyfit(x, y, 1)
        worst = np.abs(slope * x + start - y).max() / y.max()
        print(f'line: {start:.1f} s + {slope:.2f} s per keyframe; farthest from it: {100 * worst:.0f} % of the largest')


if __name__ == '__main__':
    main()
