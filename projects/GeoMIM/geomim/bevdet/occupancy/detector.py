"""Occupancy prediction: surround images of several moments to the class of every voxel around the ego vehicle.

Parameter names are BEVDet's. Shape legend: B samples, C channels, K classes, X x Y x Z voxels (x ahead, y left, z up, key ego frame), the
order of Occ3D-nuScenes' labels; maps of the networks are (B, C, Z, Y, X).
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Sequence

import torch
from mmcv.cnn import ConvModule
from mmdet3d.registry import MODELS as HOST_MODELS
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ...method.target import at_least_float32
from ...mmengine.rig import sample_name
from ..detectors import BEVStereo4D, Config

_TRUTH = ('semantics', 'mask_camera')


@MODELS.register_module()
class BEVStereo4DOCC(BEVStereo4D):
    """BEVStereo4D whose view transformation keeps the height, with a class for every voxel in place of boxes.

    Args:
        loss_occ: of voxels, mmdet's ``CrossEntropyLoss`` by default; ``class_weight`` is its.
        out_dim: channels between the last convolution and the predictor.
        use_mask: learn from those voxels alone that a camera sees; the loss is their mean.
        num_classes: K.
        use_predicter: two linear layers behind the last convolution, which otherwise gives the classes itself. (The spelling is BEVDet's.)
        **options: as :class:`BEVStereo4D`; ``img_view_transformer`` needs ``collapse_z=False``, and the BEV encoder takes volumes.

    Raises:
        ValueError: another head, or a view transformation that collapses the height.

    Source: BEVDet's BEVStereo4DOCC; labels and masks of Occ3D (arXiv 2304.14365).
    """

    def __init__(
        self,
        loss_occ: Optional[Config] = None,
        out_dim: int = 32,
        use_mask: bool = False,
        num_classes: int = 18,
        use_predicter: bool = True,
        **options: Any,
    ) -> None:
        for head in ('pts_bbox_head', 'map_head'):
            if options.get(head) is not None:
                raise ValueError(f'BEVStereo4DOCC predicts occupancy alone and takes no {head}; set it to None')
        super().__init__(**options)
        if self.img_view_transformer.collapse_z:
            raise ValueError('BEVStereo4DOCC needs the height: img_view_transformer=dict(collapse_z=False, ...)')
        self.use_mask, self.num_classes = use_mask, num_classes
        channels = out_dim if use_predicter else num_classes
        self.final_conv = ConvModule(
            self.img_view_transformer.out_channels, channels, 3, padding=1, bias=True, conv_cfg=dict(type='Conv3d')
        )
        self.predicter: Optional[nn.Module] = None
        if use_predicter:
            layers = [nn.Linear(out_dim, out_dim * 2), nn.Softplus(), nn.Linear(out_dim * 2, num_classes)]
            self.predicter = nn.Sequential(*layers)
        self.loss_occ = HOST_MODELS.build(loss_occ or dict(type='mmdet.CrossEntropyLoss'))

    @property
    def voxels(self) -> Sequence[int]:
        """(X, Y, Z), how many there are."""
        grid = self.img_view_transformer.grid
        return grid.num_x, grid.num_y, grid.num_z

    def loss(
        self, batch_inputs_dict: Mapping[str, Tensor], batch_data_samples: Sequence, **_: Any
    ) -> Dict[str, Tensor]:
        """``loss_depth`` and ``loss_occ``.

        Args:
            batch_inputs_dict: as of :class:`BEVDet`, with ``depth_map``.
            batch_data_samples: B with ``gt_occupancy``: semantics (X, Y, Z), classes, and mask_camera (X, Y, Z), 1 = seen.

        Raises:
            ValueError: labels that are absent or do not fit the voxels; names the sample.
        """
        truth = {name: self._truth(batch_data_samples, name) for name in _TRUTH}
        features = self.extract_feat(batch_inputs_dict)
        losses = self.depth_losses(batch_inputs_dict, features.depth)
        losses['loss_occ'] = self.occupancy_loss(self.occupancy_logits(features.bev), **truth)
        return losses

    def predict(self, batch_inputs_dict: Mapping[str, Tensor], batch_data_samples: Sequence, **_: Any) -> Sequence:
        """The samples with ``pred_occupancy``: semantics (X, Y, Z) uint8, the likeliest class, in the augmented key ego frame."""
        logits = self._forward(batch_inputs_dict)
        for sample, labels in zip(batch_data_samples, logits.argmax(dim=-1).to(torch.uint8)):
            sample.pred_occupancy = BaseDataElement(semantics=labels)
        return batch_data_samples

    def _forward(self, batch_inputs_dict: Mapping[str, Tensor], data_samples: Optional[Sequence] = None) -> Tensor:
        """Logits (B, X, Y, Z, K)."""
        return self.occupancy_logits(self.extract_feat(batch_inputs_dict).bev)

    def occupancy_logits(self, volume: Tensor) -> Tensor:
        """Encoded volume (B, C, Z, Y, X) -> (B, X, Y, Z, K)."""
        voxels = self.final_conv(volume).permute(0, 4, 3, 2, 1)
        return voxels if self.predicter is None else self.predicter(voxels)

    def occupancy_loss(self, logits: Tensor, semantics: Tensor, mask_camera: Tensor) -> Tensor:
        """Mean loss of the voxels, with ``use_mask`` of those that a camera sees; 0 where none is seen.

        Args:
            logits: (B, X, Y, Z, K).
            semantics: (B, X, Y, Z), classes.
            mask_camera: (B, X, Y, Z), 1 = seen.
        """
        rows, labels = at_least_float32(logits).flatten(0, -2), semantics.flatten().long()
        if not self.use_mask:
            return self.loss_occ(rows, labels)
        seen = mask_camera.flatten().to(rows.dtype)
        return self.loss_occ(rows, labels, seen, avg_factor=seen.sum())

    def _truth(self, samples: Sequence, name: str) -> Tensor:
        """(B, X, Y, Z)."""
        found = []
        for sample in samples:
            where = sample_name(sample.metainfo)
            if 'gt_occupancy' not in sample:
                raise ValueError(f'{where}: no gt_occupancy to learn from; the pipeline needs LoadOccupancyLabels')
            labels = sample.gt_occupancy.get(name)
            if tuple(labels.shape) != tuple(self.voxels):
                raise ValueError(
                    f"{where}: {name} has {tuple(labels.shape)} voxels, the model's grid {tuple(self.voxels)}; voxels of "
                    'LoadOccupancyLabels and img_view_transformer.grid_config must fit each other'
                )
            found.append(labels)
        return torch.stack(found)
