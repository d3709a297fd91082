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
    names = ('intrinsics', 'cam2ego', 'cam2bev', 'img_aug')
    smaller = CameraRig(bev_aug=rig.bev_aug, **{name: getattr(rig, name)[:, kept] for name in names})
    images, depth_map = inputs['images'][:, kept], inputs['depth_map'][:, kept]
    return {**inputs, 'images': images, 'depth_map': depth_map, 'rig': smaller}


def ahead_only(rig: CameraRig, degrees: float = 100.0) -> CameraRig:
    """The same cameras turned about the LiDAR's axis so that they share a sector ahead instead of the whole circle."""
    cam2bev = rig.cam2bev.clone()
    for n in range(rig.num_cams):
        now = 2 * math.pi * n / rig.num_cams
        wanted = math.radians(degrees) * ((n + 0.5) / rig.num_cams - 0.5)
        cos, sin = math.cos(wanted - now), math.sin(wanted - now)
        turn = torch.eye(4, dtype=cam2bev.dtype)
        turn[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]])
        cam2bev[:, n] = turn @ cam2bev[:, n]
    return replace(rig, cam2bev=cam2bev, cam2ego=rig.cam2ego @ torch.linalg.inv(rig.cam2bev) @ cam2bev)


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
    for name in ('reconstruction_loss', 'depth_loss', 'target'):
        assert getattr(permuted, name).dtype == torch.float64
        torch.testing.assert_close(getattr(permuted, name), getattr(straight, name))
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-6, atol=1e-9, msg=name)


def test_running_statistics_do_not_know_the_order_either(
    make_rig: Make, make_config: Make, make_inputs: Make, make_model: Make
) -> None:
    states = []
    for order in ([0, 1, 2, 3, 4], [3, 0, 4, 1, 2]):
        model = make_model(make_config()).double().train()
        inputs = in_float64(make_inputs(model.config, make_rig(2, 5, augmented=True, dtype=torch.float64)))
        model(**reordered(inputs, order))
        states.append({name: value for name, value in model.named_buffers() if 'running' in name})
    assert states[0]
    assert any(name.startswith('decoder.gate') for name in states[0])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, msg=name)


def test_a_camera_of_other_optics_moves_its_own_rays_only(make_rig: Make, model: GeoMIM) -> None:
    rig = make_rig(1, 5, augmented=True, dtype=torch.float64)
    tele = rig.intrinsics.clone()
    tele[:, 2, :2, :2] *= 3
    other = replace(rig, intrinsics=tele)
    view = model.double().view_transform
    before, after = view.frustum_points(rig), view.frustum_points(other)
    assert torch.equal(before[:, [0, 1, 3, 4]], after[:, [0, 1, 3, 4]])
    assert not torch.allclose(before[:, 2], after[:, 2])
    # the lifted points, seen by the cameras they were lifted from, are the feature cells' pixels and the bins' depths
    homogeneous = torch.cat([after, torch.ones_like(after[..., :1])], -1)
    seen = torch.einsum('bnij,bnhwdj->bnhwdi', other.bev2img, homogeneous)
    pixels = torch.stack([seen[..., 0] / seen[..., 2], seen[..., 1] / seen[..., 2], torch.ones_like(seen[..., 2])], -1)
    augmentation = torch.cat([other.img_aug[..., :2, :2], other.img_aug[..., :2, 3:]], dim=-1)
    pixels = torch.einsum('bnij,bnhwdj->bnhwdi', augmentation, pixels)
    torch.testing.assert_close(pixels, view.pixels[None, None, :, :, None].expand_as(pixels))
    torch.testing.assert_close(seen[..., 2], view.depths.expand_as(seen[..., 2]))


def test_a_camera_of_other_optics_has_a_gate_of_its_own(make_rig: Make, model: GeoMIM) -> None:
    rig = make_rig(1, 4, dtype=torch.float64)
    vectors = rig.camera_vector().flatten(0, 1)
    tele = vectors.clone()
    tele[1, :2] *= 3
    gate, tokens = model.double().decoder.gate, torch.ones(4, 3, model.config.decoder.dim, dtype=torch.float64)
    before, after = gate(tokens, vectors), gate(tokens, tele)
    assert torch.equal(before[[0, 2, 3]], after[[0, 2, 3]])
    assert not torch.allclose(before[1], after[1])


