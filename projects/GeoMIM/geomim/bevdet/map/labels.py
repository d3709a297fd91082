"""Map labels of keyframes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from mmengine.structures import PixelData

from ...mmengine.rig import sample_name
from ...nuscenes.infos import VERSIONS, find_version, read_table
from ..poses import camera_pose
from .layers import read_areas
from .spec import MAP_CLASSES, MapSpec


@functools.lru_cache(maxsize=None)
def scene_locations(root: Path) -> Mapping[str, str]:
    """The map's name of every scene, by the scene's token, from a nuScenes folder's tables.

    Raises:
        ValueError: a folder without tables, or a table that is no JSON.
    """
    find_version(root)
    locations: Dict[str, str] = {}
    for folder in (root / version for version in VERSIONS if (root / version / 'scene.json').is_file()):
        logs = {log['token']: log['location'] for log in read_table(folder / 'log.json')}
        locations.update({scene['token']: logs[scene['log_token']] for scene in read_table(folder / 'scene.json')})
    return locations


@TRANSFORMS.register_module()
class LoadBEVMapLabels(BaseTransform):
    """Draws the map around a keyframe: which cells of the augmented key ego frame lie in which class.

    Goes after ``LoadSurroundFrames`` and ``BEVDetBEVAug``, whose rotation, scale and mirroring it follows. The frame is that of the
    model's BEV features, the first camera's ego, whatever frame boxes are in.

    Args:
        data_root: nuScenes folder, with the map expansion in maps/expansion.
        classes, map_grid: of the labels, see :class:`MapSpec`; a cell is of a class if its middle is.
        line_width: how wide dividers count, metres before augmentation.

    Writes:
        gt_bev_map: ``PixelData`` with data (C, Y, X) bool, row 0 at the smallest y, and the classes and bounds that belong to it.

    Raises:
        ValueError: an unknown class; a grid that cannot be; an absent table, map or transform; a scene that is not in the tables.

    Source: BEVFusion (arXiv 2205.13542), whose labels also take in the cells along an area's edge.
    """

    def __init__(
        self,
        data_root: str,
        classes: Sequence[str] = MAP_CLASSES,
        map_grid: Optional[Mapping[str, Sequence[float]]] = None,
        line_width: float = 1.0,
    ) -> None:
        if line_width <= 0:
            raise ValueError(f'LoadBEVMapLabels: line_width must be above 0 m, got {line_width}')
        self.root = Path(data_root)
        self.spec = MapSpec.create(classes, map_grid)
        self.line_width = float(line_width)

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        where = sample_name(results)
        absent = [key for key in ('cam_names', 'bev_aug_matrix', 'scene_token') if key not in results]
        if absent:
            raise ValueError(
                f'{where}: no {", ".join(absent)}; LoadBEVMapLabels goes after LoadSurroundFrames and BEVDetBEVAug, on samples of '
                'BEVDetNuScenesDataset'
            )
        areas = read_areas(self.root, self._location(results, where), self.spec.classes, self.line_width)
        key_ego2global = camera_pose(results, results['cam_names'][0])
        ego2map = key_ego2global @ np.linalg.inv(results['bev_aug_matrix'])
        labels = np.stack([area.rasterise(ego2map, self.spec.grid) for area in areas])
        results['gt_bev_map'] = PixelData(metainfo=self.spec.as_meta(), data=torch.from_numpy(labels))
        return results

    def _location(self, results: Mapping[str, Any], where: str) -> str:
        location = scene_locations(self.root).get(results['scene_token'])
        if location is None:
            raise ValueError(
                f'{where}: its scene {results["scene_token"]} is not in the tables of {self.root}; does data_root of '
                'LoadBEVMapLabels name the folder of the info file?'
            )
        return location

    def __repr__(self) -> str:
        return f'{type(self).__name__}(data_root={str(self.root)!r}, spec={self.spec}, line_width={self.line_width})'
