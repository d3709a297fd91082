"""GeoMIM's Swin as a backbone of mmdet and mmseg, on 2D labels derived from the synthetic world, through their own scripts."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

import mmengine
from mmengine.config import Config

from geomim.nuscenes import image_labels
from geomim.nuscenes.image_labels import CLASSES, UNLABELLED, make_image_labels, outline, points_in_image

from ..helpers import assert_same_tensors, linked_world, oriented_image, run_quietly

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
ITERATIONS = {'mmdet': 60, 'mmseg': 40}
FEW = 2  # images
TINY = {'mmdet': 'mask-rcnn_tiny_synthetic.py', 'mmseg': 'upernet_tiny_synthetic.py'}
FULL = {
    'mmdet': 'mask-rcnn_swin-b_geomim_1x_nuimages.py',
    'mmseg': 'upernet_swin-b_geomim_8xb2-80k_nuscenes-512x1024.py',
}
HOSTS = ('mmdet', 'mmseg')
WAYMO = [f'mmdet3d/waymo/{path.name}' for path in sorted((CONFIGS / 'mmdet3d' / 'waymo').glob('*.py'))]


@pytest.fixture(scope='module')
def labelled_world(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world by links, with 2D labels; not to be changed."""
    return make_image_labels(linked_world(small_world, tmp_path_factory.mktemp('labelled') / 'world'))


@pytest.fixture(scope='module')
def tables(small_world: Path) -> Any:
    from nuscenes.nuscenes import NuScenes

    return NuScenes('v1.0-trainval', str(small_world), verbose=False)


def annotations(root: Path, split: str) -> Dict[str, Any]:
    return json.loads((root / f'nuscenes_2d_{split}.json').read_text())


# -------------------------------------------------------------------------------------------------------------- labels


def test_boxes_are_those_of_the_devkits_own_projection(labelled_world: Path, tables: Any, monkeypatch: Any) -> None:
    """Its script, told the images' size, gives the same boxes of the same objects, but for those that are too small."""
    from functools import partial

    from nuscenes.eval.detection.utils import category_to_detection_name
    from nuscenes.scripts import export_2d_annotations_as_json as script

    monkeypatch.setattr(script, 'nusc', tables, raising=False)
    monkeypatch.setattr(script, 'post_process_coords', partial(script.post_process_coords, imsize=(400, 225)))
    ours = annotations(labelled_world, 'val')
    count = 0
    for image in ours['images']:
        assert (image['width'], image['height']) == (400, 225)
        theirs = []
        for row in script.get_2d_boxes(image['token'], ['2', '3', '4']):
            left, top, right, bottom = row['bbox_corners']
            name = category_to_detection_name(row['category_name'])
            if name and min(right - left, bottom - top) >= image_labels.MIN_SIDE:
                theirs.append((CLASSES.index(name), left, top, right - left, bottom - top))
        mine = [(one['category_id'], *one['bbox']) for one in ours['annotations'] if one['image_id'] == image['id']]
        assert len(mine) == len(theirs)
        np.testing.assert_allclose(sorted(mine), sorted(theirs), atol=0.02)
        count += len(mine)
    assert count > 30


