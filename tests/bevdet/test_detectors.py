"""Whole detectors at the smallest size: frames, gradients, losses, predictions, and what they refuse.

The reference tensors pin the numbers; here are the properties of every option that they do not use.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

import pytest
import torch
from torch import Tensor

pytest.importorskip('mmdet3d')

from micro_detector import CONFIGS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

import geomim.bevdet  # noqa: F401 - registers every part
from geomim.bevdet.detectors import BEVDet, BEVStereo4D

from ..helpers import HALVES, assert_near_float32

SIZE = (64, 96)
CHANNELS = 4  # of a frame in BEV
FILES = dict(
    BEVDet='bevdet-r50',
    BEVDet4D='bevdet-r50-4d-cbgs',
    BEVDepth4D='bevdet-r50-4d-depth-cbgs',
    BEVStereo4D='bevdet-r50-4d-stereo-cbgs',
)
ALL = tuple(FILES)
TEMPORAL, DEPTH = ALL[1:], ALL[2:]


def small(kind: str, past: int = 1, **changes: Any) -> Dict[str, Any]:
    """A published configuration at the smallest size; the grid is not square."""
    path = CONFIGS / 'finetune' / f'{FILES[kind]}.py'
    model: Dict[str, Any] = Config.fromfile(path, import_custom_modules=False).model.to_dict()
    model.pop('data_preprocessor')
    model.pop('pre_process', None)
    model['img_backbone'].update(depth=18, base_channels=4, with_cp=False, init_cfg=None)
    model['img_neck'].update(in_channels=[16, 32], out_channels=8)
    view = model['img_view_transformer']
    view.update(input_size=SIZE, in_channels=8, out_channels=CHANNELS)
    view['grid_config'].update(x=[-16.0, 16.0, 2.0], y=[-12.0, 12.0, 2.0], depth=[1.0, 17.0, 1.0])
    view.get('depthnet_cfg', {}).update(aspp_mid_channels=4)
    frames = 1 if kind == 'BEVDet' else past + 1
    model['img_bev_encoder_backbone'].update(
        numC_input=CHANNELS * frames, num_layer=[1, 1], num_channels=[8, 16], stride=[2, 2]
    )
    model['img_bev_encoder_neck'].update(in_channels=24, out_channels=8, scale_factor=2, input_feature_index=(0, 1))
    head, train, test = model['pts_bbox_head'], model['train_cfg']['pts'], model['test_cfg']['pts']
    tasks = [dict(num_class=1, class_names=['car']), dict(num_class=2, class_names=['bus', 'cone'])]
    head.update(in_channels=8, share_conv_channel=8, tasks=tasks)
    raster = dict(out_size_factor=2, voxel_size=[1.0, 1.0])
    head['bbox_coder'].update(raster, pc_range=[-16.0, -12.0], max_num=20, score_threshold=0.01)
    train.update(raster, point_cloud_range=[-16.0, -12.0, -5.0, 16.0, 12.0, 3.0], grid_size=[32, 24, 1], max_objs=50)
    test.update(min_radius=[4, 1], nms_type=['rotate', 'circle'], nms_thr=0.2, nms_rescale_factor=[1.0, [0.7, 1.5]])
    test.update(max_per_img=20, pre_max_size=100, post_max_size=20)
    if kind != 'BEVDet':
        model['num_adj'] = past
    return {**model, **changes}


def build(kind: str, past: int = 1, **changes: Any) -> BEVDet:
    torch.manual_seed(4)
    model = MODELS.build(small(kind, past, **changes))
    for value in model.parameters():
        if value.dim() == 1:  # no norm and no bias is left at one or zero
            value.data.add_(0.1 * torch.randn_like(value))
    return model.eval()


@pytest.fixture
def make_inputs(make_rig: Any) -> Any:
    def make(frames: int, batch: int = 1, cams: int = 2, moving: bool = True) -> Dict[str, Tensor]:
        rig = make_rig(batch, cams, SIZE, augmented=True)
        ego = torch.eye(4).repeat(batch, frames, cams, 1, 1)
        if moving:
            ego[..., 0, 3] = 700 - 1.3 * torch.arange(frames)[None, :, None] + 0.1 * torch.arange(cams)
        bev_aug = rig.bev_aug.clone()
        bev_aug[:, :3, 3] = 0
        return dict(
            images=torch.randn(batch, frames, cams, 3, *SIZE),
            cam2ego=rig.cam2bev[:, None].repeat(1, frames, 1, 1, 1),
            ego2global=ego,
            intrinsics=rig.intrinsics[:, None].repeat(1, frames, 1, 1, 1),
            img_aug=rig.img_aug[:, None].repeat(1, frames, 1, 1, 1),
            bev_aug=bev_aug,
            depth_map=15 * torch.rand(batch, cams, *SIZE) * (torch.rand(batch, cams, *SIZE) < 0.05),
        )

    return make


MMDET_FPN = dict(type='mmdet.FPN', in_channels=[16, 32], out_channels=8, num_outs=2)


@pytest.mark.parametrize(
    'part, config',
    [
        ('img_neck', dict(in_channels=[16, 64])),
        ('img_neck', dict(MMDET_FPN, in_channels=[16, 64])),
        ('img_neck', dict(MMDET_FPN, in_channels=[16, 32, 64], num_outs=3)),  # of 2 maps
        ('img_bev_encoder_backbone', dict(numC_input=5)),
        ('img_bev_encoder_neck', dict(in_channels=23)),
    ],
)
def test_a_part_that_is_fed_with_other_maps_is_named(part: str, config: Dict[str, Any], make_inputs: Any) -> None:
    base = {} if 'type' in config else small('BEVDet')[part]
    model = build('BEVDet', **{part: {**base, **config}})
    with pytest.raises(ValueError, match=rf'model.{part} is fed with .* than its config says.*in_channels'):
        model.extract_feat(make_inputs(model.num_frames))


def make_samples(batch: int) -> List[Det3DDataSample]:
    samples = []
    for index in range(batch):
        boxes = torch.tensor([[3.0, 2, -1, 4, 2, 1.5, 0.3, 1, 0], [-6, 5.0 - index, -1, 1, 1, 1, 2.0, 0, 0]])
        sample = Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes))
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=torch.tensor([0, 2])
        )
        samples.append(sample)
    return samples


def without(inputs: Mapping[str, Tensor], *names: str) -> Dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if name not in names}


@pytest.mark.parametrize('kind', ALL)
def test_losses_and_predictions(kind: str, make_inputs: Any) -> None:
    model = build(kind)
    inputs, samples = make_inputs(model.num_frames, batch=2), make_samples(2)
    losses = model(inputs, samples, mode='loss')
    parts = ('xy', 'z', 'whl', 'yaw', 'vel', 'heatmap')
    expected = {f'task{task}.loss_{part}' for task in range(2) for part in parts}
    assert set(losses) == expected | ({'loss_depth'} if kind in DEPTH else set())
    assert all(torch.isfinite(value) and value >= 0 for value in losses.values())
    with torch.no_grad():
        found = model(inputs, samples, mode='predict')
        raw = model(inputs, mode='tensor')
    assert found[0] is samples[0]
    assert len(found[1].pred_instances_3d.bboxes_3d) > 0
    assert len(raw) == 2
    assert raw[0][0]['heatmap'].shape == (2, 1, 12, 16)


@pytest.mark.parametrize('kind', ALL)
@pytest.mark.parametrize('align', [False, True])
def test_float64_stays_all_the_way(kind: str, align: bool, make_inputs: Any) -> None:
    model = build(kind, **({} if kind == 'BEVDet' else dict(align_after_view_transfromation=align)))
    inputs = make_inputs(model.num_frames)
    with torch.no_grad():
        single = model.extract_feat(inputs)
        double = model.double().extract_feat({name: value.double() for name, value in inputs.items()})
    assert double.bev.dtype == double.depth.dtype == torch.float64
    torch.testing.assert_close(single.depth.double(), double.depth, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('kind', ALL)
@pytest.mark.parametrize('align', [False, True])
@pytest.mark.parametrize('dtype', HALVES)
def test_mixed_precision_is_near_float32(dtype: torch.dtype, align: bool, kind: str, make_inputs: Any) -> None:
    """In evaluation: batch statistics of so small a model blow rounding up."""
    model = build(kind, **({} if kind == 'BEVDet' else dict(align_after_view_transfromation=align)))
    inputs, samples = make_inputs(model.num_frames, batch=2), make_samples(2)
    assert_near_float32(lambda: model.loss(inputs, samples), model, dtype)


@pytest.mark.parametrize('kind', ALL)
def test_every_weight_learns(kind: str, make_inputs: Any) -> None:
    model = build(kind).train()
    losses = model.loss(make_inputs(model.num_frames, batch=2), make_samples(2))
    sum(losses.values()).backward()
    silent = [name for name, value in model.named_parameters() if value.grad is None]
    assert silent == []


@pytest.mark.parametrize('kind', TEMPORAL)
@pytest.mark.parametrize('align', [False, True])
def test_only_the_key_frame_gets_a_gradient(kind: str, align: bool, make_inputs: Any) -> None:
    model = build(kind, past=2, align_after_view_transfromation=align)
    inputs = make_inputs(model.num_frames)
    inputs['images'].requires_grad_()
    features = model.extract_feat(inputs)
    features.bev.square().sum().backward()
    by_frame = inputs['images'].grad.abs().sum(dim=(0, 2, 3, 4, 5))
    assert by_frame[0] > 0
    assert by_frame[1:].tolist() == [0] * (model.num_frames - 1)


@pytest.mark.parametrize('kind', TEMPORAL)
def test_every_frame_matters_and_in_its_own_place(kind: str, make_inputs: Any) -> None:
    model = build(kind, past=2)
    inputs = make_inputs(model.num_frames)
    stereo = kind == 'BEVStereo4D'
    order = [2, 1, 0] if stereo else [0, 1, 2]
    with torch.no_grad():
        before = maps_by_frame(model, inputs)
        for frame in range(model.num_frames):
            images = inputs['images'].clone()
            images[:, frame] += torch.randn_like(images[:, frame])
            after = maps_by_frame(model, {**inputs, 'images': images})
            changed = {order[place] for place in range(3) if not torch.equal(before[place], after[place])}
            # stereo: the next newer frame is compared with this one
            assert changed == ({frame, frame - 1} & {0, 1, 2} if stereo else {frame})


def maps_by_frame(model: BEVDet, inputs: Mapping[str, Tensor]) -> List[Tensor]:
    """The maps that stand side by side, in their order."""
    seen: List[Tensor] = []
    handle = model.img_bev_encoder_backbone.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model.extract_feat(inputs)
    handle.remove()
    return list(seen[0].split(CHANNELS, dim=1))


@pytest.mark.parametrize('kind', TEMPORAL)
@pytest.mark.parametrize('align', [False, True])
def test_without_past_frames_zeros_take_their_place(kind: str, align: bool, make_inputs: Any) -> None:
    model = build(kind, past=2, align_after_view_transfromation=align)
    inputs = make_inputs(model.num_frames)
    key = -1 if kind == 'BEVStereo4D' else 0
    with torch.no_grad():
        with_past = maps_by_frame(model, inputs)
        model.with_prev = False
        alone = maps_by_frame(model, inputs)
    assert [bool(value.abs().sum() > 0) for value in with_past] == [True] * 3
    assert sum(bool(value.abs().sum() > 0) for value in alone) == 1
    assert alone[key].abs().sum() > 0
    if kind != 'BEVStereo4D':  # where the key frame is compared with the one before
        assert torch.equal(alone[key], with_past[key])


@pytest.mark.parametrize('kind', TEMPORAL)
def test_at_rest_both_ways_of_alignment_agree(kind: str, make_inputs: Any) -> None:
    before, after = (build(kind, past=2, align_after_view_transfromation=align) for align in (False, True))
    with torch.no_grad():
        for moving in (False, True):
            inputs = make_inputs(before.num_frames, moving=moving)
            first, second = maps_by_frame(before, inputs), maps_by_frame(after, inputs)
            furthest = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(first, second)]
            key = -1 if kind == 'BEVStereo4D' else 0
            assert furthest.pop(key) == 0
            assert (min(furthest) > 0.1) if moving else (max(furthest) < 1e-3)


def test_pre_processing_works_on_each_frame(make_inputs: Any) -> None:
    net = dict(
        type='CustomResNet',
        numC_input=CHANNELS,
        num_layer=[1],
        num_channels=[CHANNELS],
        stride=[1],
        backbone_output_ids=[0],
    )
    model = build('BEVDet4D', past=2, pre_process=net)
    calls: List[Tensor] = []
    model.pre_process_net.register_forward_hook(lambda module, given, output: calls.append(output[0]))
    with torch.no_grad():
        maps = maps_by_frame(model, make_inputs(3))
    assert len(calls) == 3
    assert all(torch.equal(a, b) for a, b in zip(maps, calls))


@pytest.mark.parametrize('kind', ['BEVDet', 'BEVDepth4D'])
def test_accelerated_results_are_equal(kind: str, make_inputs: Any) -> None:
    plain = build(kind)
    view = dict(small(kind)['img_view_transformer'], accelerate=True)
    fast = build(kind, img_view_transformer=view)
    inputs = make_inputs(plain.num_frames)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(fast.extract_feat(inputs).bev, plain.extract_feat(inputs).bev)
    assert len(fast.img_view_transformer.plans) == plain.num_frames


@pytest.mark.parametrize('kind', ALL)
def test_another_number_of_frames(kind: str, make_inputs: Any) -> None:
    model = build(kind, past=2)
    wanted = {'BEVDet': 1, 'BEVStereo4D': 4}.get(kind, 3)
    assert model.num_frames == wanted
    with pytest.raises(ValueError, match=f'{kind} takes {wanted} frames a sample .* got {wanted + 1}'):
        model.extract_feat(make_inputs(wanted + 1))


def test_inputs_that_do_not_fit(make_inputs: Any) -> None:
    model = build('BEVDepth4D')
    inputs = make_inputs(2)
    with pytest.raises(ValueError, match='needs depth_map'):
        model.loss(without(inputs, 'depth_map'), make_samples(1))
    with pytest.raises(ValueError, match='cam2ego missing'):
        model.loss(without(inputs, 'cam2ego'), make_samples(1))
    with pytest.raises(ValueError, match=r'ego2global has shape \(1, 2, 1, 4, 4\)'):
        model.loss({**inputs, 'ego2global': inputs['ego2global'][:, :, :1]}, make_samples(1))
    with pytest.raises(ValueError, match='depth map of'):
        model.loss({**inputs, 'depth_map': inputs['depth_map'][:, :1]}, make_samples(1))
    with pytest.raises(ValueError, match=r'features of \(1, 2, 8, 4, 8\)'):
        model.loss({**inputs, 'images': torch.randn(1, 2, 2, 3, 64, 128)}, make_samples(1))


def test_a_detector_without_a_head_has_features_only(make_inputs: Any) -> None:
    model = build('BEVDet', pts_bbox_head=None)
    assert model.extract_feat(make_inputs(1)).bev.shape == (1, 8, 12, 16)
    with pytest.raises(ValueError, match='without pts_bbox_head'):
        model.predict(make_inputs(1), make_samples(1))


def test_settings_of_detectors_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match='num_adj counts past frames and cannot be -1'):
        build('BEVDet4D', num_adj=-1)
    with pytest.raises(ValueError, match='stage 0'):
        build('BEVStereo4D', img_backbone=small('BEVDet4D')['img_backbone'])
    for weight in (float('nan'), float('inf'), -1.0):
        view = dict(small('BEVDepth4D')['img_view_transformer'], loss_depth_weight=weight)
        with pytest.raises(ValueError, match=f'loss_depth_weight must be a finite number of at least 0, got {weight}'):
            build('BEVDepth4D', img_view_transformer=view)


@pytest.mark.parametrize(
    'part, change',
    [
        ('img_neck', dict(in_channels=[16, 24])),
        (
            'img_neck',
            dict(
                type='FPN_LSS',
                in_channels=40,
                out_channels=8,
                input_feature_index=(0, 1),
                extra_upsample=None,
                scale_factor=2,
            ),
        ),
        ('img_bev_encoder_backbone', dict(numC_input=2 * CHANNELS + 1)),
        ('img_bev_encoder_neck', dict(in_channels=25)),
        ('pts_bbox_head', dict(in_channels=9)),
    ],
)
@pytest.mark.parametrize('kind', ['BEVDet', 'BEVDepth4D'])
def test_channels_that_do_not_fit_name_the_part_of_the_config(
    kind: str, part: str, change: Dict[str, Any], make_inputs: Any
) -> None:
    model = small(kind)
    settings = {**({} if 'type' in change else model[part]), **change}
    model = build(kind, **{part: settings})
    with pytest.raises(ValueError, match=rf'model\.{part} .*expected input.* channels'):
        model(make_inputs(model.num_frames), make_samples(1), mode='loss')


def test_the_head_takes_the_detectors_settings() -> None:
    config = small('BEVDet')
    model = MODELS.build(config)
    assert model.pts_bbox_head.train_cfg == config['train_cfg']['pts']
    assert model.pts_bbox_head.test_cfg == config['test_cfg']['pts']
    assert 'train_cfg' not in config['pts_bbox_head']
    own = dict(config['test_cfg']['pts'], max_per_img=3)
    model = MODELS.build(dict(config, pts_bbox_head=dict(config['pts_bbox_head'], test_cfg=own)))
    assert model.pts_bbox_head.test_cfg['max_per_img'] == 3


def test_stereo_compares_through_the_depth_network_alone(make_inputs: Any) -> None:
    """The oldest frame of BEVStereo has no map of its own."""
    model = build('BEVStereo4D', past=1)
    assert isinstance(model, BEVStereo4D)
    inputs = make_inputs(3)
    images = inputs['images'].clone()
    images[:, 2] += 1
    with torch.no_grad():
        before, after = maps_by_frame(model, inputs), maps_by_frame(model, {**inputs, 'images': images})
    assert len(before) == 2
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
