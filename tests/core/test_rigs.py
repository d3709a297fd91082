"""Rigs other than nuScenes': 1 to 12 cameras of any optics, around the vehicle or ahead only, and one model for all of them."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any, Callable, Dict, List, Sequence

import pytest
import torch
from torch import Tensor

from geomim import CameraRig, GeoMIM

Make = Callable[..., Any]


def total(output: Any) -> Tensor:
    return output.reconstruction_loss + output.depth_loss


def in_float64(inputs: Dict[str, Any]) -> Dict[str, Any]:
    return {
        name: value.to(torch.float64) if isinstance(value, (Tensor, CameraRig)) else value
        for name, value in inputs.items()
    }


def reordered(inputs: Dict[str, Any], order: Sequence[int]) -> Dict[str, Any]:
    order = list(order)
    images, depth_map, rig = inputs['images'][:, order], inputs['depth_map'][:, order], inputs['rig'].permuted(order)
    return {**inputs, 'images': images, 'depth_map': depth_map, 'rig': rig}


def selected(inputs: Dict[str, Any], cameras: Sequence[int]) -> Dict[str, Any]:
    """The inputs of some of the cameras."""
    kept, rig = list(cameras), inputs['rig']
    names = ('intrinsics', 'cam2ego', 'cam2lidar', 'img_aug')
    smaller = CameraRig(bev_aug=rig.bev_aug, **{name: getattr(rig, name)[:, kept] for name in names})
    images, depth_map = inputs['images'][:, kept], inputs['depth_map'][:, kept]
    return {**inputs, 'images': images, 'depth_map': depth_map, 'rig': smaller}


def ahead_only(rig: CameraRig, degrees: float = 100.0) -> CameraRig:
    """The same cameras turned about the LiDAR's axis so that they share a sector ahead instead of the whole circle."""
    cam2lidar = rig.cam2lidar.clone()
    for n in range(rig.num_cams):
        now = 2 * math.pi * n / rig.num_cams
        wanted = math.radians(degrees) * ((n + 0.5) / rig.num_cams - 0.5)
        cos, sin = math.cos(wanted - now), math.sin(wanted - now)
        turn = torch.eye(4, dtype=cam2lidar.dtype)
        turn[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]])
        cam2lidar[:, n] = turn @ cam2lidar[:, n]
    return replace(rig, cam2lidar=cam2lidar, cam2ego=rig.cam2ego @ torch.linalg.inv(rig.cam2lidar) @ cam2lidar)


@pytest.fixture
def model(make_config: Make, make_model: Make) -> GeoMIM:
    return make_model(make_config())


@pytest.mark.parametrize('cams', [1, 2, 5, 6, 8, 12])
def test_a_step_trains_every_part_with_any_number_of_cameras(
    make_rig: Make, make_inputs: Make, model: GeoMIM, cams: int
) -> None:
    rig = make_rig(2, cams, augmented=True)
    assert len(set(rig.intrinsics[0, :, 0, 0].tolist())) == cams  # every camera has a focal length of its own
    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        output = model(**make_inputs(model.config, rig))
    total(output).backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert bool(torch.isfinite(value.grad).all()), name
    assert all(depth.shape[0] == 2 * cams for depth in output.depth)


@pytest.mark.parametrize('cams', [2, 5, 6, 8])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('ring', [True, False], ids=['ring', 'ahead only'])
def test_permuting_the_cameras_permutes_the_outputs_and_leaves_loss_and_gradients(
    make_rig: Make, make_inputs: Make, model: GeoMIM, cams: int, training: bool, ring: bool
) -> None:
    """In training too, where the camera gate and the view transformation normalise with the batch's statistics."""
    rig = make_rig(2, cams, augmented=True, dtype=torch.float64)
    rig = rig if ring else ahead_only(rig)
    order: List[int] = torch.randperm(cams, generator=torch.Generator().manual_seed(cams)).tolist()
    order = order if order != sorted(order) else order[::-1]
    inputs = in_float64(make_inputs(model.config, rig))
    model.double().train(training)
    found = []
    for given in (inputs, reordered(inputs, order)):
        model.zero_grad()
        output = model(**given)
        total(output).backward()
        found.append((output, {name: value.grad.clone() for name, value in model.named_parameters()}))
    (straight, gradients), (permuted, others) = found
    for copy, other in zip(straight.depth, permuted.depth):
        copy, other = (depth.view(2, cams, *depth.shape[1:]) for depth in (copy, other))
        torch.testing.assert_close(other, copy[:, order])
        assert not torch.allclose(other, copy)
    for name in ('predictions', 'bev'):
        for copy, other in zip(getattr(straight, name), getattr(permuted, name)):
            torch.testing.assert_close(other, copy)
    for name in ('reconstruction_loss', 'depth_loss'):
        torch.testing.assert_close(getattr(permuted, name), getattr(straight, name))
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-6, atol=1e-9, msg=name)


def test_running_statistics_do_not_know_the_order_either(make_rig: Make, make_inputs: Make, make_model: Make) -> None:
    states = []
    for order in ([0, 1, 2, 3, 4], [3, 0, 4, 1, 2]):
        model = make_model(make_model_config(make_inputs)).double().train()
        inputs = in_float64(make_inputs(model.config, make_rig(2, 5, augmented=True, dtype=torch.float64)))
        model(**reordered(inputs, order))
        states.append({name: value for name, value in model.named_buffers() if 'running' in name})
    assert states[0]
    assert any(name.startswith('decoder.gate') for name in states[0])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, msg=name)
