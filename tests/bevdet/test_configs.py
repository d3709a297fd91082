"""Configurations of detectors, maps and occupancy: they parse, and their parts exist and fit each other. That the models have the published
names and shapes is in test_manifests.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch

pytest.importorskip('mmdet3d')

from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, METRICS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, TRANSFORMS
from mmengine.runner import load_checkpoint

import geomim.bevdet  # noqa: F401 - registers every part
from geomim import GeoMIM
from geomim.adapter.encoders import student_config
from geomim.bevdet.map.spec import MAP_CLASSES, MapSpec
from geomim.checkpoints.loading import write_encoders

R50_OCC = 'bevdet-occ-r50-4d-stereo-24e'
SWIN_B_OCC, SWIN_L_OCC = (f'bevdet-occ-swin{size}-4d-stereo-512x1408-24e-geomim' for size in 'bl')
LOAD_OCC = f'{SWIN_B_OCC}-load'
# (epochs, learning rate, weight decay, decay of the rate by layer, samples a GPU, epoch of SyncBN, drop path)
NUMBERS = {
    'bevdet-r50': (24, 2e-4, 1e-7, None, 8, None, None),
    'bevdet-r50-4d-cbgs': (20, 2e-4, 1e-2, None, 8, None, None),
    'bevdet-r50-4d-depth-cbgs': (20, 2e-4, 1e-2, None, 8, None, None),
    'bevdet-r50-4d-stereo-cbgs': (20, 2e-4, 1e-2, None, 8, None, None),
    'bevdet-r50-4dlongterm-depth-cbgs': (20, 2e-4, 1e-2, None, 8, None, None),
    'bevdet-swinb-4d-256x704-cbgs': (20, 2e-4, 1e-2, None, 4, None, 0.1),
    'bevdet-swinb-4d-256x704-cbgs-geomim': (20, 2e-4, 0.05, 0.8, 4, None, 0.2),
    'bevdet-swinb-4d-stereo-256x704-cbgs-geomim': (20, 2e-4, 0.05, 0.85, 4, 2, 0.2),
    'bevdet-swinb-4d-stereo-512x1408-cbgs-geomim': (20, 2e-4, 0.05, 0.85, 2, 2, 0.2),
    R50_OCC: (100, 1e-4, 1e-2, None, 4, None, None),
    SWIN_B_OCC: (100, 2e-4, 0.05, 0.85, 2, 0, 0.25),
    LOAD_OCC: (100, 2e-4, 0.05, 0.85, 2, 0, 0.25),
    SWIN_L_OCC: (75, 2e-4, 0.05, 0.85, 2, 0, 0.35),
}
PUBLISHED = tuple(NUMBERS)
BOXES = tuple(name for name in PUBLISHED if 'occ' not in name)
GEOMIM_R50 = tuple(f'bevdet-r50{tail}-geomim' for tail in ('', '-4d-cbgs', '-4d-depth-cbgs', '-4d-stereo-cbgs'))
MAPS = ('bevdet-r50-map-256x704', 'bevdet-swinb-map-256x704-geomim')
TINY_RESNET = ('bevdet_resnet_tiny_synthetic', 'bevdepth4d_resnet_tiny_synthetic', 'bevdet_map_resnet_tiny_synthetic')
TINY_BOXES = ('bevdepth4d_tiny_synthetic', 'bevstereo4d_tiny_synthetic', *TINY_RESNET[:2])
TINY_MAPS = ('bevdepth4d_map_tiny_synthetic', TINY_RESNET[2])
TINY_OCC = 'bevstereo4docc_tiny_synthetic'
TINY = (*TINY_BOXES, *TINY_MAPS, TINY_OCC)
Read, Build = Callable[[str], Config], Callable[[Config], Any]


def datasets(config: Config) -> List[Config]:
    """Of training, validation and testing."""
    train = config.train_dataloader.dataset
    return [train.get('dataset', train), config.val_dataloader.dataset, config.test_dataloader.dataset]


def of_type(pipeline: List[Dict[str, Any]], kind: str) -> Dict[str, Any]:
    found = [step for step in pipeline if step['type'] == kind]
    assert len(found) == 1, kind
    return found[0]


def test_every_file_is_known_here(repository: Path) -> None:
    rooms = ('finetune', 'map_segmentation', 'occupancy')
    files = [path.stem for room in rooms for path in (repository / 'configs' / 'mmdet3d' / room).glob('*.py')]
    assert sorted(files) == sorted((*PUBLISHED, *GEOMIM_R50, *MAPS, *TINY))


@pytest.mark.parametrize(
    'name', ['bevdet-r50-4d-cbgs', 'bevdet-swinb-4d-stereo-256x704-cbgs-geomim', R50_OCC, SWIN_L_OCC]
)
def test_published_checkpoints_load_strictly(name: str, manifest: Any, read_config: Read, build_empty: Build) -> None:
    with torch.device('meta'):
        state = {key: torch.empty(shape) for key, shape in manifest(name).items()}
    loaded = build_empty(read_config(name)).load_state_dict(state, strict=True, assign=True)
    assert not loaded.missing_keys
    assert not loaded.unexpected_keys


@pytest.mark.parametrize('name', [*PUBLISHED, *GEOMIM_R50, *MAPS, *TINY])
def test_every_part_is_registered(name: str, read_config: Read) -> None:
    config = read_config(name)
    assert config.custom_imports.imports == ['geomim.bevdet']
    MODELS.build(config.model.data_preprocessor)
    for dataset in datasets(config):
        for step in dataset.pipeline:
            TRANSFORMS.build(step)
    for hook in [*config.default_hooks.values(), *config.custom_hooks]:
        HOOKS.build(hook)
    averaging = next(hook for hook in config.custom_hooks if hook.type == 'EMAHook')
    assert config.test_evaluator == config.val_evaluator
    for registry, kind in (
        (MODELS, averaging.ema_type),
        (DATASETS, config.train_dataloader.dataset.type),
        (DATASETS, config.val_dataloader.dataset.type),
        (METRICS, config.val_evaluator.type),
        (OPTIM_WRAPPERS, config.optim_wrapper.type),
        (OPTIM_WRAPPER_CONSTRUCTORS, config.optim_wrapper.get('constructor', 'DefaultOptimWrapperConstructor')),
    ):
        assert registry.get(kind) is not None, kind
    if config.val_evaluator.type != 'EgoNuScenesMetric':  # which reads its info file
        METRICS.build(config.val_evaluator)


@pytest.mark.parametrize('name', [*PUBLISHED, *GEOMIM_R50, *MAPS, *TINY])
def test_data_fit_the_model(name: str, read_config: Read, build_empty: Build) -> None:
    config = read_config(name)
    model = build_empty(config)
    view = model.img_view_transformer
    for dataset, training in zip(datasets(config), (True, False, False)):
        steps = dataset.pipeline
        load, image_aug = of_type(steps, 'LoadSurroundFrames'), of_type(steps, 'SurroundFramesAug')
        assert load['num_frames'] == model.num_frames
        assert load['data_config'] == image_aug['data_config']
        assert tuple(image_aug['data_config']['input_size']) == view.input_size
        past = range(*dataset.multi_adj_frame_id_cfg) if dataset.multi_adj_frame_id_cfg else ()
        assert 1 + len(past) + bool(dataset.get('stereo', False)) == model.num_frames
        assert image_aug.get('training', True) == training
        # too few frames to learn every heading: the tiny detectors keep the BEV as it is
        assert of_type(steps, 'BEVDetBEVAug').get('training', True) == (training and name not in TINY)
        assert dataset.test_mode != training
        head = check_map if name in (*MAPS, *TINY_MAPS) else check_voxels
        check = check_boxes if hasattr(model, 'pts_bbox_head') else head
        check(config, model, dataset, training)
    train = datasets(config)[0].pipeline
    assert any(step['type'] == 'LoadSurroundPoints' for step in train) == model.uses_depth_labels


def check_boxes(config: Config, model: Any, dataset: Config, training: bool) -> None:
    assert ('gt_labels_3d' in dataset.pipeline[-1]['keys']) == training
    egos = {str(of_type(each.pipeline, 'BoxesToKeyEgo').get('ego_camera')) for each in datasets(config)}
    assert len(egos) == 1
    classes = [name for task in config.model.pts_bbox_head.tasks for name in task.class_names]
    assert classes == list(config.class_names) == list(config.val_dataloader.dataset.metainfo.classes)


def check_map(config: Config, model: Any, dataset: Config, training: bool) -> None:
    label = of_type(dataset.pipeline, 'LoadBEVMapLabels')
    assert TRANSFORMS.build(label).spec == model.map_head.spec
    assert label.data_root == dataset.data_root
    assert datasets(config)[0].filter_empty_gt is False
    if Path(config.filename).stem in MAPS:
        assert model.map_head.spec == MapSpec.create()
        assert model.map_head.spec.classes == MAP_CLASSES
        assert type(model.img_backbone).__name__ == ('GeoMIMSwin' if 'swinb' in config.filename else 'ResNet')


def check_voxels(config: Config, model: Any, dataset: Config, training: bool) -> None:
    steps = dataset.pipeline
    tiny = model.voxels[0] == 100
    assert tuple(TRANSFORMS.build(of_type(steps, 'LoadOccupancyLabels')).voxels) == tuple(model.voxels)
    assert any(step['type'] == 'GridToLidarEgo' for step in steps) == tiny
    assert dataset.data_prefix.occupancy == 'gts'
    assert datasets(config)[0].filter_empty_gt is False
    grid = model.img_view_transformer.grid
    assert [grid.x_bound[:2], grid.y_bound[:2], grid.z_bound[:2]] == [(-40, 40), (-40, 40), (-1, 5.4)]
    if training and not tiny:
        aug = TRANSFORMS.build(of_type(steps, 'BEVDetBEVAug')).config
        assert (aug.rot_lim, aug.scale_lim, aug.flip_dx_ratio, aug.flip_dy_ratio) == ((0, 0), (1, 1), 0.5, 0.5)


@pytest.mark.parametrize('name', [*BOXES, *TINY_BOXES])
def test_heads_stand_on_the_raster_of_the_view_transformation(name: str, read_config: Read) -> None:
    config = read_config(name)
    lower, upper, cell = config.model.img_view_transformer.grid_config.x
    train, test, coder = config.model.train_cfg.pts, config.model.test_cfg.pts, config.model.pts_bbox_head.bbox_coder
    for settings in (train, test, coder):
        assert settings.out_size_factor * settings.voxel_size[0] == pytest.approx(cell)
        assert settings.voxel_size[0] == settings.voxel_size[1]
    assert train.grid_size[0] / train.out_size_factor == pytest.approx((upper - lower) / cell)
    assert train.point_cloud_range[0] == coder.pc_range[0] == lower


@pytest.mark.parametrize('name', PUBLISHED)
def test_recipes_have_the_published_numbers(name: str, read_config: Read) -> None:
    config = read_config(name)
    epochs, rate, weight_decay, layer_decay, batch, sync_bn, drop_path = NUMBERS[name]
    wrapper, hooks = config.optim_wrapper, {hook.type: hook for hook in config.custom_hooks}
    assert config.train_cfg.max_epochs == epochs
    assert (wrapper.optimizer.lr, wrapper.optimizer.weight_decay) == (rate, weight_decay)
    assert wrapper.clip_grad.max_norm == 5
    assert wrapper.get('paramwise_cfg', {}).get('decay_rate') == layer_decay
    assert config.train_dataloader.batch_size == batch
    assert (hooks['EMAHook'].decay, hooks['EMAHook'].init_updates) == (0.999, 10560)
    assert hooks.get('SyncBNControlHook', {}).get('begin_epoch') == sync_bn
    warm_up, step = config.param_scheduler
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (0.001, 200, False)
    assert step.milestones == [epochs]
    assert config.model.img_backbone.get('drop_path_rate') == drop_path
    key_frame_alone, boxes = name == 'bevdet-r50', name in BOXES
    assert hooks.get('SequentialControlHook', {}).get('begin_epoch') == (3 if boxes and not key_frame_alone else None)
    assert (config.train_dataloader.dataset.type == 'BEVDetCBGSDataset') == (boxes and not key_frame_alone)
    assert (config.load_from is not None) == (name in (R50_OCC, LOAD_OCC))
    if not boxes:
        assert config.val_evaluator.mask == 'camera'
    if 'swin' in name:
        assert tuple(config.model.img_backbone.window_size) == (16, 16, 16, 8 if boxes else 16)


@pytest.mark.parametrize('name', GEOMIM_R50)
def test_the_pretrained_resnet_starts_the_published_detector(name: str, read_config: Read) -> None:
    """Nothing but the file of weights and the order of the channels, which pretraining sees as R, G, B, is another."""
    config, published = read_config(name), read_config(name[: -len('-geomim')])
    pretraining = read_config('geomim_r50_50e_nuscenes_256x704')
    backbone, encoder = config.model.img_backbone, pretraining.model.student.encoder
    shared = ('type', 'depth', 'norm_eval')
    assert [backbone[key] for key in shared] == [encoder[key] for key in shared]
    assert backbone.init_cfg.checkpoint == 'checkpoints/encoder_resnet.pth'
    assert config.model.data_preprocessor.bgr_to_rgb
    config.model.data_preprocessor.bgr_to_rgb = False
    backbone.init_cfg = published.model.img_backbone.init_cfg
    assert config.model == published.model


@pytest.mark.parametrize('name', [name for name in TINY if name not in TINY_RESNET])
def test_tiny_models_take_the_encoder_of_the_tiny_pretraining(name: str, read_config: Read, build_empty: Build) -> None:
    pretraining, config = read_config('geomim_tiny_synthetic'), read_config(name)
    encoder, backbone = pretraining.model.student.encoder, config.model.img_backbone
    assert all(tuple(backbone[key]) == tuple(encoder[key]) for key in ('depths', 'num_heads', 'window_size'))
    assert backbone.embed_dims == encoder.embed_dims
    assert tuple(config.model.img_view_transformer.input_size) == tuple(pretraining.image_size)
    assert config.model.data_preprocessor.bgr_to_rgb
    most = 2.5e6 if name == TINY_OCC else 4e6
    assert sum(parameter.numel() for parameter in build_empty(config).parameters()) < most


@pytest.mark.parametrize('name', TINY_RESNET)
def test_the_tiny_resnet_fills_the_unchanged_class(
    name: str, read_config: Read, build_empty: Build, tmp_path: Path
) -> None:
    """The pretraining's file has a place for every tensor, and no other one."""
    pretraining, config = read_config('geomim_resnet_tiny_synthetic'), read_config(name)
    student = GeoMIM(student_config(pretraining.model.student, MODELS.build))
    file = write_encoders(student, tmp_path / 'encoder.pth', ())['backbone']
    backbone = config.model.img_backbone
    folder, default = Path(backbone.init_cfg.checkpoint).parts[-2:]
    assert (folder, default) == ('geomim_resnet_tiny_synthetic', file.name)
    load_checkpoint(MODELS.build({**backbone, 'init_cfg': None}), str(file), strict=True)
    assert tuple(config.model.img_view_transformer.input_size) == tuple(pretraining.image_size)
    assert config.model.data_preprocessor.bgr_to_rgb
    assert sum(parameter.numel() for parameter in build_empty(config).parameters()) < 4.5e6


