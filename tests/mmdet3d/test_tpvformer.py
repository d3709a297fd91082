"""TPVFormer of mmdet3d's source tree with GeoMIM's Swin: from an exported encoder through mmdet3d's own scripts to SegMetric.

What needs the source tree takes a checkout of mmdet3d 1.4 from GEOMIM_MMDET3D_CHECKOUT.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

from mmdet3d.structures import Det3DDataSample, PointData
from mmengine.config import Config

from geomim.mmdet3d import tpvformer_cures as cures

from ..helpers import run_quietly

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'mmdet3d'
ITERATIONS = 36
CLASSES = 17


@pytest.fixture(scope='session')
def checkout() -> Path:
    folder = Path(os.environ.get(cures.CHECKOUT, ''))
    if not (folder / 'projects' / 'TPVFormer').is_dir():
        pytest.skip(
            f'needs a checkout of mmdet3d 1.4, which holds projects/TPVFormer: set {cures.CHECKOUT} to its folder'
        )
    return folder.resolve()


@pytest.fixture(scope='module')
def encoder(tiny_encoder: Callable[[str], Path]) -> Path:
    return tiny_encoder('bevdet')


def micro_config(data_root: Path, encoder: Path) -> Config:
    """The tiny configuration with coarser planes, one layer and fewer channels."""
    config = Config.fromfile(CONFIGS / 'segmentation' / 'tpvformer_tiny_synthetic.py')
    model, planes = config.model, dict(tpv_h=32, tpv_w=32, tpv_z=8)
    model.data_preprocessor.voxel_layer.grid_shape = list(planes.values())
    model.backbone.init_cfg.checkpoint = str(encoder)
    layer = model.encoder.transformerlayers[0]
    across, into_images = layer.attn_cfgs
    for part in (model.encoder, model.decode_head, across, into_images, into_images.deformable_attention):
        part.update(planes)
    for part in (model.encoder, across, into_images, into_images.deformable_attention):
        part.embed_dims = 32
    layer.feedforward_channels = 64
    model.neck.out_channels = 32
    model.encoder.update(num_layers=1, transformerlayers=[layer])
    model.encoder.positional_encoding.update(num_feats=[12, 12, 8], h=32, w=32, z=8)
    model.decode_head.update(in_dims=32, hidden_dims=64, out_dims=32)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = f'{data_root}/'
        loader.dataset.data_prefix.pts_semantic_mask = 'lidarseg/v1.0-trainval'
    config.train_cfg.update(max_iters=ITERATIONS, val_interval=ITERATIONS)
    config.param_scheduler = [config.param_scheduler[0]]
    config.param_scheduler[0].end = 4
    config.optim_wrapper.optimizer.lr = 4e-3
    config.default_hooks.checkpoint.update(interval=ITERATIONS, max_keep_ckpts=-1)
    return config


def script(name: str, checkout: Path, folder: Path, *arguments: Any) -> str:
    """Run one of mmdet3d's scripts, as a user does; what it wrote to its log."""
    from geomim.nuscenes.infos import mmdet3d_tools

    command = [mmdet3d_tools() / name, *arguments, '--work-dir', folder]
    run_quietly(command, cwd=folder, **{cures.CHECKOUT: str(checkout)})
    return '\n'.join(path.read_text() for path in folder.glob('*/*.log'))


def scores(folder: Path) -> Dict[str, float]:
    rows = [json.loads(line) for path in folder.rglob('2*.json') for line in path.read_text().splitlines()]
    return next(row for row in reversed(rows) if 'miou' in row)


