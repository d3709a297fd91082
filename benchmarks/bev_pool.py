"""Weighs the ways to sum lifted features into BEV cells against each other: time of forward + backward and peak memory.

    python benchmarks/bev_pool.py --image-size 256 704 --repeats 5
    python benchmarks/bev_pool.py --device cuda --bev-pool-v2 path/to/mmdet3d/ops/bev_pool_v2

Every variant runs in a process of its own, in turn, so that a drifting machine does not favour one. The first time has
the indices or plan computed anew, as training must; the others have them from an earlier call. On a GPU a Triton kernel
comes too, and BEVDet's published one, which is built for the measurement, if its folder is given.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, Callable, Dict, List, NamedTuple

import torch
from measuring import apart, forget_peak, machine, peak_mib, spread, surround_rig, timed
from pooling_variants import load_bev_pool_v2, published_indices, triton_pool

from geomim import BEVGrid, DepthBins, ViewTransform, ViewTransformConfig
from geomim.method.pooling import PoolPlan, bev_pool, bev_pool_plain


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
        cols = torch.arange(len(depth), device=depth.device)[:, None].expand_as(cells).flatten()[keep]
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


class Variant(NamedTuple):
    """``prepare(cells, num_cells)`` is what depends on the geometry alone; ``pool(depth, context, *prepared)`` the rest."""

    pool: Callable[..., Any]
    prepare: Callable[..., tuple] = lambda *geometry: geometry


def plan(cells, num_cells):
    return (PoolPlan.build(cells, num_cells),)


def published(arguments: argparse.Namespace) -> Variant:
    function = load_bev_pool_v2(arguments.bev_pool_v2)

    def prepare(cells, num_cells):
        return num_cells, published_indices(cells)

    def pool(depth, context, num_cells, indices):
        # its maps are (B, N, D, h, w) and (B, N, h, w, C); only the order in memory counts
        shape = (1, 1, 1, num_cells, context.shape[1])
        pooled = function(depth[None, None, None], context[None, None, None], bev_feat_shape=shape, **indices)
        return pooled.flatten(2)[0].t()

    return Variant(pool, prepare)


VARIANTS: Dict[str, Callable[[argparse.Namespace], Variant]] = {
    'index_add': lambda _: Variant(bev_pool_plain),
    'index_add_by_bin': lambda _: Variant(index_add_by_bin),
    'sparse_product': lambda _: Variant(sparse_product),
    'embedding_bag': lambda _: Variant(bev_pool, plan),
    'triton': lambda arguments: Variant(triton_pool(arguments.device), plan),
    'bev_pool_v2': published,
}


def names(arguments: argparse.Namespace) -> List[str]:
    """Of the variants that can run on the device."""
    left_out = set() if arguments.bev_pool_v2 else {'bev_pool_v2'}
    if torch.device(arguments.device).type != 'cuda':
        left_out |= {'triton', 'bev_pool_v2'}
    return [name for name in VARIANTS if name not in left_out]


def measure(name: str, arguments: argparse.Namespace) -> Dict[str, Any]:
    """Times of one variant; what keeps it from running, if something does."""
    try:
        return {'variant': name, **measured(VARIANTS[name](arguments), arguments)}
    except Exception as error:  # compilers of kernels raise what they like
        text = str(error).strip() or type(error).__name__
        return {'variant': name, 'error': f'{type(error).__name__}: {text.splitlines()[0]}'}


def measured(variant: Variant, arguments: argparse.Namespace) -> Dict[str, Any]:
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
    geometry = (cells, num_cells)
    kept = variant.prepare(*geometry)
    forget_peak(device)
    before = peak_mib(device)

    def forward(prepared: tuple = kept) -> None:
        with torch.no_grad():
            variant.pool(depth, context, *prepared)

    def both(prepared: tuple = kept) -> None:
        depth.grad = context.grad = None
        variant.pool(depth, context, *prepared).backward(grad)

    ways = dict(times_s=lambda: both(variant.prepare(*geometry)), kept_s=both, forward_s=forward)
    times = {name: [timed(way, device) for _ in range(arguments.repeats + 1)][1:] for name, way in ways.items()}
    peak = peak_mib(device)
    oracle = bev_pool_plain(depth.detach(), context.detach(), *geometry)
    pooled = variant.pool(depth, context, *kept).detach()
    difference = float((pooled - oracle).abs().max() / oracle.abs().max())
    return dict(times, points=int((cells >= 0).sum()), added_peak_mib=peak - before, difference=difference)


def describe(row: Dict[str, Any]) -> str:
    if 'error' in row:
        return f'{row["variant"]:<18} {row["error"]}'
    return (
        f'{row["variant"]:<18} {spread(row["times_s"], 1e3, 1)} ms  kept {spread(row["kept_s"], 1e3, 1)} ms  '
        f'forward, kept {spread(row["forward_s"], 1e3, 1)} ms  peak +{row["added_peak_mib"]:.0f} MiB  '
        f'{row["points"]} points  error {row["difference"]:.1e}'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--image-size', type=int, nargs=2, default=(256, 704), metavar=('H', 'W'))
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--bev-pool-v2', metavar='PATH', help='folder of the published CUDA kernel')
    parser.add_argument('--single', nargs='+', choices=list(VARIANTS), help='these here, a JSON line for each')
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.single:
        for name in arguments.single:
            print(json.dumps(measure(name, arguments)), flush=True)
        return
    print(machine(arguments.device))
    for name in names(arguments):
        print(describe(apart('--single', name)), flush=True)


if __name__ == '__main__':
    main()
