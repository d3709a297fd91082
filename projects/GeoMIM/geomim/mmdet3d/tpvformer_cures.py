"""Cures for TPVFormer of mmdet3d 1.4's source tree (``projects/TPVFormer``).

Each looks whether its defect is there and leaves a TPVFormer without it as it is:

    reference points   are made on the device 'cuda', also where there is none
    dynamic scatter    has no CPU implementation, and the preprocessor calls it for every batch
    predict            takes the arg-max over classes twice, so that one number is left of all points' labels

Shape legend: P points, V voxels, F features, K classes.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Tuple

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.logging import print_log
from torch import Tensor

PROJECT = 'projects.TPVFormer.tpvformer'
CHECKOUT = 'GEOMIM_MMDET3D_CHECKOUT'
Scatter = Callable[..., Tuple[Tensor, ...]]
_CLASSES = ('TPVFormer', 'TPVFormerEncoder', 'TPVFormerDataPreprocessor')
_REDUCTIONS: Dict[str, str] = {'mean': 'mean', 'sum': 'sum', 'max': 'amax'}


def import_project() -> None:
    """Register TPVFormer, from where it is importable or else from the checkout that an environment variable names.

    Raises:
        ImportError: it is in neither place.
    """
    checkout = os.environ.get(CHECKOUT, '')
    try:
        importlib.import_module(PROJECT)
    except ModuleNotFoundError as error:
        if not PROJECT.startswith(str(error.name)):
            raise  # the project is there and lacks something else
        if not os.path.isfile(os.path.join(checkout, *PROJECT.split('.'), '__init__.py')):
            raise ImportError(
                f"TPVFormer is not in the installed mmdet3d but in its repository's projects folder: let {CHECKOUT} name a "
                f'checkout of mmdet3d 1.4 (now: {checkout or "not set"})'
            ) from error
        sys.path.append(os.path.abspath(checkout))  # at the end, so that the installed mmdet3d stays the one in use
        importlib.import_module(PROJECT)


def apply() -> Tuple[str, ...]:
    """Install the cures that are needed.

    Returns:
        Their names, of 'reference points', 'dynamic scatter' and 'predict'.
    """
    segmentor, encoder, preprocessor = (MODELS.get(name) for name in _CLASSES)
    applied: List[str] = []
    if _default_device(encoder) == 'cuda':
        encoder.get_reference_points = staticmethod(partial(encoder.get_reference_points, device='cpu'))
        applied.append('reference points')
    room = sys.modules[preprocessor.__module__]
    if not _scatters_on_cpu(room.dynamic_scatter_3d):
        room.dynamic_scatter_3d = partial(scatter, on_gpu=room.dynamic_scatter_3d)
        applied.append('dynamic scatter')
    if not _labels_every_point(segmentor):
        segmentor.predict = _predict
        applied.append('predict')
    if applied:
        print_log(f'TPVFormer: cured {", ".join(applied)}', logger='current')
    return tuple(applied)


def _default_device(encoder: Any) -> Any:
    device = inspect.signature(encoder.get_reference_points).parameters.get('device')
    return None if device is None else device.default


def _scatters_on_cpu(function: Scatter) -> bool:
    try:
        function(torch.ones(1, 1), torch.zeros(1, 3, dtype=torch.int32), 'mean', True)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _labels_every_point(segmentor: Any) -> bool:
    """Whether ``predict`` makes labels (P,) from logits (P, K), tried with two points and three classes."""
    logits = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    model = SimpleNamespace(
        extract_feat=lambda images: images,
        encoder=lambda features, samples: features,
        decode_head=SimpleNamespace(predict=lambda queries, samples: [logits]),
    )
    model.postprocess_result = partial(segmentor.postprocess_result, model)
    try:
        (sample,) = segmentor.predict(model, {'imgs': None}, [Det3DDataSample()])
        return sample.pred_pts_seg.pts_semantic_mask.tolist() == [1, 2]
    except (IndexError, TypeError, ValueError):
        return False


def scatter(
    features: Tensor, coordinates: Tensor, reduce: str = 'max', return_map: bool = False, *, on_gpu: Scatter
) -> Tuple[Tensor, ...]:
    """mmdet3d's ``dynamic_scatter_3d``, in plain PyTorch where the tensors are on a CPU.

    Args:
        features: (P, F).
        coordinates: (P, 3) integers; points with a negative one belong to no voxel.
        reduce: 'mean', 'sum' or 'max'.
        return_map: whether to return the third tensor.
        on_gpu: takes all of this on other devices.

    Returns:
        (V, F) features, (V, 3) coordinates in lexicographic order, and (P,) the voxel of each point, -1 for none.

    Raises:
        ValueError: another ``reduce``.
    """
    if features.device.type != 'cpu':
        return on_gpu(features, coordinates, reduce, return_map)
    if reduce not in _REDUCTIONS:
        raise ValueError(f'reduce must be one of {", ".join(_REDUCTIONS)}, got {reduce!r}')
    inside = (coordinates >= 0).all(dim=1)
    voxels, owners = coordinates[inside].unique(dim=0, return_inverse=True)
    index = owners[:, None].expand(-1, features.shape[1])
    reduced = features.new_zeros(len(voxels), features.shape[1])
    reduced = reduced.scatter_reduce(0, index, features[inside], _REDUCTIONS[reduce], include_self=False)
    if not return_map:
        return reduced, voxels
    point2voxel = owners.new_full((len(coordinates),), -1)
    point2voxel[inside] = owners
    return reduced, voxels, point2voxel.to(coordinates.dtype)


def _predict(self: Any, batch_inputs: Dict[str, Any], batch_data_samples: List[Any]) -> List[Any]:
    """TPVFormer's ``predict`` that hands logits (K, P), as the base class wants them, where it handed labels (P,)."""
    queries = self.encoder(self.extract_feat(batch_inputs['imgs']), batch_data_samples)
    logits = self.decode_head.predict(queries, batch_data_samples)
    return self.postprocess_result([of_points.transpose(0, 1) for of_points in logits], batch_data_samples)
