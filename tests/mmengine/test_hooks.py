"""Hooks in a real Runner: pictures change nothing, the guard sees a teacher that moves, the exported encoder loads."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Optional

import cv2
import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

import geomim.mmdet3d
from geomim import BEVGrid, SwinConfig, SwinEncoder
from geomim.checkpoints.loading import load_encoder
from geomim.mmdet3d import EncoderExportHook, ReconstructionPicturesHook, TeacherGuardHook
from geomim.mmdet3d.teacher import BEVTeacher, TeacherRecord
from geomim.mmengine.hooks import left_as_found

from ..helpers import plain_depth_figures

ENCODER = {
    'embed_dims': 8,
    'depths': (1, 1, 1, 1),
    'num_heads': (1, 1, 2, 2),
    'window_size': (4, 4, 4, 2),
    'drop_path_rate': 0.5,
}
STUDENT = {
    'encoder': ENCODER,
    'decoder': {
        'dim': 16,
        'num_heads': 2,
        'depth': 2,
        'cross_view_after': (1,),
        'geometry_from': 1,
        'geometry_cross_view_after': (1,),
    },
    'view_transform': {
        'image_size': (64, 96),
        'x_bound': (-12, 12, 1),
        'y_bound': (-8, 8, 1),
        'depth_bound': (1, 9, 1),
        'channels': 4,
    },
    'target': {'channels': 6, 'patch_size': 4},
}
NAMES = ('CAM_FRONT', 'CAM_LEFT')


@MODELS.register_module(force=True)
class HidingTeacher(BEVTeacher):
    """A network that its parents' parameters do not list, as that of ``LidarTeacher``."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        object.__setattr__(self, 'detector', nn.Sequential(nn.Linear(1, 12 * 8), nn.BatchNorm1d(12 * 8)).eval())
        self.detector.requires_grad_(False)
        self.record = TeacherRecord('tap', BEVGrid((-12.0, 12.0, 2.0), (-8.0, 8.0, 2.0)), channels)
        self.train()

    def compute(self, points: List[Tensor]) -> Tensor:
        spread = torch.stack([cloud[:, :1].mean(0) for cloud in points])
        cells = self.detector(spread).view(-1, 1, 12, 8)
        return cells * torch.arange(1.0, 7.0).view(1, 6, 1, 1) + cells.roll(1, 2)


@MODELS.register_module(force=True)
class OpenTeacher(HidingTeacher):
    """A teacher whose network is an ordinary child."""

    def __init__(self) -> None:
        super().__init__()
        self.network = self.detector


def sample(index: int) -> Dict[str, Any]:
    generator = torch.Generator().manual_seed(index)
    eye = np.tile(np.eye(4), (2, 1, 1))
    intrinsics = eye.copy()
    intrinsics[:, :2, 2] = 48, 32
    intrinsics[:, [0, 1], [0, 1]] = 50
    forward = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])  # x ahead is the optical axis
    left = forward @ np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    meta = {
        'token': f'token{index}',
        'cam_names': NAMES,
        'cam2img': intrinsics,
        'cam2ego': np.linalg.inv(np.stack([forward, left])),
        'lidar2cam': np.stack([forward, left]),
        'img_aug_matrix': eye,
        'bev_aug_matrix': np.eye(4),
    }
    depth = torch.rand(2, 64, 96, generator=generator) * 12
    inputs = {
        'img': torch.randint(0, 256, (2, 3, 64, 96), generator=generator, dtype=torch.uint8),
        'points': torch.randn(200, 5, generator=generator) * 4,
        'depth_map': depth
        * (torch.rand(2, 64, 96, generator=generator) < 0.02),  # most cells have their nearest in a bin
    }
    return {'inputs': inputs, 'data_samples': BaseDataElement(metainfo=meta)}


class Samples(torch.utils.data.Dataset):
    metainfo: Dict[str, Any] = {}

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Dict[str, Any]:
        return sample(index)


