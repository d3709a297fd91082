"""GeoMIM: mask, encode, decode, project, compare (paper figure 2).

Shape legend: B samples, N cameras, K copies, H x W pixels, h x w cells at stride 16, D depth bins, C channels, X x Y BEV cells.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn

from .camera import CameraRig
from .cross_view import CrossViewBlock
from .decoder import Decoder, DecoderConfig, StageFusion
from .depth import check_weight, depth_labels, depth_loss
from .lift_splat import ViewTransform, ViewTransformConfig
from .masked_encoder import EncoderSpec
from .masking import MASK_CELL, check_masks, complementary_masks, mask_grid_size
from .swin import SwinConfig, SwinEncoder, WindowProjections
from .target import TargetConfig, at_least_float32, normalise_patches, reconstruction_loss
from .visibility import seen_cells


@dataclass(frozen=True)
class GeoMIMConfig:
    """Everything that decides a pretraining model's parameters and arithmetic; the defaults are the paper's Swin-B.

    Args:
        encoder: which encoder, a :class:`geomim.SwinConfig` or a :class:`geomim.method.masked_encoder.BackboneSpec`.
        decoder, view_transform, target: sizes of the parts.
        copies: K; each copy keeps 1 / K of the mask cells.
        depth_loss_weight: factor of the depth loss.
        activation_checkpointing: recompute transformer blocks in the backward (less memory, more time).
        seen_cells_only: reconstruct only the cells that some camera of the rig sees, for rigs that leave a part of the
            grid out of sight. The paper reconstructs all.
        linear_init: how linear layers start: 'xavier', or 'torch', as torch draws them and without position biases, which is how the
            published run starts those that MixMAE's weights leave out. Cross-view blocks start as the identity either way.
    """

    encoder: EncoderSpec = field(default_factory=SwinConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    view_transform: ViewTransformConfig = field(default_factory=ViewTransformConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    copies: int = 2
    depth_loss_weight: float = 0.01
    activation_checkpointing: bool = False
    seen_cells_only: bool = False
    linear_init: str = 'xavier'

    def __post_init__(self) -> None:
        if self.linear_init not in ('xavier', 'torch'):
            raise ValueError(f"linear_init must be 'xavier' or 'torch', got {self.linear_init!r}")
        self.encoder.check()
        mask_grid_size(self.view_transform.image_size, MASK_CELL, self.copies)
        check_weight(self.depth_loss_weight, 'depth_loss_weight')


@dataclass(frozen=True)
class PretrainOutput:
    """What one pass computes.

    Args:
        reconstruction_loss, depth_loss: scalars; the latter weighted, 0 without labelled cells.
        predictions: K maps (B, C, X, Y) in the grid's axis order.
        target: (B, C, X, Y), patch-normalised.
        bev: K maps (B, channels, X, Y), what the prediction head reads.
        depth: K maps (B * N, D, h, w), probabilities.
        masks: (K, h', w'), 1 = hidden.
        depth_losses: K scalars, weighted.
        depth_labels: (B, N, h, w) int64, the depth bin of each cell, -1 for none.
        cells: (B, X, Y) bool, those that the reconstruction loss counts; None for all.
    """

    reconstruction_loss: Tensor
    depth_loss: Tensor
    predictions: Tuple[Tensor, ...]
    target: Tensor
    bev: Tuple[Tensor, ...]
    depth: Tuple[Tensor, ...]
    masks: Tensor
    depth_losses: Tuple[Tensor, ...]
    depth_labels: Tensor
    cells: Optional[Tensor] = None


class GeoMIM(nn.Module):
    """The student: reconstructs the teacher's BEV map from masked surround-view images."""

    def __init__(self, config: Optional[GeoMIMConfig] = None) -> None:
        super().__init__()
        self.config = config = config or GeoMIMConfig()
        recompute = config.activation_checkpointing
        self.encoder = config.encoder.build(recompute)
        self.fusion = StageFusion(self.encoder, config.decoder)
        self.decoder = Decoder(config.decoder, recompute)
        self.view_transform = ViewTransform(config.decoder.dim, config.view_transform)
        self.head = nn.Conv2d(config.view_transform.channels, config.target.channels, 1)
        if config.linear_init == 'torch':
            for part in self.children():
                if part is not self.encoder or isinstance(part, SwinEncoder):  # other backbones start in their own way
                    part.apply(_init_as_torch)

    def draw_masks(self, device: torch.device, generator: Optional[torch.Generator] = None) -> Tensor:
        """(K, h', w') complementary masks, shared by all images of a batch."""
        return complementary_masks(
            self.config.view_transform.image_size, self.config.copies, device=device, generator=generator
        )

    def normalise(self, target_bev: Tensor) -> Tensor:
        """The teacher's map (B, C, X, Y) -> what is reconstructed, patch-normalised."""
        return normalise_patches(at_least_float32(target_bev), self.config.target.patch_size, self.config.target.eps)

    def encode(self, images: Tensor, masks: Tensor) -> Tensor:
        """images (B * N, 3, H, W) -> fused tokens (B * N, h, w, C)."""
        return self.fusion(self.encoder(images, masks), masks)

    def decode(self, tokens: Tensor, rig: CameraRig, masks: Tensor) -> Tuple[Tensor, Tensor]:
        """-> semantic and geometry maps (K * B * N, C, h, w), copy-major."""
        return self.decoder(tokens, rig, masks)

    def project(self, semantic: Tensor, geometry: Tensor, rig: CameraRig) -> Tuple[List[Tensor], List[Tensor]]:
        """-> K BEV maps (B, C, X, Y) and K depth distributions (B * N, D, h, w).

        Copy by copy, for the batch statistics of the reference's normalisation are those of one copy.
        """
        plan = self.view_transform.plan(rig)
        images = rig.batch_size * rig.num_cams
        copies = [self.view_transform(s, g, plan) for s, g in zip(semantic.split(images), geometry.split(images))]
        return [copy.bev for copy in copies], [copy.depth for copy in copies]

    def predict(self, bev: Tensor) -> Tensor:
        """bev (B, channels, X, Y) -> the target's reconstruction (B, C, X, Y)."""
        prediction: Tensor = self.head(bev)
        return prediction

    def forward(
        self,
        images: Tensor,
        rig: CameraRig,
        target_bev: Tensor,
        depth_map: Tensor,
        masks: Optional[Tensor] = None,
    ) -> PretrainOutput:
        """One pretraining pass.

        Args:
            images: (B, N, 3, H, W), normalised.
            rig: calibration of the N cameras.
            target_bev: (B, C, X, Y), the teacher's map in the grid's axis order.
            depth_map: (B, N, H, W) metres, 0 = none.
            masks: (K, h', w'), 1 = hidden; drawn if None.

        Raises:
            ValueError: shapes that do not fit the configuration or each other.
        """
        self._check(images, rig, depth_map, target_bev)
        if masks is None:
            masks = self.draw_masks(images.device)
        self._check_masks(masks)
        self._check_statistics(rig)
        target = self.normalise(target_bev)
        tokens = self.encode(images.flatten(0, 1), masks)
        semantic, geometry = self.decode(tokens, rig, masks)
        bev, depth = self.project(semantic, geometry, rig)
        predictions = [self.predict(features) for features in bev]
        view = self.config.view_transform
        labels = depth_labels(depth_map, view.depth_bins, view.stride)
        weight = self.config.depth_loss_weight
        depth_losses = [depth_loss(copy, labels.flatten(0, 1)) * weight for copy in depth]
        cells = seen_cells(rig, view.output_grid, view.image_size) if self.config.seen_cells_only else None
        return PretrainOutput(
            reconstruction_loss=reconstruction_loss(predictions, target, cells),
            depth_loss=torch.stack(depth_losses).mean(),
            predictions=tuple(predictions),
            target=target,
            bev=tuple(bev),
            depth=tuple(depth),
            masks=masks,
            depth_losses=tuple(depth_losses),
            depth_labels=labels,
            cells=cells,
        )

    def _check(self, images: Tensor, rig: CameraRig, depth_map: Tensor, target_bev: Tensor) -> None:
        size = self.config.view_transform.image_size
        expected = (rig.batch_size, rig.num_cams, 3, *size)
        if tuple(images.shape) != expected:
            raise ValueError(
                f'images have shape {tuple(images.shape)}, expected {expected}: {rig.batch_size} samples and {rig.num_cams} '
                f'cameras of the rig, and the configured image size'
            )
        if tuple(depth_map.shape) != (rig.batch_size, rig.num_cams, *size):
            raise ValueError(
                f'depth maps have shape {tuple(depth_map.shape)}, expected {(rig.batch_size, rig.num_cams, *size)}'
            )

        grid = self.config.view_transform.output_grid
        wanted = (rig.batch_size, self.config.target.channels, *grid.shape)
        if tuple(target_bev.shape) != wanted:
            raise ValueError(
                f"the teacher's BEV map has shape {tuple(target_bev.shape)}, expected {wanted}: {grid.describe()}"
            )

    def _check_statistics(self, rig: CameraRig) -> None:
        if self.training and rig.batch_size * rig.num_cams == 1:
            warnings.warn(
                'a training step on one camera of one sample: the camera gate normalises calibrations with the statistics '
                'of the batch, which have no spread here, so it learns nothing of them and evaluation, which takes the '
                'running statistics, differs from training; take two samples or more a step',
                stacklevel=3,
            )

    def _check_masks(self, masks: Tensor) -> None:
        check_masks(masks)
        cells = mask_grid_size(self.config.view_transform.image_size, MASK_CELL, masks.shape[0])
        if tuple(masks.shape[1:]) != cells:
            raise ValueError(
                f'masks have {tuple(masks.shape[1:])} cells, expected {cells}: cells of {MASK_CELL} pixels in images of '
                f'{self.config.view_transform.image_size} pixels'
            )


def _init_as_torch(module: nn.Module) -> None:
    """For ``apply``, which comes to a block after the layers in it."""
    if isinstance(module, nn.Linear):
        module.reset_parameters()
    elif isinstance(module, WindowProjections):
        nn.init.zeros_(module.relative_position_bias_table)
    elif isinstance(module, CrossViewBlock):
        module.reset_to_identity()
