"""Summing lifted image features into BEV cells: one public function, and the plan that its calls share.

A lifted point is (feature cell, depth bin); its feature is depth probability * context. The (points x channels) product is never built:
a BEV cell is a weighted bag of context rows. ``benchmarks/bev_pool.py`` weighs the alternatives.

Shape legend: M feature cells of a batch, D depth bins, P = M * D points, C channels, V BEV cells of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_SPARE_BAG = 256  # points of a spare bag; one bag for all points off the grid would be one slow thread on a GPU


@dataclass(frozen=True)
class PoolPlan:
    """Points sorted by BEV cell. Depends on geometry alone: K copies share it, and a fixed rig may keep it.

    Args:
        point: (P,) int64, the points in the order of their cells.
        offset: first position in ``point`` of each bag; the first ``num_cells`` bags are the BEV cells.
        num_cells: V.
        num_bins: D.
    """

    point: Tensor
    offset: Tensor
    num_cells: int
    num_bins: int

    @classmethod
    def build(cls, cells: Tensor, num_cells: int) -> PoolPlan:
        """Plan for ``cells`` (M, D) int64: the BEV cell of each point, or a negative number off the grid."""
        num_bins = cells.shape[1]
        flat = cells.reshape(-1)
        spare = flat.numel() // _SPARE_BAG + 1
        off_grid = num_cells + torch.arange(flat.numel(), device=flat.device) % spare
        ranked, point = torch.sort(torch.where(flat >= 0, flat, off_grid))
        bags = torch.arange(num_cells + spare, device=flat.device)
        return cls(point, torch.searchsorted(ranked, bags), num_cells, num_bins)


def bev_pool(depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
    """Weighted sums of context rows.

    Args:
        depth: (M, D) float32, depth probabilities.
        context: (M, C) float32.
        plan: where the points fall.

    Returns:
        (V, C): sum over the points of a cell of depth * context. Differentiable in both.
    """
    weights = depth.reshape(-1)[plan.point]
    rows = torch.div(plan.point, plan.num_bins, rounding_mode='floor')
    pooled = F.embedding_bag(rows, context, plan.offset, mode='sum', per_sample_weights=weights)
    return pooled[: plan.num_cells]


def bev_pool_plain(depth: Tensor, context: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    """The same by one index_add over all points: the oracle of the tests, with the large intermediate."""
    lifted = (depth[..., None] * context[:, None]).reshape(-1, context.shape[1])
    flat = cells.reshape(-1)
    pooled = context.new_zeros(num_cells + 1, context.shape[1])
    return pooled.index_add(0, torch.where(flat >= 0, flat, num_cells), lifted)[:num_cells]
