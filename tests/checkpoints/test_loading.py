"""Files in and out: what is taken is told, what is foreign, broken or dangerous is refused, nothing is half-written."""

from __future__ import annotations

import os
import pickle
import sys
import types
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
import torch
from torch import Tensor

from geomim import GeoMIM, SwinEncoder
from geomim.checkpoints import reading
from geomim.checkpoints.layouts import export_encoder, to_reference
from geomim.checkpoints.loading import (
    LoadReport,
    load_encoder,
    load_pretrained,
    read_checkpoint,
    save_atomically,
    tensors_of,
)

from ..helpers import Attack, assert_same_tensors, run_quietly

Make = Callable[..., Any]


def state_of(model: torch.nn.Module) -> Dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def model(make_config: Make, make_model: Make) -> GeoMIM:
    return make_model(make_config())


# ---------------------------------------------------------------- files


def test_a_saved_file_is_read_back(tmp_path: Path, model: GeoMIM) -> None:
    path = save_atomically({'state_dict': model.state_dict(), 'meta': {'epoch': 3}}, tmp_path / 'new' / 'model.pth')
    loaded = read_checkpoint(path)
    assert loaded['meta'] == {'epoch': 3}
    assert_same_tensors(tensors_of(loaded), model.state_dict())
    assert [entry.name for entry in path.parent.iterdir()] == ['model.pth']


@pytest.mark.parametrize('zipped', [True, False])
def test_both_formats_of_torch_are_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / 'model.pth'
    state = OrderedDict(a=torch.randn(2, 3), b=torch.arange(3), c=torch.nn.Parameter(torch.ones(2).half()))
    torch.save({'state_dict': state, 'epoch': 2, 'names': ['x']}, str(path), _use_new_zipfile_serialization=zipped)
    loaded = read_checkpoint(path)
    assert (loaded['epoch'], loaded['names']) == (2, ['x'])
    for name, value in state.items():
        assert torch.equal(loaded['state_dict'][name], value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'nothing.pth does not exist'):
        read_checkpoint(tmp_path / 'nothing.pth')
    with pytest.raises(FileNotFoundError, match='does not exist'):
        read_checkpoint(tmp_path)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / 'empty.pth'
    path.touch()
    with pytest.raises(ValueError, match=r'empty.pth is empty \(0 bytes\)'):
        read_checkpoint(path)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('part', [0.05, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path: Path, zipped: bool, part: float) -> None:
    path = tmp_path / 'whole.pth'
    torch.save({'state_dict': {'a': torch.randn(4000)}}, str(path), _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=r'whole.pth cannot be read \(\d+ bytes\): it is truncated'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    'content', [b'<html>404</html>', b'\x00' * 512, b'PK\x03\x04broken', b'\x80\x02.', os.urandom(700)]
)
def test_foreign_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / 'foreign.pth'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='foreign.pth'):
        read_checkpoint(path)


@pytest.mark.parametrize('value', [torch.zeros(2), [1, 2], 'text', 5])
def test_files_without_a_dictionary_are_named(tmp_path: Path, value: Any) -> None:
    path = tmp_path / 'other.pth'
    torch.save(value, str(path))
    with pytest.raises(ValueError, match=rf'holds a {type(value).__name__}, expected a dictionary'):
        read_checkpoint(path)


@pytest.mark.parametrize('form', ['zip', 'old format', 'bare pickle', 'pickle of a dictionary'])
def test_code_in_a_file_is_refused_and_never_runs(tmp_path: Path, form: str) -> None:
    path, trap = tmp_path / 'evil.pth', tmp_path / 'executed'
    content = {'state_dict': {'a': torch.zeros(2)}, 'extra': Attack(os.mkdir, str(trap))}
    if form == 'bare pickle':
        path.write_bytes(pickle.dumps(Attack(os.mkdir, str(trap)), protocol=2))
    elif form == 'pickle of a dictionary':
        path.write_bytes(pickle.dumps({'extra': Attack(os.mkdir, str(trap))}))
    else:
        torch.save(content, str(path), _use_new_zipfile_serialization=form == 'zip')
    with pytest.raises(ValueError, match='evil.pth cannot be read .* refused for safety') as error:
        read_checkpoint(path)
    assert not trap.exists()
    assert 'weights_only' not in str(error.value)  # torch's advice to load the file unsafely is not passed on
    if form in ('zip', 'old format'):
        assert 'mkdir' in str(error.value)
    # the trap works: an unguarded reader falls into it
    if form == 'bare pickle':
        pickle.loads(path.read_bytes())
        assert trap.exists()


