"""What sparse convolution needs in mmdet3d: shared neighbour tables, and a training run on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from mmdet3d.models.layers.spconv import IS_SPCONV2_AVAILABLE
from mmdet3d.models.middle_encoders import SparseEncoder
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..teachers.sparse_kernels import sparse_convolutions

if IS_SPCONV2_AVAILABLE:
    from spconv.pytorch import ops as spconv_ops
else:
    spconv_ops = None


def share_indices(encoder: SparseEncoder) -> None:
    """Let the residual blocks of a stage share their neighbour tables, which depend on the voxels alone.

    mmdet3d names the tables of its plain blocks only; without a name every convolution searches anew.
    """
    for stage, layer in enumerate(encoder.encoder_layers, 1):
        for convolution in sparse_convolutions(layer).values():
            if convolution.subm and convolution.indice_key is None:
                convolution.indice_key = f'subm{stage}'


def no_stream() -> int:
    """What stands for CUDA's current stream where there is no CUDA; spconv 2.3 asks for it in every backward."""
    return 0


@HOOKS.register_module()
class SparseOnCPUHook(Hook):
    """Lets a detector with sparse convolutions be trained on a CPU: one torch thread, and a backward without a stream.

    For a model on a GPU it does nothing. Evaluation is covered too, since the threads stay at one for the run.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Any) -> None:
        """Prepare this process."""
        if torch.cuda.is_available() or not sparse_convolutions(runner.model):
            return
        if spconv_ops is not None:
            spconv_ops.get_current_stream = no_stream
        torch.set_num_threads(1)
        runner.logger.info('SparseOnCPUHook: one thread, since spconv computes wrong numbers on a CPU with several')
