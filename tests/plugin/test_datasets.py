"""Class-balanced sampling in a fork's pretraining, whose data may lack a class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, List, Set

import numpy as np
import pytest
from mmdet3d.datasets import build_dataset
from mmdet3d.datasets.builder import DATASETS
from mmdet3d.datasets.dataset_wrappers import CBGSDataset

import geomim.plugin  # noqa: F401


@DATASETS.register_module()
class Listed:
    """A dataset of samples of which only the classes are known."""

    CLASSES = ('car', 'bus', 'bicycle')

    def __init__(self, classes_of: List[Set[int]]) -> None:
        self.classes_of = classes_of
        self.flag = np.arange(len(classes_of), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.classes_of)

    def __getitem__(self, index: int) -> Any:
        return SimpleNamespace(index=index)

    def get_cat_ids(self, index: int) -> Set[int]:
        return self.classes_of[index]


def test_an_absent_class_does_not_stop_class_balancing() -> None:
    settings = dict(type='Listed', classes_of=[{0}, {0, 2}, set(), {2}])
    with pytest.raises(ZeroDivisionError):
        build_dataset(dict(type='CBGSDataset', dataset=settings))
    data = build_dataset(dict(type='GeoMIMCBGSDataset', dataset=settings))
    assert len(data) == 2
    assert [data[place].index for place in range(2)] == data.sample_indices == data.flag.tolist()
    assert 2 not in data.sample_indices, 'a sample without a box'
    assert len(DATASETS.get('GeoMIMCBGSDataset')(Listed([{0}, {1}]))) == 2, 'a dataset that is built'


def test_class_balancing_draws_as_the_fork_does() -> None:
    draws = []
    for kind in (CBGSDataset, DATASETS.get('GeoMIMCBGSDataset')):
        np.random.seed(3)
        draws.append(kind(Listed([{0}, {0, 1, 2}, {0, 2}, {1}, {0}, {2}])).sample_indices)
    assert draws[0] == draws[1]


def test_a_sample_that_cannot_be_read_stops_or_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same other sample each time, in the place of the balanced draw."""

    def read(self: Listed, index: int) -> Any:
        if index == 1:
            raise OSError('image file is truncated')
        return SimpleNamespace(index=index)

    monkeypatch.setattr(Listed, '__getitem__', read)
    settings = dict(type='GeoMIMCBGSDataset', dataset=dict(type='Listed', classes_of=[{0}, {1}, {2}]))
    place = build_dataset(settings).sample_indices.index(1)
    with pytest.raises(OSError, match='truncated'):
        build_dataset(settings)[place]
    found = set()
    for _ in range(3):
        data = build_dataset(dict(settings, on_bad_sample='skip'))
        with pytest.warns(UserWarning, match='bad sample 1 is skipped.*truncated'):
            found.add(data[data.sample_indices.index(1)].index)
        assert data.bad_samples.number == 1
    assert len(found) == 1
    assert found < {0, 2}
    with pytest.raises(ValueError, match='on_bad_sample must be'):
        build_dataset(dict(settings, on_bad_sample='ignore'))
