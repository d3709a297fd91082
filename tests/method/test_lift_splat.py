"""Where things land in BEV, checked with cameras and objects whose place is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Callable, List, Optional, Tuple

import pytest
import torch
from torch import Tensor, nn

from geomim import BEVGrid, CameraRig, DepthBins, ViewTransform, ViewTransformConfig
from geomim.method.depth import depth_labels, depth_maps

MakeRig = Callable[..., CameraRig]
# Not square and not symmetric; its borders miss the round numbers at which the cameras below put their points.
GRID = BEVGrid((-12.4, 11.6, 1.5), (-9.7, 8.3, 1.5))
CONFIG = ViewTransformConfig((64, 96), GRID, DepthBins(1.0, 11.0, 1.0), channels=3, downsample=1)


def view_transform(config: ViewTransformConfig = CONFIG) -> ViewTransform:
    return ViewTransform(4, config).eval()


def forward_camera(bev_aug: Optional[Tensor] = None) -> CameraRig:
    """At the LiDAR's origin, along +x; image right is -y, down is -z; focal length 32, centre (38, 21) pixels."""
    cam2bev = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])[None, None]
    intrinsics = torch.tensor([[32.0, 0, 38], [0, 32, 21], [0, 0, 1]])[None, None]
    return CameraRig.create(intrinsics, cam2bev, cam2bev, bev_aug=None if bev_aug is None else bev_aug[None])


def cell_of(x: float, y: float, grid: BEVGrid = GRID) -> Tuple[int, int]:
    """Index on the two axes of a map in the grid's order; written for points well inside."""
    i = int(math.floor((x - grid.x_bound[0]) / grid.x_bound[2]))
    j = int(math.floor((y - grid.y_bound[0]) / grid.y_bound[2]))
    return (i, j) if grid.axis_order == 'xy' else (j, i)


def lit_cells(layer: ViewTransform, rig: CameraRig, image: int, row: int, col: int, depth_bin: int) -> List[List[int]]:
    """(b, first, second) of the cells that light up when one feature cell is certain of one depth."""
    config = layer.config
    images = rig.batch_size * rig.num_cams
    depth = torch.zeros(images, config.depth_bins.count, *config.feature_size)
    depth[image, depth_bin, row, col] = 1
    context = torch.zeros(images, config.channels, *config.feature_size)
    context[image, :, row, col] = torch.tensor([1.0, -2.0, 3.0])
    bev = layer.splat(depth, context, layer.plan(rig))
    assert tuple(bev.shape) == (rig.batch_size, config.channels, *config.grid.shape)
    lit = bev.abs().sum(1).nonzero().tolist()
    for b, i, j in lit:
        assert bev[b, :, i, j].tolist() == [1.0, -2.0, 3.0]
    return lit


def turned(config: ViewTransformConfig = CONFIG) -> ViewTransformConfig:
    return replace(config, grid=replace(config.grid, axis_order='yx'))


@pytest.mark.parametrize('config', [CONFIG, turned()], ids=['xy', 'yx'])
def test_a_pixel_at_a_known_depth_lands_in_the_known_cell(config: ViewTransformConfig) -> None:
    layer, rig = view_transform(config), forward_camera()
    # columns of features look at pixels 0, 19, 38, 57, 76, 95, rows at 0, 21, 42, 63
    for col, slope in ((1, 19 / 32), (2, 0.0), (3, -19 / 32)):
        for depth_bin in range(10):
            x = 1.0 + depth_bin
            assert lit_cells(layer, rig, 0, 1, col, depth_bin) == [[0, *cell_of(x, slope * x, config.grid)]]


def test_frustum_points_of_the_known_camera() -> None:
    points = view_transform().frustum_points(forward_camera())
    assert points.shape == (1, 1, 4, 6, 10, 3)
    torch.testing.assert_close(points[0, 0, 1, 2, 4], torch.tensor([5.0, 0.0, 0.0]))
    torch.testing.assert_close(points[0, 0, 2, 2, 0], torch.tensor([1.0, 0.0, -21 / 32]))
    torch.testing.assert_close(points[0, 0, 1, 0, 1], torch.tensor([2.0, 2 * 38 / 32, 0.0]))


