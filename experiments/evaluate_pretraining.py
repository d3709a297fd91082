"""How well a pretrained GeoMIM reconstructs frames that it has not seen, beside what can be had without looking.

    python experiments/evaluate_pretraining.py CONFIG CHECKPOINT --out figures.json

Baselines: the mean target of training frames, cell by cell (it knows everything except what is before the cameras), the
best map that is constant over the cells, the zero map; the student's own average map in every frame (what its maps lose
without the frame at hand); for depth, the most frequent bin of each camera's cells. CHECKPOINT may be the address of a student
that comes with the package, such as geomim://resnet_tiny_synthetic/student; --picture draws one frame.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from runs import add_config, read_config, write_json
from torch import Tensor

from geomim.adapter.step import PretrainBatch
from geomim.atomic import PathLike, atomic_path
from geomim.method.depth import depth_labels
from geomim.method.target import normalise_patches

RANGES = ((0.0, 10.0), (10.0, 20.0), (20.0, 40.0), (0.0, 1e9))  # metres
MASK_SEED = 0


def build(config: Config, checkpoint: PathLike) -> Any:
    """The model with a checkpoint's weights."""
    from mmdet3d.registry import MODELS

    import geomim.mmdet3d
    from geomim.mmengine.compat import load_local_checkpoint

    del geomim
    init_default_scope(config.get('default_scope', 'mmdet3d'))
    model = MODELS.build(config.model)
    model.load_state_dict(load_local_checkpoint(str(checkpoint), 'cpu')['state_dict'], strict=True)
    return model.eval()


def datasets(config: Config) -> Tuple[Any, Any]:
    """Training and validation frames, both without augmentation and repetitions."""
    from mmdet3d.registry import DATASETS

    train, val = config.train_dataloader.dataset, config.val_dataloader.dataset
    while 'dataset' in train:
        train = train.dataset
    return DATASETS.build({**train, 'pipeline': val.pipeline, 'test_mode': True}), DATASETS.build(val)


