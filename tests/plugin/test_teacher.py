"""The teacher made of a fork's detector: its maps, its record, what stays frozen, its checkpoints, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Dict, List

import mmdet3d
import pytest
import torch
from mmcv.runner import save_checkpoint
from mmdet3d.models.builder import DETECTORS, build_detector
from torch import Tensor, nn

import geomim.plugin  # noqa: F401
from geomim.teachers.base import BEVTeacher
from geomim.teachers.probe import object_points
from geomim.teachers.sparse_kernels import sparse_convolutions, turned

INSTALLED = Path(mmdet3d.__file__).parent / '.mim' / 'configs'
SPAN, PILLAR = [-7.2, -4.8, -5.0, 7.2, 4.8, 3.0], [0.6, 0.6, 8.0]
SCATTERED = dict(tap='pts_middle_encoder', grid=None, channels=None)


def cloud(x: float = 1.0, y: float = -1.0) -> Tensor:
    return object_points(x, y, -1.0, 5, size=0.6)


@pytest.fixture
def build(teacher_config: Dict[str, Any]) -> Any:
    def make(**changes: Any) -> BEVTeacher:
        return DETECTORS.build({**copy.deepcopy(teacher_config), **copy.deepcopy(changes)})

    return make


@pytest.fixture(scope='module')
def single_stage() -> Dict[str, Any]:
    """PointPillars, whose parts have other names; its head is never computed."""
    anchors = dict(type='Anchor3DRangeGenerator', ranges=[SPAN], sizes=[[3.9, 1.6, 1.56]])
    return dict(
        type='VoxelNet',
        voxel_layer=dict(max_num_points=20, voxel_size=PILLAR, max_voxels=(400, 400), point_cloud_range=SPAN),
        voxel_encoder=dict(
            type='PillarFeatureNet', in_channels=5, feat_channels=[8], voxel_size=PILLAR, point_cloud_range=SPAN
        ),
        middle_encoder=dict(type='PointPillarsScatter', in_channels=8, output_shape=(16, 24)),
        backbone=dict(type='SECOND', in_channels=8, layer_nums=[1, 1], layer_strides=[1, 2], out_channels=[6, 7]),
        bbox_head=dict(type='Anchor3DHead', num_classes=1, in_channels=6, feat_channels=6, anchor_generator=anchors),
    )


def test_maps_are_as_the_record_says_and_samples_do_not_mix(build: Any) -> None:
    teacher = build()
    clouds = [cloud(4.9, -2.3), cloud(-2.6, 3.3)]
    before = [points.clone() for points in clouds]
    bev = teacher(clouds)
    assert (bev.shape, bev.dtype) == ((2, 5, 12, 16), torch.float32)
    assert bev.is_contiguous()
    assert not bev.requires_grad
    assert all(torch.equal(points, same) for points, same in zip(clouds, before))
    for index in range(2):
        torch.testing.assert_close(bev[index : index + 1], teacher([clouds[index]]), atol=1e-5, rtol=1e-5)
    further = torch.cat([clouds[0].double(), torch.randn(len(clouds[0]), 2)], dim=1)
    assert torch.equal(teacher([further]), teacher([clouds[0]]))


@pytest.mark.parametrize('kind', ['CenterPoint', 'VoxelNet'])
def test_cells_axis_order_and_channels_can_be_measured(build: Any, single_stage: Dict[str, Any], kind: str) -> None:
    single = dict(detector=single_stage, tap='middle_encoder', grid=None, channels=None)
    record = build(**(SCATTERED if kind == 'CenterPoint' else single)).record
    assert (record.channels, record.grid.axis_order) == (8, 'yx')
    assert record.grid.x_bound == pytest.approx((-12, 12, 1.5) if kind == 'CenterPoint' else (-7.2, 7.2, 0.6))
    assert record.grid.y_bound == pytest.approx((-9, 9, 1.5) if kind == 'CenterPoint' else (-4.8, 4.8, 0.6))


def test_one_of_several_maps_is_chosen(build: Any, single_stage: Dict[str, Any]) -> None:
    single = dict(detector=single_stage, tap='backbone', grid=None, channels=None)
    with pytest.raises(
        ValueError, match=r'gives 2 maps \[\(1, 6, 16, 24\), \(1, 7, 8, 12\)\]: choose one with `index`'
    ):
        build(**single)
    assert build(**single, index=1).record.grid.shape == (8, 12)
    with pytest.raises(ValueError, match='none with index 2'):
        build(**single, index=2)
    with pytest.raises(ValueError, match='leave out index=0'):
        build(**SCATTERED, index=0)


def test_an_official_config_file_is_enough(build: Any) -> None:
    name = 'centerpoint_02pillar_second_secfpn_4x8_cyclic_20e_nus.py'
    teacher = build(detector=str(INSTALLED / 'centerpoint' / name), **SCATTERED)
    assert (teacher.record.channels, teacher.record.grid.shape) == (64, (512, 512))
    assert teacher.record.grid.x_bound == pytest.approx((-51.2, 51.2, 0.2))


def test_nothing_behind_the_tap_is_computed_or_kept(build: Any, pillar_detector: Dict[str, Any]) -> None:
    teacher = build()
    parts = dict(teacher.detector.named_children())
    assert all(isinstance(parts[name], nn.Identity) for name in ('pts_neck', 'pts_bbox_head'))
    calls: List[int] = []
    teacher.detector.pts_bbox_head.register_forward_hook(lambda *_: calls.append(1))
    with_head = teacher([cloud()])
    assert calls == []
    headless = {name: value for name, value in pillar_detector.items() if name != 'pts_bbox_head'}
    assert torch.equal(build(detector=headless)([cloud()]), with_head)


def test_random_weights_are_those_of_the_seed(build: Any) -> None:
    state = torch.random.get_rng_state()
    one, same, other = build(), build(), build(seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    bev = one([cloud()])
    assert float(bev.std()) > 1e-2
    assert torch.equal(same([cloud()]), bev)
    assert not torch.equal(other([cloud()]), bev)


def test_a_copy_is_a_teacher_of_its_own(build: Any) -> None:
    """BEVDet's EMA hook copies the whole model."""
    teacher = build()
    copied = copy.deepcopy(teacher)
    assert torch.equal(copied([cloud()]), teacher([cloud()]))
    assert copied.detector is not teacher.detector


