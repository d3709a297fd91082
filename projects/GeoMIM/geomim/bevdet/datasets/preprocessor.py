"""From a list of packed samples to the batch that the detectors take.

Shape legend: B samples, F frames, N cameras, H x W pixels.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Sequence, Tuple

import torch
from mmengine.registry import MODELS
from torch import Tensor

from ...method.depth import check_points
from ...mmengine.preprocessor import GeoMIMDataPreprocessor
from ...mmengine.rig import sample_name

# Last dimensions of each input; F and N come from the images
_TAILS: Dict[str, Tuple[int, ...]] = {
    'cam2ego': (4, 4),
    'ego2global': (4, 4),
    'intrinsics': (3, 3),
    'img_aug': (4, 4),
}
_REQUIRED = ('images', *_TAILS, 'bev_aug')
_FOR_DEPTH = ('depth_map', 'points', 'cam2lidar')


@MODELS.register_module()
class BEVDetDataPreprocessor(GeoMIMDataPreprocessor):
    """Checks a batch on the host, stacks it, moves it to the model's device and normalises its images there.

    Args:
        args, kwargs: mean, std, bgr_to_rgb and non_blocking of ``GeoMIMDataPreprocessor``. The published BEVDet models
            were trained on images whose channels are B, G, R, normalised with the numbers of R, G, B (their pipeline
            swaps the channels of an image that is RGB already): ``bgr_to_rgb=False`` is right for their weights.
    """

    def forward(self, data: Mapping[str, Any], training: bool = False) -> Dict[str, Any]:
        """A batch of ``pseudo_collate`` to the model's input.

        Args:
            data: ``inputs`` with lists of B tensors, as ``PackBEVDetInputs`` makes them; ``data_samples``, B.
            training: not used; nothing here is random.

        Returns:
            ``inputs``: images (B, F, N, 3, H, W) float32, normalised; cam2ego, ego2global, img_aug (B, F, N, 4, 4),
            intrinsics (B, F, N, 3, 3), bev_aug (B, 4, 4), and, if there were any, depth_map (B, N, H, W) metres, points, B
            (M, 3), and cam2lidar (B, N, 4, 4), float32.
            ``data_samples``: on the device.

        Raises:
            ValueError: samples that do not fit each other, or values that are not finite; names the samples.
        """
        inputs, data_samples = data['inputs'], list(data['data_samples'])
        names = [sample_name(sample.metainfo) for sample in data_samples]
        metas = [sample.metainfo for sample in data_samples]
        self._check_batch(inputs, names)
        for points, meta, name in zip(inputs.get('points', ()), metas, names):
            check_points(points, f'{name}, {meta.get("lidar_path", "points")}')
        self._check_cameras(inputs['images'], metas, names)
        stacked = [key for key in inputs if key not in ('images', 'points')]
        batch: Dict[str, Any] = {key: torch.stack(self._move(inputs[key])).float() for key in stacked}
        if 'points' in inputs:
            batch['points'] = [points.float() for points in self._move(inputs['points'])]
        batch['images'] = self._normalise(self._move(inputs['images']))
        return {'inputs': batch, 'data_samples': self.cast_data(data_samples)}

    def _check_batch(self, inputs: Mapping[str, Sequence[Tensor]], names: Sequence[str]) -> None:
        absent = [key for key in _REQUIRED if key not in inputs]
        if absent:
            raise ValueError(
                f'{names[0]}: no {", ".join(absent)} among the inputs {sorted(inputs)}; PackBEVDetInputs packs them'
            )
        first = inputs['images'][0]
        for image, name in zip(inputs['images'], names):
            if image.dim() != 5 or image.shape[2] != 3:
                raise ValueError(f'{name}: images has shape {tuple(image.shape)}, expected (F, N, 3, H, W)')
            if image.shape != first.shape:
                raise ValueError(
                    'a batch needs equal numbers of frames and cameras and equal image sizes: images (F, N, 3, H, W) of '
                    f'{names[0]} is {tuple(first.shape)}, of {name} {tuple(image.shape)}'
                )
        frames, cams, _, height, width = first.shape
        expected = {key: (frames, cams, *tail) for key, tail in _TAILS.items()}
        expected.update(bev_aug=(4, 4), depth_map=(cams, height, width), cam2lidar=(cams, 4, 4))
        for key, tensors in inputs.items():
            if key not in (*_REQUIRED, *_FOR_DEPTH):
                raise ValueError(
                    f'{names[0]}: unknown input {key!r}; there may be {", ".join((*_REQUIRED, *_FOR_DEPTH))}'
                )
            self._check_tensors(key, tensors, names, expected.get(key))

    @staticmethod
    def _check_tensors(key: str, tensors: Sequence[Tensor], names: Sequence[str], shape: Any) -> None:
        if len(tensors) != len(names):
            raise ValueError(f'{len(tensors)} of {key} for {len(names)} samples; every sample of a batch needs one')
        for tensor, name in zip(tensors, names):
            if shape is not None and tuple(tensor.shape) != shape:
                raise ValueError(f'{name}: {key} has shape {tuple(tensor.shape)}, expected {shape} to fit the images')
            if key != 'points' and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                where = (~torch.isfinite(tensor)).nonzero()[0].tolist()
                raise ValueError(f'{name}: {key}{where} is {tensor[tuple(where)].item()}, it must be finite')

    @staticmethod
    def _check_cameras(images: Sequence[Tensor], metas: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
        first = list(metas[0].get('cam_names', []))
        for image, meta, name in zip(images, metas, names):
            cameras = list(meta.get('cam_names', []))
            if cameras != first:
                raise ValueError(
                    f'{names[0]} has cameras {first}, {name} has {cameras}: the samples of a batch need the same cameras '
                    'in the same order (data_config.cams)'
                )
            if cameras and image.shape[1] != len(cameras):
                raise ValueError(f'{name}: images of {image.shape[1]} cameras for the cameras {cameras}')

    def _normalise(self, images: Sequence[Tensor]) -> Tensor:
        batch = torch.stack(list(images))
        if self.bgr_to_rgb:
            batch = batch.flip(-3)
        return (batch.float() - self.mean) / self.std
