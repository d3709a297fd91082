"""Networks that come with the package: found by address, checked by hash, small, described."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict

import pytest
import torch

from geomim.checkpoints import zoo
from geomim.checkpoints.files import not_finite
from geomim.checkpoints.reading import open_checkpoint

MOST_BYTES = 8_000_000
STATES: Dict[str, Dict[str, torch.Tensor]] = {
    'net': {'student.encoder.backbone.conv.weight': torch.rand(3).half(), 'student.head.bias': torch.rand(2).half()},
    'lidar': {'pts_neck.weight': torch.rand(2).half(), 'pts_neck.steps': torch.tensor(7)},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of a student and a teacher."""
    for (name, state), kind in zip(STATES.items(), ('student', 'teacher')):
        torch.save({'state_dict': state}, tmp_path / f'{name}.pth')
        digest = hashlib.sha256((tmp_path / f'{name}.pth').read_bytes()).hexdigest()
        (tmp_path / f'{name}.json').write_text(json.dumps({'kind': kind, 'text': 'x', 'sha256': digest}))
    monkeypatch.setattr(zoo, '_FOLDER', tmp_path)
    return tmp_path


def weights(address: str) -> Any:
    return open_checkpoint(address).content['state_dict']


def test_an_address_names_the_part_to_start_from(folder: Path) -> None:
    encoder = weights('geomim://net')
    assert list(encoder) == ['conv.weight'], 'as the class of the backbone calls it'
    assert torch.equal(encoder['conv.weight'], STATES['net']['student.encoder.backbone.conv.weight'].float())
    assert list(weights('geomim://net/student')) == list(STATES['net'])
    teacher = weights('geomim://lidar')
    assert {name: value.dtype for name, value in teacher.items()} == {
        'pts_neck.weight': torch.float32,
        'pts_neck.steps': torch.int64,
    }
    assert list(weights('geomim://lidar/teacher')) == list(teacher)


@pytest.mark.parametrize(
    ('address', 'message'),
    [
        ('geomim://nte', "no network 'nte' comes with the package; there are lidar, net"),
        ('geomim://net/encoder', "no part 'encoder'; of net there is geomim://net and geomim://net/student"),
        ('geomim://lidar/student', "no part 'student'; of lidar there is geomim://lidar"),
        ('geomim://../net', "no network '..' comes with the package"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(folder: Path, address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_checkpoint(address)


def test_a_damaged_file_is_not_loaded(folder: Path) -> None:
    weights('geomim://net')
    path = folder / 'net.pth'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f'{path} .* its card says [0-9a-f]{{64}}: it is damaged'):
        open_checkpoint('geomim://net')
    path.unlink()
    with pytest.raises(FileNotFoundError, match='install the package again'):
        open_checkpoint('geomim://net')


@pytest.mark.parametrize('name', zoo.names())
def test_what_is_shipped_is_whole_small_and_described(name: str) -> None:
    path, card = zoo.path_of(name), zoo.card(name)
    assert path.stat().st_size == card['bytes'] <= MOST_BYTES
    state = weights(f'geomim://{name}/{card["kind"]}')
    assert sum(value.numel() for value in state.values()) == card['parameters']
    assert not not_finite(state)
    assert {'text', 'world', 'commands', 'config', 'figures', 'hours', 'made'} <= card.keys()
