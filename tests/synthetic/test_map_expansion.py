"""The world's own map in the form of nuScenes' map expansion: the devkit loads it, and it says what the street's labels say."""

from __future__ import annotations

import json
from typing import Any, List

import numpy as np
import pytest
import shapely
from nuscenes.map_expansion import map_api
from shapely.geometry import Polygon

from geomim.synthetic.keyframe import place_scene
from geomim.synthetic.labels import LABELS
from geomim.synthetic.map_expansion import build_expansion, dividers, expansion_path
from geomim.synthetic.road import SIDEWALK, Road
from geomim.synthetic.world import make_recipe

NEAR = 0.03  # metres by which chords between nodes may miss the arc
NOISE = 0.1  # metres by which a LiDAR point may miss what it hit


@pytest.fixture(scope='module')
def charts(world: Any, tables: Any) -> List[Any]:
    """The devkit's reader of each scene's map, found by the name in the log table."""
    charts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map_api, 'locations', [log['location'] for log in tables.log])
        for name in world.recipe.scenes:
            scene = next(row for row in tables.scene if row['name'] == name)
            location = tables.get('log', scene['log_token'])['location']
            charts.append(map_api.NuScenesMap(str(world.root), location))
    return charts


def area(chart: Any, layer: str) -> Any:
    tokens = [token for row in getattr(chart, layer) for token in row.get('polygon_tokens') or [row['polygon_token']]]
    return shapely.unary_union([chart.extract_polygon(token) for token in tokens])


def ground(moment: Any) -> Any:
    """Ground points of a keyframe within 60 m: distance from the centre line, place on the map, and label."""
    points = moment.scan.points[:, :3].astype(np.float64)
    world = points @ moment.scan.lidar2world[:3, :3].T + moment.scan.lidar2world[:3, 3]
    flat = np.isin(
        moment.scan.labels, [LABELS[f'flat.{name}'] for name in ('driveable_surface', 'sidewalk', 'terrain')]
    )
    flat &= np.hypot(points[:, 0], points[:, 1]) < 60
    world = world[flat]
    placed = world @ moment.world2global[:3, :3].T + moment.world2global[:3, 3]
    _, d = moment.scene.road.locate(world[:, 0], world[:, 1])
    return d, placed[:, :2], moment.scan.labels[flat]


def test_the_devkit_reads_every_layer(charts: List[Any], world: Any) -> None:
    for index, chart in enumerate(charts):
        between, outer = dividers(world.recipe.scene(index).road)
        counts = {name: len(getattr(chart, name)) for name in chart.non_geometric_layers}
        empty = {name for name, count in counts.items() if count == 0}
        assert empty == {'stop_line', 'traffic_light'}
        assert counts['lane'] == counts['walkway'] == counts['carpark_area'] == 2
        assert (counts['road_divider'], counts['lane_divider']) == (len(between), len(outer))
        tokens = [row['token'] for name in chart.layer_names for row in getattr(chart, name)]
        assert len(set(tokens)) == len(tokens)
        for row in chart.polygon:
            assert chart.extract_polygon(row['token']).is_valid


def test_the_devkit_draws_and_asks(charts: List[Any], moments: List[Any]) -> None:
    """Its own raster shows the carriageway around the ego vehicle, and its own query finds the lane that it drives in."""
    for moment in moments:
        chart = charts[moment.index]
        x, y = (moment.world2global @ moment.scene.ego2world(moment.time))[:2, 3]
        layers = chart.layers_on_point(x, y, ['drivable_area', 'lane', 'walkway', 'carpark_area'])
        assert layers['drivable_area']
        assert layers['lane'] == chart.lane[0]['token']
        assert not layers['walkway']
        assert not layers['carpark_area']
        geometry = chart.get_map_geom((x, y, 40, 40), 0, ['drivable_area', 'road_divider'])
        mask = chart.explorer.map_geom_to_mask(geometry, (0, 0, 40, 40), (80, 80))
        kerb = moment.scene.road.kerb
        assert 0.8 * 80 * kerb / 20 < mask[0].sum() / 80 < 1.9 * 80 * kerb / 20
        assert mask[1].any()


def test_ground_points_lie_where_their_labels_say(charts: List[Any], moments: List[Any]) -> None:
    for moment in moments:
        d, placed, labels = ground(moment)
        road = moment.scene.road
        sure = np.abs(np.abs(d) - road.kerb) > NOISE
        sure &= np.abs(np.abs(d) - road.sidewalk) > NOISE
        assert sure.sum() > 3000
        for layer, name in (('drivable_area', 'driveable_surface'), ('walkway', 'sidewalk')):
            inside = shapely.contains_xy(area(charts[moment.index], layer), placed[sure])
            wanted = labels[sure] == LABELS[f'flat.{name}']
            assert 100 < wanted.sum() < len(wanted)
            assert np.array_equal(inside, wanted), layer


