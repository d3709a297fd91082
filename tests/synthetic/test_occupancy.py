"""Occupancy labels on disk against points, boxes, images and a plain look at what each voxel holds; and lidarseg's own
evaluation of the ground truth."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest

from geomim.synthetic.cast import camera_beams, freeze
from geomim.synthetic.occupancy import LOWER, SHAPE, VOXEL, voxel_centres
from geomim.synthetic.road import KERB_HEIGHT

FREE = 17
NAMES = (
    'others', 'barrier', 'bicycle', 'bus', 'car', 'construction_vehicle', 'motorcycle', 'pedestrian', 'traffic_cone',
    'trailer', 'truck', 'driveable_surface', 'other_flat', 'sidewalk', 'terrain', 'manmade', 'vegetation', 'free',
)  # fmt: skip
CENTRES = np.moveaxis(voxel_centres(), 0, -1)  # (X, Y, Z, 3), ego frame


@pytest.fixture(scope='module')
def labels(world: Any, moments: List[Any]) -> List[Dict[str, np.ndarray]]:
    found = []
    for moment in moments:
        folder = world.root / 'gts' / world.recipe.scenes[moment.index] / moment.sample['token']
        with np.load(folder / 'labels.npz') as file:
            found.append({name: file[name] for name in file.files})
    return found


def ego_points(tables: Any, moment: Any) -> np.ndarray:
    token = moment.sample['data']['LIDAR_TOP']
    points = np.fromfile(tables.get_sample_data_path(token), np.float32).reshape(-1, 5)[:, :3].astype(np.float64)
    lidar2world = moment.scan.lidar2world
    ego2world = moment.scene.ego2world(moment.time)
    matrix = np.linalg.inv(ego2world) @ lidar2world
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def voxel_of(points: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Indices (M, 3) of those points that lie in the grid, and which those are."""
    index = np.floor((points - LOWER) / VOXEL).astype(int)
    inside = ((index >= 0) & (index < SHAPE)).all(axis=1)
    return index[inside], inside


