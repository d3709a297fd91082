"""The linear probe: what it recovers, what it cannot, whose class a cell has, and when there is nothing left to do."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, List, Tuple

import pytest
import torch
from torch import Tensor

pytest.importorskip('mmdet3d')

from geomim import CameraRig

BINS, CLASSES = 6, 4  # the last class is the background
CELLS = (2, 4, 5)  # cameras, rows, columns


@pytest.fixture
def probe(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script('experiments/linear_probe.py')


@pytest.fixture
def frozen(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script('experiments/frozen_encoder.py')


@pytest.fixture
def fits(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script('experiments/linear_fit.py')


# ----------------------------------------------------------------------------------------------------------------- fit


def made_up(frozen: ModuleType, count: int, seed: int, informative: bool) -> List[Any]:
    """Frames whose features tell bin and class, or nothing; a class's share and a bin depend on the place, too."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        bins = torch.randint(BINS, CELLS, generator=draw)
        bins = torch.where(torch.rand(CELLS, generator=draw) < 0.5, torch.full(CELLS, 2), bins)
        classes = torch.randint(CLASSES, CELLS, generator=draw)
        told = torch.cat([torch.eye(BINS)[bins], torch.eye(CLASSES)[classes]], dim=-1)
        noise = torch.randn(*CELLS, told.shape[-1], generator=draw)
        features = 3 * told @ MIX + 0.3 * noise if informative else noise
        bins = torch.where(torch.rand(CELLS, generator=draw) < 0.2, torch.full(CELLS, -1), bins)
        found.append(frozen.Frame(features, bins, bins.clamp(min=0) + 1.0, classes))
    return found


MIX = torch.linalg.qr(torch.randn(BINS + CLASSES, BINS + CLASSES, generator=torch.Generator().manual_seed(0)))[0]
NAMES = ['car', 'bus', 'cone', 'background']


def probed(probe: ModuleType, frozen: ModuleType, informative: bool) -> Tuple[Any, Any]:
    """Figures on unseen frames, and how the penalties were chosen."""
    cells = probe.gather(iter(made_up(frozen, 20, 1, informative)), 1000, BINS, CLASSES, 0)
    assert cells.features.shape == (20 * 40, BINS + CLASSES)
    standard, maps, choices = probe.fit_both(cells, [number % 5 == 0 for number in range(20)], CLASSES)
    seen = iter(made_up(frozen, 20, 2, informative))
    return probe.evaluate(seen, cells, standard, maps, NAMES, 0.5), choices


def test_what_is_separable_is_recovered(probe: ModuleType, frozen: ModuleType) -> None:
    figures, choices = probed(probe, frozen, True)
    depth, classes = figures['depth'], figures['classes']
    assert (
        depth['probe']['within_one_bin']['all'][0] > 0.99 > 0.9 > depth['most_frequent_bin']['within_one_bin']['all'][0]
    )
    assert depth['probe']['mean_absolute_error'] < 0.02 < depth['most_frequent_bin']['mean_absolute_error']
    assert classes['probe']['mean_ap'] > 0.99 > 0.5 > classes['class_frequency']['mean_ap']
    assert classes['probe']['macro_f1'] > 0.98
    assert sum(classes['validation_cells'].values()) == 20 * 40
    assert {choice['penalty'] for choice in choices.values()} == {1e-4}


def test_what_says_nothing_is_no_better_than_not_looking(probe: ModuleType, frozen: ModuleType) -> None:
    figures, _ = probed(probe, frozen, False)
    near = [found['within_one_bin']['all'][0] for found in figures['depth'].values()]
    assert near[0] == pytest.approx(near[1], abs=0.06)
    shares = figures['classes']['validation_cells']
    chance = sum(shares[name] for name in NAMES[:-1]) / 3 / sum(shares.values())
    for kind in ('probe', 'class_frequency'):
        assert figures['classes'][kind]['mean_ap'] == pytest.approx(chance, abs=0.05)


def test_the_fit_is_where_the_gradient_is_zero_and_the_same_again(fits: ModuleType) -> None:
    features, labels = torch.randn(300, 5), torch.randint(3, (300,))
    found = fits.fit(features, labels, 3, 0.1)
    assert all(map(torch.equal, found, fits.fit(features, labels, 3, 0.1)))
    weight, bias = (part.clone().requires_grad_() for part in found)
    loss = torch.nn.functional.cross_entropy(features @ weight + bias, labels) + 0.05 * weight.square().sum()
    assert all(float(grad.abs().max()) < 5e-3 for grad in torch.autograd.grad(loss, (weight, bias)))


