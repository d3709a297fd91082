"""What a dataset does with a sample whose files cannot be read: stop, or draw another in its place."""

from __future__ import annotations

import warnings
from typing import Any, Callable

import torch

POLICIES = ('raise', 'skip')
_ATTEMPTS = 1000


class UnreadableFile(ValueError):
    """A file that is absent, empty, cut short or not of its kind; the message names it."""


class BadSamples:
    """The samples that could not be read so far, shared by the processes of a loader.

    Args:
        limit: how many samples may be bad before the run ends.
        count: samples of the dataset.
    """

    def __init__(self, limit: int, count: int) -> None:
        self.limit = limit
        self._bad = torch.zeros(count, dtype=torch.uint8).share_memory_()

    @property
    def number(self) -> int:
        """Bad samples so far."""
        return int(self._bad.sum())

    def load(self, read: Callable[[int], Any], index: int, count: int) -> Any:
        """``read(index)``, or of another of ``count`` samples where that raises ``UnreadableFile`` or an ``OSError``.

        Which others are tried follows from ``index`` alone, so that a resumed run sees the same. Known ones are tried anew,
        for a step before the file may draw random numbers.

        Raises:
            ValueError: more bad samples than the limit, or none that can be read.
        """
        others = torch.Generator().manual_seed(index)
        chosen = index
        for _ in range(_ATTEMPTS):
            try:
                return read(chosen)
            except (UnreadableFile, OSError) as error:
                self._note(chosen, error)
            chosen = int(torch.randint(count, (), generator=others))
        raise ValueError(f'sample {index} cannot be read, and in {_ATTEMPTS} attempts no other was found that can be')

    def _note(self, index: int, error: Exception) -> None:
        """Tell of a bad sample once, and end the run where there are too many."""
        known = bool(self._bad[index])
        self._bad[index] = 1
        if self.number > self.limit:
            raise ValueError(
                f'{self.number} samples cannot be read, more than max_bad_samples={self.limit}; the last is sample {index}: '
                f'{error}'
            ) from error
        if not known:
            warnings.warn(
                f'bad sample {index} is skipped, another takes its place ({self.number} so far, '
                f'max_bad_samples={self.limit}): {error}',
                stacklevel=2,
            )


def check_policy(policy: str, limit: int, training: bool = True) -> None:
    """Raise ``ValueError`` for an unknown ``on_bad_sample``, a ``max_bad_samples`` below 1, or skipping where scores are made."""
    if policy not in POLICIES:
        raise ValueError(f"on_bad_sample must be 'raise' or 'skip', got {policy!r}")
    if limit < 1:
        raise ValueError(f'max_bad_samples must be at least 1, got {limit}')
    if policy == 'skip' and not training:
        raise ValueError("on_bad_sample='skip' is for training: scores need every sample, so test_mode=True must raise")
