"""Datasets around a fork's."""

from __future__ import annotations

from typing import Any, List

import numpy as np

from ..adapter.bad_samples import BadSamples, check_policy
from ..adapter.balance import class_balanced
from .host import DATASETS, CBGSDataset, build_dataset


@DATASETS.register_module()
class GeoMIMCBGSDataset(CBGSDataset):
    """The fork's ``CBGSDataset`` (same draws) for data in which a class may be absent.

    Args:
        dataset: the dataset to draw from, or its config.
        on_bad_sample: 'raise' where a file of a sample cannot be read, or 'skip' it: each is named once in a warning, and
            another takes its place, which follows from the sample's number alone.
        max_bad_samples: how many samples may be skipped; one more ends the run. The workers of a loader count together.

    Raises:
        ValueError: no sample has any of the classes; more bad samples than may be.
    """

    def __init__(self, dataset: Any, on_bad_sample: str = 'raise', max_bad_samples: int = 10) -> None:
        check_policy(on_bad_sample, max_bad_samples)
        super().__init__(build_dataset(dataset) if isinstance(dataset, dict) else dataset)
        self.bad_samples = BadSamples(max_bad_samples, len(self.dataset)) if on_bad_sample == 'skip' else None

    def __getitem__(self, index: int) -> Any:
        if self.bad_samples is None:
            return super().__getitem__(index)
        return self.bad_samples.load(self.dataset.__getitem__, self.sample_indices[index], len(self.dataset))

    def _get_sample_indices(self) -> List[int]:
        classes_of = (self.dataset.get_cat_ids(index) for index in range(len(self.dataset)))
        return class_balanced(classes_of, self.CLASSES, np.random.choice)
