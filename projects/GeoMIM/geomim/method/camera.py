"""One frozen record for all camera geometry.

Shape legend: B samples, N cameras of a rig. Homogeneous matrices map column vectors; lengths are metres, image coordinates pixels.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields, replace
from typing import Any, ContextManager, Optional, Sequence, Tuple

import torch
from torch import Tensor

CAMERA_VECTOR_SIZE = (
    22  # 4 intrinsics + 6 image augmentation + 12 camera-to-ego numbers (paper section 3.3, "camera-aware")
)


def inverse(matrices: Tensor) -> Tensor:
    """Inverse of (..., n, n) matrices without the device synchronisation that ``torch.inverse`` needs for its error check."""
    return torch.linalg.inv_ex(matrices).inverse


def homogeneous(rotation: Tensor, translation: Optional[Tensor] = None) -> Tensor:
    """(..., 3, 3) and (..., 3) -> (..., 4, 4); no translation is zero."""
    matrix = torch.zeros(*rotation.shape[:-2], 4, 4, dtype=rotation.dtype, device=rotation.device)
    matrix[..., :3, :3] = rotation
    if translation is not None:
        matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1
    return matrix


def full_precision(tensor: Tensor) -> ContextManager[Any]:
    """Autocast switched off for geometry: half precision would misplace points by decimetres."""
    try:
        return torch.autocast(tensor.device.type, enabled=False)
    except RuntimeError:  # a device type without autocast, such as `meta`
        return contextlib.nullcontext()


def _expect_shape(name: str, value: Tensor, shape: Tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f'camera rig: {name} has shape {tuple(value.shape)}, expected {shape}')


@dataclass(frozen=True)
class CameraRig:
    """Calibration and augmentation of the N cameras of B samples.

    Args:
        intrinsics: (B, N, 3, 3), pixels of the image before augmentation.
        cam2ego: (B, N, 4, 4), camera to ego.
        cam2bev: (B, N, 4, 4), camera (at its own time stamp) to the frame of the BEV grid before BEV augmentation: the LiDAR
            (at its own time stamp) in pretraining, the key ego frame in the detectors.
        img_aug: (B, N, 4, 4), pixels before to pixels after image augmentation: (u', v', 1) = A[:3, :3] (u, v, 1) + A[:3, 3].
        bev_aug: (B, 4, 4), the BEV grid's frame before to after BEV augmentation.
        names: the cameras' names, for messages.

    Raises:
        ValueError: a shape that does not fit, or repeated names.
    """

    intrinsics: Tensor
    cam2ego: Tensor
    cam2bev: Tensor
    img_aug: Tensor
    bev_aug: Tensor
    names: Optional[Tuple[str, ...]] = None

    def __post_init__(self) -> None:
        if self.intrinsics.dim() != 4 or tuple(self.intrinsics.shape[2:]) != (3, 3):
            raise ValueError(
                f'camera rig: intrinsics has shape {tuple(self.intrinsics.shape)}, expected (B, N, 3, 3) in pixels'
            )
        batch, cams = self.intrinsics.shape[:2]
        if cams < 1:
            raise ValueError('camera rig: no camera')
        for name in ('cam2ego', 'cam2bev', 'img_aug'):
            _expect_shape(name, getattr(self, name), (batch, cams, 4, 4))
        _expect_shape('bev_aug', self.bev_aug, (batch, 4, 4))
        if self.names is not None:
            self._check_names(cams)

    def _check_names(self, cams: int) -> None:
        names = tuple(self.names or ())
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f'camera rig: camera {", ".join(repeated)} appears more than once in {names}')
        if len(names) != cams:
            raise ValueError(f'camera rig: {len(names)} names {names} for {cams} cameras')
        object.__setattr__(self, 'names', names)

    @classmethod
    def create(
        cls,
        intrinsics: Tensor,
        cam2ego: Tensor,
        cam2bev: Tensor,
        img_aug: Optional[Tensor] = None,
        bev_aug: Optional[Tensor] = None,
        names: Optional[Sequence[str]] = None,
    ) -> CameraRig:
        """As the constructor; absent augmentations are the identity, and 4 x 4 intrinsics are cut to 3 x 3."""
        if intrinsics.dim() == 4 and tuple(intrinsics.shape[2:]) == (4, 4):
            intrinsics = intrinsics[..., :3, :3]
        if img_aug is None:
            img_aug = torch.eye(4, dtype=cam2ego.dtype, device=cam2ego.device).expand_as(cam2ego)
        if bev_aug is None:
            bev_aug = torch.eye(4, dtype=cam2ego.dtype, device=cam2ego.device).expand(cam2ego.shape[0], 4, 4)
        return cls(intrinsics, cam2ego, cam2bev, img_aug, bev_aug, tuple(names) if names is not None else None)

    @property
    def batch_size(self) -> int:
        return self.intrinsics.shape[0]

    @property
    def num_cams(self) -> int:
        return self.intrinsics.shape[1]

    @property
    def bev2img(self) -> Tensor:
        """(B, N, 4, 4), the augmented BEV frame to (u z, v z, z, 1), pixels before image augmentation."""
        projection = torch.zeros_like(self.cam2bev)
        projection[..., :3, :3] = self.intrinsics
        projection[..., 3, 3] = 1
        with full_precision(projection):
            return projection @ inverse(self.bev_aug[:, None] @ self.cam2bev)

    def camera_vector(self) -> Tensor:
        """(B, N, 22) numbers of the camera-aware gate: fx, fy, cx, cy; r00, r01, t0, r10, r11, t1 of the image augmentation; the
        rows of the 3 x 4 camera-to-ego matrix (METHOD 2.4)."""
        k, a = self.intrinsics, self.img_aug
        optics = torch.stack([k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]], dim=-1)
        augmentation = torch.stack(
            [a[..., 0, 0], a[..., 0, 1], a[..., 0, 3], a[..., 1, 0], a[..., 1, 1], a[..., 1, 3]], dim=-1
        )
        return torch.cat([optics, augmentation, self.cam2ego[..., :3, :].flatten(-2)], dim=-1)

    def permuted(self, order: Sequence[int]) -> CameraRig:
        """The rig with its cameras in another order."""
        if sorted(order) != list(range(self.num_cams)):
            raise ValueError(f'camera rig: {list(order)} is no permutation of {self.num_cams} cameras')
        index = torch.as_tensor(list(order), device=self.intrinsics.device)
        names = tuple(self.names[i] for i in order) if self.names is not None else None
        return replace(
            self,
            intrinsics=self.intrinsics[:, index],
            cam2ego=self.cam2ego[:, index],
            cam2bev=self.cam2bev[:, index],
            img_aug=self.img_aug[:, index],
            names=names,
        )

    def to(self, *args: object, **kwargs: object) -> CameraRig:
        """Every matrix moved as ``Tensor.to`` would."""
        moved = {
            f.name: getattr(self, f.name).to(*args, **kwargs)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def check_finite(self, source: str = 'camera rig') -> None:
        """Raise ``ValueError`` for a value that is not finite or a focal length that is not positive.

        Reads the values back: call it on the host, before the matrices move to a device.
        """
        for name in ('intrinsics', 'cam2ego', 'cam2bev', 'img_aug', 'bev_aug'):
            value = getattr(self, name)
            bad = (~torch.isfinite(value)).nonzero()
            if len(bad):
                where = bad[0].tolist()
                place = self._locate(where) if name != 'bev_aug' else str(where)
                raise ValueError(f'{source}: {name}{place} is {value[tuple(where)].item()}')
        focal = self.intrinsics[..., [0, 1], [0, 1]]
        bad = (focal <= 0).nonzero()
        if len(bad):
            where = bad[0].tolist()
            raise ValueError(
                f'{source}: focal length of {self._locate(where[:2])} is {focal[tuple(where)].item()} pixels, '
                'it must be positive'
            )

    def _locate(self, index: Sequence[int]) -> str:
        if self.names is not None and len(index) >= 2 and index[1] < len(self.names):
            return f'[sample {index[0]}, {self.names[index[1]]}, {", ".join(map(str, index[2:]))}]'
        return str(list(index))
