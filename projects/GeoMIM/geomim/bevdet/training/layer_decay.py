"""Layer-wise decay of the learning rate (METHOD 7) as mmengine's optimizer wrapper constructor."""

from __future__ import annotations

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

from ...adapter.layer_decay import DecaysLayers


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(
    name=['GeoMIMLayerDecayOptimizerConstructor', 'LayerDecayOptimWrapperConstructor']
)
class LayerDecayOptimWrapperConstructor(DecaysLayers, DefaultOptimWrapperConstructor):
    """Options are those of :class:`geomim.adapter.layer_decay.LayerDecay`."""

    def log(self, message: str) -> None:
        print_log(message, logger='current')
