"""Weighs the ways to sum lifted features into BEV cells against each other: time of forward + backward and peak memory.

    python benchmarks/bev_pool.py --image-size 256 704 --repeats 5

Every variant runs in a process of its own, in turn, so that a drifting machine does not favour one.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time

import torch

from geomim import BEVGrid, CameraRig, DepthBins, ViewTransform, ViewTransformConfig
from geomim.method.pooling import PoolPlan, bev_pool, bev_pool_plain


def surround_rig(cams: int = 6) -> CameraRig:
    """Cameras evenly around the vehicle, 70 degrees wide."""
    cam2bev = torch.zeros(1, cams, 4, 4)
    angles = torch.arange(cams) * (2 * torch.pi / cams)
    cam2bev[0, :, 0, 0], cam2bev[0, :, 0, 2] = angles.sin(), angles.cos()
    cam2bev[0, :, 1, 0], cam2bev[0, :, 1, 2] = -angles.cos(), angles.sin()
    cam2bev[0, :, 2, 1] = -1
    cam2bev[0, :, 3, 3] = 1
    intrinsics = torch.tensor([[1266.0, 0, 816], [0, 1266, 491], [0, 0, 1]]).expand(1, cams, 3, 3)
    img_aug = torch.eye(4).repeat(1, cams, 1, 1)
    img_aug[..., 0, 0] = img_aug[..., 1, 1] = 0.48
    img_aug[..., 0, 3], img_aug[..., 1, 3] = -32.0, -176.0
    return CameraRig.create(intrinsics, cam2bev, cam2bev, img_aug)


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
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    step = arguments.cell
    config = ViewTransformConfig(
        image_size=tuple(arguments.image_size),
        grid=BEVGrid((-54.0, 54.0, step), (-54.0, 54.0, step)),
        depth_bins=DepthBins(),
        channels=arguments.channels,
    )
    view = ViewTransform(8, config)
    cells = view.cell_index(surround_rig()).to(device)
    num_cells = config.grid.num_x * config.grid.num_y
    depth = torch.randn(cells.shape).softmax(dim=1).to(device).requires_grad_()
    context = torch.randn(len(cells), arguments.channels).to(device).requires_grad_()
    grad = torch.randn(num_cells, arguments.channels).to(device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(arguments.repeats + 1):
        depth.grad = context.grad = None
        if device.type == 'cuda':
            torch.cuda.synchronize()
        start = time.perf_counter()
        VARIANTS[name](depth, context, cells, num_cells).backward(grad)
        if device.type == 'cuda':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    oracle = bev_pool_plain(depth.detach(), context.detach(), cells, num_cells)
    error = (VARIANTS[name](depth, context, cells, num_cells) - oracle).abs().max() / oracle.abs().max()
    return {
        'variant': name,
        'points': int((cells >= 0).sum()),
        'median_ms': 1e3 * statistics.median(times[1:]),
        'min_ms': 1e3 * min(times[1:]),
        'max_ms': 1e3 * max(times[1:]),
        'added_peak_mib': (peak - before) / 1024,
        'error': float(error),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--image-size', type=int, nargs=2, default=(256, 704), metavar=('H', 'W'))
    parser.add_argument('--channels', type=int, default=80)
    parser.add_argument('--cell', type=float, default=0.3, help='BEV cell, metres')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, default=0)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--only', choices=list(VARIANTS))
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments)))
        return
    print(
        f'torch {torch.__version__}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {arguments.device}'
    )
    for name in VARIANTS:
        command = [sys.executable, __file__, *sys.argv[1:], '--only', name]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f'{row["variant"]:<18} {row["median_ms"]:8.1f} ms ({row["min_ms"]:.1f} to {row["max_ms"]:.1f})  '
            f'peak +{row["added_peak_mib"]:.0f} MiB  {row["points"]} points  error {row["error"]:.1e}'
        )


if __name__ == '__main__':
    main()
