"""Layer-wise decay of the learning rate for finetuning a pretrained Swin (METHOD 7).

The layers are counted from the images on: 0 the patch embedding and the position embedding, 1 the first block, ...,
``sum(depths)`` the last one, and one more for everything behind the blocks: output norms, necks, heads. A patch merging
belongs to the first block of the stage that it leads to.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

_BACKBONES = ('img_backbone', 'backbone')
_OPTIONS = ('decay_rate', 'num_layers', 'backbone')


def swin_layer(name: str, depths: Sequence[int]) -> Optional[int]:
    """The layer, 0 to ``sum(depths)``, of a Swin's parameter ``name`` (without the backbone's own), None behind them all."""
    parts = name.split('.')
    if parts[0] in ('patch_embed', 'absolute_pos_embed'):
        return 0
    if parts[0] != 'stages':
        return None
    stage = int(parts[1])
    if parts[2] == 'downsample':
        return sum(depths[: stage + 1]) + 1
    return sum(depths[:stage]) + int(parts[3]) + 1


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """One parameter group a layer and kind: learning rate ``lr * decay_rate ** (last layer - layer)``.

    Vectors and biases get no weight decay, everything else does, position embedding and bias tables included, as in
    the published runs. The groups begin with those of the full learning rate, which is the one that logs show.

    ``paramwise_cfg`` holds:
        decay_rate: factor from a layer to the one before, in (0, 1].
        num_layers: blocks to count with; the backbone's own number by default.
        backbone: name of the Swin inside the model; ``img_backbone`` or else ``backbone`` by default.

    Raises:
        ValueError: another option, a number out of range, an optimizer without ``lr``, a model without a Swin.
    """

    def __init__(self, optim_wrapper_cfg: Dict[str, Any], paramwise_cfg: Optional[Dict[str, Any]] = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        unknown = sorted(set(self.paramwise_cfg) - set(_OPTIONS))
        if unknown or 'decay_rate' not in self.paramwise_cfg:
            raise ValueError(
                f'LayerDecayOptimWrapperConstructor: paramwise_cfg needs decay_rate and may have {", ".join(_OPTIONS[1:])}; '
                f'got {sorted(self.paramwise_cfg)}'
            )
        if not 0 < self.paramwise_cfg['decay_rate'] <= 1:
            raise ValueError(
                f'LayerDecayOptimWrapperConstructor: decay_rate must lie in (0, 1], got {self.paramwise_cfg["decay_rate"]}'
            )
        if self.base_lr is None:
            raise ValueError(
                'LayerDecayOptimWrapperConstructor: the optimizer must name its lr, which the layers share out'
            )

    def add_params(self, params: List[Dict[str, Any]], module: nn.Module, **_: Any) -> None:
        """Append the groups of ``module``'s trainable parameters to ``params``, last layer first."""
        prefix, depths = self._swin(module)
        blocks = self.paramwise_cfg.get('num_layers') or sum(depths)
        if blocks < sum(depths):
            raise ValueError(
                f'LayerDecayOptimWrapperConstructor: num_layers {blocks} is less than the {sum(depths)} blocks of {prefix[:-1]}'
            )
        groups: Dict[Tuple[int, bool], Dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            layer = swin_layer(name[len(prefix) :], depths) if name.startswith(prefix) else None
            steps = 0 if layer is None else blocks + 1 - layer
            flat = parameter.dim() <= 1 or name.endswith('.bias')
            groups.setdefault((steps, flat), self._group(steps, flat))['params'].append(parameter)
        params.extend(groups[key] for key in sorted(groups))
        print_log(
            f'LayerDecayOptimWrapperConstructor: {len(groups)} groups, learning rates {self.base_lr:.3g} down to '
            f'{min(group["lr"] for group in groups.values()):.3g}',
            logger='current',
        )

    def _group(self, steps: int, flat: bool) -> Dict[str, Any]:
        """An empty group, ``steps`` layers before the last; ``flat`` for vectors and biases."""
        group: Dict[str, Any] = dict(params=[], lr=self.base_lr * self.paramwise_cfg['decay_rate'] ** steps)
        if flat or self.base_wd is not None:
            group['weight_decay'] = 0.0 if flat else self.base_wd
        return group

    def _swin(self, model: nn.Module) -> Tuple[str, List[int]]:
        """Prefix of the Swin's parameters, and its blocks a stage."""
        asked = self.paramwise_cfg.get('backbone')
        children = dict(model.named_children())
        name = next((name for name in ((asked,) if asked else _BACKBONES) if name in children), None)
        stages = getattr(children.get(name), 'stages', None)
        if name is None or stages is None or not all(hasattr(stage, 'blocks') for stage in stages):
            found = f'its {name} is a {type(children[name]).__name__}' if name else f'it has {sorted(children)}'
            raise ValueError(
                f'LayerDecayOptimWrapperConstructor: {type(model).__name__} has no Swin under '
                f'{asked or " or ".join(_BACKBONES)}, with blocks in stages, to count layers in: {found}'
            )
        return name + '.', [len(stage.blocks) for stage in stages]
