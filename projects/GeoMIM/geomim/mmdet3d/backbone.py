"""The GeoMIM Swin as an image backbone for finetuning, visible from mmdet3d, mmdet and mmseg."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor

from ..checkpoint import load_encoder
from ..swin import SwinConfig, SwinEncoder


@MODELS.register_module()
class GeoMIMSwin(SwinEncoder):
    """Swin with plain windows, started from a pretrained encoder.

    Args:
        embed_dims, depths, num_heads, window_size, mlp_ratio, out_indices, pretrain_img_size, drop_path_rate: as
            :class:`geomim.SwinConfig`; the defaults are Swin-B.
        with_cp: recompute blocks in the backward (less memory, more time).
        return_stereo_feat: put the stride-4 map before any norm in front of the outputs, as BEVStereo wants it.
        frozen_stages: -1 trains all; 0 freezes the patch embedding, i the first i stages too.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)``; FILE may hold a MixMAE, pretraining or exported encoder checkpoint.

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

    def init_weights(self) -> None:
        """Load ``init_cfg['checkpoint']`` and report what was taken."""
        if self.init_cfg is None:
            return
        if self.init_cfg.get('type') != 'Pretrained' or 'checkpoint' not in self.init_cfg:
            raise ValueError(
                f"GeoMIMSwin: init_cfg must be dict(type='Pretrained', checkpoint=FILE), got {self.init_cfg}"
            )
        report = load_encoder(self, self.init_cfg['checkpoint'])
        print_log(f'GeoMIMSwin: {report.describe()}', logger='current')

    def train(self, mode: bool = True) -> GeoMIMSwin:
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def forward(self, images: Tensor, masks: Optional[Tensor] = None) -> Sequence[Tensor]:
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
