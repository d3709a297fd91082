"""The configs of docs/bevdet.md inside real checkouts, through their own tools/train.py: pretraining, resuming, exporting, finetuning.

GEOMIM_BEVDET_CHECKOUT and GEOMIM_FLASHOCC_CHECKOUT name the checkouts' roots, of which nothing is changed. GEOMIM_BEVDET_DATA may
name a nuScenes root (v1.0-mini or v1.0-trainval); otherwise a small synthetic world is made.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple

import mmdet3d
import pytest
import torch

from geomim.checkpoints.loading import load_encoder
from geomim.method.config import config_from_dict
from geomim.method.swin import SwinEncoder

ROOT = Path(__file__).resolve().parents[2]
PATH_IN_DOCS = '/path/to/geomim/'
TRIAL = """
_base_ = './{base}.py'
data = dict(samples_per_gpu=1, workers_per_gpu=0)
log_config = dict(interval=1, hooks=[dict(type='TextLoggerHook')])
checkpoint_config = dict(interval=1)
"""


class Checkout(NamedTuple):
    """A folder of links to a checkout and to data, which may be written to."""

    name: str
    root: Path
    configs: str  # where the page puts its configs

    def run(self, script: str, *arguments: str) -> str:
        """What a script of the checkout prints."""
        command = [sys.executable, str(ROOT / 'tests' / 'plugin' / 'in_checkout.py'), script, *arguments]
        environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
        environment.update(PYTHONPATH=str(self.root), PYTHONWARNINGS='ignore', OMP_NUM_THREADS='1')
        done = subprocess.run(
            command, cwd=str(self.root), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    def train(self, config: str, work_dir: str, *arguments: str) -> Path:
        """tools/train.py over a config of the page; returns its working directory."""
        self.run('tools/train.py', f'{self.configs}/{config}.py', '--work-dir', work_dir, *arguments)
        return self.root / work_dir

    def write(self, config: str, text: str) -> None:
        folder = self.root / self.configs
        folder.mkdir(exist_ok=True)
        (folder / f'{config}.py').write_text(text)


def block_of_docs(name: str, page: str = 'bevdet.md') -> str:
    """The block of a page that is the config ``name``, with this repository's path in it."""
    text = (ROOT / 'docs' / page).read_text()
    found = [block for block in re.findall(r'```python\n(.*?)```', text, re.DOTALL) if block.startswith(f'# {name}\n')]
    assert len(found) == 1, name
    return found[0].replace(PATH_IN_DOCS, f'{ROOT}/')


def link_children(source: Path, target: Path) -> None:
    """A real folder ``target`` with links to everything in ``source``."""
    target.mkdir(parents=True)
    for entry in source.iterdir():
        (target / entry.name).symlink_to(entry.resolve())


@pytest.fixture(scope='module')
def nuscenes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.environ.get('GEOMIM_BEVDET_DATA'):
        return Path(os.environ['GEOMIM_BEVDET_DATA'])
    world = tmp_path_factory.mktemp('data') / 'world'
    command = [sys.executable, '-m', 'geomim', 'synthesize', str(world), '--scenes', '2+1', '--frames', '1']
    command += ['--image-size', '225', '400', '--workers', '1', '--no-infos']
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    return world


@pytest.fixture(scope='module')
def checkout_of(nuscenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkout]:
    """By a codebase's name: its folder with info files, made by its own script."""
    made: Dict[str, Checkout] = {}

    def find(name: str) -> Checkout:
        variable = f'GEOMIM_{name.upper()}_CHECKOUT'
        if not os.environ.get(variable):
            pytest.skip(f'set {variable} to the root of a checkout')
        if name not in made:
            made[name] = prepare(
                name, Path(os.environ[variable]), nuscenes_root, tmp_path_factory.mktemp(name) / 'root'
            )
        return made[name]

    return find


def prepare(name: str, source: Path, data: Path, root: Path) -> Checkout:
    root.mkdir(parents=True)
    configs = 'projects/configs' if name == 'flashocc' else 'configs'
    for entry in source.iterdir():
        if entry.name not in ('data', 'configs', 'projects', 'work_dirs', '.git'):
            (root / entry.name).symlink_to(entry.resolve())
    if name == 'flashocc':
        link_children(source / 'projects', root / 'projects')
        (root / configs).unlink()
        if not (root / 'mmdetection3d').exists():
            (root / 'mmdetection3d').symlink_to(Path(mmdet3d.__file__).parent / '.mim')
    link_children(source / configs, root / configs)
    link_children(data, root / 'data' / 'nuscenes')
    tables = root / 'data' / 'nuscenes' / 'v1.0-trainval'  # the name in the checkout's script
    if not tables.exists():
        tables.symlink_to(data.resolve() / 'v1.0-mini')
    checkout = Checkout(name, root, f'{configs}/geomim')
    checkout.run('tools/create_data_bevdet.py')
    return checkout


