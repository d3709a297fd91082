"""Finetuning configurations: they parse, their parts exist and fit each other, and the models have the published names and shapes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    TRANSFORMS,
    DefaultScope,
)

from geomim.checkpoints.detector_layouts import describe_detector, to_bevdet

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / 'configs' / 'mmdet3d' / 'finetune'
PUBLISHED = (
    'bevdet-r50',
    'bevdet-r50-4d-cbgs',
    'bevdet-r50-4d-depth-cbgs',
    'bevdet-r50-4d-stereo-cbgs',
    'bevdet-r50-4dlongterm-depth-cbgs',
    'bevdet-swinb-4d-256x704-cbgs',
    'bevdet-swinb-4d-256x704-cbgs-geomim',
    'bevdet-swinb-4d-stereo-256x704-cbgs-geomim',
    'bevdet-swinb-4d-stereo-512x1408-cbgs-geomim',
)
TINY = ('bevdepth4d_tiny_synthetic', 'bevdepth4d_rays_tiny_synthetic', 'bevstereo4d_tiny_synthetic')
PARTS = ('backbones', 'datasets', 'detectors', 'head', 'necks', 'shifted_swin', 'training', 'view_transformer')


@pytest.fixture(autouse=True, scope='module')
def _scope() -> Iterator[None]:
    """Everything is registered, names are looked for where mmdet3d's runner looks."""
    for part in PARTS:
        importlib.import_module(f'geomim.bevdet.{part}')
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        yield


def read(name: str) -> Config:
    return Config.fromfile(FOLDER / f'{name}.py', import_custom_modules=False)


def build(config: Config) -> BaseModel:
    """The detector without weights; mmdet's shifted Swin reads numbers of its own while it is built, which needs real ones."""
    model = {key: value for key, value in config.model.items() if key != 'data_preprocessor'}
    device = 'cpu' if config.model.img_backbone.type == 'ShiftedSwin' else 'meta'
    with torch.device(device):
        return MODELS.build(model)


def pipelines(config: Config) -> List[List[Dict[str, Any]]]:
    train = config.train_dataloader.dataset
    train = train.get('dataset', train)
    return [train.pipeline, config.val_dataloader.dataset.pipeline, config.test_dataloader.dataset.pipeline]


def of_type(pipeline: List[Dict[str, Any]], kind: str) -> Dict[str, Any]:
    found = [step for step in pipeline if step['type'] == kind]
    assert len(found) == 1, kind
    return found[0]


def test_every_file_is_known_here() -> None:
    assert sorted(path.stem for path in FOLDER.glob('*.py')) == sorted((*PUBLISHED, *TINY))


@pytest.mark.parametrize('name', PUBLISHED)
def test_models_have_the_published_names_and_shapes(name: str, manifest: Any) -> None:
    model = build(read(name))
    expected = manifest(name)
    assert {key: tuple(value.shape) for key, value in to_bevdet(dict(model.state_dict())).items()} == expected
    assert describe_detector(expected).split()[0] == type(model).__name__


@pytest.mark.parametrize('name', ['bevdet-r50-4d-cbgs', 'bevdet-swinb-4d-stereo-256x704-cbgs-geomim'])
def test_published_checkpoints_load_strictly(name: str, manifest: Any) -> None:
    model = build(read(name))
    with torch.device('meta'):
        state = {key: torch.empty(shape) for key, shape in manifest(name).items()}
    loaded = model.load_state_dict(state, strict=True, assign=True)
    assert not loaded.missing_keys
    assert not loaded.unexpected_keys


