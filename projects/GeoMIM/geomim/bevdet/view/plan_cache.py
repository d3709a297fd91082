"""Pooling plans of geometries that come again: on a fixed rig the points fall into the same cells for every sample."""

from __future__ import annotations

from collections import OrderedDict
from typing import Callable, Tuple

import torch

from ...method.camera import CameraRig
from ...method.pooling import PoolPlan

Key = Tuple[str, Tuple[int, ...], bytes]


class PlanCache:
    """The plans of the latest geometries, found by every number that a plan depends on: another geometry never gets an old plan.

    Args:
        capacity: plans kept; the one not asked for the longest time goes first.
    """

    def __init__(self, capacity: int = 4) -> None:
        if capacity < 1:
            raise ValueError(f'a plan cache needs room for at least one plan, got {capacity}')
        self.capacity = capacity
        self._plans: OrderedDict[Key, PoolPlan] = OrderedDict()

    def __len__(self) -> int:
        return len(self._plans)

    def get(self, rig: CameraRig, build: Callable[[CameraRig], PoolPlan]) -> PoolPlan:
        """The plan of a geometry, built if it is not here."""
        key = self._key(rig)
        if key not in self._plans:
            self._plans[key] = build(rig)
            if len(self._plans) > self.capacity:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    @staticmethod
    def _key(rig: CameraRig) -> Key:
        matrices = (rig.intrinsics, rig.cam2bev, rig.img_aug, rig.bev_aug)
        numbers = torch.cat([matrix.detach().flatten() for matrix in matrices]).cpu().numpy().tobytes()  # one transfer
        return str(rig.cam2bev.device), tuple(rig.cam2bev.shape), numbers
