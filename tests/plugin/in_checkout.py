"""Runs a program of a BEVDet codebase on a machine without CUDA: what only CUDA has is replaced in memory, no file is touched.

python in_checkout.py SCRIPT [ARGUMENTS]    (in the checkout's root)
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import runpy
import sys
from types import ModuleType
from typing import Any, Optional

import torch
from torch import Tensor

COMPILED = ('bev_pool_v2_ext', 'bev_pool_ext', 'nearest_assign_ext')


def bev_pool_v2_forward(
    depth: Tensor, feat: Tensor, out: Tensor, of_depth: Tensor, of_feat: Tensor, of_bev: Tensor, *_: Any
) -> None:
    """out[bev] += depth * feat, over points; feat and out have channels last."""
    weighted = depth.flatten()[of_depth.long(), None] * feat.reshape(-1, feat.shape[-1])[of_feat.long()]
    out.view(-1, out.shape[-1]).index_add_(0, of_bev.long(), weighted)


def bev_pool_v2_backward(
    out_grad: Tensor,
    depth_grad: Tensor,
    feat_grad: Tensor,
    depth: Tensor,
    feat: Tensor,
    of_depth: Tensor,
    of_feat: Tensor,
    of_bev: Tensor,
    *_: Any,
) -> None:
    """The gradients of :func:`bev_pool_v2_forward`, added to ``depth_grad`` and ``feat_grad``."""
    channels = feat.shape[-1]
    above = out_grad.reshape(-1, channels)[of_bev.long()]
    by_depth = (above * feat.reshape(-1, channels)[of_feat.long()]).sum(dim=1)
    depth_grad.view(-1).index_add_(0, of_depth.long(), by_depth)
    by_feat = above * depth.flatten()[of_depth.long(), None]
    feat_grad.view(-1, channels).index_add_(0, of_feat.long(), by_feat)


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the compiled extensions of a checkout, wherever it has them; only the second pooling can be called."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Optional[importlib.machinery.ModuleSpec]:
        if name.rpartition('.')[2] in COMPILED:
            return importlib.machinery.ModuleSpec(name, self)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__.endswith('bev_pool_v2_ext'):
            module.bev_pool_v2_forward = bev_pool_v2_forward  # type: ignore[attr-defined]
            module.bev_pool_v2_backward = bev_pool_v2_backward  # type: ignore[attr-defined]


def replace_cuda() -> None:
    """Extensions, the one built when it is imported, and the device that a fork's training does not ask for."""
    import torch.utils.cpp_extension

    sys.meta_path.insert(0, StandIns())
    torch.utils.cpp_extension.load = lambda name, *args, **kwargs: ModuleType(name)
    torch.nn.Module.cuda = lambda self, device=None: self  # type: ignore[method-assign]


def main() -> None:
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path[0] = os.getcwd()
    torch.set_num_threads(1)
    replace_cuda()
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
