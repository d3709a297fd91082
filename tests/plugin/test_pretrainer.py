"""Pretraining under mmcv 1.x: the method's numbers, the real runner, what the pipeline step carries, errors."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Optional

import pytest
import torch
from mmcv import Config
from mmcv.parallel import MMDataParallel
from mmcv.runner import build_optimizer, build_runner
from mmcv.runner.hooks.lr_updater import CosineAnnealingLrUpdaterHook
from mmdet3d.models.builder import DETECTORS, build_backbone, build_detector
from torch import Tensor, nn

import geomim.plugin  # noqa: F401
from geomim.checkpoints.layouts import from_reference, to_reference
from geomim.checkpoints.loading import load_pretrained
from geomim.method.camera import CameraRig
from geomim.method.depth import depth_maps
from geomim.method.grid import BEVGrid
from geomim.plugin.rig import read_img_inputs
from geomim.proofs import pretraining as verify
from geomim.proofs.reference_file import ReferenceFile, compare_all
from geomim.teachers.base import BEVTeacher, TeacherRecord

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'bevdet'


@DETECTORS.register_module(name='GivenBEVForTests', force=True)
class GivenBEV(BEVTeacher):
    """Gives the map that was put into ``bev``."""

    bev: Tensor

    def __init__(self, grid: BEVGrid, channels: int) -> None:
        super().__init__()
        self.record = TeacherRecord('given', grid, channels)

    def compute(self, points: List[Tensor]) -> Tensor:
        return self.bev


def as_img_inputs(images: Tensor, rig: CameraRig) -> Dict[str, Any]:
    """What a BEVDet loader would give for a rig: the global frame is the LiDAR's."""
    ego2globals = rig.cam2bev @ torch.linalg.inv(rig.cam2ego)
    return dict(
        img_inputs=[
            images,
            rig.cam2ego,
            ego2globals,
            rig.intrinsics,
            rig.img_aug[..., :3, :3],
            rig.img_aug[..., :3, 3],
            rig.bev_aug,
        ],
        lidar2key=torch.linalg.inv(ego2globals[:, 0]),
    )


def test_losses_and_gradients_are_those_of_the_published_code(reference_folder: Any, as_entries: Any) -> None:
    """In float64, where no ReLU turns by rounding."""
    file = ReferenceFile(reference_folder / 'pretrain_tiny.npz')
    inputs = {name: value.double() for name, value in file.group('in/').items()}
    config = verify._pretrain_config(file.config)
    teacher = dict(type='GivenBEVForTests', grid=config.view_transform.output_grid, channels=config.target.channels)
    model = build_detector(dict(type='GeoMIMPretrainer', student=as_entries(config), teacher=teacher))
    assert model.student.config == config
    load_pretrained(model.student, from_reference(verify._published_names(file.group('param/'))), layout='geomim')
    model.double().train()
    model.teacher.bev = inputs['teacher_bev']
    masks = verify._masks(inputs, config.copies)
    model.student.draw_masks = lambda *_: masks  # the file's own
    rig = verify._rig(inputs)
    points = [inputs[f'points_{sample}'] for sample in range(rig.batch_size)]
    core = copy.deepcopy(model.student)
    direct = core(
        inputs['img'], rig, inputs['teacher_bev'], depth_maps(points, rig, tuple(inputs['img'].shape[-2:])), masks
    )
    (direct.reconstruction_loss + direct.depth_loss).backward()
    losses = model(points=points, img_metas=[{}] * rig.batch_size, **as_img_inputs(inputs['img'], rig))
    assert set(losses) == {'loss_reconstruction', 'loss_depth'}
    sum(losses.values()).backward()
    ours = {'train_rec_loss': losses['loss_reconstruction'], 'train_depth_loss': losses['loss_depth']}
    wanted = {name: value for name, value in file.group('out/').items() if name in ours}
    assert set(wanted) == set(ours)
    found = {name: value.grad for name, value in model.student.named_parameters() if value.grad is not None}
    gradients = verify._published_names(to_reference(found, config.view_transform), back=True)
    rows = compare_all(ours, wanted, 'out/') + compare_all(gradients, file.group('grad/'), 'grad/', gradient=True)
    assert len(rows) > 100
    assert [row for row in rows if not row.passed] == []
    torch.testing.assert_close(losses['loss_reconstruction'], direct.reconstruction_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses['loss_depth'], direct.depth_loss, rtol=1e-6, atol=0)
    for name, value in core.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(
                found[name], value.grad, rtol=0, atol=1e-6 * float(value.grad.abs().max()) + 1e-12
            )


