"""nuScenes keyframes with their past, and class-balanced sampling of them."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from mmengine.fileio import join_path
from mmengine.registry import DATASETS

from ...mmdet3d.datasets import GeoMIMCBGSDataset
from ...mmdet3d.nuscenes_dataset import PlainNuScenesDataset
from ..poses import lidar_frame

# The order of the published detectors' classes; mmdet3d's own differs
BEVDET_CLASSES = (
    'car',
    'truck',
    'construction_vehicle',
    'bus',
    'trailer',
    'barrier',
    'motorcycle',
    'bicycle',
    'pedestrian',
    'traffic_cone',
)
MAKE_INFOS = 'python -m geomim infos ROOT writes info files for it'


def past_offsets(multi_adj_frame_id_cfg: Optional[Sequence[int]], stereo: bool = False) -> Tuple[int, ...]:
    """How many keyframes back each past frame lies: BEVDet's range (start, stop, step), for stereo with one more.

    Raises:
        ValueError: no range, one that does not start in the past, or for stereo another start or step than 1.
    """
    if multi_adj_frame_id_cfg is None:
        if stereo:
            raise ValueError('stereo needs past frames: multi_adj_frame_id_cfg=(1, 2, 1) takes one and a reference')
        return ()
    given = tuple(multi_adj_frame_id_cfg)
    if len(given) != 3 or given[0] < 1 or given[1] < given[0] or given[2] < 1:
        raise ValueError(
            f'multi_adj_frame_id_cfg must be (start, stop, step) with 1 <= start <= stop and step >= 1, got {given}; '
            '(1, 2, 1) is the keyframe before'
        )
    if not stereo:
        return tuple(range(*given))
    if given[0] != 1 or given[2] != 1:
        raise ValueError(f'stereo needs every keyframe: multi_adj_frame_id_cfg must be (1, stop, 1), got {given}')
    return (*range(*given), given[1])


@DATASETS.register_module()
class BEVDetNuScenesDataset(PlainNuScenesDataset):
    """``PlainNuScenesDataset`` that hands every sample its past keyframes, scene by scene in the order of time.

    A past frame before the start of its scene is replaced with the key frame itself. So does BEVDet, but in the scene that
    the file begins with, where it takes the first frame. Here a scene's place in the file does not count, unless
    ``clamp_first_scene`` says so. What the past frames hold is fixed when the file is read, so ``indices``,
    ``filter_empty_gt`` and samplers cannot tear them away.

    Args:
        multi_adj_frame_id_cfg: BEVDet's range (start, stop, step) of past frames, in keyframes back; None takes none.
        stereo: one more frame, the reference of the oldest one's stereo matching.
        clamp_first_scene: in the first scene of the file its first frame stands in, as in BEVDet.
        use_valid_flag: boxes with at least one LiDAR or radar point (BEVDet), else with at least one LiDAR point.
        metainfo: as mmdet3d's; the default has the class order of the published detectors.
        kwargs: of ``PlainNuScenesDataset``; ``ann_file`` is made by ``python -m geomim infos``, ``data_prefix`` may have
            ``occupancy``, the folder of Occ3D's labels.

    Writes:
        occupancy_path: of each sample's labels.npz, with ``data_prefix=dict(occupancy='gts', ...)``.
        Each sample's ``past_frames``, from newest to oldest, dictionaries with token, scene_token, timestamp (seconds)
        and images as in the info file. Sweeps and two-dimensional boxes of the file are dropped to save memory.

    Raises:
        ValueError: a range that is none, or info files without links or with links that lead to another scene, to a
            later time, or out of the file.
    """

    def __init__(
        self,
        *args: Any,
        multi_adj_frame_id_cfg: Optional[Sequence[int]] = None,
        stereo: bool = False,
        clamp_first_scene: bool = False,
        use_valid_flag: bool = True,
        metainfo: Optional[Mapping[str, Any]] = None,
        **kwargs: Any,
    ) -> None:
        self.offsets = past_offsets(multi_adj_frame_id_cfg, stereo)
        self.clamp_first_scene = clamp_first_scene
        modality = kwargs.pop('modality', None) or dict(use_camera=True, use_lidar=True)
        names = {'classes': BEVDET_CLASSES, **(metainfo or {})}
        super().__init__(*args, use_valid_flag=use_valid_flag, metainfo=names, modality=modality, **kwargs)

    @property
    def num_frames(self) -> int:
        """Frames a sample, the key frame included."""
        return 1 + len(self.offsets)

    def parse_data_info(self, info: Dict[str, Any]) -> Dict[str, Any]:
        absent = [key for key in ('scene_token', 'prev') if key not in info]
        if absent:
            raise ValueError(f'{self.ann_file}: sample {info.get("token")} has no {", ".join(absent)}; {MAKE_INFOS}')
        kept = {key: value for key, value in info.items() if key not in ('lidar_sweeps', 'cam_instances')}
        if self.test_mode:
            kept.setdefault('instances', [])  # a recording without annotations
        kept['lidar_points'] = lidar_frame(info)
        parsed: Dict[str, Any] = super().parse_data_info(kept)
        if 'occupancy' in self.data_prefix:
            parsed['occupancy_path'] = self._occupancy_path(info)
        return parsed

    def _occupancy_path(self, info: Mapping[str, Any]) -> str:
        if info.get('scene_name') is None:
            raise ValueError(
                f'{self.ann_file}: sample {info["token"]} has no scene_name, by which occupancy labels are found; {MAKE_INFOS} '
                '(--force replaces older ones)'
            )
        return join_path(self.data_prefix['occupancy'], info['scene_name'], info['token'], 'labels.npz')

    def load_data_list(self) -> List[Dict[str, Any]]:
        data_list: List[Dict[str, Any]] = super().load_data_list()
        starts: Dict[str, float] = {}
        for info in data_list:
            starts[info['scene_token']] = min(info['timestamp'], starts.get(info['scene_token'], np.inf))
        data_list.sort(key=lambda info: (starts[info['scene_token']], info['scene_token'], info['timestamp']))
        by_token = {info['token']: info for info in data_list}
        clamped = data_list[0]['scene_token'] if data_list and self.clamp_first_scene else None
        return [
            dict(info, past_frames=self._past_frames(info, by_token, info['scene_token'] == clamped))
            for info in data_list
        ]

    def _past_frames(
        self, info: Mapping[str, Any], by_token: Mapping[str, Mapping[str, Any]], clamped: bool
    ) -> List[Dict[str, Any]]:
        chain = [info]
        while len(chain) <= max(self.offsets, default=0) and chain[-1]['prev']:
            chain.append(self._previous(chain[-1], by_token))
        stand_in = chain[-1] if clamped else info
        frames = [chain[offset] if offset < len(chain) else stand_in for offset in self.offsets]
        return [{key: frame[key] for key in ('token', 'scene_token', 'timestamp', 'images')} for frame in frames]

    def _previous(self, info: Mapping[str, Any], by_token: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
        where = f'{self.ann_file}: sample {info["token"]} of scene {info["scene_token"]}'
        previous = by_token.get(info['prev'])
        if previous is None:
            raise ValueError(
                f'{where}: the keyframe before it, {info["prev"]}, is not in the file; to use a part of the data give '
                "the whole file and the dataset's argument indices"
            )
        if previous['scene_token'] != info['scene_token']:
            raise ValueError(
                f'{where}: the keyframe before it, {previous["token"]}, belongs to scene {previous["scene_token"]}; a '
                f'past frame must come from the same scene; {MAKE_INFOS}'
            )
        if previous['timestamp'] >= info['timestamp']:
            raise ValueError(
                f'{where}: the keyframe before it, {previous["token"]}, is not earlier ({previous["timestamp"]} s, not '
                f'before {info["timestamp"]} s)'
            )
        return previous


@DATASETS.register_module()
class BEVDetCBGSDataset(GeoMIMCBGSDataset):
    """``GeoMIMCBGSDataset`` by the name that configs of the BEVDet family know."""
