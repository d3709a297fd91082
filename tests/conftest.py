"""Shared by all rooms: a seed, a ring of hand-made cameras, the smallest pretraining configuration and its inputs, and a
small world in the nuScenes format."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import shutil
import urllib.error
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, Tuple

import pytest
import torch
from torch import Tensor

from geomim import (
    BEVGrid,
    CameraRig,
    DecoderConfig,
    DepthBins,
    GeoMIM,
    GeoMIMConfig,
    SwinConfig,
    TargetConfig,
    ViewTransformConfig,
)
from geomim.method.masking import complementary_masks

from .helpers import linked_version, linked_world, run_quietly

IMAGE_SIZE = (64, 96)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from several threads, and lose much on a machine that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(20230321)
    return


def _rotation(axis: Tuple[float, float, float], angle: float) -> Tensor:
    """Rodrigues' formula, float64."""
    x, y, z = (value / math.sqrt(sum(a * a for a in axis)) for value in axis)
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def ring_rig(
    batch: int = 1,
    cams: int = 6,
    image_size: Tuple[int, int] = IMAGE_SIZE,
    augmented: bool = False,
    dtype: torch.dtype = torch.float32,
) -> CameraRig:
    """Cameras that look outward from a ring of 0.9 m around the LiDAR; sample and camera differ in every number."""
    height, width = image_size
    intrinsics = torch.zeros(batch, cams, 3, 3, dtype=torch.float64)
    cam2bev = torch.eye(4, dtype=torch.float64).repeat(batch, cams, 1, 1)
    img_aug = torch.eye(4, dtype=torch.float64).repeat(batch, cams, 1, 1)
    bev_aug = torch.eye(4, dtype=torch.float64).repeat(batch, 1, 1)
    lidar2ego = torch.eye(4, dtype=torch.float64)
    lidar2ego[:3, :3] = _rotation((0, 0, 1), -1.5)
    lidar2ego[:3, 3] = torch.tensor([0.9, 0.1, 1.8])
    for b in range(batch):
        for n in range(cams):
            yaw = 2 * math.pi * n / cams + 0.13 * b + 0.07
            ahead = torch.tensor([math.cos(yaw), math.sin(yaw), -0.02 * n], dtype=torch.float64)
            ahead = ahead / ahead.norm()
            right = torch.tensor([math.sin(yaw), -math.cos(yaw), 0.0], dtype=torch.float64)
            down = torch.stack(
                [  # ahead x right
                    ahead[1] * right[2] - ahead[2] * right[1],
                    ahead[2] * right[0] - ahead[0] * right[2],
                    ahead[0] * right[1] - ahead[1] * right[0],
                ]
            )
            cam2bev[b, n, :3, :3] = torch.stack([right, down, ahead], dim=1)
            cam2bev[b, n, :3, 3] = 0.9 * ahead + torch.tensor([0.0, 0.0, 0.11 * n - 0.3])
            focal = 0.45 * width + n + 0.5 * b
            intrinsics[b, n] = torch.tensor(
                [[focal, 0, width / 2 - 1.5], [0, focal * 1.02, height / 2 + 0.5 * n], [0, 0, 1]]
            )
            if augmented:
                scale, angle = 0.9 + 0.03 * n, 0.02 * (n + 1) * (-1) ** b
                flip = -1.0 if n % 2 else 1.0
                img_aug[b, n, :2, :2] = (
                    scale
                    * _rotation((0, 0, 1), angle)[:2, :2]
                    @ torch.diag(torch.tensor([flip, 1.0], dtype=torch.float64))
                )
                img_aug[b, n, 0, 3] = 2.5 + (width if flip < 0 else 0)
                img_aug[b, n, 1, 3] = -3.0 + n
        if augmented:
            # no symmetric matrix: a transposed one must show
            flip = torch.tensor([1.0, -1.0 if b else 1.0, 1.0], dtype=torch.float64)
            bev_aug[b, :3, :3] = 1.02 * _rotation((0, 0, 1), 0.3 + 0.6 * b) @ torch.diag(flip)
            bev_aug[b, :3, 3] = torch.tensor([0.4, -0.3, 0.05])
    rig = CameraRig.create(
        intrinsics, lidar2ego @ cam2bev, cam2bev, img_aug, bev_aug, [f'CAM_{n}' for n in range(cams)]
    )
    return rig.to(dtype)


def tiny_pretraining(**changes: Any) -> GeoMIMConfig:
    """Every part of the method at the smallest size; the grid is not square, so that swapped axes show."""
    config = GeoMIMConfig(
        encoder=SwinConfig(
            embed_dims=8,
            depths=(1, 1, 2, 1),
            num_heads=(1, 2, 2, 4),
            window_size=(4, 4, 3, 2),
            pretrain_img_size=32,
        ),
        decoder=DecoderConfig(
            dim=16,
            num_heads=2,
            depth=4,
            cross_view_after=(1, 3),
            geometry_from=2,
            geometry_cross_view_after=(1,),
            pos_embed_size=3,
            fusion_window=3,
        ),
        view_transform=ViewTransformConfig(
            image_size=IMAGE_SIZE,
            grid=BEVGrid((-12.0, 12.0, 1.5), (-9.0, 9.0, 1.5)),
            depth_bins=DepthBins(1.0, 13.0, 1.0),
            channels=6,
        ),
        target=TargetConfig(channels=5, patch_size=2),
    )
    return replace(config, **changes)


