"""The pretrained encoder as an image backbone, without any host's names: outputs, freezing, loading (METHOD 7)."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, TypeVar

import torch
from torch import Tensor

from ..checkpoints.loading import LoadReport, load_encoder
from ..checkpoints.reading import Checkpoint, open_checkpoint
from ..method.swin import SwinConfig, SwinEncoder

Self = TypeVar('Self', bound='SwinBackbone')

_ARGUMENTS = (
    'embed_dims', 'depths', 'num_heads', 'window_size', 'mlp_ratio', 'out_indices', 'pretrain_img_size', 'drop_path_rate',
    'with_cp', 'return_stereo_feat', 'frozen_stages', 'init_cfg',
)  # fmt: skip
# What other Swins can be told and this one cannot.
_FIXED: Dict[str, Any] = {
    'patch_norm': True,
    'use_abs_pos_embed': True,
    'output_missing_index_as_none': False,
    'patch_size': 4,
    'in_channels': 3,
    'strides': (4, 2, 2, 2),
    'qkv_bias': True,
    'qk_scale': None,
    'drop_rate': 0.0,
    'attn_drop_rate': 0.0,
    'act_cfg': {'type': 'GELU'},
    'norm_cfg': {'type': 'LN'},
}
_LOADING_ONLY = ('convert_weights', 'pretrain_style')  # layouts are told apart by their names


class SwinBackbone(SwinEncoder):
    """Swin with plain windows, started from a pretrained encoder.

    Args:
        embed_dims, depths, num_heads, window_size, mlp_ratio, out_indices, pretrain_img_size, drop_path_rate: as
            :class:`geomim.SwinConfig`; the defaults are Swin-B.
        with_cp: recompute blocks in the backward (less memory, more time).
        return_stereo_feat: put the stride-4 map before any norm in front of the outputs, as BEVStereo wants it.
        frozen_stages: -1 trains all; 0 freezes the patch embedding, i the first i stages too.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)``; FILE, a path or an address that the
            host knows, may hold a MixMAE, pretraining or exported encoder checkpoint.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        with_cp: bool = False,
        return_stereo_feat: bool = False,
        frozen_stages: int = -1,
        init_cfg: Optional[Dict[str, Any]] = None,
        **sizes: Any,
    ) -> None:
        super().__init__(SwinConfig(**sizes), activation_checkpointing=with_cp)
        if not -1 <= frozen_stages <= len(self.stages):
            raise ValueError(f'frozen_stages must lie in -1..{len(self.stages)}, got {frozen_stages}')
        self.return_stereo_feat = return_stereo_feat
        self.frozen_stages = frozen_stages
        self.init_cfg = init_cfg
        self._freeze()

    def load_pretrained(self, read: Callable[[str], Checkpoint] = open_checkpoint) -> Optional[LoadReport]:
        """Load ``init_cfg['checkpoint']``; what was taken, or None without an ``init_cfg``.

        Args:
            read: the host's reader, which knows addresses too.

        Raises:
            ValueError: another ``init_cfg``, or a file that :func:`geomim.checkpoints.loading.load_encoder` refuses.
        """
        if self.init_cfg is None:
            return None
        if self.init_cfg.get('type') != 'Pretrained' or 'checkpoint' not in self.init_cfg:
            raise ValueError(
                f"GeoMIMSwin: init_cfg must be dict(type='Pretrained', checkpoint=FILE), got {self.init_cfg}"
            )
        return load_encoder(self, read(self.init_cfg['checkpoint']))

    def train(self: Self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def forward(self, images: Tensor, masks: Optional[Tensor] = None) -> List[Tensor]:  # type: ignore[override]
        """(B, 3, H, W) -> maps (B, C, h, w), finest first."""
        stages = self.stage_outputs(images, masks)
        outputs: List[Tensor] = []
        if self.return_stereo_feat:
            outputs.append(stages[0].permute(0, 3, 1, 2).contiguous())
        for index in self.config.out_indices:
            normalised = getattr(self, f'norm{index}')(stages[index])
            outputs.append(normalised.permute(0, 3, 1, 2).contiguous())
        return outputs

    def _frozen_modules(self) -> List[torch.nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.patch_embed, *self.stages[: self.frozen_stages]]

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if self.frozen_stages >= 0:
            self.absolute_pos_embed.requires_grad_(False)


def backbone_arguments(entries: Mapping[str, Any], owner: str) -> Dict[str, Any]:
    """Arguments of :class:`SwinBackbone` from those that mmdetection's and BEVDet's Swins take.

    Args:
        entries: without ``type``; not changed.
        owner: how messages call the backbone.

    Raises:
        ValueError: an entry that no Swin has, one at another value than this Swin's only one, or two checkpoints.
    """
    left = {name: value for name, value in entries.items() if name not in _LOADING_ONLY}
    pretrained = left.pop('pretrained', None)
    for name in sorted(set(left) - set(_ARGUMENTS)):
        if name not in _FIXED:
            raise ValueError(f'{owner}: unknown entry {name!r}; known are {", ".join(_ARGUMENTS)}')
        if _plain(left[name]) != _plain(_FIXED[name]):
            raise ValueError(f'{owner}: GeoMIMSwin has {name}={_FIXED[name]!r}, not {left[name]!r}')
    arguments = {name: left[name] for name in _ARGUMENTS if name in left}
    if 'with_cp' in arguments:  # elsewhere a number or a switch a stage, too; ours recomputes all or none
        switch = arguments['with_cp']
        arguments['with_cp'] = any(switch) if isinstance(switch, (list, tuple)) else bool(switch)
    if pretrained is not None:
        if arguments.get('init_cfg') is not None:
            raise ValueError(f'{owner}: pretrained={pretrained!r} and init_cfg={arguments["init_cfg"]!r}; give one')
        arguments['init_cfg'] = {'type': 'Pretrained', 'checkpoint': pretrained}
    return arguments


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
