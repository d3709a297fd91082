"""The pretraining model under mmengine: whose masks a rank gets, how its layers start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Optional

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip('mmengine')

from mmengine.registry import METRICS, MODELS

import geomim.mmengine  # noqa: F401


@MODELS.register_module(name='NoTeacherForTests', force=True)
class NoTeacher(nn.Module):
    """Makes no maps."""


@pytest.fixture
def build(make_config: Any, as_entries: Any) -> Callable[..., nn.Module]:
    """The model, tiny, without a teacher."""

    def build(**given: Any) -> nn.Module:
        student = {**as_entries(make_config()), **given.pop('student', {})}
        if student['linear_init'] is None:
            del student['linear_init']
        return MODELS.build(
            dict(type='GeoMIMPretrainer', student=student, teacher=dict(type='NoTeacherForTests'), **given)
        )

    return build


@pytest.mark.parametrize(
    'given, init_from, start',
    [
        (None, 'mixmae.pth', 'torch'),
        (None, None, 'xavier'),
        ('xavier', 'mixmae.pth', 'xavier'),
        ('torch', None, 'torch'),
    ],
)
def test_layers_start_as_published_where_a_checkpoint_is_given(
    build: Callable[..., nn.Module], given: Optional[str], init_from: Optional[str], start: str
) -> None:
    model = build(student=dict(linear_init=given), init_from=init_from)
    assert model.student.config.linear_init == start


@pytest.mark.parametrize('given, shared', [({}, True), (dict(masks_per_rank=True), False)])
def test_ranks_share_their_masks_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, build: Callable[..., nn.Module], given: Dict[str, Any], shared: bool
) -> None:
    model = build(**given)

    def masks(inputs: Any, generator: torch.Generator) -> SimpleNamespace:
        drawn.append(model.student.draw_masks(torch.device('cpu'), generator))
        return SimpleNamespace(reconstruction_loss=None, depth_loss=None)

    model.run_student = masks
    at: Dict[int, List[Tensor]] = {}
    for iteration in (5, 6):
        drawn = at[iteration] = []
        hub = SimpleNamespace(get_info=lambda *_, place=iteration: place)
        monkeypatch.setattr('geomim.mmengine.randomness.MessageHub.get_current_instance', lambda hub=hub: hub)
        for rank in range(3):
            monkeypatch.setattr('geomim.mmengine.randomness.get_rank', lambda rank=rank: rank)
            torch.manual_seed(rank)  # what else a rank draws does not matter
            model({}, mode='loss')
        assert [torch.equal(drawn[0], one) for one in drawn[1:]] == [shared] * 2
    assert not torch.equal(at[5][0], at[6][0])


def test_figures_of_cells_weigh_by_their_cells_in_validation() -> None:
    rows = [
        {'reconstruction_loss': 0.2, 'constant_map_loss': 1.0, 'depth_error_0_10m': 8.0, 'labelled_cells_0_10m': 1},
        {'reconstruction_loss': 0.6, 'constant_map_loss': 0.6, 'depth_error_0_10m': 4.0, 'labelled_cells_0_10m': 3},
        {'reconstruction_loss': 0.4, 'constant_map_loss': 0.8, 'depth_error_0_10m': 0.0, 'labelled_cells_0_10m': 0},
    ]
    metric = METRICS.build(dict(type='ReconstructionMetric'))
    metric.process(None, [{'geomim': row} for row in rows])
    found = metric.compute_metrics(metric.results)
    assert found == pytest.approx(
        dict(
            reconstruction_loss=0.4,
            constant_map_loss=0.8,
            depth_error_0_10m=5.0,
            labelled_cells_0_10m=4 / 3,
            explained=0.5,
        )
    )