def make_runner(
    work_dir: Path, hooks: List[Any], teacher: str = 'HidingTeacher', epochs: int = 2, **changes: Any
) -> Runner:
    torch.manual_seed(1)
    return Runner(
        model={'type': 'GeoMIMPretrainer', 'student': STUDENT, 'teacher': {'type': teacher}},
        work_dir=str(work_dir),
        train_dataloader={
            'batch_size': 2,
            'num_workers': 0,
            'dataset': Samples(),
            'sampler': {'type': 'DefaultSampler', 'shuffle': True},
            'collate_fn': {'type': 'pseudo_collate'},
        },
        train_cfg={'by_epoch': True, 'max_epochs': epochs},
        optim_wrapper={'type': 'SkipNonFiniteOptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 1e-3}},
        default_hooks=changes.pop(
            'default_hooks', {'checkpoint': None, 'logger': {'type': 'LoggerHook', 'interval': 100}}
        ),
        visualizer={
            'type': 'Visualizer',
            'vis_backends': [{'type': 'LocalVisBackend'}, {'type': 'TensorboardVisBackend'}],
        },
        custom_hooks=hooks,
        randomness={'seed': 5},
        log_level='WARNING',
        experiment_name=f'{work_dir.name}_{len(hooks)}_{id(hooks)}',
        **changes,
    )


def pictures_of(work_dir: Path) -> Dict[str, np.ndarray]:
    return {path.name: cv2.imread(str(path)) for path in work_dir.rglob('vis_image/*.png')}


class Recorder(Hook):
    """The losses of each iteration, and the random numbers that would come next."""

    def __init__(self) -> None:
        self.seen: List[Any] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        # In 'VERY_LOW', after the pictures.
        state = (torch.get_rng_state().sum().item(), random.getstate()[1][:5], int(np.random.get_state()[1].sum()))
        self.seen.append((float(outputs['loss']), state, batch_idx))


def test_scalars_stand_beside_the_losses_and_training_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    """Each over the iterations since the last log: depth and reconstruction against plain loops, speed against the host's times."""
    weights, passes = [], []

    def note(student: nn.Module, _: Any, result: Any) -> None:
        if student.training:
            passes.append(result)

    for hooks in (
        [],
        [{'type': 'GeoMIMScalarsHook'}, {'type': 'ReconstructionPicturesHook', 'interval': 2, 'width': 500}],
    ):
        logger = {'checkpoint': None, 'logger': {'type': 'LoggerHook', 'interval': 3}}
        runner = make_runner(tmp_path, hooks, default_hooks=logger, log_processor={'window_size': 3})
        if hooks:
            runner.model.student.register_forward_hook(note)
        runner.train()
        weights.append(runner.model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    (file,) = (path for path in tmp_path.rglob('scalars.json') if 'explained' in path.read_text())
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [row for row in rows if 'explained' in row]  # both runs share a folder if they start in the same second
    assert [row['iter'] for row in rows] == [3, 6]
    assert len(passes) == 6
    for row, window in zip(rows, (passes[:3], passes[3:])):
        depth = plain_depth_figures(window, runner.model.student.config.view_transform.depth_bins)
        assert list(depth) == ['depth_within_one_bin_0_10m', 'depth_error_0_10m']  # the bins end at 9 m
        assert {name: row[name] for name in depth} == pytest.approx(depth)
        errors, constant = 0.0, 0.0
        for result in window:
            errors += float(torch.stack([(map_ - result.target).square().mean() for map_ in result.predictions]).mean())
            constant += float(result.target.var(dim=(2, 3), unbiased=False).mean())
        assert row['explained'] == pytest.approx(1 - errors / constant, rel=1e-4)
        assert row['samples_per_s'] == pytest.approx(2 / row['time'])
        assert row['loader_wait'] == pytest.approx(row['data_time'] / row['time'])
    assert not [hook for hook in runner.model.student._forward_hooks.values() if hook is not note]


def test_pictures_are_written_and_training_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    results = {}
    for name in ('without', 'with'):
        recorder = Recorder()
        recorder.priority = 'VERY_LOW'
        hooks: List[Any] = [recorder]
        if name == 'with':
            hooks.append({'type': 'ReconstructionPicturesHook', 'interval': 4, 'num_samples': 2, 'width': 500})
        runner = make_runner(tmp_path / name, hooks)
        runner.train()
        results[name] = (runner.model.state_dict(), recorder.seen)
    weights, plain = results['with'][0], results['without'][0]
    assert all(torch.equal(weights[key], plain[key]) for key in plain)
    assert results['with'][1] == results['without'][1]
    pictures = pictures_of(tmp_path / 'with')
    assert sorted(pictures) == [f'reconstruction_{s}_{step}.png' for s in (0, 1) for step in (4, 6)]
    assert all(picture.shape[1] == 500 and picture.std() > 20 for picture in pictures.values())
    assert not pictures_of(tmp_path / 'without')
    assert tensorboard_pictures(tmp_path / 'with') == {'reconstruction_0': [4, 6], 'reconstruction_1': [4, 6]}


def tensorboard_pictures(work_dir: Path) -> Dict[str, List[int]]:
    accumulators = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    (file,) = work_dir.rglob('events.out.tfevents*')
    events = accumulators.EventAccumulator(str(file), size_guidance={'images': 0}).Reload()
    return {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()['images']}


@pytest.mark.parametrize('samples', ['current', 'first'])
def test_the_first_batch_is_shown_at_all_times_if_wanted(tmp_path: Path, samples: str) -> None:
    hook = {'type': 'ReconstructionPicturesHook', 'interval': 2, 'samples': samples, 'width': 500}
    make_runner(tmp_path, [hook]).train()
    pictures = pictures_of(tmp_path)
    assert len(pictures) == 3
    inputs = [picture[30:150] for picture in pictures.values()]  # the cameras; what follows depends on the weights
    same = all(np.array_equal(inputs[0], other) for other in inputs[1:])
    assert same == (samples == 'first')


def test_modes_and_generators_come_back_even_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    model.train()
    model[1][0].eval()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    def fail() -> None:
        with left_as_found(model):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            torch.rand(3), random.random(), np.random.rand()
            raise RuntimeError('inside')

    with pytest.raises(RuntimeError, match='inside'):
        fail()
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])
    assert torch.is_grad_enabled()


