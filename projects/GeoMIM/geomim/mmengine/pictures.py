"""What a pretraining step saw and made of it, as one picture: pure functions from tensors to RGB arrays.

Shape legend: B samples, N cameras, K copies, H x W pixels, h x w cells at the feature stride, D depth bins, C channels,
X x Y BEV cells; R x S rows and columns of a picture. Pictures are (R, S, 3) uint8 RGB; depths are metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ..method.camera import CameraRig
from ..method.depth import DepthBins
from ..method.grid import AXIS_ORDERS, BEVGrid
from ..method.masking import resize_masks
from ..method.pretrainer import PretrainOutput

HIDDEN_GREY = 127
NO_DEPTH_GREY = 40
_TITLE_ROWS = 22  # pixels
_GAP = 2  # pixels between tiles
_MAX_BEV_TILE = 480  # pixels
_LOW, _HIGH = 0.01, 0.99  # quantiles of the target that become black and full colour


@dataclass(frozen=True)
class PanelConfig:
    """What a panel needs to know beside the tensors.

    Args:
        depth_bins: bins of the predicted depth distributions.
        stride: pixels a cell of the depth labels.
        grid: raster of the target and of its reconstructions.
        mean, std: normalisation of the images, RGB, on the scale from 0 to 255.
        width: columns of the panel, pixels.
        max_columns: cameras side by side; further ones go into the next row.
    """

    depth_bins: DepthBins
    stride: int
    grid: BEVGrid
    mean: Tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: Tuple[float, float, float] = (58.395, 57.12, 57.375)
    width: int = 1920
    max_columns: int = 6


@dataclass(frozen=True)
class ColourBasis:
    """Three directions of channel space and the range of each colour: centre (C,), axes (C, 3), low and high (3,)."""

    centre: Tensor
    axes: Tensor
    low: Tensor
    high: Tensor


def denormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Images (N, 3, H, W), normalised RGB -> (N, H, W, 3) uint8; ``mean`` and ``std`` on the scale from 0 to 255."""
    scale = torch.tensor(std, dtype=torch.float).view(3, 1, 1)
    shift = torch.tensor(mean, dtype=torch.float).view(3, 1, 1)
    pixels = (images.detach().float().cpu() * scale + shift).nan_to_num().round().clamp(0, 255)
    return pixels.byte().permute(0, 2, 3, 1).contiguous().numpy()


def hide_cells(images: np.ndarray, mask: Tensor) -> np.ndarray:
    """Images (N, H, W, 3) uint8 with the cells of ``mask`` (h', w'), 1 = hidden, in grey."""
    hidden = resize_masks(mask.detach().cpu().expand(2, -1, -1), images.shape[1:3])[0].numpy() > 0.5
    return np.where(hidden[None, :, :, None], np.uint8(HIDDEN_GREY), images)


def bin_centres(bins: DepthBins) -> Tensor:
    """(D,) metres: the middle of each bin."""
    return bins.values() + bins.step / 2


def expected_depth(probabilities: Tensor, bins: DepthBins) -> np.ndarray:
    """Depth distributions (N, D, h, w) -> their expected values (N, h, w), metres."""
    values = torch.einsum('ndhw,d->nhw', probabilities.detach().float().cpu(), bin_centres(bins))
    return values.numpy()


def label_depth(labels: Tensor, bins: DepthBins) -> np.ndarray:
    """Depth labels (N, h, w), -1 = none -> (N, h, w) metres: the middle of each label's bin, NaN without one."""
    labels = labels.cpu()
    depth = bin_centres(bins)[labels.clamp(min=0)]
    return torch.where(labels >= 0, depth, torch.full_like(depth, float('nan'))).numpy()


def colour_depth(depth: np.ndarray, bins: DepthBins) -> np.ndarray:
    """Depths (R, S) metres -> (R, S, 3), turbo from blue (nearest) to red (farthest); dark grey where not finite."""
    unit = (depth - bins.lower) / (bins.upper - bins.lower)
    return _colour(unit, cv2.COLORMAP_TURBO, NO_DEPTH_GREY)


