"""The pooling that never builds the lifted tensor against a loop and against the plain twin, forward and backward."""

from __future__ import annotations

from typing import Optional, Tuple

import pytest
import torch
from torch import Tensor

from geomim.method.pooling import PoolPlan, bev_pool, bev_pool_plain

from ..helpers import assert_close_with_gradients


def looped(depth: Tensor, context: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    pooled = torch.zeros(num_cells, context.shape[1], dtype=context.dtype)
    for m in range(depth.shape[0]):
        for d in range(depth.shape[1]):
            if cells[m, d] >= 0:
                pooled[cells[m, d]] += depth[m, d] * context[m]
    return pooled


def problem(kind: str) -> Tuple[Tensor, Tensor, Tensor, int]:
    rows, bins, channels, num_cells = 13, 7, 5, 11
    depth, context = torch.rand(rows, bins, dtype=torch.float64), torch.randn(rows, channels, dtype=torch.float64)
    cells = torch.randint(-1, num_cells, (rows, bins))
    if kind == 'all off the grid':
        cells[:] = -1
    elif kind == 'none off the grid':
        cells = cells.clamp(min=0)
    elif kind == 'one cell':
        cells[:] = 4
    elif kind == 'empty cells':
        cells = torch.where(cells % 3 == 0, cells, -torch.ones_like(cells))
    elif kind == 'other negatives':
        cells = torch.where(cells < 0, torch.full_like(cells, -1000), cells)
    return depth, context, cells, num_cells


KINDS = ['mixed', 'all off the grid', 'none off the grid', 'one cell', 'empty cells', 'other negatives']


@pytest.mark.parametrize('kind', KINDS)
def test_pooling_equals_a_loop_and_its_twin(kind: str) -> None:
    depth, context, cells, num_cells = problem(kind)
    expected = looped(depth, context, cells, num_cells)
    torch.testing.assert_close(bev_pool_plain(depth, context, cells, num_cells), expected)
    pooled = bev_pool(depth, context, PoolPlan.build(cells, num_cells))
    assert pooled.shape == (num_cells, context.shape[1])
    torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('frozen', [None, 'depth', 'context'])
def test_gradients_equal_those_of_the_twin(kind: str, frozen: Optional[str]) -> None:
    depth, context, cells, num_cells = problem(kind)
    wanted = [value.requires_grad_() for name, value in (('depth', depth), ('context', context)) if name != frozen]
    plan = PoolPlan.build(cells, num_cells)
    twin = bev_pool_plain(depth, context, cells, num_cells)
    assert_close_with_gradients(bev_pool(depth, context, plan), twin, wanted)


def test_gradcheck() -> None:
    depth, context, cells, num_cells = problem('mixed')
    plan = PoolPlan.build(cells, num_cells)
    depth.requires_grad_()
    context.requires_grad_()
    assert torch.autograd.gradcheck(lambda d, c: bev_pool(d, c, plan), (depth, context))


def test_a_gradient_that_is_not_contiguous() -> None:
    depth, context, cells, num_cells = problem('mixed')
    context.requires_grad_()
    plan = PoolPlan.build(cells, num_cells)
    (a,) = torch.autograd.grad(bev_pool(depth, context, plan).t().flip(0).sum(), context)
    (b,) = torch.autograd.grad(bev_pool_plain(depth, context, cells, num_cells).sum(), context)
    torch.testing.assert_close(a, b)


def test_two_copies_share_a_plan() -> None:
    depth, context, cells, num_cells = problem('mixed')
    plan = PoolPlan.build(cells, num_cells)
    other_depth, other_context = torch.rand_like(depth), torch.randn_like(context)
    bev_pool(depth, context, plan)
    torch.testing.assert_close(
        bev_pool(other_depth, other_context, plan), looped(other_depth, other_context, cells, num_cells)
    )


def test_many_points_off_the_grid_fill_several_spare_bags() -> None:
    depth, context = torch.rand(100, 30), torch.randn(100, 3)
    cells = torch.where(torch.rand(100, 30) < 0.02, torch.randint(0, 5, (100, 30)), torch.full((100, 30), -1))
    torch.testing.assert_close(
        bev_pool(depth, context, PoolPlan.build(cells, 5)), bev_pool_plain(depth, context, cells, 5)
    )


@pytest.mark.skipif(
    not hasattr(getattr(torch, 'library', None), 'custom_op'), reason='torch < 2.4 has no operators of a package'
)
def test_the_operator_is_what_compilers_are_told() -> None:
    """Schema, fake implementation and gradients fit what it computes."""
    depth, context, cells, num_cells = problem('mixed')
    plan = PoolPlan.build(cells, num_cells)
    arguments = (depth.requires_grad_(), context.requires_grad_(), cells, plan.point, plan.offset, num_cells)
    torch.library.opcheck(torch.ops.geomim.bev_pool.default, arguments)
    with torch.no_grad():
        grad = torch.randn(num_cells, context.shape[1], dtype=context.dtype)
        torch.library.opcheck(
            torch.ops.geomim.bev_pool_gradients.default, (grad, depth.detach(), context.detach(), cells)
        )
