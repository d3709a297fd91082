"""Writing a world: equal recipes give equal bytes however they were made, and nothing else is ever overwritten."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from geomim.synthetic import keyframe, world
from geomim.synthetic.keyframe import Recipe
from geomim.synthetic.rig import read_rig
from geomim.synthetic.world import MARKER, choose_scenes, make_recipe, write_world

from ..helpers import run_quietly, runs_still, wait_until

# Kills its process in the middle of one file: of the third keyframe's labels, or of a table.
INTERRUPTED = """
import os, signal, sys
from geomim.synthetic import keyframe, world

where, root, rig = sys.argv[1:]
save, write_json, count = keyframe.save_npz, world._write_json, [0]

def save_npz(path, arrays):
    count[0] += 1
    if where == 'keyframe' and count[0] == 3:
        path.write_bytes(b'half')
        os.kill(os.getpid(), signal.SIGKILL)
    save(path, arrays)

def write(path, content):
    if where == 'tables' and isinstance(content, list) and content and 'calibrated_sensor_token' in content[0]:
        path.write_text('[{"token": "ha')
        os.kill(os.getpid(), signal.SIGKILL)
    write_json(path, content)

keyframe.save_npz, world._write_json = save_npz, write
world.write_world(root, world.make_recipe(scenes='1+1', frames=2, image_size=(0, 0), seed=5, rig=rig))
"""


# No file may grow beyond a size, which the system answers as it answers a full disk.
NO_ROOM = """
import resource, sys
from geomim.synthetic import world

room, root, rig = int(sys.argv[1]), *sys.argv[2:]
resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
recipe = world.make_recipe(scenes='1+1', frames=2, image_size=(0, 0), seed=5, rig=rig)
try:
    world.write_world(root, recipe)
except OSError as error:
    print(error)
"""


@pytest.fixture(scope='module')
def rig(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small camera and a LiDAR of a few beams."""
    record = read_rig('front')
    record['cameras']['CAM_FRONT'].update(height=16, width=24, camera_intrinsic=[[12, 0, 12], [0, 12, 8], [0, 0, 1]])
    record['lidar'].update(rings=8, columns=90)
    path = tmp_path_factory.mktemp('rig') / 'small.json'
    path.write_text(json.dumps(record))
    return path


@pytest.fixture(scope='module')
def recipe(rig: Path) -> Recipe:
    return make_recipe(scenes='1+1', frames=2, image_size=(0, 0), seed=5, rig=rig)


@pytest.fixture(scope='module')
def made(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp('made') / 'world', recipe)


def tree(root: Path) -> Dict[str, str]:
    """Every file with its bytes' digest, hidden ones and empty folders included."""
    found = {}
    for path in root.rglob('*'):
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else 'folder'
        found[path.relative_to(root).as_posix()] = digest
    return found


def test_two_processes_write_the_bytes_of_one(recipe: Recipe, made: Path, tmp_path: Path) -> None:
    told: List[Tuple[int, int]] = []
    environment = dict(os.environ)

    def progress(done: int, total: int) -> None:
        assert not (tmp_path / 'world').exists()
        told.append((done, total))

    assert write_world(tmp_path / 'world', recipe, workers=2, progress=progress) == tmp_path / 'world'
    assert tree(tmp_path / 'world') == tree(made)
    assert told == [(done, 4) for done in range(5)]
    assert [path.name for path in tmp_path.iterdir()] == ['world']
    assert dict(os.environ) == environment