def test_the_penalty_is_that_of_the_held_out_cells(fits: ModuleType) -> None:
    """Labels by chance, of few cells: the strongest one; labels by one of few features: a weaker one."""
    draw = torch.Generator().manual_seed(3)
    features, labels = torch.randn(60, 40, generator=draw), torch.randint(2, (60,), generator=draw)
    held = torch.arange(60) < 20
    assert fits.fit_chosen(features, labels, held, 2, 'x')[1]['penalty'] == max(fits.PENALTIES)
    told = fits.fit_chosen(features[:, :3], (features[:, 0] > 0).long(), held, 2, 'x')[1]
    assert told['penalty'] < max(fits.PENALTIES)
    assert told['held_out_loss'][f'{told["penalty"]:g}'] == min(told['held_out_loss'].values())
    none = fits.fit_chosen(features, labels, torch.zeros(60, dtype=torch.bool), 2, 'x')[1]
    assert none == {'penalty': 0.01, 'held_out_loss': {}}


@pytest.mark.parametrize('seed', range(5))
def test_average_precision_and_f1_are_scikit_learns(fits: ModuleType, seed: int) -> None:
    metrics = pytest.importorskip('sklearn.metrics')
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(200, 3, generator=draw)
    scores = scores if seed % 2 else (scores * 4).round()  # with many equal ones
    labels = torch.randint(3, (200,), generator=draw)
    found = fits.sorting_figures(scores, labels, ['a', 'b', 'background'])
    for number, name in enumerate(found['ap']):
        expected = metrics.average_precision_score((labels == number).numpy(), scores[:, number].numpy())
        assert found['ap'][name] == pytest.approx(expected)
    assert list(found['f1'].values()) == pytest.approx(
        list(metrics.f1_score(labels.numpy(), scores.argmax(1).numpy(), average=None))
    )
    assert found['mean_ap'] == pytest.approx((found['ap']['a'] + found['ap']['b']) / 2)


def test_a_feature_that_does_not_vary_counts_for_nothing(fits: ModuleType) -> None:
    features = torch.randn(50, 3)
    features[:, 1] = 7
    apart = fits.Standard.of(features).apply(features + torch.tensor([0.0, 100.0, 0.0]))
    assert torch.equal(apart[:, 1], torch.zeros(50))
    torch.testing.assert_close(apart[:, [0, 2]].std(dim=0, unbiased=False), torch.ones(2))


# -------------------------------------------------------------------------------------------------------------- labels


def boxes_around(draw: torch.Generator, count: int) -> Tensor:
    """Upright boxes on all sides, some of them reaching behind an image plane, none around a camera."""
    turn, radius = torch.rand(2, count, generator=draw)
    turn, radius = turn * 2 * torch.pi, 4 + 16 * radius
    places = torch.stack([radius * turn.cos(), radius * turn.sin(), torch.randn(count, generator=draw) * 0.5], dim=1)
    sizes = 0.5 + 3.5 * torch.rand(count, 3, generator=draw)
    return torch.cat([places, sizes, 6 * torch.rand(count, 1, generator=draw)], dim=1)


def first_box(boxes: Tensor, rig: CameraRig, camera: int, u: float, v: float) -> int:
    """By small steps along the ray of a pixel of the augmented image: the first box that a point lies in, or -1."""
    img_aug, cam2bev = rig.img_aug[0, camera].double(), rig.cam2bev[0, camera].double()
    before = img_aug[:2, :2].inverse() @ (torch.tensor([u, v]).double() - img_aug[:2, 3])
    ray = rig.intrinsics[0, camera].double().inverse() @ torch.cat([before, torch.ones(1).double()])
    start, along = cam2bev[:3, 3].tolist(), (cam2bev[:3, :3] @ ray).tolist()
    for step in range(1, 1300):
        point = [origin + 0.02 * step * slope for origin, slope in zip(start, along)]
        for number, (*centre, length, width, height, yaw) in enumerate(boxes.tolist()):
            x, y, z = (value - middle for value, middle in zip(point, centre))
            own = (math.cos(yaw) * x + math.sin(yaw) * y, math.cos(yaw) * y - math.sin(yaw) * x, z)
            if all(abs(value) <= size / 2 for value, size in zip(own, (length, width, height))):
                return number
    return -1


