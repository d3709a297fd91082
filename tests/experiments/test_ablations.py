"""What each ablation takes out, on a small student."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Callable, Dict

import pytest
import torch

pytest.importorskip('mmdet3d')

import geomim.mmdet3d  # noqa: F401 - registers
from geomim import GeoMIM, GeoMIMConfig


@pytest.fixture
def ablations(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script('experiments/ablations.py')


@pytest.fixture
def student(make_config: Callable[..., GeoMIMConfig]) -> GeoMIM:
    torch.manual_seed(0)
    return GeoMIM(make_config()).eval()


@pytest.fixture
def inputs(student: GeoMIM, make_rig: Callable[..., Any], make_inputs: Callable[..., Dict[str, Any]]) -> Dict[str, Any]:
    return make_inputs(student.config, make_rig())


def test_nothing_is_hidden(ablations: ModuleType, student: GeoMIM, inputs: Dict[str, Any]) -> None:
    assert student.draw_masks(torch.device('cpu')).any()
    ablations.CHANGES['masking'](student)
    masks = student.draw_masks(torch.device('cpu'), torch.Generator())
    assert not masks.any()
    with torch.no_grad():
        first, second = student(**{**inputs, 'masks': masks}).predictions
    torch.testing.assert_close(first, second)


def test_the_gate_lets_everything_through(ablations: ModuleType, student: GeoMIM) -> None:
    tokens, vectors = torch.randn(6, 5, 8), torch.randn(6, 22)
    ablations.CHANGES['camera_awareness'](student)
    assert torch.equal(student.decoder.gate(tokens, vectors), tokens)


def test_the_target_is_the_teachers_map(ablations: ModuleType, student: GeoMIM, inputs: Dict[str, Any]) -> None:
    ablations.CHANGES['target_normalisation'](student)
    with torch.no_grad():
        assert torch.equal(student(**inputs).target, inputs['target_bev'])


@pytest.fixture
def build(ablations: ModuleType, student: GeoMIM, as_entries: Callable[..., Dict[str, Any]]) -> Callable[[str], Any]:
    grid = student.config.view_transform.output_grid
    teacher = dict(type='GivenBEVTeacher', bev=torch.zeros(student.config.target.channels, *grid.shape), grid=grid)
    entries = dict(student=as_entries(student.config), teacher=teacher)
    return lambda without: ablations.AblatedPretrainer(**entries, without=without)


def test_the_reconstruction_has_no_weight(
    ablations: ModuleType, build: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(*_: Any) -> Dict[str, float]:
        return {'loss_reconstruction': 2.0, 'loss_depth': 3.0}

    monkeypatch.setattr(ablations.GeoMIMPretrainer, 'forward', losses)
    for without, expected in (('reconstruction', 0.0), ('masking', 2.0)):
        assert build(without).forward({}, mode='loss') == {'loss_reconstruction': expected, 'loss_depth': 3.0}


def test_an_unknown_part_is_named(build: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match="'mask' is unknown; known are masking, camera"):
        build('mask')