def bev_to_view(bev: np.ndarray, axis_order: str) -> np.ndarray:
    """A BEV map ('xy': (X, Y, ...), 'yx': (Y, X, ...)) as seen from above: x up, y to the left.

    Whoever drives along x drives up; nuScenes' LiDAR has y ahead, so that its vehicle drives to the left.

    Raises:
        ValueError: an unknown axis order.
    """
    if axis_order not in AXIS_ORDERS:
        raise ValueError(f'axis_order must be one of {AXIS_ORDERS}, got {axis_order!r}')
    x_first = bev if axis_order == 'xy' else np.swapaxes(bev, 0, 1)
    return np.ascontiguousarray(x_first[::-1, ::-1])


def colour_basis(target: Tensor) -> ColourBasis:
    """First three principal components of the cells of ``target`` (C, X, Y), and the range of most cells on each.

    The same target always gives the same basis: eigenvectors of the covariance in float64, their largest entry made
    positive. With fewer than three channels the missing components are 0.
    """
    cells = _cells(target)
    centre = cells.mean(dim=0)
    centred = cells - centre
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    axes = vectors.flip(1)[:, :3]
    peak = axes.abs().argmax(dim=0, keepdim=True)
    axes = axes * torch.where(axes.gather(0, peak) < 0, -1.0, 1.0).to(axes)
    axes = torch.nn.functional.pad(axes, (0, 3 - axes.shape[1]))
    scores = centred @ axes
    limits = torch.from_numpy(np.quantile(scores.numpy(), (_LOW, _HIGH), axis=0))
    # A target that is flat but for a few cells has equal quantiles.
    flat = limits[1] - limits[0] <= 1e-12
    low = torch.where(flat, scores.amin(dim=0), limits[0])
    high = torch.where(flat, scores.amax(dim=0), limits[1])
    return ColourBasis(centre, axes, low, high)


def colour_components(bev: Tensor, basis: ColourBasis) -> np.ndarray:
    """BEV map (C, X, Y) -> (X, Y, 3) uint8: its three components in red, green and blue, on the scale of the basis."""
    scores = (_cells(bev) - basis.centre) @ basis.axes
    unit = (scores - basis.low) / (basis.high - basis.low).clamp(min=1e-12)
    return (unit.clamp(0, 1) * 255).round().byte().view(*bev.shape[1:], 3).numpy()


def colour_error(predictions: Sequence[Tensor], target: Tensor) -> Tuple[np.ndarray, float]:
    """Squared error of K maps against ``target`` (C, X, Y), averaged over copies and channels.

    Returns:
        (X, Y, 3) picture and the error that its brightest colour stands for: a high quantile of the target's square, so
        that pictures of one target compare over time.
    """
    truth = target.detach().float().cpu()
    errors = [(prediction.detach().float().cpu() - truth).square().mean(dim=0) for prediction in predictions]
    brightest = float(np.quantile(truth.square().mean(dim=0).nan_to_num().numpy(), _HIGH)) or 1.0
    return _colour(torch.stack(errors).mean(dim=0).numpy() / brightest, cv2.COLORMAP_INFERNO, 255), brightest


def reconstruction_panel(
    output: PretrainOutput, images: Tensor, rig: CameraRig, config: PanelConfig, sample: int = 0
) -> np.ndarray:
    """One sample of a pretraining pass, side by side: camera pictures above, BEV maps below.

    Args:
        output: what the pass computed.
        images: (B, N, 3, H, W), normalised RGB.
        rig: names of the N cameras.
        config: scales and sizes.
        sample: which of the B samples.

    Returns:
        (R, config.width, 3) uint8 RGB.

    Raises:
        ValueError: a sample that the batch does not hold.
    """
    if not 0 <= sample < images.shape[0]:
        raise ValueError(f'sample {sample} is not in a batch of {images.shape[0]}')
    cameras = _camera_strips(output, images[sample], rig.names, config, sample)
    return np.concatenate([*cameras, _bev_strip(output, config, sample)])


