"""GeoMIM pretraining through mmengine's real Runner: what a run leaves behind, and that it resumes and spreads over processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Dict, List

import pytest
import torch

pytest.importorskip('mmdet3d')

from ..helpers import assert_same_tensors, run_quietly
from .micro import micro_config

HERE = Path(__file__).resolve().parent
DISTRIBUTED = ('-m', 'torch.distributed.run', '--standalone')


def run(work_dir: Path, data: Path, *options: str, launcher: str = '', status: int = 0) -> None:
    start: List[str] = []
    if launcher:
        start, options = [*DISTRIBUTED, f'--nproc-per-node={launcher}'], (*options, '--launcher', 'pytorch')
    run_quietly([*start, HERE / 'micro.py', work_dir, data, *options], status=status)


def losses(work_dir: Path) -> List[Dict[str, float]]:
    return [json.loads(line) for line in (work_dir / 'losses.jsonl').read_text().splitlines()]


def weights(path: Path) -> Dict[str, torch.Tensor]:
    from geomim.checkpoints.loading import read_checkpoint

    return read_checkpoint(path)['state_dict']


@pytest.fixture(scope='module')
def unbroken(small_world, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp('unbroken')
    run(work_dir, small_world)
    return work_dir


def test_a_run_leaves_checkpoint_encoders_log_and_pictures(unbroken: Path) -> None:
    state = weights(unbroken / 'iter_4.pth')
    assert any(name.startswith('student.encoder.') for name in state)
    assert not any(name.startswith('teacher') for name in state)
    assert len(list(unbroken.glob('*/vis_data/vis_image/*.png'))) >= 2
    assert list(unbroken.glob('*/vis_data/events.out.tfevents*'))
    assert list(unbroken.glob('*/*.log'))
    scalars = [
        json.loads(line) for path in unbroken.glob('*/vis_data/scalars.json') for line in path.read_text().splitlines()
    ]
    assert any('geomim/constant_map_loss' in row for row in scalars)


def test_exported_encoder_fills_the_finetuning_backbone(unbroken: Path) -> None:
    from mmdet.registry import MODELS as detection_2d
    from mmdet3d.registry import MODELS as detection_3d

    import geomim.mmdet3d  # noqa: F401

    sizes = dict(embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=(4, 4, 3, 2))
    state = weights(unbroken / 'iter_4.pth')
    for registry in (detection_3d, detection_2d):
        for layout in ('bevdet', 'mmdet'):
            checkpoint = str(next(unbroken.glob(f'encoder_{layout}.pth')))
            backbone = registry.build(
                dict(type='GeoMIMSwin', init_cfg=dict(type='Pretrained', checkpoint=checkpoint), **sizes)
            )
            backbone.init_weights()
            for name, value in backbone.state_dict().items():
                torch.testing.assert_close(value, state['student.encoder.' + name], rtol=0, atol=0)


def test_student_without_its_teacher_loads_strictly(unbroken: Path, small_world: Path) -> None:
    from mmengine.registry import MODELS

    config = micro_config(unbroken, small_world)
    model = MODELS.build(config.model)
    model.load_state_dict(weights(unbroken / 'iter_4.pth'), strict=True)


@pytest.mark.parametrize(
    'options',
    [
        pytest.param((), id='iterations'),
        pytest.param(('--epochs', '2', '--workers', '1'), id='epochs, worker', marks=pytest.mark.long),
    ],
)
def test_killed_run_resumes_to_the_same_losses_bit_for_bit(
    small_world: Path, unbroken: Path, tmp_path: Path, options
) -> None:
    if options:
        unbroken = tmp_path / 'whole'
        run(unbroken, small_world, *options)
    broken = tmp_path / 'broken'
    run(broken, small_world, *options, '--kill-at', '3', status=-signal.SIGKILL)
    run(broken, small_world, *options, '--resume')
    whole, pieces = losses(unbroken), {row['iter']: row for row in losses(broken)}
    assert [pieces[row['iter']] for row in whole] == whole
    assert len(losses(broken)) > 3, 'the resumed run must have trained'
    last = 'epoch_2.pth' if options else 'iter_4.pth'
    assert_same_tensors(weights(broken / last), weights(unbroken / last))


@pytest.mark.long
def test_two_processes_train(small_world: Path, tmp_path: Path) -> None:
    run(tmp_path / 'two', small_world, '--iters', '2', launcher='2')
    assert (tmp_path / 'two' / 'iter_2.pth').is_file()


@pytest.mark.long
def test_a_spread_optimizer_trains_and_resumes_as_a_whole_one(small_world: Path, tmp_path: Path) -> None:
    """mmengine's ZeroRedundancyOptimizer: its state is gathered for each checkpoint, and spread again."""
    whole, spread = tmp_path / 'whole', tmp_path / 'spread'
    run(whole, small_world, launcher='2')
    run(spread, small_world, '--zero', '--kill-at', '3', launcher='2', status=1)
    run(spread, small_world, '--zero', '--resume', launcher='2')
    ours, theirs = weights(spread / 'iter_4.pth'), weights(whole / 'iter_4.pth')
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_two_processes_give_the_gradients_of_one(small_world: Path, tmp_path: Path) -> None:
    """Each rank takes one sample; the mean of the single-process gradients of the two samples is what DDP must give."""
    output = tmp_path / 'gradients'
    for start in ((), (*DISTRIBUTED, '--nproc-per-node=2')):
        run_quietly([*start, HERE / 'ddp_gradients.py', small_world, output])
    one, two = torch.load(f'{output}_1.pth', weights_only=True), torch.load(f'{output}_2.pth', weights_only=True)
    assert one.keys() == two.keys()
    assert len(one) > 100
    for name in one:
        scale = max(1e-4, float(one[name].abs().max()))
        assert float((one[name] - two[name]).abs().max()) / scale < 1e-4, name


def test_a_runs_own_checkpoint_is_read_on_an_older_torch_too(unbroken: Path, monkeypatch) -> None:
    from mmengine.logging import HistoryBuffer

    from geomim.mmengine.compat import load_local_checkpoint

    path = unbroken / 'iter_4.pth'
    current = load_local_checkpoint(path, 'cpu')
    monkeypatch.delattr(torch.serialization, 'get_unsafe_globals_in_checkpoint', raising=False)
    older = load_local_checkpoint(path, 'cpu')
    for loaded in (current, older):
        log = loaded['message_hub']['log_scalars']['train/loss']
        assert isinstance(log, HistoryBuffer)
        assert log.statistics('mean') == pytest.approx(current['message_hub']['log_scalars']['train/loss'].mean())
    assert_same_tensors(older['state_dict'], current['state_dict'])


@pytest.mark.parametrize('torch_knows', ['stand-ins', 'nothing'])
def test_a_foreign_checkpoint_is_refused_by_the_runner(tmp_path: Path, monkeypatch, torch_knows: str) -> None:
    from mmengine.runner.checkpoint import CheckpointLoader

    import geomim.mmdet3d  # noqa: F401

    if torch_knows == 'nothing':
        monkeypatch.delattr(torch.serialization, 'get_unsafe_globals_in_checkpoint', raising=False)
    marker = tmp_path / 'ran'

    class Evil:
        def __reduce__(self):
            return (os.system, (f'touch {marker}',))

    path = tmp_path / 'evil.pth'
    torch.save({'state_dict': {'weight': torch.zeros(1)}, 'extra': Evil()}, path)
    with pytest.raises(ValueError, match='refused for safety'):
        CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    assert not marker.exists()
    with pytest.raises(FileNotFoundError, match='does not exist'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'absent.pth'), map_location='cpu')