@pytest.fixture(scope='module')
def pretrained(checkout_of: Callable[[str], Checkout]) -> Callable[[str], Path]:
    """By a codebase's name: the working directory of two epochs of pretraining, with the page's config at trial size."""
    done: Dict[str, Path] = {}

    def run(name: str) -> Path:
        checkout = checkout_of(name)
        if name not in done:
            text = block_of_docs(f'{checkout.configs}/pretrain.py').replace('pretrain_swin-b.py', 'pretrain_tiny.py')
            checkout.write('pretrain', text)
            checkout.write('trial', TRIAL.format(base='pretrain') + AVERAGED)
            done[name] = checkout.train('trial', 'work/whole')
        return done[name]

    return run


AVERAGED = """
runner = dict(max_epochs=2)
custom_hooks = [
    dict(type='GeoMIMSeedHook'),
    dict(type='MEGVIIEMAHook', init_updates=100),
    dict(type='GeoMIMTeacherGuardHook', interval=1),
    dict(type='GeoMIMEncoderExportHook'),
]
"""


def log_of(work_dir: Path) -> List[Dict[str, Any]]:
    """The logged iterations."""
    lines = next(work_dir.glob('*.log.json')).read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry.get('mode') == 'train']


FORKS = pytest.mark.parametrize('name', ['bevdet', 'flashocc'])


@FORKS
def test_documented_lines_pretrain_and_export(name: str, pretrained: Callable[[str], Path]) -> None:
    work_dir = pretrained(name)
    log = log_of(work_dir)
    assert len(log) >= 3
    assert all(0.0 < entry[loss] < 10.0 for entry in log for loss in ('loss_reconstruction', 'loss_depth'))
    state = torch.load(work_dir / 'epoch_2.pth', map_location='cpu')['state_dict']
    assert {key.partition('.')[0] for key in state} == {'student'}
    first = torch.load(work_dir / 'epoch_1.pth', map_location='cpu')['state_dict']
    assert any(not torch.equal(value, first[key]) for key, value in state.items())
    sizes = dict(embed_dims=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window_size=(8, 8, 8, 4))
    encoder = SwinEncoder(config_from_dict(dict(encoder=sizes)).encoder)
    report = load_encoder(encoder, work_dir / 'encoder_bevdet.pth')
    assert not report.missing
    exported = encoder.state_dict()
    assert all(torch.equal(value, state[f'student.encoder.{key}']) for key, value in exported.items())


@FORKS
def test_resumed_run_is_the_unbroken_one(
    name: str, checkout_of: Callable[[str], Checkout], pretrained: Callable[[str], Path]
) -> None:
    whole = pretrained(name)
    resumed = checkout_of(name).train('trial', 'work/resumed', '--resume-from', str(whole / 'epoch_1.pth'))
    assert not (resumed / 'epoch_1.pth').exists()
    ours, theirs = (torch.load(folder / 'epoch_2.pth', map_location='cpu') for folder in (resumed, whole))
    assert ours['meta']['iter'] == theirs['meta']['iter']
    assert ours['state_dict'].keys() == theirs['state_dict'].keys()
    assert all(torch.equal(value, theirs['state_dict'][key]) for key, value in ours['state_dict'].items())


def test_two_plugins_side_by_side_the_other_way_round(
    checkout_of: Callable[[str], Checkout], pretrained: Callable[[str], Path]
) -> None:
    checkout, whole = checkout_of('flashocc'), pretrained('flashocc')
    swapped = (
        "plugin_dir = 'geomim/plugin/'\n"
        "custom_imports = dict(imports=['projects.mmdet3d_plugin'], allow_failed_imports=False)\n"
    )
    checkout.write('swapped', TRIAL.format(base='trial') + swapped + 'runner = dict(max_epochs=2)\n')
    again = checkout.train('swapped', 'work/swapped')
    ours, theirs = (torch.load(folder / 'epoch_2.pth', map_location='cpu') for folder in (again, whole))
    assert all(torch.equal(value, theirs['state_dict'][key]) for key, value in ours['state_dict'].items())


