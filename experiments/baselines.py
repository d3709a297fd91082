"""What can be scored without looking at an image, by what training frames have in common: baselines of downstream figures.

    python experiments/baselines.py map configs/mmdet3d/map_segmentation/bevdepth4d_map_tiny_synthetic.py --cfg-options ...
    python experiments/baselines.py boxes WORLD/nuscenes_2d_train.json WORLD/nuscenes_2d_val.json

map: the mean of the training frames' maps in place of every prediction, scored as the configuration scores. boxes: the
same boxes in every image of a camera, at the places where most training images of that camera have one; COCO's mAP.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import torch
from runs import add_config, read_config
from tqdm import tqdm

OVERLAP = 0.5
BOXES_AN_IMAGE = 100  # as many as COCO counts


def score_mean_map(config: Any) -> Dict[str, float]:
    """What the configured evaluator gives the mean training map (classes, Y, X) on validation frames: ``map/mIoU`` etc., percent."""
    from mmdet3d.registry import DATASETS, METRICS
    from mmengine.registry import init_default_scope

    import geomim.bevdet
    import geomim.mmdet3d

    del geomim
    init_default_scope(config.get('default_scope', 'mmdet3d'))
    loaders = (config.train_dataloader, config.val_dataloader)
    train, val = (DATASETS.build({**loader.dataset, 'test_mode': True}) for loader in loaders)
    mean: Any = 0
    for number in tqdm(range(len(train)), desc='training frames', mininterval=1):
        mean = mean + train[number]['data_samples'].gt_bev_map.data.float() / len(train)
    metric = METRICS.build(config.val_evaluator)
    for number in tqdm(range(len(val)), desc='validation frames', mininterval=1):
        sample = val[number]['data_samples']
        sample.pred_bev_map = sample.gt_bev_map.clone()
        sample.pred_bev_map.data = mean
        metric.process({}, [sample.to_dict()])
    scores: Dict[str, float] = metric.evaluate(len(val))
    return scores


def camera_of(file_name: str) -> str:
    """CAM_FRONT of samples/CAM_FRONT/....jpg."""
    return Path(file_name).parent.name


def overlaps(boxes: np.ndarray) -> np.ndarray:
    """(M, M) IoU of boxes (M, 4): left, top, width, height, pixels."""
    from pycocotools import mask

    return np.asarray(mask.iou(boxes, boxes, [0] * len(boxes)))


def frequent_boxes(boxes: np.ndarray, images: int) -> List[Dict[str, Any]]:
    """Of boxes (M, 4), one by one, the one that overlaps most of those not yet covered; its score is how many an image, of ``images``."""
    near, free, found = overlaps(boxes) >= OVERLAP, np.ones(len(boxes), dtype=bool), []
    while free.any() and len(found) < BOXES_AN_IMAGE:
        covered = near & free
        best = int(covered.sum(axis=1).argmax())
        found.append({'bbox': boxes[covered[best]].mean(axis=0).tolist(), 'score': float(covered[best].sum() / images)})
        free &= ~near[best]
    return found


def score_frequent_boxes(train_path: Path, val_path: Path) -> Dict[str, float]:
    """COCO's ``bbox_mAP`` and ``bbox_mAP_50``, 0 to 1, on the validation images of boxes that depend on the camera alone."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    train = json.loads(train_path.read_text(encoding='utf-8'))
    cameras = {image['id']: camera_of(image['file_name']) for image in train['images']}
    images: Dict[str, int] = defaultdict(int)
    for camera in cameras.values():
        images[camera] += 1
    boxes: Dict[Any, List[Any]] = defaultdict(list)
    for row in train['annotations']:
        boxes[cameras[row['image_id']], row['category_id']].append(row['bbox'])
    fixed: Dict[str, List[Dict[str, Any]]] = defaultdict(list)
    for (camera, category), rows in boxes.items():
        found = frequent_boxes(np.asarray(rows, dtype=float), images[camera])
        fixed[camera] += [{**row, 'category_id': category} for row in found]
    truth = COCO(str(val_path))
    results = []
    for image in truth.dataset['images']:
        best = sorted(fixed[camera_of(image['file_name'])], key=lambda row: -row['score'])[:BOXES_AN_IMAGE]
        results += [{**row, 'image_id': image['id']} for row in best]
    evaluation = COCOeval(truth, truth.loadRes(results), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {'bbox_mAP': float(evaluation.stats[0]), 'bbox_mAP_50': float(evaluation.stats[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest='kind', required=True)
    add_config(kinds.add_parser('map', help='of a map segmentation'))
    box_parser = kinds.add_parser('boxes', help='of a 2D detection')
    box_parser.add_argument('train', type=Path, help='annotations in the format of COCO')
    box_parser.add_argument('val', type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.kind == 'map':
        scores = score_mean_map(read_config(arguments))
    else:
        scores = score_frequent_boxes(arguments.train, arguments.val)
    print(json.dumps(scores, indent=2))


if __name__ == '__main__':
    main()
