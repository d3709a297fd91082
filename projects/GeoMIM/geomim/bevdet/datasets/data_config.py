"""BEVDet's ``data_config`` and ``bda_aug_conf`` as checked records."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Mapping, Optional, Tuple

import numpy as np

Range = Tuple[float, float]


def _check_names(name: str, config: Mapping[str, Any], record: type, ignored: Tuple[str, ...] = ()) -> None:
    known = [field.name for field in fields(record)] + list(ignored)
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ValueError(f'{name}: unknown {", ".join(unknown)}; it may hold {", ".join(known)}')


def _range(name: str, value: Any, lower: float, upper: float) -> Range:
    if len(value) != 2 or not lower <= value[0] <= value[1] <= upper:
        raise ValueError(f'{name} must be (low, high) within [{lower}, {upper}], got {tuple(value)}')
    return float(value[0]), float(value[1])


@dataclass(frozen=True)
class DataConfig:
    """Cameras and image augmentation, in BEVDet's words; the defaults are those of the published configurations.

    Args:
        cams: the cameras in order; the ego frame of the first, at its own time stamp, is the model's key ego frame.
        input_size: (H, W) pixels of the images that the model sees, multiples of 32.
        src_size: (H, W) pixels of the images as recorded; for early checks only, the images themselves decide.
        resize: range of what is added to the scale that fits the width, W / width of the image.
        rot: range of the rotation, degrees.
        flip: whether one in two images gets mirrored.
        crop_h: range of the share of the scaled height that is cut off at the bottom.
        resize_test: what is added to the scale outside training.

    Raises:
        ValueError: no camera, a repeated one, or a range that is none; sizes are checked where images are augmented.
    """

    cams: Tuple[str, ...] = (
        'CAM_FRONT_LEFT',
        'CAM_FRONT',
        'CAM_FRONT_RIGHT',
        'CAM_BACK_LEFT',
        'CAM_BACK',
        'CAM_BACK_RIGHT',
    )
    input_size: Tuple[int, int] = (256, 704)
    src_size: Tuple[int, int] = (900, 1600)
    resize: Range = (-0.06, 0.11)
    rot: Range = (-5.4, 5.4)
    flip: bool = True
    crop_h: Range = (0.0, 0.0)
    resize_test: float = 0.0

    def __post_init__(self) -> None:
        names = tuple(self.cams)
        if not names or len(set(names)) != len(names):
            raise ValueError(f'data_config: cams must name each camera once, got {list(names)}')
        object.__setattr__(self, 'cams', names)
        for name, lower, upper in (('resize', -1e3, 1e3), ('rot', -180, 180), ('crop_h', 0, 1)):
            object.__setattr__(self, name, _range(f'data_config: {name}', getattr(self, name), lower, upper))

    @classmethod
    def create(cls, config: Optional[Mapping[str, Any]] = None) -> DataConfig:
        """From BEVDet's dictionary; what it leaves out has the published value.

        Raises:
            ValueError: an unknown key, or an ``Ncams`` other than the number of ``cams`` (BEVDet then trains on random
                subsets of the cameras, which is not supported).
        """
        given = dict(config or {})
        _check_names('data_config', given, cls, ('Ncams',))
        count = given.pop('Ncams', None)
        record = cls(**given)
        if count is not None and count != len(record.cams):
            raise ValueError(
                f'data_config: Ncams={count} for {len(record.cams)} cams {list(record.cams)}; list those to use'
            )
        return record


@dataclass(frozen=True)
class BEVDraw:
    """One BEV augmentation: degrees about the vertical axis, a scale, then mirroring of x and of y."""

    angle: float = 0.0
    scale: float = 1.0
    flip_dx: bool = False
    flip_dy: bool = False

    def matrix(self) -> np.ndarray:
        """(4, 4) float64, BEV frame before -> after: flip, scale, rotation, the rotation first."""
        cos, sin = np.cos(np.deg2rad(self.angle)), np.sin(np.deg2rad(self.angle))
        matrix = np.eye(4)
        matrix[:2, :2] = [[cos, -sin], [sin, cos]]
        mirror = np.diag([-1.0 if self.flip_dx else 1.0, -1.0 if self.flip_dy else 1.0, 1.0])
        matrix[:3, :3] = self.scale * mirror @ matrix[:3, :3]
        return matrix


@dataclass(frozen=True)
class BDAConfig:
    """BEV augmentation, in BEVDet's words; the defaults are those of the published detection configurations.

    Args:
        rot_lim: range of the rotation, degrees.
        scale_lim: range of the scale.
        flip_dx_ratio, flip_dy_ratio: probabilities that x (ahead) and y (left) change their sign.

    Raises:
        ValueError: a range that is none, or a probability outside [0, 1].
    """

    rot_lim: Range = (-22.5, 22.5)
    scale_lim: Range = (0.95, 1.05)
    flip_dx_ratio: float = 0.5
    flip_dy_ratio: float = 0.5

    def __post_init__(self) -> None:
        for name, lower, upper in (('rot_lim', -180, 180), ('scale_lim', 1e-3, 1e3)):
            object.__setattr__(self, name, _range(f'bda_aug_conf: {name}', getattr(self, name), lower, upper))
        for name in ('flip_dx_ratio', 'flip_dy_ratio'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'bda_aug_conf: {name} is a probability in [0, 1], got {getattr(self, name)}')

    @classmethod
    def create(cls, config: Optional[Mapping[str, Any]] = None) -> BDAConfig:
        """From BEVDet's dictionary; what it leaves out has the published value."""
        _check_names('bda_aug_conf', dict(config or {}), cls)
        return cls(**dict(config or {}))

    def draw(self) -> BEVDraw:
        """Random numbers of NumPy's global generator, in BEVDet's order."""
        random = np.random
        return BEVDraw(
            angle=random.uniform(*self.rot_lim),
            scale=random.uniform(*self.scale_lim),
            flip_dx=bool(random.uniform() < self.flip_dx_ratio),
            flip_dy=bool(random.uniform() < self.flip_dy_ratio),
        )
