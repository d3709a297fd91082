"""nuScenes detection scores of boxes in the key ego frame."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from mmengine.registry import METRICS

from ...mmdet3d.nuscenes_metric import GeoMIMNuScenesMetric
from ...mmengine.rig import sample_name
from ...nuscenes.infos import TEST
from ..poses import lidar_frame
from .transform import transform_boxes

# what nuScenes' server wants to be told of a submission
CAMERAS_ONLY = dict(use_camera=True, use_lidar=False, use_radar=False, use_map=False, use_external=False)


@METRICS.register_module()
class EgoNuScenesMetric(GeoMIMNuScenesMetric):
    """``GeoMIMNuScenesMetric`` (same arguments) for predictions in the frame of ``BoxesToKeyEgo``.

    Samples carry ``lidar2key_ego`` in their meta information; boxes go back into the LiDAR frame by its inverse. They also
    carry their ``token``, by which they find their poses: the dataset has its own order, not the info file's.
    ``modality``, which a submission's file repeats, is cameras only unless it is given.
    """

    def __init__(self, *args: Any, modality: Optional[Dict[str, bool]] = None, **kwargs: Any) -> None:
        super().__init__(*args, modality=modality or dict(CAMERAS_ONLY), **kwargs)

    def process(self, data_batch: Dict[str, Any], data_samples: Sequence[Dict[str, Any]]) -> None:
        """Take in a batch of predictions.

        Raises:
            ValueError: a sample without ``lidar2key_ego`` or ``token``, or scores of the test split.
        """
        if not self.format_only and (self.dataset_meta or {}).get('version') == TEST:
            raise ValueError(
                f'{self.ann_file}: {TEST} has no annotations to score against; test_evaluator.format_only=True and '
                'test_evaluator.jsonfile_prefix=FOLDER write the results for a submission'
            )
        super().process(data_batch, [self._in_lidar_frame(sample) for sample in data_samples])
        for result, sample in zip(self.results[-len(data_samples) :], data_samples):
            result['token'] = sample['token']

    def format_results(
        self, results: List[Dict[str, Any]], classes: Optional[List[str]] = None, jsonfile_prefix: Optional[str] = None
    ) -> Any:
        """mmdet3d's results files, of samples in any order.

        Raises:
            ValueError: a sample that is not in the info file.
        """
        places = {info['token']: place for place, info in enumerate(self.data_infos)}
        strange = [result['token'] for result in results if result['token'] not in places]
        if strange:
            raise ValueError(f'sample {strange[0]} is not in {self.ann_file}; take the info file of the dataset')
        self.data_infos = [dict(info, lidar_points=lidar_frame(info)) for info in self.data_infos]
        placed = [dict(result, sample_idx=places[result['token']]) for result in results]
        return super().format_results(placed, classes, jsonfile_prefix)

    @staticmethod
    def _in_lidar_frame(sample: Dict[str, Any]) -> Dict[str, Any]:
        for key in ('lidar2key_ego', 'token'):
            if key not in sample:
                raise ValueError(
                    f'{sample_name(sample)}: no {key} among its meta information; the pipeline needs BoxesToKeyEgo, and '
                    'PackBEVDetInputs must keep it in its meta_keys'
                )
        found = sample['pred_instances_3d']
        boxes = transform_boxes(found['bboxes_3d'], np.linalg.inv(np.asarray(sample['lidar2key_ego'])))
        return dict(sample, pred_instances_3d={**dict(found.items()), 'bboxes_3d': boxes})
