"""The map of a scene in the form of nuScenes' map expansion 1.3: polygons and lines that share a table of nodes.

Road coordinates s, d as in ``road``; the map frame is that of the tables' ego poses. Lengths are metres.
"""

from __future__ import annotations

from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from .keyframe import Recipe, place_scene
from .road import Road

VERSION = '1.3'
REACH = 110.0  # metres of street beyond the ego vehicle's first and last place; its sensors see less far
CROSSING = 3.0  # length of a zebra crossing along the road
_SAGITTA = 0.01  # how far a chord between two nodes may stray from the arc
_LONGEST_STEP = 20.0
_LAYERS = (
    'polygon', 'line', 'node', 'drivable_area', 'road_segment', 'road_block', 'lane', 'ped_crossing', 'walkway', 'stop_line',
    'carpark_area', 'road_divider', 'lane_divider', 'traffic_light', 'lane_connector',
)  # fmt: skip

Row = Dict[str, Any]


def expansion_path(recipe: Recipe, index: int) -> str:
    """Where the devkit looks for a scene's map, inside the world's folder."""
    return f'maps/expansion/{location(recipe, index)}.json'


def prior_path(recipe: Recipe, index: int) -> str:
    """Where the map table says that a scene's carriageway is drawn, inside the world's folder."""
    return f'maps/{recipe.token("map", index)}.png'


def location(recipe: Recipe, index: int) -> str:
    """The name of a scene's map, which the log table gives."""
    return f'synthetic-{recipe.scenes[index]}'


def build_expansion(recipe: Recipe, index: int) -> Dict[str, Any]:
    """A scene's map: all layers of the devkit's ``NuScenesMap``, of which stop lines, traffic lights and junctions are empty.

    The drivable area reaches from kerb to kerb; car parks are the strips of parked cars; road dividers are the painted lines
    between the directions, lane dividers those at the lanes' outer edges.
    """
    scene = recipe.scene(index)
    world2global, extent = place_scene(recipe, index, scene)
    return _Map(recipe, index, scene.road, world2global).build(scene.travelled(recipe.duration), extent)


def dividers(road: Road) -> Tuple[Tuple[float, ...], Tuple[float, ...]]:
    """d of the lines between the directions, and of those at the lanes' outer edges, from the right to the left."""
    between = (-road.median, 0.0, road.median) if road.median > 1 else (0.0,)
    return between, (-road.lane, road.lane)


class _Map:
    """Collects the rows of one map."""

    def __init__(self, recipe: Recipe, index: int, road: Road, world2global: np.ndarray) -> None:
        self.recipe, self.index = recipe, index
        self.road, self.world2global = road, world2global
        self.layers: Dict[str, List[Row]] = {name: [] for name in _LAYERS}
        self.edges: Dict[Tuple[float, ...], List[str]] = {}
        self.whole = (0.0, 0.0)

    def build(self, travelled: float, extent: Tuple[float, float]) -> Dict[str, Any]:
        road = self.road
        self.whole = (-REACH, travelled + REACH)
        crossing = (road.crossing, road.crossing + CROSSING)
        area = self.add('drivable_area', polygon_tokens=[self.polygon(self.whole, -road.kerb, road.kerb)])
        carriageway = self.polygon(self.whole, -road.kerb, road.kerb)
        segment = self.add('road_segment', polygon_token=carriageway, is_intersection=False, drivable_area_token=area)
        zebra = self.polygon(crossing, -road.kerb, road.kerb)
        self.add('ped_crossing', polygon_token=zebra, road_segment_token=segment)
        for side in (-1, 1):
            self.side(side, segment)
        between, outer = dividers(road)
        for d in between:
            self.add('road_divider', line_token=self.line(self.edge(self.whole, d)), road_segment_token=segment)
        for d in outer:
            line = self.line(self.edge(self.whole, d))
            self.add('lane_divider', line_token=line, lane_divider_segments=self.segments(self.edge(self.whole, d)))
        connectivity: Dict[str, Dict[str, List[str]]] = {
            lane['token']: {'incoming': [], 'outgoing': []} for lane in self.layers['lane']
        }
        head = {'version': VERSION, 'canvas_edge': list(extent)}
        return {**head, **self.layers, 'arcline_path_3': {}, 'connectivity': connectivity}

    def side(self, side: int, segment: str) -> None:
        """What lies on the right (-1) or the left (1) of the centre line; traffic keeps to the right."""
        road, whole = self.road, self.whole
        inner, lane, kerb, walk = (side * d for d in (road.median, road.lane, road.kerb, road.sidewalk))
        left, right = (self.edge(whole, d)[::-side] for d in (inner, lane))  # in the order of traffic
        ends = {
            'from_edge_line_token': self.line([left[0], right[0]]),
            'to_edge_line_token': self.line([left[-1], right[-1]]),
        }
        half = self.polygon(whole, 0.0, kerb)
        block = self.add('road_block', polygon_token=half, road_segment_token=segment, **ends)
        self.add(
            'lane',
            polygon_token=self.polygon(whole, inner, lane),
            lane_type='CAR',
            left_lane_divider_segments=self.segments(left),
            right_lane_divider_segments=self.segments(right),
            **ends,
        )
        parking = self.polygon(whole, lane + side * road.margin, kerb)
        heading = float(np.arctan2(self.world2global[1, 0], self.world2global[0, 0]))
        self.add('carpark_area', polygon_token=parking, orientation=heading, road_block_token=block)
        self.add('walkway', polygon_token=self.polygon(whole, kerb, walk))

    def add(self, layer: str, **row: Any) -> str:
        token = self.recipe.token('map', layer, self.index, len(self.layers[layer]))
        self.layers[layer].append({'token': token, **row})
        return token

    def polygon(self, along: Tuple[float, float], d: float, other: float) -> str:
        """The strip between d and ``other``."""
        around = [*self.edge(along, d), *reversed(self.edge(along, other))]
        return self.add('polygon', exterior_node_tokens=around, holes=[])

    def line(self, nodes: Sequence[str]) -> str:
        return self.add('line', node_tokens=list(nodes))

    @staticmethod
    def segments(nodes: Sequence[str]) -> List[Row]:
        return [{'node_token': node, 'segment_type': 'SINGLE_SOLID_WHITE'} for node in nodes]

    def edge(self, along: Tuple[float, float], d: float) -> List[str]:
        """Tokens of the nodes at d, which all that lies along it shares."""
        key = (*along, d)
        if key not in self.edges:
            x, y, _ = self.road.place(self.steps(*along), d)
            placed = (self.world2global[:2, :2] @ np.stack([x, y])).T + self.world2global[:2, 3]
            self.edges[key] = [self.add('node', x=float(a), y=float(b)) for a, b in placed]
        return self.edges[key]

    def steps(self, start: float, end: float) -> np.ndarray:
        """s of the nodes, close enough for the street's bend."""
        step = min(_LONGEST_STEP, np.sqrt(8 * _SAGITTA / max(abs(self.road.curvature), 1e-9)))
        return np.linspace(start, end, 1 + int(np.ceil((end - start) / step)))