@pytest.fixture
def pretrainer(student_config: Dict[str, Any], teacher_config: Dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return build_detector(
        dict(type='GeoMIMPretrainer', student=copy.deepcopy(student_config), teacher=copy.deepcopy(teacher_config))
    )


def batch(make_rig: Any, seed: int = 0) -> Dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    rig = make_rig(batch=2, cams=6)
    images = torch.randn(2, 6, 3, 64, 96, generator=generator)
    low, high = torch.tensor([-12.0, -9, -2, 0, 0]), torch.tensor([12.0, 9, 2, 255, 0.5])
    points = [low + (high - low) * torch.rand(800, 5, generator=generator) for _ in range(2)]
    return dict(points=points, img_metas=[{}, {}], **as_img_inputs(images, rig))


def test_what_the_pipeline_must_bring_is_named(make_rig: Any, pretrainer: nn.Module) -> None:
    data = batch(make_rig)
    for key in ('points', 'lidar2key'):
        with pytest.raises(ValueError, match="GeoMIMLidarFrame.*'lidar2key'.*Collect3D"):
            pretrainer.forward_train(**{name: value for name, value in data.items() if name != key})
    with pytest.raises(ValueError, match='7 entries'):
        pretrainer.forward_train(**{**data, 'img_inputs': data['img_inputs'][:6]})
    for cloud, message in (
        (torch.zeros(0, 5), 'sample 1: the point cloud is empty'),
        (torch.zeros(3, 2), r'sample 1: a point cloud must be \(M, >= 3\), got shape \(3, 2\)'),
    ):
        with pytest.raises(ValueError, match=message):
            pretrainer.forward_train(**{**data, 'points': [data['points'][0], cloud]})
    with pytest.raises(ValueError, match='1 point clouds for 2 samples'):
        pretrainer.forward_train(**{**data, 'points': data['points'][:1]})
    with pytest.raises(ValueError, match=r'depth maps have shape \(2, 6, 4, 6\), expected \(2, 6, 64, 96\)'):
        pretrainer.forward_train(**{**data, 'gt_depth': torch.zeros(2, 6, 4, 6)})


def test_a_teacher_on_another_grid_is_refused(student_config: Dict[str, Any], teacher_config: Dict[str, Any]) -> None:
    student = copy.deepcopy(student_config)
    student['view_transform']['x_bound'] = (-12.0, 12.0, 0.5)
    with pytest.raises(ValueError, match='do not share a BEV grid'):
        build_detector(dict(type='GeoMIMPretrainer', student=student, teacher=copy.deepcopy(teacher_config)))
    teacher = copy.deepcopy(teacher_config)
    teacher['grid']['x_bound'] = (-24.0, 24.0, 3.0)
    with pytest.raises(ValueError, match='must be the same'):
        DETECTORS.build(teacher)
    with pytest.raises(ValueError, match="tap 'nowhere' is no submodule of CenterPoint"):
        DETECTORS.build({**copy.deepcopy(teacher_config), 'tap': 'nowhere'})


def test_the_teacher_is_no_part_of_the_students_checkpoint(pretrainer: nn.Module) -> None:
    assert not [name for name in pretrainer.state_dict() if name.startswith('teacher')]
    assert not [name for name, _ in pretrainer.named_parameters() if name.startswith('teacher')]
    pretrainer.train()
    assert not any(module.training for module in pretrainer.teacher.detector.modules())
    pretrainer.half()
    assert {value.dtype for value in pretrainer.teacher.detector.parameters()} == {torch.float32}


def test_depth_of_the_pipeline_takes_the_place_of_the_projected_points(make_rig: Any, pretrainer: nn.Module) -> None:
    data = batch(make_rig)
    pretrainer.iteration = 0
    projected = pretrainer.forward_train(**data)
    images, rig = read_img_inputs(data['img_inputs'], data['lidar2key'], 6)
    given = pretrainer.forward_train(**data, gt_depth=depth_maps(data['points'], rig, (64, 96)))
    none = pretrainer.forward_train(**data, gt_depth=torch.zeros(2, 6, 64, 96))
    assert torch.equal(given['loss_depth'], projected['loss_depth'])
    assert float(projected['loss_depth']) > 0
    assert float(none['loss_depth']) == 0


def test_masks_follow_the_iteration_or_the_random_state(make_rig: Any, pretrainer: nn.Module) -> None:
    drawn: List[Tensor] = []
    draw = pretrainer.student.draw_masks
    pretrainer.student.draw_masks = lambda *args: drawn.append(draw(*args)) or drawn[-1]
    data = batch(make_rig)

    def masks(iteration: Optional[int], seed: int) -> Tensor:
        torch.manual_seed(seed)
        pretrainer.iteration = iteration
        pretrainer.forward_train(**data)
        return drawn[-1]

    assert torch.equal(masks(3, seed=0), masks(3, seed=1))
    assert not torch.equal(masks(3, seed=0), masks(4, seed=0))
    assert torch.equal(masks(None, seed=0), masks(None, seed=0))
    assert not torch.equal(masks(None, seed=0), masks(None, seed=1))


@pytest.mark.parametrize('given, shared', [({}, True), (dict(masks_per_rank=True), False)])
def test_ranks_share_their_masks_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
    student_config: Dict[str, Any],
    teacher_config: Dict[str, Any],
    given: Dict[str, Any],
    shared: bool,
) -> None:
    parts = copy.deepcopy(dict(student=student_config, teacher=teacher_config))
    model = build_detector(dict(type='GeoMIMPretrainer', **parts, **given))
    model._batch = lambda *_: None
    drawn: List[Tensor] = []

    def masks(batch: Any, generator: torch.Generator) -> SimpleNamespace:
        drawn.append(model.student.draw_masks(torch.device('cpu'), generator))
        return SimpleNamespace(reconstruction_loss=None, depth_loss=None)

    model.run_student = masks
    for rank in range(3):
        monkeypatch.setattr('geomim.plugin.pretrainer.get_dist_info', lambda rank=rank: (rank, 3))
        torch.manual_seed(rank)  # what else a rank draws does not matter
        model.iteration = 5
        model.forward_train([])
    assert [torch.equal(drawn[0], one) for one in drawn[1:]] == [shared] * 2


