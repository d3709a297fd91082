"""Summing lifted image features into BEV cells: one public function, and the plan that its calls share.

A lifted point is (feature cell, depth bin); its feature is depth probability * context. The (points x channels) product is never built:
a BEV cell is a weighted bag of context rows. ``benchmarks/bev_pool.py`` weighs the alternatives.

Shape legend: M feature cells of a batch, D depth bins, P = M * D points, C channels, V BEV cells of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_SUM = 0  # embedding_bag's number for it
_SPARE_BAG = 256  # points of a spare bag; one bag for all points off the grid would be one slow thread on a GPU


@dataclass(frozen=True)
class PoolPlan:
    """Points sorted by BEV cell. Depends on geometry alone: K copies share it, and a fixed rig may keep it.

    Args:
        cells: (M, D) int64, the BEV cell of each point, negative off the grid.
        point: (P,) int64, the points in the order of their cells.
        offset: first position in ``point`` of each bag; the first ``num_cells`` bags are the BEV cells.
        num_cells: V.
    """

    cells: Tensor
    point: Tensor
    offset: Tensor
    num_cells: int

    @classmethod
    def build(cls, cells: Tensor, num_cells: int) -> PoolPlan:
        """Plan for ``cells`` (M, D) int64 in [0, num_cells), or negative off the grid."""
        flat = cells.reshape(-1)
        # points off the grid are spread over spare bags behind the cells: one bag of them all would be slow to sum
        spare = flat.numel() // _SPARE_BAG + 1
        off_grid = num_cells + torch.arange(flat.numel(), device=flat.device) % spare
        ranked, point = torch.sort(torch.where(flat >= 0, flat, off_grid))
        # a bag begins where the sorted cells (P,) reach its number; an empty one begins where the next does
        bags = torch.arange(num_cells + spare, device=flat.device)
        return cls(cells, point, torch.searchsorted(ranked, bags), num_cells)


def _pool(depth: Tensor, context: Tensor, cells: Tensor, point: Tensor, offset: Tensor, num_cells: int) -> Tensor:
    """Each BEV cell is a bag of context rows."""
    # point p is depth bin p % D of context row p // D
    rows = torch.div(point, depth.shape[1], rounding_mode='floor')
    weights = depth.reshape(-1)[point]
    return F.embedding_bag(rows, context, offset, mode='sum', per_sample_weights=weights)[:num_cells]


def _pool_gradients(grad: Tensor, depth: Tensor, context: Tensor, cells: Tensor) -> Tuple[Tensor, Tensor]:
    """Gradients of depth and context: each context row is a bag of D rows of the gradient map ``grad`` (V, C)."""
    on_grid, bags = cells >= 0, torch.arange(cells.shape[0], device=cells.device)
    weights = torch.where(on_grid, depth, torch.zeros_like(depth))
    rows, places = grad.contiguous(), cells.clamp(min=0)
    # the gradient of context row m: the sum over its D points of depth * gradient of their cells
    grad_context = F.embedding_bag(places, rows, mode='sum', per_sample_weights=weights)
    # and that of the depth: the scalar product of the context row with the gradient of its point's cell
    bins = cells.shape[1]
    grad_weights = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        context.contiguous(), rows, places.flatten(), bags * bins, bags.repeat_interleave(bins), _SUM
    )
    return torch.where(on_grid, grad_weights.view_as(depth), torch.zeros_like(depth)), grad_context


class _BagPool(torch.autograd.Function):
    """The pooling where torch has no operators of a package's own."""

    @staticmethod
    def forward(ctx: Any, depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
        ctx.save_for_backward(depth, context)
        ctx.cells = plan.cells
        return _pool(depth, context, plan.cells, plan.point, plan.offset, plan.num_cells)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, None]:
        depth, context = ctx.saved_tensors
        return (*_pool_gradients(grad, depth, context, ctx.cells), None)


def _define_operator() -> Callable[..., Tensor]:
    """``geomim::bev_pool``, which compilers take as a whole: no graph breaks at it, or loses the plan's bags in a loop."""
    define = torch.library.custom_op
    pool = define(
        'geomim::bev_pool',
        _pool,
        mutates_args=(),
        schema='(Tensor depth, Tensor context, Tensor cells, Tensor point, Tensor offset, int num_cells) -> Tensor',
    )
    gradients = define(
        'geomim::bev_pool_gradients',
        _pool_gradients,
        mutates_args=(),
        schema='(Tensor grad, Tensor depth, Tensor context, Tensor cells) -> (Tensor, Tensor)',
    )
    pool.register_fake(
        lambda depth, context, cells, point, offset, num_cells: context.new_empty(num_cells, context.shape[1])
    )
    gradients.register_fake(lambda grad, depth, context, cells: (torch.empty_like(depth), torch.empty_like(context)))

    def save(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])

    def backward(ctx: Any, grad: Tensor) -> Tuple[Any, ...]:
        return (*gradients(grad, *ctx.saved_tensors), None, None, None, None)

    pool.register_autograd(backward, setup_context=save)
    return pool


_operator = _define_operator() if hasattr(getattr(torch, 'library', None), 'custom_op') else None  # torch >= 2.4


def bev_pool(depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
    """Weighted sums of context rows.

    Args:
        depth: (M, D) float32, depth probabilities.
        context: (M, C) float32.
        plan: where the points fall.

    Returns:
        (V, C): sum over the points of a cell of depth * context. Differentiable (once) in both.
    """
    if _operator is None:
        return _BagPool.apply(depth, context, plan)
    return _operator(depth, context, plan.cells, plan.point, plan.offset, plan.num_cells)


def bev_pool_plain(depth: Tensor, context: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    """The same by one index_add over all points: the oracle of the tests, with the large intermediate."""
    lifted = (depth[..., None] * context[:, None]).reshape(-1, context.shape[1])
    flat = cells.reshape(-1)
    pooled = context.new_zeros(num_cells + 1, context.shape[1])
    return pooled.index_add(0, torch.where(flat >= 0, flat, num_cells), lifted)[:num_cells]
