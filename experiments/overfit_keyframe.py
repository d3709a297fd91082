"""Overfit a small BEVDepth4D on one keyframe until it finds the frame's cars: the whole chain in a proof of minutes.

    python experiments/overfit_keyframe.py --data data/nuscenes --out work_dirs/overfit --iterations 300

Trains on one sample of the training split without augmentation, from random weights, and looks for its boxes in the same
sample. Writes OUT/figures.json and OUT/picture.jpg; says nothing about other frames, as it is not meant to.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from runs import CONFIGS, pipeline_steps, schedule, without_validation, write_json
from torch import Tensor

from geomim.bevdet.boxes.transform import transform_boxes
from geomim.bevdet.inference.frame_pictures import draw_frame, save_jpeg
from geomim.checkpoints.files import is_whole
from geomim.nuscenes.bevdet_infos import bevdet_info_names, make_bevdet_infos
from geomim.nuscenes.infos import find_version

CONFIG = CONFIGS / 'finetune' / 'bevdepth4d_tiny_synthetic.py'
CELL = 0.8  # metres
IMAGE_SIZE = (128, 352)
LEARNING_RATE = 2e-3
NEAR = 1.0  # metres between the centres of a box and its finding, seen from above
SURE = 0.3  # score of a finding
RANGE = 40.0  # metres from the ego vehicle
FEWEST_POINTS = 3  # LiDAR points of a box that must be found


class Boxes(NamedTuple):
    """centres (M, 3), metres in the key ego frame; labels (M,); values (M,): scores, or numbers of LiDAR points."""

    centres: Tensor
    labels: Tensor
    values: Tensor

    def take(self, which: Tensor) -> Boxes:
        return Boxes(*(value[which] for value in self))

    def reach(self) -> Tensor:
        """(M,) distance from the ego vehicle, seen from above, metres."""
        return self.centres[:, :2].norm(dim=1)


class Keyframe(NamedTuple):
    """What was trained on, the annotated boxes with their LiDAR points, and what the detector makes of it."""

    info: Mapping[str, Any]
    sample: Any
    truth: Boxes
    found: Boxes


def overfit_config(root: Path, infos: Path, out: Path, iterations: int) -> Config:
    """The tiny configuration with one sample, twice as many cells an axis, and nothing random but the first weights."""
    config = Config.fromfile(CONFIG)
    config.work_dir, version = str(out), find_version(root)
    config.model.img_backbone.init_cfg = None
    view = config.model.img_view_transformer
    view.input_size = IMAGE_SIZE
    view.grid_config.update(x=[-51.2, 51.2, CELL], y=[-51.2, 51.2, CELL])
    voxel = CELL / config.model.train_cfg.pts.out_size_factor
    config.model.train_cfg.pts.update(grid_size=[1024, 1024, 40], voxel_size=[voxel, voxel, 0.2])
    for part in (config.model.test_cfg.pts, config.model.pts_bbox_head.bbox_coder):
        part.voxel_size = [voxel, voxel]
    for loader, name in zip((config.train_dataloader, config.val_dataloader), bevdet_info_names()):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=f'{root}/', ann_file=str(infos / name), indices=1)
        loader.dataset.metainfo.version = version
    for _, step in pipeline_steps(config):
        if 'data_config' in step:
            step.data_config.update(input_size=IMAGE_SIZE, src_size=(900, 1600), resize=(0.0, 0.0))
        if 'Aug' in step.type:
            step.training = False
    without_validation(config)
    config.merge_from_dict(schedule(iterations, iterations // 20))
    config.param_scheduler[1].eta_min = LEARNING_RATE / 50
    config.optim_wrapper.optimizer.update(lr=LEARNING_RATE, weight_decay=0.0)
    config.optim_wrapper.paramwise_cfg.decay_rate = 1.0  # nothing is pretrained
    config.default_hooks.checkpoint.update(interval=iterations, max_keep_ckpts=1)
    config.custom_hooks = [hook for hook in config.custom_hooks if hook.type == 'EpochSeedHook']
    return config


def train(config: Config, out: Path, iterations: int) -> Any:
    """The trained detector; a finished training is taken as it is, an interrupted one goes on."""
    checkpoint = out / f'iter_{iterations}.pth'
    finished = is_whole(checkpoint)
    config.resume = not finished
    runner = Runner.from_cfg(config)
    if finished:
        runner.load_checkpoint(str(checkpoint))
    else:
        runner.train()
    return runner.model.eval()


def look(model: Any, dataset: Any, blind: bool = False) -> Keyframe:
    """The detector's boxes in the one sample, beside the annotated ones, whose values are their LiDAR points.

    Args:
        blind: hide the images: what is found all the same was learnt by heart.
    """
    info, batch = dataset.get_data_info(0), pseudo_collate([dataset[0]])
    if blind:
        batch['inputs']['images'] = [torch.full_like(images, 127) for images in batch['inputs']['images']]
    with torch.no_grad():
        sample = model.test_step(batch)[0]
    annotated, found = info['ann_info'], sample.pred_instances_3d
    truth = transform_boxes(annotated['gt_bboxes_3d'], sample.lidar2key_ego)
    return Keyframe(
        dict(info, eval_ann_info=annotated),
        sample,
        as_boxes(truth, annotated['gt_labels_3d'], annotated['num_lidar_pts']),
        as_boxes(found.bboxes_3d, found.labels_3d, found.scores_3d),
    )


def as_boxes(boxes: Any, labels: Any, values: Any) -> Boxes:
    return Boxes(boxes.gravity_center, torch.as_tensor(labels).long(), torch.as_tensor(values).float())


def measure(keyframe: Keyframe, classes: List[int]) -> Dict[str, Any]:
    """Recall of the annotated boxes of some classes within reach, precision of the findings there, and each box by itself."""
    truth = keyframe.truth.take(torch.isin(keyframe.truth.labels, torch.tensor(classes)))
    found = keyframe.found.take(torch.isin(keyframe.found.labels, torch.tensor(classes)))
    found = found.take(found.values >= SURE)
    apart = (truth.centres[:, None, :2] - found.centres[:, :2]).norm(dim=-1)
    apart = torch.where(truth.labels[:, None] == found.labels, apart, torch.full_like(apart, float('inf')))
    infinite = apart.new_full((len(truth.labels), 1), float('inf'))
    nearest = torch.cat([apart, infinite], dim=1).min(dim=1)
    wanted = (truth.reach() <= RANGE) & (truth.values >= FEWEST_POINTS)
    reached = found.reach() <= RANGE
    hits = (apart <= NEAR).any(dim=0) & reached
    boxes = []
    for row in wanted.nonzero()[:, 0].tolist():
        centre, error = [round(value, 2) for value in truth.centres[row].tolist()], float(nearest.values[row])
        box: Dict[str, Any] = dict(centre=centre, lidar_points=int(truth.values[row]), error_metres=None, score=None)
        if error < float('inf'):
            box.update(error_metres=round(error, 3), score=round(float(found.values[nearest.indices[row]]), 3))
        boxes.append(box)
    count, right = int(wanted.sum()), int((nearest.values[wanted] <= NEAR).sum())
    return dict(
        annotated=count,
        found=right,
        recall=right / max(1, count),
        findings=int(reached.sum()),
        precision=int(hits.sum()) / max(1, int(reached.sum())),
        boxes=boxes,
    )


def write_results(
    keyframe: Keyframe, blind: Keyframe, classes: Sequence[str], settings: Dict[str, Any], out: Path
) -> Dict[str, Any]:
    """figures.json, whose content is returned, and picture.jpg."""
    everything = list(range(len(classes)))
    figures = dict(
        token=keyframe.sample.token,
        **settings,
        near_metres=NEAR,
        least_score=SURE,
        range_metres=RANGE,
        fewest_points=FEWEST_POINTS,
        cars=measure(keyframe, [list(classes).index('car')]),
        all_classes=measure(keyframe, everything),
        cars_without_images=measure(blind, [list(classes).index('car')]),
        all_classes_without_images=measure(blind, everything),
    )
    write_json(out / 'figures.json', figures)
    instances = keyframe.sample.pred_instances_3d
    sure = instances[instances.scores_3d >= SURE]
    save_jpeg(out / 'picture.jpg', draw_frame(keyframe.info, keyframe.sample, sure, classes))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, required=True, help='nuScenes folder')
    parser.add_argument('--out', type=Path, required=True, help='folder of the results')
    parser.add_argument('--iterations', type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out, root = arguments.out.expanduser().resolve(), arguments.data.expanduser().resolve()
    infos = root if all((root / name).is_file() for name in bevdet_info_names()) else make_bevdet_infos(root, out)
    config = overfit_config(root, infos, out, arguments.iterations)
    model = train(config, out, arguments.iterations)
    dataset = DATASETS.build(config.train_dataloader.dataset)
    settings = dict(iterations=arguments.iterations, image_size=IMAGE_SIZE, cell_metres=CELL)
    classes = list(dataset.metainfo['classes'])
    figures = write_results(look(model, dataset), look(model, dataset, blind=True), classes, settings, out)
    for name in ('cars', 'cars_without_images', 'all_classes', 'all_classes_without_images'):
        part = figures[name]
        print(
            f'{name}: {part["found"]} of {part["annotated"]} within {NEAR} m, precision {part["precision"]:.2f} of '
            f'{part["findings"]} findings with a score of at least {SURE} within {RANGE} m'
        )
    print(f'written: {out / "figures.json"}, {out / "picture.jpg"}')


if __name__ == '__main__':
    main()