@pytest.mark.parametrize('augmented', [False, True])
def test_a_cell_has_the_class_of_the_box_that_its_centres_ray_meets_first(
    frozen: ModuleType, make_rig: Callable[..., CameraRig], augmented: bool
) -> None:
    rig = make_rig(cams=2, augmented=augmented)
    draw = torch.Generator().manual_seed(5)
    boxes, labels = boxes_around(draw, 8), torch.randint(10, (8,), generator=draw)
    found = frozen.cell_classes(boxes, labels, rig, 16, (4, 6), 10)
    known = [*labels.tolist(), 10]
    slow = [
        [[known[first_box(boxes, rig, cam, 16 * x + 8, 16 * y + 8)] for x in range(6)] for y in range(4)]
        for cam in (0, 1)
    ]
    assert (found != torch.tensor(slow)).sum() <= 1, 'steps of 2 cm miss an edge'
    assert 0.1 < (found < 10).float().mean() < 0.9
    order = torch.randperm(8, generator=draw)
    assert torch.equal(frozen.cell_classes(boxes[order], labels[order], rig, 16, (4, 6), 10), found)
    mirrored = replace(rig, bev_aug=torch.diag(torch.tensor([-1.0, 1, 1, 1]))[None])
    assert torch.equal(frozen.cell_classes(boxes, labels, mirrored, 16, (4, 6), 10), found)


def test_without_boxes_everything_is_background(frozen: ModuleType, make_rig: Callable[..., CameraRig]) -> None:
    none = frozen.cell_classes(torch.zeros(0, 7), torch.zeros(0).long(), make_rig(cams=2), 16, (4, 6), 10)
    assert torch.equal(none, torch.full((2, 4, 6), 10))


def test_bins_that_were_never_seen_are_the_most_frequent_one(probe: ModuleType) -> None:
    counts = torch.tensor([[[[0, 3, 1], [2, 0, 0], [0, 0, 0], [1, 1, 0]]]])
    assert probe.frequent_bins(counts).tolist() == [[[1, 0, 1, 1]]]


def test_frames_without_labels_are_named(probe: ModuleType, frozen: ModuleType) -> None:
    cells = probe.gather(iter(made_up(frozen, 2, 1, False)), 10, BINS, CLASSES, 0)
    with pytest.raises(ValueError, match='has a LiDAR point within the depth bins'):
        probe.check_labels(cells._replace(bins=torch.full_like(cells.bins, -1)), 'a.pkl')
    nothing = cells.class_counts.clone()
    nothing[..., :-1] = 0
    with pytest.raises(ValueError, match=r'a\.pkl: no cell of the labelled frames shows an annotated object'):
        probe.check_labels(cells._replace(class_counts=nothing), 'a.pkl')


# ------------------------------------------------------------------------------------------------------------ settings


def test_shares_are_nested_and_unknown_scenes_named(probe: ModuleType) -> None:
    scenes = [f'scene-{number:04d}' for number in range(40)]
    few, many = (probe.chosen_scenes(scenes * 2, (), share) for share in (0.1, 0.5))
    assert (len(few), len(many), set(few) - set(many)) == (4, 20, set())
    assert probe.chosen_scenes(scenes, (), 0.001) == probe.chosen_scenes(scenes[::-1], (), 0.001)
    assert probe.chosen_scenes(scenes, ('scene-0003', 'scene-0001', 'scene-0003'), 1.0) == [scenes[1], scenes[3]]
    with pytest.raises(ValueError, match='scene-9 not in the training split, which has scene-0000, '):
        probe.chosen_scenes(scenes, ('scene-9', 'scene-0001'), 1.0)
    with pytest.raises(ValueError, match='must be above 0 and at most 1, got 1.5'):
        probe.chosen_scenes(scenes, (), 1.5)


def test_a_fifth_of_the_scenes_is_held_out(probe: ModuleType) -> None:
    scenes = [f'scene-{number:04d}' for number in range(10)]
    for seed in range(4):
        held = probe.held_out(scenes, seed)
        assert len(held) == 2
        assert held == probe.held_out(scenes[::-1], seed)
        assert set(held) < set(scenes)
    assert len({tuple(probe.held_out(scenes, seed)) for seed in range(4)}) > 1
    assert (len(probe.held_out(scenes[:2], 0)), probe.held_out(scenes[:1], 0)) == (1, [])


# ----------------------------------------------------------------------------------------------------------- the whole


