"""The occupancy detector: its loss against a plain loop, its voxels against mirrored ones, its errors. Equality with the published
implementation is in test_reference.py."""

from __future__ import annotations

import itertools
import math
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip('mmdet3d')

from micro_detector import CONFIGS
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config
from mmengine.structures import BaseDataElement

import geomim.bevdet  # noqa: F401 - registers every part
from geomim.bevdet.occupancy.detector import BEVStereo4DOCC
from geomim.bevdet.occupancy.labels import as_element

from ...helpers import HALVES, assert_near_float32

VOXELS, CLASSES, CHANNELS, IMAGE = (8, 12, 4), 5, 4, (64, 96)


def config(**changes: Any) -> Dict[str, Any]:
    """The tiny detector with 8 x 12 x 4 voxels; x and y differ in number, so that swapped axes show."""
    path = CONFIGS / 'occupancy' / 'bevstereo4docc_tiny_synthetic.py'
    model: Dict[str, Any] = Config.fromfile(path, import_custom_modules=False).model.to_dict()
    model.pop('data_preprocessor')
    model['img_backbone'].update(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=(4, 4, 2, 2))
    model['img_backbone'].update(pretrain_img_size=32, init_cfg=None)
    model['img_neck'].update(in_channels=32 + 64, out_channels=8)
    view = model['img_view_transformer']
    view.update(input_size=IMAGE, in_channels=8, out_channels=CHANNELS, loss_depth_weight=3.0)
    view['grid_config'] = dict(x=[-16, 16, 4.0], y=[-24, 24, 4.0], z=[-1, 5.4, 1.6], depth=[1.0, 25.0, 2.0])
    view['depthnet_cfg'].update(aspp_mid_channels=4)
    model['pre_process'].update(numC_input=CHANNELS, num_channels=[CHANNELS])
    model['img_bev_encoder_backbone'].update(numC_input=CHANNELS * 2, num_channels=[4, 8, 16])
    model['img_bev_encoder_neck'].update(in_channels=28, out_channels=CHANNELS)
    return {**model, 'num_classes': CLASSES, 'out_dim': 6, **changes}


def build(**changes: Any) -> BEVStereo4DOCC:
    return MODELS.build(config(**changes))


@pytest.fixture
def truth() -> Dict[str, Tensor]:
    """Labels of two samples, a third of whose voxels is seen."""
    generator = torch.Generator().manual_seed(4)
    shape = (2, *VOXELS)
    return {
        'semantics': torch.randint(0, CLASSES, shape, generator=generator, dtype=torch.uint8),
        'mask_camera': (torch.rand(shape, generator=generator) < 0.3).to(torch.uint8),
    }


@pytest.fixture
def inputs(make_rig: Callable[..., Any]) -> Dict[str, Tensor]:
    """Two samples of three frames."""
    rig = make_rig(batch=2, cams=3, image_size=IMAGE)
    frames = 3
    cam2ego = rig.cam2ego[:, None].repeat(1, frames, 1, 1, 1)
    ego2global = torch.eye(4).repeat(2, frames, 3, 1, 1)
    ego2global[:, 1, :, 0, 3], ego2global[:, 2, :, 0, 3] = -1.5, -3.0
    return dict(
        images=torch.randn(2, frames, 3, 3, *IMAGE),
        cam2ego=cam2ego,
        ego2global=ego2global,
        intrinsics=rig.intrinsics[:, None].repeat(1, frames, 1, 1, 1),
        img_aug=torch.eye(4).repeat(2, frames, 3, 1, 1),
        bev_aug=torch.eye(4).repeat(2, 1, 1),
        depth_map=torch.rand(2, 3, *IMAGE) * 24,
    )


def samples_of(truth: Dict[str, Tensor]) -> List[Det3DDataSample]:
    samples = []
    for index in range(2):
        sample = Det3DDataSample(metainfo=dict(token=f'token {index}'))
        sample.gt_occupancy = BaseDataElement(**{name: value[index] for name, value in truth.items()})
        samples.append(sample)
    return samples


def plain_loss(logits: Tensor, truth: Dict[str, Tensor], masked: bool, weights: Tuple[float, ...]) -> float:
    """A voxel at a time, in Python's floats."""
    total, count = 0.0, 0
    for index in itertools.product(range(len(logits)), *map(range, VOXELS)):
        if masked and not truth['mask_camera'][index]:
            continue
        row, label = logits[index].tolist(), int(truth['semantics'][index])
        total += weights[label] * (math.log(sum(math.exp(value) for value in row)) - row[label])
        count += 1
    return total / count


@pytest.mark.parametrize('masked', [True, False])
@pytest.mark.parametrize('weights', [(1.0,) * CLASSES, (0.5, 1.0, 3.0, 0.0, 2.0)])
def test_the_loss_is_that_of_a_plain_loop(truth: Dict[str, Tensor], masked: bool, weights: Tuple[float, ...]) -> None:
    loss = dict(type='mmdet.CrossEntropyLoss', class_weight=list(weights), loss_weight=2.0)
    model = build(use_mask=masked, loss_occ=loss)
    logits = torch.randn(2, *VOXELS, CLASSES, requires_grad=True)
    ours = model.occupancy_loss(logits, **truth)
    assert float(ours) == pytest.approx(2 * plain_loss(logits.detach(), truth, masked, weights), rel=1e-5)
    ours.backward()
    moved = logits.grad.abs().sum(-1) > 0
    counts = truth['mask_camera'].bool() if masked else torch.ones(2, *VOXELS, dtype=torch.bool)
    assert torch.equal(moved, counts & (torch.tensor(weights)[truth['semantics'].long()] > 0))


