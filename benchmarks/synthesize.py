"""How long a synthetic world takes, and that its time grows with the number of frames alone.

    python benchmarks/synthesize.py --scenes 8+2 --frames 2 5 10 --workers 2

Every size runs in a process of its own, start included. The line through the sizes is a least-squares fit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, Tuple

import numpy as np
from measuring import machine, timed


def run_once(scenes: str, frames: int, workers: int) -> Tuple[int, float]:
    """Keyframes made, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / 'world'
        command = [sys.executable, '-m', 'geomim', 'synthesize', str(out), '--scenes', scenes, '--frames', str(frames)]
        command += ['--image-size', '225', '400', '--workers', str(workers), '--no-infos']
        quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
        seconds = timed(lambda: subprocess.run(command, check=True, **quiet), 'cpu')
        return len(json.loads(next(out.glob('v1.0-*/sample.json')).read_text(encoding='utf-8'))), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--scenes', default='mini')
    parser.add_argument('--frames', type=int, nargs='+', default=[2, 5, 10])
    parser.add_argument('--workers', type=int, default=2)
    arguments = parser.parse_args()
    print(f'{machine("cpu")}, numpy {np.__version__}')
    points: List[Tuple[int, float]] = []
    for frames in arguments.frames:
        keyframes, seconds = run_once(arguments.scenes, frames, arguments.workers)
        points.append((keyframes, seconds))
        print(f'{keyframes:>6} keyframes: {seconds:7.1f} s, {seconds / keyframes:.2f} s per keyframe')
    if len(points) > 2:
        x, y = np.array(points).T
        slope, start = np.polyfit(x, y, 1)
        worst = np.abs(slope * x + start - y).max() / y.max()
        print(f'line: {start:.1f} s + {slope:.2f} s per keyframe; farthest from it: {100 * worst:.0f} % of the largest')


if __name__ == '__main__':
    main()
