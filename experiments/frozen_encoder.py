"""What a frozen encoder makes of the cells of images, and what is known of them: depth bins by LiDAR, classes by boxes.

Shape legend: N cameras, h x w cells of an image, M boxes, C features. Metres, radians, pixels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from evaluate_pretraining import frames, labels_of
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import Subset
from tqdm import tqdm

from geomim.adapter.encoders import start_backbone, student_config
from geomim.checkpoints.files import some
from geomim.checkpoints.loading import load_backbone, load_encoder
from geomim.method.camera import CameraRig, inverse
from geomim.method.pretrainer import GeoMIM


class Frozen(NamedTuple):
    """An encoder that does not learn, within what ``frames`` and ``labels_of`` want of a model."""

    student: GeoMIM
    data_preprocessor: nn.Module


class Frame(NamedTuple):
    """What is seen and known of the h x w cells of a frame's N images: features (N, h, w, C), depth bins (N, h, w), -1 for none,
    their distances (N, h, w), metres, and classes (N, h, w)."""

    features: Tensor
    bins: Tensor
    metres: Tensor
    classes: Tensor


def frozen_encoder(config: Any, encoder: Optional[Path], seed: int) -> Frozen:
    """The student's encoder with random weights, drawn by ``seed``, or with those of an exported file.

    Raises:
        ValueError: a file that is not the whole of this encoder and nothing else.
    """
    from mmdet3d.registry import MODELS
    from mmengine.registry import init_default_scope

    import geomim.mmdet3d
    from geomim.mmengine.compat import open_source

    del geomim
    init_default_scope(config.get('default_scope', 'mmdet3d'))
    torch.manual_seed(seed)
    student = dict(config.model.student)
    student['encoder'] = without_weights(student.get('encoder', {}))
    model = GeoMIM(student_config(student, MODELS.build))
    start_backbone(model, open_source)
    if encoder is not None:
        load_strictly(model.encoder, encoder)
    preprocessor = config.model.get('data_preprocessor') or dict(type='GeoMIMDataPreprocessor')
    return Frozen(model.eval().requires_grad_(False), MODELS.build(preprocessor))


def without_weights(encoder: Mapping[str, Any]) -> Dict[str, Any]:
    """An encoder's entries without the file or address that it would start from."""
    kept = {name: value for name, value in encoder.items() if name != 'pretrained'}
    init_cfg = kept.get('init_cfg')
    if isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained':
        del kept['init_cfg']
    return kept


def load_strictly(encoder: Any, path: Path) -> None:
    """Load an exported encoder.

    Raises:
        ValueError: another architecture, or tensors that are missing or have no place.
    """
    backbone = getattr(encoder, 'backbone', None)
    report = load_encoder(encoder, path) if backbone is None else load_backbone(backbone, path, encoder.name)
    if report.missing or report.unused:
        raise ValueError(
            f'{path} is not the encoder of this configuration: missing {some(report.missing) or "nothing"}, without a place '
            f'{some(report.unused) or "nothing"}; give the file that its pretraining exported (encoder_*.pth)'
        )


