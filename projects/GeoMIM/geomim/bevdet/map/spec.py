"""What a map segmentation is about: its classes and its raster, which labels, head and scores must share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from ...method.grid import BEVGrid

# Class -> layers of nuScenes' map expansion; the classes of BEVFusion (arXiv 2205.13542, section 4)
MAP_LAYERS: Dict[str, Tuple[str, ...]] = {
    'drivable_area': ('drivable_area',),
    'ped_crossing': ('ped_crossing',),
    'walkway': ('walkway',),
    'stop_line': ('stop_line',),
    'carpark_area': ('carpark_area',),
    'divider': ('road_divider', 'lane_divider'),
}
MAP_CLASSES = tuple(MAP_LAYERS)
MAP_GRID: Dict[str, Tuple[float, float, float]] = {'x': (-50.0, 50.0, 0.5), 'y': (-50.0, 50.0, 0.5)}


@dataclass(frozen=True)
class MapSpec:
    """Classes and raster of map labels; maps are (C, Y, X), row 0 at the smallest y.

    Args:
        classes: their order is that of the channels.
        grid: cells in the augmented key ego frame.
    """

    classes: Tuple[str, ...]
    grid: BEVGrid

    @classmethod
    def create(
        cls,
        classes: Sequence[str] = MAP_CLASSES,
        map_grid: Optional[Mapping[str, Sequence[float]]] = None,
    ) -> MapSpec:
        """From a configuration.

        Args:
            classes: any of ``MAP_LAYERS``, each once.
            map_grid: ``x`` and ``y``, each (lower, upper, step) in metres; BEVFusion's if None.

        Raises:
            ValueError: an unknown, repeated or no class, an absent axis, or a step that does not divide its range.
        """
        unknown = [name for name in classes if name not in MAP_LAYERS]
        if unknown or not classes or len(set(classes)) != len(classes):
            raise ValueError(
                f'map classes must be any of {", ".join(MAP_LAYERS)}, each once, got {list(classes)}'
                + (f'; unknown: {", ".join(unknown)}' if unknown else '')
            )
        bounds = dict(MAP_GRID if map_grid is None else map_grid)
        if set(bounds) != {'x', 'y'}:
            raise ValueError(f'map_grid needs x and y, each (lower, upper, step) in metres, got {bounds}')
        x, y = (tuple(float(value) for value in bounds[axis]) for axis in 'xy')
        return cls(tuple(classes), BEVGrid(x, y, axis_order='yx'))  # type: ignore[arg-type]

    @property
    def shape(self) -> Tuple[int, int, int]:
        """(C, Y, X)."""
        return (len(self.classes), self.grid.num_y, self.grid.num_x)

    def as_meta(self) -> Dict[str, Any]:
        """What maps carry beside their cells, for :meth:`check`."""
        return {'classes': self.classes, 'x_bound': self.grid.x_bound, 'y_bound': self.grid.y_bound}

    def check(self, meta: Mapping[str, Any], where: str) -> None:
        """Raise ``ValueError`` for maps of other classes or another raster, so described by :meth:`as_meta`."""
        for name, wanted in self.as_meta().items():
            found = meta.get(name)
            if found is None or tuple(found) != tuple(wanted):
                raise ValueError(
                    f'{where}: map labels have {name} {found}, the head has {wanted}; LoadBEVMapLabels and the head need '
                    'equal classes and map_grid'
                )
