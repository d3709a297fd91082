"""Generated frames: images, points and boxes show one and the same scene, and mmdet3d's own dataset reads them."""

from __future__ import annotations

import copy
import filecmp
import pickle
from pathlib import Path
from typing import Any, Dict

import cv2
import numpy as np
import pytest

from geomim.synthetic import frame as frame_module
from geomim.synthetic.frame import CAMERAS, camera_geometry, lidar2ego, render_camera, scan_lidar, write_frame
from geomim.synthetic.scene import CLASSES, GROUND, SKY, Scene, Solid, make_scene

SIZE = (180, 320)
CONFIGS = Path(__file__).parents[2] / 'configs/mmdet3d'


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frame(tmp_path_factory.mktemp('data') / 'frames', seed=1, num_frames=3, image_size=SIZE)


def infos(root: Path, split: str) -> Dict[str, Any]:
    with open(root / f'nuscenes_infos_{split}.pkl', 'rb') as file:
        return pickle.load(file)


def test_ray_casting_hits_known_surfaces() -> None:
    box = Solid(np.array([10.0, 0.0, 1.0]), np.array([2.0, 4.0, 2.0]), 0.0, (1, 2, 3), 'car')
    behind = Solid(np.array([20.0, 0.0, 1.0]), np.array([2.0, 2.0, 2.0]), 0.3, (1, 2, 3), 'car')
    rays = np.array([[1.0, 0, 0], [1, 0, -0.5], [0, 0, 1], [1, 0.3, 0], [-1, 0, 0], [1, 0, 0.05]]).T
    distance, hit = Scene((behind, box), 0.0).cast(np.array([0.0, 0, 1.5]), rays)
    assert hit.tolist() == [1, GROUND, SKY, SKY, SKY, 1]
    np.testing.assert_allclose(distance, [9, 3, np.inf, np.inf, np.inf, 9])
    turned = Solid(np.array([10.0, 0.0, 1.0]), np.array([2.0, 2.0, 2.0]), np.pi / 4, (1, 2, 3))
    distance, _ = Scene((turned,), 0.0).cast(np.array([0.0, 0, 1.0]), np.array([[1.0], [0], [0]]))
    assert distance[0] == pytest.approx(10 - np.sqrt(2))


def test_points_fall_on_the_object_that_they_hit() -> None:
    scene = make_scene(1, 0)
    points, hit = scan_lidar(scene)
    in_ego = points[:, :3] @ lidar2ego()[:3, :3].T + lidar2ego()[:3, 3]
    seen = 0
    for name in CAMERAS:
        _, depth, shown = render_camera(scene, name, (450, 800))
        intrinsics, cam2ego = camera_geometry(name, (450, 800))
        local = (in_ego - cam2ego[:3, 3]) @ cam2ego[:3, :3]
        ahead = local[:, 2] > 1
        pixel = local[ahead] @ intrinsics.T
        u, v = np.floor(pixel[:, :2] / pixel[:, 2:]).astype(int).T
        inside = (u >= 0) & (u < 800) & (v >= 0) & (v < 450)
        u, v, label, z = u[inside], v[inside], hit[ahead][inside], local[ahead][inside, 2]
        solid = label != GROUND
        agree = shown[v, u] == label
        assert agree[solid].mean() > 0.93  # the rest: the LiDAR sees past what hides a thing from the camera, and edges
        nearer = z < depth[v, u] * 0.97 - 0.2  # nothing may float in front of what the camera sees
        assert nearer.mean() < 0.01
        on_it = agree & solid
        error = np.abs(depth[v, u] - z)[on_it]
        assert np.median(error) < 0.05
        seen += on_it.sum()
    assert seen > 1500


def test_points_lie_in_the_boxes_of_the_info_file(root: Path) -> None:
    for index, info in enumerate(infos(root, 'train')['data_list']):
        path = root / 'samples/LIDAR_TOP' / info['lidar_points']['lidar_path']
        points = np.fromfile(str(path), np.float32).reshape(-1, 5)
        scene = make_scene(1, index)
        _, hit = scan_lidar(scene)
        assert len(points) > 20000
        assert sorted(set(points[:, 4])) == list(range(32))
        for number, instance in enumerate(info['instances']):
            box = np.array(instance['bbox_3d'])
            local = points[hit == number, :3] - box[:3]
            cos, sin = np.cos(box[6]), np.sin(box[6])
            along, across = local[:, :2] @ [cos, sin], local[:, :2] @ [-sin, cos]
            half = box[3:6] / 2 + 1e-3
            assert len(local) == instance['num_lidar_pts'] > 0
            assert (np.abs(np.stack([along, across, local[:, 2]], 1)) <= half).all()


def test_written_images_show_the_objects_colours(root: Path) -> None:
    scene, info = make_scene(1, 0), infos(root, 'train')['data_list'][0]
    compared = 0
    for name, camera in info['images'].items():
        image = cv2.imread(str(root / 'samples' / name / camera['img_path']))[..., ::-1]
        assert image.shape == (*SIZE, 3)
        rendered, _, shown = render_camera(scene, name, SIZE)
        assert np.abs(image.astype(int) - rendered).mean() < 6
        for number, solid in enumerate(scene.solids):
            mask = cv2.erode((shown == number).astype(np.uint8), np.ones((3, 3))) > 0
            if solid.name and mask.sum() > 60:
                mean = image[mask].mean(0)
                colour = np.array(solid.colour, dtype=float)
                assert mean @ colour / np.linalg.norm(mean) / np.linalg.norm(colour) > 0.98
                compared += 1
    assert compared >= 8


