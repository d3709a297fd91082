"""BEVDet's detection head: losses, predictions and configuration, against plain formulas and mmdet3d's parts.

The raster is 12 x 10 cells of 2 m, not square, so that swapped axes show.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any, Dict, List, Tuple

import pytest
import torch
from torch import Tensor

pytest.importorskip('mmdet3d')

from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

from geomim.bevdet.boxes import head as head_module
from geomim.bevdet.boxes.head import BEVDetCenterHead

SIZE_X, SIZE_Y = 12, 10
LOWER = (-12.0, -8.0)
CLASSES = ('car', 'truck', 'bus', 'pedestrian', 'cone')
TASKS = [
    dict(num_class=1, class_names=['car']),
    dict(num_class=2, class_names=['truck', 'bus']),
    dict(num_class=2, class_names=['pedestrian', 'cone']),
]
PARTS = ('xy', 'z', 'whl', 'yaw', 'vel')
BRANCHES = dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2))


def tiny_config(**changes: Any) -> Dict[str, Any]:
    voxel = (0.5, 0.5, 0.2)
    config: Dict[str, Any] = dict(
        type='BEVDetCenterHead',
        in_channels=6,
        tasks=deepcopy(TASKS),
        common_heads=dict(BRANCHES),
        share_conv_channel=4,
        separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3, head_conv=4),
        bbox_coder=dict(
            type='CenterPointBBoxCoder',
            pc_range=list(LOWER),
            post_center_range=[-20.0, -20.0, -10.0, 20.0, 20.0, 10.0],
            max_num=60,
            score_threshold=0.1,
            out_size_factor=4,
            voxel_size=list(voxel[:2]),
            code_size=9,
        ),
        loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'),
        loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=0.25),
        train_cfg=dict(
            point_cloud_range=[*LOWER, -5.0, LOWER[0] + 2 * SIZE_X, LOWER[1] + 2 * SIZE_Y, 3.0],
            grid_size=[4 * SIZE_X, 4 * SIZE_Y, 40],
            voxel_size=list(voxel),
            out_size_factor=4,
            dense_reg=1,
            gaussian_overlap=0.1,
            max_objs=8,
            min_radius=2,
            code_weights=[1.0] * 8 + [0.2, 0.2],
        ),
        test_cfg=dict(
            min_radius=[4, 12, 0.175],
            max_per_img=500,
            pre_max_size=100,
            post_max_size=50,
            nms_thr=0.125,
            nms_type=['rotate', 'circle', 'rotate'],
            nms_rescale_factor=[0.7, [0.4, 0.6], [1.5, 2.5]],
        ),
    )
    config.update(changes)
    return config


def build(**changes: Any) -> BEVDetCenterHead:
    return MODELS.build(tiny_config(**changes))


def task_heads_after_init(**separate_head: Any) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
    """Biases of the heat maps, and the task heads' other weights as they were changed by ``init_weights``."""
    head = build(separate_head=dict(type='SeparateHead', final_kernel=3, head_conv=4, **separate_head))
    before = {name: value.clone() for name, value in head.task_heads.state_dict().items()}
    head.init_weights()
    after = head.task_heads.state_dict()
    biases = {name: after[name] for name in after if name.endswith('heatmap.1.bias')}
    assert len(biases) == len(TASKS)
    return biases, {name: after[name] for name in after if name not in biases and not after[name].equal(before[name])}


@pytest.mark.parametrize('bias', [-2.19, -4.6, 0.0])
def test_heat_maps_begin_at_their_bias(bias: float) -> None:
    biases, others = task_heads_after_init(init_bias=bias)
    for name, value in biases.items():
        assert torch.equal(value, torch.full_like(value, bias)), name
    assert not others


@pytest.mark.parametrize('given', [{}, {'init_bias': None}])
def test_heat_maps_begin_as_torch_draws_them_as_in_the_published_runs(given: Dict[str, Any]) -> None:
    biases, others = task_heads_after_init(**given)
    limit = (4 * 3 * 3) ** -0.5  # of a convolution of 3 x 3 over 4 channels
    assert all(value.abs().max() <= limit and value.abs().min() > 0 for value in biases.values()), biases
    assert not others


