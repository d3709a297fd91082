"""Backbones of the host and of timm, pretrained by the real Runner: what comes out fills the unchanged class."""

from __future__ import annotations

import json
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict

import pytest
import torch

pytest.importorskip('mmdet3d')

from mmengine.config import Config

from geomim import CameraRig, GeoMIM
from geomim.adapter.encoders import student_config
from geomim.method.masking import complementary_masks, resize_masks

from ..helpers import assert_same_tensors, let_timm_import, run_quietly
from .micro import CONFIGS, micro_config

HERE = Path(__file__).resolve().parent
ENCODERS: Dict[str, Dict[str, Any]] = {
    'resnet18': dict(type='mmdet.ResNet', depth=18, out_indices=(2, 3)),
    'resnet50': dict(type='mmdet.ResNet', depth=50, out_indices=(2, 3), norm_eval=False),
    'convnext': dict(type='timm', name='convnext_tiny'),
    'vit': dict(type='timm', name='vit_small_patch16_224'),
}
LONG = [pytest.param(name, marks=pytest.mark.long) for name in ('resnet50', 'convnext', 'vit')]


@pytest.fixture(autouse=True, scope='module')
def registered() -> None:
    import geomim.mmdet3d  # noqa: F401


def encoder_of(name: str) -> Dict[str, Any]:
    if ENCODERS[name]['type'] == 'timm':
        let_timm_import()
        pytest.importorskip('timm')
    return ENCODERS[name]


def run(work_dir: Path, data: Path, encoder: Dict[str, Any], *options: Any, status: int = 0) -> None:
    run_quietly([HERE / 'micro.py', work_dir, data, '--encoder', json.dumps(encoder), *options], status=status)


@pytest.mark.parametrize('name', ['resnet18', *LONG])
def test_pretrained_resumed_exported_and_loaded(name: str, small_world: Path, tmp_path: Path) -> None:
    """Killed and resumed bit for bit; the export loads by the host's own means, with nothing missing or left over, and the class
    gives the features of the student's encoder."""
    from mmengine.registry import MODELS
    from mmengine.runner import load_checkpoint

    from geomim.checkpoints.loading import read_checkpoint

    encoder = encoder_of(name)
    iters, kill = (4, 3) if name == 'resnet18' else (24, 21)
    run(tmp_path / 'whole', small_world, encoder, '--iters', iters)
    run(tmp_path / 'broken', small_world, encoder, '--iters', iters, '--kill-at', kill, status=-signal.SIGKILL)
    run(tmp_path / 'broken', small_world, encoder, '--iters', iters, '--resume')
    checkpoints = [tmp_path / run_ / f'iter_{iters}.pth' for run_ in ('whole', 'broken')]
    whole, broken = (read_checkpoint(path)['state_dict'] for path in checkpoints)
    assert_same_tensors(whole, broken)

    (exported,) = (tmp_path / 'whole').glob('encoder_*.pth')
    inside = 'student.encoder.backbone.'
    assert set(read_checkpoint(exported)) == {key[len(inside) :] for key in whole if key.startswith(inside)}
    outside: Dict[str, Any] = dict(encoder, type='GeoMIMTimm') if encoder['type'] == 'timm' else dict(encoder)
    backbone = MODELS.build(dict(outside, init_cfg=dict(type='Pretrained', checkpoint=str(exported))))
    random = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.init_weights()
    assert any(not torch.equal(value, random[key]) for key, value in backbone.state_dict().items())
    load_checkpoint(MODELS.build(outside), str(exported), strict=True)

    config = micro_config(tmp_path, small_world)
    config.model.student.encoder = Config(encoder)
    student = MODELS.build(config.model)
    student.load_state_dict(whole)
    images = torch.randn(2, 3, 64, 96)
    student.eval()
    backbone.eval()
    with torch.no_grad():
        for one, other in zip(student.student.encoder(images), backbone(images)):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


SMALL: Dict[str, Dict[str, Any]] = {
    'resnet': dict(ENCODERS['resnet18'], frozen_stages=1, with_cp=True),
    'convnext': dict(type='timm', name='convnext_atto', with_cp=True),
    'vit': dict(type='timm', name='vit_tiny_patch16_224', depth=2, with_cp=True),
}


@pytest.mark.long
@pytest.mark.parametrize('name', sorted(SMALL))
def test_two_processes_train_every_parameter(name: str, small_world: Path, tmp_path: Path) -> None:
    """Without a search for unused parameters, at which distributed training would stop in the second iteration, and with averaged
    weights."""
    from geomim.checkpoints.loading import read_checkpoint

    if SMALL[name]['type'] == 'timm':
        let_timm_import()
        pytest.importorskip('timm')
    start = [
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node=2',
        HERE / 'micro.py',
        tmp_path,
        small_world,
    ]
    options = ['--encoder', json.dumps(SMALL[name]), '--iters', 3, '--launcher', 'pytorch', '--average']
    run_quietly([*start, *options])
    checkpoint = read_checkpoint(tmp_path / 'iter_3.pth')
    averaged, trained = checkpoint['state_dict'], checkpoint['ema_state_dict']
    inside = [key for key in averaged if key.startswith('student.encoder.') and averaged[key].is_floating_point()]
    assert inside
    assert all(bool(averaged[key].isfinite().all()) for key in inside)
    assert any(not torch.equal(averaged[key], trained[f'module.{key}']) for key in inside)
    (exported,) = tmp_path.glob('encoder_*.pth')
    backbone = 'student.encoder.backbone.'
    assert set(read_checkpoint(exported)) == {key[len(backbone) :] for key in averaged if key.startswith(backbone)}