@FORKS
def test_documented_lines_finetune(
    name: str, checkout_of: Callable[[str], Checkout], pretrained: Callable[[str], Path]
) -> None:
    checkout, encoder = checkout_of(name), pretrained(name) / 'encoder_bevdet.pth'
    if name == 'flashocc' and not (checkout.root / 'data' / 'nuscenes' / 'gts').exists():
        pytest.skip('the data has no occupancy labels')
    text = block_of_docs(f'{checkout.configs}/finetune.py').replace('[512, 1024]', '[128, 256]')
    # a class that does not occur ends class-balanced sampling with a division by zero
    checkout.write('finetune', text.replace('bevdet-r50-4d-cbgs.py', 'bevdet-r50.py'))
    small = f"""
runner = dict(max_epochs=1)
model = dict(img_backbone=dict(embed_dims=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window_size=(8, 8, 8, 4),
                               init_cfg=dict(checkpoint={str(encoder)!r})))
"""
    checkout.write('small', TRIAL.format(base='finetune') + small)
    work_dir = checkout.train('small', 'work/finetuned')
    log = log_of(work_dir)
    assert len(log) >= 2
    assert all(torch.isfinite(torch.tensor(entry['loss'])) for entry in log)
    text = next(path for path in work_dir.glob('*.log') if path.suffix == '.log').read_text()
    assert re.search(r'GeoMIMSwin: .*\d+ tensors taken', text)
    assert 'GeoMIMLayerDecayOptimizerConstructor' in text


@FORKS
def test_documented_full_size_recipe_builds(name: str, checkout_of: Callable[[str], Checkout], tmp_path: Path) -> None:
    checkout = checkout_of(name)
    checkout.write('full', block_of_docs(f'{checkout.configs}/pretrain.py'))
    script = tmp_path / 'build.py'
    script.write_text(BUILD.format(config=f'{checkout.configs}/full.py', own_plugin=name == 'flashocc'))
    found = json.loads(checkout.run(str(script)).splitlines()[-1])
    assert found['images'] == [6, 3, 256, 704]
    assert found['keys'] == ['img_inputs', 'img_metas', 'lidar2key', 'points']
    assert 140e6 < found['parameters'] < 155e6
    assert found['map'] == [256, [180, 180]]


@FORKS
def test_the_codebases_own_resnet_pretrains_and_starts_its_detector(
    name: str, checkout_of: Callable[[str], Checkout], pretrained: Callable[[str], Path]
) -> None:
    """The page's lines; the export fills the codebase's class by its own loader, which then gives the student's features."""
    from mmcv.runner import load_checkpoint
    from mmdet3d.models.builder import build_backbone

    checkout, _ = checkout_of(name), pretrained(name)
    text = block_of_docs('configs/geomim/pretrain_r50.py', 'your_backbone.md')
    small = text.replace('depth=50', 'depth=18').replace("pretrained='torchvision://resnet50'", 'base_channels=16')
    checkout.write('pretrain_r50', small.replace('./pretrain.py', './trial.py') + 'runner = dict(max_epochs=1)\n')
    work_dir = checkout.train('pretrain_r50', 'work/resnet')
    state = torch.load(work_dir / 'epoch_1.pth', map_location='cpu')['state_dict']
    backbone = build_backbone(dict(type='ResNet', depth=18, base_channels=16, out_indices=(2, 3)))
    load_checkpoint(backbone, str(work_dir / 'encoder_resnet.pth'), strict=True)
    inside = 'student.encoder.backbone.'
    own = {key[len(inside) :]: value for key, value in state.items() if key.startswith(inside)}
    assert own.keys() == backbone.state_dict().keys()
    assert all(torch.equal(value, own[key]) for key, value in backbone.state_dict().items())
    if name == 'bevdet':
        detector = block_of_docs('configs/geomim/finetune_r50.py', 'your_backbone.md')
        detector = detector.replace('work_dirs/pretrain_r50', str(work_dir))
        sizes = 'runner = dict(max_epochs=1)\nmodel = dict(img_backbone=dict(depth=18, base_channels=16), '
        checkout.write('finetune_r50', detector)
        checkout.write(
            'small_r50', TRIAL.format(base='finetune_r50') + sizes + 'img_neck=dict(in_channels=[64, 128]))\n'
        )
        finetuned = checkout.train('small_r50', 'work/finetuned_resnet')
        text = next(path for path in finetuned.glob('*.log') if path.suffix == '.log').read_text()
        assert 'encoder_resnet.pth' in text
        assert 'unexpected key' not in text
        assert len(log_of(finetuned)) >= 2


BUILD = """
import importlib, json, os
from mmcv import Config
from mmdet3d.datasets import build_dataset
from mmdet3d.models import build_model
config = Config.fromfile({config!r})
if {own_plugin}:
    importlib.import_module(config.plugin_dir.strip('/').replace('/', '.'))
config.model.init_from = config.model.teacher.checkpoint = None
if not os.path.exists(config.model.teacher.detector):
    config.model.teacher.detector = 'mmdetection3d/' + config.model.teacher.detector
model = build_model(config.model)
sample = build_dataset(config.data.train)[0]
record = model.teacher.record
print(json.dumps(dict(
    images=list(sample['img_inputs'][0].shape), keys=sorted(sample),
    parameters=sum(p.numel() for p in model.parameters()), map=[record.channels, list(record.grid.shape)])))
"""