def instances(boxes: Tensor, labels: Tensor) -> InstanceData:
    return InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[1]), labels_3d=labels)


def random_instances(count: int, margin: float = 3.0, spread: float = 1.0) -> InstanceData:
    """Boxes in and around the raster, of sizes from a person's to several cells'."""
    extent = torch.tensor([2.0 * SIZE_X, 2.0 * SIZE_Y])
    boxes = torch.randn(count, 9)
    boxes[:, :2] = torch.tensor(LOWER) - margin + torch.rand(count, 2) * (extent + 2 * margin)
    boxes[:, 3:6] = torch.exp(torch.randn(count, 3) * spread + 0.5)
    return instances(boxes, torch.randint(-1, len(CLASSES), (count,)))


def some_of_each() -> List[InstanceData]:
    """Two samples with boxes of all classes."""
    samples = [random_instances(10, margin=-1.0), random_instances(7, margin=-1.0)]
    for sample in samples:
        sample.labels_3d = torch.arange(len(sample.labels_3d)) % len(CLASSES)
    return samples


def data_samples(ground_truth: List[InstanceData]) -> List[Det3DDataSample]:
    samples = []
    for found in ground_truth:
        sample = Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes))
        sample.gt_instances_3d = found
        samples.append(sample)
    return samples


def bev(batch: int = 2) -> Tensor:
    return torch.randn(batch, 6, SIZE_Y, SIZE_X)


# Losses


