"""``python -m geomim``: exit statuses, messages on the right stream, and no file overwritten by accident."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch
from torch import nn

pytest.importorskip('numpy', reason='the verify command reads .npz files')

import numpy as np

from geomim import GeoMIM
from geomim.__main__ import main
from geomim.checkpoints.layouts import export_encoder, to_reference
from geomim.checkpoints.loading import read_checkpoint, save_atomically
from geomim.method.masked_encoder import BackboneSpec

Make = Callable[..., Any]
TINY_VIEW = ['--image-size', '64', '96', '--x-bound', '-12', '12', '1.5', '--y-bound', '-9', '9', '1.5']
TINY_VIEW += ['--depth-bound', '1', '13', '1']


@pytest.fixture
def model(make_config: Make, make_model: Make) -> GeoMIM:
    return make_model(make_config())


@pytest.fixture
def checkpoint(tmp_path: Path, model: GeoMIM) -> Path:
    return save_atomically({'state_dict': model.state_dict(), 'meta': {'epoch': 4}}, tmp_path / 'ours.pth')


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def test_inspect_tells_layout_sizes_and_windows(checkpoint: Path, model: GeoMIM, capsys: Any) -> None:
    assert run('inspect', checkpoint) == 0
    out = capsys.readouterr().out
    assert f'geomim layout, {len(model.state_dict())} tensors' in out
    assert "{'0': 4, '1': 4, '2': 3, '3': 2}" in out
    assert "'epoch': 4" in out
    assert 'NOT FINITE' not in out
    assert 'head.weight (5, 6, 1, 1)' not in out
    assert run('inspect', checkpoint, '--names') == 0
    assert 'head.weight (5, 6, 1, 1) float32' in capsys.readouterr().out


def test_inspect_points_at_values_that_are_not_finite(tmp_path: Path, model: GeoMIM, capsys: Any) -> None:
    state = dict(model.state_dict())
    state['head.bias'] = torch.full((5,), float('nan'))
    assert run('inspect', save_atomically(state, tmp_path / 'nan.pth')) == 0
    assert 'NOT FINITE: head.bias' in capsys.readouterr().out


def test_inspect_of_foreign_weights_gives_status_one(tmp_path: Path, capsys: Any) -> None:
    assert run('inspect', save_atomically({'conv.weight': torch.zeros(2)}, tmp_path / 'foreign.pth')) == 1
    assert 'unknown layout, 1 tensors' in capsys.readouterr().out


@pytest.mark.parametrize('command', [['inspect'], ['convert', '--to', 'bevdet'], ['verify']])
def test_a_missing_file_gives_status_two_and_a_message_on_stderr(
    tmp_path: Path, command: List[str], capsys: Any
) -> None:
    arguments = [
        command[0],
        tmp_path / 'nothing',
        *([tmp_path / 'out'] if command[0] == 'convert' else []),
        *command[1:],
    ]
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.startswith(f'geomim {command[0]}: ')
    assert 'nothing does not exist' in captured.err
    assert 'Traceback' not in captured.err


def test_convert_there_and_back_is_exact(tmp_path: Path, checkpoint: Path, model: GeoMIM, capsys: Any) -> None:
    there, back = tmp_path / 'reference.pth', tmp_path / 'back.pth'
    assert run('convert', checkpoint, there, '--to', 'reference', *TINY_VIEW) == 0
    assert '(geomim, ' in capsys.readouterr().out
    published = read_checkpoint(there)['state_dict']
    expected = to_reference(dict(model.state_dict()), model.config.view_transform)
    assert sorted(published) == sorted(expected)
    assert all(torch.equal(published[name], value) for name, value in expected.items())
    assert run('convert', there, back, '--to', 'geomim') == 0
    ours = read_checkpoint(back)['state_dict']
    assert sorted(ours) == sorted(model.state_dict())
    assert all(torch.equal(ours[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize('target', ['bevdet', 'mmdet'])
def test_convert_exports_encoders_and_says_what_stays_behind(
    tmp_path: Path, checkpoint: Path, model: GeoMIM, target: str, capsys: Any
) -> None:
    assert run('convert', checkpoint, tmp_path / 'encoder.pth', '--to', target) == 0
    exported = read_checkpoint(tmp_path / 'encoder.pth')['state_dict']
    assert sorted(exported) == sorted(export_encoder(dict(model.state_dict()), target))
    dropped = sum(not name.startswith('encoder.') for name in model.state_dict())
    assert f'{dropped} tensors of the input have no place in {target}' in capsys.readouterr().out


@pytest.fixture
def foreign(tmp_path: Path, make_config: Make) -> Path:
    """A pretraining checkpoint, as a host writes it, whose encoder is no Swin."""
    torch.manual_seed(0)
    student = GeoMIM(make_config(encoder=BackboneSpec(lambda: nn.Sequential(*(_halving() for _ in range(4))), 'net')))
    state = {f'student.{name}': value for name, value in student.state_dict().items()}
    return save_atomically({'state_dict': state, 'meta': {'iter': 4}}, tmp_path / 'iter_4.pth')


def _halving() -> nn.Module:
    return nn.Conv2d(3, 3, 3, stride=2, padding=1)


def test_convert_takes_a_backbone_out_under_its_own_names(tmp_path: Path, foreign: Path, capsys: Any) -> None:
    assert run('convert', foreign, tmp_path / 'encoder_net.pth', '--to', 'backbone') == 0
    assert 'have no place in backbone' in capsys.readouterr().out
    exported, state = (read_checkpoint(path)['state_dict'] for path in (tmp_path / 'encoder_net.pth', foreign))
    own = nn.Sequential(*(_halving() for _ in range(4)))
    own.load_state_dict(exported, strict=True)
    assert all(torch.equal(value, state[f'student.encoder.backbone.{name}']) for name, value in exported.items())
    assert run('convert', foreign, tmp_path / 'prefixed.pth', '--to', 'backbone', '--prefix', 'backbone.') == 0
    prefixed = read_checkpoint(tmp_path / 'prefixed.pth')['state_dict']
    assert sorted(prefixed) == sorted(f'backbone.{name}' for name in exported)
    assert run('inspect', foreign) == 0
    assert 'student.encoder' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--to', 'bevdet'], "the encoder is no Swin, and can be exported as 'backbone' alone, not 'bevdet'"),
        (['--to', 'reference'], 'its encoder is no Swin, which alone the reference layout has'),
        (['--to', 'geomim', '--prefix', 'a.'], '--prefix goes with --to backbone'),
    ],
)
def test_convert_of_a_backbone_refuses_layouts_of_the_swin(
    tmp_path: Path, foreign: Path, arguments: List[str], message: str, capsys: Any
) -> None:
    assert run('convert', foreign, tmp_path / 'never.pth', *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'never.pth').exists()


def test_convert_of_a_swin_is_no_backbone(tmp_path: Path, checkpoint: Path, capsys: Any) -> None:
    assert run('convert', checkpoint, tmp_path / 'never.pth', '--to', 'backbone') == 2
    assert "can be exported as 'bevdet' or 'mmdet', not 'backbone'" in capsys.readouterr().err


def test_convert_resizes_windows(tmp_path: Path, checkpoint: Path, capsys: Any) -> None:
    output = tmp_path / 'other.pth'
    assert run('convert', checkpoint, output, '--to', 'bevdet', '--window', 6, 4, 4, 2) == 0
    assert '3 position bias tables resized' in capsys.readouterr().out  # one in stage 0, two in stage 2
    state = read_checkpoint(output)['state_dict']
    assert state['stages.0.blocks.0.attn.w_msa.relative_position_bias_table'].shape == (121, 1)
    assert state['stages.2.blocks.1.attn.w_msa.relative_position_index'].shape == (16, 16)


def test_convert_refuses_to_overwrite(tmp_path: Path, checkpoint: Path, capsys: Any) -> None:
    output = tmp_path / 'there.pth'
    output.write_bytes(b'precious')
    assert run('convert', checkpoint, output, '--to', 'bevdet') == 2
    assert 'exists; give another name or --force' in capsys.readouterr().err
    assert output.read_bytes() == b'precious'
    assert run('convert', checkpoint, output, '--to', 'bevdet', '--force') == 0
    assert 'patch_embed.norm.bias' in read_checkpoint(output)['state_dict']


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--to', 'reference'], 'ends in 18 channels, but 118 depth bins'),
        (['--to', 'bevdet', '--window', '4', '4'], '2 windows are given, but '),
        (['--to', 'bevdet', '--from', 'mixmae'], 'a MixMAE position embedding must be'),
        (['--to', 'reference', '--image-size', '64', '90'], 'no multiple of the stride'),
    ],
)
def test_convert_refuses_what_does_not_fit_and_writes_nothing(
    tmp_path: Path, checkpoint: Path, arguments: List[str], message: str, capsys: Any
) -> None:
    output = tmp_path / 'never.pth'
    assert run('convert', checkpoint, output, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_convert_of_foreign_weights_is_refused(tmp_path: Path, capsys: Any) -> None:
    foreign = save_atomically({'conv.weight': torch.zeros(2)}, tmp_path / 'foreign.pth')
    assert run('convert', foreign, tmp_path / 'out.pth', '--to', 'bevdet') == 2
    assert 'is in no known layout' in capsys.readouterr().err


def test_unknown_commands_and_layouts_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    for arguments in ([], ['train'], ['convert', str(checkpoint), str(tmp_path / 'x'), '--to', 'mixmae']):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2


def reference_file(path: Path, config: Dict[str, Any], **arrays: Any) -> Path:
    np.savez(str(path), **{'meta/config': np.array(json.dumps(config)), **arrays})
    return path


def bias_file(path: Path, factor: float = 1.0) -> Path:
    from geomim.checkpoints.position_bias import resize_position_bias

    table = torch.randn(169, 2, generator=torch.Generator().manual_seed(0))
    resized = resize_position_bias(table, 8) * factor
    return reference_file(
        path, {'kind': 'position_bias_interpolation'}, **{'in/7_to_8': table.numpy(), 'out/7_to_8': resized.numpy()}
    )


def test_verify_prints_a_row_a_tensor_and_succeeds(tmp_path: Path, capsys: Any) -> None:
    assert run('verify', bias_file(tmp_path / 'bias.npz')) == 0
    out = capsys.readouterr().out
    assert 'out/7_to_8' in out
    assert 'ok' in out
    assert 'all 1 tensors agree' in out


def test_verify_fails_with_the_name(tmp_path: Path, capsys: Any) -> None:
    good, bad = bias_file(tmp_path / 'good.npz'), bias_file(tmp_path / 'bad.npz', 1.001)
    assert run('verify', good, bad, '--failures-only') == 1
    out = capsys.readouterr().out
    assert '1 of 1 tensors differ: out/7_to_8' in out
    assert out.count('FAILED') == 1


def test_verify_refuses_files_that_it_cannot_check(tmp_path: Path, capsys: Any) -> None:
    empty, text, array = tmp_path / 'empty.npz', tmp_path / 'text.npz', tmp_path / 'array.npz'
    empty.touch()
    text.write_text('no archive')
    with open(str(array), 'wb') as file:
        np.save(file, np.zeros(3))
    whole = bias_file(tmp_path / 'whole.npz').read_bytes()
    cut, flipped = tmp_path / 'cut.npz', tmp_path / 'flipped.npz'
    cut.write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 3
    flipped.write_bytes(
        whole[:middle] + bytes(255 - value for value in whole[middle : middle + 40]) + whole[middle + 40 :]
    )
    nameless = tmp_path / 'nameless.npz'
    np.savez(str(nameless), a=np.zeros(2))
    unknown = reference_file(tmp_path / 'unknown.npz', {'kind': 'segmentation'})
    lacking = reference_file(tmp_path / 'lacking.npz', {'kind': 'pretrain'})
    nothing = reference_file(tmp_path / 'nothing.npz', {'kind': 'position_bias_interpolation'})
    no_text = tmp_path / 'no_text.npz'
    np.savez(str(no_text), **{'meta/config': np.array('{')})
    list_config = tmp_path / 'list_config.npz'
    np.savez(str(list_config), **{'meta/config': np.array('[1]')})
    for path in (empty, text, array, cut, flipped, nameless, unknown, lacking, no_text, list_config):
        assert run('verify', path) == 2, path
        err = capsys.readouterr().err
        assert path.name in err, (path, err)
    assert run('verify', nothing) == 2
    assert 'no tensors to compare' in capsys.readouterr().out
    # one bad file does not keep the others from a check
    assert run('verify', tmp_path / 'absent.npz', unknown, nothing) == 2
    printed = capsys.readouterr()
    assert 'absent.npz' in printed.err
    assert 'unknown.npz' in printed.err
    assert 'nothing.npz' in printed.out


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, '-m', 'geomim', 'inspect', str(tmp_path / 'nothing.pth')],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ''
    assert 'nothing.pth does not exist' in done.stderr
    assert 'Traceback' not in done.stderr


def test_help_of_synthesize_names_every_option(capsys: Any) -> None:
    with pytest.raises(SystemExit) as error:
        main(['synthesize', '--help'])
    assert error.value.code == 0
    out = ' '.join(capsys.readouterr().out.split())
    for option in (
        '--scenes',
        '--frames',
        '--image-size',
        '--seed',
        '--rig',
        '--camera-sweeps',
        '--without',
        '--workers',
        '--no-infos',
    ):
        assert option in out
    for word in ('80+20', 'pixels', 'nuscenes, five, front', 'OUT.partial', '12 Hz'):
        assert word in out


def test_synthesize_without_opencv_says_what_to_install(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    for name in [name for name in sys.modules if name.startswith('geomim.synthetic')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'cv2', None)  # what Python does where a package is missing
    assert run('synthesize', tmp_path / 'world') == 2
    captured = capsys.readouterr()
    assert captured.out == ''
    assert 'geomim synthesize: ' in captured.err
    assert "pip install 'geomim[mmdet3d]'" in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--frames', '0'], 'frames: 1 to 1000 keyframes a scene, got 0'),
        (['--scenes', 'all'], "got 'all'"),
        (['--image-size', '2', '3'], 'got (2, 3)'),
        (['--rig', 'mine.json'], "rig 'mine.json' is neither a file nor one of five, front, nuscenes"),
        (['--workers', '0'], 'workers must be at least 1, got 0'),
    ],
)
def test_synthesize_refuses_what_cannot_be_and_writes_nothing(
    tmp_path: Path, arguments: List[str], message: str, capsys: Any
) -> None:
    for name in ('cv2', 'nuscenes', 'tqdm'):
        pytest.importorskip(name)
    assert run('synthesize', tmp_path / 'world', *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ''
    assert message in captured.err
    assert 'Traceback' not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_synthesize_makes_a_world_and_counts_it(tmp_path: Path, capsys: Any) -> None:
    for name in ('cv2', 'nuscenes', 'tqdm'):
        pytest.importorskip(name)
    camera = dict(translation=[1.5, 0, 1.5], rotation=[0.5, -0.5, 0.5, -0.5], height=16, width=24)
    camera['camera_intrinsic'] = [[12, 0, 12], [0, 12, 8], [0, 0, 1]]
    lidar = dict(translation=[0.9, 0, 1.8], rotation=[1, 0, 0, 0], elevation_degrees=[-25, 5], rings=8, columns=90)
    rig = {'cameras': {'CAM_FRONT': camera}, 'lidar': dict(lidar, range=70)}
    (tmp_path / 'rig.json').write_text(json.dumps(rig))
    command = ['synthesize', tmp_path / 'world', '--scenes', '1+1', '--frames', 1, '--image-size', 0, 0]
    command += ['--rig', tmp_path / 'rig.json', '--workers', 1, '--no-infos']
    assert run(*command) == 0
    out = capsys.readouterr().out
    assert 'v1.0-trainval, 2 scenes, 2 keyframes, 2 images, 2 scans' in out
    assert 'boxes with points: car ' in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ['rig.json', 'world']
    assert run(*command) == 0  # it is there
    assert capsys.readouterr().out == out
    assert run(*command, '--seed', 1) == 2
    assert 'seed 0 (now 1)' in capsys.readouterr().err
