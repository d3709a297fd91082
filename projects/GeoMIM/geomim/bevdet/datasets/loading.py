"""Loading of the surround images of several moments; N cameras, F frames, lengths metres."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from ...adapter.checks import WarnOnce, check_egos, check_past
from ...mmdet3d.loading import LoadCameraRig, LoadSurroundImages
from ...mmengine.rig import sample_name
from ..boxes.transform import transform_boxes
from ..poses import camera_pose, lidar_frame, stored_pose
from .data_config import DataConfig


@TRANSFORMS.register_module()
class LoadSurroundFrames(BaseTransform):
    """Reads images and calibration of the key frame and of the past frames that the dataset has put beside it.

    Args:
        data_config: BEVDet's dictionary, of which ``cams`` counts here; see :class:`DataConfig`.
        num_frames: frames expected, the key frame included.
        backend_args: of ``mmengine.fileio``, for files that are not on a local disk.

    Writes:
        frames: F dictionaries, the key frame first, then from newest to oldest, each with img (N arrays (H, W, 3), uint8
            BGR), cam_names, cam2img (N, 3, 3) pixels, cam2ego, cam_ego2global and lidar2cam (N, 4, 4), float64, and the
            identity as img_aug_matrix (N, 4, 4) and bev_aug_matrix (4, 4).
        cam_names (N), img_path (N paths of the key frame), frame_tokens (F).

    Raises:
        ValueError: another number of frames, or an image, calibration or pose that is absent or unusable; frames that lie
            farther apart than a vehicle drives.
    """

    def __init__(
        self,
        data_config: Optional[Mapping[str, Any]] = None,
        num_frames: int = 1,
        backend_args: Optional[Dict[str, Any]] = None,
    ) -> None:
        if num_frames < 1:
            raise ValueError(
                f'LoadSurroundFrames: num_frames counts the key frame, it must be at least 1, got {num_frames}'
            )
        self.cams = DataConfig.create(data_config).cams
        self.num_frames = num_frames
        self._rig = LoadCameraRig(self.cams)
        self._images = LoadSurroundImages(backend_args)
        self._warn = WarnOnce()

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        past = results.get('past_frames', [])
        if 1 + len(past) != self.num_frames:
            raise ValueError(
                f'{sample_name(results)}: {1 + len(past)} frames with the key frame, LoadSurroundFrames expects '
                f'{self.num_frames}; multi_adj_frame_id_cfg and stereo of BEVDetNuScenesDataset decide how many there are'
            )
        frames = [self._load(frame) for frame in (results, *past)]
        self._check_egos(frames, results, past)
        results['frames'] = frames
        results['cam_names'] = list(self.cams)
        results['img_path'] = frames[0]['img_path']
        results['frame_tokens'] = [frame.get('token') for frame in (results, *past)]
        return results

    def _load(self, frame: Mapping[str, Any]) -> Dict[str, Any]:
        own = {key: frame[key] for key in ('token', 'sample_idx', 'images') if key in frame}
        loaded: Dict[str, Any] = self._rig.transform(own)
        loaded['cam_ego2global'] = np.stack([camera_pose(loaded, name) for name in self.cams])
        return self._images.transform(loaded)

    def _check_egos(
        self, frames: Sequence[Mapping[str, Any]], results: Mapping[str, Any], past: Sequence[Mapping[str, Any]]
    ) -> None:
        now = results.get('timestamp', 0.0)
        seconds = [float(now) - float(frame.get('timestamp', now)) for frame in (results, *past)]
        poses = torch.from_numpy(np.stack([frame['cam_ego2global'] for frame in frames]))
        places = [f'{sample_name(frame)}, camera {name}' for frame in (results, *past) for name in self.cams]
        check_egos(poses, seconds, places, self._warn)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(cams={list(self.cams)}, num_frames={self.num_frames})'


@TRANSFORMS.register_module()
class BoxesToKeyEgo(BaseTransform):
    """Boxes from the LiDAR frame of the info file into the ego frame at a camera's time stamp.

    Args:
        ego_camera: the camera; None takes the first one of ``LoadSurroundFrames``, whose ego frame the model uses.
            'CAM_FRONT' reproduces BEVDet, whose boxes lie by up to 0.3 m beside the model's frame; set it in training and
            testing alike.

    Writes:
        lidar2key_ego (4, 4) float64, which ``EgoNuScenesMetric`` undoes; gt_bboxes_3d moved, if there are any.

    Raises:
        ValueError: a camera or pose that is absent or unusable.
    """

    def __init__(self, ego_camera: Optional[str] = None) -> None:
        self.ego_camera = ego_camera
        self._warn = WarnOnce()

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        if self.ego_camera is None and 'cam_names' not in results:
            raise ValueError(
                f'{sample_name(results)}: BoxesToKeyEgo goes after LoadSurroundFrames, or needs an ego_camera'
            )
        where = sample_name(results)
        lidar2global = stored_pose(results, 'ego2global', where, self._warn) @ stored_pose(
            lidar_frame(results), 'lidar2ego', where, self._warn
        )
        key_ego2global = camera_pose(results, self.ego_camera or results['cam_names'][0])
        results['lidar2key_ego'] = np.linalg.inv(key_ego2global) @ lidar2global
        check_past(float(np.linalg.norm(results['lidar2key_ego'][:3, 3])), 0.0, f'{where}: the LiDAR')
        if 'gt_bboxes_3d' in results:
            self._check_boxes(results['gt_bboxes_3d'].tensor, where)
            results['gt_bboxes_3d'] = transform_boxes(results['gt_bboxes_3d'], results['lidar2key_ego'])
        return results

    def _check_boxes(self, boxes: torch.Tensor, where: str) -> None:
        """Tell once of boxes (M, >= 7) that the head's targets leave out, wholly or in part; velocities of NaN are unknown."""
        bad = ~boxes[:, :7].isfinite().all(dim=1) | ~(boxes[:, 3:6] > 0).all(dim=1) | boxes[:, 7:].isinf().any(dim=1)
        if bool(bad.any()):
            row = int(bad.int().argmax())
            self._warn(
                'boxes',
                f'{where}: {int(bad.sum())} of {len(boxes)} boxes have values that are not finite or sizes that are not '
                f'positive, the first is {boxes[row].tolist()}; targets leave them out',
            )

    def __repr__(self) -> str:
        return f'{type(self).__name__}(ego_camera={self.ego_camera!r})'