def plain_losses(
    maps: Any, targets: Any, code_weights: List[float], peaks: List[float], boxes: List[float]
) -> Dict[str, float]:
    """The formulas, a box and a cell at a time, in float64."""
    losses: Dict[str, float] = {}
    bounds = dict(zip(PARTS, ((0, 2), (2, 3), (3, 6), (6, 8), (8, 10))))
    for task, (levels,) in enumerate(maps):
        heatmaps, wanted, indices, masks = (kind[task].double() for kind in targets)
        found = torch.cat([levels[name] for name in BRANCHES], 1).double()
        sums = dict.fromkeys(PARTS, 0.0)
        for sample, slot in masks.nonzero().tolist():
            index = int(indices[sample, slot])
            cell = found[sample, :, index // SIZE_X, index % SIZE_X]
            for part, (low, high) in bounds.items():
                for channel in range(low, high):
                    difference = abs(float(cell[channel] - wanted[sample, slot, channel]))
                    if math.isfinite(difference):
                        sums[part] += difference * code_weights[channel]
        for part, value in sums.items():
            losses[f'task{task}.loss_{part}'] = 0.25 * value / (max(boxes[task], 1e-4) + 1e-4)
        p = levels['heatmap'].double().sigmoid().clamp(1e-4, 1 - 1e-4)
        positive = -(p.log()) * (1 - p) ** 2 * (heatmaps == 1)
        negative = -((1 - p).log()) * p**2 * (1 - heatmaps) ** 4
        losses[f'task{task}.loss_heatmap'] = float((positive + negative).sum() / max(peaks[task], 1.0))
    return losses


def counted(targets: Any) -> Tuple[List[float], List[float]]:
    return [float((maps == 1).sum()) for maps in targets[0]], [float(masks.sum()) for masks in targets[3]]


def test_losses_equal_the_plain_formulas() -> None:
    head, samples = build(), some_of_each()
    samples[0].bboxes_3d.tensor[0, 7:] = math.nan
    samples[1].bboxes_3d.tensor[2, 8] = math.nan
    maps, targets = head([bev()]), head.get_targets(samples)
    for (levels,) in maps:
        levels['heatmap'] = levels['heatmap'] * 30  # here and there beyond the clipping, where float32 has few digits
    losses = head.loss_by_feat(maps, samples)
    wanted = plain_losses(maps, targets, head.train_cfg['code_weights'], *counted(targets))
    assert {name: pytest.approx(value, rel=2e-4) for name, value in wanted.items()} == {
        name: float(value) for name, value in losses.items()
    }
    assert all(value > 0 for value in wanted.values())


def test_averages_are_over_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other of two ranks has 30 peaks and 50 boxes in task 0, and nothing in the others."""
    head, samples = build(), some_of_each()
    maps, targets = head([bev()]), head.get_targets(samples)
    other = torch.zeros(len(TASKS), 2)
    other[0] = torch.tensor([30.0, 50.0])
    calls: List[Tensor] = []

    def reduce_mean(counts: Tensor) -> Tensor:
        calls.append(counts)
        return (counts + other) / 2

    monkeypatch.setattr(head_module, 'reduce_mean', reduce_mean)
    losses = head.loss_by_feat(maps, samples)
    assert len(calls) == 1  # one reduction, which every rank reaches
    peaks, boxes = counted(targets)
    peaks, boxes = (
        [(peaks[0] + 30) / 2, *(n / 2 for n in peaks[1:])],
        [(boxes[0] + 50) / 2, *(n / 2 for n in boxes[1:])],
    )
    wanted = plain_losses(maps, targets, head.train_cfg['code_weights'], peaks, boxes)
    for name, value in wanted.items():
        assert float(losses[name]) == pytest.approx(value, rel=1e-5), name


def test_no_boxes_at_all() -> None:
    head = build()
    empty = [instances(torch.zeros(0, 9), torch.zeros(0, dtype=torch.long)) for _ in range(2)]
    losses = head.loss([bev()], data_samples(empty))
    assert all(float(losses[f'task{task}.loss_{part}']) == 0 for task in range(3) for part in PARTS)
    assert all(float(losses[f'task{task}.loss_heatmap']) > 0 for task in range(3))
    torch.stack(list(losses.values())).sum().backward()
    for name, value in head.named_parameters():
        assert value.grad is not None, f'{name} has no gradient, which stops distributed training'
        assert value.grad.isfinite().all(), name


def test_the_losses_reach_every_parameter() -> None:
    head = build()
    losses = head.loss([bev()], data_samples(some_of_each()))
    torch.stack(list(losses.values())).sum().backward()
    silent = [name for name, value in head.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert silent == []


def test_a_loss_by_part_moves_its_own_branch_only() -> None:
    head = build()
    losses = head.loss([bev()], data_samples(some_of_each()))
    losses['task1.loss_yaw'].backward()
    moved = {
        name.rsplit('.', 2)[0] for name, value in head.named_parameters() if value.grad is not None and value.grad.any()
    }
    assert {name for name in moved if name.startswith('task_heads')} <= {
        'task_heads.1.rot', 'task_heads.1.rot.0', 'task_heads.1.rot.1'
    }  # fmt: skip
    assert any(name.startswith('task_heads.1.rot') for name in moved)


def test_velocities_that_are_no_numbers_neither_count_nor_spoil_the_gradient() -> None:
    head, samples = build(), some_of_each()
    for sample in samples:
        sample.bboxes_3d.tensor[:, 7:] = math.nan
    losses = head.loss([bev()], data_samples(samples))
    assert all(float(losses[f'task{task}.loss_vel']) == 0 for task in range(3))
    torch.stack(list(losses.values())).sum().backward()
    assert all(value.grad.isfinite().all() for value in head.parameters())


def test_half_precision_maps_are_measured_in_float32() -> None:
    head, samples = build(), some_of_each()
    maps = head([bev()])
    halved = [[{name: value.bfloat16() for name, value in levels.items()}] for (levels,) in maps]
    raised = [[{name: value.float() for name, value in levels.items()}] for (levels,) in halved]
    before = halved[0][0]['heatmap'].clone()
    ours, wanted = head.loss_by_feat(halved, samples), head.loss_by_feat(raised, samples)
    for name, value in wanted.items():
        assert ours[name].dtype == torch.float32
        assert torch.equal(ours[name], value)
    assert torch.equal(halved[0][0]['heatmap'], before)  # nothing is edited in place
    (found, _), (same, _) = head.predict_by_feat(halved, [{}, {}]), head.predict_by_feat(raised, [{}, {}])
    assert torch.equal(found.bboxes_3d.tensor, same.bboxes_3d.tensor)


def test_autocast_trains() -> None:
    head = build()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = head.loss([bev()], data_samples(some_of_each()))
    assert {value.dtype for value in losses.values()} == {torch.float32}
    torch.stack(list(losses.values())).sum().backward()
    assert all(value.grad.isfinite().all() for value in head.parameters())


def test_a_raster_that_is_not_the_configured_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r'heat maps are \(2, 1, 12, 10\).*\(2, 1, 10, 12\)'):
        build().loss([bev().transpose(2, 3)], data_samples(some_of_each()))


@pytest.mark.parametrize('levels', [0, 2])
def test_one_level_only(levels: int) -> None:
    with pytest.raises(ValueError, match=f'one BEV map, got {levels} levels'):
        build()([bev()] * levels)


# Predictions


def maps_of(targets: Any) -> List[List[Dict[str, Tensor]]]:
    """Maps that say what the targets want, peaks alone."""
    maps = []
    for heatmaps, boxes, indices, masks in zip(*targets):
        batch = len(heatmaps)
        values = torch.zeros(batch, 10, SIZE_Y * SIZE_X)
        for sample, slot in masks.nonzero().tolist():
            values[sample, :, indices[sample, slot]] = boxes[sample, slot]
        split = values.view(batch, 10, SIZE_Y, SIZE_X).split([2, 1, 3, 2, 2], 1)
        level = dict(zip(BRANCHES, split))
        level['heatmap'] = torch.where(heatmaps == 1, 3.0, -8.0)
        maps.append([level])
    return maps


def test_predictions_invert_the_targets() -> None:
    """Boxes in cells of their own come back: bottom at the ground truth's, labels counted through the tasks."""
    head = build()
    cells = torch.tensor([[1.3, 1.8], [9.6, 2.1], [5.5, 8.4], [2.2, 6.9], [10.7, 7.5]])
    boxes = torch.randn(5, 9)
    boxes[:, :2] = cells * 2 + torch.tensor(LOWER)
    boxes[:, 3:6] = torch.rand(5, 3) + 0.5
    labels = torch.tensor([4, 2, 0, 3, 1])
    targets = head.get_targets([instances(boxes, labels), instances(boxes[:2] + 0.1, labels[:2])])
    first, second = head.predict_by_feat(maps_of(targets), [{}, {}])
    order = first.labels_3d.long().argsort()
    assert first.labels_3d[order].tolist() == [0, 1, 2, 3, 4]
    assert isinstance(first.bboxes_3d, LiDARInstance3DBoxes)
    torch.testing.assert_close(first.bboxes_3d.tensor[order], boxes[labels.argsort()], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first.scores_3d, torch.full((5,), 1 / (1 + math.exp(-3))))
    assert sorted(second.labels_3d.tolist()) == [2, 4]


@pytest.mark.parametrize('height', [-10.5, 9.5, 10.5])
def test_centres_out_of_range_are_left_out(height: float) -> None:
    head = build()
    box = torch.tensor([[3.0, -2.0, height - 0.75, 4.0, 2.0, 1.5, 0.6, 3.0, -2.0]])
    (found,) = head.predict_by_feat(maps_of(head.get_targets([instances(box, torch.tensor([2]))])), [{}])
    assert len(found.scores_3d) == (1 if abs(height) < 10 else 0)


def test_predictions_equal_mmdet3d_coder_and_suppression() -> None:
    """Boxes as large as several cells, so that most are suppressed, with the factors where and only where they belong."""
    from mmdet3d.models.layers import circle_nms, nms_bev
    from mmdet3d.structures import xywhr2xyxyr

    head = build().eval()
    with torch.no_grad():
        for task in head.task_heads:
            task.dim[-1].bias += torch.tensor([1.2, 0.8, 0.5])
            task.heatmap[-1].bias += 1.5
        maps = head([bev()])
        found = head.predict_by_feat(maps, [{}, {}])
    first_label, suppressed = 0, 0
    for task, (level,) in enumerate(maps):
        sine, cosine = level['rot'].split(1, 1)
        decoded = head.bbox_coder.decode(
            level['heatmap'].sigmoid(), sine, cosine, level['height'], level['dim'].exp(), level['vel'], level['reg']
        )
        for sample, candidates in enumerate(decoded):
            boxes, scores, labels = (candidates[name] for name in ('bboxes', 'scores', 'labels'))
            if task == 1:
                places = torch.cat([boxes[:, :2], scores[:, None]], 1).numpy()
                kept = circle_nms(places, head.test_cfg['min_radius'][task], 50)
            else:
                factors = torch.tensor([[0.7], [], [1.5, 2.5]][task])[labels.long()]
                planar = boxes[:, [0, 1, 3, 4, 6]] * torch.stack([factors**power for power in (0, 0, 1, 1, 0)], 1)
                kept = nms_bev(xywhr2xyxyr(planar), scores, 0.125, 100, 50).tolist()
            wanted = boxes[list(kept)]
            wanted[:, 2] -= wanted[:, 5] / 2
            of_task = (found[sample].labels_3d >= first_label) & (
                found[sample].labels_3d < first_label + head.num_classes[task]
            )
            torch.testing.assert_close(found[sample].bboxes_3d.tensor[of_task], wanted, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found[sample].scores_3d[of_task], scores[list(kept)])
            assert found[sample].labels_3d[of_task].tolist() == (labels[list(kept)] + first_label).tolist()
            suppressed += len(boxes) - len(kept)
        first_label += head.num_classes[task]
    assert suppressed > 50


def test_mmdet3d_exports_the_predictions_to_nuscenes_boxes() -> None:
    pytest.importorskip('nuscenes')
    from mmdet3d.evaluation.metrics.nuscenes_metric import output_to_nusc_box

    head = build()
    box = torch.tensor([[3.0, -2.0, -1.0, 4.0, 2.0, 1.5, 0.6, 3.0, -2.0]])
    targets = head.get_targets([instances(box, torch.tensor([2]))])
    (found,) = head.predict_by_feat(maps_of(targets), [dict(box_type_3d=LiDARInstance3DBoxes)])
    (exported,), _ = output_to_nusc_box(found.to_dict())
    assert exported.center.tolist() == pytest.approx([3.0, -2.0, -0.25], abs=1e-4)
    assert exported.wlh.tolist() == pytest.approx([2.0, 4.0, 1.5], abs=1e-4)
    assert exported.orientation.yaw_pitch_roll[0] == pytest.approx(0.6, abs=1e-4)
    assert list(exported.velocity[:2]) == pytest.approx([3.0, -2.0], abs=1e-4)
    assert int(exported.label) == 2


def test_predict_takes_data_samples_and_keeps_the_most_wanted() -> None:
    features, samples = bev(), data_samples(some_of_each())
    head = build().eval()
    with torch.no_grad():
        head.task_heads[0].heatmap[-1].bias += 3
        everything = head.predict([features], samples)
        head.test_cfg['max_per_img'] = 7
        best = head.predict([features], samples)
    for all_boxes, few in zip(everything, best):
        assert len(all_boxes.scores_3d) > 7 == len(few.scores_3d)
        assert few.scores_3d.sort().values.tolist() == all_boxes.scores_3d.sort().values[-7:].tolist()
        assert few.bboxes_3d.tensor.shape == (7, 9)


def test_nothing_found() -> None:
    head = build().eval()
    with torch.no_grad():
        for task in head.task_heads:
            task.heatmap[-1].bias -= 50
        found = head.predict([bev(1)], data_samples(some_of_each())[:1])
    assert found[0].bboxes_3d.tensor.shape == (0, 9)
    assert found[0].labels_3d.shape == found[0].scores_3d.shape == (0,)


def test_more_candidates_than_cells() -> None:
    config = tiny_config()
    config['bbox_coder'].update(max_num=5000, score_threshold=None)
    head = MODELS.build(config).eval()
    with torch.no_grad():
        (maps, *_) = head([bev(1)])[1]
    (found,) = head.decoder.decode(maps)
    assert len(found.scores) == 2 * SIZE_X * SIZE_Y
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)


