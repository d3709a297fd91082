"""LiDAR teachers: which cell an object lights up, what stays frozen, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv.pytorch')

from mmdet3d.structures import LiDARPoints
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import get_state_dict
from mmengine.runner.checkpoint import load_state_dict as mmengine_load

from geomim.method.grid import BEVGrid
from geomim.mmdet3d.teacher import (
    GivenBEVTeacher,
    LidarTeacher,
    TeacherRecord,
    expected_cell,
)
from geomim.teachers.probe import lit_cell, measure_grid, object_points

from .teacher_zoo import CONFIGS, KINDS, ORDERS, X_BOUND, Y_BOUND, detector, near, sparse_encoder, teacher_config

TEACHERS = sorted(CONFIGS.glob('*.py'))
PLACES = ((4.9, -2.3), (-2.6, 3.3))  # neither symmetric about an axis nor about a diagonal


@pytest.fixture(scope='module')
def teachers():
    return {kind: LidarTeacher(**teacher_config(kind)) for kind in KINDS}


def cloud(x: float = 1.0, y: float = -1.0) -> torch.Tensor:
    return object_points(x, y, -1.0, 5, size=0.6)


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('flips', [(), ('x',), ('y',), ('x', 'y')], ids=lambda flips: 'flip_' + ''.join(flips))
@pytest.mark.parametrize('kind', KINDS)
def test_an_object_lights_up_its_cell(teachers, kind, flips, place):
    teacher = teachers[kind]
    points = LiDARPoints(cloud(*place), points_dim=5)
    for axis in flips:
        points.flip('vertical' if axis == 'x' else 'horizontal')
    x, y = (-value if axis in flips else value for axis, value in zip('xy', place))
    assert near(lit_cell(teacher, cloud(0.0, 0.0), points.tensor), expected_cell(teacher.record, x, y))


@pytest.mark.parametrize('path', TEACHERS, ids=lambda path: path.stem)
def test_an_object_lights_up_its_cell_in_every_configured_teacher(path):
    teacher = MODELS.build(Config.fromfile(path).teacher)
    background, place = object_points(0.0, 0.0, -1.0, 5), (31.3, -12.4)
    cell = lit_cell(teacher, background, object_points(*place, -1.0, 5))
    assert near(cell, expected_cell(teacher.record, *place))


@pytest.mark.parametrize('path', TEACHERS, ids=lambda path: path.stem)
def test_configs_define_a_teacher_and_nothing_else(path):
    config = Config.fromfile(path)
    assert list(config.keys()) == ['teacher']
    assert config.teacher.type == 'GeoMIMLidarTeacher'
    assert config.teacher.checkpoint is None


def test_expected_cell_honours_the_axis_order():
    bounds = ((-6.0, 6.0, 1.0), (0.0, 4.0, 0.5))
    assert expected_cell(TeacherRecord('t', BEVGrid(*bounds, axis_order='xy'), 1), -3.5, 3.1) == (2, 6)
    assert expected_cell(TeacherRecord('t', BEVGrid(*bounds, axis_order='yx'), 1), -3.5, 3.1) == (6, 2)
    with pytest.raises(ValueError, match=r'y = 4\.0 m is outside'):
        expected_cell(TeacherRecord('t', BEVGrid(*bounds), 1), 0.0, 4.0)


@pytest.mark.parametrize('kind', KINDS)
def test_maps_are_as_the_record_says_and_samples_do_not_mix(teachers, kind):
    teacher = teachers[kind]
    clouds = [cloud(*PLACES[0]), cloud(*PLACES[1])]
    bev = teacher(clouds)
    assert bev.shape == (2, 32, *teacher.record.grid.shape)
    assert bev.dtype == torch.float32
    assert bev.is_contiguous()
    assert not bev.requires_grad
    for index in range(2):
        torch.testing.assert_close(bev[index : index + 1], teacher(clouds[index : index + 1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_autocast_changes_no_bit(teachers, kind):
    expected = teachers[kind]([cloud()])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(teachers[kind]([cloud()]), expected)
    assert torch.equal(teachers[kind]([cloud().double()]), expected)


@pytest.mark.parametrize('kind', KINDS)
def test_points_are_not_changed_and_further_features_are_not_read(teachers, kind):
    points = torch.cat([cloud(), torch.randn(len(cloud()), 2)], dim=1)
    before = points.clone()
    bev = teachers[kind]([points])
    assert torch.equal(points, before)
    assert torch.equal(bev, teachers[kind]([cloud()]))


@pytest.mark.parametrize('kind', KINDS)
def test_grid_and_channels_can_be_measured(teachers, kind):
    measured = LidarTeacher(**teacher_config(kind, grid=None, channels=None)).record
    assert measured.channels == 32
    assert measured.grid.axis_order == ORDERS[kind]
    assert measured.grid.covers_same_cells(teachers[kind].record.grid)


def test_a_map_that_ignores_the_object_cannot_be_measured():
    with pytest.raises(ValueError, match='axis order of the teacher'):
        measure_grid(lambda clouds: torch.zeros(len(clouds), 3, 8, 8), (-4, -4, -1, 4, 4, 1), 4)


def test_nothing_is_computed_behind_the_tap():
    teacher = LidarTeacher(**teacher_config('second'))
    calls = []
    teacher.detector.backbone.register_forward_hook(lambda *_: calls.append(1))
    teacher([cloud()])
    assert calls == []
    assert isinstance(teacher.detector.backbone, nn.Identity)


class Pretrainer(BaseModel):
    """A parent as the real one: a student with parameters, and a teacher."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.student = nn.Linear(2, 3)
        self.teacher = teacher

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return inputs


