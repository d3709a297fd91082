"""The format: nuScenes' own devkit reads the tables, every row finds its neighbours and files, times and counts agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import cv2
import numpy as np
import pytest
from pyquaternion import Quaternion

from geomim.synthetic.cast import freeze
from geomim.synthetic.keyframe import KEYFRAME, save_npz
from geomim.synthetic.labels import CATEGORIES
from geomim.synthetic.tables import NAMES
from geomim.synthetic.world import MARKER, make_recipe, summarise, write_world

SECOND = 1_000_000
# (of the rig of `swept`, camera) -> seconds from the LiDAR's time stamp
DELAYS = {
    (True, 'CAM_FRONT'): -0.035, (True, 'CAM_LATE'): 0.11, (False, 'CAM_FRONT'): -0.035, (False, 'CAM_FRONT_RIGHT'): -0.028,
    (False, 'CAM_FRONT_LEFT'): -0.043, (False, 'CAM_BACK'): -0.01, (False, 'CAM_BACK_LEFT'): -0.001,
    (False, 'CAM_BACK_RIGHT'): -0.02,
}  # fmt: skip


def by_channel(tables: Any) -> Dict[Any, List[Dict[str, Any]]]:
    """Rows of sample_data by (scene, channel), in time."""
    rows: Dict[Any, List[Dict[str, Any]]] = {}
    for row in tables.sample_data:
        scene = tables.get('sample', row['sample_token'])['scene_token']
        rows.setdefault((scene, row['channel']), []).append(row)
    return {key: sorted(group, key=lambda row: row['timestamp']) for key, group in rows.items()}


@pytest.fixture(scope='module')
def swept(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two keyframes with camera sweeps, of a rig that costs nothing."""
    from nuscenes.nuscenes import NuScenes

    rig = {
        'cameras': {
            name: {
                'translation': [1.5, 0, 1.5], 'rotation': [0.5, -0.5, 0.5, -0.5], 'height': 16, 'width': 24,
                'camera_intrinsic': [[12, 0, 12], [0, 12, 8], [0, 0, 1]], 'delay': delay,
            }
            for name, delay in (('CAM_FRONT', -0.035), ('CAM_LATE', 0.11))
        },
        'lidar': {
            'translation': [0.9, 0, 1.8], 'rotation': [1, 0, 0, 0], 'elevation_degrees': [-25, 5], 'rings': 8,
            'columns': 90, 'range': 70,
        },
    }  # fmt: skip
    folder = tmp_path_factory.mktemp('swept')
    (folder / 'rig.json').write_text(json.dumps(rig))
    recipe = make_recipe(scenes='1+1', frames=2, image_size=(0, 0), rig=folder / 'rig.json', camera_sweeps=True)
    return NuScenes(recipe.version, str(write_world(folder / 'world', recipe)), verbose=False)


def test_tables_have_the_fields_of_the_schema(tables: Any) -> None:
    fields = {
        'attribute': 'token name description',
        'calibrated_sensor': 'token sensor_token translation rotation camera_intrinsic',
        'category': 'token name description index',
        'ego_pose': 'token translation rotation timestamp',
        'instance': 'token category_token nbr_annotations first_annotation_token last_annotation_token',
        'lidarseg': 'token filename sample_data_token',
        'log': 'token logfile vehicle date_captured location',
        'map': 'token log_tokens category filename',
        'sample': 'token timestamp scene_token next prev',
        'sample_annotation': 'token sample_token instance_token attribute_tokens visibility_token translation size rotation '
        'num_lidar_pts num_radar_pts next prev',
        'sample_data': 'token sample_token ego_pose_token calibrated_sensor_token filename fileformat width height timestamp '
        'is_key_frame next prev',
        'scene': 'token name description log_token nbr_samples first_sample_token last_sample_token',
        'sensor': 'token channel modality',
        'visibility': 'token level description',
    }
    assert set(fields) == {*NAMES, 'lidarseg'}
    folder = Path(tables.dataroot) / tables.version
    assert {path.stem for path in folder.iterdir()} == set(fields)
    for name, expected in fields.items():
        rows = json.loads((folder / f'{name}.json').read_text())
        tokens = [row['token'] for row in rows]
        assert len(set(tokens)) == len(tokens) > 0
        for row in rows:
            assert set(row) == set(expected.split()), name
    assert [row['name'] for row in sorted(tables.category, key=lambda row: row['index'])] == list(CATEGORIES)


