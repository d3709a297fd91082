"""Class-balanced sampling in pretraining, whose data may lack a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('mmdet3d')

import mmengine
from mmdet3d.datasets import CBGSDataset
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

import geomim.mmdet3d  # noqa: F401

PRETRAINING = 'configs/mmdet3d/pretrain/geomim_swin-b_50e_nuscenes_256x704.py'


@pytest.fixture
def settings(repository: Path, small_world: Path) -> Any:
    """The training dataset of the published pretraining, on the small world; it reads no image."""
    init_default_scope('mmdet3d')
    dataset = Config.fromfile(str(repository / PRETRAINING)).train_dataloader.dataset
    dataset.dataset.update(data_root=f'{small_world}/', metainfo=dict(version='v1.0-trainval'), pipeline=[])
    return dataset


def keep(settings: Any, world: Path, path: Path, *labels: int) -> Any:
    """The settings with an info file that has boxes of these labels alone."""
    file = mmengine.load(world / 'nuscenes_infos_train.pkl')
    for info in file['data_list']:
        info['instances'] = [row for row in info['instances'] if row['bbox_label_3d'] in labels]
    mmengine.dump(file, path)
    settings.dataset.ann_file = str(path)
    return settings


def test_pretraining_balances_what_is_there(settings: Any, small_world: Path, tmp_path: Path) -> None:
    data = DATASETS.build(keep(settings, small_world, tmp_path / 'two.pkl', 0, 7))
    held = [data.dataset.get_cat_ids(index) for index in range(len(data.dataset))]
    present = set().union(*held)
    assert 0 < len(present) <= 2
    assert len(data) == len(present) * max(1, int(sum(map(len, held)) / 10))
    assert all(held[index] for index in data.sample_indices)


def test_pretraining_without_a_box_says_what_to_do(settings: Any, small_world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='none of the 4 samples has a box of .*; train on the dataset itself'):
        DATASETS.build(keep(settings, small_world, tmp_path / 'none.pkl'))


def test_pretraining_draws_as_mmdet3d_does_where_every_class_is_there(settings: Any) -> None:
    data = DATASETS.build(settings.dataset)
    data.get_cat_ids = lambda index: set(range(10)) if index else {0, 3, 9}
    draws = []
    for kind in (CBGSDataset, DATASETS.get(settings.type)):
        np.random.seed(3)
        draws.append(kind(data).sample_indices)
    assert draws[0] == draws[1]
