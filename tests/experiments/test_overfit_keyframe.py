"""What experiments/overfit_keyframe.py calls found, and the configuration that it trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, List, Tuple

import pytest
import torch

pytest.importorskip('mmdet3d')


@pytest.fixture
def tool(load_script: Callable[[str], Any]) -> Any:
    return load_script('experiments/overfit_keyframe.py')


def boxes(tool: Any, rows: List[Tuple[float, float, int, float]]) -> Any:
    """Rows of x, y, label and value."""
    table = torch.tensor(rows, dtype=torch.float).view(-1, 4)
    centres = torch.cat([table[:, :2], torch.full((len(table), 1), 7.0)], dim=1)
    return tool.Boxes(centres, table[:, 2].long(), table[:, 3])


def test_found_is_who_has_a_sure_box_of_its_class_nearby(tool: Any) -> None:
    truth = [(10, 0, 0, 5), (20, 0, 0, 5), (30, 0, 0, 2), (0, 41, 0, 9), (5, 5, 1, 9), (0, -30, 0, 5)]
    found = [
        (10.6, 0.6, 0, 0.9),
        (20, 0, 1, 0.9),
        (20, 0, 0, 0.2),
        (29.5, 0, 0, 0.8),
        (0, 39.9, 0, 0.7),
        (0, -32, 0, 0.4),
    ]
    frame = tool.Keyframe({}, None, boxes(tool, truth), boxes(tool, found))
    cars = tool.measure(frame, [0])
    assert (cars['annotated'], cars['found']) == (3, 1)  # two have too few points or are too far
    assert cars['findings'] == 4
    assert cars['precision'] == pytest.approx(
        1 / 2
    )  # near a car with few points counts, 1.1 m beside a far one does not
    assert [box['error_metres'] for box in cars['boxes']] == [0.849, 9.419, 2.0]
    assert tool.measure(frame, [1])['precision'] == 0


def test_nothing_found_and_nothing_annotated(tool: Any) -> None:
    none = boxes(tool, [])
    figures = tool.measure(tool.Keyframe({}, None, boxes(tool, [(1, 1, 0, 9)]), none), [0])
    assert (figures['recall'], figures['precision'], figures['boxes'][0]['error_metres']) == (0, 0, None)
    assert tool.measure(tool.Keyframe({}, None, none, none), [0])['annotated'] == 0
    json.dumps(figures)


def test_nothing_but_the_first_weights_is_random(tool: Any, tmp_path: Path) -> None:
    (tmp_path / 'v1.0-mini').mkdir()
    (tmp_path / 'v1.0-mini' / 'sample.json').write_text('[]')
    config = tool.overfit_config(tmp_path, tmp_path, tmp_path / 'out', 50)
    steps = config.train_dataloader.dataset.pipeline
    assert {step.type: step.training for step in steps if 'Aug' in step.type} == {
        'SurroundFramesAug': False,
        'BEVDetBEVAug': False,
    }
    assert config.train_dataloader.dataset.indices == 1
    assert config.model.img_backbone.init_cfg is None
