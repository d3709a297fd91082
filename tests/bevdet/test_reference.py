"""Equality of whole detectors with the published implementation, and proof that a difference shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Set

import numpy as np
import pytest

pytest.importorskip('mmdet3d')

from geomim.__main__ import main
from geomim.proofs.files import verify_file
from geomim.proofs.reference_file import Row

FILES = ('bevdet', '4d', 'depth', 'stereo', 'occ')

_rows: Dict[str, List[Row]] = {}


def rows_of(reference_folder: Any, name: str) -> List[Row]:
    if name not in _rows:
        _rows[name] = verify_file(reference_folder / f'bevdet_{name}.npz')
    return _rows[name]


def edited(source: Path, target: Path, edit: Callable[[Dict[str, Any]], Any]) -> Path:
    """The file with what ``edit`` does to its arrays, in place."""
    with np.load(str(source)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    edit(arrays)
    np.savez(str(target), **arrays)
    return target


def scaled(changed: Set[str], factor: float) -> Callable[[Dict[str, Any]], None]:
    """The largest number of some tensors."""

    def edit(arrays: Dict[str, Any]) -> None:
        for name in changed:
            arrays[name] = arrays[name].copy()
            arrays[name].reshape(-1)[np.abs(arrays[name]).argmax()] *= factor

    return edit


def failed(path: Path) -> Set[str]:
    return {row.name for row in verify_file(path) if not row.passed}


@pytest.mark.parametrize('name', FILES)
def test_every_tensor_agrees(reference_folder: Any, name: str) -> None:
    rows = rows_of(reference_folder, name)
    assert [f'{row.name}: {row.error:.2e} {row.remark}' for row in rows if not row.passed] == []


@pytest.mark.parametrize('name', FILES)
def test_every_output_of_the_file_is_compared_once(reference_folder: Any, name: str) -> None:
    names = sorted(row.name for row in rows_of(reference_folder, name))
    with np.load(str(reference_folder / f'bevdet_{name}.npz')) as archive:
        assert names == sorted(key for key in archive.files if key.startswith('out/'))


def test_the_detector_of_every_clone_agrees_and_a_change_of_one_percent_in_any_tensor_is_noticed(
    repository: Path, tmp_path: Path
) -> None:
    source = repository / 'tests' / 'data' / 'reference' / 'bevdet_depth.npz'
    rows = verify_file(source)
    assert [row.name for row in rows if not row.passed] == []
    changed = {row.name for row in rows}  # whole numbers by their double
    whole = {'out/view_transform_calls', 'out/labels'}
    path = edited(source, tmp_path / 'changed.npz', scaled(changed - whole, 1.01))
    assert failed(edited(path, path, scaled(whole, 2))) == changed


def test_changed_outputs_are_noticed(reference_folder: Any, tmp_path: Path) -> None:
    changed = {
        'out/bev_0',
        'out/depth_1',
        'out/bev_encoded',
        'out/loss/loss_depth',
        'out/boxes',
        'out/loss/task0.loss_z',
    }
    path = edited(reference_folder / 'bevdet_stereo.npz', tmp_path / 'changed.npz', scaled(changed, 1.01))
    edited(path, path, scaled({'out/view_transform_calls'}, 2))
    assert failed(path) == changed | {'out/view_transform_calls'}


def test_the_pose_of_a_past_frame_matters_to_its_own_map_only(reference_folder: Any, tmp_path: Path) -> None:
    def move(arrays: Dict[str, Any]) -> None:
        arrays['in/ego2globals'] = arrays['in/ego2globals'].copy()
        arrays['in/ego2globals'][:, 6:, 0, 3] += 5.0

    found = failed(edited(reference_folder / 'bevdet_4d.npz', tmp_path / 'moved.npz', move))
    assert 'out/bev_1' in found
    assert not found & {'out/bev_0', 'out/depth_0', 'out/depth_1'}


def test_the_command_tells_what_differs(reference_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = reference_folder / 'bevdet_bevdet.npz'
    assert main(['verify', str(source), '--failures-only']) == 0
    bias = scaled({'param/img_view_transformer.depth_net.bias'}, 1.5)
    assert main(['verify', str(edited(source, tmp_path / 'changed.npz', bias))]) == 1
    assert 'out/depth_0' in capsys.readouterr().out


def lack_a_layer(arrays: Dict[str, Any]) -> None:
    for name in [name for name in arrays if 'img_neck.conv.0' in name]:
        del arrays[name]


def lack_an_image(arrays: Dict[str, Any]) -> None:
    arrays['in/imgs'] = arrays['in/imgs'][:, :17]


def name_another_detector(arrays: Dict[str, Any]) -> None:
    config = json.loads(str(arrays['meta/config']))
    config['model']['type'] = 'CenterPoint'
    arrays['meta/config'] = np.array(json.dumps(config))


@pytest.mark.parametrize(
    ('name', 'edit', 'message'),
    [
        ('bevdet', lack_a_layer, 'img_neck.conv.0.weight'),
        ('stereo', lack_an_image, '17 images a sample do not make 3 frames'),
        ('bevdet', name_another_detector, "detector 'CenterPoint' is not supported; known are .*BEVStereo4DOCC"),
    ],
)
def test_files_that_cannot_be_compared(
    reference_folder: Any, tmp_path: Path, name: str, edit: Callable[[Dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        verify_file(edited(reference_folder / f'bevdet_{name}.npz', tmp_path / 'strange.npz', edit))


def test_changed_occupancy_is_noticed(reference_folder: Any, tmp_path: Path) -> None:
    changed = {'out/occ_argmax', 'out/loss/loss_occ', 'out/bev_encoded'}
    path = edited(reference_folder / 'bevdet_occ.npz', tmp_path / 'changed.npz', scaled(changed, 2))
    assert failed(path) == changed


@pytest.mark.parametrize(('seen', 'differing'), [(False, set()), (True, {'out/loss/loss_occ'})])
def test_voxels_that_no_camera_sees_do_not_count(
    reference_folder: Any, tmp_path: Path, seen: bool, differing: Set[str]
) -> None:
    def change(arrays: Dict[str, Any]) -> None:
        labels, mask = arrays['in/voxel_semantics'], arrays['in/mask_camera'].astype(bool)
        assert 0.1 < mask.mean() < 0.9
        arrays['in/voxel_semantics'] = np.where(mask == seen, (labels + 5) % 18, labels)

    assert failed(edited(reference_folder / 'bevdet_occ.npz', tmp_path / 'others.npz', change)) == differing
