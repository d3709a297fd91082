"""``python -m geomim detect``: the results file, the pictures, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List

import cv2
import mmengine
import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

from mmdet3d.registry import MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from geomim.__main__ import main
from geomim.bevdet.boxes.metric import EgoNuScenesMetric
from geomim.bevdet.boxes.transform import transform_boxes
from geomim.bevdet.detectors import BEVDet
from geomim.bevdet.inference import detect as detect_module
from geomim.bevdet.inference.drawing import FOUND, TRUE, DrawnBoxes, draw_bev, draw_cameras, draw_in_image
from geomim.bevdet.inference.frame_pictures import draw_frame

from ...helpers import Attack, oriented_image, run_quietly

CONFIG = 'configs/mmdet3d/finetune/bevdepth4d_tiny_synthetic.py'
ONE_PROCESS = ['--cfg-options', 'test_dataloader.num_workers=0']


@pytest.fixture(scope='module')
def config(repository: Path) -> Path:
    return repository / CONFIG


@pytest.fixture(scope='module')
def checkpoint(config: Path, bevdet_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny detector with random weights, which is unsure but finds something everywhere."""
    torch.manual_seed(0)
    init_default_scope('mmdet3d')
    model = MODELS.build(Config.fromfile(config).model)
    with torch.no_grad():
        model.pts_bbox_head.task_heads[0].heatmap[-1].weight.normal_(std=2.0)
    path = tmp_path_factory.mktemp('detector') / 'tiny.pth'
    torch.save({'meta': {'epoch': 1}, 'state_dict': model.state_dict()}, path)
    return path


@pytest.fixture
def detect(config: Path, checkpoint: Path, bevdet_world: Path) -> Callable[..., int]:
    def run(out: Path, *options: str, data: Path = bevdet_world, weights: Path = checkpoint) -> int:
        arguments = ['detect', str(config), str(weights), '--data', str(data), '--out', str(out), '--device', 'cpu']
        return main([*arguments, *options, *([] if '--cfg-options' in options else ONE_PROCESS)])

    return run


def tokens(world: Path, split: str) -> List[str]:
    return [info['token'] for info in mmengine.load(world / f'bevdet_infos_{split}.pkl')['data_list']]


def find_the_truth(monkeypatch: pytest.MonkeyPatch, data: Any, score: float = 0.9) -> None:
    """Every detector finds what is annotated: ``data`` is a dataset in training mode."""
    infos = {info['token']: info for info in (data.get_data_info(index) for index in range(len(data)))}

    def predict(self: Any, inputs: Dict[str, Any], samples: List[Any], **_: Any) -> List[Any]:
        for sample in samples:
            truth = infos[sample.token]['ann_info']
            boxes = transform_boxes(truth['gt_bboxes_3d'], sample.lidar2key_ego)
            labels = torch.as_tensor(truth['gt_labels_3d'])
            known = labels >= 0
            scores = torch.full((int(known.sum()),), score)
            sample.pred_instances_3d = InstanceData(bboxes_3d=boxes[known], scores_3d=scores, labels_3d=labels[known])
            sample.pred_instances = InstanceData()
        return samples

    monkeypatch.setattr(BEVDet, 'predict', predict)