@pytest.mark.parametrize('name', [*PUBLISHED, *TINY])
def test_every_part_is_registered(name: str) -> None:
    config = read(name)
    assert config.custom_imports.imports == ['geomim.bevdet']
    MODELS.build(config.model.data_preprocessor)
    for steps in pipelines(config):
        for step in steps:
            TRANSFORMS.build(step)
    for hook in [*config.default_hooks.values(), *config.custom_hooks]:
        HOOKS.build(hook)
    averaging = next(hook for hook in config.custom_hooks if hook.type == 'EMAHook')
    assert MODELS.get(averaging.ema_type) is not None
    for registry, kind in (
        (DATASETS, config.train_dataloader.dataset.type),
        (DATASETS, config.val_dataloader.dataset.type),
        (METRICS, config.val_evaluator.type),
        (OPTIM_WRAPPERS, config.optim_wrapper.type),
        (OPTIM_WRAPPER_CONSTRUCTORS, config.optim_wrapper.get('constructor', 'DefaultOptimWrapperConstructor')),
    ):
        assert registry.get(kind) is not None, kind


@pytest.mark.parametrize('name', [*PUBLISHED, *TINY])
def test_data_fit_the_model(name: str) -> None:
    config = read(name)
    model = build(config)
    size, frames = tuple(config.model.img_view_transformer.input_size), model.num_frames
    train = config.train_dataloader.dataset
    datasets = [train.get('dataset', train), config.val_dataloader.dataset, config.test_dataloader.dataset]
    offsets = []
    for steps, dataset, training in zip(pipelines(config), datasets, (True, False, False)):
        load, image_aug = of_type(steps, 'LoadSurroundFrames'), of_type(steps, 'SurroundFramesAug')
        assert load['num_frames'] == frames
        assert load['data_config'] == image_aug['data_config']
        assert tuple(image_aug['data_config']['input_size']) == size
        past = range(*dataset.multi_adj_frame_id_cfg) if dataset.multi_adj_frame_id_cfg else ()
        offsets.append(1 + len(past) + bool(dataset.get('stereo', False)))
        assert image_aug.get('training', True) == training
        # too few frames to learn every heading: the tiny detectors keep the BEV as it is
        assert of_type(steps, 'BEVDetBEVAug').get('training', True) == (training and name not in TINY)
        assert ('gt_labels_3d' in steps[-1]['keys']) == training
        assert dataset.test_mode != training
    assert offsets == [frames] * 3
    egos = {str(of_type(steps, 'BoxesToKeyEgo').get('ego_camera')) for steps in pipelines(config)}
    assert len(egos) == 1
    assert any(step['type'] == 'LoadPointsFromFile' for step in pipelines(config)[0]) == model.uses_depth_labels
    classes = [name for task in config.model.pts_bbox_head.tasks for name in task.class_names]
    assert classes == list(config.class_names) == list(config.val_dataloader.dataset.metainfo.classes)


@pytest.mark.parametrize('name', [*PUBLISHED, *TINY])
def test_heads_stand_on_the_raster_of_the_view_transformation(name: str) -> None:
    config = read(name)
    lower, upper, cell = config.model.img_view_transformer.grid_config.x
    train, test, coder = config.model.train_cfg.pts, config.model.test_cfg.pts, config.model.pts_bbox_head.bbox_coder
    for settings in (train, test, coder):
        assert settings.out_size_factor * settings.voxel_size[0] == pytest.approx(cell)
        assert settings.voxel_size[0] == settings.voxel_size[1]
    assert train.grid_size[0] / train.out_size_factor == pytest.approx((upper - lower) / cell)
    assert train.point_cloud_range[0] == coder.pc_range[0] == lower


