"""From a list of packed samples to the batch that the pretraining model takes.

Shape legend: B samples, N cameras, H x W pixels, M points, F features a point.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping, Sequence

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor

from ..method.depth import check_points
from .rig import build_rig, sample_name

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0 to 255
IMAGENET_STD = (58.395, 57.12, 57.375)


def _check_same_shape(key: str, tensors: Sequence[Tensor], names: Sequence[str], expected: str) -> None:
    for tensor, name in zip(tensors, names):
        if tensor.dim() != len(expected.split(',')):
            raise ValueError(f'{name}: {key} has shape {tuple(tensor.shape)}, expected ({expected})')
        if tensor.shape != tensors[0].shape:
            raise ValueError(
                f'a batch needs equal numbers of cameras and image sizes: {key} ({expected}) of {names[0]} is '
                f'{tuple(tensors[0].shape)}, of {name} {tuple(tensor.shape)}'
            )


def _check_finite(key: str, tensors: Sequence[Tensor], names: Sequence[str]) -> None:
    for tensor, name in zip(tensors, names):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            where = (~torch.isfinite(tensor)).nonzero()[0].tolist()
            raise ValueError(f'{name}: {key}{where} is {tensor[tuple(where)].item()}, it must be finite')


@MODELS.register_module()
class GeoMIMDataPreprocessor(BaseDataPreprocessor):
    """Checks a batch on the host, moves it to the model's device, and normalises its images there.

    Args:
        mean: of the channels R, G, B, in 0 to 255.
        std: likewise.
        bgr_to_rgb: whether images arrive as BGR, as mmcv and OpenCV read them.
        non_blocking: asynchronous transfer, of use with pinned memory.

    Raises:
        ValueError: mean or std that are no three finite numbers, or a std that is not positive.

    Source: METHOD 5.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        bgr_to_rgb: bool = True,
        non_blocking: bool = True,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        for name, values in (('mean', mean), ('std', std)):
            numbers = [float(value) for value in values]
            usable = len(numbers) == 3 and all(map(math.isfinite, numbers))
            if not usable or (name == 'std' and min(numbers) <= 0):
                raise ValueError(
                    f'GeoMIMDataPreprocessor: {name} must be three finite numbers (R, G, B) in 0 to 255, std above 0; '
                    f'got {tuple(values)}'
                )
            self.register_buffer(name, torch.tensor(numbers).view(3, 1, 1), persistent=False)
        self.bgr_to_rgb = bgr_to_rgb

    def forward(self, data: Mapping[str, Any], training: bool = False) -> Dict[str, Any]:
        """A batch of ``pseudo_collate`` to the model's input.

        Args:
            data: ``inputs`` with lists of B: img (N, 3, H, W), points (M, F), and, if wanted, depth_map (N, H, W);
                ``data_samples``, B with the calibration as meta information.
            training: not used; nothing here is random.

        Returns:
            ``inputs``: images (B, N, 3, H, W) float32, normalised RGB; points, B (M, F) float32, metres; depth_map
            (B, N, H, W) float32, metres, if there was one; rig, the ``CameraRig``. ``data_samples``: as given.

        Raises:
            ValueError: samples that do not fit each other, or values that are not finite; names the samples.
        """
        inputs, data_samples = data['inputs'], list(data['data_samples'])
        metas = [sample.metainfo for sample in data_samples]
        self._check(inputs, metas)
        rig = build_rig(metas)
        rig.check_finite(f'camera rig of {", ".join(map(sample_name, metas))}')
        batch: Dict[str, Any] = {'images': self._normalise(self._move(inputs['img']))}
        batch['rig'] = rig.to(self.device, non_blocking=self._non_blocking)
        if 'points' in inputs:
            batch['points'] = [points.float() for points in self._move(inputs['points'])]
        if 'depth_map' in inputs:
            batch['depth_map'] = torch.stack(self._move(inputs['depth_map'])).float()
        return {'inputs': batch, 'data_samples': data_samples}

    @staticmethod
    def _check(inputs: Mapping[str, Sequence[Tensor]], metas: Sequence[Mapping[str, Any]]) -> None:
        names = [sample_name(meta) for meta in metas]
        if 'img' not in inputs:
            raise ValueError(f"{names[0]}: no 'img' among the inputs {sorted(inputs)}")
        _check_same_shape('img', inputs['img'], names, 'N, 3, H, W')
        _check_finite('img', inputs['img'], names)
        for image, meta, name in zip(inputs['img'], metas, names):
            if len(image) != len(meta.get('cam_names', image)):
                raise ValueError(f'{name}: {len(image)} images for the cameras {list(meta["cam_names"])}')
        if 'depth_map' in inputs:
            _check_same_shape('depth_map', inputs['depth_map'], names, 'N, H, W')
            _check_finite('depth_map', inputs['depth_map'], names)
        for points, meta, name in zip(inputs.get('points', ()), metas, names):
            check_points(points, f'{name}, {meta.get("lidar_path", "points")}')

    def _move(self, tensors: Sequence[Tensor]) -> List[Tensor]:
        return [tensor.to(self.device, non_blocking=self._non_blocking) for tensor in tensors]

    def _normalise(self, images: Sequence[Tensor]) -> Tensor:
        batch = torch.stack(list(images))  # images cross to the device as bytes where the pipeline left them so
        if self.bgr_to_rgb:
            batch = batch.flip(2)
        return (batch.float() - self.mean) / self.std
