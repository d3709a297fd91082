"""Summing lifted image features into BEV cells: one public function, and the plan that its calls share.

A lifted point is (feature cell, depth bin); its feature is depth probability * context. The (points x channels) product is never built:
a BEV cell is a weighted bag of context rows. ``benchmarks/bev_pool.py`` weighs the alternatives.

Shape legend: M feature cells of a batch, D depth bins, P = M * D points, C channels, V BEV cells of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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


class _BagPool(torch.autograd.Function):
    """Forward: each BEV cell is a bag of context rows. Backward: each context row is a bag of D rows of the gradient map."""

    @staticmethod
    def forward(ctx: Any, depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
        ctx.save_for_backward(depth, context)
        ctx.plan = plan
        # point p is depth bin p % D of context row p // D
        rows = torch.div(plan.point, depth.shape[1], rounding_mode='floor')
        weights = depth.reshape(-1)[plan.point]
        pooled = F.embedding_bag(rows, context, plan.offset, mode='sum', per_sample_weights=weights)
        return pooled[: plan.num_cells]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, None]:
        depth, context = ctx.saved_tensors
        cells = ctx.plan.cells
        on_grid = cells >= 0
        with torch.enable_grad():
            weights = torch.where(on_grid, depth.detach(), torch.zeros_like(depth)).requires_grad_()
            # the gradient of context row m: the sum over its D points of depth * gradient of their cells
            # torch 1.10 fails an internal assertion when only the weights want a gradient; that of the rows is never computed.
            rows = grad.detach().contiguous().requires_grad_()
            grad_context = F.embedding_bag(cells.clamp(min=0), rows, mode='sum', per_sample_weights=weights)
            # and that of the depth: the scalar product of the context row with the gradient of its point's cell
            (grad_weights,) = torch.autograd.grad(grad_context, weights, context)
        return torch.where(on_grid, grad_weights, torch.zeros_like(depth)), grad_context.detach(), None


def bev_pool(depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
    """Weighted sums of context rows.

    Args:
        depth: (M, D) float32, depth probabilities.
        context: (M, C) float32.
        plan: where the points fall.

    Returns:
        (V, C): sum over the points of a cell of depth * context. Differentiable (once) in both.
    """
    return _BagPool.apply(depth, context, plan)


def bev_pool_plain(depth: Tensor, context: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    """The same by one index_add over all points: the oracle of the tests, with the large intermediate."""
    lifted = (depth[..., None] * context[:, None]).reshape(-1, context.shape[1])
    flat = cells.reshape(-1)
    pooled = context.new_zeros(num_cells + 1, context.shape[1])
    return pooled.index_add(0, torch.where(flat >= 0, flat, num_cells), lifted)[:num_cells]
