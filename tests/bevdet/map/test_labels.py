"""Map labels: against point-in-polygon tests, the synthetic street's own formulas, LiDAR labels, and boxes under augmentation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import pytest

pytest.importorskip('mmdet3d')

import shapely
from mmengine.registry import TRANSFORMS
from shapely.geometry import LineString, Polygon

from geomim.bevdet.map import labels as map_labels
from geomim.bevdet.map import layers as map_layers
from geomim.bevdet.map.layers import Areas, fill_polygon, open_map, read_areas
from geomim.bevdet.map.spec import MAP_CLASSES, MapSpec
from geomim.method.grid import BEVGrid
from geomim.synthetic.keyframe import Recipe, place_scene
from geomim.synthetic.labels import LABELS
from geomim.synthetic.map_expansion import CROSSING, dividers

GRID = dict(x=[-50.0, 50.0, 0.5], y=[-50.0, 50.0, 0.5])
UNEVEN = dict(x=[-20.0, 40.0, 0.75], y=[-12.0, 16.0, 0.5])
PLACE = 'singapore-onenorth'
NEAR = 0.03  # metres by which a chord between two nodes may miss the arc
Build = Callable[..., Any]


def star(random: np.random.Generator, corners: int, centre: Tuple[float, float], radius: float) -> np.ndarray:
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * random.uniform(0.4, 1, (corners, 1)) * radius + centre


def middles(grid: BEVGrid) -> np.ndarray:
    """(Y, X, 2): x and y of the cells' middles."""
    axes = [
        bound[0] + (np.arange(count) + 0.5) * bound[2]
        for bound, count in zip((grid.x_bound, grid.y_bound), (grid.num_x, grid.num_y))
    ]
    return np.stack(np.meshgrid(*axes), axis=-1)


