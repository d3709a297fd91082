"""Where the reference tensors are. One thread: the models are small."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator

import pytest
import torch


@pytest.fixture(scope='session')
def reference_folder(repository: Path) -> Path:
    folder = Path(os.environ.get('GEOMIM_REFERENCE', str(repository.parent / 'shared' / 'reference')))
    if not (folder / 'pretrain_tiny.npz').is_file():
        pytest.skip(f'no reference tensors in {folder}; set GEOMIM_REFERENCE to their folder')
    return folder


@pytest.fixture(autouse=True, scope='module')
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