def trained(pillar_detector: Dict[str, Any]) -> nn.Module:
    """A whole detector with weights and statistics of no fresh one."""
    torch.manual_seed(5)
    detector = build_detector(copy.deepcopy(pillar_detector))
    for value in detector.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 1.0)
    return detector


def test_weights_come_from_a_run_of_the_fork(build: Any, pillar_detector: Dict[str, Any], tmp_path: Path) -> None:
    detector = trained(pillar_detector)
    save_checkpoint(detector, str(tmp_path / 'epoch_1.pth'), meta=dict(epoch=1, CLASSES=('car',)))
    teacher = build(checkpoint=str(tmp_path / 'epoch_1.pth'))
    detector.eval()
    features: List[Tensor] = []
    detector.pts_backbone.blocks[0].register_forward_hook(lambda module, args, output: features.append(output))
    with torch.no_grad():
        detector.extract_pts_feat([cloud()], None, [{}])
    assert torch.equal(teacher([cloud()]), features[0])
    report = teacher.load_report
    assert 'pts_voxel_encoder.pfn_layers.0.linear.weight' in report.taken
    assert any(name.startswith('pts_bbox_head.') for name in report.unused)
    assert 'epoch_1.pth' in report.describe()


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda state: state.pop('pts_backbone.blocks.0.0.weight'), r'lacks 1 of the .*pts_backbone\.blocks\.0\.0\.weight'),
        (lambda state: state.update({'pts_backbone.blocks.0.9.weight': torch.zeros(1)}), 'another architecture'),
        (
            lambda state: state.update({'pts_backbone.blocks.0.0.weight': torch.zeros(5, 8, 1, 1)}),
            r'blocks\.0\.0\.weight \(5, 8, 1, 1\) instead of \(5, 8, 3, 3\)',
        ),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(
    build: Any, pillar_detector: Dict[str, Any], tmp_path: Path, change: Any, message: str
) -> None:
    state = dict(trained(pillar_detector).state_dict())
    change(state)
    torch.save({'state_dict': state}, str(tmp_path / 'file.pth'))
    with pytest.raises(ValueError, match=message):
        build(checkpoint=str(tmp_path / 'file.pth'))
    with pytest.raises(ValueError, match='none.pth: no such file'):
        build(checkpoint=str(tmp_path / 'none.pth'))


