"""What a sample's data can be, looked at on the host: the impossible is refused, the hardly possible is told once.

``docs/checks.md`` lists every check. Shape legend: N cameras, P poses, M points, F features a point. Metres, pixels, seconds.
"""

from __future__ import annotations

import math
import warnings
from typing import Optional, Sequence, Set

import torch
from torch import Tensor

from ..method.depth import check_cloud

NOT_A_ROTATION = 1e-2  # entries of R^T R - 1; calibrations of two decimals stay below
ROUNDED = 1e-3  # likewise; float32 and four decimals stay below
SMALLEST_FOCAL = 3.0  # pixels; intrinsics in units of the image's width lie near 1
FARTHEST_EGO = 100.0  # metres between the origins of a LiDAR, a camera's moment and the ego frame
FASTEST = 100.0  # metres a second
LONGEST_GAP = 60.0  # seconds between a key frame and its past
FARTHEST_POINT = 200.0  # metres; no teacher's map reaches it

_ODD_MOUNT = 20.0  # metres from the ego origin: a lorry with its trailer is shorter
_ODD_ANGLE, _ODD_SHIFT = math.cos(math.radians(20)), 5.0  # a turn and a way between two cameras' moments
_ODD_TILT = 0.5  # cosine of 60 degrees
_ALIKE, _APART = 0.2, 0.5  # differences of columns, in units of the spread of all values
_CHUNK, _FEWEST = 6000, 100  # values of a file that are looked at, and points that are needed to tell
_FEATURES = range(3, 9)