def digest_of(encoder: nn.Module) -> str:
    """SHA-256 of names and values of an encoder's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(getattr(encoder, 'backbone', encoder).state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def features_of(encoder: nn.Module, images: Tensor) -> Tensor:
    """Features of whole images (N, 3, H, W) -> (N, h, w, C), coarser maps brought to the cells of the finest one."""
    finest, *others = encoder(images)
    size = finest.shape[-2:]
    maps = [finest, *(interpolate(map_, size, mode='bilinear', align_corners=False) for map_ in others)]
    return torch.cat(maps, dim=1).permute(0, 2, 3, 1)


def cell_classes(
    boxes: Tensor, labels: Tensor, rig: CameraRig, stride: int, size: Tuple[int, int], background: int
) -> Tensor:
    """The class of the box that the ray through a cell's centre enters first.

    Args:
        boxes: (M, 7 or more) centre, length, width, height and yaw, metres and radians, in the BEV frame before augmentation.
        labels: (M,) int64.
        rig: calibration of one sample.
        stride: side of a cell, pixels of the augmented images.
        size: (h, w) cells.
        background: class of a cell whose ray meets no box.

    Returns:
        (N, h, w) int64.
    """
    v, u = torch.meshgrid(*(torch.arange(count).double().add(0.5) * stride for count in size), indexing='ij')
    centres = torch.stack([u, v], dim=-1).view(-1, 2)
    img_aug, cam2bev, boxes = rig.img_aug[0].double(), rig.cam2bev[0].double(), boxes.double()
    pixels = (centres - img_aug[:, None, :2, 3]) @ inverse(img_aug[:, :2, :2]).transpose(1, 2)
    pixels = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    rays = pixels @ inverse(rig.intrinsics[0].double()).transpose(1, 2) @ cam2bev[:, :3, :3].transpose(1, 2)
    cos, sin, zero = boxes[:, 6].cos(), boxes[:, 6].sin(), torch.zeros(len(boxes)).double()
    rows = [torch.stack(row, dim=-1) for row in ((cos, sin, zero), (-sin, cos, zero), (zero, zero, zero + 1))]
    turn = torch.stack(rows, dim=1)  # (M, 3, 3), into the box's own axes
    start = torch.einsum('mij,nmj->nmi', turn, cam2bev[:, None, :3, 3] - boxes[:, :3])[:, :, None]
    along = torch.einsum('mij,npj->nmpi', turn, rays)
    along = torch.where(along.abs() < 1e-12, torch.full_like(along, 1e-12), along)
    half = boxes[:, None, 3:6] / 2
    faces = torch.stack([(-half - start) / along, (half - start) / along])  # at which depths the ray meets them
    entry, leaving = faces.amin(dim=0).amax(dim=-1), faces.amax(dim=0).amin(dim=-1)
    depth = torch.where((entry > 0) & (entry <= leaving), entry, torch.full_like(entry, torch.inf))
    never = depth.new_full((len(rays), 1, len(centres)), torch.inf)
    nearest, box = torch.cat([depth, never], dim=1).min(dim=1)
    known = torch.cat([labels, labels.new_tensor([background])])
    return torch.where(nearest.isinf(), background, known[box]).view(-1, *size)


def boxes_of(dataset: Any, number: int) -> Tuple[Tensor, Tensor]:
    """Boxes (M, 7) and labels (M,) of a frame's objects that the LiDAR has met: the others are hidden or too far."""
    known = dataset.get_ann_info(number)
    met = torch.as_tensor(known['gt_labels_3d'] >= 0)
    if 'num_lidar_pts' in known:
        met &= torch.as_tensor(known['num_lidar_pts'] > 0)
    boxes = known['gt_bboxes_3d']
    centred = torch.cat([boxes.gravity_center, boxes.dims, boxes.yaw[:, None]], dim=1)
    return centred[met], torch.as_tensor(known['gt_labels_3d'])[met]


def observe(frozen: Frozen, dataset: Any, numbers: Sequence[int], title: str) -> Iterator[Frame]:
    """What is seen and known of frames, one by one."""
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    encoder = frozen.student.encoder.to(device)
    stride = frozen.student.config.view_transform.stride
    inputs = frames(frozen, Subset(dataset, numbers), len(numbers))
    for number, batch in tqdm(zip(numbers, inputs), total=len(numbers), desc=title, mininterval=1):
        bins, metres = labels_of(frozen, batch)
        boxes, labels = boxes_of(dataset, number)
        size, background = (bins.shape[1], bins.shape[2]), len(dataset.metainfo['classes'])
        classes = cell_classes(boxes, labels, batch['rig'], stride, size, background)
        yield Frame(features_of(encoder, batch['images'][0].to(device)).cpu(), bins, metres, classes)
