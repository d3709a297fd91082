"""Volumes of a training step without computing anything: peak memory, gradients, operations. No GPU is needed, and no time.

    python benchmarks/volumes.py configs/mmdet3d/pretrain/geomim_swin-b_50e_nuscenes_256x704.py --batch 1 2 4 \
        --checkpointing off on --precision fp32 bf16 --out volumes.md

A step is forward, backward and AdamW's update, in torch's FakeTensorMode: parameters, gradients, optimizer state, activations
and temporaries, as they live. At its start there are parameters, buffers, optimizer state and inputs. Not counted is what a
device adds: the context of CUDA (0.5 to 1 GiB), libraries' workspaces, fragmentation of the allocator; and the frozen
teacher, the average of weights (4 bytes a parameter), temporaries inside the BEV pooling. Fused attention is taken for
granted. With --as-cpu the cheap recomputation stays that this project does on a CPU alone.

TFLOP are those of matrix products, convolutions and attention, forward and backward, recomputed ones too. Gradients are what
data-parallel training reduces over all ranks in each step.

CONFIG is of pretraining, or of a detector of the BEVDet family.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import weakref
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Set

import torch
from measuring import apart, surround_rig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

# the counter knows GPUs' kernels; these stand for them here, and give it shapes
ATTENTION: Dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
SLOTS = 500  # target boxes of a task


def as_fake(model: nn.Module, mode: Any) -> nn.Module:
    """The model with fake tensors in the place of its own: built before, since initial weights want numbers."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(mode.from_tensor(value.data), value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = mode.from_tensor(value)
    return model


def without_weights(config: Any) -> Any:
    """The configuration without files to start from."""
    if isinstance(config, dict):
        return type(config)(
            {key: None if key == 'init_cfg' else without_weights(value) for key, value in config.items()}
        )
    return [without_weights(entry) for entry in config] if isinstance(config, (list, tuple)) else config


def pretraining(config: Any, recompute: bool, batch: int) -> Any:
    """Model and step of a pretraining configuration."""
    from mmengine.registry import MODELS

    from geomim import GeoMIM
    from geomim.adapter.encoders import student_config

    student = without_weights(config.model.student)
    student.activation_checkpointing = recompute
    if 'with_cp' in student.get('encoder', {}):
        student.encoder.with_cp = recompute
    model = GeoMIM(student_config(student, MODELS.build)).train()
    view, cams = model.config.view_transform, len(config.get('camera_names', range(6)))
    rig = surround_rig(cams, batch)
    masks = model.draw_masks(torch.device('cpu'), torch.Generator().manual_seed(0))

    def inputs() -> List[Tensor]:
        height, width = view.image_size
        target = torch.empty(batch, model.config.target.channels, *view.output_grid.shape)
        return [torch.empty(batch, cams, 3, height, width), target, torch.empty(batch, cams, height, width)]

    def step(images: Tensor, target: Tensor, depth: Tensor) -> Tensor:
        output = model(images, rig, target, depth, masks)
        return output.reconstruction_loss + output.depth_loss

    return model, inputs, step


def detection(config: Any, recompute: bool, batch: int) -> Any:
    """Model and step of a detector, occupancy or map configuration; boxes' targets are made up, in the head's shapes."""
    from mmdet3d.registry import MODELS
    from mmdet3d.structures import Det3DDataSample
    from mmengine.structures import BaseDataElement, InstanceData, PixelData

    config.model.img_backbone.with_cp = recompute
    model = MODELS.build({**without_weights(config.model), 'data_preprocessor': None}).train()
    data = config.data_config
    (height, width), shape = data['input_size'], (batch, model.num_frames, len(data['cams']))

    def inputs() -> List[Tensor]:
        matrices = [torch.empty(*shape, side, side) for side in (4, 4, 3, 4)]
        depth = torch.empty(batch, shape[2], height, width)
        return [torch.empty(*shape, 3, height, width), *matrices, torch.empty(batch, 4, 4), depth]

    names = ('images', 'cam2ego', 'ego2global', 'intrinsics', 'img_aug', 'bev_aug', 'depth_map')

    def samples() -> List[Any]:
        found = [Det3DDataSample(gt_instances_3d=InstanceData()) for _ in range(batch)]
        for sample in found:
            if hasattr(model, 'map_head'):
                spec = model.map_head.spec
                labels = torch.empty(len(spec.classes), spec.grid.num_y, spec.grid.num_x)
                sample.gt_bev_map = PixelData(metainfo=spec.as_meta(), data=labels)
            if hasattr(model, 'voxels'):
                voxels = tuple(model.voxels)
                semantics = torch.empty(voxels, dtype=torch.uint8)
                sample.gt_occupancy = BaseDataElement(semantics=semantics, mask_camera=semantics.bool())
        return found

    def targets(_: Any) -> Any:
        wanted = model.pts_bbox_head.target_config
        (cells_x, cells_y), tasks = wanted.shape, wanted.classes_per_task
        return (
            [torch.empty(batch, count, cells_y, cells_x) for count in tasks],
            [torch.empty(batch, SLOTS, wanted.channels) for _ in tasks],
            [torch.empty(batch, SLOTS, dtype=torch.long) for _ in tasks],
            [torch.empty(batch, SLOTS, dtype=torch.uint8) for _ in tasks],
        )

    if hasattr(model, 'pts_bbox_head'):
        from mmdet.models.losses import l1_loss

        model.pts_bbox_head.get_targets = targets
        # mmdet's L1Loss asks whether any weight is above 0; the function behind it does not
        model.pts_bbox_head.loss_bbox.forward = partial(l1_loss, reduction='mean')

    def step(*tensors: Tensor) -> Tensor:
        return torch.stack(list(model.loss(dict(zip(names, tensors)), samples()).values())).sum()

    return model, inputs, step