class WarnOnce:
    """Warns of each kind of doubt once. Held by the step that checks, thus once per process and pipeline."""

    def __init__(self) -> None:
        self._told: Set[str] = set()

    def __call__(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(f'doubtful data: {message}; told once, see docs/checks.md', stacklevel=3)


def check_poses(poses: Tensor, places: Sequence[str], warn: WarnOnce) -> None:
    """Refuse matrices that are no rigid motions.

    Args:
        poses: (P, 4, 4).
        places: how messages call each of them: sample, camera, and name of the matrix.

    Raises:
        ValueError: values that are not finite, a last row other than 0 0 0 1, a matrix that is singular, scaled or sheared, or
            some mirrored and some not. All mirrored (a left-handed world) and rounded rotations are told once.
    """
    poses = poses.double()
    linear = poses[:, :3, :3]
    error = (linear.transpose(1, 2) @ linear - torch.eye(3, dtype=poses.dtype)).abs().amax(dim=(1, 2))
    row = (poses[:, 3] - poses.new_tensor([0, 0, 0, 1])).abs().amax(dim=1)
    determinants = torch.linalg.det(linear)
    # one read-back for all; a comparison with NaN is false
    for place, pose, e, r, determinant in zip(places, poses, *torch.stack([error, row, determinants]).tolist()):
        if not (e <= NOT_A_ROTATION and r <= ROUNDED):
            raise ValueError(f'{place} {_fault(pose, r, determinant)}, got {pose.tolist()}')
        if e > ROUNDED:
            warn('rounded', f'{place} is no rotation to more than {e:.1g}; write more decimals')
    mirrored = [place for place, determinant in zip(places, determinants.tolist()) if determinant < 0]
    if mirrored and len(mirrored) < len(places):
        raise ValueError(
            f'{mirrored[0]} is left-handed (its determinant is -1) and others of the sample are not: two of its axes are '
            'swapped or one is negated'
        )
    if mirrored:
        warn(
            'mirrored',
            f'{mirrored[0]} is left-handed, as all of the sample: labels and teachers expect right-handed ones',
        )


def _fault(pose: Tensor, row: float, determinant: float) -> str:
    """What is wrong with a matrix that is no rigid motion."""
    if not bool(torch.isfinite(pose).all()):
        return 'holds values that are not finite'
    if not row <= ROUNDED:
        return 'has a last row other than 0 0 0 1 (transposed?)'
    if abs(determinant) < 1e-9:
        return 'is singular'
    scale = abs(determinant) ** (1 / 3)
    rotation = pose[:3, :3] / scale
    even = bool(((rotation.T @ rotation - torch.eye(3, dtype=pose.dtype)).abs() <= NOT_A_ROTATION).all())
    return f'is scaled by {scale:.4g}, it must be a rotation and a translation' if even else 'is sheared, no rotation'


def check_intrinsics(intrinsics: Tensor, places: Sequence[str]) -> None:
    """Raise ``ValueError`` for (N, 3, 3) matrices that cannot project to pixels."""
    rows = (intrinsics[:, 2].double() - intrinsics.new_tensor([0, 0, 1]).double()).abs().amax(dim=1).tolist()
    focals = intrinsics[:, (0, 1), (0, 1)].amin(dim=1).tolist()
    for place, matrix, row, focal in zip(places, intrinsics, rows, focals):
        if not row <= ROUNDED:
            raise ValueError(f'{place} has a last row other than 0 0 1 (transposed?), got {matrix.tolist()}')
        if not focal >= SMALLEST_FOCAL:
            identity = (
                'is the identity' if torch.equal(matrix, torch.eye(3, dtype=matrix.dtype)) else 'is not in pixels'
            )
            raise ValueError(
                f'{place} {identity}: a focal length of {focal:g} pixels, at least {SMALLEST_FOCAL:g} are expected '
                '(multiply normalised intrinsics with the width and height of the image)'
            )


def check_rig(
    intrinsics: Tensor, lidar2cam: Tensor, cam2ego: Optional[Tensor], places: Sequence[str], warn: WarnOnce
) -> None:
    """Refuse a calibration that cannot be, and tell once of one that hardly can.

    Args:
        intrinsics: (N, 3, 3).
        lidar2cam: (N, 4, 4), each at the camera's moment.
        cam2ego: (N, 4, 4), or None where points are in the ego frame.
        places: N, sample and camera.

    Raises:
        ValueError: as :func:`check_intrinsics`, :func:`check_poses` and :func:`check_mounts`.
    """
    check_intrinsics(intrinsics, [f'{place}: cam2img' for place in places])
    named = [f'{place}: lidar2cam' for place in places]
    if cam2ego is None:
        check_poses(lidar2cam, named, warn)
        cam2ego = torch.linalg.inv(lidar2cam.double())
    else:
        named += [f'{place}: cam2ego' for place in places]
        check_poses(torch.cat([lidar2cam.double(), cam2ego.double()]), named, warn)
    check_mounts(cam2ego, cam2ego.double() @ lidar2cam.double(), places, warn)


def check_mounts(cam2ego: Tensor, lidar2ego: Tensor, places: Sequence[str], warn: WarnOnce) -> None:
    """Refuse rigid motions that lie too far apart, and tell once of those that look inverted.

    An inverted matrix is a rigid motion, too. It shows in cameras that look up or down, are turned about their axis, lie metres
    away, or disagree on where the LiDAR is; each can be right on an odd vehicle.

    Args:
        cam2ego: (N, 4, 4).
        lidar2ego: (N, 4, 4), LiDAR to the ego frame at each camera's moment.
        places: N, sample and camera.

    Raises:
        ValueError: a LiDAR that lies beyond ``FARTHEST_EGO`` from the ego origin.
    """
    cam2ego, lidar2ego = cam2ego.double(), lidar2ego.double()
    distances = lidar2ego[:, :3, 3].norm(dim=1)
    far = int(distances.argmax())
    if not float(distances[far]) <= FARTHEST_EGO:
        raise ValueError(
            f'{places[far]}: its poses put the LiDAR {float(distances[far]):.4g} m from the ego origin, at most '
            f'{FARTHEST_EGO:g} m can be; an ego pose of this sample jumps, or a translation is not in metres'
        )
    _tell_of_mounts(cam2ego, places, warn)
    _tell_of_disagreement(lidar2ego, places, warn)


def _tell_of_mounts(cam2ego: Tensor, places: Sequence[str], warn: WarnOnce) -> None:
    distances = cam2ego[:, :3, 3].norm(dim=1).tolist()
    upright = math.sqrt(1 - _ODD_TILT**2)
    for place, distance, (_, down, ahead) in zip(places, distances, cam2ego[:, 2, :3].tolist()):
        if distance > _ODD_MOUNT:
            warn('mount', f'{place}: its pose puts it {distance:.4g} m from the ego origin (metres? inverted?)')
        elif abs(ahead) > upright:
            warn('mount', f'{place}: its pose lets it look straight {"up" if ahead > 0 else "down"} (inverted?)')
        elif down > -_ODD_TILT * math.sqrt(1 - ahead**2):
            warn(
                'mount', f'{place}: its pose turns the image by more than 60 degrees about the optical axis (inverted?)'
            )


def _tell_of_disagreement(lidar2ego: Tensor, places: Sequence[str], warn: WarnOnce) -> None:
    if float(lidar2ego[:, 2, 2].min()) < _ODD_TILT:
        place = places[int(lidar2ego[:, 2, 2].argmin())]
        warn('tilt', f'{place}: its poses tilt the LiDAR by more than 60 degrees (one of them inverted?)')
        return
    rotations, centres = lidar2ego[:, :3, :3], lidar2ego[:, :3, 3]
    cosines = (torch.einsum('nij,mij->nm', rotations, rotations) - 1) / 2
    shifts = (centres[:, None] - centres).norm(dim=-1)
    odd = (cosines < _ODD_ANGLE) | (shifts > _ODD_SHIFT)
    if bool(odd.any()):
        place = places[int(odd.sum(dim=1).argmax())]
        warn(
            'disagree',
            f'{place}: its poses put the LiDAR elsewhere than those of other cameras do (one of them inverted?)',
        )


def check_egos(ego2global: Tensor, seconds: Sequence[float], places: Sequence[str], warn: WarnOnce) -> None:
    """Refuse ego poses that are no rigid motions, or that lie farther apart than a vehicle drives.

    Args:
        ego2global: (T, N, 4, 4) of T frames, the key frame first, exact (float64 or near the origin).
        seconds: T, between each frame and the key frame.
        places: T * N, sample and camera, frame by frame.

    Raises:
        ValueError: as :func:`check_poses` and :func:`check_past`.
    """
    check_poses(ego2global.flatten(0, 1), [f'{place}: ego2global' for place in places], warn)
    centres = ego2global[..., :3, 3].double()
    shifts = (centres - centres[0].median(dim=0).values).norm(dim=-1).flatten().tolist()
    cams = ego2global.shape[1]
    for index, (shift, place) in enumerate(zip(shifts, places)):
        check_past(shift, seconds[index // cams], f'{place}: ego2global')


def check_past(shift: float, seconds: float, place: str) -> None:
    """Raise ``ValueError`` for a pose that lies farther from the key frame than a vehicle drives.

    Args:
        shift: metres between the poses.
        seconds: between their time stamps.
    """
    reach = FARTHEST_EGO + FASTEST * min(abs(seconds), LONGEST_GAP)
    if not shift <= reach:
        raise ValueError(
            f'{place} lies {shift:.4g} m from the key frame, {abs(seconds):.4g} s apart; at most {reach:.4g} m can be: its '
            'pose jumps, or it belongs to another scene'
        )


def check_file(values: Tensor, features: int, path: str) -> None:
    """Raise ``ValueError`` for a file of points that is empty or has another number of features than it is read with.

    Of a file of 4 features a point that is read as 5, every column holds a mixture of the 4, and so all columns are alike, while
    those of 4 features differ. Both must show, therefore no file that is read as it was written is refused.

    Args:
        values: all numbers of the file, flat, float32.
        features: F that it is read with.
        path: how the message calls it.
    """
    total = len(values)
    if total == 0:
        raise ValueError(f'{path} is empty; a LiDAR sweep with at least one point is needed')
    if total % features:
        fitting = [str(count) for count in _FEATURES if total % count == 0]
        hint = f', but of {" or ".join(fitting)} features' if fitting else '; the file is cut short'
        raise ValueError(
            f'{path}: {total} values are no whole number of points of {features} features{hint} (load_dim)'
        )
    chunk = values[total // 2 :][:_CHUNK]
    if len(chunk) < _FEWEST * features or not bool(torch.isfinite(chunk.sum())):
        return
    common = {count: math.gcd(count, features) for count in _FEATURES if total % count == 0}
    # columns of the wrong number that lie gcd apart hold the same mixture
    alike = [count for count, step in common.items() if step < features and _gap(chunk, features, step) < _ALIKE]
    gaps = {count: _gap(chunk, count, common[count] % count or 1) for count in alike}
    if max(gaps.values(), default=0.0) > _APART:
        likely = min(count for count, gap in gaps.items() if gap > 0.9 * max(gaps.values()))
        raise ValueError(
            f'{path}: read as points of {features} features, its columns are alike, as points of {likely} they differ; it '
            f'seems to hold {likely} features a point (load_dim={likely})'
        )


def _gap(values: Tensor, features: int, step: int) -> float:
    """How far columns that lie ``step`` apart differ in mean and spread at most, in units of the spread of all values."""
    columns = values[: len(values) // features * features].view(-1, features)
    moments = torch.stack([columns.mean(dim=0), columns.std(dim=0)])
    return float((moments - moments.roll(step, dims=1)).abs().max() / columns.std().clamp(min=1e-9))


def check_reach(points: Tensor, source: str, warn: WarnOnce) -> None:
    """Raise ``ValueError`` for a cloud (M, >= 3) of finite points that is empty or lies out of every teacher's reach.

    Less than half of it within reach is told once.
    """
    check_cloud(points, source)
    some = points[:: max(1, len(points) // 4096)]
    near = float(_within_reach(some).float().mean())
    if near == 0 and not bool(_within_reach(points).any()):
        raise ValueError(
            f'{source}: no point lies within {FARTHEST_POINT:g} m of the LiDAR, the first is at {points[0, :3].tolist()}; '
            'coordinates must be metres in the LiDAR frame'
        )
    if near < 0.5:
        warn(
            'reach', f'{source}: most points lie beyond {FARTHEST_POINT:g} m of the LiDAR (metres? in the LiDAR frame?)'
        )


def _within_reach(points: Tensor) -> Tensor:
    return points[:, :2].abs().amax(dim=1) <= FARTHEST_POINT
