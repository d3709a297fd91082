"""Samples that cannot be read: which others take their place, how many may be bad, and who counts."""

from __future__ import annotations

import warnings
from typing import Any, List

import pytest
from torch.utils.data import DataLoader, Dataset

from geomim.adapter.bad_samples import BadSamples, UnreadableFile, check_policy

COUNT = 50


class Files(Dataset):
    """Sample i is i; some cannot be read."""

    def __init__(self, absent: List[int], limit: int = 10) -> None:
        self.absent = absent
        self.bad_samples = BadSamples(limit, COUNT)
        self.tried: List[int] = []

    def __len__(self) -> int:
        return COUNT

    def read(self, index: int) -> int:
        self.tried.append(index)
        if index in self.absent:
            raise (UnreadableFile if index % 2 else FileNotFoundError)(f'file {index} is absent')
        return index

    def __getitem__(self, index: int) -> Any:
        return self.bad_samples.load(self.read, index, COUNT)


def test_the_substitute_follows_from_the_index_alone() -> None:
    """Whatever was read before and however many are bad elsewhere, as after a resumption."""
    files = Files([7, 8, 9])
    with pytest.warns(UserWarning, match='bad sample'):
        first = [files[index] for index in (7, 8, 9)]
    assert not set(first) & {7, 8, 9}
    assert len(set(first)) > 1, 'one neighbour stands in for all'
    with pytest.warns(UserWarning, match='bad sample'):
        assert [Files([7, 8, 9])[index] for index in (9, 8, 7)] == first[::-1]
    again = Files([7, first[0]])
    with pytest.warns(UserWarning, match='bad sample'):
        assert again[7] not in (7, first[0])
    assert again.tried[:2] == [7, first[0]]
    assert files[3] == 3


def test_each_is_named_once_and_one_too_many_ends_the_run() -> None:
    files = Files([1, 2, 3], limit=2)
    with pytest.warns(UserWarning, match=r'bad sample 1 .*1 so far, max_bad_samples=2.*file 1 is absent'):
        files[1]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        files[1]
    with pytest.warns(UserWarning, match='bad sample 2 .*2 so far.*file 2 is absent'):
        files[2]
    assert files.bad_samples.number == 2
    with pytest.raises(
        ValueError, match='3 samples cannot be read, more than max_bad_samples=2; .* 3: file 3 is absent'
    ):
        files[3]


def test_other_faults_are_not_skipped() -> None:
    def read(index: int) -> int:
        raise ValueError('a camera is missing')

    bad = BadSamples(10, COUNT)
    with pytest.raises(ValueError, match='a camera is missing'):
        bad.load(read, 0, COUNT)
    assert bad.number == 0


@pytest.mark.filterwarnings('ignore:bad sample')
def test_data_of_one_sample_that_is_bad_end() -> None:
    files = Files([0])
    with pytest.raises(ValueError, match='sample 0 cannot be read, and in 1000 attempts'):
        files.bad_samples.load(files.read, 0, 1)


@pytest.mark.filterwarnings('ignore:bad sample')
def test_workers_count_together() -> None:
    files = Files([4, 11])
    found = [int(index) for index in DataLoader(files, batch_size=None, num_workers=2)]
    assert found == [Files([4, 11])[index] for index in range(COUNT)]
    assert files.bad_samples.number == 2


@pytest.mark.parametrize(
    'policy, limit, training, message',
    [
        ('ignore', 10, True, "on_bad_sample must be 'raise' or 'skip', got 'ignore'"),
        ('skip', 0, True, 'max_bad_samples must be at least 1, got 0'),
        ('skip', 10, False, 'scores need every sample'),
    ],
)
def test_policies_that_cannot_be(policy: str, limit: int, training: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_policy(policy, limit, training)
