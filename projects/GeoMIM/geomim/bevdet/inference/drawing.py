"""Boxes in pictures: in all cameras of a rig and from above.

Shape legend: N cameras, M boxes, P points, R x S rows and columns of a picture. Pictures are (R, S, 3) uint8 RGB; lengths are
metres. Boxes, points and projections share one frame; for the view from above its x points ahead and its y to the left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

import cv2
import numpy as np
from mmdet3d.structures import LiDARInstance3DBoxes

Colour = Tuple[int, int, int]
FOUND: Colour = (255, 70, 40)
TRUE: Colour = (60, 220, 60)
_GROUND: Colour = (16, 16, 20)
_POINT: Colour = (120, 120, 135)
_MARK: Colour = (70, 70, 80)
_NEAR = 0.2  # metres before a camera, where edges are cut off
_SHIFT = 4  # bits of a fraction of a pixel
_FARTHEST = 1e8  # pixels, which OpenCV's 32-bit integers still hold with the fraction
_RING = 20.0  # metres between circles of equal distance
# mmdet3d's corners: 0 to 3 behind, 4 to 7 ahead; of each four 0 and 3 at the bottom
_EDGES = (
    (0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7),
)  # fmt: skip
_BOTTOM = [0, 3, 7, 4]
_AHEAD = [4, 7]  # corners at the bottom of the front


@dataclass(frozen=True)
class DrawnBoxes:
    """Boxes that are drawn alike.

    Args:
        boxes: (M, 7 or 9).
        colour: RGB, 0 to 255.
        captions: a short text a box for the camera pictures, or none at all.

    Raises:
        ValueError: another number of captions than of boxes.
    """

    boxes: LiDARInstance3DBoxes
    colour: Colour
    captions: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.captions and len(self.captions) != len(self.boxes):
            raise ValueError(f'{len(self.boxes)} boxes have {len(self.captions)} captions; give one a box, or none')

    def corners(self) -> np.ndarray:
        """(M, 8, 3) float64."""
        return self.boxes.corners.detach().cpu().double().numpy().reshape(-1, 8, 3)


def draw_cameras(
    images: Sequence[np.ndarray],
    groups: Sequence[DrawnBoxes],
    projections: np.ndarray,
    names: Sequence[str] = (),
    columns: int = 3,
    tile_width: int = 640,
) -> np.ndarray:
    """All cameras with boxes, side by side in rows of ``columns``.

    Args:
        images: N pictures, of any sizes.
        groups: what to draw, later ones over earlier ones.
        projections: (N, 3 or 4, 4), homogeneous coordinates of the boxes' frame to pixels of the images times depth.
        names: N texts for the corners of the pictures, or none.
        columns: pictures side by side.
        tile_width: columns of each picture, pixels; its rows follow from the first image.

    Returns:
        (rows * R, columns * tile_width, 3); what no picture covers is black.

    Raises:
        ValueError: no image, or another number of projections or names than of images.
    """
    if not len(images) or len(projections) != len(images) or len(names) not in (0, len(images)):
        raise ValueError(
            f'{len(images)} images need as many projections and as many names or none, got {len(projections)} and {len(names)}'
        )
    tile_height = round(images[0].shape[0] * tile_width / images[0].shape[1])
    columns = min(columns, len(images))
    mosaic = np.zeros((-(-len(images) // columns) * tile_height, columns * tile_width, 3), np.uint8)
    for number, (image, projection) in enumerate(zip(images, projections)):
        scale = min(tile_width / image.shape[1], tile_height / image.shape[0])
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        tile = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
        scaling = np.diag([size[0] / image.shape[1], size[1] / image.shape[0], 1.0])
        for group in groups:
            draw_in_image(tile, group, scaling @ np.asarray(projection, dtype=np.float64)[:3])
        if names:
            _write(tile, names[number], (6, 16), (255, 255, 255))
        top, left = number // columns * tile_height, number % columns * tile_width
        mosaic[top : top + size[1], left : left + size[0]] = tile
    return mosaic


def draw_in_image(image: np.ndarray, group: DrawnBoxes, projection: np.ndarray) -> None:
    """Draw boxes into a picture, in place.

    Args:
        image: (R, S, 3) uint8.
        group: the boxes; parts behind the camera are cut off.
        projection: (3, 4), homogeneous coordinates of the boxes' frame to pixels times depth.
    """
    for number, corners in enumerate(group.corners()):
        seen = np.concatenate([corners, np.ones((8, 1))], axis=1) @ projection.T  # u * depth, v * depth, depth
        if not np.isfinite(seen).all() or (seen[:, 2] < _NEAR).all():
            continue
        middle, front = seen[_BOTTOM].mean(axis=0), seen[_AHEAD].mean(axis=0)
        for start, end in [*((seen[a], seen[b]) for a, b in _EDGES), (middle, front)]:
            _draw_edge(image, start, end, group.colour)
        if group.captions and (seen[:, 2] >= _NEAR).all():
            pixels = seen[:, :2] / seen[:, 2:]
            left, top = pixels.min(axis=0)
            if -20 <= left < image.shape[1] and 0 <= top < image.shape[0]:
                _write(image, group.captions[number], (int(left), int(top) - 3), group.colour)


def draw_bev(
    points: Optional[np.ndarray],
    found: Optional[LiDARInstance3DBoxes],
    truth: Optional[LiDARInstance3DBoxes],
    reach: float = 55.0,
    pixels: int = 600,
) -> np.ndarray:
    """The scene from above: x up, y to the left, the vehicle in the middle, circles every 20 m.

    Args:
        points: (P, 2 or more) x and y, or None.
        found: detections, drawn in ``FOUND`` over the others, or None.
        truth: annotations, drawn in ``TRUE``, or None.
        reach: metres from the middle to each side.
        pixels: side of the picture.

    Returns:
        (pixels, pixels, 3); the point (x, y) lies in row (reach - x) * pixels / (2 * reach), column likewise from y.

    Raises:
        ValueError: a reach or side that is not positive.
    """
    if reach <= 0 or pixels < 1:
        raise ValueError(f'a view from above needs a reach above 0 m and at least a pixel, got {reach} m and {pixels}')
    scale = pixels / (2 * reach)
    view = np.full((pixels, pixels, 3), _GROUND, np.uint8)
    middle = (pixels // 2, pixels // 2)
    for ring in range(1, int(reach / _RING) + 1):
        cv2.circle(view, middle, round(ring * _RING * scale), _MARK, 1, cv2.LINE_AA)
    cv2.arrowedLine(view, middle, (middle[0], round(middle[1] - 4 * scale)), (255, 255, 255), 1, cv2.LINE_AA)
    if points is not None:
        columns, rows = np.floor((reach - np.asarray(points)[:, 1::-1]) * scale).T
        inside = (columns >= 0) & (columns < pixels) & (rows >= 0) & (rows < pixels)
        view[rows[inside].astype(int), columns[inside].astype(int)] = _POINT
    for boxes, colour in ((truth, TRUE), (found, FOUND)):
        if boxes is not None:
            _draw_outlines(view, DrawnBoxes(boxes, colour), reach, scale)
    return view


def _draw_outlines(view: np.ndarray, group: DrawnBoxes, reach: float, scale: float) -> None:
    for corners in group.corners():
        if not np.isfinite(corners).all():
            continue
        plane = (reach - corners[:, 1::-1]) * scale  # columns, rows
        middle, front = plane[_BOTTOM].mean(axis=0), plane[_AHEAD].mean(axis=0)
        outline = plane[_BOTTOM]
        for start, end in [*zip(outline, np.roll(outline, -1, axis=0)), (middle, front)]:
            _line(view, start, end, group.colour)


def _draw_edge(image: np.ndarray, start: np.ndarray, end: np.ndarray, colour: Colour) -> None:
    """An edge from (u * depth, v * depth, depth) to another, cut off at the near plane."""
    if start[2] > end[2]:
        start, end = end, start
    if end[2] < _NEAR:
        return
    if start[2] < _NEAR:
        start = start + (end - start) * (_NEAR - start[2]) / (end[2] - start[2])
    _line(image, start[:2] / start[2], end[:2] / end[2], colour)


def _line(image: np.ndarray, start: np.ndarray, end: np.ndarray, colour: Colour) -> None:
    """A line between pixels, columns first; OpenCV cuts off what lies outside of the picture."""
    places = np.clip([start, end], -_FARTHEST, _FARTHEST) - 0.5
    first, second = (tuple(place) for place in np.round(places * (1 << _SHIFT)).astype(int).tolist())
    cv2.line(image, first, second, colour, 1, cv2.LINE_AA, _SHIFT)


def _write(image: np.ndarray, text: str, place: Tuple[int, int], colour: Colour) -> None:
    for tone, thickness in (((0, 0, 0), 3), (colour, 1)):
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, tone, thickness, cv2.LINE_AA)