@pytest.fixture(scope='module')
def trained(checkout: Path, small_world: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('tpvformer')
    micro_config(small_world, encoder).dump(str(folder / 'micro.py'))
    log = script('train.py', checkout, folder, folder / 'micro.py')
    (folder / 'train.log').write_text(log)
    return folder


def labels(root: Path, split: str) -> List[np.ndarray]:
    """The 17 labels of every LiDAR point of a split, from the files and the dataset's table."""
    import mmengine
    from mmdet3d.registry import DATASETS

    table = np.zeros(32, dtype=np.int64)
    for label, mapped in DATASETS.get('NuScenesSegDataset').METAINFO['label_mapping'].items():
        table[label] = mapped
    infos = mmengine.load(str(root / f'nuscenes_infos_{split}.pkl'))['data_list']
    folder = root / 'lidarseg' / 'v1.0-trainval'
    return [table[np.fromfile(str(folder / info['pts_semantic_mask_path']), np.uint8)] for info in infos]


def intersection_over_union(truth: np.ndarray, found: np.ndarray) -> Tuple[float, float]:
    """mIoU over the classes that occur, and accuracy, without the points of label 0; class by class."""
    truth, found = truth[truth > 0], found[truth > 0]
    present = [label for label in range(1, CLASSES) if ((truth == label) | (found == label)).any()]
    values = [((truth == k) & (found == k)).sum() / ((truth == k) | (found == k)).sum() for k in present]
    return float(np.mean(values)), float((truth == found).mean())


def test_training_starts_from_the_whole_encoder(trained: Path, encoder: Path) -> None:
    """The output norm of stride 8, which the pretraining has none of, is all that begins anew."""
    log = (trained / 'train.log').read_text()
    count = sum(not name.endswith('relative_position_index') for name in torch.load(encoder, weights_only=True))
    assert f'GeoMIMSwin: {encoder} (bevdet layout): {count} tensors taken' in log
    assert 'missing in the file, left at their initial values: 2 (norm1.bias, norm1.weight)\n' in log
    for word in ('without a place', 'resized'):
        assert word not in log


def test_it_learns_more_than_the_most_frequent_class(trained: Path, small_world: Path) -> None:
    """mIoU and accuracy on the validation scene against its most frequent class of the training scenes everywhere."""
    often = np.bincount(np.concatenate(labels(small_world, 'train')), minlength=CLASSES)[1:].argmax() + 1
    truth = np.concatenate(labels(small_world, 'val'))
    miou, accuracy = intersection_over_union(truth, np.full_like(truth, often))
    found = scores(trained)
    assert found['miou'] > 1.25 * miou
    assert found['acc'] > accuracy + 0.05


@pytest.mark.long
def test_evaluation_alone_gives_the_same_scores(checkout: Path, trained: Path, tmp_path: Path) -> None:
    script('test.py', checkout, tmp_path, trained / 'micro.py', trained / f'iter_{ITERATIONS}.pth')
    for name in ('miou', 'acc', 'driveable_surface'):
        assert scores(tmp_path)[name] == pytest.approx(scores(trained)[name], abs=1e-6)


@pytest.fixture
def project(checkout: Path) -> Any:
    """TPVFormer, imported into this process."""
    from mmdet3d.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cures.CHECKOUT, str(checkout))
        import geomim.mmdet3d.tpvformer  # noqa: F401
    return sys.modules[cures.PROJECT]


