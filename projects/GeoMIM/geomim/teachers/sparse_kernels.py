"""Sparse convolutions of whatever library a host has: their weights' order, their first values, their one CPU thread.

Kernel orders: spconv 2 stores (out, k.., in), spconv 1 and mmcv's own copy of it (k.., in, out). mmdet3d turns weights
by the version it finds in a state dict's metadata, and takes a plain dict, which has none, for spconv 1: whatever its
order. Shapes tell it reliably.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Dict, Iterator, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

KERNEL_ORDERS = ('spconv1', 'spconv2')
_GUARD = threading.RLock()  # the number of threads belongs to the whole process


def _sparse_class(module: nn.Module) -> Optional[type]:
    """The class that spconv, or the copy of it in mmcv or mmdet3d, derives its convolutions from."""
    return next((kind for kind in type(module).__mro__ if kind.__name__ == 'SparseConvolution'), None)


def sparse_convolutions(module: nn.Module) -> Dict[str, nn.Module]:
    """The sparse convolutions inside ``module``, by name."""
    return {name: child for name, child in module.named_modules() if _sparse_class(child) is not None}


def installed_order(module: nn.Module) -> str:
    """The kernel order of the library that ``module``'s sparse convolutions come from; 'spconv2' if it has none."""
    kinds = [_sparse_class(child) for child in module.modules()]
    own_copy = any(kind is not None and not kind.__module__.startswith('spconv.') for kind in kinds)
    return 'spconv1' if own_copy else 'spconv2'


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


def kernel_order(
    pairs: Mapping[str, Tuple[Tensor, Tensor]], source: str, default: Optional[str] = None, installed: str = 'spconv2'
) -> str:
    """The order in which a file stores its sparse kernels.

    Args:
        pairs: name -> (kernel of the file, kernel of the model in the order ``installed``).
        source: the file, for messages.
        default: the order if every kernel would fit both ways.
        installed: of the model's library.

    Raises:
        ValueError: kernels that speak for different orders, or for none at all.
    """
    other = KERNEL_ORDERS[1 - KERNEL_ORDERS.index(installed)]
    votes: Dict[str, str] = {}
    for name, (stored, own) in pairs.items():
        fits_as_is = stored.shape == own.shape
        fits_turned = stored.dim() == own.dim() and turned(stored, installed).shape == own.shape
        if fits_as_is != fits_turned:
            votes.setdefault(installed if fits_as_is else other, name)
    if len(votes) > 1:
        raise ValueError(
            f'{source}: {votes["spconv1"]} is stored in the order of spconv 1 (kernel, in, out) and '
            f'{votes["spconv2"]} in that of spconv 2 (out, kernel, in); one file must use one order'
        )
    if not votes and pairs and default is None:
        raise ValueError(
            f'{source}: no kernel shape tells the order of spconv 1 from that of spconv 2; name the checkpoint layout'
        )
    return next(iter(votes), default or installed)


def reorder_kernels(
    tensors: Mapping[str, Tensor], module: nn.Module, source: str, default: Optional[str] = None
) -> Tuple[Dict[str, Tensor], str]:
    """``tensors`` (names of ``module``), every sparse kernel in the order of the module's library, and the order they came in.

    Raises:
        ValueError: see :func:`kernel_order`.
    """
    installed = installed_order(module)
    pairs: Dict[str, Tuple[Tensor, Tensor]] = {}
    own = module.state_dict()
    for name in sparse_convolutions(module):
        key = f'{name}.weight' if name else 'weight'
        if key in tensors:
            pairs[key] = (tensors[key], own[key])
    order = kernel_order(pairs, source, default, installed)
    result = dict(tensors)
    if order != installed:
        result.update({key: turned(stored, installed).contiguous() for key, (stored, _) in pairs.items()})
    return result, order