def frames(model: Any, dataset: Any, limit: int) -> Iterator[Dict[str, Any]]:
    """Preprocessed inputs of at most ``limit`` frames, spread over the dataset, one at a time."""
    count = min(limit, len(dataset))
    for number in range(count):
        sample = dataset[number * len(dataset) // count]
        yield model.data_preprocessor(pseudo_collate([sample]), False)['inputs']


def labels_of(model: Any, inputs: Dict[str, Any]) -> Tuple[Tensor, Tensor]:
    """Depth bins (N, h, w), -1 for none, and their distances (N, h, w), metres, of a frame."""
    view = model.student.config.view_transform
    labels = depth_labels(PretrainBatch(**inputs).measured_depth(), view.depth_bins, view.stride)[0]
    return labels, view.depth_bins.values()[labels.clamp(min=0)]


def training_means(model: Any, dataset: Any, limit: int) -> Tuple[Tensor, Tensor]:
    """Mean target (C, X, Y) and most frequent depth bin (N, h, w) of training frames."""
    target_config, view = model.student.config.target, model.student.config.view_transform
    total, counts, number = None, None, 0
    for inputs in frames(model, dataset, limit):
        target = normalise_patches(model.teacher(inputs['points']), target_config.patch_size, target_config.eps)[0]
        total = target.double() if total is None else total + target
        labels, _ = labels_of(model, inputs)
        hot = torch.nn.functional.one_hot(labels + 1, view.depth_bins.count + 1)[..., 1:]
        counts = hot if counts is None else counts + hot
        number += 1
    if number == 0:
        raise SystemExit('the training set is empty')
    return (total / number).float(), counts.argmax(dim=-1)


def evaluate(model: Any, train: Any, val: Any, limit: int) -> Dict[str, Any]:
    """All figures; means over the frames, shares over the cells."""
    if model.student.config.seen_cells_only:
        raise SystemExit('the figures are of whole maps, of which student.seen_cells_only has learnt a part')
    mean_target, frequent = training_means(model, train, limit)
    sums: Dict[str, List[float]] = {name: [] for name in ('student', 'mean', 'constant', 'zero')}
    near = {name: [[0, 0] for _ in RANGES] for name in ('student', 'prior')}
    student_map, target_map = 0.0, 0.0
    for inputs in frames(model, val, limit):
        result = model.run_student(inputs, torch.Generator().manual_seed(MASK_SEED))
        target = result.target
        student_map = student_map + torch.stack(result.predictions).mean(dim=0).double()
        target_map = target_map + target.double()
        maps = {'mean': mean_target, 'constant': target.mean(dim=(2, 3), keepdim=True), 'zero': torch.zeros(1)}
        sums['student'].append(float(result.reconstruction_loss))
        for name, bev in maps.items():
            sums[name].append(float((target - bev).square().mean()))
        labels, metres = labels_of(model, inputs)
        for guess in result.depth:
            count_near(near['student'], guess.argmax(dim=1).view_as(labels), labels, metres)
        count_near(near['prior'], frequent, labels, metres)
    means = {name: sum(values) / len(values) for name, values in sums.items()}
    student_map, target_map = student_map / len(sums['student']), target_map / len(sums['student'])
    return {
        'frames': len(sums['student']),
        'student': {'reconstruction_loss': means['student'], 'depth_within_one_bin': shares(near['student'])},
        'mean_target_loss': means['mean'],
        'constant_map_loss': means['constant'],
        'zero_map_loss': means['zero'],
        'student_average_map_loss': same_map_loss(student_map, target_map, means['zero']),
        'prior_depth_within_one_bin': shares(near['prior']),
        'bin_metres': model.student.config.view_transform.depth_bins.step,
    }


def same_map_loss(bev: Tensor, mean_target: Tensor, power: float) -> float:
    """Mean over frames of the mean of (target - bev)^2, for one map for all of them: from the frames' mean target and mean square."""
    return power + float((bev.square() - 2 * bev * mean_target).mean())


def count_near(counts: Sequence[List[int]], guess: Tensor, labels: Tensor, metres: Tensor) -> None:
    """Add, range by range, how many labelled cells there are, and how many guesses are right within one bin."""
    for count, (lower, upper) in zip(counts, RANGES):
        inside = (labels >= 0) & (metres >= lower) & (metres < upper)
        count[0] += int((((guess - labels).abs() <= 1) & inside).sum())
        count[1] += int(inside.sum())


def shares(counts: Sequence[Sequence[int]]) -> Dict[str, List[float]]:
    """Range -> (share, cells)."""
    names = ['all' if upper > 1e6 else f'{lower:g}-{upper:g} m' for lower, upper in RANGES]
    return {name: [hits / max(1, cells), cells] for name, (hits, cells) in zip(names, counts)}


def draw(model: Any, val: Any, path: Path) -> None:
    """What the student makes of the middle validation frame, as the pictures of a training show it."""
    import cv2

    from geomim.mmengine.pictures import PanelConfig, reconstruction_panel

    (inputs,) = frames(model, [val[len(val) // 2]], 1)
    batch, view = PretrainBatch(**inputs), model.student.config.view_transform
    output = model.run_student(inputs, torch.Generator().manual_seed(MASK_SEED))
    panel = reconstruction_panel(
        output, batch.images, batch.rig, PanelConfig(view.depth_bins, view.stride, view.output_grid)
    )
    with atomic_path(path) as temporary:
        cv2.imwrite(temporary, panel[..., ::-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    parser.add_argument('checkpoint')
    parser.add_argument('--out', type=Path, help='JSON file to write; default: print only')
    parser.add_argument('--max-frames', type=int, default=100, help='of the training and of the validation set')
    parser.add_argument('--picture', type=Path, help='PNG file to write')
    arguments = parser.parse_args()
    config = read_config(arguments)
    with torch.no_grad():
        model = build(config, arguments.checkpoint)
        train, val = datasets(config)
        figures = evaluate(model, train, val, arguments.max_frames)
        if arguments.picture:
            draw(model, val, arguments.picture)
    print(json.dumps(figures, indent=2))
    if arguments.out:
        write_json(arguments.out, figures)


if __name__ == '__main__':
    main()
