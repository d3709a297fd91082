"""Finetuning through the host's scripts: the options that a run gets, the encoders that it takes, the scores to compare."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Callable

import pytest
import torch


@pytest.fixture
def finetuning(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script('experiments/finetuning.py')


def test_headline_scores_have_short_names(finetuning: ModuleType) -> None:
    family = 'NuScenes metric/pred_instances_3d_NuScenes'
    scores = {f'{family}/mAP': 0.1, f'{family}/NDS': 0.2, f'{family}/car_AP_dist_2.0': 0.9, 'step': 600.0}
    scores.update({f'{family}/within_20m/mAP': 0.3, f'{family}/within_20m/NDS': 0.4})
    assert finetuning.headline(scores) == {'mAP': 0.1, 'NDS': 0.2}
    assert finetuning.headline(scores, (12, 20)) == {'mAP': 0.1, 'NDS': 0.2, 'mAP within 20 m': 0.3}
    assert finetuning.headline({'map/mIoU': 31.0, 'map/divider': 5.0}) == {'mIoU': 31.0}


def test_runs_have_names_of_their_own(finetuning: ModuleType, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f'{number}.pth').write_bytes(bytes([number]))
    starts = [None, tmp_path / '0.pth', tmp_path / '1.pth']
    assert len({finetuning.run_name(start, seed, 300) for start in starts for seed in (5, 7)}) == 6
    (tmp_path / 'copy.pth').write_bytes((tmp_path / '0.pth').read_bytes())
    assert finetuning.run_name(tmp_path / 'copy.pth', 5, 300) == finetuning.run_name(starts[1], 5, 300), 'by content'


def test_a_start_changes_the_backbone_alone(finetuning: ModuleType) -> None:
    assert finetuning.start_options(None) == ['model.img_backbone.init_cfg=None']
    options = finetuning.start_options(Path('/e.pth'))
    assert all(option.startswith('model.img_backbone.init_cfg.') for option in options)
    assert options[1].endswith('checkpoint=/e.pth')


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
    options = finetuning.detector_options(finetuning.DETECTOR, data, 50, tmp_path, (12, 20))
    assert 'train_dataloader.dataset.pipeline.1.data_config.src_size=(900,1600)' in options
    assert 'val_dataloader.dataset.pipeline.1.data_config.resize=(0.00000,0.01000)' in options
    assert any(option.endswith('.begin_iter=5') for option in options)
    assert 'val_evaluator.within=(12,20,)' in options
    epochs = finetuning.DETECTOR.with_name('bevdet-r50.py')
    with pytest.raises(ValueError, match='counted in epochs'):
        finetuning.detector_options(epochs, data, 50, tmp_path)


def test_a_map_finds_its_data_and_needs_no_nuscenes_metric(
    finetuning: ModuleType, load_script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    pytest.importorskip('mmengine')
    (tmp_path / 'v1.0-mini').mkdir()
    (tmp_path / 'v1.0-mini' / 'sample_data.json').write_text('[{"height": 225, "width": 400}]')
    data = load_script('experiments/runs.py').Data(tmp_path, 'v1.0-mini', tmp_path, {})
    config = load_script('experiments/transfer.py').DETECTORS['map']
    options = finetuning.detector_options(config, data, 50, tmp_path, (12,))
    places = [option.split('=')[0] for option in options if option.endswith(f'data_root={tmp_path}/')]
    assert [place.split('.')[0] for place in places] == ['train_dataloader', 'val_dataloader', 'test_dataloader']
    assert not any('evaluator' in option for option in options)


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