def test_rows_follow_each_other(tables: Any, swept: Any) -> None:
    for reader in (tables, swept):
        chains = list(by_channel(reader).values())
        for scene in reader.scene:
            samples = [row for row in reader.sample if row['scene_token'] == scene['token']]
            samples.sort(key=lambda row: row['timestamp'])
            assert scene['nbr_samples'] == len(samples)
            assert (scene['first_sample_token'], scene['last_sample_token']) == (
                samples[0]['token'],
                samples[-1]['token'],
            )
            assert np.diff([row['timestamp'] for row in samples]).tolist() == [SECOND // 2] * (len(samples) - 1)
            chains.append(samples)
        for instance in reader.instance:
            track = [row for row in reader.sample_annotation if row['instance_token'] == instance['token']]
            track.sort(key=lambda row: reader.get('sample', row['sample_token'])['timestamp'])
            assert instance['nbr_annotations'] == len(track)
            assert instance['first_annotation_token'] == track[0]['token']
            assert instance['last_annotation_token'] == track[-1]['token']
            chains.append(track)
        for chain in chains:
            tokens = ['', *(row['token'] for row in chain), '']
            for row, before, after in zip(chain, tokens, tokens[2:]):
                assert (row['prev'], row['next']) == (before, after)


def test_every_frame_belongs_to_its_keyframe_or_the_one_that_follows(tables: Any, swept: Any) -> None:
    """As nuScenes' schema says, and as the devkit's interpolation of boxes between keyframes expects."""
    for reader in (tables, swept):
        for row in reader.sample_data:
            sample = reader.get('sample', row['sample_token'])
            scene = reader.get('scene', sample['scene_token'])
            if row['is_key_frame']:
                delay = round(1e6 * DELAYS.get((reader is swept, row['channel']), 0))
                assert row['timestamp'] - sample['timestamp'] == delay
                assert sample['data'][row['channel']] == row['token']
            else:
                after = [
                    other['token']
                    for other in sorted(reader.sample, key=lambda other: other['timestamp'])
                    if other['scene_token'] == scene['token'] and other['timestamp'] >= row['timestamp']
                ]
                assert row['sample_token'] == (after or [scene['last_sample_token']])[0]


def test_sensors_turn_and_shoot_at_their_rates(tables: Any, swept: Any) -> None:
    for reader, frames in ((tables, 3), (swept, 2)):
        for (scene, channel), rows in by_channel(reader).items():
            start = reader.get('sample', reader.get('scene', scene)['first_sample_token'])['timestamp']
            times = np.array([row['timestamp'] for row in rows]) - start
            keys = np.array([row['is_key_frame'] for row in rows])
            delay = round(1e6 * DELAYS.get((reader is swept, channel), 0))
            assert (times[keys] - delay).tolist() == [k * KEYFRAME for k in range(frames)]
            if channel == 'LIDAR_TOP':
                assert set(np.diff(times)) == {SECOND // 20}
            elif reader is swept:
                np.testing.assert_allclose(np.diff(times), SECOND / 12, atol=1)
            else:
                assert keys.all()
            assert times[-1] - delay == (frames - 1) * KEYFRAME
            for row in rows:
                assert reader.get('ego_pose', row['ego_pose_token'])['timestamp'] == row['timestamp']
                assert str(row['timestamp']) in row['filename']


def test_all_files_are_there_and_all_that_is_there_is_referred_to(tables: Any, swept: Any) -> None:
    for reader in (tables, swept):
        root = Path(reader.dataroot)
        named = {row['filename'] for row in (*reader.sample_data, *reader.lidarseg, *reader.map)}
        named |= {f'{reader.version}/{name}.json' for name in (*NAMES, 'lidarseg')} | {MARKER}
        for sample in reader.sample:
            scene = reader.get('scene', sample['scene_token'])['name']
            named.add(f'gts/{scene}/{sample["token"]}/labels.npz')
        named |= {f'maps/expansion/{log["location"]}.json' for log in reader.log}
        present = {path.relative_to(root).as_posix() for path in root.rglob('*') if path.is_file()}
        assert present == named
        for row in reader.sample_data:
            folder = 'samples' if row['is_key_frame'] else 'sweeps'
            assert row['filename'].startswith(f'{folder}/{row["channel"]}/')
            if row['fileformat'] == 'jpg':
                assert cv2.imread(str(root / row['filename'])).shape == (row['height'], row['width'], 3)
        for sample in reader.sample:
            assert set(sample['data']) == {row['channel'] for row in reader.sensor}


def test_lidarseg_has_a_label_for_every_point_of_a_keyframe(tables: Any) -> None:
    assert len(tables.lidarseg) == len(tables.sample)
    for row in tables.lidarseg:
        data = tables.get('sample_data', row['sample_data_token'])
        assert data['is_key_frame']
        assert data['channel'] == 'LIDAR_TOP'
        assert row['token'] == row['sample_data_token']  # the devkit looks labels up by the scan's token
        assert row['filename'] == f'lidarseg/{tables.version}/{data["token"]}_lidarseg.bin'
        labels = np.fromfile(Path(tables.dataroot) / row['filename'], np.uint8)
        points = np.fromfile(Path(tables.dataroot) / data['filename'], np.float32).reshape(-1, 5)
        assert len(labels) == len(points)
        assert labels.min() > 0  # 0 is noise
        assert labels.max() < len(CATEGORIES) - 1


def test_point_counts_are_those_of_the_devkit(tables: Any) -> None:
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    counts = []
    for sample in tables.sample:
        path, boxes, _ = tables.get_sample_data(sample['data']['LIDAR_TOP'])
        cloud = LidarPointCloud.from_file(path)
        assert len(boxes) == len(sample['anns'])
        for box in boxes:
            row = tables.get('sample_annotation', box.token)
            assert row['num_lidar_pts'] == points_in_box(box, cloud.points[:3].astype(np.float64)).sum()
            assert row['num_radar_pts'] == 0
            counts.append(row['num_lidar_pts'])
    assert len(counts) > 200
    assert np.mean(np.array(counts) > 0) > 0.6


def test_velocities_by_the_devkit_are_those_of_the_bodies(tables: Any, moments: List[Any]) -> None:
    compared = 0
    for moment in moments:
        frozen = freeze(moment.scene, moment.time)
        centres = frozen.position + np.outer(frozen.size[:, 2] / 2, [0, 0, 1])
        centres = centres @ moment.world2global[:3, :3].T + moment.world2global[:3, 3]
        for token in moment.sample['anns']:
            row = tables.get('sample_annotation', token)
            apart = np.linalg.norm(centres - row['translation'], axis=1)
            body = moment.scene.bodies[int(apart.argmin())]
            assert apart.min() < 1e-6
            length, width, height = body.size
            np.testing.assert_allclose(row['size'], [width, length, height])
            velocity = tables.box_velocity(token)
            if not np.isfinite(velocity).all():
                assert row['prev'] == row['next'] == ''
                continue
            ahead = Quaternion(row['rotation']).rotation_matrix[:, 0]
            speed = abs(body.speed) * (1 - body.d * moment.scene.road.curvature)
            assert np.linalg.norm(velocity) == pytest.approx(speed, rel=0.01, abs=1e-6)
            if body.speed:
                assert velocity @ ahead / np.linalg.norm(velocity) > 0.99
                compared += 1
            attributes = [tables.get('attribute', name)['name'] for name in row['attribute_tokens']]
            assert attributes == ([body.attribute] if body.attribute else [])
    assert compared > 30


def test_boxes_between_keyframes_are_interpolated_to_where_things_are(tables: Any, moments: List[Any]) -> None:
    """By the devkit, which expects a sweep to belong to the keyframe after it."""
    compared = 0
    for moment in moments:
        if not moment.frame:
            continue
        row = tables.get('sample_data', moment.sample['data']['LIDAR_TOP'])
        for _ in range(7):
            row = tables.get('sample_data', row['prev'])
        frozen = freeze(moment.scene, moment.time - 0.35)
        centres = frozen.position + np.outer(frozen.size[:, 2] / 2, [0, 0, 1])
        centres = centres @ moment.world2global[:3, :3].T + moment.world2global[:3, 3]
        for box in tables.get_boxes(row['token']):
            if tables.get('sample_annotation', box.token)['prev']:
                assert np.linalg.norm(centres - box.center, axis=1).min() < 0.05
                compared += 1
    assert compared > 50


def test_an_object_is_annotated_while_a_sensor_sees_it(tables: Any, moments: List[Any], world: Any) -> None:
    """All road users that the LiDAR hits within 60 m have a box; and each track begins and ends with one that is seen."""
    for moment in moments:
        boxes = np.array([tables.get('sample_annotation', token)['translation'] for token in moment.sample['anns']])
        hit = np.bincount(moment.scan.body[moment.scan.body >= 0], minlength=len(moment.scene.bodies))
        frozen, ego = moment.scan.frozen, moment.scene.ego2world(moment.time)[:2, 3]
        users = [bool(body.detection) for body in frozen.bodies]
        annotated = 0
        for number in np.nonzero((hit > 5) & users)[0]:
            centre = frozen.position[number] + [0, 0, frozen.size[number, 2] / 2]
            centre = moment.world2global[:3, :3] @ centre + moment.world2global[:3, 3]
            found = np.linalg.norm(boxes - centre, axis=1).min() < 1e-6
            assert found == (np.hypot(*(frozen.position[number, :2] - ego)) <= 60)
            annotated += found
        assert annotated >= 15
    levels = {row['visibility_token'] for row in tables.sample_annotation}
    assert levels == {'1', '2', '3', '4'}


def test_visibility_is_the_share_of_pixels_that_cameras_see(tables: Any, moments: List[Any], world: Any) -> None:
    """Boxes of 80 to 100% are seen where their middles project; those of 0 to 40% mostly are not."""
    hidden: Dict[str, List[bool]] = {'1': [], '4': []}
    intrinsics = {camera.name: camera.intrinsics for camera in world.recipe.build_rig().cameras}
    for moment in moments:
        for token in moment.sample['anns']:
            row = tables.get('sample_annotation', token)
            if row['visibility_token'] not in hidden:
                continue
            middle = np.linalg.inv(moment.world2global) @ np.append(row['translation'], 1)
            for name, view in moment.views.items():
                height, width = view.hits.t.shape
                local = (np.linalg.inv(view.cam2world) @ middle)[:3]
                u, v, _ = intrinsics[name] @ local / local[2]
                if local[2] > 3 and 2 < u < width - 2 and 2 < v < height - 2:
                    nearest = local[2] - np.linalg.norm(row['size']) / 2 - 0.3
                    hidden[row['visibility_token']].append(bool(view.hits.t[int(v), int(u)] < nearest))
    assert len(hidden['4']) > 50
    assert np.mean(hidden['4']) < 0.05
    assert np.mean(hidden['1']) > 0.5


def test_boxes_lie_on_the_drivable_map_or_beside_it_as_the_street_says(tables: Any, moments: List[Any]) -> None:
    for moment in moments[::3]:
        scene = tables.get('scene', moment.sample['scene_token'])
        record = next(row for row in tables.map if scene['log_token'] in row['log_tokens'])
        image = cv2.imread(str(Path(tables.dataroot) / record['filename']), cv2.IMREAD_GRAYSCALE)
        seen = set()
        for token in moment.sample['anns']:
            row = tables.get('sample_annotation', token)
            x, y, _ = row['translation']
            place = np.linalg.inv(moment.world2global) @ [x, y, 0, 1]
            apart = abs(float(moment.scene.road.locate(place[0], place[1])[1]))
            kerb = moment.scene.road.kerb
            if abs(apart - kerb) > 0.3:
                assert (image[image.shape[0] - 1 - int(y / 0.1), int(x / 0.1)] == 255) == (apart < kerb)
                seen.add(apart < kerb)
        assert seen == {True, False}


def test_the_summary_counts_what_is_there(tables: Any) -> None:
    summary = summarise(tables.dataroot, tables.version)
    counted = {'scenes': 2, 'keyframes': 6, 'images': 36, 'scans': 2 * (2 * 10 + 1)}
    assert {key: summary[key] for key in counted} == counted
    assert sum(summary['boxes'].values()) == sum(row['num_lidar_pts'] > 0 for row in tables.sample_annotation)
    assert len(summary['boxes']) == 10


def test_archives_do_not_tell_the_time_of_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {'a': np.arange(12).reshape(3, 4)[:, ::2], 'b': np.zeros((2, 2), np.uint8)}
    save_npz(tmp_path / 'first.npz', arrays)
    monkeypatch.setattr('time.time', lambda: 2e9)
    save_npz(tmp_path / 'second.npz', arrays)
    assert (tmp_path / 'first.npz').read_bytes() == (tmp_path / 'second.npz').read_bytes()
    with np.load(tmp_path / 'first.npz') as loaded:
        for name, array in arrays.items():
            np.testing.assert_array_equal(loaded[name], array)
