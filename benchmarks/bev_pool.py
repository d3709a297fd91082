"""Weighs the ways to sum lifted features into BEV cells against each other: time of forward + backward and peak memory.

    python benchmarks/bev_pool.py --image-size 256 704 --repeats 5

Every variant runs in a process of its own, in turn, so that a drifting machine does not favour one.
"""

from __future__ import annotations

import argparse
import json

import torch
from measuring import apart, machine, peak_mib, spread, surround_rig, timed

from geomim import BEVGrid, DepthBins, ViewTransform, ViewTransformConfig
from geomim.method.pooling import PoolPlan, bev_pool, bev_pool_plain


def embedding_bag(depth, context, cells, num_cells):
    return bev_pool(depth, context, PoolPlan.build(cells, num_cells))


def index_add_by_bin(depth, context, cells, num_cells):
    """One index_add a depth bin: no (points x channels) tensor at once, but autograd keeps each bin's product."""
    pooled = context.new_zeros(num_cells + 1, context.shape[1])
    slots = torch.where(cells >= 0, cells, num_cells)
    for column in range(depth.shape[1]):
        pooled = pooled.index_add(0, slots[:, column], depth[:, column, None] * context)
    return pooled[:num_cells]


class _SparseProduct(torch.autograd.Function):
    """A (cells x feature cells) sparse matrix of depths times the context."""

    @staticmethod
    def forward(ctx, depth, context, cells, num_cells):
        keep = (cells >= 0).flatten()
        rows = cells.flatten()[keep]
        cols = torch.arange(len(depth))[:, None].expand_as(cells).flatten()[keep]
        matrix = torch.sparse_coo_tensor(
            torch.stack([rows, cols]), depth.flatten()[keep], (num_cells, len(depth))
        ).to_sparse_csr()
        ctx.save_for_backward(depth, context, cells, rows, cols, keep)
        return matrix @ context

    @staticmethod
    def backward(ctx, grad):
        depth, context, cells, rows, cols, keep = ctx.saved_tensors
        transposed = torch.sparse_coo_tensor(
            torch.stack([cols, rows]), depth.flatten()[keep], (len(depth), len(grad))
        ).to_sparse_csr()
        grad_depth = torch.zeros_like(depth)
        padded = torch.cat([grad, grad.new_zeros(1, grad.shape[1])])
        slots = torch.where(cells >= 0, cells, len(grad))
        for column in range(depth.shape[1]):
            grad_depth[:, column] = (padded[slots[:, column]] * context).sum(dim=1)
        return grad_depth, transposed @ grad, None, None


def sparse_product(depth, context, cells, num_cells):
    return _SparseProduct.apply(depth, context, cells, num_cells)


def index_add(depth, context, cells, num_cells):
    return bev_pool_plain(depth, context, cells, num_cells)


VARIANTS = {f.__name__: f for f in (index_add, index_add_by_bin, sparse_product, embedding_bag)}


def measure(name: str, arguments: argparse.Namespace) -> dict:
    torch.manual_seed(0)
    device = arguments.device
    config = ViewTransformConfig(
        image_size=tuple(arguments.image_size),
        grid=BEVGrid((-54.0, 54.0, 0.3), (-54.0, 54.0, 0.3)),
        depth_bins=DepthBins(),
        channels=80,
    )
    cells = ViewTransform(8, config).cell_index(surround_rig()).to(device)
    num_cells = config.grid.num_x * config.grid.num_y
    depth = torch.randn(cells.shape).softmax(dim=1).to(device).requires_grad_()
    context = torch.randn(len(cells), config.channels).to(device).requires_grad_()
    grad = torch.randn(num_cells, config.channels).to(device)
    before = peak_mib(device)

    def both() -> None:
        depth.grad = context.grad = None
        VARIANTS[name](depth, context, cells, num_cells).backward(grad)

    times = [timed(both, device) for _ in range(arguments.repeats + 1)][1:]
    peak = peak_mib(device)
    oracle = bev_pool_plain(depth.detach(), context.detach(), cells, num_cells)
    pooled = VARIANTS[name](depth, context, cells, num_cells).detach()
    error = (pooled - oracle).abs().max() / oracle.abs().max()
    return {'points': int((cells >= 0).sum()), 'times': times, 'added_peak_mib': peak - before, 'error': float(error)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--image-size', type=int, nargs=2, default=(256, 704), metavar=('H', 'W'))
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--single', choices=list(VARIANTS), help='measure this one here and print JSON')
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.single:
        print(json.dumps(measure(arguments.single, arguments)))
        return
    print(machine(arguments.device))
    for name in VARIANTS:
        row = apart('--single', name)
        print(
            f'{name:<18} {spread(row["times"], 1e3, 1)} ms  peak +{row["added_peak_mib"]:.0f} MiB  '
            f'{row["points"]} points  error {row["error"]:.1e}'
        )


if __name__ == '__main__':
    main()
