"""Where the points of a sample are: in which frame, and whether the BEV augmentation has moved them.

Codebases differ (in BEVDet dev3.0, ``BEVAug`` moves the points that were loaded before it, and ``ToEgo`` puts them into an ego frame),
and the results hold no word of it. The file that the points were read from knows.

Shape legend: M points, P probes among them, V values of the file.
"""

from __future__ import annotations

import warnings
from typing import Any, Dict, Mapping, NamedTuple, Optional

import numpy as np
from torch import Tensor

_TOLERANCE = 1e-3  # metres; steps move points in float32
_PROBES = 512
_FLAT = 1e-9  # a determinant; augmentations scale by about 1
_ENOUGH = 0.01  # of the probes; of ten sweeps, one is the file's, and by chance it holds far fewer
_ADVICE = "tell where the points are, such as dict(type='GeoMIMLidarFrame', frame='lidar', augmented=False)"


class Place(NamedTuple):
    """frame: of :func:`geomim.plugin.poses.lidar_frames`; augmented: whether the BEV augmentation has moved the points in it."""

    frame: str
    augmented: bool

    def __str__(self) -> str:
        frame = {'lidar': 'the LiDAR frame', 'ego': 'the ego frame'}.get(self.frame, f'the ego frame of {self.frame}')
        return f'in {frame}, {"" if self.augmented else "not "}moved by the BEV augmentation'


def bda_matrix(bda: Any, source: str = 'sample') -> np.ndarray:
    """(4, 4) float64 of a BEV augmentation (3, 3) or (4, 4).

    Raises:
        ValueError: another shape, a last row that is not 0 0 0 1, or a matrix without an inverse.
    """
    given = np.asarray(bda, dtype=np.float64)
    if given.shape not in ((3, 3), (4, 4)):
        raise ValueError(
            f'{source}: the last entry of img_inputs has shape {given.shape}, but the BEV augmentation (bda) must be (3, 3) or (4, 4)'
        )
    matrix = np.eye(4)
    matrix[: len(given), : len(given)] = given
    if matrix[3].tolist() != [0, 0, 0, 1] or abs(np.linalg.det(matrix)) < _FLAT:
        raise ValueError(f'{source}: bda must be an invertible matrix whose last row is 0 0 0 1, got {given.tolist()}')
    return matrix


def find_place(
    points: Tensor,
    file: str,
    frames: Mapping[str, np.ndarray],
    bda: np.ndarray,
    frame: Optional[str] = None,
    augmented: Optional[bool] = None,
    source: str = 'sample',
) -> Place:
    """Where the points (M, >= 3) are, as their file says; what was told is checked by it.

    If the file cannot be read, what was told is believed; untold, points are in the LiDAR frame, and not moved if ``bda`` is 3 x 3, as
    LoadAnnotationsBEVDepth leaves it.

    Args:
        file: from which they were read, float32.
        frames: see :func:`geomim.plugin.poses.lidar_frames`.
        bda: (3, 3) or (4, 4), the BEV augmentation.
        frame, augmented: what was told.
        source: how messages call the sample.

    Raises:
        ValueError: a frame that does not exist, points elsewhere than told, or in a place that cannot be known.
    """
    if frame is not None and frame not in frames:
        raise ValueError(f'GeoMIMLidarFrame: there is no frame {frame!r}; there are {", ".join(frames)}')
    recorded = _read(file)
    if recorded is None:
        if augmented is None:
            _assume_unmoved(bda, file, source)
        return Place(frame or 'lidar', bool(augmented))
    shares = _shares(points, recorded, frames, bda)
    found = max(shares, key=lambda place: shares[place])
    fitting = {
        place: share
        for place, share in shares.items()
        if frame in (None, place.frame) and augmented in (None, place.augmented)
    }
    place = max(fitting, key=lambda place: fitting[place])
    if shares[found] < _ENOUGH:
        if frame is None or augmented is None:
            raise ValueError(
                f'{source}: the points are not those of {file}, neither as recorded nor moved by the BEV augmentation, in the LiDAR '
                'frame or an ego frame. Take out what else moves them (GlobalRotScaleTrans, RandomFlip3D, a jitter, ToEgo with '
                f'poses far from 0), or, if it is meant or the loader converts the file, {_ADVICE}'
            )
    elif shares[place] < shares[found] / 2:  # places that differ by less than the tolerance hold as many
        raise ValueError(
            f'{source}: the points were told to be {place}, but they are {found}: {shares[found]:.0%} of them are in {file} that '
            f'way, and {shares[place]:.0%} as told; correct frame or augmented of GeoMIMLidarFrame, or leave them out'
        )
    return place


def _read(file: str) -> Optional[np.ndarray]:
    """(V,) float32 in the order of the file, whatever its header or the width of its rows; None if there is nothing to read."""
    try:
        values = np.fromfile(file, dtype=np.float32)
    except OSError:
        return None
    return values if len(values) >= 3 else None


def _assume_unmoved(bda: np.ndarray, file: str, source: str) -> None:
    if np.array_equal(bda, np.eye(len(bda))):
        return
    if len(bda) == 4:  # BEVAug, which moves points or not
        raise ValueError(
            f'{source}: the BEV augmentation has moved the points or not, which cannot be known, since their file, {file}, cannot be '
            f'read; {_ADVICE}'
        )
    warnings.warn(
        'GeoMIMLidarFrame: the files of the points cannot be read here, so nothing checks that no step has moved the points by the '
        f'BEV augmentation; {_ADVICE}',
        stacklevel=2,
    )


def _shares(
    points: Tensor, recorded: np.ndarray, frames: Mapping[str, np.ndarray], bda: np.ndarray
) -> Dict[Place, float]:
    """For each place, the share of the probes that the file holds if the points are there.

    Probes are taken from the front, where the file's points stand before its sweeps, and from everywhere, should they be shuffled.
    """
    spread = np.linspace(0, len(points) - 1, _PROBES // 2).astype(int)
    rows = np.unique(np.concatenate([np.arange(min(len(points), _PROBES // 2)), spread]))
    distinct = np.unique(points[rows, :3].cpu().numpy(), axis=0)  # a cloud of zeros would fit a file of zeros too often
    probes = np.concatenate([distinct, np.ones((len(distinct), 1))], axis=1)
    moves = {False: np.eye(4), True: bda_matrix(bda)}
    places = {
        Place(name, augmented): move @ to_frame
        for name, to_frame in frames.items()
        for augmented, move in moves.items()
    }
    back = [(probes @ np.linalg.inv(place).T)[:, :3] for place in places.values()]
    held = _held(np.concatenate(back), recorded).reshape(len(places), len(probes))
    return dict(zip(places, held.mean(axis=1).tolist()))


def _held(xyz: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """(P,) bool, whether the file has three values in a row that are those of (P, 3)."""
    order = np.argsort(recorded[:-2])
    ascending = recorded[order].astype(np.float64)
    first, last = (np.searchsorted(ascending, xyz[:, 0] + margin) for margin in (-_TOLERANCE, _TOLERANCE))
    counts = last - first  # of values that x may be
    probe = np.repeat(np.arange(len(xyz)), counts)
    start = order[np.arange(len(probe)) + np.repeat(first - np.cumsum(counts) + counts, counts)]
    same = np.ones(len(probe), dtype=bool)
    for axis in (1, 2):
        same &= np.abs(recorded[start + axis] - xyz[probe, axis]) < _TOLERANCE
    held = np.zeros(len(xyz), dtype=bool)
    held[probe[same]] = True
    return held