@pytest.mark.parametrize('arguments', [{'interval': 0}, {'num_samples': 0}, {'samples': 'last'}, {'width': -1}])
def test_wrong_picture_arguments_are_refused(arguments: Dict[str, Any]) -> None:
    (name, value), *_ = arguments.items()
    with pytest.raises(ValueError, match=f'{name}.*{value}'):
        ReconstructionPicturesHook(**arguments)


class Meddler(Hook):
    """Does something to the teacher in the second epoch."""

    def __init__(self, deed: Any) -> None:
        self.deed = deed

    def before_train_epoch(self, runner: Runner) -> None:
        if runner.epoch == 1:
            self.deed(runner.model.teacher)


def test_a_frozen_teacher_passes_the_guard(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, [{'type': 'TeacherGuardHook', 'interval': 1}])
    runner.train()
    assert runner.iter == 6


def write_weight(teacher: nn.Module) -> None:
    with torch.no_grad():
        teacher.detector[0].weight[3, 0] += 1e-6


def write_statistic(teacher: nn.Module) -> None:
    teacher.detector[1].num_batches_tracked.add_(1)


@pytest.mark.parametrize(
    ('deed', 'name'),
    [(write_weight, r'detector\.0\.weight'), (write_statistic, r'detector\.1\.num_batches_tracked')],
)
@pytest.mark.parametrize('interval', [None, 1])
def test_a_changed_teacher_is_caught_and_the_tensor_named(
    tmp_path: Path, deed: Any, name: str, interval: Optional[int]
) -> None:
    runner = make_runner(tmp_path, [Meddler(deed), {'type': 'TeacherGuardHook', 'interval': interval}])
    with pytest.raises(RuntimeError, match=rf'teacher changed.*{name} \(1 of'):
        runner.train()
    assert runner.iter == (3 if interval else 5) + (0 if interval else 1)