@FORKS
def test_points_and_cameras_meet_through_the_real_steps(
    name: str, checkout_of: Callable[[str], Checkout], tmp_path: Path
) -> None:
    """The fork's loaders, augmentation and depth; moved points, a translation and UTM poses are put between them."""
    checkout = checkout_of(name)
    checkout.write(
        'tiny', block_of_docs(f'{checkout.configs}/pretrain.py').replace('pretrain_swin-b.py', 'pretrain_tiny.py')
    )
    script = tmp_path / 'steps.py'
    script.write_text(STEPS.format(config=f'{checkout.configs}/tiny.py', own_plugin=name == 'flashocc'))
    found = json.loads(checkout.run(str(script)).splitlines()[-1])
    assert found.keys() == {'as documented', 'moved before', 'UTM', 'UTM, moved before'}
    usual = found['as documented']
    for case, values in found.items():
        assert values['shown'] > 0.95, case  # a pixel's border is nowhere exact
        torch.testing.assert_close(*(torch.tensor(one['cam2bev']) for one in (values, usual)), atol=1e-4, rtol=0)
        torch.testing.assert_close(*(torch.tensor(one['points']) for one in (values, usual)), atol=1e-3, rtol=0)
        assert values['warned'] == case.startswith('UTM'), case


STEPS = """
import copy, importlib, json, warnings
import numpy as np
import torch
from mmcv import Config
from mmdet3d.datasets import build_dataset
from mmdet3d.datasets.builder import PIPELINES
from geomim.method.depth import project_points
from geomim.plugin.rig import read_img_inputs
config = Config.fromfile({config!r})
if {own_plugin}:
    importlib.import_module(config.plugin_dir.strip('/').replace('/', '.'))
dataset = build_dataset(config.data.train)
steps = {{type(step).__name__: step for step in dataset.pipeline.transforms}}
images, annotate, load, sweeps, frame = list(steps.values())[:5]
assert type(frame).__name__ == 'GeoMIMLidarFrame'
annotate.bda_aug_conf = dict(rot_lim=(20.0, 20.0), scale_lim=(1.05, 1.05), flip_dx_ratio=1.0, flip_dy_ratio=0.0)
project = PIPELINES.build(dict(type='PointToMultiViewDepth', downsample=1, grid_config=dict(depth=[1.0, 60.0, 1.0])))


def shift(results):
    bda = torch.eye(4)
    bda[:3, :3], bda[:3, 3] = results['img_inputs'][6], torch.tensor([0.5, -0.4, 0.2])
    return dict(results, img_inputs=(*results['img_inputs'][:6], bda))


def move(results):
    points, bda = results['points'].tensor, results['img_inputs'][6]
    points[:, :3] = points[:, :3] @ bda[:3, :3].T + bda[:3, 3]
    return results


def far(info):
    for view in (info, *info['cams'].values()):
        view['ego2global_translation'] = [a + b for a, b in zip(view['ego2global_translation'], (5e5, 4.6e6, 0.0))]


def run(*order, utm=False):
    np.random.seed(0)
    results = copy.deepcopy(dataset.get_data_info(0))
    results['curr'] = copy.deepcopy(results['curr'])
    if utm:
        far(results['curr'])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for step in (*order, frame):
            results = step(results)
    warned = [str(one.message) for one in caught if 'GeoMIMLidarFrame' in str(one.message)]
    assert all('gt_depth' in text for text in warned), warned
    return results, bool(warned)


def figures(results, warned, depth):
    rig = read_img_inputs([entry[None] for entry in results['img_inputs']], results['lidar2key'][None], 6).rig
    points = results['points'].tensor
    uv, distance = project_points(points, rig, 0)
    column, row = uv.round().long().unbind(-1)
    held = (column >= 0) & (column < depth.shape[2]) & (row >= 0) & (row < depth.shape[1])
    held &= (distance >= 1.1) & (distance < 59.9)
    found = depth[torch.arange(6)[:, None].expand_as(row)[held], row[held], column[held]]
    shown = (found > 0) & (found < distance[held] + 0.1)
    return dict(
        shown=float(shown.float().mean()), cam2bev=rig.cam2bev.tolist(), points=points[:50, :3].tolist(), warned=warned
    )


documented = (images, annotate, shift, load, sweeps, project)
moving = (load, sweeps, images, annotate, shift, project, move)
results, warned = run(*documented)
depth = results['gt_depth']
print(json.dumps({{
    'as documented': figures(results, warned, depth),
    'moved before': figures(*run(*moving), depth),
    'UTM': figures(*run(*documented, utm=True), depth),
    'UTM, moved before': figures(*run(*moving, utm=True), depth),
}}))
"""