def test_outlines_cover_the_projected_points_of_their_objects(labelled_world: Path) -> None:
    """Annotations in COCO's own reader: area of the polygon, box around it, and masks of that area."""
    from pycocotools.coco import COCO

    coco = COCO(str(labelled_world / 'nuscenes_2d_train.json'))
    assert len(coco.imgs) == 24
    assert [row['name'] for row in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    for image in coco.imgs.values():
        assert cv2.imread(str(labelled_world / image['file_name'])).shape == (image['height'], image['width'], 3)
    large = [one for one in coco.anns.values() if one['area'] > 400]
    assert large
    for one in large:
        polygon = np.array(one['segmentation'][0], dtype=np.float32).reshape(-1, 2)
        assert cv2.contourArea(polygon) == pytest.approx(one['area'], rel=0.01)
        assert coco.annToMask(one).sum() == pytest.approx(one['area'], rel=0.1)
        x, y, width, height = one['bbox']
        np.testing.assert_allclose([*polygon.min(0), *polygon.max(0)], [x, y, x + width, y + height], atol=0.02)


def image_loaders(part: Any) -> Iterator[Dict[str, Any]]:
    """Every step of a configuration that reads image files."""
    if isinstance(part, dict):
        if part.get('type') in ('LoadImageFromFile', 'LoadMultiViewImageFromFiles'):
            yield {key: value for key, value in part.items() if key != '_scope_'}
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for inner in part:
            yield from image_loaders(inner)


@pytest.mark.parametrize('name', [f'{host}/{names[host]}' for names in (TINY, FULL) for host in HOSTS] + WAYMO)
def test_images_are_read_as_the_labels_have_them(name: str, tmp_path: Path) -> None:
    """Labels refer to stored pixels, whatever orientation the metadata tell."""
    import mmdet3d.datasets.transforms  # noqa: F401
    from mmdet3d.registry import TRANSFORMS

    image = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    path = tmp_path / 'turned.png'
    path.write_bytes(oriented_image(image, 6, 'PNG'))
    loaders = list(image_loaders(Config.fromfile(CONFIGS / name).to_dict()))
    assert loaders
    views = {'CAM_FRONT': dict(img_path=str(path), cam2img=np.eye(4), lidar2cam=np.eye(4))}
    for loader in loaders:
        several = loader['type'] == 'LoadMultiViewImageFromFiles'
        results = dict(images=views) if several else dict(img_path=str(path))
        loaded = TRANSFORMS.build(loader)(results)['img']
        np.testing.assert_array_equal(loaded[0] if several else loaded, image)


def test_outline_of_a_cube() -> None:
    """A cube of 2 m, its face 4 m away, of 100 pixels a metre at 1 m: 50 pixels wide; cut by the image; behind the camera."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (4, 6)], dtype=float).T
    intrinsics = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    hull = outline(corners, intrinsics, 100, 80)
    assert [*hull.min(0), *hull.max(0)] == [25, 15, 75, 65]
    cut = outline(corners + np.array([[2.0], [0], [0]]), intrinsics, 100, 80)
    assert cut[:, 0].max() == 100
    assert cut[:, 0].min() == pytest.approx(50 + 100 / 6)
    assert outline(corners - np.array([[0], [0], [10.0]]), intrinsics, 100, 80) is None
    assert outline(corners + np.array([[90.0], [0], [0]]), intrinsics, 100, 80) is None
    assert outline(corners + np.array([[0], [0], [400.0]]), intrinsics, 100, 80) is None


def test_pixels_take_the_nearest_points_label_as_a_loop_would() -> None:
    random = np.random.default_rng(4)
    points = random.uniform(-6, 6, (3000, 3))
    labels = random.integers(0, 16, 3000).astype(np.uint8)
    lidar2cam = np.eye(4)
    lidar2cam[:3, :3] = cv2.Rodrigues(np.array([0.3, -0.8, 0.5]))[0]
    lidar2cam[:3, 3] = 0.4, -0.2, 1.0
    camera = dict(lidar2cam=lidar2cam.tolist(), cam2img=[[20.0, 0, 15], [0, 22.0, 10], [0, 0, 1]])
    expected, nearest = np.full((20, 30), UNLABELLED, np.uint8), np.full((20, 30), np.inf)
    for point, label in zip(points, labels):
        x, y, depth = (lidar2cam @ [*point, 1])[:3]
        if depth <= image_labels.NEAREST:
            continue
        column, row = int(np.floor(20 * x / depth + 15)), int(np.floor(22 * y / depth + 10))
        if 0 <= column < 30 and 0 <= row < 20 and depth < nearest[row, column]:
            expected[row, column], nearest[row, column] = label, depth
    found = points_in_image(points, labels, camera, 30, 20)
    np.testing.assert_array_equal(found, expected)
    assert (found != UNLABELLED).sum() > 100


def test_semantic_labels_lie_on_their_objects(labelled_world: Path, tables: Any) -> None:
    """Most of a near car's labelled pixels are 'car', and the class table is that of the challenge."""
    table = image_labels.semantic_classes(tables)
    by_name = {row['name']: table[row['index']] for row in tables.category}
    assert by_name['movable_object.barrier'] == 0
    assert by_name['vehicle.car'] == 3
    assert by_name['static.vegetation'] == 15
    assert by_name['vehicle.ego'] == by_name['noise'] == UNLABELLED
    found: List[int] = []
    coco = annotations(labelled_world, 'train')
    names = {image['id']: image['file_name'] for image in coco['images']}
    for one in coco['annotations']:
        if one['category_id'] == CLASSES.index('car') and one['area'] > 800:
            pixels = cv2.imread(
                str(labelled_world / 'semantic_2d' / names[one['image_id']].replace('.jpg', '.png')), -1
            )
            x, y, width, height = one['bbox']
            middle = pixels[int(y + height / 3) : int(y + height * 0.6), int(x + width / 3) : int(x + width * 2 / 3)]
            found += middle[middle != UNLABELLED].tolist()
    assert len(found) > 30
    assert np.mean(np.array(found) == 3) > 0.6


def test_lists_name_every_image_of_the_split(labelled_world: Path) -> None:
    for split, count in (('train', 24), ('val', 12)):
        names = (labelled_world / f'nuscenes_2d_{split}.txt').read_text().split()
        assert len(names) == count
        assert [f'{name}.jpg' for name in names] == [
            one['file_name'] for one in annotations(labelled_world, split)['images']
        ]
        assert all((labelled_world / 'semantic_2d' / f'{name}.png').is_file() for name in names)


def test_files_that_are_there_stay_and_a_folder_without_labels_gives_boxes_only(
    small_world: Path, tmp_path: Path
) -> None:
    infos = [mmengine.load(str(small_world / name)) for name in image_labels.info_names()]
    for name, file in zip(image_labels.info_names(), infos):
        for info in file['data_list']:
            info.pop('pts_semantic_mask_path')
        mmengine.dump(file, str(tmp_path / name))
    assert make_image_labels(small_world, tmp_path) == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != '.pkl') == [
        'nuscenes_2d_train.json', 'nuscenes_2d_val.json',
    ]  # fmt: skip
    (tmp_path / 'nuscenes_2d_val.json').write_text('{}')
    make_image_labels(small_world, tmp_path)
    assert (tmp_path / 'nuscenes_2d_val.json').read_text() == '{}'
    make_image_labels(small_world, tmp_path, force=True)
    assert annotations(tmp_path, 'val')['images']
    with pytest.raises(ValueError, match='is no nuScenes root'):
        make_image_labels(tmp_path)


