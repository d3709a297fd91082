"""Runs the benchmarks that fit into a few minutes of a GPU, one process after the other; ``gpu.sh`` starts it.

What matters most comes first, and what the time does not reach is named. The files are written anew after every figure.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence

import torch
from measuring import machine

HERE = Path(__file__).resolve().parent
PRECISIONS = ('bf16', 'tf32', 'fp32')
POOLING = ('index_add', 'embedding_bag', 'triton')  # and BEVDet's, if its folder is given


class Job(NamedTuple):
    """A script that prints a JSON line per figure; ``labels`` join each."""

    kind: str
    labels: Dict[str, Any]
    command: Sequence[str]
    seconds: float

    @property
    def name(self) -> str:
        return ', '.join([self.kind, *(f'{key} {value}' for key, value in self.labels.items())])


def jobs_of(arguments: argparse.Namespace) -> Iterator[Job]:
    small = ['--small'] if arguments.quick else []
    common = ['--device', arguments.device, '--threads', str(arguments.threads)]
    yield pooling(arguments, common)
    yield from training(arguments, arguments.precisions, [*common, *small], compiled=False)
    others = [name for name in arguments.precisions if name != 'fp32']  # compared with the first
    losses = ['--losses', str(arguments.steps), '--size', arguments.sizes[0], '--precision', 'fp32', *others]
    command = ['train_step.py', *losses, *common, *small]
    yield Job('losses', dict(encoder=arguments.sizes[0]), command, arguments.job_seconds)
    if arguments.compiled_batches:
        yield from training(arguments, arguments.precisions, [*common, *small], compiled=True)


def pooling(arguments: argparse.Namespace, common: Sequence[str]) -> Job:
    names = [name for name in POOLING if name != 'triton' or torch.device(arguments.device).type == 'cuda']
    command = ['bev_pool.py', '--repeats', str(arguments.repeats), *common]
    if arguments.quick:
        command += ['--image-size', '64', '96']
    if arguments.bev_pool_v2:
        command += ['--bev-pool-v2', arguments.bev_pool_v2]
        names.append('bev_pool_v2')
    command += ['--single', *names]
    return Job('pooling', {}, command, arguments.job_seconds)


def training(
    arguments: argparse.Namespace, precisions: Sequence[str], common: Sequence[str], compiled: bool
) -> Iterator[Job]:
    batches = arguments.compiled_batches if compiled else arguments.batches
    options = ['--single', '--flops', '--warmup', '1' if arguments.quick else '3', '--repeats', str(arguments.repeats)]
    options += ['--compile'] if compiled else []
    for precision in precisions:
        for size in arguments.sizes:
            labels = dict(encoder=size, precision=precision, compiled=compiled)
            chosen = ['--size', size, '--precision', precision, '--batch', *map(str, batches)]
            limit = arguments.job_seconds * (2 if compiled else 1)
            yield Job('training', labels, ['train_step.py', *options, *chosen, *common], limit)


def rows_of(job: Job, seconds: float, log: Any) -> Iterator[Dict[str, Any]]:
    """Its figures as they come; the last says why there are no more, unless the job ended well."""
    log.write(f'\n== {job.name}: {" ".join(job.command)}\n')
    log.flush()
    script, *options = job.command
    child = subprocess.Popen(
        [sys.executable, str(HERE / script), *options],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,  # with the compiler's processes, which would hold the pipe open
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        os.killpg(child.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        for line in child.stdout or ():
            if line.startswith('{'):
                yield json.loads(line)
            else:
                log.write(line)
        status = child.wait()
    finally:
        timer.cancel()
    if late.is_set():
        yield dict(error=f'stopped after {seconds:.0f} s')
    elif status:
        yield dict(error=f'ended with status {status}, see gpu.log')


def measure(jobs: Sequence[Job], result: Dict[str, Any], arguments: argparse.Namespace) -> None:
    """Fills ``result`` and writes it after every figure."""
    end = time.monotonic() + arguments.seconds
    with (arguments.out / 'gpu.log').open('w', encoding='utf-8') as log:
        for number, job in enumerate(jobs):
            result['not_reached'] = [later.name for later in jobs[number + 1 :]]
            left = end - time.monotonic()
            if left < arguments.least_seconds:
                result['not_reached'].insert(0, job.name)
                break
            start = time.monotonic()
            for row in rows_of(job, min(job.seconds, left), log):
                result['rows'].append({'kind': job.kind, **job.labels, **row})
                write(result, arguments.out)
            result['seconds'][job.name] = round(time.monotonic() - start, 1)
    write(result, arguments.out)


def write(result: Dict[str, Any], folder: Path) -> None:
    """Both files, each replaced as a whole."""
    for name, text in (('gpu.json', json.dumps(result, indent=1) + '\n'), ('gpu.md', page(result))):
        fresh = folder / f'{name}.part'
        fresh.write_text(text, encoding='utf-8')
        fresh.replace(folder / name)


def page(result: Dict[str, Any]) -> str:
    """The figures as Markdown: medians, and the range where it matters."""
    rows = result['rows']
    lines = ['# Measured on one device', '', result['machine'], '']
    lines += [f'- {name}: {value}' for name, value in result['versions'].items()]
    lines += ['', f'`{result["command"]}`']
    head = ['encoder', 'precision', 'compiled', 'batch', 'step, ms', 'samples/s', 'first step, s', 'peak, GiB']
    head += ['TFLOP/s', 'of a large product']
    lines += table('Pretraining step', head, [training_cells(row) for row in rows if row['kind'] == 'training'])
    head = ['variant', 'forward, ms', 'forward + backward, ms', 'with indices anew, ms', 'peak, MiB', 'difference']
    lines += table('BEV pooling', head, [pooling_cells(row) for row in rows if row['kind'] == 'pooling'])
    losses = [row for row in rows if row['kind'] == 'losses']
    head = ['encoder', 'precision', 'first loss', 'last loss', 'mean difference', 'largest difference']
    lines += table('Losses of training on one batch', head, [loss_cells(row, losses[0]) for row in losses])
    if result['not_reached']:
        lines += ['', '## Not reached', '', *(f'- {name}' for name in result['not_reached'])]
    return '\n'.join(lines) + '\n'


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    if not rows:
        return []
    padded = [[*row, *[''] * (len(head) - len(row))] for row in rows]
    return ['', f'## {title}', '', *(f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *padded))]


def milliseconds(seconds: Sequence[float]) -> str:
    low, middle, high = (1e3 * pick(seconds) for pick in (min, statistics.median, max))
    return f'{middle:.4g} ({low:.4g} to {high:.4g})'


def training_cells(row: Dict[str, Any]) -> List[str]:
    names = [row['encoder'], row['precision'], 'yes' if row['compiled'] else 'no', str(row.get('batch', ''))]
    if 'error' in row:
        return [*names, row['error']]
    seconds = statistics.median(row['times_s'])
    speed = row['tflop'] / seconds
    cells = [milliseconds(row['times_s']), f'{row["batch"] / seconds:.3g}', f'{row["first_s"]:.3g}']
    return [*names, *cells, f'{row["peak_rss_gib"]:.2f}', f'{speed:.3g}', f'{100 * speed / row["peak_tflops"]:.0f} %']


def pooling_cells(row: Dict[str, Any]) -> List[str]:
    if 'error' in row:
        return [row.get('variant', ''), row['error']]
    times = [milliseconds(row[name]) for name in ('forward_s', 'kept_s', 'times_s')]
    return [row['variant'], *times, f'+{row["added_peak_mib"]:.0f}', f'{row["difference"]:.1e}']


def loss_cells(row: Dict[str, Any], reference: Dict[str, Any]) -> List[str]:
    if 'error' in row:
        return [row['encoder'], row['error']]
    ours, others = ([sum(losses) for losses in some.get('losses', [])] for some in (row, reference))
    apart = [abs(a - b) / abs(b) for a, b in zip(ours, others)]
    ends = [f'{ours[0]:.5f}', f'{ours[-1]:.5f}']
    return [
        row['encoder'],
        row['precision'],
        *ends,
        f'{100 * statistics.mean(apart):.2f} %',
        f'{100 * max(apart):.2f} %',
    ]


def versions(device: str) -> Dict[str, str]:
    found = {'Triton': 'absent'}
    if importlib.util.find_spec('triton'):
        found['Triton'] = importlib.import_module('triton').__version__
    if torch.device(device).type == 'cuda':
        about = torch.cuda.get_device_properties(device)
        found['CUDA, cuDNN'] = f'{torch.version.cuda}, {torch.backends.cudnn.version()}'
        found['device'] = (
            f'{about.name}, {about.total_memory / 2**30:.1f} GiB, compute capability {about.major}.{about.minor}'
        )
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, metavar='FOLDER', help='for gpu.json, gpu.md and gpu.log')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--seconds', type=float, default=570, help='for everything')
    parser.add_argument('--job-seconds', type=float, default=100, help='for one process; twice that if it compiles')
    parser.add_argument('--least-seconds', type=float, default=15, help='a process is not begun with less time left')
    parser.add_argument('--sizes', nargs='+', default=['base', 'large'], help='of the Swin encoder')
    parser.add_argument('--precisions', nargs='+', default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 2, 4, 8])
    parser.add_argument(
        '--compiled-batches', type=int, nargs='*', default=[1, 8], help='each is compiled anew; none leaves it out'
    )
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--steps', type=int, default=50, help='whose losses are compared')
    parser.add_argument('--bev-pool-v2', metavar='PATH', help="folder of BEVDet's published CUDA kernel")
    parser.add_argument('--quick', action='store_true', help='everything small: for trying, its times say nothing')
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes, arguments.precisions, arguments.batches = ['tiny'], ['bf16'], [1, 2]
        arguments.compiled_batches, arguments.repeats, arguments.steps = [], 1, 2
    if torch.device(arguments.device).type == 'cuda' and not torch.cuda.is_available():
        parser.error(f'--device {arguments.device}: this torch {torch.__version__} sees no GPU')
    if arguments.bev_pool_v2 and torch.device(arguments.device).type != 'cuda':
        parser.error(f'--bev-pool-v2 is a CUDA kernel; the device is {arguments.device}')
    return arguments


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    result: Dict[str, Any] = dict(
        machine=machine(arguments.device),
        versions=versions(arguments.device),
        command=' '.join(['benchmarks/gpu.sh', *sys.argv[1:]]),
        rows=[],
        seconds={},
        not_reached=[],
    )
    measure(list(jobs_of(arguments)), result, arguments)
    print((arguments.out / 'gpu.md').read_text(encoding='utf-8'))


if __name__ == '__main__':
    main()
