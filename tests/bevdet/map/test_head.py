"""The map head: where it samples, what it loses, and how it stands in a detector."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
import torch
from scipy.ndimage import map_coordinates

pytest.importorskip('mmdet3d')

from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS
from mmengine.structures import PixelData

from geomim.bevdet.map.head import BEVMapSegHead, sample_positions, sigmoid_focal_loss
from geomim.bevdet.map.spec import MapSpec
from geomim.method.grid import BEVGrid

from ...helpers import HALVES, assert_near_float32

BEV = BEVGrid((-8.0, 16.0, 2.0), (-6.0, 6.0, 1.5), axis_order='yx')  # 12 x 8 cells
MAP = dict(x=[-6.0, 15.0, 1.0], y=[-5.0, 5.5, 0.5])


def head(**changes: Any) -> BEVMapSegHead:
    settings: Dict[str, Any] = dict(in_channels=4, bev_grid=BEV, classes=['divider', 'walkway'], map_grid=MAP)
    return BEVMapSegHead(**{**settings, **changes})


def labelled(spec: MapSpec, seed: int = 0) -> Det3DDataSample:
    generator = torch.Generator().manual_seed(seed)
    sample = Det3DDataSample(metainfo=dict(token=f'token{seed}'))
    sample.gt_bev_map = PixelData(metainfo=spec.as_meta(), data=torch.rand(spec.shape, generator=generator) < 0.3)
    return sample


@pytest.mark.parametrize('factor', [1, 2])
def test_features_are_sampled_at_the_cells_of_the_map(factor: int) -> None:
    """A field that is linear in x and y comes out as it is, wherever the features reach; a plain interpolation agrees."""
    model = head()
    model.classifier = torch.nn.Identity()
    grid = BEV if factor == 1 else BEV.downsampled(factor)
    x = grid.x_bound[0] + (torch.arange(grid.num_x) + 0.5) * grid.x_bound[2]
    y = grid.y_bound[0] + (torch.arange(grid.num_y) + 0.5) * grid.y_bound[2]
    bev = torch.zeros(2, 4, grid.num_y, grid.num_x)
    bev[0, 0], bev[1, 1] = x, y[:, None]
    bev[0, 2] = torch.randn(grid.num_y, grid.num_x)
    found = model([bev])
    spec = model.spec
    assert found.shape == (2, 4, spec.grid.num_y, spec.grid.num_x)
    for row in range(spec.grid.num_y):
        for column in range(spec.grid.num_x):
            at_x, at_y = -6 + column + 0.5, -5 + (row + 0.5) * 0.5
            if x[0] <= at_x <= x[-1] and y[0] <= at_y <= y[-1]:
                assert float(found[0, 0, row, column]) == pytest.approx(at_x, abs=1e-4)
                assert float(found[1, 1, row, column]) == pytest.approx(at_y, abs=1e-4)
                place = [[(at_y - float(y[0])) / grid.y_bound[2]], [(at_x - float(x[0])) / grid.x_bound[2]]]
                (wanted,) = map_coordinates(bev[0, 2].numpy(), place, order=1)
                assert float(found[0, 2, row, column]) == pytest.approx(wanted, abs=1e-4)


def test_losses_are_the_plain_formula() -> None:
    model, samples = head(loss_weight=0.7, gamma=1.5), [labelled(head().spec, seed) for seed in range(2)]
    bev = torch.randn(2, 4, 8, 12)
    model.eval()
    logits = model([bev])
    losses = model.loss([bev], samples)
    assert list(losses) == ['map.loss_divider', 'map.loss_walkway']
    for index, value in enumerate(losses.values()):
        terms = []
        for sample, maps in zip(samples, logits):
            for label, logit in zip(sample.gt_bev_map.data[index].flatten().tolist(), maps[index].flatten().tolist()):
                probability = 1 / (1 + math.exp(-logit))
                own = probability if label else 1 - probability
                terms.append(-((1 - own) ** 1.5) * math.log(own))
        assert float(value) == pytest.approx(0.7 * sum(terms) / len(terms), rel=1e-4)


def test_the_loss_bears_certainty() -> None:
    logits = torch.tensor([-200.0, 200.0, -200.0, 200.0], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([0, 1, 1, 0]), 2.0)
    assert float(loss) == pytest.approx(100.0)
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert sigmoid_focal_loss(logits[:2].detach(), torch.tensor([0, 1]), 2.0) == 0


def test_losses_are_float32_whatever_the_features() -> None:
    model = head().to(torch.bfloat16)
    losses = model.loss([torch.randn(1, 4, 8, 12, dtype=torch.bfloat16)], [labelled(model.spec)])
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_predictions_are_probabilities_with_their_description() -> None:
    model = head().eval()
    bev = torch.randn(2, 4, 8, 12)
    found = model.predict([bev], [])
    assert [maps.metainfo for maps in found] == [model.spec.as_meta()] * 2
    assert torch.equal(torch.stack([maps.data for maps in found]), model([bev]).sigmoid())


@pytest.mark.parametrize('dtype', HALVES)
def test_mixed_precision_is_near_float32(dtype: torch.dtype) -> None:
    """Features as a detector's BEV encoder puts them out, on a grid fine enough for its cells to show."""
    wide = BEVGrid((-51.2, 51.2, 0.8), (-51.2, 51.2, 0.8), axis_order='yx')
    model = head(bev_grid=wide, map_grid=dict(x=[-50.0, 50.0, 0.5], y=[-50.0, 50.0, 0.5])).eval()
    bev, samples = torch.randn(2, 4, 128, 128).to(dtype), [labelled(model.spec, seed) for seed in range(2)]

    def losses() -> Dict[str, torch.Tensor]:
        return model.loss([bev if torch.is_autocast_enabled('cpu') else bev.float()], samples)

    assert_near_float32(losses, model, dtype)
    classifier, model.classifier = model.classifier, torch.nn.Identity()
    sampled = model([bev])
    model.classifier = classifier
    assert sampled.dtype == dtype
    x, y = 128 * (model.positions[0].numpy() + 1).transpose(2, 0, 1) / 2 - 0.5
    expected = map_coordinates(bev[1, 3].float().numpy(), [y, x], order=1)
    assert float((sampled[1, 3].float() - torch.from_numpy(expected)).abs().max()) < 0.02