@pytest.mark.parametrize('norm_bbox', [True, False])
def test_without_velocity(norm_bbox: bool) -> None:
    config = tiny_config(norm_bbox=norm_bbox)
    del config['common_heads']['vel']
    config['bbox_coder']['code_size'] = 7
    config['train_cfg']['code_weights'] = [1.0] * 8
    head = MODELS.build(config)
    assert not head.with_velocity
    samples = [random_instances(9) for _ in range(2)]
    for sample in samples:
        sample.bboxes_3d = LiDARInstance3DBoxes(sample.bboxes_3d.tensor[:, :7])
    losses = head.loss([bev()], data_samples(samples))
    assert sorted(losses) == sorted(f'task{t}.loss_{p}' for t in range(3) for p in (*PARTS[:4], 'heatmap'))
    with torch.no_grad():
        found = head.predict([bev()], data_samples(samples))
    assert found[0].bboxes_3d.tensor.shape[1] == 7


# Configuration


def test_building_leaves_the_configuration_alone() -> None:
    config = tiny_config()
    before = deepcopy(config)
    MODELS.build(config)
    assert config == before


def test_defaults_build_without_training_or_testing_settings() -> None:
    config = tiny_config(train_cfg=None, test_cfg=None)
    for name in ('loss_cls', 'loss_bbox', 'separate_head'):
        del config[name]
    head = MODELS.build(config)
    maps = head([bev()])
    with pytest.raises(ValueError, match='without train_cfg'):
        head.loss_by_feat(maps, some_of_each())
    with pytest.raises(ValueError, match='without test_cfg'):
        head.predict_by_feat(maps, [{}, {}])