# ----------------------------------------------------------------------------------------------------------- trainings


@pytest.fixture(scope='module')
def encoder(tiny_encoder: Callable[[str], Path]) -> Path:
    return tiny_encoder('mmdet')


def micro_config(host: str, data_root: Path, encoder: Path) -> Config:
    """The tiny configuration, shorter; that of mmdet trains and is evaluated on two images, for anything to be found at all."""
    config = Config.fromfile(CONFIGS / host / TINY[host])
    config.model.backbone.init_cfg.checkpoint = str(encoder)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = f'{data_root}/'
        if host == 'mmdet':
            loader.dataset.update(ann_file='nuscenes_2d_train.json', indices=FEW)
    if host == 'mmdet':
        config.train_dataloader.dataset.pipeline.pop(2)  # the flip
        config.val_evaluator.ann_file = config.test_evaluator.ann_file = f'{data_root}/nuscenes_2d_train.json'
    config.train_cfg.update(max_iters=ITERATIONS[host], val_interval=ITERATIONS[host])
    warm_up, decay = config.param_scheduler
    warm_up.end = ITERATIONS[host] // 10
    decay.update(T_max=ITERATIONS[host], end=ITERATIONS[host])
    config.default_hooks.checkpoint.update(interval=ITERATIONS[host] - 2, max_keep_ckpts=-1)
    return config


def script(host: str, name: str, folder: Path, *arguments: Any) -> str:
    """Run one of the host's scripts, as a user does; what it wrote to its log."""
    package = Path(str(importlib.import_module(host).__file__)).parent
    run_quietly([package / '.mim' / 'tools' / name, *arguments, '--work-dir', folder], cwd=folder)
    return '\n'.join(path.read_text() for path in folder.glob('*/*.log'))


def scores(folder: Path) -> Dict[str, float]:
    rows = [json.loads(line) for path in folder.rglob('2*.json') for line in path.read_text().splitlines()]
    return next(row for row in reversed(rows) if 'mIoU' in row or 'coco/bbox_mAP' in row)


def weights(path: Path) -> Dict[str, torch.Tensor]:
    from geomim.mmengine.compat import load_local_checkpoint

    return load_local_checkpoint(path, 'cpu')['state_dict']


@pytest.fixture(scope='module', params=HOSTS)
def host(request: Any) -> str:
    pytest.importorskip(f'{request.param}.models', reason=f'{request.param} is not installed')
    return str(request.param)