def test_hosts_save_networks_of_timm_under_timms_names() -> None:
    """They collect the weights of a model's parts themselves."""
    from mmengine.registry import MODELS
    from mmengine.runner.checkpoint import get_state_dict

    let_timm_import()
    timm = pytest.importorskip('timm')
    model = torch.nn.Sequential(MODELS.build(dict(type='GeoMIMTimm', name='resnet18')))
    own = timm.create_model('resnet18', num_classes=0).state_dict()
    assert set(get_state_dict(model)) == {f'0.{name}' for name in own}


def test_weights_that_the_config_names_start_the_backbone(small_world: Path, tmp_path: Path, caplog: Any) -> None:
    """Through ``init_cfg``, as in any detector; another architecture is refused."""
    from mmengine.registry import MODELS

    donor = MODELS.build(ENCODERS['resnet18'])
    donor.init_weights()
    torch.save({'state_dict': donor.state_dict()}, tmp_path / 'donor.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'donor.pth'))
    config = micro_config(tmp_path, small_world)
    config.model.student.encoder = dict(ENCODERS['resnet18'], init_cfg=pretrained)
    model = MODELS.build(config.model)
    model.init_weights()
    assert_same_tensors(dict(model.student.encoder.backbone.state_dict()), dict(donor.state_dict()))
    config.model.student.encoder = dict(ENCODERS['resnet50'], init_cfg=pretrained)
    with pytest.raises(ValueError, match=r'donor.pth.*another architecture: .* layer1.0.conv1.weight'):
        MODELS.build(config.model).init_weights()


def test_a_class_stands_for_its_name() -> None:
    """In configs of mmengine's newer style; files are called after it."""
    from mmdet.models import ResNet
    from mmengine.registry import MODELS

    spec = student_config(dict(encoder=dict(type=ResNet, depth=18, out_indices=(2, 3))), MODELS.build).encoder
    assert spec.name == 'ResNet'
    assert isinstance(spec.build().backbone, ResNet)


@pytest.mark.parametrize(
    ('entries', 'error', 'message'),
    [
        (
            dict(type='mmpretrain.ConvNeXt', arch='tiny'),
            ImportError,
            r"'mmpretrain.ConvNeXt' is of mmpretrain, which cannot be imported here: No module",
        ),
        (dict(type='mmdet.ResNett'), ValueError, r"student.encoder: the host builds no type='mmdet.ResNett'.*registry"),
        (
            dict(type='mmdet.ResNet', depth=18, out_indices=(0, 1)),
            ValueError,
            'ResNet: pretraining needs a map of stride 16',
        ),
    ],
)
def test_what_the_host_cannot_build_is_named(entries: Dict[str, Any], error: Any, message: str) -> None:
    from mmengine.registry import MODELS

    if 'mmpretrain' in entries['type'] and find_spec('mmpretrain'):
        pytest.skip('mmpretrain is installed')
    with pytest.raises(error, match=message):
        student_config(dict(encoder=entries), MODELS.build).encoder.build()


SWIN = dict(
    type='mmdet.SwinTransformer', embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), out_indices=(2, 3),
)  # fmt: skip


def test_a_class_that_converts_names_reads_its_published_file(small_world: Path, tmp_path: Path) -> None:
    """mmdet's Swin from names of the Swin's authors; a file of which it takes nothing is refused."""
    from mmengine.registry import MODELS

    donor = MODELS.build(SWIN)
    state = {}
    for name, value in donor.state_dict().items():
        name = (
            name.replace('stages.', 'layers.')
            .replace('attn.w_msa', 'attn')
            .replace('patch_embed.projection', 'patch_embed.proj')
        )
        state[name.replace('ffn.layers.0.0', 'mlp.fc1').replace('ffn.layers.1', 'mlp.fc2')] = value
    torch.save({'model': state}, tmp_path / 'published.pth')
    torch.save({'model': {'patch_embed.other': torch.zeros(1)}}, tmp_path / 'other.pth')
    config = micro_config(tmp_path, small_world)
    for file in ('published', 'other'):
        pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / f'{file}.pth'))
        config.model.student.encoder = dict(SWIN, convert_weights=True, init_cfg=pretrained)
        model = MODELS.build(config.model)
        if file == 'published':
            model.init_weights()
            own = model.student.encoder.backbone.state_dict()
            assert all(
                torch.equal(own[name], value)
                for name, value in donor.state_dict().items()
                if 'stages' in name and 'downsample' not in name
            )
        else:
            with pytest.raises(ValueError, match='SwinTransformer: nothing of .*other.pth.* was taken'):
                model.init_weights()