@pytest.mark.parametrize(
    'path, value, message',
    [
        (('tasks',), [], 'tasks is empty'),
        (('tasks',), [dict(num_class=1)], 'no class_names'),
        (('tasks', 1, 'num_class'), 3, 'task 1 has num_class 3 and 2 class_names'),
        (('tasks', 1, 'class_names'), ['car', 'bus'], 'car comes up more than once'),
        (('common_heads',), dict(reg=(2, 2)), 'common_heads must be reg, height, dim, rot, vel'),
        (('common_heads', 'iou'), (1, 2), 'common_heads must be'),
        (('common_heads', 'rot'), (1, 2), 'common_heads.rot must have 2 channels, got 1'),
        (('test_cfg', 'nms_type'), ['rotate'], 'nms_type has 1 entries for 3 tasks'),
        (('test_cfg', 'nms_rescale_factor'), [1.0, [1.0], 1.0], 'nms_rescale_factor of task 1'),
        (('train_cfg', 'code_weights'), [1.0] * 8, 'code_weights must have 10 numbers'),
        (('train_cfg', 'grid_size'), [47, 40, 1], 'no multiple of out_size_factor 4'),
        (('train_cfg', 'voxel_size'), [0.25, 0.5, 0.2], 'voxel_size is .*0.25.* they must agree'),
        (('bbox_coder', 'pc_range'), [0.0, 0.0], 'lower is .* they must agree'),
        (('bbox_coder', 'code_size'), 7, 'code_size must be 9, got 7'),
        (('loss_bbox', 'reduction'), 'none', "loss_bbox must have reduction='mean'"),
    ],
)
def test_settings_that_do_not_fit(path: Tuple[Any, ...], value: Any, message: str) -> None:
    config: Any = tiny_config()
    place = config
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        MODELS.build(config)


def test_a_missing_training_setting_is_named() -> None:
    config = tiny_config()
    del config['train_cfg']['gaussian_overlap']
    with pytest.raises(ValueError, match='train_cfg lacks gaussian_overlap'):
        MODELS.build(config)