def turned(angle: float, scale: float = 1.0, flip: Tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    matrix = np.eye(4)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix[:2, :2] = scale * np.diag(flip) @ [[cos, -sin], [sin, cos]]
    return matrix


@pytest.mark.parametrize('seed', range(5))
def test_cells_lie_inside_as_the_middle_does(seed: int) -> None:
    random = np.random.default_rng(seed)
    outer, hole = star(random, 40, (9.0, 6.0), 12.0), star(random, 7, (8.0, 6.0), 3.0)
    filled = fill_polygon([outer, hole], (13, 21))
    for row in range(13):
        for column in range(21):
            point = shapely.Point(column + 0.5, row + 0.5)
            inside = Polygon(outer).contains(point) != Polygon(hole).contains(point)
            assert filled[row, column] == inside, (row, column)
    assert 20 < filled.sum() < filled.size - 20


def test_a_polygon_beyond_the_raster_fills_it_or_nothing() -> None:
    square = np.array([[-1e4, -1e4], [1e4, -1e4], [1e4, 1e4], [-1e4, 1e4]])
    assert fill_polygon([square], (5, 7)).all()
    for shift in ((3e4, 0), (-3e4, 0), (0, 3e4), (0, -3e4)):
        assert not fill_polygon([square + shift], (5, 7)).any()


@pytest.mark.parametrize(
    'matrix', [turned(0.0), turned(2.2), turned(-0.4, 1.05, (-1.0, 1.0)), turned(1.0, 0.95, (-1.0, -1.0))]
)
def test_areas_are_drawn_where_they_lie(matrix: np.ndarray) -> None:
    """Far from the origin, as real maps are; overlapping polygons join; those far away do not matter."""
    random = np.random.default_rng(3)
    centre = np.array([1234.5, 987.6])
    ego2map = np.eye(4)
    ego2map[:2, 3] = centre
    ego2map = ego2map @ np.linalg.inv(matrix)
    polygons = [(star(random, 30, tuple(centre + random.uniform(-25, 25, 2)), 18.0),) for _ in range(4)]
    polygons.append((star(random, 9, (0.0, 0.0), 100.0),))
    grid = MapSpec.create(map_grid=UNEVEN).grid
    found = Areas.of(polygons).rasterise(ego2map, grid)
    points = middles(grid) @ ego2map[:2, :2].T + ego2map[:2, 3]
    wanted = np.zeros(found.shape, dtype=bool)
    for (ring,) in polygons:
        wanted |= shapely.contains_xy(Polygon(ring), points[..., 0], points[..., 1])
    assert np.array_equal(found, wanted)
    assert 0.1 < found.mean() < 0.9


def expansion() -> Dict[str, Any]:
    """The smallest map in the devkit's own schema: a drivable area of two polygons, one with a hole, and something of most classes."""
    rings = {
        'outer': [(10, 10), (50, 10), (50, 40), (10, 40)],
        'hole': [(20, 20), (30, 20), (30, 30), (20, 30)],
        'other': [(60, 10), (70, 10), (65, 20)],
        'crossing': [(40, 10), (44, 10), (44, 40), (40, 40)],
        'stop': [(36, 10), (38, 10), (38, 25), (36, 25)],
        'park': [(10, 45), (20, 45), (20, 50), (10, 50)],
    }
    lines = {'middle': [(10, 25), (35, 25), (50, 30)], 'lane': [(10, 32), (50, 32)], 'none': []}
    nodes: List[Dict[str, Any]] = []

    def tokens(points: List[Tuple[float, float]]) -> List[str]:
        start = len(nodes)
        nodes.extend({'token': f'n{start + i}', 'x': float(x), 'y': float(y)} for i, (x, y) in enumerate(points))
        return [node['token'] for node in nodes[start:]]

    holes = [{'node_tokens': tokens(rings.pop('hole'))}, {'node_tokens': []}]
    polygons = [{'token': name, 'exterior_node_tokens': tokens(ring), 'holes': []} for name, ring in rings.items()]
    polygons[0]['holes'] = holes
    layers: Dict[str, Any] = {
        name: [] for name in ('road_segment', 'road_block', 'lane', 'walkway', 'traffic_light', 'lane_connector')
    }
    stop = dict(stop_line_type='PED_CROSSING', ped_crossing_tokens=['c'], traffic_light_tokens=[], road_block_token='')
    segment = [{'node_token': 'n0', 'segment_type': 'DOUBLE_DASHED_WHITE'}]
    return {
        'version': '1.3',
        'canvas_edge': [100.0, 80.0],
        'node': nodes,
        'polygon': polygons,
        'line': [{'token': name, 'node_tokens': tokens(points)} for name, points in lines.items()],
        **layers,
        'drivable_area': [{'token': 'd', 'polygon_tokens': ['outer', 'other']}],
        'ped_crossing': [{'token': 'c', 'polygon_token': 'crossing', 'road_segment_token': ''}],
        'stop_line': [{'token': 's', 'polygon_token': 'stop', **stop}],
        'carpark_area': [{'token': 'p', 'polygon_token': 'park', 'orientation': 0.0, 'road_block_token': ''}],
        'road_divider': [
            {'token': 'm', 'line_token': 'middle', 'road_segment_token': ''},
            {'token': 'e', 'line_token': 'none'},
        ],
        'lane_divider': [{'token': 'l', 'line_token': 'lane', 'lane_divider_segments': segment}],
        'arcline_path_3': {},
        'connectivity': {},
    }


def write_map(root: Path, content: Dict[str, Any], name: str = PLACE) -> Path:
    folder = root / 'maps' / 'expansion'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{name}.json').write_text(json.dumps(content))
    return root


def test_a_map_in_the_devkits_schema(tmp_path: Path) -> None:
    """What the devkit's own class reads and says of points and distances, at every cell."""
    root = write_map(tmp_path, expansion())
    chart = open_map(root, PLACE)
    spec = MapSpec.create(map_grid=dict(x=[0.0, 80.0, 1.0], y=[0.0, 60.0, 1.0]))
    labels = np.stack([area.rasterise(np.eye(4), spec.grid) for area in read_areas(root, PLACE, MAP_CLASSES, 1.5)])
    assert labels.shape == spec.shape
    lines = [LineString([(10, 25), (35, 25), (50, 30)]), LineString([(10, 32), (50, 32)])]
    for (row, column), (x, y) in zip(np.ndindex(labels.shape[1:]), middles(spec.grid).reshape(-1, 2)):
        there = dict(zip(MAP_CLASSES, labels[:, row, column]))
        for name in ('ped_crossing', 'walkway', 'stop_line', 'carpark_area', 'drivable_area'):
            assert there[name] == bool(chart.record_on_point(x, y, name)), (name, x, y)
        gaps = [line.distance(shapely.Point(x, y)) for line in lines]
        if 10 < x < 50 and abs(min(gaps) - 0.75) > 0.02:
            assert there['divider'] == (min(gaps) < 0.75), (x, y)
    assert labels.any(axis=(1, 2)).tolist() == [name != 'walkway' for name in MAP_CLASSES]


def test_the_devkits_list_of_places_is_left_alone(tmp_path: Path) -> None:
    from nuscenes.map_expansion import map_api

    before = list(map_api.locations)
    write_map(tmp_path, expansion(), 'my-town')
    assert open_map(tmp_path, 'my-town').map_name == 'my-town'
    broken = expansion()
    broken['version'] = '1.2'
    write_map(tmp_path, broken, 'old-town')
    with pytest.raises(Exception, match='outdated map version'):
        open_map(tmp_path, 'old-town')
    assert map_api.locations == before


def read_recipe(root: Path) -> Recipe:
    content = json.loads((root / 'geomim_synthetic.json').read_text())
    content.pop('format')
    return Recipe(**{**content, 'scenes': tuple(content['scenes']), 'image_size': tuple(content['image_size'])})


def steps(
    bevdet_pipeline: Build, root: Path, bda: Optional[Dict[str, Any]] = None, **labels: Any
) -> List[Dict[str, Any]]:
    """The pipeline with map labels, without images; a BEV augmentation where ``bda`` has one."""
    pipeline = bevdet_pipeline(training=False, depth=False)
    for step in pipeline:
        if step['type'] == 'BEVDetBEVAug' and bda is not None:
            step.update(training=True, bda_aug_conf=bda)
    return [*pipeline[:-1], dict(type='LoadBEVMapLabels', data_root=str(root), **labels), pipeline[-1]]


def fixed(angle: float = 0.0, scale: float = 1.0, flip_x: bool = False, flip_y: bool = False) -> Dict[str, Any]:
    ratios = dict(flip_dx_ratio=float(flip_x), flip_dy_ratio=float(flip_y))
    return dict(rot_lim=(angle, angle), scale_lim=(scale, scale), **ratios)


def labels_of(sample: Dict[str, Any]) -> np.ndarray:
    return sample['data_samples'].gt_bev_map.data.numpy()


def street(root: Path, data: Any, index: int, bev_aug: np.ndarray, grid: BEVGrid) -> Dict[str, np.ndarray]:
    """|d|, and how far each cell's middle lies inside the classes that depend on it alone, by the street's own formulas."""
    recipe, info = read_recipe(root), data.get_data_info(index)
    scene = next(number for number in range(len(recipe.scenes)) if info['scene_name'] == recipe.scenes[number])
    ego2global = np.array(info['images']['CAM_FRONT_LEFT']['ego2global'])
    ego2world = np.linalg.inv(place_scene(recipe, scene)[0]) @ ego2global @ np.linalg.inv(bev_aug)
    cells = middles(grid)
    flat = np.concatenate([cells, np.zeros_like(cells[..., :1]), np.ones_like(cells[..., :1])], axis=-1) @ ego2world.T
    road = recipe.scene(scene).road
    s, d = road.locate(flat[..., 0], flat[..., 1])
    apart = np.abs(d)
    lines = np.abs(d[..., None] - np.array([line for kind in dividers(road) for line in kind])).min(axis=-1)
    return {
        'drivable_area': road.kerb - apart,
        'ped_crossing': np.minimum(road.kerb - apart, CROSSING / 2 - np.abs(s - road.crossing - CROSSING / 2)),
        'walkway': np.minimum(apart - road.kerb, road.sidewalk - apart),
        'stop_line': np.full_like(apart, -1.0),
        'carpark_area': np.minimum(apart - road.lane - road.margin, road.kerb - apart),
        'divider': 0.5 - lines,
    }


@pytest.mark.parametrize(
    'bda',
    [None, fixed(flip_x=True), fixed(20.0, 1.05, flip_y=True), fixed(-22.0, 0.95, True, True)],
    ids=['plain', 'mirrored', 'turned', 'both'],
)
def test_labels_are_those_of_the_street(
    make_dataset: Build, bevdet_pipeline: Build, bevdet_world: Path, bda: Optional[Dict[str, Any]]
) -> None:
    for split in ('train', 'val'):
        data = make_dataset(split, pipeline=steps(bevdet_pipeline, bevdet_world, bda, map_grid=UNEVEN))
        index = len(data) - 1
        sample = data[index]
        meta = sample['data_samples'].gt_bev_map.metainfo
        assert meta == MapSpec.create(map_grid=UNEVEN).as_meta()
        bev_aug = sample['inputs']['bev_aug'].double().numpy()
        inside = street(bevdet_world, data, index, bev_aug, MapSpec.create(map_grid=UNEVEN).grid)
        for name, labels in zip(MAP_CLASSES, labels_of(sample)):
            sure = np.abs(inside[name]) > NEAR
            assert sure.mean() > 0.9
            assert np.array_equal(labels[sure], (inside[name] > 0)[sure]), name
        assert labels_of(sample).any(axis=(1, 2)).sum() >= 4


def test_flips_mirror_the_labels(make_dataset: Build, bevdet_pipeline: Build, bevdet_world: Path) -> None:
    def draw(**flips: bool) -> np.ndarray:
        data = make_dataset('train', pipeline=steps(bevdet_pipeline, bevdet_world, fixed(**flips), map_grid=GRID))
        return labels_of(data[0])

    plain = draw()
    assert not np.array_equal(plain, plain[:, ::-1])
    assert (draw(flip_x=True) == plain[:, :, ::-1]).mean() > 0.99999  # middles on an edge fall to either side
    assert (draw(flip_y=True) == plain[:, ::-1]).mean() > 0.99999
    assert (draw(flip_x=True, flip_y=True) == plain[:, ::-1, ::-1]).mean() > 0.99999


def sampled(labels: np.ndarray, points: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Labels (C, M) of the cells below points (M, 2), and whether all cells around are of the same classes."""
    column, row = np.floor((points + 50) / 0.5).astype(int).T
    inside = (np.minimum(column, row) >= 1) & (np.maximum(column, row) <= labels.shape[1] - 2)
    column, row = np.where(inside, column, 1), np.where(inside, row, 1)
    around = np.stack([labels[:, row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    return labels[:, row, column], inside & (around == around[0]).all(axis=(0, 1))


def test_boxes_and_labels_move_alike(make_dataset: Build, bevdet_pipeline: Build, bevdet_world: Path) -> None:
    found = []
    for bda in (fixed(), fixed(20.0, 1.05, flip_x=True, flip_y=True)):
        sample = make_dataset('train', pipeline=steps(bevdet_pipeline, bevdet_world, bda, map_grid=GRID))[1]
        boxes = sample['data_samples'].gt_instances_3d.bboxes_3d.gravity_center.numpy()
        found.append(sampled(labels_of(sample), boxes[:, :2]))
    (before, sure), (after, sure_too) = found
    sure = sure & sure_too
    assert sure.sum() > 20
    assert np.array_equal(before[:, sure], after[:, sure])
    assert before[:, sure].any(axis=0).sum() > 10
    assert before[0, sure].any()
    assert before[2, sure].any()


def test_lidar_points_lie_in_the_cells_of_their_labels(
    make_dataset: Build, bevdet_pipeline: Build, bevdet_world: Path
) -> None:
    from nuscenes.nuscenes import NuScenes

    tables = NuScenes('v1.0-trainval', str(bevdet_world), verbose=False)
    seg = {row['sample_data_token']: row['filename'] for row in tables.lidarseg}
    data = make_dataset('val', pipeline=steps(bevdet_pipeline, bevdet_world, map_grid=GRID))
    for index in range(len(data)):
        sample = data[index]
        meta = sample['data_samples'].metainfo
        token = tables.get('sample', meta['token'])['data']['LIDAR_TOP']
        points = np.fromfile(bevdet_world / tables.get('sample_data', token)['filename'], dtype=np.float32).reshape(
            -1, 5
        )
        labels = np.fromfile(bevdet_world / seg[token], dtype=np.uint8)
        ego = points[:, :3] @ meta['lidar2key_ego'][:3, :3].T + meta['lidar2key_ego'][:3, 3]
        cells, sure = sampled(labels_of(sample), ego[:, :2])
        for name, label in (('drivable_area', 'driveable_surface'), ('walkway', 'sidewalk')):
            chosen = sure & np.isin(
                labels, [LABELS[f'flat.{kind}'] for kind in ('driveable_surface', 'sidewalk', 'terrain')]
            )
            there = labels[chosen] == LABELS[f'flat.{label}']
            assert there.sum() > 100
            assert np.array_equal(cells[MAP_CLASSES.index(name), chosen], there), name


def test_classes_in_the_order_that_was_asked_for(
    make_dataset: Build, bevdet_pipeline: Build, bevdet_world: Path
) -> None:
    everything = labels_of(make_dataset('val', pipeline=steps(bevdet_pipeline, bevdet_world, map_grid=UNEVEN))[0])
    chosen = ('divider', 'drivable_area')
    some = labels_of(
        make_dataset('val', pipeline=steps(bevdet_pipeline, bevdet_world, map_grid=UNEVEN, classes=chosen))[0]
    )
    assert np.array_equal(some, everything[[MAP_CLASSES.index(name) for name in chosen]])


def test_wider_lines_cover_more(make_dataset: Build, bevdet_pipeline: Build, bevdet_world: Path) -> None:
    sums = [
        labels_of(
            make_dataset('val', pipeline=steps(bevdet_pipeline, bevdet_world, classes=['divider'], line_width=width))[0]
        ).sum()
        for width in (1.0, 2.0)
    ]
    assert sums[1] == pytest.approx(2 * sums[0], rel=0.1)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(classes=['road', 'divider']), r'any of drivable_area, .*unknown: road'),
        (dict(classes=['divider', 'divider']), 'each once'),
        (dict(classes=[]), 'each once'),
        (dict(map_grid=dict(x=[-50, 50, 0.5])), 'map_grid needs x and y'),
        (dict(map_grid=dict(x=[-50, 50, 0.3], y=[-50, 50, 0.5])), 'does not divide'),
        (dict(line_width=0.0), 'line_width must be above 0 m'),
    ],
)
def test_settings_that_cannot_be(options: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(dict(type='LoadBEVMapLabels', data_root='data', **options))


def test_an_absent_map_says_what_to_download(
    link_world: Build, make_dataset: Build, bevdet_pipeline: Build, tmp_path: Path
) -> None:
    root = link_world(tmp_path / 'world')
    (root / 'maps').unlink()
    (root / 'maps').mkdir()
    data = make_dataset('val', pipeline=[*steps(bevdet_pipeline, root)])
    with pytest.raises(ValueError, match=r'synthetic-scene-\d+\.json is absent: .*map expansion 1\.3.*maps/expansion'):
        data[0]


def test_another_folders_tables(
    make_dataset: Build, bevdet_pipeline: Build, bevdet_world: Path, tmp_path: Path
) -> None:
    for name in ('scene', 'log', 'sample'):
        (tmp_path / 'v1.0-mini').mkdir(exist_ok=True)
        shutil.copy(bevdet_world / 'v1.0-trainval' / f'{name}.json', tmp_path / 'v1.0-mini')
    (tmp_path / 'v1.0-mini' / 'scene.json').write_text('[]')
    with pytest.raises(ValueError, match='is not in the tables of'):
        make_dataset('val', pipeline=steps(bevdet_pipeline, tmp_path))[0]
    with pytest.raises(ValueError, match='is no nuScenes root'):
        make_dataset('val', pipeline=steps(bevdet_pipeline, tmp_path / 'nowhere'))[0]


def test_labels_go_after_the_augmentation(make_dataset: Build, bevdet_pipeline: Build, bevdet_world: Path) -> None:
    label = dict(type='LoadBEVMapLabels', data_root=str(bevdet_world))
    with pytest.raises(ValueError, match='no cam_names, bev_aug_matrix; LoadBEVMapLabels goes after'):
        make_dataset('val', pipeline=[label])[0]


def test_each_map_is_read_once(
    make_dataset: Build, bevdet_pipeline: Build, bevdet_world: Path, monkeypatch: Any
) -> None:
    read_areas.cache_clear()
    map_labels.scene_locations.cache_clear()
    opened: List[str] = []
    original = map_layers.open_map
    monkeypatch.setattr(map_layers, 'open_map', lambda root, name: opened.append(name) or original(root, name))
    data = make_dataset('train', pipeline=steps(bevdet_pipeline, bevdet_world))
    for index in range(len(data)):
        data[index]
    assert sorted(opened) == sorted(set(opened))
    assert len(opened) == 2


@pytest.mark.parametrize(
    'content', ['<html>Not found</html>', '{"version": "1.3", "polygon": [', '[]', '{"version": "1.3"}']
)
def test_a_file_that_is_no_map_is_named(tmp_path: Path, content: str) -> None:
    write_map(tmp_path, {})
    (tmp_path / 'maps' / 'expansion' / f'{PLACE}.json').write_text(content)
    with pytest.raises(ValueError, match=rf'{PLACE}\.json is no map \(\w+: .*map expansion 1\.3'):
        open_map(tmp_path, PLACE)


def test_a_table_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / 'v1.0-mini').mkdir()
    for name in ('scene', 'log', 'sample'):
        (tmp_path / 'v1.0-mini' / f'{name}.json').write_text('[')
    with pytest.raises(ValueError, match=r'table .*\.json is no JSON'):
        map_labels.scene_locations(tmp_path)


def test_scenes_of_all_versions_in_a_folder_have_their_map(tmp_path: Path) -> None:
    """nuScenes' own test split lies beside the others."""
    for version in ('v1.0-trainval', 'v1.0-test'):
        (tmp_path / version).mkdir()
        rows = {'scene': {'token': version, 'log_token': 'a'}, 'log': {'token': 'a', 'location': f'town of {version}'}}
        for name in ('scene', 'log', 'sample'):
            (tmp_path / version / f'{name}.json').write_text(json.dumps([rows.get(name, {})]))
    assert map_labels.scene_locations(tmp_path) == {
        version: f'town of {version}' for version in ('v1.0-trainval', 'v1.0-test')
    }