@pytest.fixture(scope='module')
def trained(host: str, labelled_world: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(host)
    micro_config(host, labelled_world, encoder).dump(str(folder / 'micro.py'))
    log = script(host, 'train.py', folder, folder / 'micro.py')
    (folder / 'train.log').write_text(log)
    return folder


def test_training_starts_from_the_whole_encoder(trained: Path, encoder: Path) -> None:
    """The output norms of strides 4 and 8, which the pretraining has none of, are all that begins anew."""
    log = (trained / 'train.log').read_text()
    count = sum(not name.endswith('relative_position_index') for name in torch.load(encoder, weights_only=True))
    assert f'GeoMIMSwin: {encoder} (mmdet layout): {count} tensors taken' in log
    assert 'initial values: 4 (norm0.bias, norm0.weight, norm1.bias, norm1.weight)\n' in log
    for word in ('without a place', 'resized'):
        assert word not in log


def test_it_learns_more_than_can_be_said_without_looking(host: str, trained: Path, labelled_world: Path) -> None:
    """Pixels of the validation scene, against the most frequent class; boxes of two training images, against those of others."""
    if host == 'mmseg':
        assert scores(trained)['mIoU'] > 1.5 * most_frequent_class(labelled_world)
    else:
        blind = boxes_of_other_images(labelled_world)
        assert blind < 0.01
        assert scores(trained)['coco/bbox_mAP'] > blind + 0.01


def boxes_of_other_images(root: Path) -> float:
    """Box mAP on the images of the training, of the boxes of as many others from the same cameras in place of detections."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, other = (COCO(str(root / f'nuscenes_2d_{split}.json')) for split in ('train', 'val'))
    images, others = (sorted(coco.imgs)[:FEW] for coco in (truth, other))
    for one, another in zip(images, others):
        assert Path(truth.imgs[one]['file_name']).parent == Path(other.imgs[another]['file_name']).parent
    found = [
        dict(image_id=one, category_id=row['category_id'], bbox=row['bbox'], score=1.0)
        for one, another in zip(images, others)
        for row in other.imgToAnns[another]
    ]
    evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
    evaluation.params.imgIds = images
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def most_frequent_class(root: Path) -> float:
    """mIoU, per cent, of the training images' most frequent class everywhere, over the classes that occur."""
    pixels = {}
    for split in ('train', 'val'):
        names = (root / f'nuscenes_2d_{split}.txt').read_text().split()
        images = np.concatenate([cv2.imread(str(root / 'semantic_2d' / f'{name}.png'), -1).ravel() for name in names])
        pixels[split] = images[images != UNLABELLED]
    often = np.bincount(pixels['train']).argmax()
    return 100 * float((pixels['val'] == often).mean()) / len(np.unique(pixels['val']))


@pytest.mark.long
def test_evaluation_alone_gives_the_same_scores(host: str, trained: Path, tmp_path: Path) -> None:
    script(host, 'test.py', tmp_path, trained / 'micro.py', trained / f'iter_{ITERATIONS[host]}.pth')
    for name in ('coco/bbox_mAP', 'coco/segm_mAP') if host == 'mmdet' else ('mIoU', 'aAcc'):
        assert scores(tmp_path)[name] == pytest.approx(scores(trained)[name], abs=1e-6)


@pytest.mark.long
def test_a_run_resumes_to_the_same_weights_bit_for_bit(host: str, trained: Path, tmp_path: Path) -> None:
    earlier = tmp_path / f'iter_{ITERATIONS[host] - 2}.pth'
    shutil.copy(str(trained / earlier.name), str(earlier))
    (tmp_path / 'last_checkpoint').write_text(str(earlier))
    log = script(host, 'train.py', tmp_path, trained / 'micro.py', '--resume')
    assert f'Load checkpoint from {earlier}' in log
    assert_same_tensors(*(weights(folder / f'iter_{ITERATIONS[host]}.pth') for folder in (tmp_path, trained)))


def test_full_size_builds_from_the_hosts_own_configuration(host: str) -> None:
    from mmengine.registry import init_default_scope

    config = Config.fromfile(CONFIGS / host / FULL[host])
    init_default_scope(host)
    models = importlib.import_module(f'{host}.registry').MODELS
    if host == 'mmseg':
        config.model.decode_head.norm_cfg.type = config.model.auxiliary_head.norm_cfg.type = 'BN'
    model = models.build(config.model).eval()
    assert type(model).__name__ == {'mmdet': 'MaskRCNN', 'mmseg': 'EncoderDecoder'}[host]
    with torch.no_grad():
        maps = model.backbone(torch.zeros(1, 3, 70, 90))
        assert [tuple(one.shape) for one in maps] == [
            (1, 128 * 2**i, -(-70 // 4 // 2**i), -(-90 // 4 // 2**i)) for i in range(4)
        ]
        if host == 'mmdet':
            assert [one.shape[1] for one in model.neck(maps)] == [256] * 5
        else:
            assert model.decode_head(maps).shape[:2] == (1, 16)
