"""The view transformation of BEVDet-R50 (256 x 704 pixels, BEV cells of 0.8 m): ways to pool, and what keeping plans saves.

    python benchmarks/view_transform.py --threads 2 --json OUT
    python benchmarks/view_transform.py --device cuda --bev-pool-v2 path/to/mmdet3d/ops/bev_pool_v2

1. Lift (1 x 1 convolution, softmax) and pooling of one sample, forward alone and forward + backward. In every round each variant has one
   turn, so that a drifting machine favours none. "kept" variants find what depends on the geometry alone in a cache, as
   ``accelerate=True`` does in evaluation; the others compute it in every call, as training must. ``--bev-pool-v2`` takes the folder of
   BEVDet's published CUDA kernel and builds it for the measurement; nothing else needs it.
2. The whole detector with random weights, one frame, images to the raw outputs of the head: latency and peak memory with and without kept
   plans, one process each, in turn.

``--quick`` checks that everything runs: small images, few repeats; its times say nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List

import mmdet3d.models  # noqa: F401 - registers the host's parts
import torch
from measuring import apart, machine, peak_mib, spread, surround_rig, timed
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from pooling_variants import Transform, make_variants
from torch import Tensor, nn

import geomim.bevdet  # noqa: F401 - registers the detectors
from geomim import CameraRig

CONFIG = Path(__file__).resolve().parents[1] / 'configs' / 'mmdet3d' / 'finetune' / 'bevdet-r50.py'
QUICK_SIZE = (64, 176)
WARM_UP = 2
TOLERANCE = 1e-4  # of a variant against index_add, relative to the largest value


def make_model(arguments: argparse.Namespace, accelerate: bool) -> nn.Module:
    """The detector in evaluation mode, random weights."""
    torch.manual_seed(0)
    model = Config.fromfile(CONFIG, import_custom_modules=False).model
    model.img_backbone.pop('init_cfg')
    model.img_view_transformer.update(input_size=arguments.image_size, accelerate=accelerate)
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        detector = MODELS.build(model)
    return detector.to(arguments.device).eval()


def make_rig(arguments: argparse.Namespace) -> CameraRig:
    """Six cameras around the vehicle, their image augmentation that of the image size."""
    rig = surround_rig()
    rig.img_aug[:, :, :2] *= arguments.image_size[1] / 704
    return rig.to(arguments.device)


def make_inputs(arguments: argparse.Namespace) -> Dict[str, Tensor]:
    rig = make_rig(arguments)
    images = torch.randn(1, 1, 6, 3, *arguments.image_size, generator=torch.Generator().manual_seed(0))
    still = torch.eye(4, device=arguments.device)
    return dict(
        images=images.to(arguments.device),
        cam2ego=rig.cam2ego[:, None],
        ego2global=still.expand(1, 1, 6, 4, 4),
        intrinsics=rig.intrinsics[:, None],
        img_aug=rig.img_aug[:, None],
        bev_aug=still[None],
    )


def measure_view(arguments: argparse.Namespace) -> List[Dict[str, Any]]:
    """One row per variant and pass."""
    rig = make_rig(arguments)
    views = [make_model(arguments, accelerate).img_view_transformer for accelerate in (False, True)]
    variants = make_variants(*views, torch.device(arguments.device), arguments.bev_pool_v2)
    size = [side // 16 for side in arguments.image_size]
    features = torch.randn(1, 6, 256, *size, generator=torch.Generator().manual_seed(1)).to(arguments.device)
    features.requires_grad_()
    grad = torch.randn(1, 64, 128, 128, generator=torch.Generator().manual_seed(2)).to(arguments.device)

    def forward(transform: Transform) -> None:
        with torch.no_grad():
            transform(features, rig)

    def both(transform: Transform) -> None:
        transform(features, rig).backward(grad)

    errors = view_errors(variants, features, rig, grad)
    rows: Dict[tuple, Dict[str, Any]] = {}
    for turn in range(WARM_UP + arguments.repeats):
        for kind, run in (('forward', forward), ('forward + backward', both)):
            for name, transform in variants.items():
                features.grad = None
                seconds = timed(lambda run=run, transform=transform: run(transform), arguments.device)
                row = {'pass': kind, 'variant': name, 'error': errors[name], 'times_s': []}
                if turn >= WARM_UP:
                    rows.setdefault((kind, name), row)['times_s'].append(seconds)
    return list(rows.values())


def view_errors(variants: Dict[str, Transform], features: Tensor, rig: CameraRig, grad: Tensor) -> Dict[str, float]:
    """Largest difference from the first variant in output and gradient, relative to the largest value of each."""
    found, oracle = {}, None
    for name, transform in variants.items():
        features.grad = None
        output = transform(features, rig)
        output.backward(grad)
        result = (output.detach(), features.grad)
        oracle = oracle or result
        found[name] = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(result, oracle))
    return found


def measure_model(arguments: argparse.Namespace, kept: bool) -> Dict[str, Any]:
    """Times of the detector, seconds, and the peak memory of this process (of the device, if that is a GPU)."""
    model, inputs = make_model(arguments, accelerate=kept), make_inputs(arguments)
    with torch.no_grad():
        turns = range(WARM_UP + arguments.model_repeats)
        times = [timed(lambda: model(inputs, mode='tensor'), arguments.device) for _ in turns]
    return dict(times_s=times[WARM_UP:], peak_mib=peak_mib(arguments.device))


def measure_models(arguments: argparse.Namespace) -> List[Dict[str, Any]]:
    """A row with and one without kept plans; their processes take turns."""
    rows = [dict(plans=name, times_s=[], peak_mib=0.0) for name in ('fresh', 'kept')]
    for _ in range(arguments.rounds):
        for row in rows:
            found = apart('--single', row['plans'])
            row['times_s'] += found['times_s']
            row['peak_mib'] = max(row['peak_mib'], found['peak_mib'])
    return rows


def report(result: Dict[str, Any]) -> None:
    print(result['machine'])
    for row in result['view']:
        warning = '' if row['error'] < TOLERANCE else '  DIFFERS'
        print(f'{row["pass"]:<18} {row["variant"]:<18} {timing(row)}  error {row["error"]:.1e}{warning}')
    for row in result['model']:
        print(f'whole model        {row["plans"] + " plans":<18} {timing(row)}  peak {row["peak_mib"]:.0f} MiB')


def timing(row: Dict[str, Any]) -> str:
    return f'{spread(row["times_s"], 1e3, 2)} ms, {len(row["times_s"])} runs'


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--repeats', type=int, default=20, help='of the view transformation')
    parser.add_argument('--model-repeats', type=int, default=5, help='of the whole detector, per process')
    parser.add_argument('--rounds', type=int, default=2, help='processes of the whole detector, per kind of plan')
    parser.add_argument('--bev-pool-v2', metavar='PATH', help='folder of the published CUDA kernel, to be measured too')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the figures here too')
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--single', choices=('fresh', 'kept'), help='measure the detector here and print JSON')
    arguments = parser.parse_args()
    arguments.image_size = (256, 704)
    if arguments.quick:
        arguments.image_size = QUICK_SIZE
        arguments.repeats, arguments.model_repeats, arguments.rounds = 2, 1, 1
    torch.set_num_threads(arguments.threads)
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.single:
        print(json.dumps(measure_model(arguments, arguments.single == 'kept')))
        return
    if arguments.bev_pool_v2 and torch.device(arguments.device).type != 'cuda':
        raise SystemExit(f'--bev-pool-v2 is a CUDA kernel; the device is {arguments.device}')
    quick = ', quick: times say nothing' if arguments.quick else ''
    line = f'{machine(arguments.device)}, {arguments.image_size} pixels{quick}'
    result = dict(machine=line, view=measure_view(arguments), model=measure_models(arguments))
    report(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
