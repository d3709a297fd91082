"""The BEVDet family: surround images of one or several moments to boxes in the key ego frame.

Parameter names are BEVDet's. Shape legend: B samples, F frames (0 = key frame, then past ones from newest to oldest), N cameras, M = B * N
images, C channels, H x W pixels, h x w feature cells, Y x X BEV cells.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from mmdet3d.models import Base3DDetector
from mmdet3d.registry import MODELS as HOST_MODELS
from mmengine.registry import MODELS
from torch import Tensor

from ..method.camera import CameraRig
from ..method.depth import depth_maps
from ..method.lift_splat import BEVFeatures
from .backbones import check_stereo_backbone, first_stage
from .view.frames import SurroundFrames
from .view.stereo import StereoPair
from .view.temporal import ego_motion, shift_feature

Config = Mapping[str, Any]


class ImageFeatures(NamedTuple):
    """neck: (B, N, C, h, w); stereo: (M, C, H / 4, W / 4), or None."""

    neck: Tensor
    stereo: Optional[Tensor]


class SurroundFeatures(NamedTuple):
    """bev: (B, C, Y, X), encoded; depth: (M, D, h, w) probabilities of the key frame."""

    bev: Tensor
    depth: Tensor


class LiftedFrame(NamedTuple):
    """A frame in BEV, None where only its stereo feature was wanted; and that feature, for the next frame."""

    lifted: Optional[BEVFeatures]
    stereo: Optional[Tensor]


@contextlib.contextmanager
def naming_channels(part: str) -> Iterator[None]:
    """Say which part of the configuration is fed with other channels, or another number of maps, than it was built for.

    torch names no part, and the hosts' necks assert the number without a word.
    """
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if 'channels' in str(error):
            what = 'other channels'
        elif isinstance(error, AssertionError) and not str(error):
            what = 'another number of maps'
        else:
            raise
        raise ValueError(
            f'model.{part} is fed with {what} than its config says: {error}; its in_channels (numC_input of an '
            'encoder) must be what the part before it puts out'
        ) from error


@MODELS.register_module()
class BEVDet(Base3DDetector):
    """Detector of the key frame alone (arXiv 2112.11790).

    Args:
        img_backbone, img_neck: images to feature maps.
        img_view_transformer: feature maps to BEV.
        img_bev_encoder_backbone, img_bev_encoder_neck: BEV to encoded BEV.
        pts_bbox_head: encoded BEV to boxes; None builds a detector without boxes.
        map_head: encoded BEV to a map, beside the boxes or alone; it is told the view transformer's cells.
        train_cfg, test_cfg: their ``pts`` goes to the head.
        data_preprocessor, init_cfg: as every mmdet3d detector.
    """

    num_frames = 1
    uses_depth_labels = False

    def __init__(
        self,
        img_backbone: Config,
        img_neck: Config,
        img_view_transformer: Config,
        img_bev_encoder_backbone: Config,
        img_bev_encoder_neck: Config,
        pts_bbox_head: Optional[Config] = None,
        map_head: Optional[Config] = None,
        train_cfg: Optional[Config] = None,
        test_cfg: Optional[Config] = None,
        data_preprocessor: Optional[Config] = None,
        init_cfg: Optional[Config] = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.img_backbone = HOST_MODELS.build(img_backbone)
        self.img_neck = HOST_MODELS.build(img_neck)
        self.img_view_transformer = HOST_MODELS.build(img_view_transformer)
        self.img_bev_encoder_backbone = HOST_MODELS.build(img_bev_encoder_backbone)
        self.img_bev_encoder_neck = HOST_MODELS.build(img_bev_encoder_neck)
        self.train_cfg, self.test_cfg = train_cfg, test_cfg
        if pts_bbox_head is not None:
            self.pts_bbox_head = HOST_MODELS.build(_head_config(pts_bbox_head, train_cfg, test_cfg))
        if map_head is not None:
            self.map_head = HOST_MODELS.build(dict(map_head, bev_grid=self.img_view_transformer.grid))

    def loss(
        self, batch_inputs_dict: Mapping[str, Tensor], batch_data_samples: Sequence, **_: Any
    ) -> Dict[str, Tensor]:
        """Losses of the heads and, where the detector learns depth, ``loss_depth``.

        Args:
            batch_inputs_dict: the tensors of :class:`SurroundFrames` by name, and what :meth:`measured_depth` takes for the detectors
                that learn depth.
            batch_data_samples: B ``Det3DDataSample`` with ``gt_instances_3d`` in the augmented key ego frame for the boxes, ``gt_bev_map``
                for the map.

        Raises:
            ValueError: inputs that are missing or do not fit.
        """
        features = self.extract_feat(batch_inputs_dict)
        losses = self.depth_losses(batch_inputs_dict, features.depth)
        for head in self._heads():
            with naming_channels('pts_bbox_head or model.map_head'):
                losses.update(head.loss([features.bev], batch_data_samples))
        return losses

    def predict(self, batch_inputs_dict: Mapping[str, Tensor], batch_data_samples: Sequence, **_: Any) -> Sequence:
        """The samples with ``pred_instances_3d`` and ``pred_bev_map``, as there are heads, in the augmented key ego frame."""
        bev = [self.extract_feat(batch_inputs_dict).bev]
        for head in self._heads():
            results = head.predict(bev, batch_data_samples)
            if head is self._modules.get('map_head'):
                for sample, found in zip(batch_data_samples, results):
                    sample.pred_bev_map = found
            else:
                self.add_pred_to_datasample(batch_data_samples, results)
        return batch_data_samples

    def _forward(self, batch_inputs_dict: Mapping[str, Tensor], data_samples: Optional[Sequence] = None) -> Any:
        """Raw outputs of the head; of two heads, the boxes' and the map's."""
        bev = [self.extract_feat(batch_inputs_dict).bev]
        outputs = tuple(head(bev) for head in self._heads())
        return outputs if len(outputs) > 1 else outputs[0]

    def extract_feat(self, batch_inputs_dict: Mapping[str, Tensor]) -> SurroundFeatures:
        """Images and geometry to encoded BEV features.

        Raises:
            ValueError: another number of frames than the detector's, or shapes that do not fit.
        """
        frames = SurroundFrames.from_inputs(batch_inputs_dict)
        if frames.num_frames != self.num_frames:
            raise ValueError(
                f'{type(self).__name__} takes {self.num_frames} frames a sample (key frame first, then past ones from the newest to the '
                f'oldest), got {frames.num_frames}'
            )
        bev, depth = self.lift_frames(frames)
        return SurroundFeatures(self.encode_bev(bev), depth)

    def lift_frames(self, frames: SurroundFrames) -> Tuple[Tensor, Tensor]:
        """All frames, aligned and side by side: BEV features (B, C, Y, X), and the key frame's depth (M, D, h, w)."""
        rig = frames.rig(0, frames.cam2key())
        lifted = self.img_view_transformer(self.encode_images(frames.images[:, 0]).neck, rig)
        return lifted.bev, lifted.depth

    def encode_images(self, images: Tensor, stereo: bool = False) -> ImageFeatures:
        """(B, N, 3, H, W) -> features; with ``stereo`` the backbone's first output is the stereo feature."""
        with naming_channels('img_backbone'):
            maps = self.img_backbone(images.flatten(0, 1))
        first, maps = (maps[0], maps[1:]) if stereo else (None, maps)
        with naming_channels('img_neck'):
            neck = self.img_neck(maps)
        if isinstance(neck, (list, tuple)):
            neck = neck[0]
        return ImageFeatures(neck.unflatten(0, images.shape[:2]), first)

    def encode_bev(self, bev: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, C', Y', X')."""
        with naming_channels('img_bev_encoder_backbone'):
            maps = self.img_bev_encoder_backbone(bev)
        with naming_channels('img_bev_encoder_neck'):
            encoded = self.img_bev_encoder_neck(maps)
        return encoded[0] if isinstance(encoded, (list, tuple)) else encoded

    def depth_losses(self, inputs: Mapping[str, Tensor], depth: Tensor) -> Dict[str, Tensor]:
        if not self.uses_depth_labels:
            return {}
        return {'loss_depth': self.img_view_transformer.depth_loss(self.measured_depth(inputs), depth)}

    def measured_depth(self, inputs: Mapping[str, Any]) -> Tensor:
        """(B, N, H, W) metres, 0 = none, of the key frame.

        Args:
            inputs: with ``depth_map``, which is returned, or with ``points``, B (M, >= 3) in the LiDAR frame, and ``cam2lidar``
                (B, N, 4, 4), at their own time stamps. Of several points in a pixel the nearest within the depth bins counts, as in
                BEVDepth.

        Raises:
            ValueError: neither is there.
        """
        if 'depth_map' in inputs:
            return inputs['depth_map']
        if 'points' not in inputs or 'cam2lidar' not in inputs:
            raise ValueError(
                f'{type(self).__name__} learns depth and needs depth_map (B, N, H, W) in metres, or points and cam2lidar, among its '
                'inputs; LoadSurroundPoints in the pipeline brings points'
            )
        view = self.img_view_transformer
        key = [inputs[name][:, 0] for name in ('intrinsics', 'cam2ego')]
        rig = CameraRig.create(*key, inputs['cam2lidar'], inputs['img_aug'][:, 0])
        bounds = (view.depth_bins.lower, view.depth_bins.upper)
        return depth_maps(inputs['points'], rig, view.input_size, 'nearest', bounds)

    def _heads(self) -> List[torch.nn.Module]:
        heads = [getattr(self, name) for name in ('pts_bbox_head', 'map_head') if hasattr(self, name)]
        if not heads:
            raise ValueError(
                f'this {type(self).__name__} was built without pts_bbox_head and map_head and has features only'
            )
        return heads


@MODELS.register_module()
class BEVDet4D(BEVDet):
    """Detector of the key frame and past ones, whose BEV features stand side by side (arXiv 2203.17054).

    Gradients flow through the key frame only.

    Args:
        pre_process: a network on the BEV features of each frame; its first output counts.
        align_after_view_transfromation: place past features as if nothing had moved and shift them in BEV, so that all frames share one
            geometry; by default their own poses place them. (The spelling is BEVDet's.)
        num_adj: past frames.
        with_prev: whether past frames are used; zeros take their place otherwise.
        **options: as :class:`BEVDet`.

    Raises:
        ValueError: a negative ``num_adj``.
    """

    extra_frames = 0  # frames beyond num_adj that lend only their stereo feature
    oldest_first = False  # order in which frames are lifted and stand side by side

    def __init__(
        self,
        pre_process: Optional[Config] = None,
        align_after_view_transfromation: bool = False,
        num_adj: int = 1,
        with_prev: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if num_adj < 0:
            raise ValueError(f'num_adj counts past frames and cannot be {num_adj}')
        self.align_after_view_transfromation = align_after_view_transfromation
        self.num_adj = num_adj
        self.with_prev = with_prev
        if pre_process is not None:
            self.pre_process_net = HOST_MODELS.build(pre_process)

    @property
    def num_frames(self) -> int:  # type: ignore[override]
        return self.num_adj + 1 + self.extra_frames

    def lift_frames(self, frames: SurroundFrames) -> Tuple[Tensor, Tensor]:
        cam2key = frames.cam2key()
        order = [frame for frame in self._in_order(self.num_frames) if frame == 0 or self.with_prev]
        lifted: Dict[int, BEVFeatures] = {}
        stereo: Optional[Tensor] = None
        for frame in order:
            with torch.set_grad_enabled(torch.is_grad_enabled() and frame == 0):
                result, stereo = self.lift_frame(frames, cam2key, frame, stereo)
            if (
                frame
            ):  # older versions of torch keep the casts made here, and the key frame's weights would get no gradient
                torch.clear_autocast_cache()
            if result is not None:
                lifted[frame] = result
        return self._side_by_side(lifted, frames, cam2key), lifted[0].depth

    def lift_frame(self, frames: SurroundFrames, cam2key: Tensor, frame: int, stereo: Optional[Tensor]) -> LiftedFrame:
        """One frame to BEV. ``stereo`` is the feature that the frame lifted before left behind."""
        features = self.encode_images(frames.images[:, frame])
        return LiftedFrame(self._to_bev(features.neck, frames, cam2key, frame), None)

    def _to_bev(
        self,
        features: Tensor,
        frames: SurroundFrames,
        cam2key: Tensor,
        frame: int,
        pair: Optional[StereoPair] = None,
    ) -> BEVFeatures:
        placed = 0 if self.align_after_view_transfromation else frame
        lifted = self.img_view_transformer(features, frames.rig(frame, cam2key, placed), pair)
        if hasattr(self, 'pre_process_net'):
            with naming_channels('pre_process'):
                lifted = lifted._replace(bev=self.pre_process_net(lifted.bev)[0])
        return lifted

    def _side_by_side(self, lifted: Mapping[int, BEVFeatures], frames: SurroundFrames, cam2key: Tensor) -> Tensor:
        maps: List[Tensor] = []
        for frame in self._in_order(self.num_adj + 1):
            if frame not in lifted:
                maps.append(torch.zeros_like(lifted[0].bev))
            elif frame and self.align_after_view_transfromation:
                motion = ego_motion(cam2key[:, 0, 0], cam2key[:, frame, 0], frames.bev_aug)
                maps.append(shift_feature(lifted[frame].bev, motion, self.img_view_transformer.grid))
            else:
                maps.append(lifted[frame].bev)
        return torch.cat(maps, dim=1)

    def _in_order(self, count: int) -> List[int]:
        return list(range(count))[:: -1 if self.oldest_first else 1]


@MODELS.register_module()
class BEVDepth4D(BEVDet4D):
    """BEVDet4D that learns depth from LiDAR points (BEVDepth, arXiv 2206.10092); arguments as :class:`BEVDet4D`."""

    uses_depth_labels = True


@MODELS.register_module()
class BEVStereo4D(BEVDepth4D):
    """BEVDepth4D whose depth network compares each frame with the one before (BEVStereo, arXiv 2209.10248).

    Takes one frame more than ``num_adj + 1``: the oldest only lends its stereo feature. Arguments as :class:`BEVDet4D`.

    Raises:
        ValueError: an image backbone without the stereo feature in front of its outputs.
    """

    extra_frames = 1
    oldest_first = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        check_stereo_backbone(self.img_backbone)

    def lift_frame(self, frames: SurroundFrames, cam2key: Tensor, frame: int, stereo: Optional[Tensor]) -> LiftedFrame:
        images = frames.images[:, frame]
        if frame == self.num_frames - 1:
            return LiftedFrame(None, first_stage(self.img_backbone, images.flatten(0, 1)))
        features = self.encode_images(images, stereo=True)
        pair = None
        if stereo is not None:
            pair = StereoPair(features.stereo, stereo, frames.cam2older()[:, frame])
        return LiftedFrame(self._to_bev(features.neck, frames, cam2key, frame, pair), features.stereo)


def _head_config(head: Config, train_cfg: Optional[Config], test_cfg: Optional[Config]) -> Dict[str, Any]:
    """The head's configuration with the detector's ``pts`` settings where it has none of its own."""
    config = dict(copy.deepcopy(head))
    for name, settings in (('train_cfg', train_cfg), ('test_cfg', test_cfg)):
        if settings is not None and config.get(name) is None:
            config[name] = copy.deepcopy(settings.get('pts', settings))
    return config
