"""``verify`` takes every size from the file: cameras, samples, copies and cells.

The files are written here in float64 with plain twins of the fast operations, and checked in float32 with the fast.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
import torch
from torch import Tensor

np = pytest.importorskip('numpy', reason='reference tensors are .npz files')

import geomim.method.attention  # noqa: E402
import geomim.method.lift_splat  # noqa: E402
from geomim import CameraRig, GeoMIM  # noqa: E402
from geomim.__main__ import main  # noqa: E402
from geomim.checkpoints.layouts import to_reference  # noqa: E402
from geomim.method.depth import depth_maps  # noqa: E402
from geomim.method.masking import complementary_masks  # noqa: E402
from geomim.method.pooling import bev_pool_plain  # noqa: E402
from geomim.proofs import pretraining as verify_module  # noqa: E402
from geomim.proofs.files import verify_file  # noqa: E402

Make = Callable[..., Any]


def file_config(cams: int, batch: int, size: tuple, copies: int, axis_order: str, downsample: int) -> Dict[str, Any]:
    """A file's ``meta/config`` in the vocabulary of the reference files."""
    return {
        'kind': 'pretrain',
        'num_cams': cams,
        'batch_size': batch,
        'input_size': list(size),
        'num_copies': copies,
        'mask_cell': 32,
        'encoder': {
            'pretrain_img_size': 64,
            'embed_dims': 12,
            'depths': [1, 2, 1, 1],
            'num_heads': [1, 2, 3, 4],
            'window_size': [6, 5, 4, 3],
            'mlp_ratio': 2,
            'out_indices': [2, 3],
            'fusion_window_size': 5,
        },
        'decoder': {'dim': 24, 'num_heads': 3, 'depth': 8, 'pos_embed_size': 5},
        'view_transform': {
            'in_channels': 24,
            'out_channels': 7,
            'stride': 16,
            'xbound': [-16.0, 16.0, 1.0],
            'ybound': [-12.0, 12.0, 1.0],
            'zbound': [-5.0, 5.0, 10.0],
            'dbound': [1.0, 16.0, 1.0],
            'downsample': downsample,
            'norm': 'BN',
            'depth_loss_weight': 0.02,
        },
        'target': {'channels': 9, 'patch_size': 4, 'eps': 1e-6},
        'axis_order': axis_order,
    }


def published(state: Dict[str, Tensor], model: GeoMIM) -> Dict[str, Tensor]:
    names = to_reference(state, model.config.view_transform)
    return verify_module._published_names(names, back=True)


def step(model: GeoMIM, inputs: Dict[str, Tensor], rig: CameraRig, masks: Tensor, maps: Tensor) -> Dict[str, Tensor]:
    """Outputs in evaluation mode, then training losses; gradients stay on the parameters."""
    arguments = (inputs['img'].double(), rig.to(torch.float64), inputs['teacher_bev'].double(), maps.double(), masks)
    model.eval()
    result = model(*arguments)
    tokens = model.encode(arguments[0].flatten(0, 1), masks)
    semantic, geometry = model.decode(tokens, arguments[1], masks)
    outputs = {
        'semantic': semantic,
        'geometry': geometry,
        'target': result.target,
        'rec_loss': result.reconstruction_loss,
        'depth_loss': result.depth_loss,
    }
    for copy, ordinal in zip(range(len(masks)), ('first', 'second', 'third')):
        outputs[f'bev_{ordinal}'] = result.bev[copy]
        outputs[f'pred_{ordinal}'] = result.predictions[copy]
        outputs[f'depth_loss_{ordinal}'] = result.depth_losses[copy]
    trained = model.train()(*arguments)
    outputs['train_rec_loss'], outputs['train_depth_loss'] = trained.reconstruction_loss, trained.depth_loss
    (trained.reconstruction_loss + trained.depth_loss).backward()
    return outputs


