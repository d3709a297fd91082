"""Time and memory of one pretraining step (forward + backward) of the full-size student, one process a measurement.

    python benchmarks/train_step.py --size base --precision fp32 bf16 --checkpointing off on --repeats 3
    python benchmarks/train_step.py --size base --against 'COMMAND'   # COMMAND prints a JSON line: times_s, peak_rss_gib
    python benchmarks/train_step.py --configs configs/mmdet3d/pretrain/geomim_{swin-b,r50}_50e_nuscenes_256x704.py

With ``--configs`` the students of pretraining configurations take turns, whatever their encoder. With ``--against`` a
command takes turns with ours, so that a machine whose speed drifts favours neither. With ``--flops`` it also reports
samples/s and utilisation: matrix products of forward and backward over time, beside the speed of one large product in
that precision, measured here, or ``--peak-tflops``. ``--losses STEPS`` trains on one batch instead, in each precision
from the same weights with the same masks, and prints the losses. With ``--scalars`` it reports what the figures of a
run's scalars cost beside a step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
from pathlib import Path
from typing import Any, Dict, Iterator, List

import torch
from measuring import (
    apart,
    forget_peak,
    machine,
    peak_mib,
    precision_context,
    product_tflops,
    spread,
    surround_rig,
    timed,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from geomim import GeoMIM, GeoMIMConfig
from geomim.adapter import measures
from geomim.adapter.encoders import student_config
from geomim.method.config import config_from_dict
from geomim.method.pretrainer import PretrainOutput

SMALL = dict(
    encoder=dict(embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)),
    view_transform=dict(image_size=(64, 96), x_bound=(-54.0, 54.0, 1.5), y_bound=(-54.0, 54.0, 1.5), channels=16),
    decoder=dict(dim=64, num_heads=2),
)


def make_inputs(config: GeoMIMConfig, batch: int, device: str) -> tuple:
    """Random images, a ring of six cameras 70 degrees wide, random target and 3000 depth labels per camera."""
    generator = torch.Generator().manual_seed(0)
    view = config.view_transform
    height, width = view.image_size
    depth = torch.zeros(batch, 6, height * width)
    where = torch.randint(0, height * width, (batch, 6, 3000), generator=generator)
    depth.scatter_(2, where, torch.rand(batch, 6, 3000, generator=generator) * 58 + 1.5)
    images = torch.randn(batch, 6, 3, height, width, generator=generator)
    target = torch.randn(batch, config.target.channels, *view.output_grid.shape, generator=generator)
    inputs = (images, surround_rig(batch=batch), target, depth.view(batch, 6, height, width))
    return tuple(part.to(device) for part in inputs)


def student_of(arguments: argparse.Namespace) -> GeoMIMConfig:
    """Of the first configuration if there is one, else with a Swin of the given size."""
    recompute = arguments.checkpointing[0] == 'on'
    if not arguments.configs:
        entries = dict(SMALL if arguments.small else {}, activation_checkpointing=recompute)
        entries['encoder'] = dict(entries.get('encoder', {}), size=arguments.size)
        return config_from_dict(entries)
    from mmengine.config import Config
    from mmengine.registry import MODELS

    import geomim.mmdet3d  # noqa: F401 - backbones of the host

    student = Config.fromfile(arguments.configs[0]).model.student
    student.activation_checkpointing = recompute
    if 'with_cp' in student.encoder:
        student.encoder.with_cp = recompute
    return student_config(student, MODELS.build)


def make_model(arguments: argparse.Namespace) -> GeoMIM:
    torch.manual_seed(0)
    return GeoMIM(student_of(arguments)).to(arguments.device).train()


def passed(run: Any, inputs: tuple, masks: Tensor, precision: str, device: str) -> PretrainOutput:
    with precision_context(precision, device):
        output: PretrainOutput = run(*inputs, masks)
    return output


def losses_of(output: PretrainOutput) -> Tensor:
    """(2,): the reconstruction and the depth loss, whose sum is to be differentiated."""
    return torch.stack([output.reconstruction_loss, output.depth_loss])


def measure(arguments: argparse.Namespace) -> Iterator[Dict[str, Any]]:
    """A row per batch size, in the first precision; one that does not fit into memory says so."""
    precision, device = arguments.precision[0], arguments.device
    peak = {}
    if arguments.flops:
        peak['peak_tflops'] = arguments.peak_tflops or product_tflops(precision, device)
    model = make_model(arguments)
    compiled = torch.compile(model, dynamic=False) if arguments.compile else model
    tflop_per_sample = None
    for batch in arguments.batch:
        row: Dict[str, Any] = dict(batch=batch, **peak)
        try:
            forget_peak(device)
            step = Step(model, batch, precision, device)
            times = [
                timed(lambda step=step: step(compiled), device) for _ in range(arguments.warmup + arguments.repeats)
            ]
            row.update(first_s=times[0], times_s=times[arguments.warmup :])
            row.update(peak_rss_gib=peak_mib(device) / 2**10, losses=step.losses)
            if arguments.scalars:
                row['scalars_s'] = step.scalars_s()
            if arguments.flops:
                # of the first size alone: products are as many per sample, and other sizes may need a compiled model to fit
                tflop_per_sample = tflop_per_sample or step.tflop() / batch
                row['tflop'] = tflop_per_sample * batch
        except torch.cuda.OutOfMemoryError:
            row['error'] = 'out of memory'
        step = None  # its inputs, before the next size
        yield row


class Step:
    """Forward and backward on one batch; ``losses`` are those of the last call."""

    def __init__(self, model: GeoMIM, batch: int, precision: str, device: str) -> None:
        self.model, self.precision, self.device = model, precision, device
        self.inputs = make_inputs(model.config, batch, device)
        self.masks = model.draw_masks(torch.device(device), torch.Generator().manual_seed(0))
        self._losses: Tensor

    def __call__(self, run: Any) -> PretrainOutput:
        self.model.zero_grad(set_to_none=True)
        output = passed(run, self.inputs, self.masks, self.precision, self.device)
        losses = losses_of(output)
        losses.sum().backward()
        self._losses = losses.detach()
        return output

    @property
    def losses(self) -> List[float]:
        return self._losses.tolist()

    def scalars_s(self) -> float:
        """Seconds that the figures of a run's scalars take."""
        means, output = measures.RunningMeans(), self(self.model)

        def note() -> None:
            with torch.no_grad():
                means.add(measures.measure(output, self.model.config.view_transform.depth_bins))

        return statistics.median(timed(note, self.device) for _ in range(9))

    def tflop(self) -> float:
        with FlopCounterMode(display=False) as counter:
            self(self.model)
        return counter.get_total_flops() / 1e12