@pytest.mark.parametrize('init_from, start', [('mixmae.pth', 'torch'), (None, 'xavier')])
def test_layers_start_as_published_where_a_checkpoint_is_given(
    student_config: Dict[str, Any], teacher_config: Dict[str, Any], init_from: Optional[str], start: str
) -> None:
    parts = copy.deepcopy(dict(student=student_config, teacher=teacher_config))
    model = build_detector(dict(type='GeoMIMPretrainer', init_from=init_from, **parts))
    assert model.student.config.linear_init == start


def test_figures_of_a_test_loader(make_rig: Any, pretrainer: nn.Module) -> None:
    data = batch(make_rig)
    pretrainer.eval()
    with torch.no_grad():
        plain = pretrainer.simple_test(**data)
        wrapped = pretrainer(
            return_loss=False,
            **{name: [value] for name, value in data.items()},
        )
    assert plain == wrapped
    assert len(plain) == 2
    assert plain[0]['target_power'] == pytest.approx(1.0, abs=0.2)


def run(work_dir: Path, model: nn.Module, make_rig: Any, epochs: int, resume: bool = False) -> Any:
    """EpochBasedRunner with the hooks of a BEVDet run, two batches an epoch; the EMA hook resumes the run by itself."""
    model = MMDataParallel(model, device_ids=[])
    runner = build_runner(
        dict(type='EpochBasedRunner', max_epochs=epochs),
        default_args=dict(
            model=model,
            optimizer=build_optimizer(model, dict(type='AdamW', lr=1e-3, weight_decay=0.01)),
            work_dir=str(work_dir),
            logger=logging.getLogger('geomim-test'),
            meta=dict(seed=3),
        ),
    )
    runner.register_training_hooks(
        lr_config=dict(policy='step', step=[10]),
        optimizer_config=dict(grad_clip=dict(max_norm=35, norm_type=2)),
        checkpoint_config=dict(interval=1),
        log_config=None,
    )
    for hook in (
        dict(type='GeoMIMSeedHook'),
        dict(type='GeoMIMTeacherGuardHook'),
        dict(type='GeoMIMEncoderExportHook'),
        dict(
            type='EMAHook',
            momentum=0.1,
            priority='ABOVE_NORMAL',
            resume_from=str(work_dir / 'latest.pth') if resume else None,
        ),
    ):
        runner.register_hook_from_cfg(hook)
    loader = [batch(make_rig, seed) for seed in (0, 1)]
    runner.run([loader], [('train', 1)])
    return runner


