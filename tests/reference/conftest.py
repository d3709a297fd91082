"""Where the reference tensors are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def reference_folder(repository: Path) -> Path:
    folder = Path(os.environ.get('GEOMIM_REFERENCE', str(repository.parent / 'shared' / 'reference')))
    if not (folder / 'pretrain_tiny.npz').is_file():
        pytest.skip(f'no reference tensors in {folder}; set GEOMIM_REFERENCE to their folder')
    return folder
