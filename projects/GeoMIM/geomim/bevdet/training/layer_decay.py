"""Layer-wise decay of the learning rate (METHOD 7) as mmengine's optimizer wrapper constructor."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ...adapter.layer_decay import LayerDecay, describe_groups


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(
    name=['GeoMIMLayerDecayOptimizerConstructor', 'LayerDecayOptimWrapperConstructor']
)
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """The groups of :class:`geomim.adapter.layer_decay.LayerDecay`; ``paramwise_cfg`` holds its decay_rate, num_layers, backbone.

    Raises:
        ValueError: another option, a number out of range, an optimizer without ``lr``, a model without a Swin.
    """

    def __init__(self, optim_wrapper_cfg: Dict[str, Any], paramwise_cfg: Optional[Dict[str, Any]] = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.decay = LayerDecay.from_options(self.paramwise_cfg, type(self).__name__)

    def add_params(self, params: List[Dict[str, Any]], module: nn.Module, **_: Any) -> None:
        """Append the groups of ``module``'s trainable parameters to ``params``, last layer first."""
        groups = self.decay.groups(module, self.base_lr, self.base_wd)
        params.extend(groups)
        print_log(f'{type(self).__name__}: {describe_groups(groups)}', logger='current')