@pytest.mark.parametrize('kind', ['system', 'exec', 'open', 'getattr'])
def test_no_function_is_reached(tmp_path: Path, kind: str) -> None:
    """Nor by a chain through ``builtins.getattr``, which stands in runners' files."""
    trap = tmp_path / 'executed'
    attack = {
        'system': Attack(os.system, f'touch {trap}'),
        'exec': Attack(exec, f'open({str(trap)!r}, "w")'),
        'open': Attack(open, str(trap), 'w'),
        'getattr': Attack(exec, Attack(getattr, Attack(__import__, 'os'), 'system'), f'touch {trap}'),
    }[kind]
    path = tmp_path / 'chain.pth'
    torch.save({'state_dict': {'a': torch.zeros(1)}, 'meta': attack}, str(path))
    with pytest.raises(ValueError, match='chain.pth .*refused for safety'):
        read_checkpoint(path)
    assert not trap.exists()


def test_bookkeeping_of_a_runner_is_dropped_and_the_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numpy = pytest.importorskip('numpy')
    ran = []

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = numpy.arange(3.0)
            self._count = numpy.float64(3)
            self._statistics = {'mean': 1}

        def __setstate__(self, state: Any) -> None:
            ran.append(state)

    HistoryBuffer.__module__ = 'mmengine.logging.history_buffer'
    HistoryBuffer.__qualname__ = 'HistoryBuffer'
    for name in ('mmengine', 'mmengine.logging', 'mmengine.logging.history_buffer'):
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules['mmengine.logging.history_buffer'], 'HistoryBuffer', HistoryBuffer, raising=False)
    path = tmp_path / 'run.pth'
    hub = {'log_scalars': OrderedDict(loss=HistoryBuffer()), 'lr': numpy.float64(0.1)}
    torch.save(
        {'state_dict': {'a': torch.ones(2)}, 'message_hub': hub, 'meta': {'iter': 7, 'seed': numpy.int64(3)}}, str(path)
    )
    loaded = read_checkpoint(path)
    assert torch.equal(loaded['state_dict']['a'], torch.ones(2))
    assert loaded['meta']['iter'] == 7
    assert ran == []
    assert isinstance(loaded['message_hub']['log_scalars']['loss'], reading.Inert)


@pytest.mark.parametrize('key', ['state_dict', 'model', 'module', None])
def test_weights_are_found_under_their_usual_keys(key: Any) -> None:
    state = {'a': torch.zeros(1), 'b': torch.ones(1), 'note': 'text'}
    found = tensors_of({key: state, 'epoch': 1} if key else state)
    assert sorted(found) == ['a', 'b']


def test_the_prefix_of_a_parallel_wrapper_is_removed_only_if_all_have_it() -> None:
    assert list(tensors_of({'module.a': torch.zeros(1)})) == ['a']
    assert sorted(tensors_of({'module.a': torch.zeros(1), 'b': torch.zeros(1)})) == ['b', 'module.a']


def test_a_checkpoint_without_tensors_is_named() -> None:
    with pytest.raises(ValueError, match=r"log.pth holds no tensors; its top-level keys are \['epoch', 'state_dict'\]"):
        tensors_of({'epoch': 3, 'state_dict': {'x': 1}}, 'log.pth')


def test_a_failing_save_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = save_atomically({'a': torch.ones(3)}, tmp_path / 'model.pth')

    class Unsavable:
        def __reduce__(self) -> Any:
            raise RuntimeError('disk full')

    for target in (path, tmp_path / 'other.pth'):
        with pytest.raises(RuntimeError, match='disk full'):
            save_atomically({'a': torch.zeros(100000), 'b': Unsavable()}, target)
    assert [entry.name for entry in tmp_path.iterdir()] == ['model.pth']
    assert torch.equal(read_checkpoint(path)['a'], torch.ones(3))


# No file may grow beyond 20 kB, which the system answers as it answers a full disk: in the middle of writing.
NO_ROOM = """
import resource, sys, torch
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
from geomim.checkpoints.files import save_atomically
try:
    save_atomically({'a': torch.zeros(100000)}, sys.argv[1])
except OSError as error:
    print(error)
"""


def test_a_disk_without_room_leaves_the_old_file_and_no_rest_and_is_named(tmp_path: Path) -> None:
    path = save_atomically({'a': torch.ones(3)}, tmp_path / 'model.pth')
    assert f"File too large: '{path}'" in run_quietly(['-c', NO_ROOM, path]).stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ['model.pth']
    assert torch.equal(read_checkpoint(path)['a'], torch.ones(3))