def write_file(
    path: Path, config: Dict[str, Any], rig: CameraRig, randomise: Callable[[torch.nn.Module], None]
) -> Path:
    batch, cams, size = config['batch_size'], config['num_cams'], tuple(config['input_size'])
    # A seed by which no activation lies on another side of a ReLU's kink in float32 than in float64, as with some.
    torch.manual_seed(1)
    model = GeoMIM(verify_module._pretrain_config(config))
    randomise(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grid, copies = model.config.view_transform.output_grid, config['num_copies']
    masks = complementary_masks(size, copies)
    if copies == 2:
        masks[1] = 1 - masks[0]  # as the reference files define it
    wide = torch.eye(4).repeat(batch, cams, 1, 1)
    wide[..., :3, :3] = rig.intrinsics
    inputs = {
        'img': torch.randn(batch, cams, 3, *size),
        'teacher_bev': torch.randn(batch, config['target']['channels'], *grid.shape),
        'mask': masks[0] if copies == 2 else masks,
        'camera_intrinsics': wide,
        'camera2ego': rig.cam2ego,
        'camera2lidar': rig.cam2bev,
        'img_aug_matrix': rig.img_aug,
        'lidar_aug_matrix': rig.bev_aug,
    }
    clouds = [torch.randn(300 + 50 * sample, 5) * torch.tensor([6.0, 6, 0.7, 1, 1]) for sample in range(batch)]
    maps = depth_maps(clouds, rig, size)
    arrays: Dict[str, Any] = {f'in/points_{sample}': cloud for sample, cloud in enumerate(clouds)}
    arrays.update({'in/' + name: value for name, value in inputs.items()})
    arrays.update({'param/' + name: value for name, value in published(state, model).items()})
    model.double()
    arrays.update({'out/' + name: value for name, value in step(model, inputs, rig, masks, maps).items()})
    gradients = {name: value.grad for name, value in model.named_parameters()}
    constants = set(published({}, model))
    arrays.update(
        {
            'grad/' + name: value
            for name, value in published(gradients, model).items()
            if name not in constants and value.is_floating_point()
        }
    )
    converted = {
        name: (value.detach().float() if value.is_floating_point() else value).numpy() for name, value in arrays.items()
    }
    np.savez(str(path), **{'meta/config': np.array(json.dumps(config))}, **converted)
    return path


CASES = {
    'five cameras, two samples, an odd number of cells': (5, 2, (96, 96), 2, 'xy', 2),
    'one camera, three copies with cells left over': (1, 2, (64, 128), 3, 'yx', 1),
    'seven cameras, an image of one row': (7, 1, (32, 160), 2, 'yx', 2),
}


@pytest.fixture(scope='module', params=CASES)
def plainly_written(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_rig: Make,
    randomise_parameters: Callable[[torch.nn.Module], None],
) -> Path:
    case = CASES[request.param]
    cams, batch, size = case[:3]
    rig = make_rig(batch, cams, image_size=size, augmented=True)
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr(geomim.method.attention, '_FUSED', None)
        plain.setattr(
            geomim.method.lift_splat,
            'bev_pool',
            lambda depth, context, plan: bev_pool_plain(depth, context, plan.cells, plan.num_cells),
        )
        path = tmp_path_factory.mktemp('other_sizes') / 'other.npz'
        return write_file(path, file_config(*case), rig, randomise_parameters)


def test_files_of_other_sizes_are_verified(plainly_written: Path) -> None:
    rows = verify_file(plainly_written)
    assert [f'{row.name}: {row.error:.2e} {row.remark}' for row in rows if not row.passed] == []
    names = {row.name for row in rows}
    assert {'out/semantic', 'out/train_depth_loss', 'grad/encoder.patch_embed.projection.weight'} <= names
    assert 'grad/encoder.cam_pose.bn.weight' in names


def rewritten(source: Path, folder: Path, **changes: Callable[[Any], Any]) -> Path:
    """A copy with some arrays changed; those that become None are left out."""
    with np.load(str(source)) as archive:
        arrays = {name: changes.get(name, lambda value: value)(archive[name]) for name in archive.files}
    np.savez(str(folder / 'changed.npz'), **{name: value for name, value in arrays.items() if value is not None})
    return folder / 'changed.npz'


def largest_up_by_one_percent(array: Any) -> Any:
    flat = array.reshape(-1).copy()
    flat[np.abs(flat).argmax()] *= 1.01
    return flat.reshape(array.shape)


FIRST = pytest.mark.parametrize('plainly_written', list(CASES)[:1], indirect=True)


@FIRST
@pytest.mark.parametrize('changed', ['out/bev_second', 'grad/encoder.decoder_cross_module.2.attn.qkv.weight'])
def test_a_change_in_them_is_noticed(
    plainly_written: Path, changed: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = rewritten(plainly_written, tmp_path, **{changed: largest_up_by_one_percent})
    assert main(['verify', '--failures-only', str(path)]) == 1
    assert f'tensors differ: {changed}\n' in capsys.readouterr().out


@FIRST
@pytest.mark.parametrize('lost', ['in/points_1', 'in/camera2ego', 'in/mask', 'param/encoder.mask_token'])
def test_a_file_that_lacks_an_entry_is_refused_with_its_name(
    plainly_written: Path, lost: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = rewritten(plainly_written, tmp_path, **{lost: lambda _: None})
    assert main(['verify', str(path)]) == 2
    assert lost.split('/')[1].replace('encoder.', '') in capsys.readouterr().err