def test_the_devkit_takes_the_results(
    detect: Callable[..., int], bevdet_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from nuscenes.eval.common.loaders import load_prediction
    from nuscenes.eval.detection.data_classes import DetectionBox

    assert detect(tmp_path / 'out', '--score-threshold', '0') == 0
    printed = capsys.readouterr().out
    assert 'saved in' not in printed
    found, meta = load_prediction(str(tmp_path / 'out' / 'results_nusc.json'), 500, DetectionBox)
    assert meta['use_camera']
    assert not meta['use_lidar']
    assert set(found.sample_tokens) == set(tokens(bevdet_world, 'val'))
    assert len(found.all) > 10
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['pictures', 'results_nusc.json']
    pictures = sorted((tmp_path / 'out' / 'pictures').iterdir())
    assert {path.stem.split('_')[1] for path in pictures} == set(found.sample_tokens)
    assert all(cv2.imread(str(path)).shape[1] > 1600 for path in pictures)
    assert f'{len(pictures)} frames' in printed
    assert f'{len(found.all)} boxes of all scores' in printed
    assert 'BEVDepth4D on a Swin of GeoMIM' in printed


def test_no_pictures_fewer_frames_and_the_other_split(
    detect: Callable[..., int], bevdet_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ['--split', 'train', '--max-frames', '3', '--no-pictures']
    assert detect(tmp_path / 'out', *options, *ONE_PROCESS, 'test_dataloader.batch_size=2') == 0
    found = json.loads((tmp_path / 'out' / 'results_nusc.json').read_text())['results']
    assert len(found) == 3
    assert set(found) < set(tokens(bevdet_world, 'train'))
    assert not (tmp_path / 'out' / 'pictures').exists()
    assert '3 of the 4 frames' in capsys.readouterr().out


@pytest.mark.parametrize('ego_camera', ['CAM_FRONT', 'None'])
def test_boxes_are_where_the_tables_have_them(
    detect: Callable[..., int], make_dataset: Callable[..., Any], bevdet_world: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, ego_camera: str,
) -> None:  # fmt: skip
    """Annotations that are fed through come out as the devkit's own, sample by sample, whatever the order of the file."""
    from nuscenes import NuScenes

    find_the_truth(monkeypatch, make_dataset('train'))
    file = mmengine.load(bevdet_world / 'bevdet_infos_train.pkl')
    shuffled = tmp_path / 'shuffled.pkl'
    mmengine.dump(dict(file, data_list=file['data_list'][::-1]), shuffled)
    options = ['--ann-file', str(shuffled), '--split', 'train', '--no-pictures', *ONE_PROCESS]
    options.append(f'test_dataloader.dataset.pipeline.2.ego_camera={ego_camera}')
    assert detect(tmp_path / 'out', *options) == 0
    found = json.loads((tmp_path / 'out' / 'results_nusc.json').read_text())['results']
    tables = NuScenes('v1.0-trainval', str(bevdet_world), verbose=False)
    assert len(found) == 4
    for token, entries in found.items():
        rows = [tables.get('sample_annotation', name) for name in tables.get('sample', token)['anns']]
        annotated = np.array([row['translation'] for row in rows])
        assert entries
        for entry in entries:
            assert np.linalg.norm(annotated - entry['translation'], axis=1).min() < 0.02


@pytest.mark.parametrize('home_made', [False, True])
def test_cameras_alone_are_enough(
    detect: Callable[..., int], make_dataset: Callable[..., Any], lidarless_world: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, home_made: bool,
) -> None:  # fmt: skip
    """Results and pictures of a rig without a LiDAR, by the command's info files and by those that know no such key."""
    ann_file = lidarless_world / 'bevdet_infos_val.pkl'
    if home_made:
        file = mmengine.load(ann_file)
        for info in file['data_list']:
            del info['lidar_points']
        ann_file = tmp_path / 'home_made.pkl'
        mmengine.dump(file, ann_file)
    find_the_truth(monkeypatch, make_dataset('val', data_root=f'{lidarless_world}/', ann_file=str(ann_file)))
    assert detect(tmp_path / 'out', '--ann-file', str(ann_file), data=lidarless_world) == 0
    found = json.loads((tmp_path / 'out' / 'results_nusc.json').read_text())['results']
    rows = json.loads((lidarless_world / 'v1.0-trainval' / 'sample_annotation.json').read_text())
    assert set(found) == set(tokens(lidarless_world, 'val'))
    for token, entries in found.items():
        annotated = np.array([row['translation'] for row in rows if row['sample_token'] == token])
        assert len(entries) > 10
        for entry in entries:
            assert np.linalg.norm(annotated - entry['translation'], axis=1).min() < 0.02
    pictures = list((tmp_path / 'out' / 'pictures').iterdir())
    assert len(pictures) == len(found)
    assert all(near_any(cv2.imread(str(path))[:400, :1600, ::-1], FOUND) for path in pictures)


def near_any(picture: np.ndarray, colour: Any) -> bool:
    return bool((np.abs(picture.astype(int) - np.array(colour)).max(axis=-1) < 60).any())


def near(picture: np.ndarray, place: np.ndarray, colour: Any, reach: int = 4) -> bool:
    """Whether a pixel close to (column, row) is nearly of that colour; JPEG blurs thin lines."""
    column, row = np.round(place).astype(int)
    around = picture[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1].reshape(-1, 3)
    return bool((np.abs(around.astype(int) - np.array(colour)).max(axis=1) < 110).any())


def test_drawn_boxes_lie_on_their_objects(
    detect: Callable[..., int], make_dataset: Callable[..., Any], bevdet_world: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Projected by the devkit, the middle of each bottom carries a line, since the line to the front begins there."""
    from nuscenes import NuScenes

    find_the_truth(monkeypatch, make_dataset('val'))
    assert detect(tmp_path / 'out') == 0
    tables = NuScenes('v1.0-trainval', str(bevdet_world), verbose=False)
    cameras = make_dataset('val').data_prefix
    order = ['CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT']
    assert set(order) <= set(cameras)
    checked = 0
    for path in (tmp_path / 'out' / 'pictures').iterdir():
        picture = cv2.imread(str(path))[..., ::-1]
        sample = tables.get('sample', path.stem.split('_')[1])
        for number, name in enumerate(order):
            _, boxes, intrinsics = tables.get_sample_data(sample['data'][name])
            for box in boxes:
                row = tables.get('sample_annotation', box.token)
                middle = intrinsics @ box.bottom_corners().mean(axis=1)
                pixel = middle[:2] / middle[2] * 533 / 400
                inside = 8 < pixel[0] < 525 and 8 < pixel[1] < 292
                if (
                    not inside
                    or not 4 < middle[2] < 25
                    or row['num_lidar_pts'] == 0
                    or 'vehicle.car' not in row['category_name']
                ):
                    continue
                assert near(picture, pixel + [number % 3 * 533, number // 3 * 300], FOUND), (name, pixel)
                checked += 1
    assert checked > 5


def test_boxes_are_drawn_on_stored_pixels(tmp_path: Path) -> None:
    """Where metadata tell viewers to turn an image the picture is the same, and damage is named."""
    image = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    for name, orientation in (('plain', 1), ('turned', 6)):
        (tmp_path / name).write_bytes(oriented_image(image, orientation))
    (tmp_path / 'cut').write_bytes((tmp_path / 'plain').read_bytes()[:-400])
    intrinsics = [[50.0, 0, 50], [0, 50, 30], [0, 0, 1]]
    nothing = InstanceData(bboxes_3d=LiDARInstance3DBoxes(torch.zeros(0, 7)), labels_3d=[], scores_3d=torch.zeros(0))

    def drawn(file: str) -> np.ndarray:
        cameras = {'CAM_A': dict(img_path=str(tmp_path / file), cam2img=intrinsics, lidar2cam=np.eye(4))}
        sample = SimpleNamespace(cam_names=['CAM_A'], lidar2key_ego=np.eye(4))
        return draw_frame({'images': cameras}, sample, nothing, ['car'])

    np.testing.assert_array_equal(drawn('turned'), drawn('plain'))
    with pytest.raises(ValueError, match='cut is truncated'):
        drawn('cut')


def test_annotations_are_drawn_in_their_own_colour(
    detect: Callable[..., int], make_dataset: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Detections below the threshold leave the annotations alone in the picture, in cameras and from above."""
    find_the_truth(monkeypatch, make_dataset('val'), score=0.29)
    assert detect(tmp_path / 'out', '--max-frames', '1') == 0
    (path,) = (tmp_path / 'out' / 'pictures').iterdir()
    above = cv2.imread(str(path))[..., ::-1][:, 1599:].astype(int)
    assert (np.abs(above - np.array(TRUE)).max(axis=2) < 60).sum() > 50
    assert not (np.abs(above - np.array(FOUND)).max(axis=2) < 60).any()


def test_a_world_without_annotations_and_points(
    detect: Callable[..., int], bevdet_world: Path, link_world: Callable[[Path], Path], tmp_path: Path
) -> None:
    world = link_world(tmp_path / 'world')
    file = mmengine.load(bevdet_world / 'bevdet_infos_val.pkl')
    bare = [{key: value for key, value in info.items() if key != 'instances'} for info in file['data_list']]
    for info in bare:
        info['lidar_points'] = dict(info['lidar_points'], lidar_path='absent.bin')
    mmengine.dump(dict(file, data_list=bare), world / 'bare.pkl')
    assert detect(tmp_path / 'out', '--ann-file', 'bare.pkl', '--max-frames', '1', data=world) == 0
    assert len(list((tmp_path / 'out' / 'pictures').iterdir())) == 1


def test_force_replaces_its_own_results_only(
    detect: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / 'out'
    (out / 'pictures').mkdir(parents=True)
    (out / 'pictures' / 'old.jpg').touch()
    assert detect(out, '--max-frames', '1') == 2
    assert '--force' in capsys.readouterr().err
    assert detect(out, '--max-frames', '1', '--force') == 0
    assert not (out / 'pictures' / 'old.jpg').exists()
    (out / 'thesis.tex').touch()
    assert detect(out, '--max-frames', '1', '--force') == 2
    assert 'thesis.tex' in capsys.readouterr().err
    assert (out / 'thesis.tex').exists()
    assert [path.name for path in tmp_path.iterdir()] == ['out']


@pytest.mark.parametrize('ending', ['terminated', 'interrupted', 'failed'])
def test_what_ends_early_leaves_nothing(
    detect: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    frames = []

    def draw(*_: Any) -> np.ndarray:
        frames.append(1)
        if len(frames) == 2:
            if ending == 'terminated':
                os.kill(os.getpid(), signal.SIGTERM)
            raise KeyboardInterrupt if ending == 'interrupted' else RuntimeError('out of memory')
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(detect_module, 'draw_frame', draw)
    expected = {'terminated': SystemExit, 'interrupted': KeyboardInterrupt, 'failed': RuntimeError}[ending]
    with pytest.raises(expected):
        detect(tmp_path / 'out')
    assert len(frames) == 2
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_checkpoints_that_do_not_fit(
    detect: Callable[..., int], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    changed = dict(state)
    changed['img_neck.stranger'] = changed.pop('img_neck.conv.0.weight')
    changed['pts_bbox_head.shared_conv.conv.weight'] = torch.zeros(1, 2, 3, 3)
    encoder = {name: value for name, value in state.items() if name.startswith('img_backbone.')}
    broken = dict(state, **{'img_neck.conv.0.weight': state['img_neck.conv.0.weight'] * float('nan')})
    for name, content in (('changed', changed), ('encoder', encoder), ('broken', broken)):
        torch.save({'state_dict': content}, tmp_path / f'{name}.pth')
    (tmp_path / 'text.pth').write_text('no checkpoint')
    for name, parts in {
        'absent': ['absent.pth does not exist'],
        'text': ['cannot be read'],
        'encoder': ['holds no whole detector', 'finetune a detector'],
        'broken': ['not finite: img_neck.conv.0.weight'],
        'changed': [
            '1 missing: img_neck.conv.0.weight',
            '1 unexpected: img_neck.stranger',
            'pts_bbox_head.shared_conv.conv.weight (1, 2, 3, 3) instead of (32, 64, 3, 3)',
        ],
    }.items():
        assert detect(tmp_path / 'out', weights=tmp_path / f'{name}.pth') == 2
        message = capsys.readouterr().err
        assert all(part in message for part in parts), message
    assert not (tmp_path / 'out').exists()


def test_published_layouts_load(detect: Callable[..., int], checkpoint: Path, tmp_path: Path) -> None:
    from geomim.checkpoints.detector_layouts import to_bevdet

    state = to_bevdet(torch.load(checkpoint, weights_only=True)['state_dict'])
    assert any(name.endswith('relative_position_index') for name in state)
    torch.save({'meta': {}, 'state_dict': state}, tmp_path / 'published.pth')
    options = ['--max-frames', '1', '--no-pictures']
    assert detect(tmp_path / 'published', *options, weights=tmp_path / 'published.pth') == 0
    assert detect(tmp_path / 'ours', *options) == 0
    one, two = ((tmp_path / name / 'results_nusc.json').read_bytes() for name in ('published', 'ours'))
    assert one == two


def test_data_that_do_not_fit(
    detect: Callable[..., int], link_world: Callable[[Path], Path], bevdet_world: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / 'empty').mkdir()
    bare = link_world(tmp_path / 'bare')
    foreign = link_world(tmp_path / 'foreign')
    file = mmengine.load(bevdet_world / 'bevdet_infos_val.pkl')
    for info in file['data_list']:
        for camera in info['images'].values():
            camera['img_path'] = 'n015-' + camera['img_path']
    mmengine.dump(file, foreign / 'bevdet_infos_val.pkl')
    for world, part in (
        (tmp_path / 'empty', 'is no nuScenes root'),
        (bare, f'python -m geomim infos {bare} makes it'),
        (foreign, 'names images that are not in'),
    ):
        assert detect(tmp_path / 'out', data=world) == 2
        assert part in capsys.readouterr().err
    assert detect(tmp_path / 'out', '--ann-file', 'nuscenes_infos_val.pkl') == 2
    assert 'no scene_token, prev' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('options', 'part'),
    [
        (['--max-frames', '0'], 'max_frames must be at least 1'),
        (['--score-threshold', '30'], 'score_threshold must lie in [0, 1]'),
        (['--device', 'cuda:77'], "device 'cuda:77' cannot be used"),
        (['--device', 'gpu'], "device 'gpu' cannot be used"),
        (['--cfg-options', 'model'], 'options are KEY=VALUE'),
        (['--cfg-options', 'model.type=Unheard'], 'cannot be built'),
        (['--cfg-options', 'model.num_adj=-1'], 'num_adj counts past frames'),
    ],
)
def test_arguments_that_do_not_fit(
    detect: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture, options: List[str], part: str
) -> None:
    assert detect(tmp_path / 'out', *options) == 2
    assert part in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def box(x: float, y: float) -> LiDARInstance3DBoxes:
    """Four metres long, two wide, two high, heading along x, standing on z = -1."""
    return LiDARInstance3DBoxes(torch.tensor([[x, y, -1.0, 4.0, 2.0, 2.0, 0.0]]))


def test_the_view_from_above_has_x_up_and_y_to_the_left() -> None:
    points = np.array([[20.0, 10.0, 0.0], [500.0, 0.0, 0.0]])
    view = draw_bev(points, box(30, -20), box(-30, 20), reach=50, pixels=500)  # five pixels a metre
    assert view[150, 200].min() > 100
    for x, y, colour in ((32, -20, FOUND), (28, -20, FOUND), (30, -19, FOUND), (30, -21, FOUND), (-32, 20, TRUE)):
        assert near(view, np.array([(50 - y) * 5, (50 - x) * 5]), colour, reach=1), (x, y)
    # the line to the front, none to the rear
    assert near(view, np.array([350, 95]), FOUND, reach=1)
    assert not near(view, np.array([350, 105]), FOUND, reach=1)


def test_boxes_beside_and_behind_a_camera() -> None:
    """A camera that looks along x: boxes behind it leave no trace, boxes that reach behind it are cut off."""
    projection = np.array([[50.0, -100, 0, 0], [50, 0, -100, 0], [1, 0, 0, 0]])
    blank = np.zeros((100, 100, 3), np.uint8)
    for boxes, seen in ((box(10, 0), True), (box(-10, 0), False), (box(1, 0), True), (box(0, 30), False)):
        image = blank.copy()
        draw_in_image(image, DrawnBoxes(boxes, FOUND, ['car']), projection)
        assert image.any() == seen, boxes.tensor
    with pytest.raises(ValueError, match='1 boxes have 2 captions'):
        DrawnBoxes(box(1, 1), FOUND, ['car', 'bus'])


def test_a_mosaic_of_different_cameras() -> None:
    images = [np.full((100, 200, 3), 200, np.uint8), np.full((50, 200, 3), 100, np.uint8)] * 2
    mosaic = draw_cameras(images, [], np.tile(np.eye(4), (4, 1, 1)), columns=3, tile_width=100)
    assert mosaic.shape == (100, 300, 3)
    assert (mosaic[10, 150], mosaic[40, 150]) == (pytest.approx(100), pytest.approx(0))
    assert (mosaic[60, 50], mosaic[60, 150]) == (pytest.approx(100), pytest.approx(0))
    with pytest.raises(ValueError, match='4 images need as many projections'):
        draw_cameras(images, [], np.eye(4)[None])


def check_submission(path: Path, world: Path) -> None:
    """What nuScenes' server asks for: every sample of the tables, at most 500 boxes of each, what was used."""
    from nuscenes.eval.common.loaders import load_prediction
    from nuscenes.eval.detection.data_classes import DetectionBox

    found, meta = load_prediction(str(path), 500, DetectionBox)
    samples = json.loads((world / 'v1.0-test' / 'sample.json').read_text())
    assert set(found.sample_tokens) == {row['token'] for row in samples}
    assert len(samples) == 6
    assert len(found.all) > 10
    others = ('use_lidar', 'use_radar', 'use_map', 'use_external')
    assert meta == {'use_camera': True, **dict.fromkeys(others, False)}


@pytest.mark.parametrize('options', [[], ['--split', 'test']])
def test_the_test_split_is_detected_for_a_submission(
    detect: Callable[..., int], unannotated_world: Path, tmp_path: Path, options: List[str]
) -> None:
    assert detect(tmp_path / 'out', *options, data=unannotated_world) == 0
    check_submission(tmp_path / 'out' / 'results_nusc.json', unannotated_world)
    assert len(list((tmp_path / 'out' / 'pictures').iterdir())) == 6


def test_the_test_split_is_missing(
    detect: Callable[..., int], bevdet_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert detect(tmp_path / 'out', '--split', 'test') == 2
    message = f'python -m geomim infos {bevdet_world} --version v1.0-test makes it'
    assert message in capsys.readouterr().err


def test_mmdet3ds_script_writes_a_submission(
    config: Path, checkpoint: Path, unannotated_world: Path, tmp_path: Path
) -> None:
    """As the page on finetuning says; without `format_only` the run ends at once and says why."""
    from geomim.nuscenes.infos import mmdet3d_tools

    root, file = f'{unannotated_world}/', f'{unannotated_world}/bevdet_infos_test.pkl'
    command = [mmdet3d_tools() / 'test.py', config, checkpoint, '--work-dir', tmp_path / 'work', '--cfg-options']
    command += ['test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']
    command += [f'test_dataloader.dataset.{key}' for key in (f'data_root={root}', 'metainfo.version=v1.0-test')]
    command += ['test_dataloader.dataset.ann_file=bevdet_infos_test.pkl']
    command += [f'test_evaluator.data_root={root}', f'test_evaluator.ann_file={file}']
    run_quietly([*command, 'test_evaluator.format_only=True', f'test_evaluator.jsonfile_prefix={tmp_path / "out"}'])
    check_submission(tmp_path / 'out' / 'pred_instances_3d' / 'results_nusc.json', unannotated_world)


def test_scores_of_the_test_split_are_refused_at_the_first_sample(bevdet_world: Path) -> None:
    file = str(bevdet_world / 'bevdet_infos_val.pkl')
    metric = EgoNuScenesMetric(data_root=f'{bevdet_world}/', ann_file=file)
    metric.dataset_meta = dict(classes=['car'], version='v1.0-test')
    with pytest.raises(
        ValueError, match='v1.0-test has no annotations to score against; test_evaluator.format_only=True'
    ):
        metric.process({}, [{}])


def test_code_in_the_metrics_info_file_does_not_run(bevdet_world: Path, tmp_path: Path) -> None:
    mmengine.dump({'metainfo': {}, 'data_list': [Attack(open, str(tmp_path / 'ran'), 'w')]}, str(tmp_path / 'a.pkl'))
    metric = EgoNuScenesMetric(data_root=f'{bevdet_world}/', ann_file=str(tmp_path / 'a.pkl'))
    metric.dataset_meta = dict(classes=['car'], version='v1.0-trainval')
    with pytest.raises(ValueError, match=r'a\.pkl cannot be read .*it refers to'):
        metric.compute_metrics([])
    assert not (tmp_path / 'ran').exists()