def test_the_teacher_is_frozen_and_in_no_checkpoint():
    teacher = LidarTeacher(**teacher_config('bevfusion_l'))
    parent = Pretrainer(teacher)
    expected = teacher([cloud()])
    parent.init_weights()
    parent.train()
    assert parent.student.training
    assert not any(module.training for module in (teacher, *teacher.detector.modules()))
    assert teacher.train() is teacher
    assert not any(parameter.requires_grad for parameter in teacher.detector.parameters())
    names = {'student.weight', 'student.bias'}
    assert set(parent.state_dict()) == set(get_state_dict(parent)) == names
    assert {name for name, _ in parent.named_parameters()} == names
    parent.load_state_dict(parent.state_dict(), strict=True)
    mmengine_load(parent, parent.state_dict(), strict=True)
    assert len(teacher.detector.state_dict()) > 50
    assert torch.equal(teacher([cloud()]), expected)


def test_the_teacher_keeps_its_precision_and_can_be_copied():
    parent = Pretrainer(LidarTeacher(**teacher_config('pillar')))
    expected = parent.teacher([cloud()])
    parent.half()
    assert parent.student.weight.dtype == torch.float16
    assert torch.equal(parent.teacher([cloud()]), expected)
    copied = copy.deepcopy(parent.teacher)
    assert copied.detector is not parent.teacher.detector
    assert torch.equal(copied([cloud()]), expected)


def test_the_teacher_moves_with_its_parent():
    parent = Pretrainer(LidarTeacher(**teacher_config('pillar')))
    parent.to('meta')
    assert {parameter.device.type for parameter in parent.teacher.detector.parameters()} == {'meta'}


def test_random_weights_are_the_same_in_every_run_and_leave_the_generator_alone():
    torch.manual_seed(1)
    one = LidarTeacher(**teacher_config('bevfusion_l'))([cloud()])
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(LidarTeacher(**teacher_config('bevfusion_l'))([cloud()]), one)
    assert not torch.equal(LidarTeacher(**teacher_config('bevfusion_l', seed=1))([cloud()]), one)


@pytest.mark.parametrize(
    'clouds, message',
    [
        ([], 'no point clouds'),
        ([cloud(), torch.zeros(0, 5)], 'sample 1: the point cloud is empty'),
        ([cloud()[:, :4]], r'sample 0: points must be \(M, >= 5\).*got shape \(729, 4\)'),
        ([cloud(), cloud() + 50.0], r'sample 1: none of its 729 points lies in the range \(-7\.2, -4\.8'),
    ],
)
def test_unusable_points_are_refused(teachers, clouds, message):
    with pytest.raises(ValueError, match=message):
        teachers['bevfusion_l'](clouds)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'tap': 'middle_encoder'}, r"'middle_encoder' is no submodule of CenterPoint, .* parts are pts_voxel_encoder"),
        ({'tap': ''}, 'is no submodule'),
        ({'detector': 'mmdet3d::centerpoint/none.py'}, 'no such config'),
        ({'detector': 'missing/config.py'}, 'no such config file'),
        ({'detector': {'kind': 'CenterPoint'}}, r"a model config with a `type` is needed, got the keys \['kind'\]"),
        ({'detector': sparse_encoder('centerpoint', (8, 8, 8)), 'tap': 'conv_out'}, 'has no extract_feat'),
        ({'grid': {'x_bound': (-9.6, 9.6, 0.6), 'y_bound': Y_BOUND}}, r'x \[-9\.6, 9\.6\].* span x \[-7\.2, 7\.2\]'),
        ({'checkpoint_layout': 'other', 'checkpoint': 'x.pth'}, r"must be one of .*got 'other'"),
    ],
)  # fmt: skip
def test_unusable_descriptions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LidarTeacher(**teacher_config('bevfusion_l', **changes))


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'grid': BEVGrid(X_BOUND, Y_BOUND, axis_order='yx')}, r'\(1, 32, 24, 16\), .* promises \(1, 32, 16, 24\)'),
        ({'channels': 16}, r'\(1, 32, 24, 16\), its record promises \(1, 16, 24, 16\)'),
        ({'tap': 'pts_middle_encoder.conv_input'}, 'gives a SparseConvTensor; a dense BEV map is needed'),
        ({'index': 0}, 'gives a single output; leave out index=0'),
    ],
)  # fmt: skip
def test_a_map_other_than_the_record_is_refused(changes, message):
    teacher = LidarTeacher(**teacher_config('bevfusion_l', **changes))
    with pytest.raises(ValueError, match=message):
        teacher([cloud()])


