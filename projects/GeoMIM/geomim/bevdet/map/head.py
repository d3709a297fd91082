"""A light head that segments the map from encoded BEV features (BEVFusion, arXiv 2205.13542).

Names of parameters are those of BEVFusion's head. Shape legend: B samples, C classes, Y x X cells of the map, Y' x X' cells of the
features. Metres.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from torch import Tensor, nn

from ...method.depth import check_weight
from ...method.grid import BEVGrid
from ...method.target import at_least_float32
from ...mmengine.rig import sample_name
from .spec import MAP_CLASSES, MapSpec


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Mean over all cells of (1 - p)^gamma * -log(p), with p the probability of the cell's own label; without class weights.

    Args:
        logits, labels: of equal shape; labels 0 or 1.
    """
    labels = labels.to(logits.dtype)
    surprise = F.binary_cross_entropy_with_logits(logits, labels, reduction='none')
    return ((-torch.expm1(-surprise)) ** gamma * surprise).mean()


@MODELS.register_module()
class BEVMapSegHead(BaseModule):
    """BEV features, sampled bilinearly at the cells of the map, through two 3 x 3 convolutions to a logit a class and cell.

    Args:
        in_channels: of the features.
        bev_grid: cells that the features cover; the detector fills it in from its view transformer.
        classes, map_grid: of the map, see :class:`MapSpec`.
        gamma: of the focal loss.
        loss_weight: of every class.

    Raises:
        ValueError: classes, a grid or a weight that cannot be, or a map that reaches beyond the features.
    """

    positions: Tensor

    def __init__(
        self,
        in_channels: int,
        bev_grid: BEVGrid,
        classes: Sequence[str] = MAP_CLASSES,
        map_grid: Optional[Mapping[str, Sequence[float]]] = None,
        gamma: float = 2.0,
        loss_weight: float = 1.0,
        init_cfg: Optional[Dict] = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.in_channels, self.bev_grid = in_channels, bev_grid
        self.spec = MapSpec.create(classes, map_grid)
        check_weight(loss_weight, 'loss_weight')
        self.gamma, self.loss_weight = gamma, loss_weight
        layers: List[nn.Module] = []
        for _ in range(2):
            convolution = nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)]
        self.classifier = nn.Sequential(*layers, nn.Conv2d(in_channels, len(self.spec.classes), 1))
        self.register_buffer('positions', sample_positions(bev_grid, self.spec.grid), persistent=False)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """One BEV map [(B, in_channels, Y', X')] that covers ``bev_grid``, of any cell size -> logits (B, C, Y, X).

        Raises:
            ValueError: more or fewer than one level, or features of another shape.
        """
        if isinstance(feats, Tensor) or len(feats) != 1:
            got = 'a tensor' if isinstance(feats, Tensor) else f'{len(feats)} levels'
            raise ValueError(f'the map head takes a list of one BEV map, got {got}')
        bev = feats[0]
        rows, columns = bev.shape[-2:]
        grid = self.bev_grid
        if bev.dim() != 4 or bev.shape[1] != self.in_channels or rows * grid.num_x != columns * grid.num_y:
            raise ValueError(
                f'map head: features of {tuple(bev.shape)}, expected (B, {self.in_channels}, Y, X) over the grid {grid.describe()}'
            )
        # half precision would misplace samples by a good part of a cell
        exact = at_least_float32(bev)
        positions = self.positions.to(exact.dtype).expand(bev.shape[0], -1, -1, -1)
        sampled = F.grid_sample(exact, positions, mode='bilinear', align_corners=False)
        return self.classifier(sampled.to(bev.dtype))

    def loss(self, feats: Sequence[Tensor], batch_data_samples: Sequence) -> Dict[str, Tensor]:
        """``map.loss_CLASS``, the focal loss of each class over all samples and cells, computed in float32 (or float64).

        Args:
            feats: of :meth:`forward`.
            batch_data_samples: B samples with ``gt_bev_map``, as ``LoadBEVMapLabels`` makes it.

        Raises:
            ValueError: labels that are absent, or of other classes or another raster.
        """
        labels = torch.stack([self._labels(sample) for sample in batch_data_samples])
        logits = at_least_float32(self(feats))
        return {
            f'map.loss_{name}': self.loss_weight * sigmoid_focal_loss(logits[:, index], labels[:, index], self.gamma)
            for index, name in enumerate(self.spec.classes)
        }

    def predict(self, feats: Sequence[Tensor], batch_data_samples: Sequence) -> List[PixelData]:
        """A map a sample: ``data`` (C, Y, X), probabilities, and the classes and bounds that belong to it."""
        maps = at_least_float32(self(feats)).sigmoid()
        return [PixelData(metainfo=self.spec.as_meta(), data=found) for found in maps]

    def _labels(self, sample: object) -> Tensor:
        where = sample_name(getattr(sample, 'metainfo', {}))
        if 'gt_bev_map' not in sample:  # type: ignore[operator]
            raise ValueError(f'{where}: no gt_bev_map; the pipeline needs LoadBEVMapLabels before PackBEVDetInputs')
        labels = sample.gt_bev_map  # type: ignore[attr-defined]
        self.spec.check(labels.metainfo, where)
        return labels.data


def sample_positions(bev_grid: BEVGrid, map_grid: BEVGrid) -> Tensor:
    """(1, Y, X, 2): where each cell of the map lies in the features, in the coordinates of ``grid_sample`` (x, y; -1 and 1 are edges).

    Raises:
        ValueError: a map that reaches beyond the features.
    """
    axes = []
    for name in ('x_bound', 'y_bound'):
        (lower, upper, step), (first, last, _) = getattr(map_grid, name), getattr(bev_grid, name)
        if lower < first or upper > last:
            raise ValueError(
                f'map_grid reaches beyond the BEV features: {name} [{lower:g}, {upper:g}] m, the features cover '
                f'[{first:g}, {last:g}] m'
            )
        count = map_grid.num_x if name == 'x_bound' else map_grid.num_y
        middles = lower + (torch.arange(count, dtype=torch.float64) + 0.5) * step
        axes.append(((middles - first) / (last - first) * 2 - 1).float())
    x, y = axes
    return torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)[None]