def test_names_of_parameters_are_those_of_bevfusions_head() -> None:
    names = set(head().state_dict())
    assert {name.split('.')[0] for name in names} == {'classifier'}
    assert {name for name in names if name.endswith('weight')} == {
        f'classifier.{layer}.weight' for layer in (0, 1, 3, 4, 6)
    }
    assert 'classifier.6.bias' in names
    assert 'classifier.0.bias' not in names


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(map_grid=dict(x=[-8, 17, 0.5], y=[-6, 6, 0.5])),
            r'x_bound \[-8, 17\] m, the features cover \[-8, 16\] m',
        ),
        (dict(map_grid=dict(x=[-8, 16, 0.5], y=[-7, 6, 0.5])), r'y_bound \[-7, 6\] m'),
        (dict(classes=['lawn']), 'unknown: lawn'),
    ],
)
def test_settings_that_cannot_be(changes: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head(**changes)


def test_inputs_that_do_not_fit() -> None:
    model = head()
    with pytest.raises(ValueError, match='got a tensor'):
        model(torch.zeros(1, 4, 8, 12))
    for shape in ((1, 4, 12, 8), (1, 3, 8, 12)):
        with pytest.raises(ValueError, match=r'expected \(B, 4, Y, X\) over the grid'):
            model([torch.zeros(shape)])
    bev = [torch.zeros(1, 4, 8, 12)]
    with pytest.raises(ValueError, match='sample lost: no gt_bev_map; the pipeline needs LoadBEVMapLabels'):
        model.loss(bev, [Det3DDataSample(metainfo=dict(token='lost'))])
    other = MapSpec.create(['walkway', 'divider'], MAP)
    with pytest.raises(
        ValueError, match=r"sample token0: map labels have classes \('walkway', 'divider'\), the head has"
    ):
        model.loss(bev, [labelled(other)])
    moved = MapSpec.create(['divider', 'walkway'], dict(x=[-7.0, 14.0, 1.0], y=MAP['y']))  # as many cells
    with pytest.raises(ValueError, match=r'x_bound \(-7.0, 14.0, 1.0\)'):
        model.loss(bev, [labelled(moved)])


def test_the_map_of_bevfusion_lies_within_bevdets_features() -> None:
    positions = sample_positions(
        BEVGrid((-51.2, 51.2, 0.8), (-51.2, 51.2, 0.8), axis_order='yx'), MapSpec.create().grid
    )
    assert positions.shape == (1, 200, 200, 2)
    assert float(positions.abs().max()) == pytest.approx(49.75 / 51.2)


def batch(config: Config, world: Path, split: str = 'train') -> Dict[str, Any]:
    dataset = (config.train_dataloader if split == 'train' else config.val_dataloader).dataset
    dataset.update(data_root=f'{world}/')
    dataset.metainfo.update(version='v1.0-trainval')
    for step in dataset.pipeline:
        if step.type == 'LoadBEVMapLabels':
            step.data_root = str(world)
    return pseudo_collate([DATASETS.build(dataset)[1]])


def test_a_map_beside_boxes(bevdet_world: Path, read_config: Callable[[str], Config]) -> None:
    """Losses and predictions of both heads, on labels of one augmented frame."""
    config, boxes = read_config('bevdepth4d_map_tiny_synthetic'), read_config('bevdepth4d_tiny_synthetic')
    config.model.update({key: boxes.model[key] for key in ('pts_bbox_head', 'train_cfg', 'test_cfg')})
    config.model.img_backbone.init_cfg = None
    steps: List[Dict[str, Any]] = list(boxes.train_dataloader.dataset.pipeline)
    config.train_dataloader.dataset.pipeline = [*steps[:-1], config.map_labels, steps[-1]]
    model = MODELS.build(config.model)
    data = model.data_preprocessor(batch(config, bevdet_world), True)
    with torch.no_grad():
        losses = model(**data, mode='loss')
        assert {'loss_depth', 'map.loss_divider', 'task0.loss_heatmap'} <= set(losses)
        raw: Tuple[Any, Any] = model.eval()(**data, mode='tensor')
        assert raw[1].shape == (1, 5, 100, 100)
        (sample,) = model(**data, mode='predict')
    assert sample.pred_bev_map.data.shape == (5, 100, 100)
    assert len(sample.pred_instances_3d.scores_3d) == len(sample.pred_instances_3d.bboxes_3d)
    assert sample.gt_bev_map.data.any()


def test_the_manuals_lines_put_a_map_beside_boxes(
    bevdet_world: Path, tmp_path: Path, repository: Path, build_empty: Callable[[Config], Any]
) -> None:
    text = (repository / 'docs' / 'map_segmentation.md').read_text(encoding='utf-8')
    lines = text.split('```python\n')[1].split('```')[0].replace('path/to/', f'{repository}/')
    (tmp_path / 'mine.py').write_text(lines)
    config = Config.fromfile(tmp_path / 'mine.py', import_custom_modules=False)
    model = build_empty(config)
    assert model.map_head.spec == MapSpec.create()
    assert hasattr(model, 'pts_bbox_head')
    assert [entry.type for entry in config.val_evaluator] == ['EgoNuScenesMetric', 'BEVMapIoU']
    for split in ('train', 'val'):
        data = batch(config, bevdet_world, split)
        sample = data['data_samples'][0]
        assert sample.gt_bev_map.data.shape == model.map_head.spec.shape
        assert sample.metainfo['lidar2key_ego'].shape == (4, 4)
