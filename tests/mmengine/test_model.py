"""The pretraining model under mmengine: whose masks a rank gets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Dict, List

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip('mmengine')

from mmengine.registry import MODELS

import geomim.mmengine  # noqa: F401


@MODELS.register_module(name='NoTeacherForTests', force=True)
class NoTeacher(nn.Module):
    """Makes no maps."""


@pytest.mark.parametrize('given, shared', [({}, True), (dict(masks_per_rank=True), False)])
def test_ranks_share_their_masks_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, make_config: Any, as_entries: Any, given: Dict[str, Any], shared: bool
) -> None:
    model = MODELS.build(
        dict(
            type='GeoMIMPretrainer', student=as_entries(make_config()), teacher=dict(type='NoTeacherForTests'), **given
        )
    )

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