@contextlib.contextmanager
def as_on_gpu(wanted: bool) -> Any:
    """Blocks keep their activations, as everywhere but on a CPU."""
    from geomim.method import attention

    kept = attention.checkpointing
    if wanted:
        attention.checkpointing = object()  # which has no selective checkpointing
    try:
        yield
    finally:
        attention.checkpointing = kept


class LiveStorages(TorchDispatchMode):
    """Bytes of all tensors that are alive, and the most there were: each storage counts from the operation that makes it to its end."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.alive, self.peak = 0, 0
        self._known: Set[int] = set()
        self.note(tensors)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.note([value for value in tree_leaves(result) if isinstance(value, Tensor)])
        return result

    def note(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known:
                continue
            self._known.add(key)
            size = storage.nbytes()
            self.alive += size
            weakref.finalize(storage, self._gone, key, size)
        self.peak = max(self.peak, self.alive)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def account(
    model: nn.Module, inputs: Callable[[], List[Tensor]], step: Callable[..., Tensor], bf16: bool
) -> Dict[str, float]:
    """Peak bytes of one step, and of what is there at its start."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    as_fake(model, mode)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with mode:
        tensors = inputs()
        optimizer = torch.optim.AdamW(parameters, foreach=False)
        with LiveStorages([*model.parameters(), *model.buffers(), *tensors]) as live:
            for _ in range(2):  # the state of the optimizer is there from the first step's end
                at_start, live.peak = live.alive, live.alive
                with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
                    with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
                        loss = step(*tensors)
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                del loss
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return {'peak': live.peak, 'start': at_start, 'gradients': gradients, 'flop': counter.get_total_flops()}


def measure(arguments: argparse.Namespace) -> Dict[str, float]:
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    import geomim.bevdet  # noqa: F401 - registers

    init_default_scope('mmdet3d')
    config = Config.fromfile(arguments.configs[0])
    kind = pretraining if 'student' in config.model else detection
    parts = kind(config, arguments.checkpointing[0] == 'on', arguments.batch[0])
    with as_on_gpu(not arguments.as_cpu):
        return account(*parts, arguments.precision[0] == 'bf16')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+')
    parser.add_argument('--batch', type=int, nargs='+', default=[1])
    parser.add_argument('--checkpointing', nargs='+', default=['off'], choices=('off', 'on'))
    parser.add_argument('--precision', nargs='+', default=['fp32'], choices=('fp32', 'bf16'))
    parser.add_argument('--as-cpu', action='store_true')
    parser.add_argument('--out', type=Path, help='Markdown file')
    parser.add_argument('--single', action='store_true', help='account for the first combination here and print JSON')
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.single:
        print(json.dumps(measure(arguments)))
        return
    lines = [
        '| configuration | samples | precision | checkpointing | peak, GiB | at its start | gradients, GiB | TFLOP |',
        '|---' * 8 + '|',
    ]
    print('\n'.join(lines), flush=True)
    choices = itertools.product(arguments.configs, arguments.batch, arguments.precision, arguments.checkpointing)
    for config, batch, precision, recompute in choices:
        one = ['--batch', str(batch), '--precision', precision, '--checkpointing', recompute]
        found = apart(command=line_of(config, *one, *(['--as-cpu'] if arguments.as_cpu else [])))
        cells = [Path(config).stem, str(batch), precision, recompute]
        cells += [f'{found[name] / 2**30:.2f}' for name in ('peak', 'start', 'gradients')]
        lines.append('| ' + ' | '.join([*cells, f'{found["flop"] / 1e12:.2f}']) + ' |')
        print(lines[-1], flush=True)
        if arguments.out:
            arguments.out.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def line_of(config: str, *options: str) -> List[str]:
    """This script on one configuration, in a process of its own."""
    return [sys.executable, __file__, config, *options, '--single']


if __name__ == '__main__':
    main()