@pytest.mark.parametrize('name', ['pretrain_swin-b', 'pretrain_tiny'])
def test_the_configs_keep_to_the_published_run(name: str) -> None:
    """The cosine takes its steps between epochs, behind the warm-up; points are not shuffled."""
    config = Config.fromfile(str(CONFIGS / f'{name}.py'))
    entry = {key: value for key, value in config.geomim_lr_config.items() if key not in ('policy', '_delete_')}
    hook = CosineAnnealingLrUpdaterHook(**entry)
    epochs, length = config.geomim_runner.max_epochs, 600
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.geomim_optimizer.lr)
    runner = SimpleNamespace(optimizer=optimizer, epoch=0, iter=0, max_epochs=epochs, max_iters=epochs * length)
    hook.before_run(runner)
    rates: Dict[int, List[float]] = {}
    for runner.epoch in range(epochs):
        hook.before_train_epoch(runner)
        for iteration in range(runner.epoch * length, (runner.epoch + 1) * length):
            runner.iter = iteration
            hook.before_train_iter(runner)
            rates.setdefault(runner.epoch, []).append(optimizer.param_groups[0]['lr'])
    assert rates[0][0] == pytest.approx(2e-4 / 3)
    assert set(rates[0][500:]) == {2e-4}
    assert all(len(set(rates[epoch])) == 1 for epoch in range(1, epochs))
    assert rates[25][0] == pytest.approx(0.5 * (2e-4 + 2e-7))
    assert 'PointShuffle' not in [step['type'] for step in config.geomim_pipeline]


def test_a_run_resumes_bit_for_bit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_rig: Any,
    student_config: Dict[str, Any],
    teacher_config: Dict[str, Any],
) -> None:
    monkeypatch.setattr('mmcv.runner.epoch_based_runner.time', SimpleNamespace(sleep=lambda seconds: None))

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return build_detector(
            dict(type='GeoMIMPretrainer', student=copy.deepcopy(student_config), teacher=copy.deepcopy(teacher_config))
        )

    def trained(folder: str, epochs: int, resume: bool = False) -> Dict[str, Tensor]:
        model = fresh()
        torch.manual_seed(99 if resume else 0)  # a resumed process has drawn other numbers before
        draw = model.student.draw_masks
        masks.setdefault(folder, [])
        model.student.draw_masks = lambda *args: masks[folder].append(draw(*args)) or masks[folder][-1]
        return run(tmp_path / folder, model, make_rig, epochs, resume).model.module.state_dict()

    masks: Dict[str, List[Tensor]] = {}
    whole = trained('whole', 2)
    trained('parts', 1)
    parts = trained('parts', 2, resume=True)
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert [torch.equal(one, other) for one, other in zip(masks['whole'], masks['parts'])] == [True] * 4
    assert not all(torch.equal(one, masks['whole'][0]) for one in masks['whole'])
    weights = [name for name, _ in fresh().named_parameters()]
    averages = ['ema_' + name.replace('.', '_') for name in weights]
    assert {name for name in whole if name.startswith('ema_')} == set(averages)
    assert any(not torch.equal(whole[name], whole[average]) for name, average in zip(weights, averages))
    start = fresh().state_dict()
    assert any(not torch.equal(whole[name], start[name]) for name in start)
    assert (tmp_path / 'whole' / 'encoder_bevdet.pth').is_file()


def test_a_backbone_of_the_host_pretrains_in_passes(
    student_config: Dict[str, Any], teacher_config: Dict[str, Any], make_rig: Any, tmp_path: Path
) -> None:
    """mmdet 2.x's own ResNet by the host's registry: one step, and its weights from a file of its own names."""
    resnet = dict(type='ResNet', depth=18, base_channels=8, out_indices=(2, 3), norm_eval=False)
    donor = build_backbone(dict(resnet))
    torch.save({'state_dict': donor.state_dict()}, tmp_path / 'resnet.pth')
    student = {**copy.deepcopy(student_config), 'encoder': dict(resnet, pretrained=str(tmp_path / 'resnet.pth'))}
    model = build_detector(dict(type='GeoMIMPretrainer', student=student, teacher=copy.deepcopy(teacher_config)))
    model.init_weights()
    started = model.student.encoder.backbone.state_dict()
    assert all(torch.equal(value, started[name]) for name, value in donor.state_dict().items())
    losses = model(**batch(make_rig))
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.student.encoder.parameters())
