"""Areas of nuScenes' map expansion, read by the devkit, and their raster.

Shape legend: V corners of a ring, P polygons, Y x X cells. Metres of the map unless cells are named.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Sequence, Tuple

import numpy as np

from ...method.grid import BEVGrid
from .spec import MAP_LAYERS

Polygon = Tuple[np.ndarray, ...]  # outer ring and holes, each (V, 2), x and y
DOWNLOAD = (
    "nuScenes' map expansion 1.3 (a download of its own, from nuscenes.org) belongs into the folder maps: maps/expansion/*.json; "
    'a synthetic world brings its maps along, unless an older version made it'
)


@dataclass(frozen=True)
class Areas:
    """All polygons of a class on one map; ``bounds`` (P, 4) are their smallest x, y and largest x, y."""

    polygons: Tuple[Polygon, ...]
    bounds: np.ndarray

    @classmethod
    def of(cls, polygons: Sequence[Polygon]) -> Areas:
        bounds = [[*polygon[0].min(axis=0), *polygon[0].max(axis=0)] for polygon in polygons]
        return cls(tuple(polygons), np.array(bounds, dtype=np.float64).reshape(-1, 4))

    def rasterise(self, ego2map: np.ndarray, grid: BEVGrid) -> np.ndarray:
        """(Y, X) bool: cells whose middle lies in any of the polygons.

        Args:
            ego2map: (4, 4) from the frame of ``grid``, with its augmentation, to the map; the ground is the plane z = 0.
            grid: cells.
        """
        lower, upper, step = np.array([grid.x_bound, grid.y_bound]).T
        forward, origin = ego2map[:2, :2], ego2map[:2, 3]
        corners = np.array([(x, y) for x in (lower[0], upper[0]) for y in (lower[1], upper[1])]) @ forward.T + origin
        near = (self.bounds[:, :2] <= corners.max(axis=0)).all(axis=1)
        near &= (self.bounds[:, 2:] >= corners.min(axis=0)).all(axis=1)
        back = np.linalg.inv(forward)
        filled = np.zeros((grid.num_y, grid.num_x), dtype=bool)
        for index in np.nonzero(near)[0]:
            rings = [((ring - origin) @ back.T - lower) / step for ring in self.polygons[index]]
            filled |= fill_polygon(rings, filled.shape)
        return filled


def fill_polygon(rings: Sequence[np.ndarray], shape: Tuple[int, int]) -> np.ndarray:
    """(Y, X) bool: cells whose middle lies inside an odd number of the rings.

    Each edge of a ring flips, in the rows whose middles it crosses, all cells to the right of where it does.

    Args:
        rings: each (V, 2), x and y in cells, so that cell (0, 0) reaches from 0 to 1; the last corner joins the first.
        shape: (Y, X).
    """
    rows, columns = shape
    flips = np.zeros((rows, columns + 1), dtype=np.int64)
    for ring in rings:
        (x, y), (next_x, next_y) = ring.T, np.roll(ring, -1, axis=0).T
        first, end = (
            np.clip(np.ceil(bound - 0.5), 0, rows).astype(int)
            for bound in (np.minimum(y, next_y), np.maximum(y, next_y))
        )
        counts = end - first
        edge = np.repeat(np.arange(len(ring)), counts)
        row = np.arange(len(edge)) - np.repeat(counts.cumsum() - counts, counts) + first[edge]
        share = (row + 0.5 - y[edge]) / (next_y - y)[edge]
        crossed = x[edge] + share * (next_x - x)[edge]
        np.add.at(flips, (row, np.clip(np.ceil(crossed - 0.5), 0, columns).astype(int)), 1)
    return flips[:, :-1].cumsum(axis=1) % 2 == 1


@functools.lru_cache(maxsize=None)
def read_areas(root: Path, location: str, classes: Tuple[str, ...], line_width: float) -> Tuple[Areas, ...]:
    """Areas of each class on a map.

    Args:
        root: nuScenes folder.
        location: name of the map, as the log table has it.
        classes: of ``MAP_LAYERS``.
        line_width: how wide a line counts, metres.

    Raises:
        ValueError: the map's file is absent or no map.
    """
    chart = open_map(root, location)
    return tuple(
        Areas.of([rings for layer in MAP_LAYERS[name] for rings in _polygons(chart, layer, line_width)])
        for name in classes
    )


def open_map(root: Path, location: str) -> Any:
    """The devkit's ``NuScenesMap`` of a location, be it one of nuScenes' own four or not.

    Raises:
        ValueError: the map's file is absent or no map.
    """
    path = root / 'maps' / 'expansion' / f'{location}.json'
    if not path.is_file():
        raise ValueError(f'{path} is absent: {DOWNLOAD}')
    from nuscenes.map_expansion import map_api

    known = map_api.locations
    map_api.locations = [*known, location]  # it asserts that a name is one of these
    try:
        return map_api.NuScenesMap(str(root), location)
    except Exception as error:  # no JSON, another version, absent layers: the devkit does not name the file
        raise ValueError(f'{path} is no map ({type(error).__name__}: {error}): {DOWNLOAD}') from error
    finally:
        map_api.locations = known


def _polygons(chart: Any, layer: str, line_width: float) -> Iterator[Polygon]:
    """Rings of every shape of a layer; lines as strips of ``line_width``."""
    for record in getattr(chart, layer):
        if 'line_token' in record:
            line = chart.extract_line(record['line_token'])
            shapes = [] if line.is_empty else [line.buffer(line_width / 2, cap_style=2)]
        else:
            tokens = record.get('polygon_tokens') or [record['polygon_token']]
            shapes = [chart.extract_polygon(token) for token in tokens]
        for shape in shapes:
            for part in getattr(shape, 'geoms', [shape]):
                if not part.is_empty:
                    yield tuple(np.asarray(ring.coords)[:-1, :2] for ring in (part.exterior, *part.interiors))