# (epochs, weight decay, decay of the rate by layer, samples a GPU, epoch of SyncBN)
NUMBERS = {
    'bevdet-r50': (24, 1e-7, None, 8, None),
    'bevdet-r50-4d-cbgs': (20, 1e-2, None, 8, None),
    'bevdet-r50-4d-depth-cbgs': (20, 1e-2, None, 8, None),
    'bevdet-r50-4d-stereo-cbgs': (20, 1e-2, None, 8, None),
    'bevdet-r50-4dlongterm-depth-cbgs': (20, 1e-2, None, 8, None),
    'bevdet-swinb-4d-256x704-cbgs': (20, 1e-2, None, 4, None),
    'bevdet-swinb-4d-256x704-cbgs-geomim': (20, 0.05, 0.8, 4, None),
    'bevdet-swinb-4d-stereo-256x704-cbgs-geomim': (20, 0.05, 0.85, 4, 2),
    'bevdet-swinb-4d-stereo-512x1408-cbgs-geomim': (20, 0.05, 0.85, 2, 2),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_recipes_have_the_published_numbers(name: str) -> None:
    config = read(name)
    epochs, weight_decay, layer_decay, batch, sync_bn = NUMBERS[name]
    wrapper, hooks = config.optim_wrapper, {hook.type: hook for hook in config.custom_hooks}
    assert (config.train_cfg.max_epochs, wrapper.optimizer.weight_decay) == (epochs, weight_decay)
    assert wrapper.optimizer.lr == 2e-4
    assert wrapper.clip_grad.max_norm == 5
    assert wrapper.get('paramwise_cfg', {}).get('decay_rate') == layer_decay
    assert config.train_dataloader.batch_size == batch
    assert (config.train_dataloader.dataset.type == 'BEVDetCBGSDataset') == (name != 'bevdet-r50')
    assert (hooks['EMAHook'].decay, hooks['EMAHook'].init_updates) == (0.999, 10560)
    assert hooks.get('SequentialControlHook', {}).get('begin_epoch') == (None if name == 'bevdet-r50' else 3)
    assert hooks.get('SyncBNControlHook', {}).get('begin_epoch') == sync_bn
    warm_up = config.param_scheduler[0]
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (0.001, 200, False)
    if 'swinb' in name:
        backbone = config.model.img_backbone
        assert tuple(backbone.window_size) == (16, 16, 16, 8)
        assert backbone.drop_path_rate == (0.2 if 'geomim' in name else 0.1)


def test_tiny_detectors_take_the_encoder_of_the_tiny_pretraining() -> None:
    pretraining = Config.fromfile(
        REPOSITORY / 'configs' / 'mmdet3d' / 'pretrain' / 'geomim_tiny_synthetic.py', import_custom_modules=False
    )
    encoder = pretraining.model.student.encoder
    for name in TINY:
        config = read(name)
        backbone = config.model.img_backbone
        assert all(tuple(backbone[key]) == tuple(encoder[key]) for key in ('depths', 'num_heads', 'window_size'))
        assert backbone.embed_dims == encoder.embed_dims
        assert tuple(config.model.img_view_transformer.input_size) == tuple(pretraining.image_size)
        assert config.model.data_preprocessor.bgr_to_rgb
        assert sum(parameter.numel() for parameter in build(config).parameters()) < 4e6


@pytest.mark.parametrize('name', TINY)
def test_tiny_detectors_train_and_detect_on_a_synthetic_world(name: str, bevdet_world: Path) -> None:
    config = read(name)
    config.model.img_backbone.init_cfg = None
    model = MODELS.build(config.model)
    model.init_weights()
    batches = {}
    for split, dataset in (('train', config.train_dataloader.dataset), ('val', config.val_dataloader.dataset)):
        dataset.update(data_root=f'{bevdet_world}/')
        dataset.metainfo.update(version='v1.0-trainval')
        batches[split] = pseudo_collate([DATASETS.build(dataset)[1]])
    before = {key: value.clone() for key, value in model.named_parameters()}
    losses = model.train_step(batches['train'], build_optim_wrapper(model, config.optim_wrapper))
    assert all(torch.isfinite(value).all() for value in losses.values())
    assert {'loss_depth', 'task0.loss_heatmap', 'task0.loss_vel'} <= set(losses)
    still = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert not still, still
    (sample,) = model.eval().val_step(batches['val'])
    found = sample.pred_instances_3d
    assert found.bboxes_3d.tensor.shape == (len(found.scores_3d), 9)
    assert sample.metainfo['lidar2key_ego'].shape == (4, 4)
