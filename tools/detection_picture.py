"""Boxes of one keyframe as a picture: annotated ones in green, found ones in orange, over the cameras and from above."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Mapping, NamedTuple, Tuple

import cv2
import numpy as np
from torch import Tensor

from geomim.checkpoint_io import atomic_path

TILE = (315, 560)  # rows and columns of a camera, pixels
COLUMNS = 3
VIEW = 51.2  # metres from the ego vehicle to the edges of the view from above
NEAREST = 0.1  # metres; edges nearer to an image plane are cut off
GREEN, ORANGE, GREY = (80, 220, 60), (0, 140, 255), (90, 90, 90)  # BGR
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
BOTTOM = (0, 3, 7, 4)
FRONT = (4, 7)


class Boxes(NamedTuple):
    """corners (M, 8, 3) as mmdet3d orders them, and centres (M, 3), metres; labels (M,); values (M,): scores or the like."""

    corners: Tensor
    centres: Tensor
    labels: Tensor
    values: Tensor

    def take(self, which: Tensor) -> Boxes:
        return Boxes(*(value[which] for value in self))

    def reach(self) -> Tensor:
        """(M,) distance from the ego vehicle, seen from above, metres."""
        return self.centres[:, :2].norm(dim=1)


def draw(meta: Mapping[str, Any], truth: Boxes, found: Boxes) -> np.ndarray:
    """One BGR picture (R, S, 3) of a keyframe.

    Args:
        meta: of the sample: images (the info file's entries), cam_names, img_path, lidar_path, lidar2key_ego.
        truth, found: boxes in the key ego frame.
    """
    to_key = np.asarray(meta['images'][meta['cam_names'][0]]['ego2global'])
    tiles = []
    for name, path in zip(meta['cam_names'], meta['img_path']):
        camera = meta['images'][name]
        camera2key = np.linalg.inv(to_key) @ np.asarray(camera['ego2global']) @ np.asarray(camera['cam2ego'])
        tiles.append(draw_camera(cv2.imread(str(path)), name, camera, np.linalg.inv(camera2key), (truth, found)))
    rows = [np.concatenate(tiles[start : start + COLUMNS], axis=1) for start in range(0, len(tiles), COLUMNS)]
    cameras = np.concatenate(rows)
    points = np.fromfile(meta['lidar_path'], dtype=np.float32).reshape(-1, 5)[:, :3]
    points = points @ meta['lidar2key_ego'][:3, :3].T + meta['lidar2key_ego'][:3, 3]
    return np.concatenate([cameras, draw_from_above(points, truth, found, len(cameras))], axis=1)


def draw_camera(
    image: np.ndarray, name: str, camera: Mapping[str, Any], key2camera: np.ndarray, boxes: Tuple[Boxes, Boxes]
) -> np.ndarray:
    """A camera's image with the boxes before it, annotated ones below the found."""
    scale = np.diag([TILE[1] / image.shape[1], TILE[0] / image.shape[0], 1.0])
    canvas = cv2.resize(image, (TILE[1], TILE[0]), interpolation=cv2.INTER_AREA)
    projection = scale @ np.asarray(camera['cam2img'])[:3, :3]
    for group, colour in zip(boxes, (GREEN, ORANGE)):
        corners = group.corners.double().numpy() @ key2camera[:3, :3].T + key2camera[:3, 3]
        for box in corners:
            if box[:, 2].max() > NEAREST:
                draw_edges(canvas, box, projection, colour)
    cv2.putText(canvas, name, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas


def draw_edges(canvas: np.ndarray, box: np.ndarray, projection: np.ndarray, colour: Tuple[int, int, int]) -> None:
    """Edges of a box (8, 3) in camera coordinates, cut at the image plane."""
    for start, end in EDGES:
        one, two = box[start], box[end]
        if max(one[2], two[2]) <= NEAREST:
            continue
        if min(one[2], two[2]) < NEAREST:
            cut = one + (two - one) * (NEAREST - one[2]) / (two[2] - one[2])
            one, two = (cut, two) if one[2] < NEAREST else (one, cut)
        ends: List[Tuple[int, int]] = []
        for point in (one, two):
            u, v, depth = projection @ point
            ends.append((int(np.clip(u / depth, -9999, 9999)), int(np.clip(v / depth, -9999, 9999))))
        cv2.line(canvas, ends[0], ends[1], colour, 1, cv2.LINE_AA)


def draw_from_above(points: np.ndarray, truth: Boxes, found: Boxes, side: int) -> np.ndarray:
    """Points and boxes seen from above, ahead is up; a ring every 10 m."""
    canvas = np.full((side, side, 3), 20, dtype=np.uint8)
    scale = side / (2 * VIEW)

    def place(xy: np.ndarray) -> np.ndarray:
        return np.stack([side / 2 - xy[..., 1] * scale, side / 2 - xy[..., 0] * scale], axis=-1).round().astype(int)

    pixels = place(points)
    inside = ((pixels >= 0) & (pixels < side)).all(axis=1)
    canvas[pixels[inside, 1], pixels[inside, 0]] = GREY
    for radius in range(10, int(VIEW), 10):
        cv2.circle(canvas, (side // 2, side // 2), int(radius * scale), (55, 55, 55), 1, cv2.LINE_AA)
    for group, colour in ((truth, GREEN), (found, ORANGE)):
        for box in group.corners.double().numpy():
            cv2.polylines(canvas, [place(box[list(BOTTOM)])], True, colour, 1, cv2.LINE_AA)
            front = box[list(FRONT)].mean(axis=0)
            cv2.line(canvas, *map(tuple, place(np.stack([box.mean(axis=0), front])).tolist()), colour, 1, cv2.LINE_AA)
    for row, (text, colour) in enumerate((('annotated', GREEN), ('found', ORANGE))):
        cv2.putText(canvas, text, (8, 18 + 18 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
    return canvas


def save(picture: np.ndarray, path: Path) -> None:
    """Write a PNG."""
    with atomic_path(path) as temporary:
        Path(temporary).write_bytes(cv2.imencode('.png', picture)[1].tobytes())
