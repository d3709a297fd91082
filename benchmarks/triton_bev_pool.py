"""Candidate for ``bev_pool`` on a GPU: a Triton kernel in which each program sums the points of one BEV cell.

It agrees with index_add in Triton's interpreter (``tests/benchmarks``) and has been neither compiled nor measured on a GPU yet:
``benchmarks/gpu.sh`` and ``benchmarks/view_transform.py --device cuda`` do both. Only the forward is its own; the backward is
that of the weighted bags.
"""

# No postponed annotations: triton reads them.
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from geomim.method.pooling import PoolPlan, _BagPool

POINTS_AT_ONCE = 16


@triton.jit
def sum_cells(
    depth, context, point, offset, pooled, bins, channels, POINTS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """pooled[cell] = sum of depth * context row over the points between two offsets; CHANNELS is a power of two, at least ``channels``."""
    cell = tl.program_id(0).to(tl.int64)
    start, end = tl.load(offset + cell), tl.load(offset + cell + 1)
    channel = tl.arange(0, CHANNELS)
    total = tl.zeros([CHANNELS], dtype=tl.float32)
    for first in range(start, end, POINTS):
        position = first + tl.arange(0, POINTS)
        within = position < end
        index = tl.load(point + position, mask=within, other=0)
        weight = tl.load(depth + index, mask=within, other=0.0)
        place = (index // bins)[:, None] * channels + channel[None, :]
        rows = tl.load(context + place, mask=within[:, None] & (channel[None, :] < channels), other=0.0)
        total += tl.sum(rows * weight[:, None], axis=0)
    tl.store(pooled + cell * channels + channel, total, mask=channel < channels)


class _TritonPool(_BagPool):
    @staticmethod
    def forward(ctx: Any, depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
        depth, context = depth.contiguous(), context.contiguous()
        ctx.save_for_backward(depth, context)
        ctx.cells = plan.cells  # what the inherited backward reads
        pooled = torch.empty(plan.num_cells, context.shape[1], dtype=torch.float32, device=context.device)
        sum_cells[(plan.num_cells,)](
            depth,
            context,
            plan.point,
            plan.offset,
            pooled,
            depth.shape[1],
            context.shape[1],
            POINTS=POINTS_AT_ONCE,
            CHANNELS=triton.next_power_of_2(context.shape[1]),
        )
        return pooled


def triton_bev_pool(depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
    """As :func:`geomim.method.pooling.bev_pool`, float32 on a GPU."""
    return _TritonPool.apply(depth, context, plan)