@pytest.mark.parametrize('order', ['spconv1', 'spconv2'])
def test_sparse_kernels_of_either_order_are_read(build: Any, tmp_path: Path, order: str) -> None:
    """Detectors with voxels, whose files come from spconv 1, from mmcv's copy of it, or from spconv 2."""
    voxel = [0.3, 0.3, 0.4]
    detector = dict(
        type='CenterPoint',
        pts_voxel_layer=dict(max_num_points=5, voxel_size=voxel, max_voxels=(400, 400), point_cloud_range=SPAN),
        pts_voxel_encoder=dict(type='HardSimpleVFE', num_features=5),
        pts_middle_encoder=dict(
            type='SparseEncoder', in_channels=5, sparse_shape=[21, 32, 48], output_channels=6, base_channels=4,
            encoder_channels=((4, 8), (8, 8)), encoder_paddings=((1, 1), (1, 1)), block_type='basicblock',
        ),
    )  # fmt: skip
    grid = dict(x_bound=(-7.2, 7.2, 0.6), y_bound=(-4.8, 4.8, 0.6), axis_order='yx')
    changes = dict(detector=detector, tap='pts_middle_encoder', grid=grid, channels=60)
    source = build(**changes, seed=3).detector
    kernels = {f'{name}.weight' for name in sparse_convolutions(source)}
    assert len(kernels) > 5
    own = source.state_dict()
    stored = {
        name: turned(value, order).contiguous() if name in kernels and order == 'spconv2' else value.clone()
        for name, value in own.items()
    }
    torch.save({'state_dict': stored}, str(tmp_path / 'file.pth'))
    loaded = build(**changes, checkpoint=str(tmp_path / 'file.pth'), seed=4)
    assert loaded.load_report.kernel_order == order
    assert all(torch.equal(value, own[name]) for name, value in loaded.detector.state_dict().items())


@pytest.mark.parametrize(
    'clouds, message',
    [
        ([], 'no point clouds'),
        ([cloud(), torch.zeros(0, 5)], 'sample 1: the point cloud is empty'),
        ([cloud()[:, :4]], r'sample 0: points must be \(M, >= 5\).*got shape \(729, 4\)'),
        ([cloud() + 50.0, cloud()], r'sample 0: none of its 729 points lies in the range \(-12\.0, -9\.0'),
    ],
)
def test_unusable_points_are_refused(build: Any, clouds: List[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()(clouds)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'tap': 'pts_backbone.blocks.1'}, r'no submodule of CenterPoint, .* close to it: pts_backbone\.blocks\.0'),
        ({'detector': 'missing/config.py'}, 'no such config file'),
        ({'detector': {'kind': 'CenterPoint'}}, r"a model config with a `type` is needed, got the keys \['kind'\]"),
        ({'checkpoint': 'x.pth', 'checkpoint_layout': 'other'}, "must be one of .*got 'other'"),
    ],
)
def test_unusable_descriptions_are_refused(build: Any, changes: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_a_map_other_than_the_record_is_refused(build: Any) -> None:
    with pytest.raises(ValueError, match=r'\(1, 5, 12, 16\), its record promises \(1, 6, 12, 16\)'):
        build(channels=6)([cloud()])
