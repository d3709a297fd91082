"""Any network of timm as an image backbone: for pretraining, and afterwards in a detector (needs ``timm`` 1.0 or newer)."""

from __future__ import annotations

from difflib import get_close_matches
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

from torch import Tensor, nn

from ..checkpoints.loading import LoadReport, load_backbone
from ..checkpoints.reading import Checkpoint, open_checkpoint
from ..method.masked_encoder import last_norm, plain_vit

# see no image here
_HEADS = (
    'head', 'fc', 'classifier', 'conv_head', 'norm_head', 'bn2', 'norm', 'fc_norm', 'attn_pool', 'final_conv', 'pre_logits', 'neck',
)  # fmt: skip


class TimmBackbone(nn.Module):
    """``timm.create_model(name)`` that gives maps of chosen strides. Saved and loaded under timm's own parameter names.

    Args:
        name: of the network, with or without its weights' tag (``convnext_small.in12k_ft_in1k``).
        pretrained: a file of timm's weights, by its path or an address of the host's, or True to let timm fetch them.
        strides: of the maps, finest first; a plain vision transformer has 16 alone.
        with_cp: recompute blocks in the backward (less memory, more time).
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)``, as the hosts' backbones take it; goes before ``pretrained``.
        options: for ``timm.create_model`` (``drop_path_rate`` and the like).

    Raises:
        ImportError: no timm, or one before 1.0.
        ValueError: a name that timm does not know, or a stride that the network does not have.
    """

    def __init__(
        self,
        name: str,
        pretrained: Union[None, bool, str] = None,
        strides: Optional[Sequence[int]] = None,
        with_cp: bool = False,
        init_cfg: Optional[Dict[str, Any]] = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if init_cfg is not None and (init_cfg.get('type') != 'Pretrained' or 'checkpoint' not in init_cfg):
            raise ValueError(
                f"timm {name}: init_cfg must be dict(type='Pretrained', checkpoint=FILE), got {dict(init_cfg)}"
            )
        self.name, self.weights = name, init_cfg['checkpoint'] if init_cfg else pretrained
        self.model: Any = _create(name, self.weights is True, options)
        self._register_state_dict_hook(_without_model)
        self._register_load_state_dict_pre_hook(_with_model)
        self.is_vit = plain_vit(self.model) is not None
        self.indices = self._indices_of(strides)
        if with_cp:
            self.model.set_grad_checkpointing(True)
        heads = {part: module for part, module in self.model.named_children() if part in _HEADS}
        if self.is_vit:
            heads = {part: module for part, module in heads.items() if module is not last_norm(self.model)}
        self.heads = tuple(f'{part}.' for part in heads)
        for module in heads.values():  # distributed training wants a gradient for what learns
            module.requires_grad_(False)

    def _indices_of(self, strides: Optional[Sequence[int]]) -> Tuple[int, ...]:
        """The last feature of each stride."""
        features = self.model.feature_info
        found = {entry['reduction']: index for index, entry in enumerate(getattr(features, 'info', features))}
        if strides is None:
            strides = [stride for stride in (16, 32) if stride in found] or [max(found)]
        missing = [stride for stride in strides if stride not in found]
        if missing:
            raise ValueError(f'timm {self.name}: no map of stride {missing[0]}; it has maps of strides {sorted(found)}')
        return tuple(found[stride] for stride in strides)

    def start(self, read: Callable[[str], Checkpoint] = open_checkpoint) -> Optional[LoadReport]:
        """Load the file; what was taken, or None where there is none to load.

        Args:
            read: the host's reader, which knows addresses too.
        """
        if not isinstance(self.weights, str):
            return None
        return load_backbone(self, read(self.weights), f'timm {self.name}', optional=self.heads)

    def forward(self, images: Tensor) -> List[Tensor]:
        """(B, 3, H, W) -> maps (B, C, h, w) of the strides; a vision transformer's behind its last norm."""
        maps = self.model.forward_intermediates(images, indices=list(self.indices), intermediates_only=True)
        if self.is_vit:
            norm = last_norm(self.model)
            maps = [norm(map_.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for map_ in maps]
        return maps


# timm's own names outside: what is saved here loads there, and the other way round. Hooks, since hosts that collect the weights
# themselves call these and no method.


def _without_model(_: nn.Module, state: Dict[str, Tensor], prefix: str, *__: Any) -> None:
    inner = prefix + 'model.'
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key[len(inner) :]] = state.pop(key)


def _with_model(state: Dict[str, Tensor], prefix: str, *_: Any) -> None:
    inner = prefix + 'model.'
    for key in [key for key in state if key.startswith(prefix) and not key.startswith(inner)]:
        state[inner + key[len(prefix) :]] = state.pop(key)


def _create(name: str, download: bool, options: Dict[str, Any]) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f'timm {name}: pip install "geomim[timm]" ({error})') from error
    if int(timm.__version__.split('.')[0]) < 1:
        raise ImportError(f'timm {name}: needs timm 1.0 or newer, this is {timm.__version__}')
    if not timm.is_model(name):
        alike = get_close_matches(name.split('.')[0], timm.list_models(), 5)
        raise ValueError(f'timm {timm.__version__} knows no network {name!r}; similar are {", ".join(alike) or "none"}')
    make = partial(timm.create_model, name, pretrained=download, num_classes=0)
    try:  # transformers take any size of images if told so
        model = make(**{'dynamic_img_size': True, **options})
    except TypeError as error:
        if 'dynamic_img_size' not in str(error) or 'dynamic_img_size' in options:
            raise
        model = make(**options)
    if not hasattr(model, 'forward_intermediates'):
        raise ValueError(f'timm {name}: this kind of network gives no maps of its stages')
    return model