@pytest.mark.parametrize('name', [*TINY_BOXES, *TINY_MAPS])
def test_tiny_models_train_and_predict_on_a_synthetic_world(name: str, read_config: Read, bevdet_world: Path) -> None:
    config = read_config(name)
    config.model.img_backbone.init_cfg = None
    if name in TINY_RESNET:
        config.model.img_backbone.zero_init_residual = False  # or the first step stops at the end of each block
    model = MODELS.build(config.model)
    model.init_weights()
    batches = []
    for dataset in datasets(config)[:2]:
        dataset.update(data_root=f'{bevdet_world}/')
        dataset.metainfo.update(version='v1.0-trainval')
        for step in dataset.pipeline:
            if step.type == 'LoadBEVMapLabels':
                step.data_root = str(bevdet_world)
        batches.append(pseudo_collate([DATASETS.build(dataset)[1]]))
    before = {key: value.clone() for key, value in model.named_parameters()}
    losses = model.train_step(batches[0], build_optim_wrapper(model, config.optim_wrapper))
    assert all(torch.isfinite(value).all() for value in losses.values())
    parts = sum(float(value) for key, value in losses.items() if key != 'loss')
    assert float(losses['loss']) == pytest.approx(parts, rel=1e-4)
    still = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert not still, still
    (sample,) = model.eval().val_step(batches[1])
    assert ('loss_depth' in losses) == model.uses_depth_labels
    if name in TINY_MAPS:
        assert {f'map.loss_{kind}' for kind in config.map_classes} <= set(losses)
        assert sample.pred_bev_map.data.shape == sample.gt_bev_map.data.shape == (5, 100, 100)
        assert sample.pred_bev_map.metainfo == sample.gt_bev_map.metainfo
        assert 'pred_instances_3d' not in sample
    else:
        assert {'task0.loss_heatmap', 'task0.loss_vel'} <= set(losses)
        found = sample.pred_instances_3d
        assert found.bboxes_3d.tensor.shape == (len(found.scores_3d), 9)
        assert sample.metainfo['lidar2key_ego'].shape == (4, 4)
