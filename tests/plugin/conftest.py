"""The plugin's tests need a real mmcv 1.x host; elsewhere they are left out, with a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, NoReturn, Optional

import pytest


def _host() -> str:
    try:
        import mmcv
        import mmdet3d  # noqa: F401
    except ImportError:
        return 'no mmcv with mmdet3d'
    return '' if mmcv.__version__.startswith('1.') else f'mmcv {mmcv.__version__}'


MISSING = _host()


class LeftOut(pytest.Module):
    """A test file that is not even imported, since its imports would fail."""

    def collect(self) -> NoReturn:
        pytest.skip(f'needs mmcv 1.x, but there is {MISSING}; make test-bevdet runs it', allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Optional[pytest.Module]:
    return LeftOut.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope='session')
def pillar_detector() -> Dict[str, Any]:
    """CenterPoint on pillars of 1.5 m over 24 x 18 m, of mmdet3d 1.0."""
    span = [-12.0, -9.0, -5.0, 12.0, 9.0, 3.0]
    size = [1.5, 1.5, 8.0]
    return dict(
        type='CenterPoint',
        pts_voxel_layer=dict(max_num_points=20, voxel_size=size, max_voxels=(500, 500), point_cloud_range=span),
        pts_voxel_encoder=dict(
            type='PillarFeatureNet',
            in_channels=5,
            feat_channels=[8],
            voxel_size=tuple(size),
            point_cloud_range=tuple(span),
            norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01),
            legacy=False,
        ),
        pts_middle_encoder=dict(type='PointPillarsScatter', in_channels=8, output_shape=(12, 16)),
        pts_backbone=dict(type='SECOND', in_channels=8, out_channels=[5], layer_nums=[1], layer_strides=[1]),
        pts_neck=dict(type='SECONDFPN', in_channels=[5], out_channels=[5], upsample_strides=[1]),
        pts_bbox_head=dict(
            type='CenterHead',
            in_channels=5,
            tasks=[dict(num_class=1, class_names=['car'])],
            common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
            share_conv_channel=8,
            bbox_coder=dict(
                type='CenterPointBBoxCoder',
                pc_range=span[:2],
                post_center_range=[-20.0, -20.0, -10.0, 20.0, 20.0, 10.0],
                max_num=10,
                out_size_factor=1,
                voxel_size=size[:2],
                code_size=9,
            ),
            separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3),
        ),
    )


@pytest.fixture(scope='session')
def teacher_config(pillar_detector: Dict[str, Any]) -> Dict[str, Any]:
    """Teacher whose maps are cells of 1.5 m, 5 channels, (y, x)."""
    return dict(
        type='GeoMIMLidarTeacher',
        detector=pillar_detector,
        tap='pts_backbone.blocks.0',
        grid=dict(x_bound=(-12.0, 12.0, 1.5), y_bound=(-9.0, 9.0, 1.5), axis_order='yx'),
        channels=5,
    )


@pytest.fixture(scope='session')
def student_config() -> Dict[str, Any]:
    """A student of 64 x 96 pixels on the teacher's cells."""
    return dict(
        encoder=dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), window_size=(4, 4, 4, 2)),
        decoder=dict(
            dim=16, num_heads=2, depth=2, cross_view_after=(1,), geometry_from=1, geometry_cross_view_after=()
        ),
        view_transform=dict(
            image_size=(64, 96),
            x_bound=(-12.0, 12.0, 0.75),
            y_bound=(-9.0, 9.0, 0.75),
            depth_bound=(1.0, 13.0, 1.0),
            channels=6,
            axis_order='yx',
        ),
        target=dict(channels=5, patch_size=2),
    )
