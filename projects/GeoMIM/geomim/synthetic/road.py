"""A street along a circular arc: where its strips lie, how high they are, and what they are made of.

Road coordinates: s metres along the centre line, d metres to its left. World frame: x, y metres, z up; the centre line
starts at the origin along x. The carriageway is at z = 0, everything beyond the kerbs at ``KERB_HEIGHT``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple, Union

import numpy as np

LANE = 3.5  # width of each of the two lanes; traffic keeps to the right
PARKING = 3.5  # width of the strip between lane and kerb where cars park
KERB_HEIGHT = 0.15
SIDEWALK = 3.5  # width of each of the two sidewalks; beyond them lies terrain
MIN_CURVATURE = 1e-5  # 1/m; straighter than this looks straight and computes badly

Coordinate = Union[float, np.ndarray]  # metres along or across the street


@dataclass(frozen=True)
class Road:
    """A street.

    Args:
        curvature: of the centre line, 1/m, positive to the left.
        crossing: s of a zebra crossing's beginning, metres.
        median: half the width of what keeps the two lanes apart, metres.
        margin: width between a lane and the parked cars, metres.
    """

    curvature: float
    crossing: float
    median: float = 0.0
    margin: float = 0.0

    @property
    def lane(self) -> float:
        """|d| of the lanes' outer edges."""
        return self.median + LANE

    @property
    def kerb(self) -> float:
        """|d| of the kerbs."""
        return self.lane + self.margin + PARKING

    @property
    def sidewalk(self) -> float:
        """|d| where the sidewalks end."""
        return self.kerb + SIDEWALK

    def _signed_radius(self) -> Tuple[float, float]:
        sign = -1.0 if self.curvature < 0 else 1.0
        return sign, 1.0 / max(abs(self.curvature), MIN_CURVATURE)

    def place(self, s: Coordinate, d: Coordinate) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(s, d) -> x, y, heading of the street there (radians)."""
        sign, radius = self._signed_radius()
        angle = np.asarray(s) / radius
        reach = radius - sign * np.asarray(d)
        # radius - reach * cos, without the cancellation of a large radius
        across = 2 * reach * np.sin(angle / 2) ** 2 + sign * np.asarray(d)
        return reach * np.sin(angle), sign * across, sign * angle

    def locate(self, x: np.ndarray, y: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """x, y -> s, d."""
        sign, radius = self._signed_radius()
        return radius * np.arctan2(x, radius - sign * y), self.lateral(x, y)

    def lateral(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x, y -> d alone, which takes a third of the time."""
        sign, radius = self._signed_radius()
        up = sign * y
        return sign * (2 * radius * up - x * x - up * up) / (radius + np.hypot(x, radius - up))

    def height(self, d: np.ndarray) -> np.ndarray:
        """z of the ground at d."""
        return np.where(np.abs(d) < self.kerb, 0.0, KERB_HEIGHT)

    def painted(self, s: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Whether the ground at s, d carries paint: centre line, edge lines of the lanes, zebra crossing."""
        apart = np.abs(d)
        dashes = (apart < 0.09) & (s % 9 < 3.6)
        zebra = (np.abs(s - self.crossing - 1.5) < 1.5) & (d % 1.0 < 0.5)
        edges = (np.abs(apart - self.lane) < 0.07) | (np.abs(apart - self.median) < 0.07) & (self.median > 1)
        return (dashes | edges | zebra) & (apart < self.kerb)

    def cast_ground(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Where rays meet the ground, kerb faces included.

        Args:
            origin: (3,), above the ground.
            rays: (3, ...) float32 directions.

        Returns:
            t (...), float32, of origin + t * ray; infinite above the horizon.
        """
        x, y, z = (np.float32(value) for value in origin)
        falling = rays[2] < -1e-6
        east, north, down = (axis[falling] for axis in rays)
        upper, lower = (np.float32(KERB_HEIGHT) - z) / down, -z / down
        d_upper = np.abs(self.lateral(x + upper * east, y + upper * north))
        d_lower = np.abs(self.lateral(x + lower * east, y + lower * north))
        # between the two heights the ray meets the kerb's face; d is all but linear over so short a way
        share = (np.float32(self.kerb) - d_upper) / np.maximum(d_lower - d_upper, np.float32(1e-6))
        face = upper + share * (lower - upper)
        t = np.full(falling.shape, np.inf, dtype=np.float32)
        t[falling] = np.where(d_upper >= self.kerb, upper, np.where(d_lower >= self.kerb, face, lower))
        return t
