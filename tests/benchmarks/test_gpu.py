"""The script for a GPU at hand: every part on a CPU at small size, and that neither time, memory nor a failure loses figures."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, Dict

import pytest
import torch

from ..helpers import run_quietly


def run_script(repository: Path, out: Path, *options: str) -> Dict[str, Any]:
    """What it leaves in gpu.json; it finds the package by itself."""
    environment = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    command = ['bash', str(repository / 'benchmarks' / 'gpu.sh'), '--out', str(out), '--device', 'cpu', '--quick']
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, cwd=out.parent)
    assert done.returncode == 0, done.stderr[-4000:]
    result: Dict[str, Any] = json.loads((out / 'gpu.json').read_text())
    return result


def test_every_part_runs_at_small_size(repository: Path, tmp_path: Path) -> None:
    result = run_script(repository, tmp_path / 'out', '--threads', '1')
    rows = result['rows']
    assert not [row for row in rows if 'error' in row]
    assert result['not_reached'] == []
    assert [row['variant'] for row in rows if row['kind'] == 'pooling'] == ['index_add', 'embedding_bag']
    assert all(row['difference'] < 1e-5 for row in rows if row['kind'] == 'pooling')
    training = [row for row in rows if row['kind'] == 'training']
    assert [row['batch'] for row in training] == [1, 2]
    assert training[1]['tflop'] == 2 * training[0]['tflop'] > 0
    assert all(0 < row['tflop'] / row['times_s'][0] < row['peak_tflops'] for row in training)
    full, half = ([sum(step) for step in row['losses']] for row in rows if row['kind'] == 'losses')
    assert len(full) == 2
    assert full != half
    assert half == pytest.approx(full, rel=0.01)
    page = (tmp_path / 'out' / 'gpu.md').read_text()
    assert f'torch {torch.__version__}' in page
    for row in ('| embedding_bag |', '| tiny | bf16 | no | 2 |', '| tiny | fp32 | '):
        assert f'\n{row}' in page, row


def test_what_the_time_does_not_reach_is_named(repository: Path, tmp_path: Path) -> None:
    result = run_script(repository, tmp_path / 'out', '--seconds', '0')
    assert result['rows'] == []
    assert result['not_reached'] == [
        'pooling',
        'training, encoder tiny, precision bf16, compiled False',
        'losses, encoder tiny',
    ]
    assert '- training, encoder tiny, precision bf16, compiled False\n' in (tmp_path / 'out' / 'gpu.md').read_text()


@pytest.fixture
def gpu(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script('benchmarks/gpu.py')


def test_a_process_that_hangs_or_fails_loses_no_figure_and_stops_no_other(gpu: ModuleType, tmp_path: Path) -> None:
    """The hanging one has a child that holds its output, as a compiler's may."""
    programs = dict(
        hangs="import subprocess\nprint('{\"batch\": 1}', flush=True)\nsubprocess.run(['sleep', '60'])",
        fails='print(\'{"batch": 2}\', flush=True)\nraise SystemExit(3)',
        ends='print(\'{"batch": 3}\')',
    )
    jobs = []
    for name, text in programs.items():
        (tmp_path / f'{name}.py').write_text(text)
        jobs.append(gpu.Job('some', dict(program=name), [str(tmp_path / f'{name}.py')], seconds=2))
    result = dict(machine='', versions={}, command='', rows=[], seconds={}, not_reached=[])
    gpu.measure(jobs, result, SimpleNamespace(out=tmp_path, seconds=50, least_seconds=0))
    assert [(row['program'], row.get('batch') or row['error']) for row in result['rows']] == [
        ('hangs', 1),
        ('hangs', 'stopped after 2 s'),
        ('fails', 2),
        ('fails', 'ended with status 3, see gpu.log'),
        ('ends', 3),
    ]
    assert json.loads((tmp_path / 'gpu.json').read_text()) == result


def test_a_batch_beyond_the_memory_leaves_the_others(
    load_script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = load_script('benchmarks/train_step.py')

    class Step:
        def __init__(self, model: Any, batch: int, precision: str, device: str) -> None:
            self.batch, self.losses = batch, [0.0, 0.0]

        def __call__(self, run: Any) -> None:
            if self.batch == 4:
                raise torch.cuda.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(train_step, 'Step', Step)
    monkeypatch.setattr(train_step, 'make_model', lambda arguments: None)
    arguments = SimpleNamespace(
        precision=['fp32'],
        device='cpu',
        batch=[1, 4, 2],
        compile=False,
        flops=False,
        scalars=False,
        warmup=0,
        repeats=1,
    )
    rows = list(train_step.measure(arguments))
    assert [row['batch'] for row in rows] == [1, 4, 2]
    assert [row.get('error') for row in rows] == [None, 'out of memory', None]


def test_the_triton_kernel_agrees_in_tritons_interpreter(repository: Path, tmp_path: Path) -> None:
    """Cells with more and fewer points than a program takes at once, an empty one, points off the grid, 12 channels."""
    pytest.importorskip('triton')
    program = tmp_path / 'pool.py'
    program.write_text(
        f'import sys; sys.path.insert(0, {str(repository / "benchmarks")!r})\n'
        'import torch\n'
        'from triton_bev_pool import triton_bev_pool\n'
        'from geomim.method.pooling import PoolPlan, bev_pool_plain\n'
        'cells = torch.randint(-1, 12, (20, 9)); cells[:3] = 5; cells[cells == 7] = 8\n'
        'depth, context, grad = torch.rand(20, 9), torch.randn(20, 12), torch.randn(12, 12)\n'
        'found = []\n'
        'for pool in (lambda *x: triton_bev_pool(*x, PoolPlan.build(cells, 12)), lambda *x: bev_pool_plain(*x, cells, 12)):\n'
        '    inputs = [x.clone().requires_grad_() for x in (depth, context)]\n'
        '    pooled = pool(*inputs)\n'
        '    found.append([pooled, *torch.autograd.grad(pooled, inputs, grad)])\n'
        'for ours, plain in zip(*found):\n'
        '    torch.testing.assert_close(ours, plain)\n'
    )
    run_quietly([program], TRITON_INTERPRET='1')


def test_the_published_kernel_gets_maps_and_places_that_fit(
    load_script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain twin of BEVDet's function on a CPU: depth (B, N, D, h, w) and features (B, N, h, w, C), whose memory its places count."""
    bev_pool = load_script('benchmarks/bev_pool.py')

    def stand_in(depth: Any, feat: Any, bev_feat_shape: Any, interval_starts: Any, **ranks: Any) -> Any:
        assert depth.dim() == feat.dim() == len(bev_feat_shape) == 5
        assert (ranks['ranks_bev'][interval_starts.long()].diff() > 0).all(), 'one run of points a cell'
        in_depth, in_feat, in_bev = (ranks[f'ranks_{name}'].long() for name in ('depth', 'feat', 'bev'))
        lifted = depth.flatten()[in_depth, None] * feat.flatten(0, 3)[in_feat]
        pooled = torch.zeros(bev_feat_shape).flatten(0, 3).index_add(0, in_bev, lifted)
        return pooled.view(bev_feat_shape).permute(0, 4, 1, 2, 3)

    monkeypatch.setattr(bev_pool, 'load_bev_pool_v2', lambda folder: stand_in)
    arguments = SimpleNamespace(bev_pool_v2='folder', device='cpu', image_size=(64, 96), repeats=1)
    row = bev_pool.measure('bev_pool_v2', arguments)
    assert 'error' not in row, row
    assert row['difference'] < 1e-5
