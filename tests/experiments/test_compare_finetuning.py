"""The comparison of finetunings: which runs there are, what the table says of them, and the options that they get."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, List

import pytest
import torch


@pytest.fixture
def compare(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script('experiments/compare_finetuning.py')


@pytest.fixture
def finetuning(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script('experiments/finetuning.py')


@pytest.fixture
def encoders(tmp_path: Path) -> List[Path]:
    paths = [tmp_path / f'encoder_{number}.pth' for number in range(2)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]))
    return paths


def finished() -> List[Dict[str, Any]]:
    starts, seeds = ('scratch', 'encoder 0', 'encoder 1'), (0, 1)
    scores = [(0.10, 0.2), (0.16, 0.2), (0.12, 0.2), (0.20, 0.1), (0.18, 0.4), (0.24, 0.1)]
    runs = [(start, seed) for seed in seeds for start in starts]
    return [{'start': start, 'seed': seed, 'mAP': ap, 'NDS': nds} for (start, seed), (ap, nds) in zip(runs, scores)]


def settings() -> Dict[str, Any]:
    return {'world': '/w', 'config': 'c.py', 'iterations': 300, 'encoders': {'encoder 0': 'a', 'encoder 1': 'b'}}


def test_every_seed_meets_every_start(compare: ModuleType, finetuning: ModuleType, encoders: List[Path]) -> None:
    jobs = [(job.start, job.seed) for job in compare.plan(encoders, [5, 7])]
    assert jobs == [(start, seed) for seed in (5, 7) for start in ('scratch', 'encoder 0', 'encoder 1')]
    paired = [(job.start, job.encoder, job.seed) for job in compare.plan(encoders, [5, 7], paired=True)]
    assert paired == [
        ('scratch', None, 5),
        ('encoder 0', encoders[0], 5),
        ('scratch', None, 7),
        ('encoder 1', encoders[1], 7),
    ]
    names = {finetuning.run_name(job.encoder, job.seed, 300) for job in compare.plan(encoders, [5, 7])}
    assert len(names) == 6


def test_runs_that_would_count_twice_are_refused(compare: ModuleType, encoders: List[Path]) -> None:
    with pytest.raises(ValueError, match='2 encoders and 3 seeds'):
        compare.plan(encoders, [0, 1, 2], paired=True)
    with pytest.raises(ValueError, match='must differ'):
        compare.plan(encoders, [0, 0])
    encoders[1].write_bytes(encoders[0].read_bytes())
    with pytest.raises(ValueError, match='must differ'):
        compare.plan(encoders, [0, 1])


def test_means_spreads_and_differences(compare: ModuleType) -> None:
    summary = compare.summarise(finished())
    assert list(summary) == ['scratch', 'encoder 0', 'encoder 1', 'all encoders', 'encoder minus scratch']
    assert summary['scratch']['mAP'] == {
        'runs': 2,
        'mean': pytest.approx(0.15),
        'deviation': pytest.approx(0.1 / 2**0.5),
        'least': 0.10,
        'greatest': 0.20,
    }
    assert summary['all encoders']['mAP']['mean'] == pytest.approx(0.175)
    gap = summary['encoder minus scratch']
    assert gap['mAP']['mean'] == pytest.approx((0.06 + 0.02 - 0.02 + 0.04) / 4)
    assert (gap['mAP']['least'], gap['mAP']['greatest']) == (pytest.approx(-0.02), pytest.approx(0.06))
    assert gap['NDS']['mean'] == pytest.approx(0.3 / 4)


def test_the_table_holds_every_run_and_says_how_many_are_missing(compare: ModuleType) -> None:
    text = compare.markdown(settings(), finished()[:5], 6)
    assert '5 of 6 runs are finished' in text
    assert '300 iterations' in text
    assert '| encoder 0 | 1 | 0.1800 | 0.4000 |' in text
    assert '| encoder 1 | 1 | 0.1200 | 0.2000 |' in text, 'a single run has no spread'
    assert '| scratch | 2 | 0.1500 \N{PLUS-MINUS SIGN} 0.0707 (0.1000 to 0.2000) |' in text
    assert 'encoder minus scratch' not in compare.markdown(settings(), finished()[1:3], 6)


def test_a_folder_belongs_to_one_length(compare: ModuleType, tmp_path: Path) -> None:
    compare.check_settings(tmp_path, settings())
    compare.check_settings(tmp_path, settings())
    with pytest.raises(SystemExit, match='give another --out'):
        compare.check_settings(tmp_path, {**settings(), 'iterations': 301})


def test_the_detector_fits_images_of_any_size(
    finetuning: ModuleType, load_script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    Config = pytest.importorskip('mmengine.config').Config
    data_of = load_script('experiments/runs.py').Data
    (tmp_path / 'v1.0-mini').mkdir()
    table = tmp_path / 'v1.0-mini' / 'sample_data.json'
    data = data_of(tmp_path, 'v1.0-mini', tmp_path, {})
    table.write_text('[{"height": 0, "width": 0}, {"height": 225, "width": 400}]')
    assert finetuning.image_options(Config.fromfile(finetuning.DETECTOR, import_custom_modules=False), data) == []
    table.write_text('[{"height": 0, "width": 0}, {"height": 900, "width": 1600}]')
    options = finetuning.detector_options(finetuning.DETECTOR, data, 50)
    assert 'train_dataloader.dataset.pipeline.1.data_config.src_size=(900,1600)' in options
    assert 'val_dataloader.dataset.pipeline.1.data_config.resize=(0.00000,0.01000)' in options
    assert any(option.endswith('.begin_iter=5') for option in options)
    epochs = finetuning.DETECTOR.with_name('bevdet-r50.py')
    with pytest.raises(ValueError, match='counted in epochs'):
        finetuning.detector_options(epochs, data, 50)


def test_an_encoder_of_another_backbone_is_refused(finetuning: ModuleType, tmp_path: Path) -> None:
    """The host's own loading would warn and train from random weights, in the name of the encoder."""
    pytest.importorskip('mmdet3d')
    from mmengine.config import Config
    from mmengine.registry import MODELS

    config = Config.fromfile(finetuning.DETECTOR, import_custom_modules=False).model.img_backbone
    own = MODELS.build({**config, 'init_cfg': None}).state_dict()
    for name, state in {
        'own': own,
        'swin': {'patch_embed.projection.weight': torch.zeros(1)},
        'student': {f'student.encoder.backbone.{key}': value for key, value in own.items()},
    }.items():
        torch.save({'state_dict': state}, tmp_path / f'{name}.pth')
    finetuning.check_encoder(finetuning.DETECTOR, tmp_path / 'own.pth')
    for name in ('swin', 'student'):
        with pytest.raises(ValueError, match=rf'{name}.pth does not start the mmdet.ResNet .* bn1.bias'):
            finetuning.check_encoder(finetuning.DETECTOR, tmp_path / f'{name}.pth')
    swin = finetuning.DETECTOR.with_name('bevdepth4d_tiny_synthetic.py')
    finetuning.check_encoder(swin, tmp_path / 'student.pth')
