"""From the geometry that mmdet3d carries in its sample dictionaries to the core's ``CameraRig``."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..method.camera import CameraRig

RIG_KEYS = ('cam_names', 'cam2img', 'cam2ego', 'lidar2cam', 'img_aug_matrix', 'bev_aug_matrix')


def sample_name(sample: Mapping[str, Any]) -> str:
    """How messages call a sample: its token, else its index."""
    return f'sample {sample.get("token", sample.get("sample_idx", "without a token"))}'


def _stacked(samples: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.stack([np.asarray(sample[key], dtype=np.float64) for sample in samples])


def _check_samples(samples: Sequence[Mapping[str, Any]]) -> None:
    for sample in samples:
        absent = [key for key in RIG_KEYS if key not in sample]
        if absent:
            raise ValueError(
                f'{sample_name(sample)} has no {", ".join(absent)}: the pipeline needs LoadCameraRig, and the packing '
                f'transform must keep {list(RIG_KEYS)} among its meta_keys'
            )
    first = samples[0]
    for sample in samples[1:]:
        if list(sample['cam_names']) != list(first['cam_names']):
            raise ValueError(
                f'{sample_name(first)} has cameras {list(first["cam_names"])}, {sample_name(sample)} has '
                f'{list(sample["cam_names"])}: the samples of a batch need the same cameras in the same order '
                '(LoadCameraRig(cameras=[...]) selects and orders them)'
            )


def build_rig(samples: Sequence[Mapping[str, Any]], dtype: torch.dtype = torch.float32) -> CameraRig:
    """The rig of B samples (dictionaries or meta information with the keys ``RIG_KEYS``), on the host.

    Camera-to-LiDAR is inverted in float64 before it is cut to ``dtype``.

    Raises:
        ValueError: an absent key, or samples that differ in their cameras.
    """
    _check_samples(samples)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)

    return CameraRig(
        intrinsics=tensor(_stacked(samples, 'cam2img')[..., :3, :3]),
        cam2ego=tensor(_stacked(samples, 'cam2ego')),
        cam2bev=tensor(np.linalg.inv(_stacked(samples, 'lidar2cam'))),
        img_aug=tensor(_stacked(samples, 'img_aug_matrix')),
        bev_aug=tensor(_stacked(samples, 'bev_aug_matrix')),
        names=tuple(samples[0]['cam_names']),
    )