def test_every_class_is_in_every_frame(root: Path) -> None:
    for split in ('train', 'val'):
        for info in infos(root, split)['data_list']:
            assert {instance['bbox_label_3d'] for instance in info['instances']} == set(range(len(CLASSES)))


def test_frames_depend_on_the_seed_alone(root: Path, tmp_path: Path) -> None:
    again = write_frame(tmp_path / 'again', seed=1, num_frames=3, image_size=SIZE)
    files = sorted(str(path.relative_to(root)) for path in root.rglob('*') if path.is_file())
    assert files == sorted(str(path.relative_to(again)) for path in again.rglob('*') if path.is_file())
    assert filecmp.cmpfiles(str(root), str(again), files, shallow=False)[0] == files
    tokens = [info['token'] for split in ('train', 'val') for info in infos(root, split)['data_list']]
    assert len(set(tokens)) == 3
    assert not np.allclose(make_scene(1, 0).solids[0].centre, make_scene(2, 0).solids[0].centre)
    assert not np.allclose(make_scene(1, 0).solids[0].centre, make_scene(1, 1).solids[0].centre)


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/notes.txt').write_text('keep')
    with pytest.raises(ValueError, match='mine exists and is no synthetic frame'):
        write_frame(tmp_path / 'mine', num_frames=1, image_size=(32, 64))
    assert (tmp_path / 'mine/notes.txt').read_text() == 'keep'
    (tmp_path / 'file').write_text('keep')
    with pytest.raises(ValueError, match='file exists'):
        write_frame(tmp_path / 'file', num_frames=1, image_size=(32, 64))


def test_own_folder_is_kept_or_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_frame(tmp_path / 'frames', num_frames=1, image_size=(36, 64))
    assert infos(root, 'train')['data_list'] == infos(root, 'val')['data_list']
    write_frame(root, num_frames=2, image_size=(36, 64))
    assert len(list((root / 'samples/LIDAR_TOP').iterdir())) == 2
    monkeypatch.setattr(frame_module, '_write_sample', lambda *_: pytest.fail('written again'))
    write_frame(root, num_frames=2, image_size=(36, 64))
    assert [path.name for path in tmp_path.iterdir()] == ['frames']


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(frame_module, '_write_infos', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_frame(tmp_path / 'frames', num_frames=1, image_size=(36, 64))
    assert list(tmp_path.iterdir()) == []


def test_no_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='num_frames must be at least 1, got 0'):
        write_frame(tmp_path / 'frames', num_frames=0)


def child_config(root: Path, folder: Path) -> Any:
    """A child of the nuScenes data config for the smaller images, as its header describes."""
    config = pytest.importorskip('mmengine.config')
    pytest.importorskip('mmdet3d')
    base = CONFIGS / '_base_/nuscenes_surround.py'
    text = f"""
_base_ = ['{base}']
image_aug = dict(_base_.image_aug, final_size=(64, 128), resize=(0.4, 0.5), test_resize=0.45)
train_pipeline = [*_base_.load, _base_.sweeps, image_aug, *_base_.finish_train]
test_sweeps = dict(_base_.sweeps, test_mode=True)
test_pipeline = [*_base_.load, test_sweeps, dict(image_aug, training=False), *_base_.finish_test]
common = dict(data_root='{root}', metainfo=dict(version='v1.0-mini'))
serial = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline, **common)), **serial)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **common), **serial)
"""
    (folder / 'child.py').write_text(text)
    return config.Config.fromfile(str(folder / 'child.py'))


def test_mmdet3ds_dataset_reads_the_frames_with_our_config(root: Path, tmp_path: Path) -> None:
    config = child_config(root, tmp_path)
    import mmdet3d.utils
    from mmengine.runner import Runner

    import geomim.mmdet3d  # noqa: F401

    mmdet3d.utils.register_all_modules(init_default_scope=True)
    np.random.seed(0)
    loader = Runner.build_dataloader(copy.deepcopy(config.train_dataloader), seed=0)
    assert len(loader.dataset) >= 20  # two frames, resampled so that all ten classes are equally frequent
    batch = next(iter(loader))
    assert tuple(batch['inputs']['img'][1].shape) == (6, 3, 64, 128)
    assert batch['inputs']['points'][0].shape[1] == 5
    assert (batch['inputs']['depth_map'][0] > 0).float().mean() > 0.01
    assert batch['data_samples'][0].cam_names == list(config.cameras)
    test = next(iter(Runner.build_dataloader(copy.deepcopy(config.val_dataloader), seed=0)))
    assert test['data_samples'][0].token == infos(root, 'val')['data_list'][0]['token']
    np.testing.assert_array_equal(test['data_samples'][0].bev_aug_matrix, np.eye(4))


def test_base_config_states_the_published_recipe() -> None:
    config = pytest.importorskip('mmengine.config').Config.fromfile(str(CONFIGS / '_base_/nuscenes_surround.py'))
    train = {step.type: step for step in config.train_dataloader.dataset.dataset.pipeline}
    test = {step.type: step for step in config.test_dataloader.dataset.pipeline}
    assert tuple(train['SurroundImageAug'].final_size) == (256, 704)
    assert tuple(train['SurroundImageAug'].resize) == (0.38, 0.55)
    assert train['LoadSurroundSweeps'].sweeps_num == 9
    assert train['PointsRangeFilter'].point_cloud_range == [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
    assert test['SurroundImageAug'].training is False
    assert test['SurroundImageAug'].test_resize == 0.48
    assert test['LoadSurroundSweeps'].test_mode is True
    assert not {'BEVFlip', 'PointShuffle'} & set(test)
    assert list(train).index('BEVFlip') < list(train).index('PointsToDepthMap')
    assert config.train_dataloader.batch_size == 2