def test_orders_are_transposes_of_each_other(make_rig: MakeRig) -> None:
    rig = make_rig(batch=2, cams=3, augmented=True)
    depth, context = torch.rand(6, 10, 4, 6), torch.randn(6, 3, 4, 6)
    straight, other = view_transform(), view_transform(turned())
    xy = straight.splat(depth, context, straight.plan(rig))
    yx = other.splat(depth, context, other.plan(rig))
    assert tuple(xy.shape) == (2, 3, 16, 12)
    assert float(xy.abs().max()) > 0
    torch.testing.assert_close(yx, xy.transpose(2, 3))


@pytest.mark.parametrize('flip_x', [1.0, -1.0])
@pytest.mark.parametrize('flip_y', [1.0, -1.0])
@pytest.mark.parametrize('config', [CONFIG, turned()], ids=['xy', 'yx'])
def test_flips_move_the_cell(config: ViewTransformConfig, flip_x: float, flip_y: float) -> None:
    layer, bev_aug = view_transform(config), torch.diag(torch.tensor([flip_x, flip_y, 1.0, 1.0]))
    for depth_bin in (1, 4, 8):
        x = 1.0 + depth_bin
        y = -19 / 32 * x
        expected = [[0, *cell_of(flip_x * x, flip_y * y, config.grid)]]
        assert lit_cells(layer, forward_camera(bev_aug), 0, 1, 3, depth_bin) == expected


def test_translation_and_rotation_of_the_bev_move_the_cell() -> None:
    bev_aug = torch.tensor([[0.0, -1, 0, 2], [1, 0, 0, -1], [0, 0, 1, 0], [0, 0, 0, 1]])  # a quarter turn, then a shift
    x, y = 4.0, -19 / 32 * 4
    assert lit_cells(view_transform(), forward_camera(bev_aug), 0, 1, 3, 3) == [[0, *cell_of(-y + 2, x - 1)]]


def test_cells_are_truncated_not_floored() -> None:
    """A point less than a cell below the border counts as inside, one further below does not (as published)."""
    for lower, expected in ((5.0, 0), (6.4, 0), (6.6, None)):
        grid = BEVGrid((lower, lower + 6, 1.5), GRID.y_bound)
        layer = view_transform(replace(CONFIG, grid=grid))
        lit = lit_cells(layer, forward_camera(), 0, 1, 2, 4)  # x = 5 m
        assert lit == ([[0, expected, 6]] if expected is not None else [])


