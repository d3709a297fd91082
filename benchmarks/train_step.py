"""Time and memory of one pretraining step (forward + backward) of the full-size student, one process a measurement.

    python benchmarks/train_step.py --size base --precision fp32 bf16 --checkpointing off on --repeats 3
    python benchmarks/train_step.py --size base --against 'COMMAND'   # COMMAND prints a JSON line: times_s, peak_rss_gib
    python benchmarks/train_step.py --configs configs/mmdet3d/pretrain/geomim_{swin-b,r50}_50e_nuscenes_256x704.py

With ``--configs`` the students of pretraining configurations take turns, whatever their encoder. With ``--against`` a
command takes turns with ours, so that a machine whose speed drifts favours neither. With ``--flops`` it also reports
samples/s and, given ``--peak-tflops``, utilisation: matrix products of forward and backward over time. With ``--scalars``
it reports what the figures of a run's scalars cost beside a step.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shlex
import statistics
from pathlib import Path
from typing import Any, Dict

import torch
from measuring import apart, machine, peak_mib, spread, surround_rig, timed
from torch.utils.flop_counter import FlopCounterMode

from geomim import GeoMIM, GeoMIMConfig
from geomim.adapter import measures
from geomim.adapter.encoders import student_config
from geomim.method.config import config_from_dict
from geomim.method.pretrainer import PretrainOutput


def make_inputs(batch: int, device: str) -> tuple:
    """Random images, a ring of six cameras 70 degrees wide, random target and 3000 depth labels per camera."""
    generator = torch.Generator().manual_seed(0)
    depth = torch.zeros(batch, 6, 256 * 704)
    where = torch.randint(0, 256 * 704, (batch, 6, 3000), generator=generator)
    depth.scatter_(2, where, torch.rand(batch, 6, 3000, generator=generator) * 58 + 1.5)
    images = torch.randn(batch, 6, 3, 256, 704, generator=generator)
    target = torch.randn(batch, 256, 180, 180, generator=generator)
    inputs = (images, surround_rig(batch=batch), target, depth.view(batch, 6, 256, 704))
    return tuple(part.to(device) for part in inputs)


def precision_context(precision: str, device: str) -> Any:
    kind = torch.device(device).type
    if kind == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == 'tf32'
    return torch.autocast(kind, torch.bfloat16) if precision == 'bf16' else contextlib.nullcontext()


def student_of(arguments: argparse.Namespace) -> GeoMIMConfig:
    """Of the first configuration if there is one, else with a Swin of the given size."""
    recompute = arguments.checkpointing[0] == 'on'
    if not arguments.configs:
        return config_from_dict(dict(encoder=dict(size=arguments.size), activation_checkpointing=recompute))
    from mmengine.config import Config
    from mmengine.registry import MODELS

    import geomim.mmdet3d  # noqa: F401 - backbones of the host

    student = Config.fromfile(arguments.configs[0]).model.student
    student.activation_checkpointing = recompute
    if 'with_cp' in student.encoder:
        student.encoder.with_cp = recompute
    return student_config(student, MODELS.build)


def measure(arguments: argparse.Namespace) -> Dict[str, Any]:
    torch.manual_seed(0)
    precision, device = arguments.precision[0], arguments.device
    model = GeoMIM(student_of(arguments)).to(device).train()
    compiled = torch.compile(model) if arguments.compile else model
    inputs = make_inputs(arguments.batch, device)
    masks = model.draw_masks(torch.device(device), torch.Generator().manual_seed(0))
    losses = []
    means = measures.RunningMeans()

    def step(run: Any = compiled) -> PretrainOutput:
        with precision_context(precision, device):
            output = run(*inputs, masks)
            loss = output.reconstruction_loss + output.depth_loss
        loss.backward()
        losses[:] = [output.reconstruction_loss.detach(), output.depth_loss.detach()]
        return output

    def note(output: Any) -> None:
        with torch.no_grad():
            means.add(measures.measure(output, model.config.view_transform.depth_bins))

    times = []
    for _ in range(arguments.warmup + arguments.repeats):
        model.zero_grad(set_to_none=True)
        times.append(timed(step, device))
    row = dict(
        times_s=times[arguments.warmup :], peak_rss_gib=peak_mib(device) / 2**10, losses=[float(x) for x in losses]
    )
    if arguments.scalars:
        output = step()
        row['scalars_s'] = statistics.median(timed(lambda: note(output), device) for _ in range(9))
    if arguments.flops:
        with FlopCounterMode(display=False) as counter:
            step(model)
        row['tflop'] = counter.get_total_flops() / 1e12
    return row


def describe(name: str, row: Dict[str, Any], arguments: argparse.Namespace) -> str:
    seconds = statistics.median(row['times_s'])
    text = f'{name:<34} {spread(row["times_s"])} s  peak {row["peak_rss_gib"]:.2f} GiB'
    if 'scalars_s' in row:
        text += f'  scalars {1000 * row["scalars_s"]:.1f} ms, {100 * row["scalars_s"] / seconds:.2f} % of the step'
    if 'tflop' in row:
        speed = row['tflop'] / seconds
        text += f'  {arguments.batch / seconds:.2f} samples/s  {row["tflop"]:.2f} TFLOP  {speed:.1f} TFLOP/s'
        if arguments.peak_tflops:
            text += f'  utilisation {100 * speed / arguments.peak_tflops:.0f} %'
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='base', choices=('tiny', 'base', 'large'))
    parser.add_argument('--configs', nargs='+', help='pretraining configurations, instead of --size')
    parser.add_argument('--precision', nargs='+', default=['fp32'], choices=('fp32', 'tf32', 'bf16'))
    parser.add_argument('--checkpointing', nargs='+', default=['off'], choices=('off', 'on'))
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--warmup', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=1, help='turns of all measurements')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('--scalars', action='store_true', help="time the figures of a run's scalars")
    parser.add_argument('--flops', action='store_true', help='count matrix products')
    parser.add_argument('--peak-tflops', type=float, help='of the device in that precision, for the utilisation')
    parser.add_argument('--against', help='another command, measured in turn')
    parser.add_argument('--single', action='store_true', help='measure the first combination here and print JSON')
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.single:
        print(json.dumps(measure(arguments)))
        return
    print(machine(arguments.device) if arguments.configs else f'{machine(arguments.device)}, Swin {arguments.size}')
    students = [('--configs', config) for config in arguments.configs or []] or [()]
    for _ in range(arguments.rounds):
        if arguments.against:
            print(describe('against', apart(command=shlex.split(arguments.against)), arguments), flush=True)
        choices = itertools.product(students, arguments.precision, arguments.checkpointing)
        for student, precision, checkpointing in choices:
            row = apart('--single', *student, '--precision', precision, '--checkpointing', checkpointing)
            name = f'{Path(student[-1]).stem.split("_")[1]}, ' if student else ''
            print(describe(f'{name}{precision}, checkpointing {checkpointing}', row, arguments), flush=True)


if __name__ == '__main__':
    main()
