"""Datasets around a fork's."""

from __future__ import annotations

from typing import Any, List

import numpy as np

from ..adapter.balance import class_balanced
from .host import DATASETS, CBGSDataset, build_dataset


@DATASETS.register_module()
class GeoMIMCBGSDataset(CBGSDataset):
    """The fork's ``CBGSDataset`` (same draws) for data in which a class may be absent.

    Args:
        dataset: the dataset to draw from, or its config.

    Raises:
        ValueError: no sample has any of the classes.
    """

    def __init__(self, dataset: Any) -> None:
        super().__init__(build_dataset(dataset) if isinstance(dataset, dict) else dataset)

    def _get_sample_indices(self) -> List[int]:
        classes_of = (self.dataset.get_cat_ids(index) for index in range(len(self.dataset)))
        return class_balanced(classes_of, self.CLASSES, np.random.choice)
