"""Datasets around mmdet3d's."""

from __future__ import annotations

from typing import List

import numpy as np
from mmdet3d.datasets import CBGSDataset
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from ..adapter.balance import class_balanced


@DATASETS.register_module()
class GeoMIMCBGSDataset(CBGSDataset):
    """mmdet3d's ``CBGSDataset`` (same arguments, same draws) for data in which a class may be absent.

    Raises:
        ValueError: no sample has any of the classes.
    """

    def _get_sample_indices(self, dataset: BaseDataset) -> List[int]:
        classes_of = (dataset.get_cat_ids(index) for index in range(len(dataset)))
        return class_balanced(classes_of, self.metainfo['classes'], np.random.choice)