def test_cross_view_attention_reaches_from_end_to_end_of_an_open_rig(
    make_rig: Make, make_inputs: Make, model: GeoMIM
) -> None:
    """No camera is a neighbour: the one at the left end sees the one at the right end as it sees the next."""
    rig = ahead_only(make_rig(1, 4, dtype=torch.float64))
    inputs = in_float64(make_inputs(model.config, rig))
    model.double()

    def decoded(images: Tensor) -> Tensor:
        tokens = model.encode(images.flatten(0, 1), inputs['masks'])
        return model.decode(tokens, rig, inputs['masks'])[1].reshape(2, 4, -1)

    plain = decoded(inputs['images'])
    for changed in range(4):
        images = inputs['images'].clone()
        images[:, changed] = images[:, changed].flip(-1)
        moved = (decoded(images) - plain).abs().amax(-1)
        assert bool((moved > 1e-9).all()), (changed, moved)


def test_cells_that_an_open_rig_does_not_see_stay_empty(make_rig: Make, make_inputs: Make, model: GeoMIM) -> None:
    rig = ahead_only(make_rig(1, 3))
    inputs = make_inputs(model.config, rig)
    tokens = model.encode(inputs['images'].flatten(0, 1), inputs['masks'])
    semantic, geometry = model.decode(tokens, rig, inputs['masks'])
    view = model.view_transform
    depth, context = view.lift(semantic[:3], geometry[:3])
    bev = view.splat(depth, context, view.plan(rig))[0].detach().abs().sum(0)  # (X, Y), x ahead
    half = bev.shape[0] // 2
    assert float(bev[:half].sum()) == 0
    assert float(bev[half:].sum()) > 0
    output = model(**inputs)
    assert bool(torch.isfinite(total(output)))


@pytest.mark.parametrize('cams, image_size', [(5, (64, 96)), (1, (64, 96)), (12, (96, 160))])
def test_weights_of_six_cameras_start_a_rig_of_others(
    make_rig: Make, make_config: Make, make_inputs: Make, make_model: Make, cams: int, image_size: Any
) -> None:
    """Nothing in a checkpoint counts cameras or pixels: it loads strictly, computes, and trains on."""
    six = make_model(make_config()).train()
    six(**make_inputs(six.config, make_rig(2, 6, augmented=True)))
    base = make_config()
    other = GeoMIM(replace(base, view_transform=replace(base.view_transform, image_size=image_size)))
    other.load_state_dict(six.state_dict(), strict=True)
    rig = make_rig(2, cams, image_size=image_size, augmented=True)
    inputs = make_inputs(other.config, rig)
    optimizer = torch.optim.SGD(other.parameters(), lr=1e-2)
    other.train()
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = total(other(**inputs))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_some_cameras_of_a_rig_are_a_rig(make_rig: Make, make_inputs: Make, model: GeoMIM) -> None:
    """At the start, cross-view attention is the identity: a camera's depth does not know how many others there are."""
    for block in [*model.decoder.cross_view, *model.decoder.geometry_cross_view]:
        block.reset_to_identity()
    inputs = make_inputs(model.config, make_rig(1, 6, augmented=True))
    all_of_them = model(**inputs)
    five = model(**selected(inputs, [0, 1, 2, 4, 5]))
    for whole, part in zip(all_of_them.depth, five.depth):
        torch.testing.assert_close(part, whole[[0, 1, 2, 4, 5]])


def test_a_single_camera_wants_two_samples_a_step(make_rig: Make, make_inputs: Make, model: GeoMIM) -> None:
    """Batch statistics of one camera of one sample have no spread, so the gate would learn nothing of the calibration."""
    inputs = make_inputs(model.config, make_rig(1, 1, augmented=True))
    model.train()
    with pytest.warns(UserWarning, match='one camera of one sample: .* take two samples or more'):
        output = model(**inputs)
    assert bool(torch.isfinite(total(output)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model.eval()(**inputs)
