"""Colours of what rays meet: paint and texture, sun, sky, cast shadows, haze. All surfaces of an image at once.

Shape legend: M pixels, P solids. Lengths are metres, colours RGB from 0 to 1.
"""

from __future__ import annotations

import cv2
import numpy as np

from .cast import GROUND, NOTHING, CameraBeams, Frozen, Hits
from .layout import Light, Scene
from .road import KERB_HEIGHT
from .solids import BANDED, BODYWORK, CYLINDER, ELLIPSOID, FACADE, GLAZED, LEAVES, PANELS, STRIPED, WHEEL

_TILE = 256  # cells of the repeating noise tile
_SHADOW_CELL = 0.15  # metres
_SHADOW_REACH = 60.0  # metres around the sensor


def noise_tile(seed: int) -> np.ndarray:
    """(256, 256) float32 around 0: rough grains with softer patches, repeating at the edges."""
    grains = np.random.default_rng(seed).standard_normal((_TILE, _TILE)).astype(np.float32)
    soft = (
        sum(
            (grains if r == 0 else np.roll(grains, (dy * r, dx * r), (0, 1)))
            for r in (2, 5)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        )
        / 18
    )
    return 0.55 * grains + 2.0 * soft


def _noise(tile: np.ndarray, x: np.ndarray, y: np.ndarray, per_metre: float) -> np.ndarray:
    mask = _TILE - 1
    return tile[np.floor(y * per_metre).astype(np.int64) & mask, np.floor(x * per_metre).astype(np.int64) & mask]


def shadow_map(frozen: Frozen, light: Light, origin: np.ndarray) -> np.ndarray:
    """Where bodies cast shadows on the ground around ``origin``: (cells of y, cells of x) uint8, 255 = in shadow."""
    cells = int(2 * _SHADOW_REACH / _SHADOW_CELL)
    image = np.zeros((cells, cells), dtype=np.uint8)
    corners = frozen.corners()
    height = np.maximum(corners[..., 2:], 0)
    flat = corners[..., :2] - height * light.sun[:2] / light.sun[2]
    pixels = (flat - origin[:2] + _SHADOW_REACH) / _SHADOW_CELL
    near = (pixels > -200).all(axis=(1, 2)) & (pixels < cells + 200).all(axis=(1, 2))
    for body in np.nonzero(near)[0]:
        hull = cv2.convexHull(np.round(pixels[body] * 16).astype(np.int32))
        cv2.fillConvexPoly(image, hull, (255,), lineType=cv2.LINE_8, shift=4)
    return image


def _in_shadow(shadows: np.ndarray, points: np.ndarray, origin: np.ndarray) -> np.ndarray:
    cells = np.floor((points[:2] - origin[:2, None] + _SHADOW_REACH) / _SHADOW_CELL).astype(np.int64)
    inside = ((cells >= 0) & (cells < len(shadows))).all(axis=0)
    cells = np.where(inside, cells, 0)
    return inside & (shadows[cells[1], cells[0]] > 0)