def randomise(model: torch.nn.Module) -> None:
    """Random values everywhere, those that start at zero or one included, so that no part is the identity."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            spread = 0.02 if 'relative_position_bias_table' not in name else 0.5
            value.add_(torch.randn_like(value) * (spread if value.dim() != 1 else 0.1))
        for name, value in model.named_buffers():
            if name.endswith('pos_embed'):
                value.normal_(std=0.1)


def pretraining_inputs(config: GeoMIMConfig, rig: CameraRig, copies: int = 2, seed: int = 1) -> Dict[str, Any]:
    """Keyword arguments of ``GeoMIM.forward`` for the cameras of ``rig``."""
    generator = torch.Generator().manual_seed(seed)
    view, batch, cams = config.view_transform, rig.batch_size, rig.num_cams
    depth = torch.rand(batch, cams, *view.image_size, generator=generator) * 14
    seen = torch.rand(depth.shape, generator=generator) < 0.03
    return {
        'images': torch.randn(batch, cams, 3, *view.image_size, generator=generator),
        'rig': rig,
        'target_bev': torch.randn(batch, config.target.channels, *view.output_grid.shape, generator=generator),
        'depth_map': torch.where(seen, depth, torch.zeros_like(depth)),
        'masks': complementary_masks(view.image_size, copies, generator=generator),
    }


def config_entries(config: GeoMIMConfig) -> Dict[str, Any]:
    """The nested dictionary that a configuration file would hold for ``config``."""
    view = {name: value for name, value in vars(config.view_transform).items() if name not in ('grid', 'depth_bins')}
    grid, bins = config.view_transform.grid, config.view_transform.depth_bins
    parts = {name: dict(vars(getattr(config, name))) for name in ('encoder', 'decoder', 'target')}
    view.update(vars(grid), depth_bound=(bins.lower, bins.upper, bins.step))
    return {**vars(config), **parts, 'view_transform': view}


@pytest.fixture(scope='session')
def as_entries() -> Callable[[GeoMIMConfig], Dict[str, Any]]:
    return config_entries


@pytest.fixture(scope='session')
def make_rig() -> Callable[..., CameraRig]:
    return ring_rig


@pytest.fixture(scope='session')
def make_config() -> Callable[..., GeoMIMConfig]:
    return tiny_pretraining


@pytest.fixture(scope='session')
def make_inputs() -> Callable[..., Dict[str, Any]]:
    return pretraining_inputs


@pytest.fixture(scope='session')
def make_model() -> Callable[[GeoMIMConfig], GeoMIM]:
    """A model in evaluation mode whose every parameter matters."""

    def build(config: GeoMIMConfig) -> GeoMIM:
        torch.manual_seed(7)
        model = GeoMIM(config)
        randomise(model)
        return model.eval()

    return build


@pytest.fixture(scope='session')
def randomise_parameters() -> Callable[[torch.nn.Module], None]:
    return randomise


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the network: an address's last part is a file's name; torch's cache is empty."""
    folder = tmp_path / 'web'
    folder.mkdir()

    def download(url: str, target: str, *_: Any, **__: Any) -> None:
        if not (folder / Path(url).name).is_file():
            raise urllib.error.URLError('no network')
        shutil.copy(folder / Path(url).name, target)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    return folder


@pytest.fixture(scope='session')
def repository() -> Path:
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def load_script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """By its path from the root: a script, imported as one that is run, with its folder on the path until the test ends."""

    def load(path: str) -> ModuleType:
        file = repository / path
        monkeypatch.syspath_prepend(str(file.parent))
        module = importlib.import_module(file.stem)
        assert Path(str(module.__file__)).resolve() == file, f'another module has the name {file.stem}'
        return module

    return load


class ReferenceFolder:
    """``folder / name`` is a file of the published implementation's tensors; a test that needs an absent one is skipped.

    Whole files from ``GEOMIM_REFERENCE`` or ``../shared/reference`` come before the small ones of every clone.
    """

    def __init__(self, repository: Path) -> None:
        self.own = repository / 'tests' / 'data' / 'reference'
        beside = repository.parent / 'shared' / 'reference'
        self.folders = (Path(os.environ.get('GEOMIM_REFERENCE', str(beside))), self.own)

    def __truediv__(self, name: str) -> Path:
        for folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f'no {name} in {self.folders[0]}; set GEOMIM_REFERENCE to its folder')


@pytest.fixture(scope='session')
def reference_folder(repository: Path) -> ReferenceFolder:
    """The published implementation's tensors and manifests."""
    return ReferenceFolder(repository)


