"""View transformers against loops over cameras, cells and depths; depth bins, labels and losses; plans that are kept."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Callable, List

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip('mmdet3d')

from mmengine.registry import MODELS

from geomim import CameraRig
from geomim.bevdet.view.depth_bins import SpacingIncreasingBins, make_depth_bins
from geomim.bevdet.view.depth_net import DepthNet, camera_numbers
from geomim.bevdet.view.plan_cache import PlanCache
from geomim.bevdet.view.view_transformer import LSSViewTransformer, LSSViewTransformerBEVDepth
from geomim.method.depth import depth_labels

MakeRig = Callable[..., CameraRig]
SIZE, STRIDE, CHANNELS = (32, 48), 16, 3
GRID = dict(x=[-12.0, 12.0, 1.5], y=[-9.0, 9.0, 1.0], z=[-4.0, 4.0, 4.0], depth=[1.0, 13.0, 1.0])  # 16 x 18 x 2 cells


def build(kind: str = 'LSSViewTransformer', **changes: Any) -> LSSViewTransformer:
    options = dict(grid_config=GRID, input_size=SIZE, downsample=STRIDE, in_channels=8, out_channels=CHANNELS)
    return MODELS.build({'type': kind, **options, **changes}).eval()


def small_rig(make_rig: MakeRig, batch: int = 2, cams: int = 3) -> CameraRig:
    return make_rig(batch, cams, SIZE, augmented=True)


def looped_splat(rig: CameraRig, depth: Tensor, context: Tensor, depths: List[float]) -> Tensor:
    """(B, C, Z, Y, X), float64, one point after the other."""
    rig = rig.to(torch.float64)
    cells = torch.zeros(rig.batch_size, CHANNELS, 2, 18, 16, dtype=torch.float64)
    rows, cols = SIZE[0] // STRIDE, SIZE[1] // STRIDE
    for image in range(depth.shape[0]):
        b, n = divmod(image, rig.num_cams)
        augmentation, pose = rig.img_aug[b, n], rig.cam2bev[b, n]
        for row in range(rows):
            for col in range(cols):
                u, v = col * (SIZE[1] - 1) / (cols - 1), row * (SIZE[0] - 1) / (rows - 1)
                moved = torch.tensor([u, v, 1.0], dtype=torch.float64) - augmentation[:3, 3]
                pixel = torch.linalg.inv(augmentation[:3, :3]) @ moved
                for index, metres in enumerate(depths):
                    camera = torch.linalg.inv(rig.intrinsics[b, n]) @ (pixel * metres)
                    key = rig.bev_aug[b] @ pose @ torch.cat([camera, torch.ones(1, dtype=torch.float64)])
                    x = math.trunc((float(key[0]) + 12.0) / 1.5)
                    y = math.trunc((float(key[1]) + 9.0) / 1.0)
                    z = math.trunc((float(key[2]) + 4.0) / 4.0)
                    if 0 <= x < 16 and 0 <= y < 18 and 0 <= z < 2:
                        weight = depth[image, index, row, col].double()
                        cells[b, :, z, y, x] += weight * context[image, :, row, col].double()
    return cells


@pytest.mark.parametrize('sid', [False, True])
def test_cells_are_those_of_a_plain_loop(make_rig: MakeRig, sid: bool) -> None:
    rig = small_rig(make_rig)
    features = torch.randn(2, 3, 8, 2, 3)
    transformer = build(sid=sid, collapse_z=False)
    lifted = transformer(features, rig)
    logits, context = transformer.depth_net(features.flatten(0, 1)).split([12, CHANNELS], dim=1)
    depths = [float(value) for value in transformer.depths]
    expected = looped_splat(rig, logits.softmax(1), context, depths)
    assert torch.count_nonzero(expected[:, :, 0]) > 10 < torch.count_nonzero(expected[:, :, 1])
    torch.testing.assert_close(lifted.bev.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lifted.depth, logits.softmax(1))


def test_collapsed_layers_stand_side_by_side(make_rig: MakeRig) -> None:
    rig, features = small_rig(make_rig), torch.randn(2, 3, 8, 2, 3)
    apart, together = build(collapse_z=False), build(collapse_z=True)
    together.load_state_dict(apart.state_dict())
    volume = apart(features, rig).bev
    assert volume.shape == (2, CHANNELS, 2, 18, 16)
    assert torch.equal(together(features, rig).bev, torch.cat([volume[:, :, 0], volume[:, :, 1]], dim=1))


def test_gradients_reach_features_and_weights(make_rig: MakeRig) -> None:
    features = torch.randn(2, 3, 8, 2, 3, requires_grad=True)
    transformer = build().train()
    transformer(features, small_rig(make_rig)).bev.square().sum().backward()
    assert features.grad.abs().sum() > 0
    assert all(value.grad.abs().sum() > 0 for value in transformer.parameters())


def test_depth_learns_from_bev_features_and_from_labels(make_rig: MakeRig) -> None:
    transformer = build('LSSViewTransformerBEVDepth', depthnet_cfg=dict(use_dcn=False))
    lifted = transformer(torch.randn(2, 3, 8, 2, 3), small_rig(make_rig))
    logits = transformer.depth_net.depth_conv[-1].weight
    labels = transformer.depth_loss(torch.full((2, 3, *SIZE), 4.0), lifted.depth)
    for loss in (lifted.bev.square().sum(), labels):
        (gradient,) = torch.autograd.grad(loss, [logits], retain_graph=True)
        assert gradient.abs().max() > 0


def test_weights_hold_no_constants() -> None:
    assert set(build().state_dict()) == {'depth_net.weight', 'depth_net.bias'}
    assert {name for name, _ in build().named_buffers()} == {'pixels', 'depths', 'lower', 'step'}


def test_a_kept_plan_changes_nothing_and_is_taken_for_the_same_geometry_only(make_rig: MakeRig) -> None:
    rig, features = small_rig(make_rig), torch.randn(2, 3, 8, 2, 3)
    plain, fast = build(), build(accelerate=True)
    fast.load_state_dict(plain.state_dict())
    for _ in range(2):
        assert torch.equal(fast(features, rig).bev, plain(features, rig).bev)
    assert len(fast.plans) == 1
    assert fast.plan(rig) is fast.plan(replace(rig, intrinsics=rig.intrinsics.clone()))
    for name in ('intrinsics', 'cam2bev', 'img_aug', 'bev_aug'):
        changed = getattr(rig, name).clone()
        changed[..., 0, 0] *= 1.1
        other = replace(rig, **{name: changed})
        before = plain(features, other).bev
        assert torch.equal(fast(features, other).bev, before)
        assert not torch.equal(before, plain(features, rig).bev)
    assert len(fast.plans) == fast.plans.capacity == 4


def test_autocast_leaves_geometry_alone(make_rig: MakeRig) -> None:
    rig, transformer = small_rig(make_rig), build()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        cells, lifted = transformer.cell_index(rig), transformer(torch.randn(2, 3, 8, 2, 3), rig)
    assert torch.equal(cells, transformer.cell_index(rig))
    assert lifted.bev.dtype == lifted.depth.dtype == torch.float32


def test_training_keeps_no_plan(make_rig: MakeRig) -> None:
    fast = build(accelerate=True).train()
    fast(torch.randn(2, 3, 8, 2, 3), small_rig(make_rig))
    assert len(fast.plans) == 0


def test_the_plan_asked_for_the_longest_ago_goes_first(make_rig: MakeRig) -> None:
    rigs = [replace(small_rig(make_rig), bev_aug=torch.eye(4).expand(2, 4, 4) * scale) for scale in (1.0, 1.1, 1.2)]
    built: List[float] = []

    def note(rig: CameraRig) -> Any:
        built.append(round(float(rig.bev_aug[0, 0, 0]), 1))
        return built[-1]

    cache = PlanCache(capacity=2)
    for index in (0, 1, 0, 2, 0, 1):
        assert cache.get(rigs[index], note) == [1.0, 1.1, 1.2][index]
    assert built == [1.0, 1.1, 1.2, 1.1]
    with pytest.raises(ValueError, match='at least one'):
        PlanCache(capacity=0)


def test_camera_numbers_in_bevdepths_order(make_rig: MakeRig) -> None:
    rig = small_rig(make_rig)
    numbers = camera_numbers(rig)
    assert numbers.shape == (2, 3, 27)
    k, a, e, p = rig.intrinsics[1, 2], rig.img_aug[1, 2], rig.bev_aug[1], rig.cam2ego[1, 2]
    expected = [k[0, 0], k[1, 1], k[0, 2], k[1, 2], a[0, 0], a[0, 1], a[0, 3], a[1, 0], a[1, 1], a[1, 3]]
    expected += [e[0, 0], e[0, 1], e[1, 0], e[1, 1], e[2, 2], *p[:3].flatten()]
    assert torch.equal(numbers[1, 2], torch.stack(expected))


@pytest.mark.parametrize('use_aspp', [False, True])
def test_deformable_convolution_starts_as_a_plain_one(use_aspp: bool) -> None:
    net = DepthNet(8, 8, CHANNELS, 5, use_dcn=True, use_aspp=use_aspp).eval()
    deformable, last = net.depth_conv[-2], net.depth_conv[-1]
    features, cameras = torch.randn(4, 8, 5, 6), torch.randn(2, 2, 27)
    seen: List[Tensor] = []
    handle = deformable.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    found = net(features, cameras)
    handle.remove()
    plain = F.conv2d(seen[0], deformable.weight, padding=1, groups=4)
    torch.testing.assert_close(found.logits, last(plain))
    assert found.context.shape == (4, CHANNELS, 5, 6)


def test_deformable_convolution_takes_any_number_of_images() -> None:
    layer = DepthNet(4, 4, CHANNELS, 5, use_dcn=True, use_aspp=False).depth_conv[-2]
    torch.nn.init.normal_(layer.conv_offset.weight)
    images = torch.randn(layer.im2col_step + 2, 4, 3, 4, requires_grad=True)
    found = layer(images)
    found[-1].sum().backward()
    torch.testing.assert_close(found, torch.cat([layer(images[:64]), layer(images[64:128]), layer(images[128:])]))
    assert float(images.grad[-1].abs().sum()) > 0
    assert not images.grad[:-1].any()


def test_deformable_convolution_stays_float32_under_autocast() -> None:
    """mmcv has none for bfloat16, and offsets are places."""
    layer = DepthNet(4, 4, CHANNELS, 5, use_dcn=True, use_aspp=False).depth_conv[-2]
    torch.nn.init.normal_(layer.conv_offset.weight)
    images = torch.randn(3, 4, 5, 6).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        found = layer(images)
    assert found.dtype == torch.float32
    assert torch.equal(found, layer(images.float()))


@pytest.mark.parametrize('stereo', [False, True])
def test_recomputing_changes_no_gradient(stereo: bool) -> None:
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(3)
        net = DepthNet(8, 8, CHANNELS, 5, use_dcn=False, use_aspp=False, with_cp=with_cp, stereo=stereo)
        features = torch.randn(4, 8, 4, 6, requires_grad=True)
        cost = torch.rand(4, 5, 16, 24) if stereo else None
        net(features, torch.randn(2, 2, 27), cost).logits.square().sum().backward()
        gradients.append(features.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0


def test_spacing_increasing_bins() -> None:
    bins = make_depth_bins([1.0, 60.0, 1.0], sid=True)
    assert isinstance(bins, SpacingIncreasingBins)
    values = [float(value) for value in bins.values()]
    assert (len(values), values[0]) == (59, 1.0)
    assert values[-1] == pytest.approx(59.0, rel=1e-5)
    ratios = [after / before for before, after in zip(values, values[1:])]
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-5)
    middle = torch.tensor([math.sqrt(a * b) for a, b in zip(values, values[1:])])
    assert bins.position(middle).floor().tolist() == list(range(1, 59))


@pytest.mark.parametrize('sid', [False, True])
def test_depth_labels_take_the_nearest_point_of_a_cell(sid: bool) -> None:
    bins = make_depth_bins(GRID['depth'], sid)
    edges = [float(value) for value in bins.values()]
    maps = torch.zeros(1, 32, 48)
    maps[0, 3, 5], maps[0, 15, 15] = 9.3, 4.2  # cell (0, 0)
    maps[0, 0, 20] = 0.4  # (0, 1): nearer than the first bin
    maps[0, 20, 40] = 500.0  # (1, 2): beyond the last
    maps[0, 31, 0] = edges[7] * 1.001  # (1, 0)
    expected = max(index for index, edge in enumerate(edges) if edge <= 4.2)
    assert depth_labels(maps, bins, STRIDE)[0].tolist() == [[expected, -1, -1], [7, -1, -1]]


def test_depth_loss_is_a_weighted_cross_entropy(make_rig: MakeRig) -> None:
    transformer = build('LSSViewTransformerBEVDepth', loss_depth_weight=0.7, depthnet_cfg=dict(use_dcn=False))
    depth = torch.rand(6, 12, 2, 3).softmax(1)
    maps = torch.zeros(2, 3, *SIZE)
    maps[0, 1, 17, 20], maps[1, 2, 2, 40] = 3.5, 12.5  # image 1 cell (1, 1) bin 2; image 5 cell (0, 2) bin 11
    total = 0.0
    for image, row, col, hit in ((1, 1, 1, 2), (5, 0, 2, 11)):
        target = F.one_hot(torch.tensor(hit), 12).float()
        total += float(F.binary_cross_entropy(depth[image, :, row, col], target, reduction='sum'))
    assert float(transformer.depth_loss(maps, depth)) == pytest.approx(0.7 * total / 2, rel=1e-5)
    assert float(transformer.depth_loss(torch.zeros_like(maps), depth)) == 0
    with pytest.raises(ValueError, match=r'depth map of \(2, 3, 16, 48\)'):
        transformer.depth_loss(maps[:, :, :16], depth)
    with pytest.raises(ValueError, match='6 images'):
        transformer.depth_loss(maps[:, :2], depth)


def test_the_depth_network_is_told_the_camera(make_rig: MakeRig) -> None:
    rig, features = small_rig(make_rig), torch.randn(2, 3, 8, 2, 3)
    transformer = build('LSSViewTransformerBEVDepth', depthnet_cfg=dict(use_dcn=False, aspp_mid_channels=4))
    assert isinstance(transformer, LSSViewTransformerBEVDepth)
    before = transformer(features, rig).depth
    other = rig.cam2ego.clone()
    other[:, 1, 2, 3] += 1.0
    after = transformer(features, replace(rig, cam2ego=other)).depth
    changed = (before - after).abs().amax(dim=(1, 2, 3)) > 0
    assert changed.tolist() == [False, True, False] * 2


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(input_size=(30, 48)), r'input_size \(30, 48\)'),
        (dict(grid_config={**GRID, 'x': [-12.0, 12.0, 1.7]}), 'x_bound'),
        (dict(grid_config={key: value for key, value in GRID.items() if key != 'z'}), "'z'"),
        (dict(grid_config={**GRID, 'depth': [1.0, 60.0]}), 'depth'),
        (dict(grid_config={**GRID, 'depth': [1.0, 2.0, 0.5]}, sid=True), 'spacing-increasing'),
        (dict(type='LSSViewTransformerBEVStereo'), 'stereo=True'),
        (dict(type='LSSViewTransformerBEVStereo', downsample=8, depthnet_cfg=dict(stereo=True)), 'downsample=16'),
    ],
)
def test_settings_that_do_not_fit(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**{'kind': changes.pop('type', 'LSSViewTransformer'), **changes})


@pytest.mark.parametrize('shape', [(2, 2, 8, 2, 3), (1, 3, 8, 2, 3), (2, 3, 7, 2, 3), (2, 3, 8, 3, 2)])
def test_features_that_do_not_fit(make_rig: MakeRig, shape: tuple) -> None:
    with pytest.raises(ValueError, match=r'expected \(B, N, C, h, w\) = \(2, 3, 8, 2, 3\)'):
        build()(torch.zeros(shape), small_rig(make_rig))
