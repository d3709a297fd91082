"""Layer-wise decay of the learning rate (METHOD 7) as mmcv 1.x's optimizer constructor."""

from __future__ import annotations

from mmcv.runner import DefaultOptimizerConstructor

from ..adapter.layer_decay import DecaysLayers
from .host import OPTIMIZER_BUILDERS, run_logger


@OPTIMIZER_BUILDERS.register_module()
class GeoMIMLayerDecayOptimizerConstructor(DecaysLayers, DefaultOptimizerConstructor):
    """Options are those of :class:`geomim.adapter.layer_decay.LayerDecay`."""

    def log(self, message: str) -> None:
        run_logger().info(message)
