"""The ways to pool that ``view_transform.py`` and ``bev_pool.py`` measure.

Shape legend: N cameras (one sample), C channels, h x w feature cells, D depth bins, Y x X BEV cells.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import torch
from torch import Tensor, nn

from geomim import CameraRig
from geomim.method.pooling import PoolPlan, bev_pool_plain

Transform = Callable[[Tensor, CameraRig], Tensor]  # features (1, N, C', h, w) to BEV (1, C, Y, X)
Pool = Callable[[Tensor, Tensor, Any], Tensor]  # depth (N, D, h, w), context (N, C, h, w) and a plan to BEV


def make_variants(
    fresh: nn.Module, keeping: nn.Module, device: torch.device, published: Optional[str]
) -> Dict[str, Transform]:
    """View transformations by name, all with the same weights; the first is the oracle.

    Args:
        fresh, keeping: view transformers without and with ``accelerate``.
        device: those of a GPU come only there.
        published: folder of ``bev_pool_v2``, or None.
    """
    cells = fresh.grid.num_y * fresh.grid.num_x
    plain = by_rows(fresh, lambda depth, context, index: bev_pool_plain(depth, context, index, cells))
    variants: Dict[str, Transform] = {
        **both_ways('index_add', fresh, plain, fresh.cell_index),
        'ours': lambda features, rig: fresh(features, rig).bev,
        'ours, kept': lambda features, rig: keeping(features, rig).bev,
    }
    if device.type != 'cuda':
        return variants
    try:
        variants.update(both_ways('Triton', fresh, by_rows(fresh, triton_pool(device)), fresh.plan))
    except Exception as error:  # whatever its compiler raises
        print(f'Triton left out: {type(error).__name__}: {error}', file=sys.stderr)
    if published:
        pool = published_pool(fresh, load_bev_pool_v2(published))
        area = fresh.feature_size[0] * fresh.feature_size[1]
        variants.update(
            both_ways('bev_pool_v2', fresh, pool, lambda rig: published_indices(fresh.cell_index(rig), area))
        )
    return variants


def both_ways(name: str, view: nn.Module, pool: Pool, plan: Callable[[CameraRig], Any]) -> Dict[str, Transform]:
    return {
        name: pooled_by(view, pool, plan, keep=False),
        f'{name}, kept': pooled_by(view, pool, plan, keep=True),
    }


def pooled_by(view: nn.Module, pool: Pool, plan: Callable[[CameraRig], Any], keep: bool) -> Transform:
    """The view transformation with another pooling."""
    kept: List[Any] = []

    def transform(features: Tensor, rig: CameraRig) -> Tensor:
        lifted = view.lift(features.flatten(0, 1), rig, None)
        if not keep:
            return pool(lifted.logits.softmax(dim=1), lifted.context, plan(rig))
        if not kept:
            kept.append(plan(rig))
        return pool(lifted.logits.softmax(dim=1), lifted.context, kept[0])

    return transform


def by_rows(view: nn.Module, pool: Pool) -> Pool:
    """A pooling of rows (N * h * w, D or C) into cells (Y * X, C) as one of maps into (1, C, Y, X)."""

    def pool_maps(depth: Tensor, context: Tensor, plan: Any) -> Tensor:
        rows = [x.permute(0, 2, 3, 1).flatten(0, 2) for x in (depth, context)]
        return pool(*rows, plan).view(1, view.grid.num_y, view.grid.num_x, -1).permute(0, 3, 1, 2)

    return pool_maps


def load_bev_pool_v2(folder: str) -> Callable[..., Tensor]:
    """BEVDet's published function, its extension built from the same folder."""
    from torch.utils.cpp_extension import load

    sources = [str(path) for path in sorted(Path(folder, 'src').glob('*')) if path.suffix in ('.cpp', '.cu')]
    if not sources:
        raise SystemExit(f'{folder}: no src/*.cpp and src/*.cu; --bev-pool-v2 takes the folder mmdet3d/ops/bev_pool_v2')
    package = types.ModuleType('published_bev_pool_v2')
    package.__path__ = [folder]
    package.bev_pool_v2_ext = load('bev_pool_v2_ext', sources)  # type: ignore[attr-defined]
    sys.modules[package.__name__] = package
    return importlib.import_module('published_bev_pool_v2.bev_pool').bev_pool_v2


def published_indices(cells: Tensor, area: int = 1) -> Dict[str, Tensor]:
    """What ``bev_pool_v2`` wants to know: of each point on the grid, ordered by cell, its places in depth, in the features and in BEV; and
    where the run of points of each cell starts and how long it is. All int32.

    Args:
        cells: (N * h * w, D).
        area: h * w for depth (N, D, h, w), 1 for depth (N * h * w, D).
    """
    flat = cells.flatten()
    points = flat.argsort()[(flat < 0).sum() :]
    row, column = points // cells.shape[1], points % cells.shape[1]
    _, lengths = torch.unique_consecutive(flat[points], return_counts=True)
    found = dict(
        ranks_depth=(row // area * cells.shape[1] + column) * area + row % area,
        ranks_feat=row,
        ranks_bev=flat[points],
        interval_starts=lengths.cumsum(0) - lengths,
        interval_lengths=lengths,
    )
    return {name: value.int() for name, value in found.items()}


def published_pool(view: nn.Module, published: Callable[..., Tensor]) -> Pool:
    """The published function with its maps in its own order: depth as it is, channels of the features last."""

    def pool(depth: Tensor, context: Tensor, indices: Dict[str, Tensor]) -> Tensor:
        shape = (1, 1, view.grid.num_y, view.grid.num_x, context.shape[1])
        features = context.permute(0, 2, 3, 1)[None]
        return published(depth[None], features, bev_feat_shape=shape, **indices)[:, :, 0]

    return pool


def triton_pool(device: Any) -> Callable[..., Tensor]:
    """The candidate of ``triton_bev_pool.py``, tried on a few points: raises where there is no Triton, or whatever its compiler does."""
    from triton_bev_pool import triton_bev_pool

    cells = torch.zeros(32, 8, dtype=torch.int64, device=device)
    triton_bev_pool(torch.ones(32, 8, device=device), torch.ones(32, 16, device=device), PoolPlan.build(cells, 2))
    return triton_bev_pool
