"""What sparse convolution needs around it: one CPU thread, and weights in the order of the installed library.

Kernel orders: spconv 2 stores (out, k.., in), spconv 1 and mmcv's own copy of it (k.., in, out). mmdet3d turns weights
by the version it finds in a state dict's metadata, and takes a plain dict, which has none, for spconv 1: whatever its
order. Shapes tell it reliably.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple

import torch
from mmdet3d.models.layers.spconv import IS_SPCONV2_AVAILABLE
from mmdet3d.models.middle_encoders import SparseEncoder
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

if IS_SPCONV2_AVAILABLE:
    from spconv.pytorch import ops as spconv_ops
    from spconv.pytorch.conv import SparseConvolution
else:
    from mmcv.ops.sparse_conv import SparseConvolution

    spconv_ops = None

KERNEL_ORDERS = ('spconv1', 'spconv2')
INSTALLED_ORDER = 'spconv2' if IS_SPCONV2_AVAILABLE else 'spconv1'
_GUARD = threading.RLock()  # the number of threads belongs to the whole process


def sparse_convolutions(module: nn.Module) -> Dict[str, nn.Module]:
    """The sparse convolutions inside ``module``, by name."""
    return {name: child for name, child in module.named_modules() if isinstance(child, SparseConvolution)}


def share_indices(encoder: SparseEncoder) -> None:
    """Let the residual blocks of a stage share their neighbour tables, which depend on the voxels alone.

    mmdet3d names the tables of its plain blocks only; without a name every convolution searches anew.
    """
    for stage, layer in enumerate(encoder.encoder_layers, 1):
        for convolution in sparse_convolutions(layer).values():
            if convolution.subm and convolution.indice_key is None:
                convolution.indice_key = f'subm{stage}'


def draw_weights(module: nn.Module, seed: int) -> None:
    """Random weights, the same for a seed, that keep the variance of what passes through (He et al. 2015, eq. 10).

    The default of spconv lets a signal fade to 1e-3 over an encoder, below the epsilon of the normalised target.
    """
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        weight = getattr(child, 'weight', None)
        if isinstance(weight, nn.Parameter) and weight.dim() > 1:
            outputs = getattr(child, 'out_channels', getattr(child, 'out_features', weight.shape[0]))
            with torch.no_grad():
                weight.normal_(0.0, (2.0 * outputs / weight.numel()) ** 0.5, generator=generator)


@contextlib.contextmanager
def single_threaded(active: bool = True) -> Iterator[None]:
    """Run the block with one torch thread, one block at a time; the former number comes back, whatever happens inside.

    spconv 2.3 computes wrong numbers on a CPU with several threads. ``active=False`` (on a GPU, or without sparse
    convolutions) changes nothing.
    """
    if not active:
        yield
        return
    with _GUARD:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def turned(weight: Tensor, order: str) -> Tensor:
    """A kernel of the other order, brought into ``order``."""
    if order == 'spconv2':
        return weight.permute(weight.dim() - 1, *range(weight.dim() - 1))
    return weight.permute(*range(1, weight.dim()), 0)


def kernel_order(pairs: Mapping[str, Tuple[Tensor, Tensor]], source: str, default: Optional[str] = None) -> str:
    """The order in which a file stores its sparse kernels.

    Args:
        pairs: name -> (kernel of the file, kernel of the model in the installed order).
        source: the file, for messages.
        default: the order if every kernel would fit both ways.

    Raises:
        ValueError: kernels that speak for different orders, or for none at all.
    """
    other = KERNEL_ORDERS[1 - KERNEL_ORDERS.index(INSTALLED_ORDER)]
    votes: Dict[str, str] = {}
    for name, (stored, own) in pairs.items():
        fits_as_is = stored.shape == own.shape
        fits_turned = stored.dim() == own.dim() and turned(stored, INSTALLED_ORDER).shape == own.shape
        if fits_as_is != fits_turned:
            votes.setdefault(INSTALLED_ORDER if fits_as_is else other, name)
    if len(votes) > 1:
        raise ValueError(
            f'{source}: {votes["spconv1"]} is stored in the order of spconv 1 (kernel, in, out) and '
            f'{votes["spconv2"]} in that of spconv 2 (out, kernel, in); one file must use one order'
        )
    if not votes and pairs and default is None:
        raise ValueError(
            f'{source}: no kernel shape tells the order of spconv 1 from that of spconv 2; name the checkpoint layout'
        )
    return next(iter(votes), default or INSTALLED_ORDER)


def reorder_kernels(
    tensors: Mapping[str, Tensor], module: nn.Module, source: str, default: Optional[str] = None
) -> Tuple[Dict[str, Tensor], str]:
    """``tensors`` (names of ``module``), every sparse kernel in the installed order, and the order they came in.

    Raises:
        ValueError: see :func:`kernel_order`.
    """
    pairs = {}
    for name, child in sparse_convolutions(module).items():
        key = f'{name}.weight' if name else 'weight'
        if key in tensors:
            pairs[key] = (tensors[key], child.weight)
    order = kernel_order(pairs, source, default)
    result = dict(tensors)
    if order != INSTALLED_ORDER:
        result.update({key: turned(stored, INSTALLED_ORDER).contiguous() for key, (stored, _) in pairs.items()})
    return result, order


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
