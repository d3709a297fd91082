"""The small world with the BEVDet family's info files, its pipeline, and configurations by name."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

import pytest
import torch

from ..helpers import run_quietly

CAMERAS = ['CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT']
DATA_CONFIG = dict(
    cams=CAMERAS,
    Ncams=6,
    input_size=(128, 224),
    src_size=(225, 400),
    resize=(-0.06, 0.11),
    rot=(-5.4, 5.4),
    flip=True,
    crop_h=(0.0, 0.0),
    resize_test=0.0,
)


if importlib.util.find_spec('mmdet3d'):  # `import micro_detector`, in tests as in the runs that they start
    _spec = importlib.util.spec_from_file_location('micro_detector', Path(__file__).with_name('micro_detector.py'))
    sys.modules['micro_detector'] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules['micro_detector'])


def make_pipeline(
    frames: int = 1,
    training: bool = True,
    depth: Union[bool, str] = True,
    ego_camera: Optional[str] = None,
    data_config: Optional[Dict[str, Any]] = None,
) -> List[Dict[str, Any]]:
    """The steps up to packing, without filters of boxes; with ``depth='points'`` the detector makes the depth maps."""
    config = data_config or DATA_CONFIG
    points = [dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5)]
    if depth != 'points':
        points.append(dict(type='KeyFrameDepthMaps', depth_range=(1.0, 60.0)))
    return [
        dict(type='LoadSurroundFrames', data_config=config, num_frames=frames),
        dict(type='SurroundFramesAug', data_config=config, training=training),
        dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
        dict(type='BoxesToKeyEgo', ego_camera=ego_camera),
        dict(type='BEVDetBEVAug', training=training),
        *(points if depth else []),
        dict(type='PackBEVDetInputs'),
    ]


@pytest.fixture(autouse=True)
def mmdet3d_scope() -> None:
    """What an earlier test's Runner left behind must not decide where the registries look."""
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet3d')


@pytest.fixture(scope='session')
def bevdet_pipeline() -> Callable[..., List[Dict[str, Any]]]:
    return make_pipeline


def without_lidar(world: Path, root: Path, cameras: Sequence[str]) -> Path:
    """The tables and images of a world as a rig of some cameras would have recorded them: nobody has counted points."""
    tables = root / 'v1.0-trainval'
    tables.mkdir(parents=True)
    read = {path.stem: json.loads(path.read_text()) for path in (world / 'v1.0-trainval').iterdir()}
    del read['lidarseg']
    sensors = {row['token'] for row in read['sensor'] if row['channel'] in cameras}
    mounts = {row['token'] for row in read['calibrated_sensor'] if row['sensor_token'] in sensors}
    read['sensor'] = [row for row in read['sensor'] if row['token'] in sensors]
    read['calibrated_sensor'] = [row for row in read['calibrated_sensor'] if row['token'] in mounts]
    read['sample_data'] = [row for row in read['sample_data'] if row['calibrated_sensor_token'] in mounts]
    read['sample_annotation'] = [dict(row, num_lidar_pts=0, num_radar_pts=0) for row in read['sample_annotation']]
    for name, rows in read.items():
        (tables / f'{name}.json').write_text(json.dumps(rows))
    (root / 'samples').mkdir()
    for name in cameras:
        (root / 'samples' / name).symlink_to(world / 'samples' / name)
    (root / 'maps').symlink_to(world / 'maps')
    return root


@pytest.fixture(scope='session')
def lidarless_world(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cameras alone, with the BEVDet family's info files, by the command; not to be changed."""
    root = without_lidar(small_world, tmp_path_factory.mktemp('lidarless') / 'world', CAMERAS)
    run_quietly(['-m', 'geomim', 'infos', root])
    return root


@pytest.fixture(scope='session')
def make_dataset(bevdet_world: Path) -> Callable[..., Any]:
    """``BEVDetNuScenesDataset`` of the world; keyword arguments change its settings."""
    from geomim.bevdet.datasets import BEVDetNuScenesDataset

    def build(split: str = 'train', **changes: Any) -> Any:
        settings: Dict[str, Any] = dict(
            data_root=f'{bevdet_world}/',
            ann_file=f'bevdet_infos_{split}.pkl',
            data_prefix=dict(pts='samples/LIDAR_TOP', **{name: f'samples/{name}' for name in CAMERAS}),
            pipeline=[],
        )
        return BEVDetNuScenesDataset(**{**settings, **changes})

    return build


@pytest.fixture(scope='session')
def read_config(repository: Path) -> Callable[[str], Any]:
    """A configuration for mmdet3d by the name of its file."""
    from mmengine.config import Config

    def read(name: str) -> Any:
        (path,) = (repository / 'configs' / 'mmdet3d').rglob(f'{name}.py')
        return Config.fromfile(path, import_custom_modules=False)

    return read


@pytest.fixture(scope='session')
def build_empty() -> Callable[[Any], Any]:
    """A configuration's model without weights; mmdet's shifted Swin reads numbers of its own while it is built, which needs real ones."""
    from mmdet3d.registry import MODELS

    def build(config: Any) -> Any:
        model = {key: value for key, value in config.model.items() if key != 'data_preprocessor'}
        with torch.device('cpu' if config.model['img_backbone']['type'] == 'ShiftedSwin' else 'meta'):
            return MODELS.build(model)

    return build


@pytest.fixture(scope='session')
def encoder(tiny_encoder: Callable[[str], Path]) -> Path:
    return tiny_encoder('bevdet')
