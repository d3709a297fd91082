"""The door: a fork's seven entries become images of the key frame and the core's rig, or an error that names the entry."""

from __future__ import annotations

from typing import Any, List

import numpy as np
import pytest
import torch
from torch import Tensor

from geomim.plugin.rig import check_values, read_img_inputs

SAMPLES, CAMS, FRAMES = 2, 3, 2
NAMES = ('imgs', 'sensor2egos', 'ego2globals', 'intrins', 'post_rots', 'post_trans', 'bda')


def pose(generator: np.random.Generator, reach: float) -> np.ndarray:
    """A rigid motion: rotation from a random quaternion, translation of at most ``reach`` metres along each axis."""
    quaternion = generator.normal(size=4)
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = generator.uniform(-reach, reach, size=3)
    return matrix


@pytest.fixture
def entries() -> List[Tensor]:
    """Of two frames: images camera by camera, matrices frame by frame; every number differs."""
    generator = np.random.default_rng(4)
    count = CAMS * FRAMES

    def stacked(make: Any) -> Tensor:
        return torch.tensor(np.array([[make() for _ in range(count)] for _ in range(SAMPLES)]))

    intrins = stacked(lambda: np.diag([400.0, 410.0, 1.0]) + np.triu(generator.uniform(1, 5, (3, 3)), 1))
    post_rots = stacked(lambda: np.diag([*generator.uniform(-1, 1, 2), 1.0]))
    return [
        torch.randn(SAMPLES, count, 3, 4, 6),
        stacked(lambda: pose(generator, 2.0)),
        stacked(lambda: pose(generator, 1000.0)),
        intrins,
        post_rots,
        stacked(lambda: generator.uniform(-9, 9, 3)),
        torch.tensor(generator.uniform(-1, 1, (SAMPLES, 3, 3))),
    ]


@pytest.fixture
def lidar2key() -> Tensor:
    generator = np.random.default_rng(5)
    return torch.tensor(np.array([pose(generator, 2.0) for _ in range(SAMPLES)]))


def test_the_key_frame_agrees_with_a_plain_loop(entries: List[Tensor], lidar2key: Tensor) -> None:
    images, rig = read_img_inputs(entries, lidar2key, CAMS)
    imgs, sensor2egos, ego2globals, intrins, post_rots, post_trans, bda = entries
    assert (rig.batch_size, rig.num_cams) == (SAMPLES, CAMS)
    point = np.array([3.0, -2.0, 7.0, 1.0])
    for b in range(SAMPLES):
        for n in range(CAMS):
            assert torch.equal(images[b, n], imgs[b, n * FRAMES])
            for ours, theirs in ((rig.intrinsics, intrins), (rig.cam2ego, sensor2egos)):
                assert torch.equal(ours[b, n], theirs[b, n])
            pixel = np.array([11.0, 5.0, 1.0])
            moved = rig.img_aug[b, n].numpy() @ np.append(pixel, 1.0)
            np.testing.assert_allclose(
                moved[:3], post_rots[b, n].numpy() @ pixel + post_trans[b, n].numpy(), rtol=1e-12
            )
            in_global = ego2globals[b, n].numpy() @ sensor2egos[b, n].numpy() @ point
            in_key = np.linalg.inv(ego2globals[b, 0].numpy()) @ in_global
            in_lidar = np.linalg.inv(lidar2key[b].numpy()) @ in_key
            np.testing.assert_allclose(rig.cam2bev[b, n].numpy() @ point, in_lidar, atol=1e-9)
        np.testing.assert_allclose((rig.bev_aug[b].numpy() @ point)[:3], bda[b].numpy() @ point[:3], rtol=1e-12)
        assert rig.bev_aug[b, 3].tolist() == [0, 0, 0, 1]


def test_an_augmentation_of_four_by_four_keeps_its_translation(entries: List[Tensor], lidar2key: Tensor) -> None:
    entries[6] = torch.tensor(np.array([pose(np.random.default_rng(seed), 1.0) for seed in range(SAMPLES)]))
    assert torch.equal(read_img_inputs(entries, lidar2key, CAMS).rig.bev_aug, entries[6])


def test_one_frame_is_taken_as_it_is(entries: List[Tensor], lidar2key: Tensor) -> None:
    assert torch.equal(read_img_inputs(entries, lidar2key, CAMS * FRAMES).images, entries[0])


