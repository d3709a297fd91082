"""What occupancy networks take over from detectors and from published checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
import torch

pytest.importorskip('mmdet3d')

from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner.checkpoint import load_checkpoint

import geomim.bevdet  # noqa: F401 - registers every part
from geomim.__main__ import main
from geomim.bevdet.inference.detect import DetectionRequest, read_config
from geomim.checkpoints.detector_layouts import to_bevdet
from geomim.checkpoints.detector_loading import load_detector
from geomim.checkpoints.loading import read_checkpoint, save_atomically
from geomim.checkpoints.position_bias import resize_windows

FOLDER = Path(__file__).resolve().parents[3] / 'configs' / 'mmdet3d' / 'occupancy'
LOAD = 'bevdet-occ-swinb-4d-stereo-512x1408-24e-geomim-load'
TINY = 'bevstereo4docc_tiny_synthetic'
DETECTION = 'bevdet-swinb-4d-stereo-512x1408-cbgs-geomim'


def read(name: str, folder: Path = FOLDER) -> Config:
    return Config.fromfile(folder / f'{name}.py', import_custom_modules=False)


def build(model: Any, device: str = 'meta') -> BaseModel:
    with torch.device(device):
        return MODELS.build({key: value for key, value in model.items() if key != 'data_preprocessor'})


def shapes(state: Dict[str, torch.Tensor]) -> Dict[str, Tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


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
    assert load_detector(other, ours) == 'BEVStereo4DOCC on a Swin of GeoMIM, from entry state_dict'
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
