"""One frozen record for what a surround-view detector sees: the images of several moments and where every camera was.

Shape legend: B samples, F frames (0 = key frame, then past ones from newest to oldest), N cameras, H x W pixels. Homogeneous matrices
map column vectors; lengths are metres, image coordinates pixels. The key ego frame is that of the key frame's first camera.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Mapping, Optional, Sequence

import torch
from torch import Tensor

from ...method.camera import CameraRig, homogeneous, inverse

_BEVDET_NAMES = ('imgs', 'sensor2egos', 'ego2globals', 'intrins', 'post_rots', 'post_trans', 'bda')
_MATRIX_SIDES = {'cam2ego': 4, 'ego2global': 4, 'intrinsics': 3, 'img_aug': 4}


@dataclass(frozen=True)
class SurroundFrames:
    """Images and geometry of B samples.

    Args:
        images: (B, F, N, 3, H, W), normalised.
        cam2ego: (B, F, N, 4, 4), each camera to the ego of its own time stamp.
        ego2global: (B, F, N, 4, 4), that ego to the map.
        intrinsics: (B, F, N, 3, 3), pixels of the images before augmentation.
        img_aug: (B, F, N, 4, 4), pixels before to pixels after image augmentation: (u', v', 1) = A[:3, :3] (u, v, 1) + A[:3, 3].
        bev_aug: (B, 4, 4), key ego before to key ego after BEV augmentation.

    Raises:
        ValueError: a shape that does not fit.
    """

    images: Tensor
    cam2ego: Tensor
    ego2global: Tensor
    intrinsics: Tensor
    img_aug: Tensor
    bev_aug: Tensor

    def __post_init__(self) -> None:
        if self.images.dim() != 6 or self.images.shape[3] != 3 or 0 in self.images.shape:
            raise ValueError(
                f'surround frames: images have shape {tuple(self.images.shape)}, expected (B, F, N, 3, H, W), none of them 0'
            )
        batch, frames, cams = self.images.shape[:3]
        for name, side in _MATRIX_SIDES.items():
            self._expect(name, (batch, frames, cams, side, side), f'(B, F, N, {side}, {side})')
        self._expect('bev_aug', (batch, 4, 4), '(B, 4, 4)')

    def _expect(self, name: str, shape: Sequence[int], letters: str) -> None:
        found = tuple(getattr(self, name).shape)
        if found != tuple(shape):
            raise ValueError(
                f'surround frames: {name} has shape {found}, expected {letters} = {tuple(shape)} for images '
                f'{tuple(self.images.shape)}'
            )

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Tensor]) -> SurroundFrames:
        """From the batched ``inputs`` of a detector, whose keys are this record's names; other keys are left alone.

        Raises:
            ValueError: a key that is missing, or a shape that does not fit.
        """
        missing = [name for name in _NAMES if name not in inputs]
        if missing:
            raise ValueError(f'surround frames: {", ".join(missing)} missing from the inputs {sorted(inputs)}')
        return cls(**{name: inputs[name] for name in _NAMES})

    @classmethod
    def from_bevdet(cls, img_inputs: Sequence[Tensor], num_frames: int) -> SurroundFrames:
        """From BEVDet's list of seven tensors.

        Args:
            img_inputs: imgs (B, N * F, 3, H, W), camera-major (camera n, frame f at n * F + f); then frame-major (f * N + n) sensor2egos
                and ego2globals (B, F * N, 4, 4), intrins and post_rots (B, F * N, 3, 3), post_trans (B, F * N, 3); bda (B, 3, 3).
            num_frames: F.

        Raises:
            ValueError: another number of tensors, or images that do not make F whole frames.
        """
        if len(img_inputs) != len(_BEVDET_NAMES):
            raise ValueError(f"BEVDet's img_inputs are {', '.join(_BEVDET_NAMES)}; got {len(img_inputs)} tensors")
        named = dict(zip(_BEVDET_NAMES, img_inputs))
        count = named['imgs'].shape[1]
        if num_frames < 1 or count % num_frames or count == 0:
            raise ValueError(f'{count} images a sample do not make {num_frames} frames of the same number of cameras')
        for name in _BEVDET_NAMES[1:-1]:
            if named[name].shape[1] != count:
                raise ValueError(f'{count} images a sample, but {name} has shape {tuple(named[name].shape)}')
        cams = count // num_frames
        frame_major = {name: named[name].unflatten(1, (num_frames, cams)) for name in _BEVDET_NAMES[1:-1]}
        return cls(
            images=named['imgs'].unflatten(1, (cams, num_frames)).transpose(1, 2),
            cam2ego=frame_major['sensor2egos'],
            ego2global=frame_major['ego2globals'],
            intrinsics=frame_major['intrins'],
            img_aug=homogeneous(frame_major['post_rots'], frame_major['post_trans']),
            bev_aug=homogeneous(named['bda'][..., :3, :3]),
        )

    @property
    def batch_size(self) -> int:
        return self.images.shape[0]

    @property
    def num_frames(self) -> int:
        return self.images.shape[1]

    @property
    def num_cams(self) -> int:
        return self.images.shape[2]

    def cam2key(self) -> Tensor:
        """(B, F, N, 4, 4): each camera, at its own time, to the key ego. Computed in float64: maps are kilometres wide."""
        key = inverse(self.ego2global[:, :1, :1].double())
        return self._in_given_precision(key @ self.ego2global.double() @ self.cam2ego.double())

    def cam2older(self) -> Tensor:
        """(B, F - 1, N, 4, 4): each camera to the same camera one frame earlier."""
        cam2global = self.ego2global.double() @ self.cam2ego.double()
        return self._in_given_precision(inverse(cam2global[:, 1:]) @ cam2global[:, :-1])

    def _in_given_precision(self, poses: Tensor) -> Tensor:
        """As the given poses, at least float32; float64 stays, so that a detector can be checked in it."""
        return poses.to(torch.promote_types(self.cam2ego.dtype, torch.float32))

    def rig(self, frame: int, cam2key: Tensor, placed: Optional[int] = None) -> CameraRig:
        """The cameras of a frame as the view transformation sees them: the key ego takes the place of the LiDAR.

        Args:
            frame: whose intrinsics and image augmentation count.
            cam2key: of :meth:`cam2key`, all frames.
            placed: the frame whose poses place the image features, by default the same; 0 leaves the alignment for later.

        Returns:
            ``cam2bev`` is the pose that places the features, ``cam2ego`` always that of the key frame, as BEVDepth's camera-aware layers
            are told.
        """
        return CameraRig(
            intrinsics=self.intrinsics[:, frame],
            cam2ego=cam2key[:, 0],
            cam2bev=cam2key[:, frame if placed is None else placed],
            img_aug=self.img_aug[:, frame],
            bev_aug=self.bev_aug,
        )


_NAMES = tuple(field.name for field in fields(SurroundFrames))  # compilers cannot ask a class
