"""Layer-wise decay of the learning rate for finetuning a pretrained backbone (METHOD 7).

The layers are counted from the images on: 0 the patch embedding or stem and the position embedding, 1 the first block, ...,
and one more than the last for everything behind the backbone's blocks: output norms, necks, heads. In a Swin every block is a
layer, and a patch merging belongs to the first block of the stage that it leads to. In a plain vision transformer every block
is one. In a ConvNeXt (ConvNeXt's own finetuning) stages 1, 2 and 4 are one layer each, and stage 3 one per three blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from torch import nn

_BACKBONES = ('img_backbone', 'backbone')
_OPTIONS = ('decay_rate', 'num_layers', 'backbone')


def swin_layer(name: str, depths: Sequence[int]) -> Optional[int]:
    """The layer, 0 to ``sum(depths)``, of a Swin's parameter ``name`` (without the backbone's own), None behind them all.

    In timm's (``layers``) a stage begins with its patch merging, in the hosts' (``stages``) it ends with that of the next.
    """
    parts = name.split('.')
    if parts[0] in ('patch_embed', 'absolute_pos_embed'):
        return 0
    if parts[0] not in ('stages', 'layers'):
        return None
    stage = int(parts[1])
    if parts[2] == 'downsample':
        return sum(depths[: stage + (parts[0] == 'stages')]) + 1
    return sum(depths[:stage]) + int(parts[3]) + 1


def vit_layer(name: str) -> Optional[int]:
    """The same for a plain vision transformer, of timm (``blocks``) or a host (``layers``)."""
    parts = name.split('.')
    if parts[0] in ('patch_embed', 'pos_embed', 'cls_token', 'reg_token', 'rope', 'norm_pre', 'pre_norm'):
        return 0
    return int(parts[1]) + 1 if parts[0] in ('blocks', 'layers') else None


def convnext_layer(name: str, depths: Sequence[int]) -> Optional[int]:
    """The same for a ConvNeXt, of timm (``stem``, ``stages.2.blocks.5``) or a host (``downsample_layers``, ``stages.2.5``)."""
    parts = name.split('.')
    if parts[0] == 'stem':
        return 0
    if parts[0] not in ('stages', 'downsample_layers'):
        return None
    stage = int(parts[1])
    if parts[0] == 'downsample_layers' or parts[2] == 'downsample':
        block = 0
    else:
        block = int(parts[3] if parts[2] == 'blocks' else parts[2])
    if parts[0] == 'downsample_layers' and stage == 0:
        return 0
    return (1, 2, 3 + block // 3, 3 + -(-depths[2] // 3))[stage]


def layers_of(backbone: nn.Module) -> Optional[Tuple[int, Callable[[str], Optional[int]]]]:
    """Number of layers of a backbone behind its stem, and the layer of each parameter's name; None for a kind without known layers."""
    parts = {name: list(child.children()) for name, child in backbone.named_children()}
    stages: List[Any] = parts.get('stages', []) or [one for one in parts.get('layers', []) if hasattr(one, 'blocks')]
    blocks_of = [getattr(stage, 'blocks', stage) for stage in stages]
    depths = [len(blocks) for blocks in blocks_of if isinstance(blocks, (nn.ModuleList, nn.Sequential))]
    if len(depths) == 4 and ('stem' in parts or 'downsample_layers' in parts):
        return 3 + -(-depths[2] // 3), lambda name: convnext_layer(name, depths)
    if depths and 'patch_embed' in parts and all(hasattr(stage, 'blocks') for stage in stages):
        return sum(depths), lambda name: swin_layer(name, depths)
    blocks = parts.get('blocks') or parts.get('layers')
    if blocks and 'patch_embed' in parts:
        return len(blocks), vit_layer
    return None


@dataclass(frozen=True)
class LayerDecay:
    """One parameter group per layer and kind: learning rate ``lr * decay_rate ** (last layer - layer)``.

    Vectors and biases get no weight decay, everything else does, position embedding and bias tables included, as in
    the published runs.

    Args:
        decay_rate: factor from a layer to the one before, in (0, 1].
        num_layers: layers to count with; the backbone's own number by default.
        backbone: name of the backbone inside the model; ``img_backbone`` or else ``backbone`` by default.
        owner: how messages call what uses it.

    Raises:
        ValueError: a number out of range.
    """

    decay_rate: float
    num_layers: Optional[int] = None
    backbone: Optional[str] = None
    owner: str = 'layer-wise decay'

    def __post_init__(self) -> None:
        if not 0 < self.decay_rate <= 1:
            raise ValueError(f'{self.owner}: decay_rate must lie in (0, 1], got {self.decay_rate}')

    @classmethod
    def from_options(cls, options: Mapping[str, Any], owner: str) -> LayerDecay:
        """From a config's ``paramwise_cfg``.

        Raises:
            ValueError: another option, or none for ``decay_rate``.
        """
        if set(options) - set(_OPTIONS) or 'decay_rate' not in options:
            raise ValueError(
                f'{owner}: paramwise_cfg needs decay_rate and may have {", ".join(_OPTIONS[1:])}; got {sorted(options)}'
            )
        return cls(**options, owner=owner)

    def groups(self, model: nn.Module, lr: Optional[float], weight_decay: Optional[float]) -> List[Dict[str, Any]]:
        """An optimizer's groups of the model's trainable parameters, those of the full learning rate first.

        Args:
            model: holds the backbone.
            lr: of the last layer; most hosts log that of the first group.
            weight_decay: of what is neither vector nor bias; None leaves it to the optimizer.

        Raises:
            ValueError: no ``lr``, a model whose backbone has no known layers, or fewer layers than it has.
        """
        if lr is None:
            raise ValueError(f'{self.owner}: the optimizer must name its lr, which the layers share out')
        prefix, own, layer_of = self._layers(model)
        layers = self.num_layers or own
        if layers < own:
            raise ValueError(f'{self.owner}: num_layers {layers} is less than the {own} blocks of {prefix[:-1]}')
        groups: Dict[Tuple[int, bool], Dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            layer = layer_of(name[len(prefix) :]) if name.startswith(prefix) else None
            steps = 0 if layer is None else layers + 1 - layer
            flat = parameter.dim() <= 1 or name.endswith('.bias')
            if (steps, flat) not in groups:
                groups[steps, flat] = {'params': [], 'lr': lr * self.decay_rate**steps}
                if flat or weight_decay is not None:
                    groups[steps, flat]['weight_decay'] = 0.0 if flat else weight_decay
            groups[steps, flat]['params'].append(parameter)
        return [groups[key] for key in sorted(groups)]

    def _layers(self, model: nn.Module) -> Tuple[str, int, Callable[[str], Optional[int]]]:
        """Prefix of the backbone's parameters, its number of layers, and the layer of a name without the prefix."""
        children = dict(model.named_children())
        name = next((name for name in ((self.backbone,) if self.backbone else _BACKBONES) if name in children), None)
        if name is not None:
            inner = getattr(children[name], 'model', None)  # a network of timm in its wrapper
            prefix, network = (
                (f'{name}.model.', inner) if isinstance(inner, nn.Module) else (f'{name}.', children[name])
            )
            layers = layers_of(network)
            if layers is not None:
                return (prefix, *layers)
        found = f'its {name} is a {type(children[name]).__name__}' if name else f'it has {sorted(children)}'
        raise ValueError(
            f'{self.owner}: {type(model).__name__} has no Swin, plain vision transformer or ConvNeXt under '
            f'{self.backbone or " or ".join(_BACKBONES)} to count layers in: {found}'
        )


def describe_groups(groups: Sequence[Mapping[str, Any]]) -> str:
    """What a log says of the groups."""
    rates = [group['lr'] for group in groups]
    return f'{len(groups)} groups, learning rates {max(rates):.3g} down to {min(rates):.3g}'


class DecaysLayers:
    """What a host's constructor of optimizers does with a :class:`LayerDecay`, whose options are in ``paramwise_cfg``.

    Goes before the host's default constructor among the bases, and takes its arguments.

    Raises:
        ValueError: another option, a number out of range, an optimizer without ``lr``, a model without a Swin.
    """

    paramwise_cfg: Mapping[str, Any]
    base_lr: Optional[float]
    base_wd: Optional[float]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decay = LayerDecay.from_options(self.paramwise_cfg, type(self).__name__)

    def add_params(self, params: List[Dict[str, Any]], module: nn.Module, **_: Any) -> None:
        """Append the groups of ``module``'s trainable parameters to ``params``, last layer first."""
        groups = self.decay.groups(module, self.base_lr, self.base_wd)
        params.extend(groups)
        self.log(f'{type(self).__name__}: {describe_groups(groups)}')

    def log(self, message: str) -> None:
        """Where the host logs."""
        raise NotImplementedError
