"""Equality of whole detectors with the published implementation, and proof that a difference shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Dict, List, Set

import pytest

np = pytest.importorskip('numpy')
pytest.importorskip('mmdet3d')

from geomim.__main__ import main  # noqa: E402
from geomim.proofs.files import verify_file  # noqa: E402
from geomim.proofs.reference_file import ReferenceFile, Row  # noqa: E402

FILES = ('bevdet', '4d', 'depth', 'stereo', 'occ')

_rows: Dict[str, List[Row]] = {}


def rows_of(reference_folder: Path, name: str) -> List[Row]:
    if name not in _rows:
        _rows[name] = verify_file(reference_folder / f'bevdet_{name}.npz')
    return _rows[name]


def rewritten(source: Path, target: Path, changed: Set[str], factor: float) -> Path:
    """The file with the largest number of some tensors changed."""
    with np.load(str(source)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name in changed:
        value = arrays[name].copy()
        value.reshape(-1)[np.abs(value).argmax()] *= factor
        arrays[name] = value
    np.savez(str(target), **arrays)
    return target


@pytest.mark.parametrize('name', FILES)
def test_every_tensor_agrees(reference_folder: Path, name: str) -> None:
    rows = rows_of(reference_folder, name)
    assert [f'{row.name}: {row.error:.2e} {row.remark}' for row in rows if not row.passed] == []


@pytest.mark.parametrize('name', FILES)
def test_every_output_of_the_file_is_compared_once(reference_folder: Path, name: str) -> None:
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
    path = rewritten(source, tmp_path / 'changed.npz', changed - {'out/view_transform_calls', 'out/labels'}, 1.01)
    rewritten(path, path, {'out/view_transform_calls', 'out/labels'}, 2)
    assert {row.name for row in verify_file(path) if not row.passed} == changed


def test_changed_outputs_are_noticed(reference_folder: Path, tmp_path: Path) -> None:
    changed = {
        'out/bev_0',
        'out/depth_1',
        'out/bev_encoded',
        'out/loss/loss_depth',
        'out/boxes',
        'out/loss/task0.loss_z',
    }
    path = rewritten(reference_folder / 'bevdet_stereo.npz', tmp_path / 'changed.npz', changed, 1.01)
    rewritten(path, path, {'out/view_transform_calls'}, 2)
    failed = {row.name for row in verify_file(path) if not row.passed}
    assert failed == changed | {'out/view_transform_calls'}


def test_the_pose_of_a_past_frame_matters_to_its_own_map_only(reference_folder: Path, tmp_path: Path) -> None:
    with np.load(str(reference_folder / 'bevdet_4d.npz')) as archive:
        arrays = {name: archive[name] for name in archive.files}
    poses = arrays['in/ego2globals'].copy()
    poses[:, 6:, 0, 3] += 5.0
    arrays['in/ego2globals'] = poses
    np.savez(str(tmp_path / 'moved.npz'), **arrays)
    failed = {row.name for row in verify_file(tmp_path / 'moved.npz') if not row.passed}
    assert 'out/bev_1' in failed
    assert not failed & {'out/bev_0', 'out/depth_0', 'out/depth_1'}


def test_the_command_tells_what_differs(reference_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = reference_folder / 'bevdet_bevdet.npz'
    assert main(['verify', str(source), '--failures-only']) == 0
    changed = rewritten(source, tmp_path / 'changed.npz', {'param/img_view_transformer.depth_net.bias'}, 1.5)
    assert main(['verify', str(changed)]) == 1
    assert 'out/depth_0' in capsys.readouterr().out


def test_weights_that_do_not_fit_are_an_error(reference_folder: Path, tmp_path: Path) -> None:
    with np.load(str(reference_folder / 'bevdet_bevdet.npz')) as archive:
        arrays = {name: archive[name] for name in archive.files if 'img_neck.conv.0' not in name}
    np.savez(str(tmp_path / 'lacking.npz'), **arrays)
    with pytest.raises(ValueError, match='img_neck.conv.0.weight'):
        verify_file(tmp_path / 'lacking.npz')


def test_images_that_make_no_whole_frames_are_an_error(reference_folder: Path, tmp_path: Path) -> None:
    with np.load(str(reference_folder / 'bevdet_stereo.npz')) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays['in/imgs'] = arrays['in/imgs'][:, :17]
    np.savez(str(tmp_path / 'short.npz'), **arrays)
    with pytest.raises(ValueError, match='17 images a sample do not make 3 frames'):
        verify_file(tmp_path / 'short.npz')


def test_changed_occupancy_is_noticed(reference_folder: Path, tmp_path: Path) -> None:
    changed = {'out/occ_argmax', 'out/loss/loss_occ', 'out/bev_encoded'}
    path = rewritten(reference_folder / 'bevdet_occ.npz', tmp_path / 'changed.npz', changed, 2)
    assert {row.name for row in verify_file(path) if not row.passed} == changed


def test_voxels_that_no_camera_sees_do_not_count(reference_folder: Path, tmp_path: Path) -> None:
    with np.load(str(reference_folder / 'bevdet_occ.npz')) as archive:
        arrays = {name: archive[name] for name in archive.files}
    labels, seen = arrays['in/voxel_semantics'], arrays['in/mask_camera']
    assert 0.1 < seen.mean() < 0.9
    for where, differing in ((~seen, set()), (seen, {'out/loss/loss_occ'})):
        arrays['in/voxel_semantics'] = np.where(where, (labels + 5) % 18, labels)
        np.savez(str(tmp_path / 'others.npz'), **arrays)
        assert {row.name for row in verify_file(tmp_path / 'others.npz') if not row.passed} == differing


def test_another_detector_is_refused(reference_folder: Path, tmp_path: Path) -> None:
    path = reference_folder / 'bevdet_bevdet.npz'
    with np.load(str(path)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    config = ReferenceFile(path).config
    config['model']['type'] = 'CenterPoint'
    arrays['meta/config'] = np.array(json.dumps(config))
    np.savez(str(tmp_path / 'strange.npz'), **arrays)
    with pytest.raises(ValueError, match="detector 'CenterPoint' is not supported; known are .*BEVStereo4DOCC"):
        verify_file(tmp_path / 'strange.npz')
