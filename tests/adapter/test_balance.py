"""Class-balanced sampling: an absent class is passed over, the others get equal shares."""

from __future__ import annotations

from collections import Counter
from typing import List

import pytest

from geomim.adapter.balance import class_balanced


def first(indices: List[int], count: int) -> List[int]:
    return [indices[place % len(indices)] for place in range(count)]


def test_absent_classes_leave_equal_shares_to_the_others() -> None:
    classes_of = [{0}, {0, 2}, {0, -1}, {-1}, {2}, {0, 2}]
    found = Counter(class_balanced(classes_of, ['car', 'bus', 'bicycle', 'tram'], first))
    # 7 things of 4 classes: int(7 / 4) samples for each of the two that are there
    assert found == Counter([0, 1])
    assert class_balanced([{1}], ['car', 'bus', 'tram'], first) == [0], 'a class that is there gets a sample at least'


def test_nothing_to_balance_is_named() -> None:
    with pytest.raises(ValueError, match=r"none of the 3 samples has a box of \['car', 'bus'\]; train on the dataset"):
        class_balanced([set(), {-1}, set()], ['car', 'bus'], first)
