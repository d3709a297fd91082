"""The GeoMIM Swin as an image backbone of BEVDet, BEVDet4D, BEVDepth4D, BEVStereo4D and their occupancy detectors.

Their stereo detectors also run the first stage by themselves, in one of two ways (official BEVDet and FlashOCC; the
GeoMIM fork). :class:`ForkTokens` and the parts below answer both.

Shape legend: B images, h x w tokens of a stage, L = h * w, C channels.
"""

from __future__ import annotations

from typing import Any, Iterator, List, Tuple, Union

from torch import Tensor, nn

from ..adapter.backbone import SwinBackbone, backbone_arguments
from ..method.swin import PatchEmbed, PatchMerging, SwinStage, with_position
from .host import BACKBONES, open_source, run_logger

StageOutput = Tuple[Tensor, Tuple[int, int], Tensor, Tuple[int, int]]


class ForkTokens:
    """Embedded patches (B, h, w, C) that remember their grid.

    Unpacks into tokens (B, L, C) and (h, w), or takes a position embedding of any size and goes into a stage as it is.
    """

    def __init__(self, grid: Tensor) -> None:
        self.grid = grid

    def __iter__(self) -> Iterator[Any]:
        yield self.grid.flatten(1, 2)
        yield (self.grid.shape[1], self.grid.shape[2])

    def __add__(self, position: Tensor) -> ForkTokens:
        return ForkTokens(with_position(self.grid, position))


class ForkPatchEmbed(PatchEmbed):
    """Patch embedding whose output forks can take in both of their ways."""

    DH = DW = None  # the grid, which the tokens themselves carry

    def forward(self, images: Tensor) -> ForkTokens:  # type: ignore[override]
        return ForkTokens(super().forward(images))


class ForkStage(SwinStage):
    """A stage that forks can call as well as the encoder."""

    def forward(self, x: Any, *rest: Any) -> Union[Tensor, StageOutput]:  # type: ignore[override]
        """The encoder's call (map (B, h, w, C), masks, checkpointed) -> map, or a fork's (tokens, (h, w)) -> tokens and
        grid of the next stage, tokens (B, L, C) and grid of this one."""
        if len(rest) > 1:
            return super().forward(x, *rest)
        grid = x.grid if isinstance(x, ForkTokens) else x.reshape(x.shape[0], *rest[0], x.shape[-1])
        out = super().forward(grid, None, False)
        merged = self.downsample(out) if isinstance(self.downsample, PatchMerging) else out
        tokens, size = ForkTokens(out)
        return (*ForkTokens(merged), tokens, size)


@BACKBONES.register_module()
class GeoMIMSwin(SwinBackbone):
    """Swin with plain windows, started from a pretrained encoder.

    Args:
        entries: the arguments of :class:`geomim.adapter.backbone.SwinBackbone`, or those of a fork's Swin at values that mean the
            same; ``pretrained=FILE`` is short for ``init_cfg=dict(type='Pretrained', checkpoint=FILE)``.

    Raises:
        ValueError: an entry or value that this Swin does not have, or sizes that do not fit each other.
    """

    patch_embed_type = ForkPatchEmbed
    stage_type = ForkStage
    use_abs_pos_embed = True

    def __init__(self, **entries: Any) -> None:
        super().__init__(**backbone_arguments(entries, 'GeoMIMSwin'))
        self.drop_after_pos = nn.Identity()

    @property
    def num_features(self) -> List[int]:
        """Channels of each stage."""
        return list(self.config.stage_dims)

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> tokens (B, H / 4, W / 4, C) with their position embedding."""
        tokens: ForkTokens = self.patch_embed(images)
        return (tokens + self.absolute_pos_embed).grid

    def init_weights(self) -> None:
        """Load ``init_cfg['checkpoint']`` and report what was taken."""
        report = self.load_pretrained(open_source)
        if report is not None:
            run_logger().info(f'GeoMIMSwin: {report.describe()}')