def neighbourhood(grid: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(27, M) values around voxels (M, 3)."""
    padded = np.pad(grid, 1, mode='edge')
    steps = np.stack(np.meshgrid(*[range(3)] * 3, indexing='ij'), axis=-1).reshape(-1, 3)
    return np.stack([padded[tuple((index + step).T)] for step in steps])


def test_labels_have_the_form_of_occ3d(labels: List[Dict[str, np.ndarray]]) -> None:
    for label in labels:
        assert set(label) == {'semantics', 'mask_lidar', 'mask_camera'}
        for name, array in label.items():
            assert array.shape == (200, 200, 16)
            assert array.dtype == np.uint8
            assert set(np.unique(array)) <= (set(range(18)) if name == 'semantics' else {0, 1})
        assert 0.6 < (label['semantics'] == FREE).mean() < 0.99
        assert 0.02 < label['mask_camera'].mean() < label['mask_lidar'].mean() + 0.5 < 1
    present = set(np.unique([label['semantics'] for label in labels]))
    assert {11, 13, 14, 15, 16, 17} | {NAMES.index(name) for name in ('car', 'pedestrian', 'other_flat')} <= present
    np.testing.assert_allclose(CENTRES[0, 0, 0], [-39.8, -39.8, -0.8])
    np.testing.assert_allclose(CENTRES[-1, -1, -1], [39.8, 39.8, 5.2])


def test_points_lie_in_voxels_of_their_class(
    tables: Any, moments: List[Any], labels: List[Dict[str, np.ndarray]]
) -> None:
    from nuscenes.eval.lidarseg.utils import LidarsegClassMapper

    mapper = LidarsegClassMapper(tables)  # the challenge's classes 1 to 16 are those of Occ3D
    agree: Dict[int, List[float]] = {}
    for moment, label in zip(moments, labels):
        index, inside = voxel_of(ego_points(tables, moment))
        path = Path(tables.dataroot) / tables.get('lidarseg', moment.sample['data']['LIDAR_TOP'])['filename']
        classes = mapper.convert_label(np.fromfile(path, np.uint8))[inside]
        found = neighbourhood(label['semantics'], index)
        same = (found == classes).any(axis=0)
        assert same.mean() > 0.97
        exact = found[13] == classes
        assert exact.mean() > 0.8
        for number in np.unique(classes):
            agree.setdefault(int(number), []).extend(same[classes == number])
        seen = label['mask_lidar'][tuple(index.T)]
        assert seen.all()
    assert len(agree) >= 14
    for number, found_in in agree.items():
        assert np.mean(found_in) > 0.95, NAMES[number]


def test_voxels_of_objects_lie_in_boxes_of_their_class(
    moments: List[Any], labels: List[Dict[str, np.ndarray]], plain: ModuleType
) -> None:
    for moment, label in zip(moments, labels):
        frozen, ego2world = moment.scan.frozen, moment.scene.ego2world(moment.time)
        for number in range(1, 11):
            centres = CENTRES[label['semantics'] == number]
            world = centres @ ego2world[:3, :3].T + ego2world[:3, 3]
            inside = np.zeros(len(world), dtype=bool)
            for body in np.nonzero([item.detection == NAMES[number] for item in frozen.bodies])[0]:
                half = frozen.size[body] / 2
                local = plain.into(float(frozen.yaw[body]), world - frozen.position[body] - [0, 0, half[2]])
                inside |= (np.abs(local) <= half + VOXEL).all(axis=1)
            assert inside.all(), NAMES[number]


def around(centre: np.ndarray, reach: float, ego2world: np.ndarray) -> Tuple[slice, slice, slice]:
    """The voxels whose middles may lie within reach of a place in the world."""
    place = np.linalg.inv(ego2world) @ np.append(centre, 1)
    first = np.maximum(np.floor((place[:3] - reach - LOWER) / VOXEL).astype(int), 0)
    last = np.maximum(np.ceil((place[:3] + reach - LOWER) / VOXEL).astype(int), 0)
    return tuple(slice(a, b) for a, b in zip(first, last))


@pytest.mark.parametrize('number', [0, 4])
def test_what_a_voxel_holds(
    moments: List[Any], labels: List[Dict[str, np.ndarray]], plain: ModuleType, number: int
) -> None:
    """Every voxel whose middle lies in a solid has its class, road users before scenery; what is far from all is free."""
    moment, semantics = moments[number], labels[number]['semantics']
    frozen, ego2world = moment.scan.frozen, moment.scene.ego2world(moment.time)
    world = CENTRES @ ego2world[:3, :3].T + ego2world[:3, 3]
    nearest, expected = np.full(SHAPE, np.inf), np.full(SHAPE, FREE)
    scenery = {'static.manmade': 15, 'static.vegetation': 16, 'flat.other': 12}
    for index, owner, centre, yaw in sorted(
        plain.placed(frozen), key=lambda item: bool(frozen.bodies[item[1]].detection)
    ):
        solid, body = frozen.solids[index], frozen.bodies[owner]
        window = around(centre, np.linalg.norm(solid.half) + 0.7, ego2world)
        if not nearest[window].size:
            continue
        local = plain.into(yaw, (world[window] - centre).reshape(-1, 3))
        distance = plain.distance(solid.kind, solid.half, local).reshape(nearest[window].shape)
        np.minimum(nearest[window], distance, out=nearest[window])
        held = plain.inside(solid.kind, solid.half, local).reshape(distance.shape)
        expected[window][held] = NAMES.index(body.detection) if body.detection else scenery[body.label]
    held = expected != FREE
    assert held.sum() > 50_000
    for name in (*NAMES[1:11], *NAMES[15:17]):
        mine = expected == NAMES.index(name)
        # a voxel at the rim may also hold a corner of a neighbour that comes first
        assert mine.sum() < 10 or (semantics[mine] == NAMES.index(name)).mean() > 0.97, name
    assert (semantics[held] != FREE).all()
    assert (semantics[held] == expected[held]).mean() > 0.995
    d = np.abs(plain.lateral(moment.scene.road, world[..., 0], world[..., 1]))
    above = world[..., 2] - np.where(d < moment.scene.road.kerb, 0.0, KERB_HEIGHT)
    empty = (nearest > 0.5 * VOXEL * np.sqrt(3) + 0.1) & (np.abs(above) > 0.6)
    assert empty.sum() > 300_000
    assert (semantics[empty] == FREE).all()


def test_ground_is_one_layer_where_the_ground_is(
    moments: List[Any], labels: List[Dict[str, np.ndarray]], plain: ModuleType
) -> None:
    for moment, label in zip(moments, labels):
        semantics, ego2world = label['semantics'], moment.scene.ego2world(moment.time)
        flat = np.isin(semantics, [11, 13, 14])
        assert flat.sum(axis=2).max() == 1
        columns = (semantics != FREE).any(axis=2)
        assert columns.all()  # there is ground, or something that stands on it, everywhere
        world = CENTRES[flat] @ ego2world[:3, :3].T + ego2world[:3, 3]
        d = np.abs(plain.lateral(moment.scene.road, world[:, 0], world[:, 1]))
        kerb, sidewalk = moment.scene.road.kerb, moment.scene.road.sidewalk
        level = np.where(d < kerb, 0.0, KERB_HEIGHT)
        assert np.abs(world[:, 2] - level).max() < VOXEL / 2 + 0.01
        for number, where in ((11, d < kerb), (13, (d > kerb) & (d < sidewalk)), (14, d > sidewalk)):
            off = np.minimum(np.abs(d - kerb), np.abs(d - sidewalk)) < 0.02  # the columns lean a little
            assert (semantics[flat] == number)[~off].tolist() == where[~off].tolist()


def images_of(moment: Any, world: Any) -> Any:
    for camera in world.recipe.build_rig().cameras:
        yield camera, moment.views[camera.name]


def in_image(camera: Any, local: np.ndarray, nearest: float) -> np.ndarray:
    """Whether points (..., 3) of a camera's frame lie farther than ``nearest`` (metres) and inside its image."""
    with np.errstate(divide='ignore', invalid='ignore'):
        pixel = (local @ camera.intrinsics.T / local[..., 2:])[..., :2]
    return (local[..., 2] > nearest) & ((pixel >= 0) & (pixel < camera.size[::-1])).all(axis=-1)


def test_cameras_see_what_lies_along_their_rays(
    world: Any, moments: List[Any], labels: List[Dict[str, np.ndarray]]
) -> None:
    random = np.random.default_rng(0)
    for moment, label in zip(moments, labels):
        world2ego = np.linalg.inv(moment.scene.ego2world(moment.time))
        free, total = 0, 0
        for camera, view in images_of(moment, world):
            beams = camera_beams(camera, moment.scene.ego2world(moment.time + camera.delay))
            height, width = view.hits.t.shape
            v, u = random.integers(0, height, 800), random.integers(0, width, 800)
            depth = np.minimum(view.hits.t[v, u], 80)
            for share in (0.3, 0.6, 0.9):
                t = depth * share
                points = beams.origin[:, None] + beams.rays[:, v, u] * t
                points = (world2ego[:3, :3] @ points + world2ego[:3, 3:]).T
                index, inside = voxel_of(points[(depth - t > 0.8) & (t > 2.5)])
                free, total = free + label['mask_camera'][tuple(index.T)].sum(), total + inside.sum()
        assert total > 2000
        assert free / total > 0.95  # the rest: what passes a voxel's corner may miss its middle


def test_nothing_is_seen_in_blind_zones_under_ground_or_inside_houses(
    world: Any, moments: List[Any], labels: List[Dict[str, np.ndarray]], plain: ModuleType
) -> None:
    for moment, label in zip(moments, labels):
        frozen, ego2world = moment.scan.frozen, moment.scene.ego2world(moment.time)
        places = CENTRES @ ego2world[:3, :3].T + ego2world[:3, 3]
        shown = np.zeros(SHAPE, dtype=bool)
        for camera, view in images_of(moment, world):
            cam2world = moment.scene.ego2world(moment.time + camera.delay) @ camera.cam2ego
            np.testing.assert_allclose(cam2world, view.cam2world, atol=1e-9)
            shown |= in_image(camera, (places - cam2world[:3, 3]) @ cam2world[:3, :3], 0.0)
        assert (~shown).sum() > 5000
        assert not label['mask_camera'][~shown].any()
        deep = np.zeros(SHAPE, dtype=bool)
        for index, number, centre, yaw in plain.placed(frozen):
            solid = frozen.solids[index]
            window = around(centre, np.linalg.norm(solid.half), ego2world)
            if min(solid.half) > 1.5 and frozen.bodies[number].label == 'static.manmade' and deep[window].size:
                inner = np.array(solid.half) - [0.8, 0.8, 0]
                local = plain.into(yaw, (places[window] - centre).reshape(-1, 3))
                deep[window] |= plain.inside(solid.kind, inner, local).reshape(deep[window].shape)
        deep[:, :, 0] |= np.hypot(CENTRES[:, :, 0, 0], CENTRES[:, :, 0, 1]) > 4  # a metre under ground
        deep &= places[..., 2] < 5
        assert deep.sum() > 40_000
        for mask in ('mask_camera', 'mask_lidar'):
            assert label[mask][deep].mean() < 1e-3, mask


def test_the_camera_mask_is_what_looking_at_each_voxel_tells(
    world: Any, moments: List[Any], labels: List[Dict[str, np.ndarray]], plain: ModuleType
) -> None:
    """A random choice of voxels, looked at along the very line to their middles, against every solid."""
    moment, label = moments[1], labels[1]
    random, ego2world = np.random.default_rng(1), moment.scene.ego2world(moment.time)
    flat = CENTRES.reshape(-1, 3)
    chosen = random.choice(len(flat), 2500, replace=False)
    places = flat[chosen] @ ego2world[:3, :3].T + ego2world[:3, 3]
    expected, marginal = np.zeros(2500, dtype=bool), np.zeros(2500, dtype=bool)
    for camera, view in images_of(moment, world):
        origin = view.cam2world[:3, 3]
        local = (places - origin) @ view.cam2world[:3, :3]
        inside = in_image(camera, local, 0.1)
        rays = (places - origin) / np.maximum(local[:, 2:], 0.1)
        ground = moment.scene.road.cast_ground(origin, rays.T.astype(np.float32)).astype(np.float64)
        nearest = ground
        frozen = freeze(moment.scene, moment.time + camera.delay)
        for index, _, centre, yaw in plain.placed(frozen):
            solid = frozen.solids[index]
            start = plain.into(yaw, (origin - centre)[None])[0]
            nearest = np.minimum(nearest, plain.enter(solid.kind, solid.half, start, plain.into(yaw, rays)))
        expected |= inside & (local[:, 2] <= nearest + 0.2)
        marginal |= inside & (local[:, 2] > nearest - 1.0) & (local[:, 2] < nearest + 1.0)
    seen = label['mask_camera'].reshape(-1)[chosen] > 0
    assert 200 < expected.sum() < 2300
    assert (seen == expected)[~marginal].mean() > 0.96  # the rest: edges that run through a pixel
    assert (seen == expected).mean() > 0.93


@pytest.mark.parametrize('split', ['train', 'val'])
def test_lidarseg_evaluation_of_the_ground_truth_is_perfect(
    tables: Any, tmp_path: Path, split: str, world: Any
) -> None:
    """By the devkit, on the scenes of the split that are there, mapped to the challenge's 16 classes."""
    from nuscenes.eval.lidarseg import utils
    from nuscenes.eval.lidarseg.evaluate import LidarSegEval

    folder = tmp_path / 'lidarseg' / split
    folder.mkdir(parents=True)
    mapper = utils.LidarsegClassMapper(tables)
    for row in tables.lidarseg:
        classes = mapper.convert_label(np.fromfile(Path(tables.dataroot) / row['filename'], np.uint8))
        assert classes.min() >= 1
        classes.astype(np.uint8).tofile(folder / f'{row["sample_data_token"]}_lidarseg.bin')
    with pytest.MonkeyPatch.context() as patch:
        mine = {split: [world.recipe.scenes[0 if split == 'train' else 1]]}
        patch.setattr(utils, 'create_splits_scenes', lambda verbose=False: mine)
        result = LidarSegEval(tables, str(tmp_path), split).evaluate()
        assert result['miou'] == 1.0
        scores = {name: value for name, value in result['iou_per_class'].items() if not np.isnan(value)}
        assert len(scores) >= 12
        assert set(scores.values()) == {1.0}
        wrong = np.fromfile(next(folder.iterdir()), np.uint8)
        for path in folder.iterdir():  # and it can be less
            wrong = np.fromfile(path, np.uint8)
            wrong[::2] = wrong[::2] % 16 + 1
            wrong.tofile(path)
        assert LidarSegEval(tables, str(tmp_path), split).evaluate()['miou'] < 0.6