def test_paint_lies_on_dividers_and_crossings(charts: List[Any], world: Any) -> None:
    for index, chart in enumerate(charts):
        road, world2global = world.recipe.scene(index).road, place_scene(world.recipe, index)[0]
        s, d = np.meshgrid(np.arange(-40, 60, 0.13), np.arange(-road.kerb, road.kerb, 0.05))
        painted = road.painted(s, d)
        x, y, _ = road.place(s[painted], d[painted])
        placed = shapely.points((world2global[:2, :2] @ np.stack([x, y])).T + world2global[:2, 3])
        lines = shapely.unary_union(
            [chart.extract_line(row['line_token']) for row in (*chart.road_divider, *chart.lane_divider)]
        )
        on_line = shapely.distance(placed, lines) < 0.09 + NEAR
        on_zebra = shapely.contains(area(chart, 'ped_crossing').buffer(NEAR), placed)
        assert (on_line | on_zebra).all()
        assert on_zebra.sum() > 100
        assert on_line.sum() > 100


@pytest.mark.parametrize('seed', range(12))
def test_strips_tile_every_street(seed: int) -> None:
    """From the middle outwards: median, lanes, margin, parked cars, kerbs, sidewalks, whatever the street's bend."""
    recipe = make_recipe(scenes='1+1', frames=2, image_size=(0, 0), seed=seed)
    road = recipe.scene(0).road
    chart = build_expansion(recipe, 0)
    nodes = {row['token']: (row['x'], row['y']) for row in chart['node']}
    rings = {row['token']: [nodes[token] for token in row['exterior_node_tokens']] for row in chart['polygon']}

    def shape(layer: str) -> Any:
        return shapely.unary_union([Polygon(rings[row['polygon_token']]) for row in chart[layer]])

    whole = Polygon(rings[chart['drivable_area'][0]['polygon_tokens'][0]])
    assert whole.is_valid
    length = whole.area / (2 * road.kerb)
    assert shape('road_block').area == pytest.approx(whole.area, rel=1e-6)
    assert shape('road_segment').equals(whole)
    assert shape('walkway').area == pytest.approx(2 * SIDEWALK * length, rel=1e-3)
    assert shape('walkway').intersection(whole).area < 1e-3 * whole.area
    assert shape('lane').area == pytest.approx(2 * (road.lane - road.median) * length, rel=1e-3)
    assert shape('carpark_area').area == pytest.approx(2 * (road.kerb - road.lane - road.margin) * length, rel=1e-3)
    for layer in ('lane', 'carpark_area', 'ped_crossing'):
        assert shape(layer).difference(whole.buffer(0.02)).area < 1e-6
    assert shape('lane').intersection(shape('carpark_area')).area < 1e-3 * whole.area
    placed = place_scene(recipe, 0)[0]
    for row, side in zip(chart['lane'], (-1, 1)):  # dividers in the order of traffic, the left one nearer the middle
        for name, at in (('left', road.median), ('right', road.lane)):
            x, y = np.array([nodes[part['node_token']] for part in row[f'{name}_lane_divider_segments']]).T
            world = placed[:2, :2].T @ (np.stack([x, y]) - placed[:2, 3:])
            s, d = road.locate(*world)
            assert np.allclose(d, side * at, atol=1e-6)
            assert (np.diff(s) * -side > 0).all()


def test_median_lines_are_dividers_where_they_are_painted() -> None:
    assert dividers(Road(0.0, 10.0, median=0.4, margin=1.0)) == ((0.0,), (-3.9, 3.9))
    assert dividers(Road(0.0, 10.0, median=2.0)) == ((-2.0, 0.0, 2.0), (-5.5, 5.5))


def test_files_are_where_the_devkit_looks(world: Any, tables: Any) -> None:
    for index in range(len(world.recipe.scenes)):
        content = json.loads((world.root / expansion_path(world.recipe, index)).read_text())
        assert content == json.loads(json.dumps(build_expansion(world.recipe, index)))
        assert content['version'] == '1.3'
    found = sorted(path.stem for path in (world.root / 'maps' / 'expansion').iterdir())
    assert found == sorted(log['location'] for log in tables.log)
