"""From a fork's ``img_inputs`` to the core's records, once, at the door.

Shape legend: B samples, N cameras, T frames (the key frame first), n = N * T, H x W pixels. Metres, pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from ..method.camera import CameraRig, homogeneous, inverse

_ENTRIES: Tuple[Tuple[str, Tuple[int, ...]], ...] = (
    ('sensor2egos', (4, 4)),
    ('ego2globals', (4, 4)),
    ('intrins', (3, 3)),
    ('post_rots', (3, 3)),
    ('post_trans', (3,)),
)
STEP = 'GeoMIMLidarFrame'


class SurroundInputs(NamedTuple):
    """images: (B, N, 3, H, W), of the key frame; rig: their cameras, whose ``cam2bev`` leads into the teacher's frame."""

    images: Tensor
    rig: CameraRig


def read_img_inputs(img_inputs: Sequence[Any], lidar2key: Any, num_cams: int) -> SurroundInputs:
    """The key frame of a batch.

    Args:
        img_inputs: imgs (B, n, 3, H, W), camera by camera; sensor2egos and ego2globals (B, n, 4, 4), intrins and post_rots
            (B, n, 3, 3), post_trans (B, n, 3), frame by frame; bda (B, 3, 3) or (B, 4, 4).
        lidar2key: (B, 4, 4), the points' frame, which is the LiDAR's unless the pipeline put them elsewhere, to the ego frame of the
            first camera; from the pipeline step ``GeoMIMLidarFrame``.
        num_cams: N.

    Raises:
        ValueError: an entry that is absent or of another shape; names it. Values are looked at in the step, on the host.
    """
    if not isinstance(img_inputs, (list, tuple)) or len(img_inputs) != 7:
        got = len(img_inputs) if isinstance(img_inputs, (list, tuple)) else type(img_inputs).__name__
        raise ValueError(
            'img_inputs must be the 7 entries imgs, sensor2egos, ego2globals, intrins, post_rots, post_trans, bda that '
            f'PrepareImageInputs and LoadAnnotationsBEVDepth leave behind, got {got}'
        )
    images, *matrices, bda = img_inputs
    batch, count = _check_images(images, num_cams)
    for (name, shape), value in zip(_ENTRIES, matrices):
        _check_shape(name, value, (batch, count, *shape))
    _check_shape('bda', bda, (batch, *bda.shape[1:]) if tuple(bda.shape[1:]) == (4, 4) else (batch, 3, 3))
    if lidar2key is None:
        raise ValueError(
            f"lidar2key is missing: put dict(type='{STEP}') behind LoadAnnotationsBEVDepth in the pipeline, and 'lidar2key' "
            "and 'points' among the keys of Collect3D"
        )
    _check_shape('lidar2key', lidar2key, (batch, 4, 4))
    sensor2egos, ego2globals, intrins, post_rots, post_trans = (value[:, :num_cams] for value in matrices)
    return SurroundInputs(
        images.unflatten(1, (num_cams, count // num_cams))[:, :, 0] if count > num_cams else images,
        CameraRig(
            intrinsics=intrins,
            cam2ego=sensor2egos,
            cam2bev=cameras_to_lidar(sensor2egos, ego2globals, lidar2key).to(sensor2egos.dtype),
            img_aug=homogeneous(post_rots, post_trans),
            bev_aug=bda if bda.shape[-1] == 4 else homogeneous(bda),
        ),
    )


def cameras_to_lidar(sensor2egos: Tensor, ego2globals: Tensor, lidar2key: Tensor) -> Tensor:
    """(B, N, 4, 4) in float64: each camera, by the ego pose of its own moment, to the LiDAR, by way of the first camera's
    ego frame."""
    to_global = ego2globals.double()
    lidar2global = to_global[:, :1] @ lidar2key.double()[:, None]
    return inverse(lidar2global) @ to_global @ sensor2egos.double()


def _check_images(images: Tensor, num_cams: int) -> Tuple[int, int]:
    """(B, n)."""
    if images.dim() != 5 or images.shape[2] != 3:
        raise ValueError(f'img_inputs: imgs has shape {tuple(images.shape)}, expected (B, n, 3, H, W)')
    batch, count = images.shape[:2]
    if count == 0 or count % num_cams:
        raise ValueError(
            f'img_inputs: imgs holds {count} images a sample, no multiple of the {num_cams} cameras: set num_cams of '
            'GeoMIMPretrainer to the number of data_config.cams'
        )
    return batch, count


def _check_shape(name: str, value: Tensor, shape: Tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f'img_inputs: {name} has shape {tuple(value.shape)}, expected {shape}')


def check_values(img_inputs: Sequence[Any], lidar2key: Tensor, source: str) -> None:
    """Raise ``ValueError`` for another shape, a value that is not finite or a focal length that is not positive.

    Args:
        img_inputs: the 7 entries of one sample, as of :func:`read_img_inputs` without B; on the host, for values are read back.
        lidar2key: (4, 4).
        source: how messages call the sample.
    """
    names = ('imgs', *(name for name, _ in _ENTRIES), 'bda', 'lidar2key')
    entries = dict(zip(names, map(torch.as_tensor, (*img_inputs, lidar2key))))
    for name, shape in _ENTRIES:
        _check_shape(name, entries[name], (len(entries['imgs']), *shape))
    for name, value in entries.items():
        bad = ~torch.isfinite(value)
        if bool(bad.any()):
            place = torch.nonzero(bad)[0].tolist()
            raise ValueError(
                f'{source}: {name} has values that are not finite, the first, {value[tuple(place)].item()}, at {place}: '
                'look at what the loader read there'
            )
    focal = entries['intrins'][..., (0, 1), (0, 1)]
    bad = focal <= 0
    if bool(bad.any()):
        image, axis = torch.nonzero(bad)[0].tolist()
        raise ValueError(
            f'{source}: intrins has a focal length of {focal[image, axis].item()} pixels in image {image}; it must be positive'
        )
