"""Small LiDAR teachers of every supported kind, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Sequence, Tuple

from geomim.method.grid import BEVGrid

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'mmdet3d' / '_base_' / 'teachers'
# Not square, so that a swap of the axes cannot hide: 24 x 16 cells of 0.6 m along x and y
RANGE = (-7.2, -4.8, -5.0, 7.2, 4.8, 3.0)
X_BOUND, Y_BOUND = (-7.2, 7.2, 0.6), (-4.8, 4.8, 0.6)
KINDS = ('bevfusion_l', 'centerpoint', 'second', 'pillar')
ORDERS = {'bevfusion_l': 'xy', 'centerpoint': 'yx', 'second': 'yx', 'pillar': 'yx'}


def sparse_encoder(kind: str, cells: Sequence[int]) -> Dict[str, Any]:
    """The full-size encoders' layers on ``cells`` (x, y, z), with fewer channels."""
    channels = ((8, 8, 16), (16, 16, 24), (24, 24, 32), (32, 32))
    common = dict(
        in_channels=5, base_channels=8, output_channels=16, block_type='basicblock', encoder_channels=channels
    )
    if kind == 'bevfusion_l':
        paddings = ((0, 0, 1), (0, 0, 1), (0, 0, (1, 1, 0)), (0, 0))
        shape = (cells[0], cells[1], cells[2] + 1)
        return dict(type='BEVFusionLSparseEncoder', sparse_shape=shape, encoder_paddings=paddings, **common)
    paddings = ((0, 0, 1), (0, 0, 1), (0, 0, [0, 1, 1]), (0, 0))
    shape = [cells[2] + 1, cells[1], cells[0]]
    return dict(type='SparseEncoder', sparse_shape=shape, encoder_paddings=paddings, **common)


def voxel_layer(voxel_size: Sequence[float], max_voxels: int, points: int = 10) -> Dict[str, Any]:
    layer = dict(
        max_num_points=points,
        voxel_size=list(voxel_size),
        point_cloud_range=list(RANGE),
        max_voxels=(max_voxels, max_voxels),
    )
    return dict(type='Det3DDataPreprocessor', voxel=True, voxel_layer=layer)


def anchor_head() -> Dict[str, Any]:
    """A head that is never computed: single-stage detectors cannot be built without."""
    anchors = dict(type='Anchor3DRangeGenerator', ranges=[list(RANGE)], sizes=[[3.9, 1.6, 1.56]])
    return dict(type='Anchor3DHead', num_classes=1, in_channels=16, anchor_generator=anchors)


def detector(kind: str) -> Dict[str, Any]:
    """Model config of a small detector: three of MVXTwoStage's family, one single-stage ('second')."""
    if kind == 'pillar':
        encoder = dict(
            type='PillarFeatureNet',
            in_channels=5,
            feat_channels=(32,),
            voxel_size=(0.6, 0.6, 8.0),
            point_cloud_range=RANGE,
            norm_cfg=dict(type='BN1d'),
            legacy=False,
        )
        scatter = dict(type='PointPillarsScatter', in_channels=32, output_shape=(16, 24))
        return dict(
            type='CenterPoint',
            data_preprocessor=voxel_layer((0.6, 0.6, 8.0), 384, 20),
            pts_voxel_encoder=encoder,
            pts_middle_encoder=scatter,
        )
    mean = dict(type='HardSimpleVFE', num_features=5)
    preprocessor = voxel_layer((0.075, 0.075, 0.2), 20000)
    middle = sparse_encoder(kind, (192, 128, 40))
    if kind == 'second':
        backbone = dict(type='SECOND', in_channels=32, layer_nums=[1, 1], layer_strides=[1, 2], out_channels=[16, 24])
        return dict(
            type='VoxelNet',
            data_preprocessor=preprocessor,
            voxel_encoder=mean,
            middle_encoder=middle,
            backbone=backbone,
            bbox_head=anchor_head(),
        )
    return dict(type='CenterPoint', data_preprocessor=preprocessor, pts_voxel_encoder=mean, pts_middle_encoder=middle)


def teacher_config(kind: str, **changes: Any) -> Dict[str, Any]:
    """Constructor arguments of a small ``LidarTeacher``."""
    config: Dict[str, Any] = dict(
        detector=detector(kind),
        tap='middle_encoder' if kind == 'second' else 'pts_middle_encoder',
        grid=BEVGrid(X_BOUND, Y_BOUND, axis_order=ORDERS[kind]),
        channels=32,
    )
    return {**config, **changes}


def near(cell: Tuple[int, int], expected: Tuple[int, int]) -> bool:
    """Within one cell, along both axes."""
    return max(abs(cell[0] - expected[0]), abs(cell[1] - expected[1])) <= 1
