"""What a finetuning run needs besides model and data: layer-wise learning rates, averaged weights, switches at an epoch."""

from .averaging import RampedEMA
from .hooks import SequentialControlHook, SyncBNControlHook
from .layer_decay import LayerDecayOptimWrapperConstructor

__all__ = ['LayerDecayOptimWrapperConstructor', 'RampedEMA', 'SequentialControlHook', 'SyncBNControlHook']
