"""BEVFusion's sparse LiDAR encoder, for an mmdet3d without its projects folder (METHOD 3).

Shape legend: B samples, V voxels, F features, C channels, X x Y BEV cells, D remaining height cells.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence

from mmdet3d.models.layers import make_sparse_convmodule
from mmdet3d.models.layers.spconv import IS_SPCONV2_AVAILABLE
from mmdet3d.models.middle_encoders import SparseEncoder
from mmengine.registry import MODELS
from mmengine.runner import amp
from torch import Tensor

if IS_SPCONV2_AVAILABLE:
    from spconv.pytorch import SparseConvTensor
else:
    from mmcv.ops import SparseConvTensor

_BATCH_X_Y_Z = (0, 3, 2, 1)  # mmdet3d's voxel coordinates are (batch, z, y, x)


@MODELS.register_module()
class BEVFusionLSparseEncoder(SparseEncoder):
    """mmdet3d's sparse encoder with its axes in BEVFusion's order (x, y, z), which its checkpoints need.

    Parameter names are those of BEVFusion's encoder, in mmdet3d and (after their prefix) in the authors' own code. The
    maps are (B, C * D, X, Y), where every encoder of mmdet3d itself gives (B, C * D, Y, X).

    Args:
        in_channels: F, features of a voxel.
        sparse_shape: cells along (x, y, z); z counts one more than the voxel grid.
        norm_cfg: normalisation of the sparse features.
        **kwargs: as mmdet3d's ``SparseEncoder``, but paddings along (x, y, z), and no ``return_middle_feats``.

    Raises:
        ValueError: a sparse shape that is not (x, y, z).
    """

    def __init__(
        self, *, in_channels: int, sparse_shape: Sequence[int], norm_cfg: Optional[Dict[str, Any]] = None, **kwargs: Any
    ) -> None:
        if len(sparse_shape) != 3:
            raise ValueError(f'sparse_shape must be cells along (x, y, z), got {tuple(sparse_shape)}')
        norm_cfg = norm_cfg or {'type': 'BN1d', 'eps': 1e-3, 'momentum': 0.01}
        super().__init__(in_channels, list(sparse_shape), norm_cfg=norm_cfg, return_middle_feats=False, **kwargs)
        self.conv_out = make_sparse_convmodule(
            self.encoder_channels[-1][-1],
            self.output_channels,
            kernel_size=(1, 1, 3),
            stride=(1, 1, 2),
            norm_cfg=norm_cfg,
            padding=0,
            indice_key='spconv_down2',
            conv_type='SparseConv3d',
        )

    @amp.autocast(enabled=False)
    def forward(self, voxel_features: Tensor, coors: Tensor, batch_size: int) -> Tensor:
        """Voxels -> BEV.

        Args:
            voxel_features: (V, F).
            coors: (V, 4) integers in mmdet3d's order (batch, z, y, x).
            batch_size: B.

        Returns:
            (B, C * D, X, Y).
        """
        coordinates = coors.int()[:, list(_BATCH_X_Y_Z)].contiguous()
        voxels = self.conv_input(SparseConvTensor(voxel_features, coordinates, self.sparse_shape, batch_size))
        for layer in self.encoder_layers:
            voxels = layer(voxels)
        volume = self.conv_out(voxels).dense()  # (B, C, X, Y, D)
        return volume.permute(0, 1, 4, 2, 3).flatten(1, 2).contiguous()