def test_poses_of_float32_far_from_the_origin_stay_exact_to_a_millimetre(
    entries: List[Tensor], lidar2key: Tensor
) -> None:
    exact = read_img_inputs(entries, lidar2key, CAMS).rig.cam2bev
    rounded = read_img_inputs([value.float() for value in entries], lidar2key.float(), CAMS).rig
    assert rounded.cam2bev.dtype == torch.float32
    torch.testing.assert_close(rounded.cam2bev.double(), exact, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    'entry, change, message',
    [
        (0, lambda v: v[:, :5], 'imgs holds 5 images a sample, no multiple of the 3 cameras: set num_cams'),
        (0, lambda v: v[:, :0], 'imgs holds 0 images'),
        (0, lambda v: v[:, :, :1], r'imgs has shape \(2, 6, 1, 4, 6\), expected \(B, n, 3, H, W\)'),
        (1, lambda v: v[..., :3, :], r'sensor2egos has shape \(2, 6, 3, 4\), expected \(2, 6, 4, 4\)'),
        (2, lambda v: v[:, :3], r'ego2globals has shape \(2, 3, 4, 4\), expected \(2, 6, 4, 4\)'),
        (3, lambda v: v.new_zeros(2, 6, 4, 4), r'intrins has shape .* expected \(2, 6, 3, 3\)'),
        (5, lambda v: v[..., None], r'post_trans has shape .* expected \(2, 6, 3\)'),
        (6, lambda v: v[:1], r'bda has shape \(1, 3, 3\), expected \(2, 3, 3\)'),
    ],
)
def test_entries_that_do_not_fit_are_named(
    entries: List[Tensor], lidar2key: Tensor, entry: int, change: Any, message: str
) -> None:
    entries[entry] = change(entries[entry])
    with pytest.raises(ValueError, match=message):
        read_img_inputs(entries, lidar2key, CAMS)


@pytest.mark.parametrize('entry', range(8), ids=(*NAMES, 'lidar2key'))
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_values_of_a_sample_that_are_not_finite_are_named(
    entries: List[Tensor], lidar2key: Tensor, entry: int, value: float
) -> None:
    *sample, last = (tensor[1].clone() for tensor in (*entries, lidar2key))
    check_values(sample, last, 'sample abc')
    (*sample, last)[entry].view(-1)[-1] = value
    name = (*NAMES, 'lidar2key')[entry]
    with pytest.raises(ValueError, match=f'sample abc: {name} has values that are not finite, the first, {value}, at'):
        check_values(sample, last, 'sample abc')


@pytest.mark.parametrize('entry', range(1, 6), ids=NAMES[1:6])
def test_shapes_of_a_sample_that_do_not_fit_are_named(entries: List[Tensor], lidar2key: Tensor, entry: int) -> None:
    """As of BEVDet before sensor2egos, whose rotations are 3 x 3 and whose translations come alone."""
    *sample, last = (tensor[1].clone() for tensor in (*entries, lidar2key))
    sample[entry] = sample[entry][:, :2]
    with pytest.raises(ValueError, match=f'{NAMES[entry]} has shape'):
        check_values(sample, last, 'sample abc')


def test_a_focal_length_that_is_not_positive_is_named(entries: List[Tensor], lidar2key: Tensor) -> None:
    *sample, last = (tensor[1].clone() for tensor in (*entries, lidar2key))
    sample[3][2, 0, 0] = -400.0
    with pytest.raises(ValueError, match=r'sample abc: intrins has a focal length of -400\.0 pixels in image 2'):
        check_values(sample, last, 'sample abc')


def test_the_door_reads_no_value_back(entries: List[Tensor], lidar2key: Tensor) -> None:
    """On a GPU that would wait for the device. What is not finite passes; the step has refused it before."""
    entries[3][0, 0, 0, 0] = float('nan')
    assert torch.isnan(read_img_inputs(entries, lidar2key, CAMS).rig.intrinsics[0, 0, 0, 0])


def test_the_step_and_the_loader_are_asked_for(entries: List[Tensor], lidar2key: Tensor) -> None:
    with pytest.raises(ValueError, match="lidar2key is missing: put dict\\(type='GeoMIMLidarFrame'\\) behind"):
        read_img_inputs(entries, None, CAMS)
    with pytest.raises(ValueError, match='LoadAnnotationsBEVDepth leave behind, got 6'):
        read_img_inputs(entries[:6], lidar2key, CAMS)
    with pytest.raises(ValueError, match='got Tensor'):
        read_img_inputs(entries[0], lidar2key, CAMS)
    with pytest.raises(ValueError, match=r'lidar2key has shape \(1, 4, 4\), expected \(2, 4, 4\)'):
        read_img_inputs(entries, lidar2key[:1], CAMS)
