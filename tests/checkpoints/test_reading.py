"""What training runs carry beside weights is neither built nor executed, and is named; weights are read all the same."""

from __future__ import annotations

import argparse
import datetime
import decimal
import enum
import functools
import io
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from geomim.checkpoints import reading
from geomim.checkpoints.files import weights_of
from geomim.checkpoints.reading import open_checkpoint

from ..helpers import Attack

BUILT = []


class Colour(enum.Enum):
    RED = 1


class Node(dict):
    """As configuration nodes of several libraries: a dictionary with attributes and a reader of its own state."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        BUILT.append('init')
        super().__init__(*arguments, **options)

    def __setstate__(self, state: Any) -> None:
        BUILT.append('state')

    def __setitem__(self, name: Any, value: Any) -> None:
        BUILT.append('item')
        super().__setitem__(name, value)


class Reduced:
    def __reduce__(self) -> Any:
        return Node, ((('a', 1),),), {'x': 1}, iter([]), iter([('b', 2)])


class Slots:
    __slots__ = ('a',)

    def __init__(self) -> None:
        self.a = 1


class Stack(list):
    pass


def nested() -> Any:
    node = Node(lr=0.1)
    node.log = Stack([1, Slots()])
    return node


CARRIED = {
    'argparse.Namespace': lambda: argparse.Namespace(lr=1e-3, path=Path('a/b'), when=datetime.timedelta(1)),
    'PosixPath': lambda: [Path('runs/1')],
    'datetime.datetime': lambda: {'when': datetime.datetime(2024, 1, 2)},
    'Node': nested,
    'Stack': lambda: Stack([1, 2]),
    'Slots': Slots,
    'Colour': lambda: {Colour.RED: 1},
    'decimal.Decimal': lambda: {decimal.Decimal('1.5')},
    'functools.partial': lambda: functools.partial(torch.nn.LayerNorm, eps=1e-6),
    'torch.nn.modules.linear.Linear': lambda: torch.nn.Linear(2, 2),
    'torch.optim.sgd.SGD': lambda: torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1),
    'Reduced': Reduced,
}


@pytest.fixture(params=['current', 'older'])
def any_torch(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == 'older':  # a torch whose own reader knows no stand-ins
        monkeypatch.delattr(torch.serialization, 'get_unsafe_globals_in_checkpoint', raising=False)


WITH_SLOTS = ('Slots', 'Node')  # which protocol 1 cannot store


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize(
    ('name', 'protocol'),
    [(name, protocol) for name in CARRIED for protocol in (1, 2, 4) if protocol > 1 or name not in WITH_SLOTS],
)
def test_carried_objects_are_named_and_not_built(
    tmp_path: Path, any_torch: None, name: str, protocol: int, zipped: bool
) -> None:
    path = tmp_path / 'run.pth'
    content = {'model': OrderedDict(a=torch.arange(3.0)), 'args': CARRIED[name](), 'epoch': 5}
    torch.save(content, str(path), pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    BUILT.clear()
    checkpoint = open_checkpoint(path)
    weights, origin = weights_of(checkpoint)
    assert torch.equal(weights['a'], torch.arange(3.0))
    assert checkpoint.content['epoch'] == 5
    assert BUILT == []
    wanted = 'Node' if name == 'Reduced' else name
    assert any(wanted in one for one in origin.inert), origin.inert
    assert wanted in origin.describe()


def test_the_trainer_file_of_mixmim_fills_an_encoder(tmp_path: Path, make_config: Any, make_model: Any) -> None:
    from geomim import SwinEncoder
    from geomim.checkpoints.loading import export_encoder, load_encoder

    model = make_model(make_config())
    path = tmp_path / 'mixmim.pth'
    state = export_encoder(dict(model.state_dict()))
    torch.save({'model': state, 'epoch': 599, 'args': argparse.Namespace(lr=1e-3, device='cuda')}, str(path))
    report = load_encoder(SwinEncoder(make_config().encoder), path)
    assert 'from entry model' in report.describe()
    assert 'argparse.Namespace' in report.describe()


def test_a_defaultdict_keeps_what_it_holds(tmp_path: Path, any_torch: None) -> None:
    path = tmp_path / 'run.pth'
    state = defaultdict(list, a=torch.ones(2))
    torch.save({'model': state, 'log': defaultdict(dict, x={'y': 1})}, str(path))
    checkpoint = open_checkpoint(path)
    assert torch.equal(weights_of(checkpoint)[0]['a'], torch.ones(2))
    assert checkpoint.content['log'] == {'x': {'y': 1}}
    assert checkpoint.inert == ()


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize(
    'value', [int, range(3), len, ..., NotImplemented, ValueError('a'), KeyError, defaultdict(int)], ids=str
)
def test_builtins_that_run_no_code_are_carried(
    tmp_path: Path, any_torch: None, value: Any, protocol: int, zipped: bool
) -> None:
    path = tmp_path / 'run.pth'
    content = {'model': {'a': torch.ones(2)}, 'extra': value}
    torch.save(content, str(path), pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert torch.equal(weights_of(open_checkpoint(path))[0]['a'], torch.ones(2))


@pytest.mark.parametrize('function', [eval, exec, compile, setattr, __import__, open], ids=lambda one: one.__name__)
def test_builtins_that_run_code_are_refused(tmp_path: Path, any_torch: None, function: Any) -> None:
    path = tmp_path / 'run.pth'
    torch.save({'model': {'a': torch.ones(2)}, 'extra': function}, str(path))
    with pytest.raises(ValueError, match='run.pth cannot be read'):
        open_checkpoint(path)


def test_weights_themselves_are_never_replaced_by_nothing(tmp_path: Path, any_torch: None) -> None:
    path = tmp_path / 'run.pth'
    torch.save({'model': Slots()}, str(path))
    with pytest.raises(ValueError, match=r'run.pth holds no tensors.*Slots'):
        weights_of(open_checkpoint(path))


def test_a_file_cannot_alter_the_stand_ins() -> None:
    # GLOBAL some.Name; MARK, NONE, {'__init__': 'x'} -> TUPLE; BUILD on the class itself
    program = b'\x80\x02csome\nName\n(N}X\x08\x00\x00\x00__init__X\x01\x00\x00\x00xstb.'
    before = dict(vars(reading.Inert))
    assert reading.restricted_reader({}).Unpickler(io.BytesIO(program)).load() is reading.Inert
    assert dict(vars(reading.Inert)) == before


@pytest.mark.parametrize('name', ['torch._utils._rebuild_tensor_v2', 'numpy.core.multiarray._reconstruct', 'here.Mine'])
def test_a_file_cannot_alter_classes_and_functions_of_the_process(name: str) -> None:
    class Mine:
        pass

    module, _, attribute = name.rpartition('.')
    program = b'\x80\x02c' + f'{module}\n{attribute}\n'.encode() + b'(N}X\x05\x00\x00\x00addedX\x01\x00\x00\x00xstb.'
    with pytest.raises(pickle.UnpicklingError, match='it sets attributes of'):
        reading.restricted_reader({'here.Mine': Mine}).Unpickler(io.BytesIO(program)).load()
    assert not any(hasattr(one, 'added') for one in (Mine, torch._utils._rebuild_tensor_v2, reading._inert))


@pytest.mark.parametrize('form', ['zip', 'old format'])
def test_a_chain_through_carried_objects_reaches_nothing(tmp_path: Path, any_torch: None, form: str) -> None:
    """An unknown function is called with a file's arguments by nobody."""
    path = tmp_path / 'run.pth'
    attack = Attack(note, Attack(note, 'inner'))
    torch.save({'model': {'a': torch.ones(1)}, 'x': attack}, str(path), _use_new_zipfile_serialization=form == 'zip')
    BUILT.clear()
    checkpoint = open_checkpoint(path)
    assert BUILT == []
    assert any(name.endswith('.note') for name in checkpoint.inert)
    torch.load(str(path), **({'weights_only': False} if hasattr(torch.serialization, 'safe_globals') else {}))
    assert BUILT == ['inner', None]  # the trap works


def note(value: Any) -> None:
    BUILT.append(value)


def test_a_torchscript_archive_is_refused(tmp_path: Path, any_torch: None) -> None:
    path = tmp_path / 'script.pth'
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(path))
    assert zipfile.is_zipfile(path)
    with pytest.raises(ValueError, match='script.pth cannot be read .*TorchScript'):
        open_checkpoint(path)
