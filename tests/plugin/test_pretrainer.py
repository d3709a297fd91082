"""Pretraining under mmcv 1.x: the method's numbers, the real runner, what the pipeline step carries, errors."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from mmcv.parallel import MMDataParallel
from mmcv.runner import build_optimizer, build_runner
from mmdet3d.core.points import LiDARPoints
from mmdet3d.datasets.pipelines import Compose
from mmdet3d.models.builder import DETECTORS, build_detector
from pyquaternion import Quaternion
from torch import Tensor, nn

import geomim.plugin
from geomim.camera import CameraRig
from geomim.checkpoint import load_pretrained
from geomim.commands import verify
from geomim.grid import BEVGrid
from geomim.layouts import from_reference, to_reference
from geomim.plugin.rig import read_img_inputs
from geomim.proofs.reference_file import ReferenceFile, compare_all
from geomim.teacher import BEVTeacher, TeacherRecord, expected_cell


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
    ego2globals = rig.cam2lidar @ torch.linalg.inv(rig.cam2ego)
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


def test_losses_and_gradients_are_those_of_the_published_code(reference_folder: Path) -> None:
    file = ReferenceFile(reference_folder / 'pretrain_tiny.npz')
    inputs, config = file.group('in/'), verify._pretrain_config(file.config)
    model = object.__new__(DETECTORS.get('GeoMIMPretrainer'))
    nn.Module.__init__(model)
    model.student = geomim.GeoMIM(config)
    load_pretrained(model.student, from_reference(verify._published_names(file.group('param/'))), layout='geomim')
    model.teacher = GivenBEV(config.view_transform.output_grid, config.target.channels)
    model.teacher.bev = inputs['teacher_bev']
    model.num_cams, model.mask_seed, model.masks_per_rank, model.iteration = inputs['img'].shape[1], 0, True, 0
    masks = verify._masks(inputs, config.copies)
    model.student.draw_masks = lambda *_: masks  # the file's own
    rig = verify._rig(inputs)
    points = [inputs[f'points_{sample}'] for sample in range(rig.batch_size)]
    model.train()
    losses = model.forward_train(points=points, img_metas=[{}] * rig.batch_size, **as_img_inputs(inputs['img'], rig))
    assert set(losses) == {'loss_reconstruction', 'loss_depth'}
    sum(losses.values()).backward()
    ours = {'train_rec_loss': losses['loss_reconstruction'], 'train_depth_loss': losses['loss_depth']}
    wanted = {name: value for name, value in file.group('out/').items() if name in ours}
    assert set(wanted) == set(ours)
    gradients = {name: value.grad for name, value in model.student.named_parameters() if value.grad is not None}
    gradients = verify._published_names(to_reference(gradients, config.view_transform), back=True)
    rows = compare_all(ours, wanted, 'out/') + compare_all(gradients, file.group('grad/'), 'grad/', gradient=True)
    assert len(rows) > 100
    assert [row for row in rows if not row.passed] == []


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


def test_key_frame_is_taken_from_images_of_several_frames(make_rig: Any) -> None:
    rig = make_rig(batch=2, cams=6)
    images = torch.randn(2, 6, 3, 3, 8, 8)  # camera-major: camera, frame
    data = as_img_inputs(images[:, :, 0], rig)
    several = [torch.cat([value, value + 1, value + 2], dim=1) for value in data['img_inputs'][1:6]]
    found = read_img_inputs([images.flatten(1, 2), *several, data['img_inputs'][6]], data['lidar2key'], 6)
    assert torch.equal(found.images, images[:, :, 0])
    torch.testing.assert_close(found.rig.cam2lidar, rig.cam2lidar, rtol=1e-5, atol=1e-5)
    for name in ('intrinsics', 'cam2ego', 'img_aug', 'bev_aug'):
        assert torch.equal(getattr(found.rig, name), getattr(rig, name)), name


@pytest.mark.parametrize(
    'entry, change, message',
    [
        (0, lambda v: v[:, :5], 'no multiple of the 6 cameras'),
        (1, lambda v: v[..., :3, :], r'sensor2egos has shape .* expected \(2, 6, 4, 4\)'),
        (3, lambda v: v.new_zeros(2, 6, 4, 4), 'intrins has shape'),
        (2, lambda v: v * float('nan'), 'ego2globals has values that are not finite'),
        (6, lambda v: v[:1], 'bda has shape'),
    ],
)
def test_bad_entries_are_named(make_rig: Any, pretrainer: nn.Module, entry: int, change: Any, message: str) -> None:
    data = batch(make_rig)
    data['img_inputs'][entry] = change(data['img_inputs'][entry])
    with pytest.raises(ValueError, match=message):
        pretrainer.forward_train(**data)


def test_what_the_pipeline_must_bring_is_named(make_rig: Any, pretrainer: nn.Module) -> None:
    data = batch(make_rig)
    for key in ('points', 'lidar2key'):
        with pytest.raises(ValueError, match="GeoMIMLidarFrame.*'lidar2key'.*Collect3D"):
            pretrainer.forward_train(**{name: value for name, value in data.items() if name != key})
    with pytest.raises(ValueError, match='7 entries'):
        pretrainer.forward_train(**{**data, 'img_inputs': data['img_inputs'][:6]})
    with pytest.raises(ValueError, match='sample 1: the point cloud is empty'):
        pretrainer.forward_train(**{**data, 'points': [data['points'][0], torch.zeros(0, 5)]})


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
    """EpochBasedRunner with the hooks of a BEVDet run, two batches an epoch."""
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
    ):
        runner.register_hook_from_cfg(hook)
    if resume:
        runner.resume(str(work_dir / 'latest.pth'), map_location='cpu')
    loader = [batch(make_rig, seed) for seed in (0, 1)]
    runner.run([loader], [('train', 1)])
    return runner


def test_a_run_resumes_bit_for_bit(
    tmp_path: Path, make_rig: Any, student_config: Dict[str, Any], teacher_config: Dict[str, Any]
) -> None:
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return build_detector(
            dict(type='GeoMIMPretrainer', student=copy.deepcopy(student_config), teacher=copy.deepcopy(teacher_config))
        )

    whole = run(tmp_path / 'whole', fresh(), make_rig, 2).model.module.state_dict()
    run(tmp_path / 'parts', fresh(), make_rig, 1)
    parts = run(tmp_path / 'parts', fresh(), make_rig, 2, resume=True).model.module.state_dict()
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    start = fresh().state_dict()
    assert any(not torch.equal(whole[name], start[name]) for name in whole)
    assert (tmp_path / 'whole' / 'encoder_bevdet.pth').is_file()


def bev_augmentation(rotation: float, scale: float, flip_x: bool, flip_y: bool) -> Tensor:
    cos, sin = np.cos(rotation), np.sin(rotation)
    flip = np.diag([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, 1.0])
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return torch.tensor(flip @ (scale * turn), dtype=torch.float32)


@pytest.mark.parametrize('flips', [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize('rotation, scale', [(0.0, 1.0), (np.deg2rad(22.5), 1.05), (np.deg2rad(-17), 0.95)])
@pytest.mark.parametrize('first', ['CAM_FRONT_LEFT', 'CAM_BACK'])
def test_an_object_lies_in_one_cell_for_student_and_teacher(
    student_config: Dict[str, Any], rotation: float, scale: float, flips: Any, first: str
) -> None:
    """Through the pipeline step: a point of the cloud, and the pixel and depth at which a camera sees it."""
    lidar2ego = (Quaternion(axis=[0, 0, 1], degrees=-90.5), [0.94, 0.0, 1.84])
    poses = {'CAM_FRONT_LEFT': (100.3, 50.1, 0.31), 'CAM_BACK': (100.9, 50.3, 0.33)}
    lidar_pose = (Quaternion(axis=[0, 0, 1], radians=0.32), [100.6, 50.2, 0.0])
    mounts = {'CAM_FRONT_LEFT': (1.5, 0.5, 55.0), 'CAM_BACK': (0.0, 0.0, 180.0)}
    to_optical = Quaternion(matrix=np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]))
    cams = {}
    for name, (x, y, degrees) in mounts.items():
        px, py, heading = poses[name]
        cams[name] = dict(
            sensor2ego_rotation=(Quaternion(axis=[0, 0, 1], degrees=degrees) * to_optical).elements.tolist(),
            sensor2ego_translation=[x, y, 1.5],
            ego2global_rotation=Quaternion(axis=[0, 0, 1], radians=heading).elements.tolist(),
            ego2global_translation=[px, py, 0.0],
        )
    info = dict(
        token='t',
        cams=cams,
        lidar2ego_rotation=lidar2ego[0].elements.tolist(),
        lidar2ego_translation=lidar2ego[1],
        ego2global_rotation=lidar_pose[0].elements.tolist(),
        ego2global_translation=lidar_pose[1],
    )
    names = [first, *(name for name in cams if name != first)]
    from geomim.plugin.transforms import pose

    sensor2egos = np.stack([pose(cams[n]['sensor2ego_rotation'], cams[n]['sensor2ego_translation']) for n in names])
    ego2globals = np.stack([pose(cams[n]['ego2global_rotation'], cams[n]['ego2global_translation']) for n in names])
    intrins = np.tile(np.array([[60.0, 0, 48], [0, 60, 32], [0, 0, 1]]), (2, 1, 1))
    bda = bev_augmentation(rotation, scale, *flips)
    lidar2global = pose(info['ego2global_rotation'], info['ego2global_translation']) @ pose(
        info['lidar2ego_rotation'], info['lidar2ego_translation']
    )
    # an object 5 m in front of the second camera of the list, as the LiDAR sees it
    in_camera = np.array([0.3, 0.2, 5.0, 1.0])
    place = np.linalg.inv(lidar2global) @ ego2globals[1] @ sensor2egos[1] @ in_camera
    tensors = [torch.from_numpy(value).float() for value in (sensor2egos, ego2globals, intrins)]
    results = dict(
        curr=info,
        cam_names=names,
        points=LiDARPoints(torch.tensor([[*place[:3], 9.0, 0.0]], dtype=torch.float32), points_dim=5),
        img_inputs=(torch.zeros(2, 3, 64, 96), *tensors, torch.eye(3).expand(2, 3, 3), torch.zeros(2, 3), bda),
    )
    before = results['points'].tensor.clone()
    source = results['points']
    out = Compose([dict(type='GeoMIMLidarFrame')])(results)
    assert torch.equal(source.tensor, before)
    assert torch.equal(out['points'].tensor[:, 3:], before[:, 3:])
    inputs = read_img_inputs([value[None] for value in out['img_inputs']], out['lidar2key'][None], 2)
    rig = inputs.rig
    # the student's side: camera to BEV
    seen = rig.bev_aug[0].double() @ rig.cam2lidar[0, 1].double() @ torch.from_numpy(in_camera)
    np.testing.assert_allclose(out['points'].tensor[0, :3].numpy(), seen[:3].numpy(), atol=2e-3)
    record = TeacherRecord('t', BEVGrid((-12.0, 12.0, 1.5), (-12.0, 12.0, 1.5), axis_order='yx'), 1)
    assert expected_cell(record, *out['points'].tensor[0, :2].tolist()) == expected_cell(record, *seen[:2].tolist())


def test_the_step_names_what_is_missing_before_it() -> None:
    step = Compose([dict(type='GeoMIMLidarFrame')])
    with pytest.raises(ValueError, match='no img_inputs .* PrepareImageInputs'):
        step(dict(points=None, curr={}))
    with pytest.raises(ValueError, match='behind LoadAnnotationsBEVDepth'):
        step(dict(points=None, curr={}, img_inputs=(0,) * 6))
    points = LiDARPoints(torch.zeros(1, 5), points_dim=5)
    with pytest.raises(ValueError, match='sample s: the info file has no lidar2ego_rotation'):
        step(dict(points=points, curr=dict(token='s'), img_inputs=(torch.eye(3),) * 7, cam_names=['CAM_FRONT']))