def test_where_no_voxel_is_seen_there_is_nothing_to_learn(truth: Dict[str, Tensor]) -> None:
    logits = torch.randn(2, *VOXELS, CLASSES, requires_grad=True)
    loss = build().occupancy_loss(logits, truth['semantics'], torch.zeros_like(truth['mask_camera']))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_voxels_are_classified_one_by_one(truth: Dict[str, Tensor]) -> None:
    """The predictor alone, on voxels x, y, z of a volume that is z, y, x."""
    model = build().eval()
    volume = torch.randn(2, CHANNELS, *VOXELS[::-1])
    with torch.no_grad():
        logits, inner = model.occupancy_logits(volume), model.final_conv(volume)
        x, y, z = 5, 10, 2
        torch.testing.assert_close(logits[1, x, y, z], model.predicter(inner[1, :, z, y, x]))
    assert logits.shape == (2, *VOXELS, CLASSES)
    bare = build(use_predicter=False)
    assert bare.occupancy_logits(volume).shape == (2, *VOXELS, CLASSES)
    assert bare.predicter is None
    assert bare.final_conv.conv.out_channels == CLASSES


def test_a_step_reaches_every_parameter_and_predictions_are_the_likeliest_classes(
    inputs: Dict[str, Tensor], truth: Dict[str, Tensor]
) -> None:
    model, samples = build(), samples_of(truth)
    losses = model.loss(inputs, samples)
    assert set(losses) == {'loss_depth', 'loss_occ'}
    sum(losses.values()).backward()
    still = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert not still
    model.eval()
    with torch.no_grad():
        logits = model._forward(inputs)
        found = model.predict(inputs, samples)
    for sample, row in zip(found, logits):
        assert sample.pred_occupancy.semantics.dtype == torch.uint8
        assert torch.equal(sample.pred_occupancy.semantics.long(), row.max(dim=-1).indices)


@pytest.mark.parametrize('use_predicter', [True, False])
@pytest.mark.parametrize('dtype', HALVES)
def test_mixed_precision_is_near_float32(
    dtype: torch.dtype, use_predicter: bool, inputs: Dict[str, Tensor], truth: Dict[str, Tensor]
) -> None:
    """In evaluation: batch statistics of so small a model blow rounding up."""
    model, samples = build(use_predicter=use_predicter).eval(), samples_of(truth)
    inputs['depth_map'] *= torch.rand_like(inputs['depth_map']) < 0.02  # a cell's nearest depth lies within the bins
    assert_near_float32(lambda: model.loss(inputs, samples), model, dtype)


@pytest.mark.parametrize(('flip_x', 'flip_y'), [(True, False), (False, True), (True, True)])
def test_the_models_voxels_are_mirrored_as_labels_are(make_rig: Callable[..., Any], flip_x: bool, flip_y: bool) -> None:
    """Depth and context stay; the volume in the order of the labels is that of the mirrored BEV."""
    view = build().img_view_transformer
    rig = make_rig(batch=1, cams=3, image_size=IMAGE)
    cells, bins = (IMAGE[0] // 16, IMAGE[1] // 16), view.depth_bins.count
    depth, context = torch.rand(3, bins, *cells), torch.randn(3, CHANNELS, *cells)
    signs = torch.tensor([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, 1.0, 1.0])
    mirrored = type(rig)(**{**vars(rig), 'bev_aug': torch.diag(signs)[None]})
    before, after = (
        view.splat(depth, context, view.plan(one))[0].permute(0, 3, 2, 1).numpy() for one in (rig, mirrored)
    )
    axes = tuple(1 + axis for axis, flip in enumerate((flip_x, flip_y)) if flip)
    inner = np.s_[:, 1:-1, 1:-1]  # at the border a cell takes in what lies just outside of its lower side
    assert np.abs(before).max() > 1
    np.testing.assert_allclose(after[inner], np.flip(before, axes)[inner], atol=1e-5)
    assert np.abs(after - before).max() > 0.5


def test_labels_that_do_not_fit_are_refused(inputs: Dict[str, Tensor], truth: Dict[str, Tensor]) -> None:
    model = build()
    samples = samples_of(truth)
    del samples[1].gt_occupancy
    with pytest.raises(ValueError, match='sample token 1: no gt_occupancy .* LoadOccupancyLabels'):
        model.loss(inputs, samples)
    turned = {name: value.transpose(1, 2) for name, value in truth.items()}
    message = r"sample token 0: semantics has \(12, 8, 4\) voxels, the model's grid \(8, 12, 4\)"
    with pytest.raises(ValueError, match=message):
        model.loss(inputs, samples_of(turned))
    with pytest.raises(ValueError, match='needs depth_map'):
        model.loss({name: value for name, value in inputs.items() if name != 'depth_map'}, samples_of(truth))


def test_parts_that_do_not_fit_are_refused() -> None:
    flat = config()
    flat['img_view_transformer']['collapse_z'] = True
    with pytest.raises(ValueError, match=r'needs the height: img_view_transformer=dict\(collapse_z=False'):
        MODELS.build(flat)
    for head in ('pts_bbox_head', 'map_head'):
        with pytest.raises(ValueError, match=f'predicts occupancy alone and takes no {head}; set it to None'):
            build(**{head: dict(type='BEVDetCenterHead')})


def test_labels_cross_to_the_model_with_their_sample() -> None:
    labels = {name: np.ones((2, 3, 4), np.uint8) for name in ('semantics', 'mask_lidar', 'mask_camera')}
    sample = Det3DDataSample()
    sample.gt_occupancy = as_element(labels)
    moved = sample.to('meta').to_dict()['gt_occupancy']
    assert {name: (tuple(value.shape), value.device.type) for name, value in moved.items()} == dict.fromkeys(
        labels, ((2, 3, 4), 'meta')
    )