def test_autocast_leaves_geometry_alone(make_rig: MakeRig) -> None:
    config = ViewTransformConfig(image_size=(64, 96))
    view, rig = ViewTransform(8, config), make_rig(2, 3, augmented=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        points = view.frustum_points(rig)
    assert torch.equal(points, view.frustum_points(rig))


def test_height_limits_count() -> None:
    low = replace(CONFIG, grid=replace(GRID, z_bound=(-10.0, 0.5, 10.5)))
    assert lit_cells(view_transform(low), forward_camera(), 0, 0, 2, 9) == []  # 10 m ahead, 6.6 m up
    assert lit_cells(view_transform(low), forward_camera(), 0, 2, 2, 9) == [[0, *cell_of(10, 0)]]


@pytest.mark.parametrize('config', [CONFIG, turned()], ids=['xy', 'yx'])
@pytest.mark.parametrize('augmented', [False, True])
def test_an_object_in_an_empty_scene_lights_the_cell_of_its_place(
    make_rig: MakeRig, config: ViewTransformConfig, augmented: bool
) -> None:
    """World -> depth map -> label of its feature cell -> splat -> the cell of its x and y."""
    batch, cams = 2, 5
    rig, layer = make_rig(batch, cams, augmented=augmented), view_transform(config)
    generator = torch.Generator().manual_seed(5)
    hits, grid = 0, config.grid
    for _ in range(50):
        sample, n, row, col, depth_bin = (
            int(torch.randint(limit, (), generator=generator)) for limit in (batch, cams, 4, 6, 10)
        )
        pixel = torch.tensor([[col * 19.0 + 1e-3, row * 21.0 + 1e-3]])
        a, pose = rig.img_aug[sample, n], rig.cam2bev[sample, n]
        raw = torch.linalg.solve(a[:2, :2], (pixel - a[:2, 3]).t())[:, 0]
        depth = depth_bin + 1.002
        ray = torch.linalg.solve(rig.intrinsics[sample, n], torch.cat([raw, torch.ones(1)]))
        lidar = pose[:3, :3] @ (ray * depth) + pose[:3, 3]
        place = rig.bev_aug[sample, :3, :3] @ lidar + rig.bev_aug[sample, :3, 3]
        fractions = [((place[k] - bound[0]) / bound[2]).item() for k, bound in enumerate((grid.x_bound, grid.y_bound))]
        inside = 0 < fractions[0] < grid.num_x and 0 < fractions[1] < grid.num_y and abs(float(place[2])) < 9
        if not inside or any(abs(f - round(f)) < 0.02 for f in fractions):
            continue
        clouds = [place[None] if b == sample else torch.full((1, 3), 1e4) for b in range(batch)]
        maps = depth_maps(clouds, rig, config.image_size)
        labels = depth_labels(maps, config.depth_bins, config.stride)
        assert int(labels[sample, n, row, col]) == depth_bin
        lit = lit_cells(layer, rig, sample * cams + n, row, col, depth_bin)
        assert lit == [[sample, *cell_of(float(place[0]), float(place[1]), grid)]]
        hits += 1
    assert hits > 12


def test_depth_is_a_distribution_and_context_is_free(randomise_parameters: Callable[[nn.Module], None]) -> None:
    layer = view_transform()
    randomise_parameters(layer)
    depth, context = layer.lift(torch.randn(2, 4, 4, 6), torch.randn(2, 4, 4, 6))
    assert depth.shape == (2, 10, 4, 6)
    assert context.shape == (2, 3, 4, 6)
    assert depth.dtype == torch.float32
    torch.testing.assert_close(depth.sum(1), torch.ones(2, 4, 6))


def test_geometry_comes_before_semantic_in_the_concatenation(randomise_parameters: Callable[[nn.Module], None]) -> None:
    layer = view_transform()
    randomise_parameters(layer)
    semantic, geometry = torch.randn(2, 4, 4, 6), torch.randn(2, 4, 4, 6)
    lifted = layer.depth_net(torch.cat([geometry, semantic], 1))
    depth, context = layer.lift(semantic, geometry)
    torch.testing.assert_close(depth, lifted[:, :10].softmax(1))
    torch.testing.assert_close(context, lifted[:, 10:])


def test_downsampling_halves_the_map(make_rig: MakeRig) -> None:
    config = replace(CONFIG, downsample=2)
    layer, rig = view_transform(config), make_rig(cams=2)
    output = layer(torch.randn(2, 4, 4, 6), torch.randn(2, 4, 4, 6), layer.plan(rig))
    assert tuple(output.bev.shape) == (1, 3, 8, 6)
    assert config.output_grid.shape == (8, 6)
    assert all(value.bias is None for value in layer.downsample if isinstance(value, nn.Conv2d))


def test_constants_are_not_stored() -> None:
    assert not {'pixels', 'depths', 'lower', 'step'} & set(view_transform().state_dict())


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'downsample': 3}, 'must be 1 or 2, got 3'),
        ({'image_size': (64, 90)}, r'\(64, 90\) .* no multiple of the stride 16'),
        (
            {'downsample': 2, 'grid': BEVGrid((0.0, 3.0, 1.0), (0.0, 4.0, 1.0))},
            '3 x 4 cells cannot be downsampled by 2',
        ),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_features_of_another_size_and_several_heights_are_refused() -> None:
    with pytest.raises(ValueError, match=r'feature maps of \(4, 5\) cells, expected \(4, 6\)'):
        view_transform().lift(torch.zeros(1, 4, 4, 5), torch.zeros(1, 4, 4, 5))
    several = view_transform(replace(CONFIG, grid=replace(GRID, z_bound=(-10.0, 10.0, 5.0))))
    with pytest.raises(ValueError, match='has 4 cells'):
        several.plan(forward_camera())
