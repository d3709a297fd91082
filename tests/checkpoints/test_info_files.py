"""Info files: what they may hold is read as it was written, in every protocol of pickle, and nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch

from geomim.checkpoints import info_files
from geomim.checkpoints.info_files import describe_if_old, read_infos

from ..helpers import Attack

META = {'categories': {'car': 0, 'animal': -1}, 'version': 'v1.0-mini'}


def dumped(path: Path, content: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_read_as_it_was_written(tmp_path: Path, protocol: int) -> None:
    sample = {
        'token': 'a', 'timestamp': 1.5, 'flag': True, 'nothing': None, 'bytes': b'\x80\xff', 'many': [1, (2, 3)],
        'set': {1, 2}, 'order': OrderedDict(b=1, a=2), 'default': defaultdict(list, {'a': [1]}), 'path': Path('a/b'),
        'valid': np.bool_(True), 'number': np.float32(0.25), 'boxes': np.random.rand(4, 9), 'none': np.zeros((0, 9)),
        'names': np.array(['car', 'bus']), 'things': np.array([{'a': 1}, None], dtype=object), 'big': np.arange(4, dtype='>i2'),
        'columns': np.asfortranarray(np.arange(6).reshape(2, 3)), 'day': np.datetime64('2020-01-01'),
        'counts': defaultdict(int, a=1), 'range': range(3),
    }  # fmt: skip
    path = dumped(tmp_path / 'a.pkl', {'metainfo': META, 'data_list': [sample]}, protocol)
    found, written = read_infos(path), pickle.loads(path.read_bytes())
    assert found['metainfo'] == META
    read, sample = found['data_list'][0], written['data_list'][0]
    assert read.pop('path') == PurePath(sample.pop('path'))
    assert repr(read) == repr(sample)
    for key, value in sample.items():
        assert type(read[key]) is type(value), key
        assert getattr(read[key], 'dtype', None) == getattr(value, 'dtype', None), key


def test_both_numpys_names_are_known(tmp_path: Path) -> None:
    content = pickle.dumps({'metainfo': META, 'data_list': [np.float32(2.5), np.eye(2)]}, protocol=2)
    core = b'numpy._core.' if b'numpy._core.' in content else b'numpy.core.'
    for other in (b'numpy.core.', b'numpy._core.'):  # in the second protocol names end with a line, and have no length
        (tmp_path / 'a.pkl').write_bytes(content.replace(core, other))
        number, matrix = read_infos(tmp_path / 'a.pkl')['data_list']
        assert number == 2.5
        assert np.array_equal(matrix, np.eye(2))


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('place', ['root', 'metainfo', 'sample', 'array'])
def test_code_is_named_and_does_not_run(tmp_path: Path, protocol: int, place: str) -> None:
    bad: Any = Attack(open, str(tmp_path / 'ran'), 'w')
    content: Any = {
        'root': bad,
        'metainfo': {'metainfo': {'a': bad}, 'data_list': []},
        'sample': {'metainfo': META, 'data_list': [{'token': bad}]},
        'array': {'metainfo': META, 'data_list': [np.array([bad, 1], dtype=object)]},
    }[place]
    with pytest.raises(ValueError, match=r'info file .*a\.pkl cannot be read.*it refers to _?io\.open'):
        read_infos(dumped(tmp_path / 'a.pkl', content, protocol))
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'thing',
    [
        Attack(os.system, 'true'), Attack(eval, '1'), Attack(getattr, dict, 'get'), Attack(__import__, 'os'),
        Attack(print, 'a'), Attack(np.load, 'a'), Attack(pickle.loads, b'N.'), torch.zeros(2), Path.home, np.save,
    ],
)  # fmt: skip
def test_whatever_is_no_plain_data_is_refused(tmp_path: Path, thing: Any) -> None:
    with pytest.raises(ValueError, match='it refers to .*, which is neither a container nor of numpy'):
        read_infos(dumped(tmp_path / 'a.pkl', {'metainfo': META, 'data_list': [thing]}))


@pytest.mark.parametrize(
    'content', [b'', b'junk', b'\x80\x02}q\x00', pickle.dumps({'metainfo': META, 'data_list': [1] * 99})[:60]]
)
def test_broken_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / 'a.pkl').write_bytes(content)
    with pytest.raises(ValueError, match=rf'info file .*a\.pkl cannot be read \({len(content)} bytes\)'):
        read_infos(tmp_path / 'a.pkl')
    with pytest.raises(FileNotFoundError):
        read_infos(tmp_path / 'b.pkl')


OLD = [
    {'infos': [{'token': 'a'}], 'metadata': {'version': 'v1.0-mini'}},
    {'metadata': {}, 'infos': []},
    [{'token': 'a'}],
]


@pytest.mark.parametrize('content', OLD)
@pytest.mark.parametrize('protocol', [2, 4])
def test_files_of_an_old_version_are_called_so(tmp_path: Path, content: Any, protocol: int) -> None:
    path = dumped(tmp_path / 'a.pkl', content, protocol)
    with pytest.raises(
        ValueError, match=r'a\.pkl is an info file of mmdet3d before 1\.1 .*python -m geomim infos ROOT'
    ):
        read_infos(path)
    assert 'before 1.1' in describe_if_old(path)


@pytest.mark.parametrize('content', [{'metainfo': META, 'data_list': []}, {'data_list': [], 'metainfo': META}])
def test_todays_files_are_not_old(tmp_path: Path, content: Any) -> None:
    assert describe_if_old(dumped(tmp_path / 'a.pkl', content)) == ''
    (tmp_path / 'a.json').write_text(json.dumps(content))
    assert read_infos(tmp_path / 'a.json') == content
    assert read_infos('s3://elsewhere/a.pkl', pickle.dumps(content)) == content


def test_only_real_info_files_count(tmp_path: Path) -> None:
    assert describe_if_old(tmp_path / 'absent.pkl') == ''
    (tmp_path / 'a.pkl').write_bytes(b'old')
    assert describe_if_old(tmp_path / 'a.pkl') == ''
    for content in ({'metainfo': META}, {'boxes': 1}, 5):
        with pytest.raises(ValueError, match=r'a\.pkl is no info file: it has no .*data_list'):
            read_infos(dumped(tmp_path / 'a.pkl', content))


@pytest.mark.parametrize(
    'name',
    ['pathlib.PosixPath', 'pathlib.WindowsPath', '_codecs.encode', 'numpy.core.numeric._frombuffer', 'builtins.dict'],
)
def test_a_file_cannot_alter_what_it_names(tmp_path: Path, name: str) -> None:
    """Pickles may set attributes of whatever they name; those of a class or function would hold in the whole process."""
    module, _, attribute = name.rpartition('.')
    # GLOBAL name; (None, {'__doc__': 'x'}); BUILD; POP; the content of a sound file
    start = b'\x80\x02c' + f'{module}\n{attribute}\n'.encode() + b'N}X\x07\x00\x00\x00__doc__X\x01\x00\x00\x00xs\x86b0'
    path = tmp_path / 'a.pkl'
    path.write_bytes(start + pickle.dumps({'metainfo': META, 'data_list': []}, protocol=2)[2:])
    before = [PurePosixPath.__doc__, PureWindowsPath.__doc__, info_files.latin1.__doc__]
    with pytest.raises(ValueError, match=r'a\.pkl cannot be read .* attribute'):
        read_infos(path)
    assert before == [PurePosixPath.__doc__, PureWindowsPath.__doc__, info_files.latin1.__doc__]