STAGES = {
    f'stage{stage}': dict(
        num_modules=1,
        num_branches=stage,
        block='BOTTLENECK' if stage == 1 else 'BASIC',
        num_blocks=(1,) * stage,
        num_channels=(16,) if stage == 1 else (8, 12, 16, 24)[:stage],
    )
    for stage in (1, 2, 3, 4)
}
HOSTS_OWN: Dict[str, Dict[str, Any]] = {
    'ResNeXt': dict(depth=50, groups=32, base_width=4, out_indices=(2, 3)),
    'RegNet': dict(arch='regnetx_400mf', out_indices=(2, 3)),
    'Res2Net': dict(depth=50, scales=4, base_width=26, out_indices=(2, 3)),
    'HRNet': dict(extra=STAGES),
    'EfficientNet': dict(arch='b0', out_indices=(4, 5)),
    'CSPDarknet': dict(deepen_factor=0.33, widen_factor=0.25, out_indices=(3, 4)),
    'PyramidVisionTransformer': dict(num_layers=[1, 1, 1, 1], out_indices=(2, 3)),
    'SwinTransformer': SWIN,
}


@pytest.mark.filterwarnings('ignore:student.encoder HRNet')  # it fuses into finer maps, too
@pytest.mark.parametrize('name', sorted(HOSTS_OWN))
def test_backbones_of_the_host_keep_copies_apart_and_train_whole(name: str) -> None:
    from mmengine.registry import MODELS

    entries = dict(HOSTS_OWN[name], type=f'mmdet.{name}')
    encoder = student_config(dict(encoder=entries), MODELS.build).encoder.build()
    assert encoder.strides == (16, 32)
    images, masks = torch.randn(2, 3, 96, 160), complementary_masks((96, 160))
    sum(map_.square().sum() for map_ in encoder(images, masks)).backward()
    learning = {key: value for key, value in encoder.named_parameters() if value.requires_grad}
    assert [key for key, value in learning.items() if value.grad is None] == []
    encoder.eval()
    hidden = resize_masks(masks, (96, 160))[0].bool()
    with torch.no_grad():
        before, after = (encoder(x, masks) for x in (images, torch.where(hidden, torch.randn_like(images), images)))
    for old, new in zip(before, after):
        kept = resize_masks(masks, (old.shape[2], old.shape[3])) < 0.5
        assert torch.equal(old[..., kept[0]], new[..., kept[0]])
        assert not torch.equal(old[..., kept[1]], new[..., kept[1]])


FULL_SIZE = {'r50': (16, 32), 'r101': (16, 32), 'v2-99': (16, 32), 'convnext-s': (16, 32), 'vit-b-dinov3': (16,)}
TINY = ('resnet', 'convnext', 'vit')


def student_of(file: str) -> GeoMIM:
    """The student of a pretraining configuration, on the meta device."""
    from mmengine.registry import MODELS

    student = Config.fromfile(CONFIGS / f'{file}.py', import_custom_modules=False).model.student
    if student.encoder.type == 'timm':
        let_timm_import()
        pytest.importorskip('timm')
    with torch.device('meta'):
        return GeoMIM(student_config(student, MODELS.build))


@pytest.mark.parametrize('name', sorted(FULL_SIZE))
def test_a_step_at_full_size_clings_to_no_device(name: str) -> None:
    """From images to the losses and every gradient, six cameras of 256 x 704."""
    student = student_of(f'geomim_{name}_50e_nuscenes_256x704')
    config = student.config
    empty = lambda *shape: torch.empty(*shape, device='meta')  # noqa: E731
    rig = CameraRig(empty(1, 6, 3, 3), *(empty(1, 6, 4, 4) for _ in range(3)), bev_aug=empty(1, 4, 4))
    images, depth = empty(1, 6, 3, *config.view_transform.image_size), empty(1, 6, *config.view_transform.image_size)
    target = empty(1, config.target.channels, *config.view_transform.output_grid.shape)
    result = student(images, rig, target, depth, empty(2, 8, 22))
    (result.reconstruction_loss + result.depth_loss).backward()
    learning = {key: value for key, value in student.named_parameters() if value.requires_grad}
    assert [key for key, value in learning.items() if value.grad is None] == []
    assert student.encoder.strides == FULL_SIZE[name]


@pytest.mark.parametrize('name', TINY)
def test_the_tiny_students_are_of_one_size(name: str) -> None:
    """So that what they learn in the same time compares."""
    encoder = student_of(f'geomim_{name}_tiny_synthetic').encoder
    assert 2.5e6 < sum(value.numel() for value in encoder.parameters()) < 3.6e6