def _ground(scene: Scene, tile: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (3, M) -> albedo (3, M)."""
    (s, d), kerb = scene.road.locate(points[0], points[1]), np.float32(scene.road.kerb)
    low = (np.abs(d) < kerb) & (points[2] < KERB_HEIGHT / 10)  # the kerb's face is none of the carriageway
    apart = np.where(low, np.abs(d), np.maximum(np.abs(d), kerb))
    rough = _noise(tile, points[0], points[1], 8)
    albedo = np.full((3, s.size), 0.23, dtype=np.float32) + 0.018 * rough
    paint = scene.road.painted(s, d) & low
    albedo = np.where(paint, 0.75 + 0.03 * rough, albedo)
    joints = (np.abs(s % 1.5 - 0.75) > 0.71) | (np.abs(apart % 1.2 - 0.6) > 0.56)
    slabs = np.where(apart < kerb + 0.2, 0.58, np.where(joints, 0.32, 0.45)) + 0.02 * rough
    grass = np.array([0.20, 0.30, 0.12], dtype=np.float32)[:, None] * (1 + 0.22 * rough)
    return np.where(
        apart < kerb,
        albedo,
        np.where(apart < scene.road.sidewalk, slabs * np.array([[1.0], [0.97], [0.92]], dtype=np.float32), grass),
    )


class _Surfaces:
    """What the pixels of solids show: local coordinates and normals of M hits on P solids."""

    def __init__(self, frozen: Frozen, solid: np.ndarray, points: np.ndarray) -> None:
        centre, yaw, half = frozen.placed()
        self.half = half.astype(np.float32)[solid].T  # (3, M)
        cos, sin = np.cos(yaw).astype(np.float32)[solid], np.sin(yaw).astype(np.float32)[solid]
        offset = points - centre.astype(np.float32)[solid].T
        self.metres = np.stack([offset[0] * cos + offset[1] * sin, offset[1] * cos - offset[0] * sin, offset[2]])
        self.unit = self.metres / self.half
        stack = frozen.stack
        self.look, self.colour = stack.look[solid], stack.colour[solid].T
        self.face = np.abs(self.unit).argmax(axis=0)
        normal = self._normals(stack.kind[solid])
        normal /= np.maximum(np.sqrt((normal * normal).sum(axis=0)), 1e-9)
        self.normal = np.stack([normal[0] * cos - normal[1] * sin, normal[0] * sin + normal[1] * cos, normal[2]])

    def _normals(self, kinds: np.ndarray) -> np.ndarray:
        """(3, M), each solid's own frame, not normalised."""
        normal = np.where(np.arange(3)[:, None] == self.face, np.sign(self.unit), np.float32(0))
        balls = kinds == ELLIPSOID
        normal[:, balls] = self.unit[:, balls] / self.half[:, balls]
        for kind, axis in ((CYLINDER, 2), (WHEEL, 1)):
            at = np.nonzero(kinds == kind)[0]
            end = np.abs(self.unit[axis, at]) >= 0.999
            normal[:, at] = np.where(end, np.float32(0), self.unit[:, at] / self.half[:, at])
            normal[axis, at] = np.where(end, np.sign(self.unit[axis, at]), np.float32(0))
        return normal

    def albedo(self, tile: np.ndarray) -> np.ndarray:
        """(3, M), with texture."""
        metres, unit, side = self.metres, self.unit, self.face < 2
        along = np.where(self.face == 0, metres[1], metres[0])
        rough = _noise(tile, along, metres[2], 12)
        colour = self.colour * (1 + 0.05 * rough)
        above = metres[2] + self.half[2]  # over the solid's lower face
        # windows, stripes and the like, each for its own look alone: pixels of it, where it is painted, and the paint
        for look, painted, paint in (
            (FACADE, lambda m: (above[m] % 3 > 1.3) & (above[m] % 3 < 2.6) & (along[m] % 3.2 > 1.2) & side[m], (0.16, 0.20, 0.25)),
            (
                GLAZED,
                lambda m: (unit[2, m] > -0.05) & (unit[2, m] < 0.75) & (np.abs(along[m] % 1.5 - 0.75) < 0.66) & side[m],
                (0.07, 0.09, 0.11),
            ),
            (STRIPED, lambda m: ((along[m] + metres[2, m]) % 0.5 < 0.22) & side[m], (0.75, 0.10, 0.08)),
            (BANDED, lambda m: above[m] % 0.34 > 0.26, (0.95, 0.95, 0.95)),
            (PANELS, lambda m: np.abs(along[m] % 1.2) < 0.06, (0.35, 0.35, 0.36)),
        ):  # fmt: skip
            pixels = np.nonzero(self.look == look)[0]
            colour[:, pixels[painted(pixels)]] = np.array(paint, dtype=np.float32)[:, None]
        lamps = (self.look == BODYWORK) & (self.face == 0) & (np.abs(unit[1]) > 0.6) & (unit[2] > 0.1)
        colour[:, lamps & (unit[0] > 0)] = np.array([[0.95], [0.95], [0.85]], dtype=np.float32)
        colour[:, lamps & (unit[0] <= 0)] = np.array([[0.7], [0.03], [0.03]], dtype=np.float32)
        leaves = self.look == LEAVES
        colour[:, leaves] = self.colour[:, leaves] * (1 + 0.32 * rough[leaves])
        return colour


def shade(scene: Scene, frozen: Frozen, beams: CameraBeams, hits: Hits, random: np.random.Generator) -> np.ndarray:
    """The image of a camera, (R, C, 3) uint8 RGB; ``random`` gives the pixels' noise."""
    light, shape = scene.light, hits.t.shape
    t, solid = hits.t.ravel(), hits.solid.ravel()
    rays = beams.rays.reshape(3, -1)
    length = np.sqrt((rays * rays).sum(axis=0))
    rise = np.clip(rays[2] / length, 0, 1)
    sky = light.sky[:, None].astype(np.float32)
    backdrop = sky + (np.float32(0.92) - sky) * np.exp(-5 * rise)
    tile = noise_tile(scene.texture_seed)
    colour = backdrop.copy()
    ground, solids = np.nonzero(solid == GROUND)[0], np.nonzero(solid >= 0)[0]
    on_ground, on_solids = (
        beams.origin[:, None].astype(np.float32) + rays[:, pixels] * t[pixels] for pixels in (ground, solids)
    )
    shadows = shadow_map(frozen, light, beams.origin)
    lit = np.float32(light.direct * light.sun[2]) * ~_in_shadow(shadows, on_ground, beams.origin)
    colour[:, ground] = _ground(scene, tile, on_ground) * (light.ambient + lit)
    if solids.size:
        surfaces = _Surfaces(frozen, solid[solids], on_solids)
        facing = np.maximum((surfaces.normal * light.sun[:, None].astype(np.float32)).sum(axis=0), 0)
        dome = light.ambient * (0.75 + 0.25 * surfaces.normal[2])
        colour[:, solids] = surfaces.albedo(tile) * (dome + light.direct * facing)
    veil = np.exp(np.float32(-light.haze) * np.where(solid == NOTHING, np.float32(0), t * length))
    colour = colour * veil + backdrop * (1 - veil)
    colour = np.clip(colour * light.tint[:, None].astype(np.float32), 0, 1) ** np.float32(1 / 1.6)
    colour += np.float32(light.noise) * random.standard_normal((1, colour.shape[1]), dtype=np.float32)
    return (np.clip(colour, 0, 1) * 255 + 0.5).astype(np.uint8).T.reshape(*shape, 3)
