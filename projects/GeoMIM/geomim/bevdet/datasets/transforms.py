"""Augmentation of surround frames and boxes, depth maps and packing for the BEVDet family.

Shape legend: F frames (the key frame first), N cameras, H x W pixels; lengths metres. Pixel convention: as in
``geomim.mmdet3d.transforms``. Registered under mmengine's root registry.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.datasets.transforms import Pack3DDetInputs
from mmengine.registry import TRANSFORMS
from torch import Tensor

from ...method.depth import check_points, depth_maps
from ...mmdet3d.loading import image_size, point_source
from ...mmdet3d.transforms import SurroundImageAug, warp_image
from ...mmengine.rig import build_rig, sample_name
from ..boxes.transform import transform_boxes
from ..boxes.visibility import boxes_in_view
from ..occupancy.labels import as_element
from ..poses import frame_poses
from .data_config import BDAConfig, BEVDraw, DataConfig

META_KEYS = (
    'sample_idx',
    'token',
    'frame_tokens',
    'cam_names',
    'img_path',
    'lidar_path',
    'dropped_points',
    'lidar2key_ego',
    'box_type_3d',
    'box_mode_3d',
)


@TRANSFORMS.register_module()
class SurroundFramesAug(BaseTransform):
    """BEVDet's image augmentation: one draw a camera, applied to that camera's images of all frames.

    Args:
        data_config: BEVDet's dictionary; see :class:`DataConfig`.
        training: random numbers (NumPy's global generator), or ``resize_test``, centred, unrotated.

    Writes:
        In each of ``frames``: img (N, all of ``input_size``) and img_aug_matrix (N, 4, 4) float64.

    Raises:
        ValueError: a size that is no multiple of 32, a scale that is not positive, or a camera whose images differ in
            size between the frames.
    """

    def __init__(self, data_config: Optional[Mapping[str, Any]] = None, training: bool = True) -> None:
        self.config = DataConfig.create(data_config)
        self.training = training
        self.of_width(self.config.src_size[1])

    def of_width(self, width: int) -> SurroundImageAug:
        """The augmentation of images that are ``width`` pixels wide."""
        config = self.config
        fitting = config.input_size[1] / width
        return SurroundImageAug(
            final_size=config.input_size,
            resize=(fitting + config.resize[0], fitting + config.resize[1]),
            rotation=config.rot,
            flip=0.5 if config.flip else 0.0,
            bottom_crop=config.crop_h,
            training=self.training,
            test_resize=fitting + config.resize_test,
        )

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        key = results['frames'][0]
        draws = [self.of_width(image.shape[1]).draw(image.shape) for image in key['img']]
        size = (int(self.config.input_size[0]), int(self.config.input_size[1]))
        matrices = np.stack([draw.matrix(size) for draw in draws])
        recorded = np.tile(np.eye(4), (len(draws), 1, 1))
        recorded[:, :2, :2], recorded[:, :2, 3] = matrices[:, :2, :2], matrices[:, :2, 2]
        results['frames'] = [self._augmented(frame, key, matrices, recorded) for frame in results['frames']]
        return results

    def _augmented(
        self, frame: Mapping[str, Any], key: Mapping[str, Any], matrices: np.ndarray, recorded: np.ndarray
    ) -> Dict[str, Any]:
        for name, image, first in zip(frame['cam_names'], frame['img'], key['img']):
            if image.shape != first.shape:
                raise ValueError(
                    f'{sample_name(frame)}, camera {name}: image of shape {image.shape}, in the key frame '
                    f'{sample_name(key)} it is {first.shape}; the frames of a camera share one augmentation'
                )
        size = (int(self.config.input_size[0]), int(self.config.input_size[1]))
        images = [warp_image(image, matrix, size) for image, matrix in zip(frame['img'], matrices)]
        return dict(frame, img=images, img_aug_matrix=recorded @ frame['img_aug_matrix'])

    def __repr__(self) -> str:
        return f'{type(self).__name__}(data_config={self.config}, training={self.training})'


@TRANSFORMS.register_module()
class BEVDetBEVAug(BaseTransform):
    """BEVDet's augmentation of the bird's-eye view: rotation, scale and mirroring of the key ego frame.

    Goes after ``BoxesToKeyEgo``. Images and points stay as they are; the model applies ``bev_aug_matrix`` in its view
    transformation.

    Args:
        bda_aug_conf: BEVDet's dictionary; see :class:`BDAConfig`.
        training: random numbers (NumPy's global generator), or no augmentation.

    Writes:
        bev_aug_matrix (4, 4) float64; gt_bboxes_3d (centres, sizes, yaw, velocities) moved, if there are any.

    Raises:
        ValueError: boxes that are still in the LiDAR frame.
    """

    def __init__(self, bda_aug_conf: Optional[Mapping[str, Any]] = None, training: bool = True) -> None:
        self.config = BDAConfig.create(bda_aug_conf)
        self.training = training

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        matrix = (self.config.draw() if self.training else BEVDraw()).matrix()
        if 'gt_bboxes_3d' in results:
            if 'lidar2key_ego' not in results:
                raise ValueError(f'{sample_name(results)}: BEVDetBEVAug goes after BoxesToKeyEgo')
            results['gt_bboxes_3d'] = transform_boxes(results['gt_bboxes_3d'], matrix)
        results['bev_aug_matrix'] = matrix
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(bda_aug_conf={self.config}, training={self.training})'


@TRANSFORMS.register_module()
class ObjectInViewFilter(BaseTransform):
    """Drops boxes that no camera of the key frame sees, for rigs that leave a part of the surroundings out of sight.

    A box stays if any part of it, however small, projects into an augmented image; what hides it there is not looked at.
    Goes after the annotations are loaded and the images augmented, before or after the boxes' own steps.

    Writes:
        gt_bboxes_3d and gt_labels_3d of the boxes that stay.

    Raises:
        ValueError: images of different sizes, or cameras without their calibration.
    """

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        key = results['frames'][0] if 'frames' in results else results
        if 'lidar2key_ego' in results:  # the boxes have left the LiDAR's frame
            key = dict(key, lidar2cam=key['lidar2cam'] @ np.linalg.inv(results['lidar2key_ego']))
        key = dict(key, bev_aug_matrix=results.get('bev_aug_matrix', np.eye(4)))
        boxes = results['gt_bboxes_3d']
        seen = boxes_in_view(boxes, build_rig([key], torch.float64), image_size(key)).any(dim=0)
        results['gt_bboxes_3d'] = boxes[seen]
        results['gt_labels_3d'] = results['gt_labels_3d'][seen.numpy()]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


@TRANSFORMS.register_module()
class KeyFrameDepthMaps(BaseTransform):
    """Projects the key frame's LiDAR points into its augmented images; of several in a pixel the nearest counts.

    For pipelines that want the depth maps themselves: without it the detector makes the same ones on its device. Goes after
    ``SurroundFramesAug``; the points must be in the LiDAR frame, without BEV augmentation, as loaded.

    Args:
        depth_range: (lower, upper) metres; nearer and farther points do not count, upper excluded (BEVDet's
            ``grid_config['depth'][:2]``).

    Writes:
        depth_map (N, H, W) float32, metres along the optical axis, 0 = no point.

    Raises:
        ValueError: no range, an empty cloud, values that are not finite, or images of different sizes.

    Source: BEVDet's PointToMultiViewDepth with ``downsample=1``, with pixels as in ``geomim.method.depth``.
    """

    def __init__(self, depth_range: Sequence[float] = (1.0, 60.0)) -> None:
        if len(depth_range) != 2 or not 0 < depth_range[0] < depth_range[1]:
            raise ValueError(
                f'KeyFrameDepthMaps: depth_range must be (lower, upper) above 0 m, got {tuple(depth_range)}'
            )
        self.depth_range = (float(depth_range[0]), float(depth_range[1]))

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        points = results['points'].tensor
        check_points(points, point_source(results))
        key = results['frames'][0]
        maps = depth_maps([points], build_rig([key]), image_size(key), 'nearest', self.depth_range)
        results['depth_map'] = maps[0].numpy()
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(depth_range={self.depth_range})'


def _stacked(frames: Sequence[Mapping[str, Any]], key: str) -> Tensor:
    return torch.from_numpy(np.stack([frame[key] for frame in frames])).float()


def channels_first(frames: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """(F, N, C, H, W) of F lists of N images (H, W, C) of one size; OpenCV takes channels apart faster than NumPy transposes."""
    height, width, channels = frames[0][0].shape
    stacked = np.empty((len(frames), len(frames[0]), channels, height, width), frames[0][0].dtype)
    for frame, images in zip(stacked, frames):
        for camera, image in zip(frame, images):
            camera[...] = cv2.split(image)
    return stacked


@TRANSFORMS.register_module()
class PackBEVDetInputs(Pack3DDetInputs):
    """mmdet3d's packing with the inputs of the BEVDet family.

    Args:
        keys: annotations to pack, any of mmdet3d's.
        meta_keys: what ``data_samples`` carry.

    Writes:
        gt_occupancy and gt_bev_map into ``data_samples``, if there are such labels.

    Returns (``inputs``):
        images (F, N, 3, H, W) uint8 BGR; cam2ego, ego2global, img_aug (F, N, 4, 4), intrinsics (F, N, 3, 3), bev_aug
        (4, 4), float32; of the key frame, for depth labels, if there are any, depth_map (N, H, W), or points (M, 3) as
        loaded, in the LiDAR frame, and cam2lidar (N, 4, 4), float32. The common frame that ``ego2global`` leads to is the
        key ego frame, for the sake of float32.

    Raises:
        ValueError: a transform that is absent before it, frames of different image sizes or cameras.
    """

    def __init__(
        self, keys: Sequence[str] = ('gt_bboxes_3d', 'gt_labels_3d'), meta_keys: Sequence[str] = META_KEYS
    ) -> None:
        super().__init__(keys=tuple(keys), meta_keys=tuple(meta_keys))

    def pack_single_results(self, results: Dict[str, Any]) -> Dict[str, Any]:
        for key, writer in (('frames', 'LoadSurroundFrames'), ('bev_aug_matrix', 'BEVDetBEVAug')):
            if key not in results:
                raise ValueError(f'{sample_name(results)}: PackBEVDetInputs goes after {writer}, no {key} is there')
        packed: Dict[str, Any] = super().pack_single_results(dict(results))
        packed['inputs'] = self._inputs(results)
        if 'occupancy' in results:
            packed['data_samples'].gt_occupancy = as_element(results['occupancy'])
        if 'gt_bev_map' in results:
            packed['data_samples'].gt_bev_map = results['gt_bev_map']
        return packed

    def _inputs(self, results: Mapping[str, Any]) -> Dict[str, Tensor]:
        frames: List[Mapping[str, Any]] = results['frames']
        self._check(frames)
        inputs = {
            'images': torch.from_numpy(channels_first([frame['img'] for frame in frames])),
            'cam2ego': _stacked(frames, 'cam2ego'),
            'ego2global': torch.from_numpy(frame_poses(frames)).float(),
            'intrinsics': _stacked(frames, 'cam2img'),
            'img_aug': _stacked(frames, 'img_aug_matrix'),
            'bev_aug': torch.from_numpy(np.asarray(results['bev_aug_matrix'])).float(),
        }
        if 'depth_map' in results:
            inputs['depth_map'] = torch.from_numpy(np.asarray(results['depth_map'])).float()
        elif 'points' in results:
            inputs['points'] = results['points'].tensor[:, :3].float().contiguous()
            inputs['cam2lidar'] = build_rig(frames[:1]).cam2bev[0]
        return inputs

    @staticmethod
    def _check(frames: Sequence[Mapping[str, Any]]) -> None:
        kinds: Dict[Tuple[Any, ...], Any] = {}
        for frame in frames:
            kinds[(tuple(frame['cam_names']), image_size(frame))] = sample_name(frame)
        if len(kinds) > 1:
            raise ValueError(f'frames differ in their cameras or image sizes (H, W): {kinds}')