def test_a_killed_run_goes_on_to_the_same_bytes(
    recipe: Recipe, rig: Path, made: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    root = tmp_path / 'world'
    for where in ('keyframe', 'tables'):
        command = [sys.executable, '-c', INTERRUPTED, where, str(root), str(rig)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not root.exists()
        finished = sorted(path.name for path in (tmp_path / 'world.partial/parts').glob('[0-9]*.json'))
        assert len(finished) == (2 if where == 'keyframe' else 4)
    (tmp_path / f'world.partial/.{MARKER}.abc.json').write_text('{"half')  # killed in its very first file
    monkeypatch.setattr(world, 'write_keyframe', lambda *_: pytest.fail('a finished keyframe is made again'))
    write_world(root, recipe)
    assert tree(root) == tree(made)
    assert [path.name for path in tmp_path.iterdir()] == ['world']


@pytest.mark.parametrize('room', [100, 2000])  # for half an image, half a scan
def test_a_disk_without_room_is_named(room: int, rig: Path, tmp_path: Path) -> None:
    root = tmp_path / 'world'
    assert f"File too large: '{root}.partial" in run_quietly(['-c', NO_ROOM, room, root, rig]).stdout


def test_a_failed_run_goes_on_behind_the_last_finished_keyframe(
    recipe: Recipe, made: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    jobs: List[Tuple[int, int]] = []

    def failing(root: Path, recipe_: Recipe, index: int, frame: int) -> Any:
        if len(jobs) == 1 and (tmp_path / 'fails').exists():
            raise OSError('disk full')
        jobs.append((index, frame))
        return keyframe.write_keyframe(root, recipe_, index, frame)

    monkeypatch.setattr(world, 'write_keyframe', failing)
    (tmp_path / 'fails').touch()
    (tmp_path / 'world').mkdir()  # an empty folder is as good as none
    with pytest.raises(OSError, match='disk full'):
        write_world(tmp_path / 'world', recipe)
    assert list((tmp_path / 'world').iterdir()) == []
    (tmp_path / 'fails').unlink()
    write_world(tmp_path / 'world', recipe)
    assert jobs == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert tree(tmp_path / 'world') == tree(made)


def test_another_seed_is_another_world(recipe: Recipe, made: Path, tmp_path: Path) -> None:
    other = tree(write_world(tmp_path / 'world', replace(recipe, seed=6, frames=1)))
    same = {name for name, digest in tree(made).items() if digest != 'folder' and other.get(name) == digest}
    assert same <= {'v1.0-trainval/visibility.json'}


def test_an_equal_recipe_finds_its_world_made(recipe: Recipe, made: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(world, '_write_files', lambda *_: pytest.fail('made again'))
    before = tree(made)
    assert write_world(made, recipe, workers=2) == made
    assert tree(made) == before


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(seed=6), ['seed 5 (now 6)']),
        (dict(frames=3), ['frames 2 (now 3)']),
        (dict(image_size=(16, 32)), ['image_size [0, 0] (now [16, 32])']),
        (dict(camera_sweeps=True), ['camera_sweeps false (now true)']),
        (dict(without=('gts',)), ['without [] (now ["gts"])']),
        (dict(scenes=('scene-0001',), seed=1), ['scenes ["scene-0001", "scene-0003"] (now ["scene-0001"])', 'seed 5 (now 1)']),
        (dict(rig=read_rig('nuscenes')), ['rig {"cameras": {']),
    ],
)  # fmt: skip
@pytest.mark.parametrize('partial', [False, True], ids=['finished', 'partial'])
def test_a_world_of_another_recipe_is_refused(
    recipe: Recipe, made: Path, tmp_path: Path, change: Dict[str, Any], words: List[str], partial: bool
) -> None:
    if partial:
        (tmp_path / 'world.partial').mkdir()
        (tmp_path / 'world.partial' / MARKER).write_bytes((made / MARKER).read_bytes())
    root = tmp_path / 'world' if partial else made
    before = tree(root.parent)
    with pytest.raises(ValueError, match='with other arguments') as error:
        write_world(root, replace(recipe, **change))
    assert str(root) in str(error.value)
    assert ('interrupted' in str(error.value)) == partial
    for word in words:
        assert word in str(error.value)
    for name in set(vars(recipe)) - set(change):
        assert f'{name} ' not in str(error.value).partition('arguments: ')[2].partition('; name')[0]
    assert tree(root.parent) == before


@pytest.mark.parametrize('parts', [('gts',), ('lidarseg',), ('gts', 'lidarseg')])
def test_what_is_left_out_changes_nothing_else(
    recipe: Recipe, rig: Path, made: Path, tmp_path: Path, parts: Tuple[str, ...]
) -> None:
    from nuscenes.nuscenes import NuScenes

    less = make_recipe(scenes='1+1', frames=2, image_size=(0, 0), seed=5, rig=rig, without=parts[::-1])
    assert less == replace(recipe, without=parts)
    root = write_world(tmp_path / 'world', less)
    everything, left = tree(made), tree(root)
    gone = {name for name in everything if name.split('/')[0] in parts or 'lidarseg' in parts and 'lidarseg' in name}
    assert len(gone) > 4
    assert everything.pop(MARKER) != left.pop(MARKER)
    assert left == {name: digest for name, digest in everything.items() if name not in gone}
    assert len(NuScenes(less.version, str(root), verbose=False).sample) == 4  # the devkit misses nothing
    assert write_world(root, less) == root
    with pytest.raises(ValueError, match=f'without .*"{parts[-1]}".* .now ...; name'):
        write_world(root, recipe)


def test_a_world_of_a_former_version_has_all_parts(made: Path) -> None:
    assert 'without' not in json.loads((made / MARKER).read_text())


@pytest.mark.parametrize('name', ['world', 'world.partial'])
@pytest.mark.parametrize('kind', ['folder', 'file'])
def test_foreign_things_are_left_alone(recipe: Recipe, tmp_path: Path, name: str, kind: str) -> None:
    if kind == 'folder':
        (tmp_path / name).mkdir()
        (tmp_path / name / 'notes.txt').write_text('keep')
    else:
        (tmp_path / name).write_text('keep')
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=f'{name}.* is no synthetic world .*{MARKER}'):
        write_world(tmp_path / 'world', recipe)
    assert tree(tmp_path) == before