def _camera_strips(
    output: PretrainOutput,
    images: Tensor,
    names: Optional[Sequence[str]],
    config: PanelConfig,
    sample: int,
) -> List[np.ndarray]:
    cams = images.shape[0]
    pictures = denormalise(images, config.mean, config.std)
    bins = config.depth_bins
    predicted = expected_depth(output.depth[0][sample * cams : (sample + 1) * cams], bins)
    measured = label_depth(output.depth_labels[sample], bins)
    scale = f'{bins.lower:g} m blue to {bins.upper:g} m red'
    rows = [('input', list(pictures))]
    for copy, mask in enumerate(output.masks):
        rows.append((f'input of copy {copy}', list(hide_cells(pictures, mask))))
    rows.append((f'predicted depth, copy 0 (expected value, {scale})', [colour_depth(d, bins) for d in predicted]))
    rows.append((f'LiDAR depth labels at stride {config.stride} ({scale})', [colour_depth(d, bins) for d in measured]))
    columns = min(cams, config.max_columns)
    # Few cameras do not get larger tiles than two side by side would.
    tile_width = (config.width - (max(columns, 2) - 1) * _GAP) // max(columns, 2)
    tile_size = (max(1, round(tile_width * images.shape[-2] / images.shape[-1])), tile_width)
    captions = [names or [''] * cams, *([[''] * cams] * (len(rows) - 1))]
    return [_strip(*row, words, tile_size, columns, config.width) for row, words in zip(rows, captions)]


def _bev_strip(output: PretrainOutput, config: PanelConfig, sample: int) -> np.ndarray:
    grid, target = config.grid, output.target[sample]
    predictions = [prediction[sample] for prediction in output.predictions]
    basis = colour_basis(target)
    error, brightest = colour_error(predictions, target)
    tiles = [colour_components(bev, basis) for bev in (target, *predictions)] + [error]
    losses = [float((p.detach().float() - target.detach().float()).square().mean()) for p in predictions]
    captions = ['target', *(f'copy {k}, error {loss:.3f}' for k, loss in enumerate(losses))]
    captions.append(f'squared error, 0 to {brightest:.3g}')
    width = min(_MAX_BEV_TILE, (config.width - (len(tiles) - 1) * _GAP) // len(tiles))
    extent_x, extent_y = (bound[1] - bound[0] for bound in (grid.x_bound, grid.y_bound))
    size = (max(1, round(width * extent_x / extent_y)), width)
    title = 'BEV, x of the LiDAR frame up, y to the left: principal components 1 to 3 of the target as red, green, blue'
    views = [bev_to_view(tile, grid.axis_order) for tile in tiles]
    return _strip(title, views, captions, size, len(tiles), config.width)


def _cells(bev: Tensor) -> Tensor:
    """(C, X, Y) -> (X * Y, C) float64 on the host; what is not finite counts as 0."""
    return bev.detach().double().cpu().nan_to_num(posinf=0.0, neginf=0.0).flatten(1).T


def _colour(unit: np.ndarray, colour_map: int, not_finite: int) -> np.ndarray:
    """Values (R, S), 0 to 1 -> colours; a grey value where they are not finite."""
    finite = np.isfinite(unit)
    levels = np.rint(np.clip(np.where(finite, unit, 0.0), 0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, colour_map)[..., ::-1]
    return np.where(finite[..., None], colours, np.uint8(not_finite))


def _strip(
    title: str,
    tiles: Sequence[np.ndarray],
    captions: Sequence[str],
    tile_size: Tuple[int, int],
    columns: int,
    width: int,
) -> np.ndarray:
    """Tiles in rows of ``columns``, under a title, on a black ground of ``width`` pixels."""
    rows, (tile_rows, tile_cols) = -(-len(tiles) // columns), tile_size
    strip = np.zeros((_TITLE_ROWS + rows * (tile_rows + _GAP), width, 3), np.uint8)
    _write(strip, title, _TITLE_ROWS - 7)
    for index, (tile, caption) in enumerate(zip(tiles, captions)):
        top = _TITLE_ROWS + index // columns * (tile_rows + _GAP)
        left = index % columns * (tile_cols + _GAP)
        picture = _resize(tile, tile_size)
        _write(picture, caption, 14)
        strip[top : top + tile_rows, left : left + tile_cols] = picture
    return strip


def _resize(picture: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    # averages when shrinking; cells stay sharp when enlarging
    return cv2.resize(np.ascontiguousarray(picture), size[::-1], interpolation=cv2.INTER_AREA)


def _write(picture: np.ndarray, text: str, baseline: int) -> None:
    for colour, thickness in ((0, 3), (255, 1)):
        cv2.putText(picture, text, (4, baseline), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (colour,) * 3, thickness, cv2.LINE_AA)