def learn(arguments: argparse.Namespace) -> Iterator[Dict[str, Any]]:
    """A row per precision with the losses of every step on one batch; optimizer and clipping are those of the configurations."""
    device = arguments.device
    for precision in arguments.precision:
        model, generator = make_model(arguments), torch.Generator().manual_seed(0)
        inputs = make_inputs(model.config, arguments.batch[0], device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.01)
        found = []
        for _ in range(arguments.losses):
            optimizer.zero_grad(set_to_none=True)
            masks = model.draw_masks(torch.device(device), generator)
            losses = losses_of(passed(model, inputs, masks, precision, device))
            losses.sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 35)
            optimizer.step()
            found.append(losses.detach())
        yield dict(precision=precision, losses=torch.stack(found).tolist())


def describe(name: str, row: Dict[str, Any]) -> str:
    if 'error' in row:
        return f'{name:<34} {row["error"]}'
    seconds = statistics.median(row['times_s'])
    text = f'{name:<34} {spread(row["times_s"])} s  peak {row["peak_rss_gib"]:.2f} GiB'
    if 'scalars_s' in row:
        text += f'  scalars {1000 * row["scalars_s"]:.1f} ms, {100 * row["scalars_s"] / seconds:.2f} % of the step'
    if 'tflop' in row:
        speed = row['tflop'] / seconds
        text += f'  {row["batch"] / seconds:.2f} samples/s  {row["tflop"]:.2f} TFLOP  {speed:.1f} TFLOP/s'
        text += f'  utilisation {100 * speed / row["peak_tflops"]:.0f} %'
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='base', choices=('tiny', 'base', 'large'))
    parser.add_argument('--small', action='store_true', help='a small student and small images: times say nothing')
    parser.add_argument('--configs', nargs='+', help='pretraining configurations, instead of --size')
    parser.add_argument('--precision', nargs='+', default=['fp32'], choices=('fp32', 'tf32', 'bf16'))
    parser.add_argument('--checkpointing', nargs='+', default=['off'], choices=('off', 'on'))
    parser.add_argument('--batch', type=int, nargs='+', default=[1])
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--warmup', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=1, help='turns of all measurements')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('--scalars', action='store_true', help="time the figures of a run's scalars")
    parser.add_argument('--flops', action='store_true', help='count matrix products')
    parser.add_argument('--peak-tflops', type=float, help='of the device in that precision, instead of a measured one')
    parser.add_argument(
        '--losses', type=int, metavar='STEPS', help='train instead; one process, a JSON line per precision'
    )
    parser.add_argument('--against', help='another command, measured in turn')
    parser.add_argument('--single', action='store_true', help='the first combination here, a JSON line per batch size')
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.single or arguments.losses:
        for row in learn(arguments) if arguments.losses else measure(arguments):
            print(json.dumps(row), flush=True)
        return
    print(machine(arguments.device) if arguments.configs else f'{machine(arguments.device)}, Swin {arguments.size}')
    students = [('--configs', config) for config in arguments.configs or []] or [()]
    for _ in range(arguments.rounds):
        if arguments.against:
            print(describe('against', apart(command=shlex.split(arguments.against))), flush=True)
        choices = itertools.product(students, arguments.precision, arguments.checkpointing, arguments.batch)
        for student, precision, checkpointing, batch in choices:
            options = ('--precision', precision, '--checkpointing', checkpointing, '--batch', str(batch))
            name = f'{Path(student[-1]).stem.split("_")[1]}, ' if student else ''
            name += f'{precision}, checkpointing {checkpointing}' + (f', batch {batch}' if batch > 1 else '')
            print(describe(name, apart('--single', *student, *options)), flush=True)


if __name__ == '__main__':
    main()