def test_index_chooses_among_several_maps():
    changes = {'tap': 'backbone', 'channels': 16}
    with pytest.raises(ValueError, match=r'gives 2 maps \[\(1, 16, 16, 24\), \(1, 24, 8, 12\)\]: choose one'):
        LidarTeacher(**teacher_config('second', **changes))([cloud()])
    assert LidarTeacher(**teacher_config('second', index=0, **changes))([cloud()]).shape == (1, 16, 16, 24)
    with pytest.raises(ValueError, match='none with index 2'):
        LidarTeacher(**teacher_config('second', index=2, **changes))([cloud()])
    coarse = LidarTeacher(**teacher_config('second', tap='backbone', index=1, grid=None, channels=None)).record
    assert (coarse.channels, coarse.grid.shape, coarse.grid.axis_order) == (24, (8, 12), 'yx')


def test_a_detector_may_come_from_a_config_file(tmp_path, teachers):
    path = tmp_path / 'detector.py'
    path.write_text(f'model = {detector("pillar")!r}\n', encoding='utf-8')
    teacher = LidarTeacher(**teacher_config('pillar', detector=str(path)))
    assert torch.equal(teacher([cloud()]), teachers['pillar']([cloud()]))


def test_a_student_is_told_what_would_fit(teachers):
    record = teachers['centerpoint'].record
    record.check_student(BEVGrid(X_BOUND, Y_BOUND, axis_order='yx'), 32)
    fine = BEVGrid((-7.2, 7.2, 0.3), (-4.8, 4.8, 0.3), axis_order='yx')
    record.check_student(fine.downsampled(2), 32)
    for grid, channels in ((fine, 32), (BEVGrid(X_BOUND, Y_BOUND, axis_order='xy'), 32), (record.grid, 80)):
        with pytest.raises(ValueError, match='do not share a BEV grid') as caught:
            record.check_student(grid, channels)
        message = str(caught.value)
        assert record.describe() in message
        assert f'{channels} channels on {grid.describe()}' in message
        assert 'x_bound=(-7.2, 7.2, 0.3), y_bound=(-4.8, 4.8, 0.3)' in message
        assert "axis_order='yx', and 32 target channels" in message


def test_given_maps_have_the_same_interface():
    grid = {'x_bound': X_BOUND, 'y_bound': Y_BOUND, 'axis_order': 'xy'}
    bev = torch.randn(4, 24, 16)
    teacher = MODELS.build({'type': 'GivenBEVTeacher', 'bev': bev, 'grid': grid})
    teacher.record.check_student(BEVGrid(**grid), 4)
    result = teacher([cloud(), cloud()])
    assert torch.equal(result, torch.stack([bev, bev]))
    assert result.is_contiguous()
    result.zero_()
    assert torch.equal(teacher([cloud()])[0], bev)
    parent = Pretrainer(teacher)
    assert not parent.train().teacher.training
    assert set(parent.state_dict()) == {'student.weight', 'student.bias'}
    mean = GivenBEVTeacher(bev=lambda clouds: torch.stack([c.mean() + bev for c in clouds]), grid=grid, channels=4)
    assert torch.equal(mean([cloud()])[0], cloud().mean() + bev)
    with pytest.raises(ValueError, match=r'\(3, 4, 24, 16\), its record promises \(1, 4, 24, 16\)'):
        GivenBEVTeacher(bev=bev.expand(3, -1, -1, -1), grid=grid)([cloud()])
    with pytest.raises(ValueError, match='needs `channels`'):
        GivenBEVTeacher(bev=lambda clouds: bev, grid=grid)
    with pytest.raises(ValueError, match=r'got shape \(24, 16\)'):
        GivenBEVTeacher(bev=bev[0], grid=grid)