# ---------------------------------------------------------------- into a pretraining model


@pytest.mark.parametrize('layout', ['geomim', 'reference', 'student'])
@pytest.mark.parametrize('given', ['file', 'dictionary'])
def test_pretraining_weights_fill_the_whole_model(
    tmp_path: Path, make_config: Make, model: GeoMIM, layout: str, given: str
) -> None:
    state = state_of(model)
    if layout == 'reference':
        state = to_reference(state, model.config.view_transform)
    elif layout == 'student':
        state = {'student.' + name: value for name, value in state.items()}
    fresh = GeoMIM(make_config())
    source: Any = {'state_dict': state}
    if given == 'file':
        source = save_atomically(source, tmp_path / 'weights.pth')
    report = load_pretrained(fresh, source)
    assert_same_tensors(fresh.state_dict(), model.state_dict())
    assert report.layout == ('reference' if layout == 'reference' else 'geomim')
    assert (report.missing, report.resized) == ((), ())
    assert len(report.taken) == len(model.state_dict())
    assert f'{len(report.taken)} tensors taken' in report.describe()
    assert ('weights.pth' if given == 'file' else 'the given state dict') in report.describe()


def test_other_numbers_of_cross_view_blocks_survive_the_reference_layout(make_config: Make, make_model: Make) -> None:
    base = make_config()
    decoder = replace(base.decoder, cross_view_after=(1,), geometry_cross_view_after=(1, 2))
    model = make_model(replace(base, decoder=decoder))
    fresh = GeoMIM(model.config)
    load_pretrained(fresh, to_reference(state_of(model), model.config.view_transform))
    assert_same_tensors(fresh.state_dict(), model.state_dict())


def test_tensors_without_a_place_are_reported(make_config: Make, model: GeoMIM) -> None:
    state = state_of(model)
    state['decoder.extra.weight'] = torch.zeros(2)
    report = load_pretrained(GeoMIM(make_config()), state)
    assert report.unused == ('decoder.extra.weight',)
    assert 'without a place in the model: 1 (decoder.extra.weight)' in report.describe()


@pytest.mark.parametrize('lost', ['encoder.patch_embed.norm.bias', 'fusion.reduce.weight', 'head.bias'])
def test_an_incomplete_pretraining_checkpoint_is_refused(make_config: Make, model: GeoMIM, lost: str) -> None:
    state = state_of(model)
    del state[lost]
    with pytest.raises(ValueError, match=rf'lacks 1 tensors that the model needs: {lost}'):
        load_pretrained(GeoMIM(make_config()), state)


def test_half_of_a_checkpoint_is_refused_with_the_number_that_lack(make_config: Make, model: GeoMIM) -> None:
    state = state_of(model)
    half = {name: value for name, value in state.items() if not name.startswith(('decoder.', 'view_transform.'))}
    with pytest.raises(ValueError, match=r'lacks \d\d+ tensors that the model needs: .* and \d+ more'):
        load_pretrained(GeoMIM(make_config()), half)


def test_another_architecture_is_refused_and_changes_nothing(make_config: Make, model: GeoMIM) -> None:
    base = make_config()
    other = GeoMIM(replace(base, encoder=replace(base.encoder, embed_dims=16)))
    before = state_of(other)
    with pytest.raises(ValueError, match=r'another architecture: \d+ of \d+ tensors .*decoder|encoder.* instead of \('):
        load_pretrained(other, state_of(model))
    assert_same_tensors(other.state_dict(), before)


def test_values_that_are_not_finite_are_refused_and_change_nothing(make_config: Make, model: GeoMIM) -> None:
    state = state_of(model)
    state['head.weight'][0, 0] = float('nan')
    state['fusion.norm.bias'][1] = float('inf')
    fresh = GeoMIM(make_config())
    before = state_of(fresh)
    with pytest.raises(ValueError, match='2 tensors hold values that are not finite: fusion.norm.bias, head.weight'):
        load_pretrained(fresh, state)
    assert_same_tensors(fresh.state_dict(), before)


def test_foreign_names_are_refused_with_an_example(tmp_path: Path, make_config: Make) -> None:
    path = save_atomically(
        {'conv1.weight': torch.zeros(1), 'layer1.0.bn1.bias': torch.zeros(1)}, tmp_path / 'resnet.pth'
    )
    with pytest.raises(ValueError, match=r'resnet.pth is no checkpoint of a known layout .* start with conv1.weight'):
        load_pretrained(GeoMIM(make_config()), path)


