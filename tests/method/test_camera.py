"""The rig: geometry against plain per-camera arithmetic, permutations, and messages that name the fault."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Callable, Dict

import pytest
import torch

from geomim import CameraRig
from geomim.method.camera import CAMERA_VECTOR_SIZE, inverse

MakeRig = Callable[..., CameraRig]


def test_inverse_equals_torch_inverse() -> None:
    matrices = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(inverse(matrices), torch.inverse(matrices))


def test_lidar_to_image_projects_a_point_as_the_pinhole_formula_does(make_rig: MakeRig) -> None:
    rig = make_rig(batch=2, cams=5, dtype=torch.float64)
    point = torch.tensor([4.0, -3.0, 0.5, 1.0], dtype=torch.float64)
    mirror = torch.diag(torch.tensor([1.1, -1.1, 1.1, 1.0], dtype=torch.float64)).repeat(2, 1, 1)
    mirror[:, :3, 3] = torch.tensor([0.3, -0.2, 0.1])
    for b in range(2):
        for n in range(5):
            pose, k = rig.cam2bev[b, n], rig.intrinsics[b, n]
            x, y, z = (pose[:3, :3].t() @ (point[:3] - pose[:3, 3])).tolist()  # inverse of a rigid motion
            u = k[0, 0].item() * x + k[0, 2].item() * z
            v = k[1, 1].item() * y + k[1, 2].item() * z
            expected = torch.tensor([u, v, z, 1.0], dtype=torch.float64)
            torch.testing.assert_close(rig.bev2img[b, n] @ point, expected)
            flipped = replace(rig, bev_aug=mirror)  # the same place, named in the frame behind the augmentation
            torch.testing.assert_close(flipped.bev2img[b, n] @ (mirror[b] @ point), expected)


def test_ring_rig_looks_outward(make_rig: MakeRig) -> None:
    rig = make_rig(cams=6, dtype=torch.float64)
    for n in range(6):
        yaw = 2 * math.pi * n / 6 + 0.07
        point = torch.tensor([10 * math.cos(yaw), 10 * math.sin(yaw), 0.0, 1.0], dtype=torch.float64)
        depths = (torch.inverse(rig.cam2bev[0]) @ point)[:, 2]
        assert int(depths.argmax()) == n
        determinant = torch.det(rig.cam2bev[0, n, :3, :3])
        torch.testing.assert_close(determinant, torch.ones_like(determinant))


def test_camera_vector_has_the_published_order() -> None:
    numbers = iter(range(1, 1000))

    def filled(*shape: int) -> torch.Tensor:
        count = math.prod(shape)
        return torch.tensor([float(next(numbers)) for _ in range(count)]).view(shape)

    rig = CameraRig.create(filled(1, 2, 3, 3), filled(1, 2, 4, 4), filled(1, 2, 4, 4), filled(1, 2, 4, 4))
    vector = rig.camera_vector()
    assert vector.shape == (1, 2, CAMERA_VECTOR_SIZE)
    for n in range(2):
        k, a, pose = rig.intrinsics[0, n], rig.img_aug[0, n], rig.cam2ego[0, n]
        expected = [k[0, 0], k[1, 1], k[0, 2], k[1, 2]]
        expected += [a[0, 0], a[0, 1], a[0, 3], a[1, 0], a[1, 1], a[1, 3]]
        expected += [pose[i, j] for i in range(3) for j in range(4)]
        assert vector[0, n].tolist() == [float(value) for value in expected]


def test_permutation_moves_every_camera_matrix_and_its_name(make_rig: MakeRig) -> None:
    rig = make_rig(batch=2, cams=3, augmented=True)
    order = [2, 0, 1]
    moved = rig.permuted(order)
    assert moved.names == ('CAM_2', 'CAM_0', 'CAM_1')
    for name in ('intrinsics', 'cam2ego', 'cam2bev', 'img_aug'):
        for new, old in enumerate(order):
            assert torch.equal(getattr(moved, name)[:, new], getattr(rig, name)[:, old])
    assert torch.equal(moved.bev_aug, rig.bev_aug)
    back = moved.permuted([1, 2, 0])
    assert torch.equal(back.intrinsics, rig.intrinsics)
    with pytest.raises(ValueError, match=r'\[0, 0, 1\] is no permutation of 3'):
        rig.permuted([0, 0, 1])


def test_create_fills_in_identities_and_cuts_four_by_four_intrinsics(make_rig: MakeRig) -> None:
    rig = make_rig(batch=2, cams=4)
    wide = torch.eye(4).repeat(2, 4, 1, 1)
    wide[..., :3, :3] = rig.intrinsics
    created = CameraRig.create(wide, rig.cam2ego, rig.cam2bev)
    assert torch.equal(created.intrinsics, rig.intrinsics)
    assert torch.equal(created.img_aug, torch.eye(4).expand(2, 4, 4, 4))
    assert torch.equal(created.bev_aug, torch.eye(4).expand(2, 4, 4))
    assert (created.batch_size, created.num_cams) == (2, 4)


def test_to_moves_every_matrix(make_rig: MakeRig) -> None:
    rig = make_rig().to(torch.float64)
    for name in ('intrinsics', 'cam2ego', 'cam2bev', 'img_aug', 'bev_aug'):
        assert getattr(rig, name).dtype == torch.float64
    assert rig.names == tuple(f'CAM_{n}' for n in range(6))


@pytest.mark.parametrize(
    'change, message',
    [
        ({'intrinsics': torch.zeros(1, 6, 3, 4)}, r'intrinsics has shape \(1, 6, 3, 4\)'),
        ({'intrinsics': torch.zeros(6, 3, 3)}, r'intrinsics has shape \(6, 3, 3\)'),
        ({'cam2ego': torch.zeros(1, 5, 4, 4)}, r'cam2ego has shape \(1, 5, 4, 4\), expected \(1, 6, 4, 4\)'),
        ({'cam2bev': torch.zeros(1, 6, 3, 4)}, r'cam2bev has shape'),
        ({'img_aug': torch.zeros(2, 6, 4, 4)}, r'img_aug has shape'),
        ({'bev_aug': torch.zeros(1, 3, 3)}, r'bev_aug has shape \(1, 3, 3\), expected \(1, 4, 4\)'),
        ({'names': tuple('abcde')}, r'5 names .* for 6 cameras'),
        ({'names': ('a', 'b', 'c', 'd', 'e', 'b')}, r'camera b appears more than once'),
    ],
)
def test_wrong_shapes_and_names_are_named(make_rig: MakeRig, change: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(make_rig(), **change)


def test_a_rig_without_cameras_is_refused() -> None:
    none = torch.zeros(1, 0, 4, 4)
    with pytest.raises(ValueError, match='no camera'):
        CameraRig.create(none[..., :3, :3], none, none)


@pytest.mark.parametrize(
    'name, index, value, message',
    [
        ('intrinsics', (0, 2, 0, 0), math.nan, r'here: intrinsics\[sample 0, CAM_2, 0, 0\] is nan'),
        ('cam2bev', (0, 5, 1, 3), math.inf, r'here: cam2bev\[sample 0, CAM_5, 1, 3\] is inf'),
        ('bev_aug', (0, 1, 2), math.nan, r'here: bev_aug\[0, 1, 2\] is nan'),
        ('intrinsics', (0, 3, 1, 1), 0.0, r'focal length of \[sample 0, CAM_3.*\] is 0.0 pixels'),
        ('intrinsics', (0, 3, 0, 0), -5.0, r'focal length .* is -5.0 pixels'),
    ],
)
def test_values_that_are_not_finite_are_named(
    make_rig: MakeRig, name: str, index: Any, value: float, message: str
) -> None:
    rig = make_rig()
    changed = getattr(rig, name).clone()
    changed[index] = value
    rig.check_finite('here')
    with pytest.raises(ValueError, match=message):
        replace(rig, **{name: changed}).check_finite('here')