def test_two_at_once_are_refused(recipe: Recipe, tmp_path: Path, monkeypatch: Any) -> None:
    root, refused = tmp_path / 'world', []
    monkeypatch.setattr(world, 'write_keyframe', lambda *_: {'sample_data': [], 'boxes': []})
    monkeypatch.setattr(world, '_finish', lambda *_: None)

    def progress(done: int, total: int) -> None:
        with pytest.raises(ValueError, match=r'another process is making .*world\.partial') as error:
            write_world(root, recipe)
        refused.append(str(error.value))

    write_world(root, recipe, progress=progress)
    assert len(refused) == 5
    assert root.is_dir()
    with world.only_one(tmp_path / 'lock', tmp_path):
        pass
    with world.only_one(tmp_path / 'lock', tmp_path):  # free again
        pass


# Two workers that say who they are and then take long; the main process waits for them.
LONG = """
import os, sys, time
from pathlib import Path
from geomim.synthetic import world

def long(staging, recipe, index, frame):
    Path(staging, f'worker-{os.getpid()}').touch()
    time.sleep(60)

world._do = long
if __name__ == '__main__':
    world.write_world(sys.argv[1], world.make_recipe(scenes='1+1', frames=2, image_size=(0, 0), rig=sys.argv[2]), 2)
"""


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='asks Linux what runs')
@pytest.mark.parametrize('ending', [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_killed_main_process(ending: signal.Signals, rig: Path, tmp_path: Path) -> None:
    def workers() -> List[int]:
        return [int(path.name.rpartition('-')[2]) for path in (tmp_path / 'world.partial').glob('worker-*')]

    (tmp_path / 'script.py').write_text(LONG)
    command = [sys.executable, str(tmp_path / 'script.py'), str(tmp_path / 'world'), str(rig)]
    with subprocess.Popen(command, start_new_session=True) as main:
        try:
            wait_until(lambda: len(workers()) == 2)
            main.send_signal(ending)
            main.wait()
            wait_until(lambda: not any(map(runs_still, workers())), 10)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(main.pid, signal.SIGKILL)


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / 'lock'
    hold = 'import fcntl, sys; f = open(sys.argv[1], "a"); fcntl.flock(f, fcntl.LOCK_EX); print("held", flush=True); input()'
    command = [sys.executable, '-c', hold, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == 'held\n'
        with pytest.raises(ValueError, match='another process'), world.only_one(lock, tmp_path):
            pass
        other.kill()
        other.wait()
    with world.only_one(lock, tmp_path):
        pass


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(scenes='many'), "scenes: 'mini', a number, or TRAIN.VAL such as 80.20, got 'many'"),
        (dict(scenes='8+2+1'), "got '8.2.1'"),
        (dict(scenes='1'), r'got 0\+1'),
        (dict(scenes='0+2'), r'got 0\+2'),
        (dict(scenes='701+2'), r'1 to 700 training and 1 to 150 validation scenes, got 701\+2'),
        (dict(scenes='5+151'), r'got 5\+151'),
        (dict(scenes='-3'), 'scenes'),
        (dict(frames=0), 'frames: 1 to 1000 keyframes a scene, got 0'),
        (dict(frames=1001), 'frames: .* got 1001'),
        (dict(image_size=(4, 100)), r'image_size: .* at least 8 pixels, .* got \(4, 100\)'),
        (dict(image_size=(0, 100)), r'image_size: .* got \(0, 100\)'),
        (dict(seed=-1), 'seed must not be negative, got -1'),
        (dict(rig='no such rig'), "rig 'no such rig' is neither"),
        (dict(without=['gts', 'maps']), 'without: gts and lidarseg can be left out, got maps'),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(arguments: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_recipe(**arguments)


def test_no_workers_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='workers must be at least 1, got 0'):
        write_world(tmp_path / 'world', recipe, workers=0)
    assert list(tmp_path.iterdir()) == []


def test_scenes_are_those_of_the_official_splits() -> None:
    from nuscenes.utils import splits

    assert choose_scenes('mini') == ('v1.0-mini', (*splits.mini_train, *splits.mini_val))
    assert choose_scenes('2+1') == ('v1.0-trainval', (*splits.train[:2], splits.val[0]))
    assert choose_scenes('10') == choose_scenes('8+2')
    version, names = choose_scenes('700+150')
    assert len(set(names)) == 850
    assert set(names) == {*splits.train, *splits.val}