def options(world: Path) -> List[str]:
    found = []
    for loader in ('train', 'val', 'test'):
        dataset = f'{loader}_dataloader.dataset'
        found += [f'{dataset}.data_root={world}/', f'{dataset}.metainfo.version=v1.0-trainval']
    return found


def test_a_finished_result_is_found_again_and_another_one_is_kept(
    probe: ModuleType,
    repository: Path,
    small_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    fits = sys.modules['linear_fit']
    monkeypatch.setattr(fits, 'PENALTIES', (0.1, 0.01))
    monkeypatch.setattr(fits, 'ITERATIONS', 5)
    config = repository / 'configs' / 'mmdet3d' / 'pretrain' / 'geomim_tiny_synthetic.py'
    out = tmp_path / 'probe.json'

    def run(*further: str) -> Any:
        arguments = [
            str(config),
            '--out',
            str(out),
            '--max-cells',
            '2000',
            *further,
            '--cfg-options',
            *options(small_world),
        ]
        monkeypatch.setattr(sys, 'argv', ['linear_probe.py', *arguments])
        probe.main()
        return json.loads(out.read_text())

    figures = run()
    assert (figures['labelled_frames'], figures['validation_frames']) == (4, 2)
    assert len(figures['labelled_scenes']) == 2
    assert len(figures['held_out_scenes']) == 1
    assert figures['depth']['probe']['within_one_bin']['all'][1] > 100
    assert figures['classes']['validation_cells']['car'] > 0
    assert figures['classes']['fitted_cells'] == 2000
    before = out.read_bytes()
    monkeypatch.setattr(probe, 'probe', lambda *_: pytest.fail('it is there'))
    capsys.readouterr()
    assert run() == figures
    assert 'probe.json is there' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='a result of other settings: .*give another --out'):
        run('--seed', '1')
    assert out.read_bytes() == before


def test_another_encoder_is_refused(frozen: ModuleType, tmp_path: Path) -> None:
    from geomim.method.masked_encoder import BackboneSpec

    def network(channels: int) -> Any:
        return torch.nn.Sequential(torch.nn.Conv2d(3, channels, 16, stride=16))

    ours, other = (BackboneSpec(lambda width=width: network(width), 'patches').build() for width in (8, 9))
    path = tmp_path / 'encoder.pth'
    weights = {name: torch.ones_like(value) for name, value in ours.backbone.state_dict().items()}
    torch.save({'state_dict': weights}, path)
    before = frozen.digest_of(ours)
    frozen.load_strictly(ours, path)
    assert frozen.digest_of(ours) != before
    assert all(bool((value == 1).all()) for value in ours.backbone.state_dict().values())
    with pytest.raises(ValueError, match='another architecture'):
        frozen.load_strictly(other, path)
    torch.save({'state_dict': {**weights, 'head.weight': torch.ones(1)}}, path)
    with pytest.raises(ValueError, match=r'missing nothing, without a place head\.weight'):
        frozen.load_strictly(ours, path)


def test_random_weights_are_of_their_seed_and_files_of_the_configuration_stay_closed(
    frozen: ModuleType, repository: Path
) -> None:
    from mmengine.config import Config

    config = Config.fromfile(repository / 'configs' / 'mmdet3d' / 'pretrain' / 'geomim_tiny_synthetic.py')
    config.model.teacher = None
    digests = [frozen.digest_of(frozen.frozen_encoder(config, None, seed).student.encoder) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    start = dict(type='mmdet.ResNet', depth=50, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'))
    assert frozen.without_weights(start) == dict(type='mmdet.ResNet', depth=50)
    random = dict(type='timm', name='resnet18', pretrained=True, init_cfg=[dict(type='TruncNormal')])
    assert frozen.without_weights(random) == dict(type='timm', name='resnet18', init_cfg=[dict(type='TruncNormal')])


def test_hidden_things_and_things_of_no_class_are_no_labels(frozen: ModuleType) -> None:
    import numpy as np
    from mmdet3d.structures import LiDARInstance3DBoxes

    boxes = LiDARInstance3DBoxes(torch.arange(28.0).view(4, 7), origin=(0.5, 0.5, 0.5))
    known = {'gt_bboxes_3d': boxes, 'gt_labels_3d': np.array([3, -1, 5, 7]), 'num_lidar_pts': np.array([1, 9, 0, 4])}
    found, labels = frozen.boxes_of(SimpleNamespace(get_ann_info=lambda number: known), 0)
    assert labels.tolist() == [3, 7]
    torch.testing.assert_close(found, torch.arange(28.0).view(4, 7)[[0, 3]])
