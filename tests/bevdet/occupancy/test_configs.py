"""Occupancy configurations: models have the published names and shapes, data fit them, recipes have the published numbers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
import torch

pytest.importorskip('mmdet3d')

from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    TRANSFORMS,
    DefaultScope,
)
from mmengine.runner.checkpoint import load_checkpoint

from geomim.__main__ import main
from geomim.bevdet.inference.detect import DetectionRequest, read_config
from geomim.checkpoints.detector_layouts import describe_detector, to_bevdet, to_mmdet3d
from geomim.checkpoints.detector_loading import load_detector
from geomim.checkpoints.loading import read_checkpoint, save_atomically
from geomim.checkpoints.position_bias import resize_windows
from geomim.method.windows import relative_position_index
from geomim.proofs.bevdet_configs import translate_model

FOLDER = Path(__file__).resolve().parents[3] / 'configs' / 'mmdet3d' / 'occupancy'
R50 = 'bevdet-occ-r50-4d-stereo-24e'
SWIN_B, SWIN_L = (f'bevdet-occ-swin{size}-4d-stereo-512x1408-24e-geomim' for size in 'bl')
LOAD = f'{SWIN_B}-load'
PUBLISHED = (R50, SWIN_B, SWIN_L)
TINY = 'bevstereo4docc_tiny_synthetic'
FILES = (*PUBLISHED, LOAD, TINY)
DETECTION = 'bevdet-swinb-4d-stereo-512x1408-cbgs-geomim'


@pytest.fixture(autouse=True, scope='module')
def _scope() -> Iterator[None]:
    importlib.import_module('geomim.bevdet')
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        yield


def read(name: str, folder: Path = FOLDER) -> Config:
    return Config.fromfile(folder / f'{name}.py', import_custom_modules=False)


def build(model: Any, device: str = 'meta') -> BaseModel:
    with torch.device(device):
        return MODELS.build({key: value for key, value in model.items() if key != 'data_preprocessor'})


def shapes(state: Dict[str, torch.Tensor]) -> Dict[str, Tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def pipelines(config: Config) -> List[List[Dict[str, Any]]]:
    return [config[f'{part}_dataloader'].dataset.pipeline for part in ('train', 'val', 'test')]


def of_type(pipeline: List[Dict[str, Any]], kind: str) -> Dict[str, Any]:
    (found,) = [step for step in pipeline if step['type'] == kind]
    return found


def in_bevdets_words(name: str) -> Dict[str, Any]:
    """The published file's model, from the few numbers in which the files differ."""
    swin = name != R50
    width = {R50: 0, SWIN_B: 128, SWIN_L: 192}[name]
    image, lifted = (
        (dict(input_size=(512, 1408), in_channels=512) if swin else dict(input_size=(256, 704), in_channels=256)),
        32,
    )
    backbone: Dict[str, Any] = dict(
        type='ResNet', depth=50, num_stages=4, out_indices=(0, 2, 3), frozen_stages=-1, norm_eval=False, with_cp=True,
        norm_cfg=dict(type='BN', requires_grad=True), style='pytorch',
    )  # fmt: skip
    neck: Dict[str, Any] = dict(
        type='CustomFPN', in_channels=[1024, 2048], out_channels=256, num_outs=1, start_level=0, out_ids=[0]
    )
    if swin:
        backbone = dict(
            type='SwinTransformerBEVFT', with_cp=[2, 2, 0, 0] if width == 192 else False, convert_weights=False,
            depths=[2, 2, 18, 2], drop_path_rate=0.25, embed_dims=width, num_heads=[width // 32 * 2**i for i in range(4)],
            out_indices=[2, 3], patch_norm=True, window_size=[16] * 4, use_abs_pos_embed=True, return_stereo_feat=True,
            output_missing_index_as_none=False,
        )  # fmt: skip
        neck = dict(
            type='FPN_LSS', in_channels=width * 12, out_channels=512, extra_upsample=None, input_feature_index=(0, 1),
            scale_factor=2,
        )  # fmt: skip
    stack = dict(type='CustomResNet3D', with_cp=False)
    return dict(
        type='BEVStereo4DOCC',
        align_after_view_transfromation=False,
        num_adj=1,
        img_backbone=backbone,
        img_neck=neck,
        img_view_transformer=dict(
            type='LSSViewTransformerBEVStereo', out_channels=lifted, sid=False, collapse_z=False, loss_depth_weight=0.05,
            grid_config=dict(x=[-40, 40, 0.4], y=[-40, 40, 0.4], z=[-1, 5.4, 0.4], depth=[1.0, 45.0, 0.5]), downsample=16,
            depthnet_cfg=dict(use_dcn=False, aspp_mid_channels=96, stereo=True, bias=5.0), **image,
        ),
        img_bev_encoder_backbone=dict(
            stack, numC_input=lifted * 2, num_layer=[1, 2, 4], num_channels=[lifted, lifted * 2, lifted * 4],
            stride=[1, 2, 2], backbone_output_ids=[0, 1, 2],
        ),
        img_bev_encoder_neck=dict(type='LSSFPN3D', in_channels=lifted * 7, out_channels=lifted),
        pre_process=dict(
            stack, numC_input=lifted, num_layer=[1], num_channels=[lifted], stride=[1], backbone_output_ids=[0]
        ),
        loss_occ=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        use_mask=True,
    )  # fmt: skip


def test_every_file_is_known_here() -> None:
    assert sorted(path.stem for path in FOLDER.glob('*.py')) == sorted(FILES)


@pytest.mark.parametrize('name', [*PUBLISHED, LOAD])
def test_models_have_the_published_names_and_shapes(name: str, manifest: Any) -> None:
    expected = manifest(SWIN_B if name == LOAD else name)
    model = build(read(name).model)
    assert shapes(to_bevdet(dict(model.state_dict()))) == expected
    assert describe_detector(expected).split()[0] == type(model).__name__ == 'BEVStereo4DOCC'


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_files_build_to_the_same_models(name: str, manifest: Any) -> None:
    translated = build(translate_model(in_bevdets_words(name)))
    assert shapes(to_bevdet(dict(translated.state_dict()))) == manifest(name)
    ours = build(read(name).model)
    for part in ('use_mask', 'num_classes', 'num_adj', 'align_after_view_transfromation'):
        assert getattr(ours, part) == getattr(translated, part), part
    one, other = ours.img_view_transformer, translated.img_view_transformer
    assert one.grid == other.grid
    assert one.depth_bins == other.depth_bins
    for part in ('input_size', 'loss_depth_weight', 'collapse_z'):
        assert getattr(one, part) == getattr(other, part), part
    assert one.depth_net.bias == other.depth_net.bias
    assert vars(ours.loss_occ) == vars(translated.loss_occ)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_checkpoints_load_strictly(name: str, manifest: Any) -> None:
    with torch.device('meta'):
        state = {
            key: relative_position_index(int(shape[0] ** 0.5))
            if key.endswith('relative_position_index')
            else torch.empty(shape)
            for key, shape in manifest(name).items()
        }
    model = build(read(name).model)
    loaded = model.load_state_dict(to_mmdet3d(state), strict=True, assign=True)
    assert not loaded.missing_keys
    assert not loaded.unexpected_keys


@pytest.mark.parametrize('name', FILES)
def test_every_part_is_registered(name: str) -> None:
    config = read(name)
    assert config.custom_imports.imports == ['geomim.bevdet']
    MODELS.build(config.model.data_preprocessor)
    for steps in pipelines(config):
        for step in steps:
            TRANSFORMS.build(step)
    for hook in [*config.default_hooks.values(), *config.custom_hooks]:
        HOOKS.build(hook)
    METRICS.build(config.val_evaluator)
    assert config.test_evaluator == config.val_evaluator
    for registry, kind in (
        (DATASETS, config.train_dataloader.dataset.type),
        (OPTIM_WRAPPERS, config.optim_wrapper.type),
        (OPTIM_WRAPPER_CONSTRUCTORS, config.optim_wrapper.get('constructor', 'DefaultOptimWrapperConstructor')),
    ):
        assert registry.get(kind) is not None, kind


@pytest.mark.parametrize('name', FILES)
def test_data_fit_the_model(name: str) -> None:
    config = read(name)
    model = build(config.model)
    for steps, part in zip(pipelines(config), ('train', 'val', 'test')):
        dataset, training = config[f'{part}_dataloader'].dataset, part == 'train'
        load, image_aug = of_type(steps, 'LoadSurroundFrames'), of_type(steps, 'SurroundFramesAug')
        assert load['num_frames'] == model.num_frames == 3
        assert (tuple(dataset.multi_adj_frame_id_cfg), dataset.stereo) == ((1, 2, 1), True)
        assert load['data_config'] == image_aug['data_config']
        assert tuple(image_aug['data_config']['input_size']) == model.img_view_transformer.input_size
        assert image_aug.get('training', True) == training
        assert of_type(steps, 'BEVDetBEVAug').get('training', True) == (training and name != TINY)
        labels = TRANSFORMS.build(of_type(steps, 'LoadOccupancyLabels'))
        assert tuple(labels.voxels) == tuple(model.voxels)
        assert labels.stored_voxels == (200, 200, 16)
        assert any(step['type'] == 'GridToLidarEgo' for step in steps) == (name == TINY)
        assert dataset.data_prefix.occupancy == 'gts'
        assert dataset.test_mode != training
    assert config.train_dataloader.dataset.filter_empty_gt is False
    bins = model.img_view_transformer.depth_bins
    assert tuple(of_type(pipelines(config)[0], 'KeyFrameDepthMaps')['depth_range']) == (bins.lower, bins.upper)
    grid = model.img_view_transformer.grid
    assert [grid.x_bound[:2], grid.y_bound[:2], grid.z_bound[:2]] == [(-40, 40), (-40, 40), (-1, 5.4)]
    if name != TINY:
        aug = TRANSFORMS.build(of_type(pipelines(config)[0], 'BEVDetBEVAug')).config
        assert (aug.rot_lim, aug.scale_lim, aug.flip_dx_ratio, aug.flip_dy_ratio) == ((0, 0), (1, 1), 0.5, 0.5)


# (epochs, learning rate, weight decay, decay of the rate by layer, samples a GPU, epoch of SyncBN, drop path, detector to start from)
NUMBERS = {
    R50: (100, 1e-4, 1e-2, None, 4, None, None, True),
    SWIN_B: (100, 2e-4, 0.05, 0.85, 2, 0, 0.25, False),
    LOAD: (100, 2e-4, 0.05, 0.85, 2, 0, 0.25, True),
    SWIN_L: (75, 2e-4, 0.05, 0.85, 2, 0, 0.35, False),
}


@pytest.mark.parametrize('name', list(NUMBERS))
def test_recipes_have_the_published_numbers(name: str) -> None:
    config = read(name)
    epochs, rate, weight_decay, layer_decay, batch, sync_bn, drop_path, load_from = NUMBERS[name]
    wrapper, hooks = config.optim_wrapper, {hook.type: hook for hook in config.custom_hooks}
    assert config.train_cfg.max_epochs == epochs
    assert (wrapper.optimizer.lr, wrapper.optimizer.weight_decay) == (rate, weight_decay)
    assert wrapper.clip_grad.max_norm == 5
    assert wrapper.get('paramwise_cfg', {}).get('decay_rate') == layer_decay
    assert config.train_dataloader.batch_size == batch
    assert (hooks['EMAHook'].decay, hooks['EMAHook'].init_updates) == (0.999, 10560)
    assert hooks.get('SyncBNControlHook', {}).get('begin_epoch') == sync_bn
    assert 'SequentialControlHook' not in hooks
    assert config.model.img_backbone.get('drop_path_rate') == drop_path
    assert (config.load_from is not None) == load_from
    assert config.val_evaluator.mask == 'camera'
    warm_up, step = config.param_scheduler
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (0.001, 200, False)
    assert step.milestones == [epochs]
    if layer_decay:
        assert tuple(config.model.img_backbone.window_size) == (16, 16, 16, 16)


def test_a_detector_lends_its_whole_image_network(manifest: Any) -> None:
    """What `load_from` takes over at full size: by name and shape, once the windows are resized."""
    published = manifest(DETECTION)
    tables = {key: torch.zeros(shape) for key, shape in published.items() if key.endswith('bias_table')}
    resized, changed = resize_windows(tables, [16, 16, 16, 16], 'img_backbone.')
    published.update(shapes(resized))
    ours = shapes(dict(build(read(LOAD).model).state_dict()))
    taken = {name for name, shape in ours.items() if published.get(name) == shape}
    image = {name for name in ours if name.startswith(('img_backbone.', 'img_neck.'))}
    assert changed == 2
    assert image <= taken
    assert {name for name in ours if name.startswith('img_view_transformer.depth_net.reduce_conv.')} <= taken
    assert not any(name.startswith(('final_conv.', 'predicter.', 'img_bev_encoder')) for name in taken)


def test_a_tiny_detector_starts_an_occupancy_network(tmp_path: Path) -> None:
    detector = build(read('bevstereo4d_tiny_synthetic', FOLDER.parent / 'finetune').model, 'cpu')
    path = save_atomically({'state_dict': dict(detector.state_dict())}, tmp_path / 'detector.pth')
    config = read(TINY)
    model = build(config.model, 'cpu')
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_checkpoint(model, str(path), map_location='cpu')
    given = dict(detector.state_dict())
    image = [name for name in before if name.startswith(('img_backbone.', 'img_neck.'))]
    assert len(image) > 80
    for name, value in model.state_dict().items():
        fits = name in given and given[name].shape == value.shape
        assert fits or name not in image, name
        assert torch.equal(value, given[name] if fits else before[name]), name


def test_a_published_checkpoint_is_converted_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture, randomise_parameters: Any
) -> None:
    """A small one of the published layout, window indices included, into ours and back; strictly into a network."""
    model, other = (build(read(TINY).model, 'cpu') for _ in range(2))
    randomise_parameters(model)
    state = to_bevdet(dict(model.state_dict()))
    published = save_atomically({'state_dict': state}, tmp_path / 'published.pth')
    ours, back = tmp_path / 'ours.pth', tmp_path / 'back.pth'
    assert main(['convert', str(published), str(ours), '--from', 'bevdet', '--to', 'mmdet3d']) == 0
    assert 'whole detector: BEVStereo4DOCC on a Swin of GeoMIM' in capsys.readouterr().out
    assert load_detector(other, ours) == 'BEVStereo4DOCC on a Swin of GeoMIM'
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert main(['convert', str(ours), str(back), '--to', 'bevdet']) == 0
    returned = read_checkpoint(back)['state_dict']
    assert returned.keys() == state.keys()
    assert all(torch.equal(returned[name], value) for name, value in state.items())


def test_detect_refuses_what_has_no_boxes(tmp_path: Path) -> None:
    request = DetectionRequest(
        config=FOLDER / f'{TINY}.py', checkpoint=tmp_path / 'none.pth', data=tmp_path, out=tmp_path / 'out'
    )
    with pytest.raises(ValueError, match=f'{TINY}.py: a BEVStereo4DOCC without pts_bbox_head has no boxes to detect'):
        read_config(request)


def test_the_tiny_network_takes_the_encoder_of_the_tiny_pretraining() -> None:
    config, detection = read(TINY), read('bevstereo4d_tiny_synthetic', FOLDER.parent / 'finetune')
    assert config.model.img_backbone == detection.model.img_backbone
    assert config.model.data_preprocessor.bgr_to_rgb
    assert sum(parameter.numel() for parameter in build(config.model).parameters()) < 2.5e6