def test_a_teacher_put_into_training_mode_is_caught(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, [Meddler(lambda teacher: teacher.detector[1].train()), TeacherGuardHook()])
    with pytest.raises(RuntimeError, match=r'evaluation mode.*first detector\.1'):
        runner.train()
    assert runner.iter == 3


def test_a_thawed_teacher_is_caught_before_training(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, [TeacherGuardHook()])
    runner.model.teacher.detector[0].bias.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r'frozen.*detector\.0\.bias'):
        runner.train()
    assert runner.iter == 0


def test_a_teacher_in_the_optimizer_is_caught(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r'4 parameters of the teacher are in the optimizer.*network\.0\.weight'):
        make_runner(tmp_path, [TeacherGuardHook()], teacher='OpenTeacher').train()


def test_a_record_that_does_not_fit_is_caught(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, [TeacherGuardHook()])
    runner.model.teacher.record = TeacherRecord('tap', runner.model.teacher.record.grid, 7)
    with pytest.raises(ValueError, match='7 channels'):
        runner.train()


@pytest.mark.parametrize('every_epoch', [False, True])
def test_the_exported_encoder_loads_safely_and_holds_the_trained_weights(tmp_path: Path, every_epoch: bool) -> None:
    seen: List[bool] = []

    class Looker(Hook):
        priority = 'LOWEST'

        def after_train_epoch(self, runner: Runner) -> None:
            seen.append((tmp_path / 'start_bevdet.pth').exists())

    hook = {'type': 'EncoderExportHook', 'filename': 'start.pth', 'every_epoch': every_epoch}
    runner = make_runner(tmp_path, [hook, Looker()])
    runner.train()
    assert seen == [every_epoch] * 2
    trained = runner.model.student.encoder.state_dict()
    for layout in ('bevdet', 'mmdet'):
        path = tmp_path / f'start_{layout}.pth'
        assert torch.load(path, weights_only=True)
        fresh = SwinEncoder(SwinConfig(**ENCODER))
        assert not load_encoder(fresh, path).missing
        assert all(torch.equal(value, trained[name]) for name, value in fresh.state_dict().items())


def test_an_export_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match='layouts is empty'):
        EncoderExportHook(layouts=())


@pytest.mark.parametrize('name', ['TeacherGuardHook', 'EncoderExportHook', 'LidarTeacher'])
def test_former_names_stay_beside_those_that_all_hosts_share(name: str) -> None:
    """Configs and scripts that were written with the former ones go on."""
    registry = MODELS if name == 'LidarTeacher' else HOOKS
    assert registry.get(name) is registry.get(f'GeoMIM{name}')
    assert getattr(geomim.mmdet3d, name) is getattr(geomim.mmdet3d, f'GeoMIM{name}') is registry.get(name)


def test_the_seed_hook_of_all_hosts_seeds_epochs_and_iterations() -> None:
    runner = SimpleNamespace(train_loop=SimpleNamespace(_max_epochs=3, max_epochs=3), epoch=2, iter=7, seed=5)
    drawn = {}
    for kind, hooks in (('one', ['GeoMIMSeedHook']), ('two', ['EpochSeedHook', 'IterationSeedHook'])):
        built = [HOOKS.build({'type': hook}) for hook in hooks]
        for hook in built:
            hook.before_train_epoch(runner)
        drawn[kind] = [random.random(), np.random.rand(), float(torch.rand(()))]
        for hook in built:
            hook.before_train_iter(runner, 0)
        drawn[kind].append(float(torch.rand(())))
    assert drawn['one'] == drawn['two']