@pytest.mark.parametrize('shape', [(49,), (), (48, 1), (49, 1, 1), (49, 3)])
def test_broken_bias_tables_are_refused(make_config: Make, model: GeoMIM, shape: tuple) -> None:
    state = state_of(model)
    state['encoder.stages.0.blocks.0.attn.w_msa.relative_position_bias_table'] = torch.zeros(shape)
    if shape == (49,):
        state['encoder.stages.0.blocks.0.attn.w_msa.relative_position_bias_table'] = torch.zeros(25)
    with pytest.raises(ValueError, match='another architecture|rows for a window'):
        load_pretrained(GeoMIM(make_config()), state)


def test_tables_of_other_windows_are_resized_and_reported(make_config: Make, model: GeoMIM) -> None:
    base = make_config()
    other = GeoMIM(replace(base, encoder=replace(base.encoder, window_size=(6, 4, 3, 2))))
    report = load_pretrained(other, state_of(model))
    assert report.resized == ('encoder.stages.0.blocks.0.attn.w_msa.relative_position_bias_table',)
    assert 'position bias tables resized: 1' in report.describe()
    table = other.encoder.stages[0].blocks[0].attn.w_msa.relative_position_bias_table
    assert table.shape == (121, 1)
    centre = model.encoder.stages[0].blocks[0].attn.w_msa.relative_position_bias_table[24]
    torch.testing.assert_close(table[60], centre)


@pytest.mark.parametrize('layout', ['bevdet', 'mmdet'])
def test_an_encoder_file_fills_the_encoder_and_the_rest_is_reported(
    make_config: Make, model: GeoMIM, layout: str
) -> None:
    fresh = GeoMIM(make_config())
    report = load_pretrained(fresh, export_encoder(state_of(model), layout))
    assert_same_tensors(fresh.encoder.state_dict(), model.encoder.state_dict())
    assert report.layout == layout
    assert 'head.weight' in report.missing
    assert not any(name.startswith('encoder.') for name in report.missing)
    assert 'left at their initial values' in report.describe()


# ---------------------------------------------------------------- into an encoder


@pytest.mark.parametrize('layout', ['geomim', 'reference', 'bevdet', 'mmdet'])
def test_encoders_start_from_every_layout(make_config: Make, model: GeoMIM, layout: str) -> None:
    state = state_of(model)
    if layout == 'reference':
        state = to_reference(state, model.config.view_transform)
    elif layout in ('bevdet', 'mmdet'):
        state = export_encoder(state, layout)
    encoder = SwinEncoder(make_config().encoder)
    report = load_encoder(encoder, state)
    assert isinstance(report, LoadReport)
    assert_same_tensors(encoder.state_dict(), model.encoder.state_dict())
    assert report.missing == ()


def test_an_encoder_may_lack_output_norms_only(make_config: Make, model: GeoMIM) -> None:
    state = export_encoder(state_of(model))
    encoder = SwinEncoder(replace(make_config().encoder, out_indices=(0, 1, 2, 3)))
    report = load_encoder(encoder, state)
    assert report.missing == ('norm0.bias', 'norm0.weight', 'norm1.bias', 'norm1.weight')
    del state['stages.1.downsample.reduction.weight']
    with pytest.raises(ValueError, match='lacks 1 tensors that the model needs: stages.1.downsample.reduction.weight'):
        load_encoder(encoder, state)


def test_what_an_encoder_leaves_behind_is_named(make_config: Make, model: GeoMIM) -> None:
    """The decoder of a pretraining file has no place in a finetuning encoder: said, not passed over."""
    view = model.config.view_transform
    reference = to_reference(state_of(model), view)
    report = load_encoder(SwinEncoder(make_config().encoder), reference)
    assert report.missing == ()
    assert 'encoders.camera.backbone.mask_token' in report.unused
    assert 'prediction_head.weight' in report.unused
    assert not any('encoders.camera.backbone.stages.' in name or name.endswith('frustum') for name in report.unused)
    assert f'without a place in the model: {len(report.unused)}' in report.describe()


def test_a_checkpoint_without_an_encoder_is_named(make_config: Make) -> None:
    with pytest.raises(ValueError, match=r'holds no encoder; its names start with neck.weight'):
        load_encoder(SwinEncoder(make_config().encoder), {'neck.weight': torch.zeros(1)}, layout='bevdet')


def test_stored_position_indices_do_no_harm(make_config: Make, model: GeoMIM) -> None:
    """Hosts load exported files with their own loaders; ours takes them strictly too and leaves them as they are."""
    exported = export_encoder(state_of(model))
    names = set(exported)
    SwinEncoder(make_config().encoder).load_state_dict(exported, strict=True)
    assert set(exported) == names