def test_full_size_builds_from_the_projects_own_configuration(project: Any, checkout: Path, monkeypatch: Any) -> None:
    """All but backbone and image statistics is theirs, and the neck hands on as many maps as the encoder expects."""
    from mmdet3d.registry import MODELS

    monkeypatch.setenv(cures.CHECKOUT, str(checkout))
    ours = Config.fromfile(CONFIGS / 'segmentation' / 'tpvformer_swin-b_geomim_8xb1-2x_nus-seg.py')
    theirs = Config.fromfile(checkout / 'projects/TPVFormer/configs/tpvformer_8xb1-2x_nus-seg.py')
    for part in ('encoder', 'decode_head'):
        assert ours.model[part] == theirs.model[part]
    for part in ('train_dataloader', 'val_dataloader', 'val_evaluator', 'optim_wrapper', 'param_scheduler'):
        assert ours[part] == theirs[part]
    ours.model.backbone.with_cp = False
    model = MODELS.build(ours.model).eval()
    with torch.no_grad():
        maps = model.extract_feat(torch.zeros(1, 6, 3, 64, 96))
    assert [tuple(one.shape) for one in maps] == [(1, 6, 128, 64 // s, -(-96 // s)) for s in (8, 16, 32, 64)]
    assert len(maps) == len(model.encoder.level_embeds)
    assert sum(value.numel() for value in model.backbone.parameters()) > 80e6


def test_cures_are_installed_once(project: Any) -> None:
    assert cures.apply() == ()
    assert project.TPVFormerEncoder.get_reference_points(2, 3, 8, 4).shape == (1, 4, 6, 3)


def test_cured_prediction_labels_every_point(project: Any) -> None:
    logits = torch.randn(7, CLASSES)
    model = SimpleNamespace(
        extract_feat=lambda images: images,
        encoder=lambda features, samples: features,
        decode_head=SimpleNamespace(predict=lambda queries, samples: [logits]),
    )
    model.postprocess_result = project.TPVFormer.postprocess_result.__get__(model)
    (sample,) = project.TPVFormer.predict(model, {'imgs': None}, [Det3DDataSample()])
    assert sample.pred_pts_seg.pts_semantic_mask.tolist() == [int(row.argmax()) for row in logits]


class HealthySegmentor:
    """As TPVFormer would be with its prediction repaired."""

    def predict(self, inputs: Any, samples: List[Any]) -> List[Any]:
        logits = self.decode_head.predict(self.encoder(self.extract_feat(inputs['imgs']), samples), samples)
        return self.postprocess_result([one.T for one in logits], samples)

    def postprocess_result(self, logits: List[torch.Tensor], samples: List[Any]) -> List[Any]:
        for sample, one in zip(samples, logits):
            sample.pred_pts_seg = PointData(pts_semantic_mask=one.argmax(dim=0))
        return samples


class BrokenSegmentor(HealthySegmentor):
    def predict(self, inputs: Any, samples: List[Any]) -> List[Any]:
        logits = self.decode_head.predict(self.encoder(self.extract_feat(inputs['imgs']), samples), samples)
        return self.postprocess_result([one.argmax(dim=1) for one in logits], samples)


@pytest.mark.parametrize('broken', ['', 'reference points', 'dynamic scatter', 'predict'])
def test_a_cure_steps_aside_where_there_is_no_defect(monkeypatch: Any, broken: str) -> None:
    from mmdet3d.models.data_preprocessors.voxelize import dynamic_scatter_3d

    device = 'cuda' if broken == 'reference points' else 'cpu'
    original_scatter = lambda *_: (torch.zeros(1, 1),) * 3  # noqa: E731
    room = SimpleNamespace(dynamic_scatter_3d=dynamic_scatter_3d if broken == 'dynamic scatter' else original_scatter)
    monkeypatch.setitem(sys.modules, 'a_project', room)

    class Encoder:
        @staticmethod
        def get_reference_points(rows: int, device: str = device) -> str:
            return device

    class Segmentor(BrokenSegmentor if broken == 'predict' else HealthySegmentor):
        pass

    preprocessor = type('Preprocessor', (), {'__module__': 'a_project'})
    found = dict(zip(cures._CLASSES, (Segmentor, Encoder, preprocessor)))
    monkeypatch.setattr(cures, 'MODELS', found)
    assert cures.apply() == ((broken,) if broken else ())
    assert Encoder.get_reference_points(3) == 'cpu'
    assert cures.apply() == ()
    assert (room.dynamic_scatter_3d is original_scatter) == (broken != 'dynamic scatter')


@pytest.mark.parametrize('reduce', ['mean', 'sum', 'max'])
def test_scatter_equals_a_loop_over_voxels(reduce: str) -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(60, 4, generator=generator)
    coordinates = torch.randint(-1, 3, (60, 3), generator=generator, dtype=torch.int32)
    refuse = lambda *_: pytest.fail('the tensors are on a CPU')  # noqa: E731
    values, voxels, owners = cures.scatter(features, coordinates, reduce, True, on_gpu=refuse)
    expected = sorted({tuple(row) for row in coordinates.tolist() if min(row) >= 0})
    assert [tuple(row) for row in voxels.tolist()] == expected
    for number, voxel in enumerate(expected):
        mine = [i for i, row in enumerate(coordinates.tolist()) if tuple(row) == voxel]
        inside = features[mine]
        value = {'mean': inside.mean(0), 'sum': inside.sum(0), 'max': inside.amax(0)}[reduce]
        torch.testing.assert_close(values[number], value)
        assert owners[mine].tolist() == [number] * len(mine)
    outside = [i for i, row in enumerate(coordinates.tolist()) if min(row) < 0]
    assert outside
    assert (owners[outside] == -1).all()
    assert len(cures.scatter(features, coordinates, reduce, on_gpu=refuse)) == 2


def test_scatter_leaves_other_devices_to_the_original_and_refuses_unknown_reductions() -> None:
    features, coordinates = torch.zeros(2, 1, device='meta'), torch.zeros(2, 3, device='meta')
    seen = cures.scatter(features, coordinates, 'mean', True, on_gpu=lambda *given: given)
    assert seen == (features, coordinates, 'mean', True)
    with pytest.raises(ValueError, match="one of mean, sum, max, got 'median'"):
        cures.scatter(torch.zeros(1, 1), torch.zeros(1, 3), 'median', on_gpu=None)


@pytest.mark.parametrize('named', ['', 'a folder without projects'])
def test_a_missing_checkout_is_named(tmp_path: Path, monkeypatch: Any, named: str) -> None:
    monkeypatch.setenv(cures.CHECKOUT, str(tmp_path) if named else '')
    monkeypatch.setattr(cures, 'PROJECT', 'projects_of_nobody.tpvformer')
    with pytest.raises(ImportError, match='let GEOMIM_MMDET3D_CHECKOUT name a checkout of mmdet3d 1.4') as raised:
        cures.import_project()
    assert (str(tmp_path) if named else 'not set') in str(raised.value)


def test_the_configuration_asks_for_the_checkout(monkeypatch: Any) -> None:
    monkeypatch.delenv(cures.CHECKOUT, raising=False)
    with pytest.raises(KeyError, match='GEOMIM_MMDET3D_CHECKOUT'):
        Config.fromfile(CONFIGS / 'segmentation' / 'tpvformer_tiny_synthetic.py')
