"""What can be scored without looking: boxes at the places where most images have one."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, List

import numpy as np
import pytest

pytest.importorskip('pycocotools')


@pytest.fixture
def priors(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script('experiments/baselines.py')


def test_overlaps_of_boxes(priors: ModuleType) -> None:
    boxes = np.array([[0, 0, 4, 4], [2, 0, 4, 4], [10, 10, 1, 1]], dtype=float)
    third = 8 / (16 + 16 - 8)
    np.testing.assert_allclose(priors.overlaps(boxes), [[1, third, 0], [third, 1, 0], [0, 0, 1]])


def test_the_place_that_most_images_share_comes_first(priors: ModuleType) -> None:
    often = [[10.0 + shift, 10, 20, 20] for shift in (-1, 0, 1)]
    found = priors.frequent_boxes(np.array([[50.0, 50, 8, 8], *often]), images=6)
    assert [row['score'] for row in found] == [3 / 6, 1 / 6]
    assert found[0]['bbox'] == [10, 10, 20, 20]


def coco(path: Path, boxes: List[Any]) -> Path:
    images = [{'id': 10 * n, 'file_name': f'samples/{camera}/{n}.jpg'} for n, (camera, _) in enumerate(boxes)]
    rows: List[Dict[str, Any]] = []
    for number, (_, box) in enumerate(boxes):
        rows.append(
            {'id': number + 1, 'image_id': 10 * number, 'category_id': 3, 'bbox': box, 'iscrowd': 0, 'area': 400}
        )
    content = {'images': images, 'annotations': rows, 'categories': [{'id': 3, 'name': 'car'}]}
    path.write_text(json.dumps({'info': {}, **content}))
    return path


def test_cameras_have_boxes_of_their_own(priors: ModuleType, tmp_path: Path) -> None:
    ahead, behind = ('CAM_FRONT', [10, 10, 20, 20]), ('CAM_BACK', [60, 20, 20, 20])
    train = coco(tmp_path / 'train.json', [ahead, ahead, behind])
    same = priors.score_frequent_boxes(train, coco(tmp_path / 'same.json', [behind, ahead]))
    assert same == {'bbox_mAP': pytest.approx(1), 'bbox_mAP_50': pytest.approx(1)}
    crossed = coco(tmp_path / 'crossed.json', [('CAM_FRONT', behind[1]), ('CAM_BACK', ahead[1])])
    assert priors.score_frequent_boxes(train, crossed)['bbox_mAP_50'] == pytest.approx(0)
