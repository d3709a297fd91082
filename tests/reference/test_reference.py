"""Agreement with the published implementation, and proof that a change of 1% in any one tensor is noticed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

import pytest
import torch
from torch import Tensor

np = pytest.importorskip('numpy', reason='reference tensors are .npz files')

from geomim.__main__ import main  # noqa: E402
from geomim.proofs import pretraining as verify_module  # noqa: E402
from geomim.proofs.files import verify_file  # noqa: E402
from geomim.proofs.reference_file import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, Row, compare, compare_all  # noqa: E402

FILES = ('pretrain_tiny', 'mixmae_initialisation_tiny', 'position_bias_interpolation', 'finetune_backbone_tiny')
# A gradient whose largest number is smaller holds rounding noise only. Biases before a batch norm are such, as
# it takes their constants out again; nothing else may be.
NOISE = 2e-6
IN_FRONT_OF_A_NORM = {'grad/vtransform.depthnet.0.bias', 'grad/vtransform.depthnet.3.bias'}


class Compared(NamedTuple):
    name: str
    ours: Optional[Tensor]
    reference: Tensor
    gradient: bool


class Verified(NamedTuple):
    rows: List[Row]
    tensors: List[Compared]


_verified: Dict[str, Verified] = {}


@pytest.fixture(params=FILES)
def verified(request: pytest.FixtureRequest, reference_folder: Any, monkeypatch: pytest.MonkeyPatch) -> Verified:
    """A file's rows and the tensors behind them, computed once for all tests."""
    name = request.param
    if name not in _verified:
        tensors: List[Compared] = []

        def recording(
            ours: Mapping[str, Tensor], reference: Mapping[str, Tensor], prefix: str, gradient: bool = False
        ) -> List[Row]:
            tensors.extend(Compared(prefix + key, ours.get(key), value, gradient) for key, value in reference.items())
            return compare_all(ours, reference, prefix, gradient)

        monkeypatch.setattr(verify_module, 'compare_all', recording)
        rows = verify_file(reference_folder / f'{name}.npz')
        monkeypatch.undo()
        _verified[name] = Verified(rows, tensors)
    return _verified[name]


def with_largest_changed(value: Tensor) -> Tensor:
    """The largest number changed by 1%; integers by one; zeros by a thousandth of a usual weight."""
    changed = value.clone().reshape(-1)
    index = int(changed.double().abs().argmax())
    if not value.is_floating_point():
        changed[index] += 1
    elif changed[index] == 0:
        changed[index] = 2e-5
    else:
        changed[index] *= 1.01
    return changed.view(value.shape)


def test_every_tensor_agrees(verified: Verified) -> None:
    assert [f'{row.name}: {row.error:.2e} {row.remark}' for row in verified.rows if not row.passed] == []
    assert len(verified.rows) == len(verified.tensors) > 0


@pytest.mark.parametrize('name', ['pretrain_tiny', 'finetune_backbone_tiny', 'position_bias_interpolation'])
def test_the_files_of_every_clone_agree(repository: Path, name: str) -> None:
    rows = verify_file(repository / 'tests' / 'data' / 'reference' / f'{name}.npz')
    assert rows
    assert [row.name for row in rows if not row.passed] == []


def test_tolerances_are_those_of_the_references_readme(verified: Verified) -> None:
    assert (OUTPUT_TOLERANCE, GRADIENT_TOLERANCE) == (2e-4, 1e-3)
    for row, tensor in zip(verified.rows, verified.tensors):
        assert row.tolerance == (0 if not tensor.reference.is_floating_point() else 1e-3 if tensor.gradient else 2e-4)


def test_every_tensor_of_the_file_is_compared(verified: Verified, reference_folder: Any) -> None:
    name = next(key for key, value in _verified.items() if value is verified)
    with np.load(str(reference_folder / f'{name}.npz')) as archive:
        expected = {key for key in archive.files if key.startswith(('out/', 'grad/'))}
    assert {row.name for row in verified.rows} == expected


def test_a_change_of_one_percent_in_any_one_tensor_is_noticed(verified: Verified) -> None:
    noise, unnoticed = set(), []
    for name, ours, reference, gradient in verified.tensors:
        if gradient and float(reference.abs().max()) < NOISE:
            noise.add(name)
            continue
        assert compare(name, ours, reference, gradient).passed
        if compare(name, ours, with_largest_changed(reference), gradient).passed:
            unnoticed.append(name)
    assert unnoticed == []
    assert noise <= IN_FRONT_OF_A_NORM
    assert len(verified.tensors) - len(noise) > 0


@pytest.mark.parametrize(
    'ours, message',
    [
        (None, 'not computed'),
        (torch.zeros(3), r'shape \(3,\), reference \(2, 2\)'),
        (torch.full((2, 2), float('nan')), ''),
        (torch.full((2, 2), float('inf')), ''),
    ],
)
def test_what_cannot_be_compared_fails(ours: Optional[Tensor], message: str) -> None:
    row = compare('out/x', ours, torch.ones(2, 2))
    assert not row.passed
    if message:
        assert re.search(message, row.remark)


def rewrite(source: Path, target: Path, changed: str) -> None:
    with np.load(str(source)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays[changed] = with_largest_changed(torch.from_numpy(arrays[changed])).numpy()
    np.savez(str(target), **arrays)


@pytest.mark.parametrize(
    'name, changed',
    [
        ('position_bias_interpolation', 'out/8_to_16'),
        ('mixmae_initialisation_tiny', 'out/stages.1.downsample.reduction.weight'),
        ('pretrain_tiny', 'grad/encoder.stages.1.blocks.0.attn.w_msa.relative_position_bias_table'),
    ],
)
def test_the_command_fails_and_prints_the_name(
    reference_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, changed: str
) -> None:
    rewrite(reference_folder / f'{name}.npz', tmp_path / 'changed.npz', changed)
    assert main(['verify', '--failures-only', str(tmp_path / 'changed.npz')]) == 1
    out = capsys.readouterr().out
    assert f'tensors differ: {changed}\n' in out
    assert out.count('FAILED') == 1
