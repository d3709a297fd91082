"""Time and memory of one pretraining step (forward + backward) of the full-size student, one process a measurement.

    python benchmarks/train_step.py --size base --precision fp32 bf16 --checkpointing off on --repeats 3
    python benchmarks/train_step.py --size base --against 'COMMAND'   # COMMAND prints one JSON line: times_s, peak_rss_gib

With ``--against`` the two take turns, so that a machine whose speed drifts favours neither. With ``--flops`` it
also reports samples/s and, given ``--peak-tflops``, utilisation: matrix products of forward and backward over time.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from typing import Any, Dict

import torch
from torch.utils.flop_counter import FlopCounterMode

from geomim import CameraRig, GeoMIM
from geomim.method.config import config_from_dict


def make_inputs(batch: int, cams: int, device: torch.device) -> tuple:
    """Random images, a ring of cameras 70 degrees wide, random target and 3000 depth labels per camera."""
    from bev_pool import surround_rig

    generator = torch.Generator().manual_seed(0)
    one = surround_rig(cams)
    rig = CameraRig.create(*(m.repeat(batch, 1, 1, 1) for m in (one.intrinsics, one.cam2ego, one.cam2bev, one.img_aug)))
    depth = torch.zeros(batch, cams, 256 * 704)
    where = torch.randint(0, 256 * 704, (batch, cams, 3000), generator=generator)
    depth.scatter_(2, where, torch.rand(batch, cams, 3000, generator=generator) * 58 + 1.5)
    images = torch.randn(batch, cams, 3, 256, 704, generator=generator)
    target = torch.randn(batch, 256, 180, 180, generator=generator)
    return images.to(device), rig.to(device), target.to(device), depth.view(batch, cams, 256, 704).to(device)


def peak_gib(device: torch.device) -> float:
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def precision_context(precision: str, device: torch.device) -> Any:
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == 'tf32'
    return torch.autocast(device.type, torch.bfloat16) if precision == 'bf16' else contextlib.nullcontext()


def measure(arguments: argparse.Namespace, precision: str, checkpointing: bool) -> Dict[str, Any]:
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    student = dict(encoder=dict(size=arguments.size), activation_checkpointing=checkpointing)
    model = GeoMIM(config_from_dict(student)).to(device).train()
    run = torch.compile(model) if arguments.compile else model
    inputs = make_inputs(arguments.batch, arguments.cams, device)
    masks = model.draw_masks(device, torch.Generator().manual_seed(0))
    synchronise = torch.cuda.synchronize if device.type == 'cuda' else (lambda: None)
    totals, forwards = [], []
    for _ in range(arguments.warmup + arguments.repeats):
        model.zero_grad(set_to_none=True)
        synchronise()
        start = time.perf_counter()
        with precision_context(precision, device):
            output = run(*inputs, masks)
            loss = output.reconstruction_loss + output.depth_loss
        synchronise()
        forwards.append(time.perf_counter() - start)
        loss.backward()
        synchronise()
        totals.append(time.perf_counter() - start)
        losses = float(output.reconstruction_loss.detach()), float(output.depth_loss.detach())
        del output, loss
    row = dict(
        precision=precision,
        checkpointing=checkpointing,
        compiled=arguments.compile,
        batch=arguments.batch,
        times_s=totals[arguments.warmup :],
        forward_s=forwards[arguments.warmup :],
        peak_rss_gib=peak_gib(device),
        losses=losses,
    )
    if arguments.flops:
        with FlopCounterMode(display=False) as counter, precision_context(precision, device):
            output = model(*inputs, masks)
            (output.reconstruction_loss + output.depth_loss).backward()
        row['tflop'] = counter.get_total_flops() / 1e12
    return row


def describe(name: str, row: Dict[str, Any], arguments: argparse.Namespace) -> str:
    times = row['times_s']
    text = (
        f'{name:<34} {statistics.median(times):8.3f} s ({min(times):.3f} to {max(times):.3f})  '
        f'forward {statistics.median(row["forward_s"]):.3f} s  peak {row["peak_rss_gib"]:.2f} GiB'
    )
    if 'tflop' in row:
        speed = row['tflop'] / statistics.median(times)
        text += (
            f'  {row["batch"] / statistics.median(times):.2f} samples/s  {row["tflop"]:.2f} TFLOP  {speed:.1f} TFLOP/s'
        )
        if arguments.peak_tflops:
            text += f'  utilisation {100 * speed / arguments.peak_tflops:.0f} %'
    return text


def call(command: list) -> Dict[str, Any]:
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='base', choices=('tiny', 'base', 'large'))
    parser.add_argument('--precision', nargs='+', default=['fp32'], choices=('fp32', 'tf32', 'bf16'))
    parser.add_argument('--checkpointing', nargs='+', default=['off'], choices=('off', 'on'))
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--cams', type=int, default=6)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--warmup', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=1, help='turns of all measurements')
    parser.add_argument('--threads', type=int, default=0)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('--flops', action='store_true', help='count matrix products')
    parser.add_argument('--peak-tflops', type=float, help='of the device in that precision, for the utilisation')
    parser.add_argument(
        '--against', help='another command, measured in turn; prints a JSON line with times_s, forward_s, peak_rss_gib'
    )
    parser.add_argument('--single', action='store_true', help='measure the first combination here and print JSON')
    arguments = parser.parse_args()
    if arguments.single:
        print(json.dumps(measure(arguments, arguments.precision[0], arguments.checkpointing[0] == 'on')))
        return
    print(
        f'torch {torch.__version__}, {platform.machine()}, {arguments.device}, '
        f'{arguments.threads or torch.get_num_threads()} threads, Swin {arguments.size}'
    )
    for _ in range(arguments.rounds):
        if arguments.against:
            print(describe('against', call(shlex.split(arguments.against)), arguments), flush=True)
        for precision, checkpointing in itertools.product(arguments.precision, arguments.checkpointing):
            given = [sys.executable, __file__, '--single', '--precision', precision, '--checkpointing', checkpointing]
            for name in ('size', 'batch', 'cams', 'repeats', 'warmup', 'threads', 'device'):
                given += [f'--{name}', str(getattr(arguments, name))]
            given += [flag for flag, on in (('--compile', arguments.compile), ('--flops', arguments.flops)) if on]
            row = call(given)
            print(describe(f'{precision}, checkpointing {checkpointing}', row, arguments), flush=True)


if __name__ == '__main__':
    main()