@pytest.fixture(scope='session')
def manifest(reference_folder: ReferenceFolder) -> Callable[[str], Dict[str, Tuple[int, ...]]]:
    """Names and shapes of a published configuration's state dict, by its name."""

    def read(name: str) -> Dict[str, Tuple[int, ...]]:
        content = json.loads((reference_folder / f'manifests/{name}.json').read_text())['state_dict']
        return {key: tuple(shape) for key, shape in content.items()}

    return read


@pytest.fixture(scope='session')
def tiny_encoder(repository: Path, small_world: Path) -> Callable[[str], Path]:
    """By a layout's name: an encoder as the synthetic world's pretraining leaves it, after four iterations before an untrained teacher.

    By mmdet3d's own script in a process of its own; the workers of pytest-xdist share one.
    """

    def export(layout: str) -> Path:
        from geomim.nuscenes.infos import mmdet3d_tools

        folder = small_world.parent / 'tiny_pretraining'
        encoder = folder / f'encoder_{layout}.pth'
        with locked(folder.with_suffix('.lock')):
            if not encoder.is_file():
                script = mmdet3d_tools() / 'train.py'
                config = repository / 'configs' / 'mmdet3d' / 'pretrain' / 'geomim_tiny_synthetic.py'
                options = ['train_cfg.max_iters=4', 'train_cfg.val_interval=4', 'param_scheduler.0.end=1']
                options += ['model.teacher.checkpoint=None']
                for loader in ('train', 'val', 'test'):
                    dataset = f'{loader}_dataloader.dataset'
                    options += [f'{dataset}.data_root={small_world}/', f'{dataset}.metainfo.version=v1.0-trainval']
                run_quietly([script, config, '--work-dir', folder, '--cfg-options', *options])
        assert encoder.is_file()
        return encoder

    return export


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, where the system has such locks."""
    with path.open('a') as lock:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope='session')
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 + 1 scenes of two keyframes with mmdet3d's info files, v1.0-trainval, images of 400 x 225; not to be changed.

    Made by the command itself in a process of its own: the converter changes folder and patches the devkit. The workers
    of pytest-xdist share one.
    """
    for name in ('cv2', 'nuscenes', 'mmdet3d'):
        pytest.importorskip(name)
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        folder = folder.parent
    root = folder / 'small_world'
    command = ['-m', 'geomim', 'synthesize', root, '--scenes', '2+1', '--frames', '2']
    with locked(folder / 'small_world.lock'):
        run_quietly([*command, '--image-size', '225', '400', '--workers', '1'])
    return root


@pytest.fixture(scope='session')
def link_world(small_world: Path) -> Callable[[Path], Path]:
    return lambda root: linked_world(small_world, root)


def unequal_rig(five: Path) -> Dict[str, Any]:
    """Five cameras, a sixth of their size (320 x 213 and 320 x 147), each with a focal length of its own."""
    rig = json.loads(five.read_text())
    for number, camera in enumerate(rig['cameras'].values()):
        intrinsics = [[value / 6 for value in row] for row in camera['camera_intrinsic'][:2]]
        for axis in (0, 1):
            intrinsics[axis][axis] *= 1 - 0.1 * number
        camera['camera_intrinsic'] = [*intrinsics, [0.0, 0.0, 1.0]]
        camera['height'], camera['width'] = camera['height'] // 6, camera['width'] // 6
    return rig


@pytest.fixture(scope='session')
def five_world(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 + 1 scenes of two keyframes seen by five cameras, v1.0-trainval; its rig lies beside it as five.json."""
    for name in ('cv2', 'nuscenes', 'mmdet3d'):
        pytest.importorskip(name)
    root = tmp_path_factory.mktemp('rig') / 'five'
    rig = root.with_suffix('.json')
    rig.write_text(json.dumps(unequal_rig(repository / 'projects/GeoMIM/geomim/synthetic/rigs/five.json')))
    command = ['-m', 'geomim', 'synthesize', str(root), '--rig', str(rig), '--scenes', '1+1']
    command += ['--frames', '2', '--image-size', '0', '0', '--workers', '1']
    run_quietly(command)
    return root


@pytest.fixture(scope='session')
def bevdet_world(link_world: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    from mmdet3d.utils import register_all_modules

    from geomim.nuscenes.bevdet_infos import make_bevdet_infos

    register_all_modules(init_default_scope=True)
    return make_bevdet_infos(link_world(tmp_path_factory.mktemp('bevdet') / 'world'))


@pytest.fixture(scope='session')
def unannotated_world(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world as v1.0-test, by links: its tables have no annotation; with info files of ours. Not to be changed."""
    root = tmp_path_factory.mktemp('unannotated') / 'world'
    tables = linked_version(small_world, root, 'v1.0-test')
    for table in (small_world / 'v1.0-trainval').iterdir():
        if table.stem != 'lidarseg':
            empty = table.stem in ('sample_annotation', 'instance')
            (tables / table.name).write_text('[]' if empty else table.read_text())
    run_quietly(['-m', 'geomim', 'infos', root])
    return root
