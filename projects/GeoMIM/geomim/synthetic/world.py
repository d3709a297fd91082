"""Writing a world: many keyframes on several processes into a folder that appears complete or not at all.

While it is being made it lies in ``OUT.partial``; a keyframe counts once its note is there, so that an interrupted run
goes on behind the last finished one.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

import cv2
import numpy as np

from ..atomic import atomic_path, room_for
from .keyframe import OPTIONAL, Recipe, place_scene, write_keyframe
from .labels import DETECTION
from .map_expansion import build_expansion, expansion_path, prior_path
from .rig import build_rig, read_rig
from .tables import build_tables

MARKER = 'geomim_synthetic.json'
FORMAT = 2
MAP_RESOLUTION = 0.1  # metres a pixel, as the devkit reads map masks
Progress = Callable[[int, int], None]


def make_recipe(
    *,
    scenes: str = 'mini',
    frames: int = 10,
    image_size: Tuple[int, int] = (225, 400),
    seed: int = 0,
    rig: Union[str, Path] = 'nuscenes',
    camera_sweeps: bool = False,
    without: Sequence[str] = (),
) -> Recipe:
    """What to make, checked.

    Args:
        scenes: 'mini' (the 8 + 2 scenes of v1.0-mini), 'TRAIN+VAL' as in '80+20' (of v1.0-trainval's 700 + 150), or one
            number, of which a fifth is for validation.
        frames: keyframes a scene, two a second.
        image_size: (H, W) pixels; (0, 0) keeps each camera's own.
        rig: name of a rig that comes with the package, or a JSON file.
        without: parts to leave out: 'gts' (occupancy), 'lidarseg'.

    Raises:
        ValueError: a number out of range, or a rig that cannot be.
    """
    if not 1 <= frames <= 1000:
        raise ValueError(f'frames: 1 to 1000 keyframes a scene, got {frames}')
    if seed < 0:
        raise ValueError(f'seed must not be negative, got {seed}')
    if tuple(image_size) != (0, 0) and min(image_size) < 8:
        raise ValueError(f'image_size: height and width of at least 8 pixels, or 0 0, got {tuple(image_size)}')
    unknown = [part for part in without if part not in OPTIONAL]
    if unknown:
        raise ValueError(f'without: {" and ".join(OPTIONAL)} can be left out, got {", ".join(unknown)}')
    version, names = choose_scenes(scenes)
    record = read_rig(rig)
    build_rig(record)
    size = (int(image_size[0]), int(image_size[1]))
    return Recipe(version, names, frames, size, seed, record, camera_sweeps, tuple(sorted(set(without))))


def choose_scenes(text: str) -> Tuple[str, Tuple[str, ...]]:
    """Version and scene names of the official splits, training scenes first."""
    try:
        from nuscenes.utils import splits
    except ImportError as error:
        raise ValueError(
            "nuscenes-devkit, which knows the official splits, is missing: pip install 'geomim[mmdet3d]'"
        ) from error
    if text == 'mini':
        return 'v1.0-mini', (*splits.mini_train, *splits.mini_val)
    try:
        numbers = [int(part) for part in str(text).split('+')]
        if len(numbers) == 1:
            val = max(1, round(numbers[0] / 5))
            numbers = [numbers[0] - val, val]
        train, val = numbers
    except ValueError as error:
        raise ValueError(f"scenes: 'mini', a number, or TRAIN+VAL such as 80+20, got {text!r}") from error
    if not (1 <= train <= len(splits.train) and 1 <= val <= len(splits.val)):
        raise ValueError(
            f'scenes: 1 to {len(splits.train)} training and 1 to {len(splits.val)} validation scenes, got {train}+{val}'
        )
    return 'v1.0-trainval', (*splits.train[:train], *splits.val[:val])


def write_world(root: Union[str, Path], recipe: Recipe, workers: int = 1, progress: Optional[Progress] = None) -> Path:
    """Make a world in nuScenes' format.

    The folder of an equal recipe is left as it is; an interrupted run is continued.

    Args:
        root: folder to make.
        workers: processes.
        progress: called with (keyframes done, keyframes in all).

    Returns:
        ``root``, which then holds samples/, sweeps/, maps/, a folder of tables, and lidarseg/ and gts/ unless left out.

    Raises:
        ValueError: ``root`` or its ``.partial`` holds something else, or another process is making it.
    """
    root = Path(root)
    if workers < 1:
        raise ValueError(f'workers must be at least 1, got {workers}')
    if root.exists() and any(root.iterdir() if root.is_dir() else [root]):
        _check_same(root, recipe, f'{root} exists')
        return root
    staging = root.with_name(f'{root.name}.partial')
    if staging.exists():
        _check_same(staging, recipe, f'{staging}, of an interrupted run,')
    (staging / 'parts').mkdir(parents=True, exist_ok=True)
    with only_one(staging / 'lock', staging), room_for(staging):
        for leftover in staging.glob(f'.{MARKER}.*'):
            leftover.unlink()
        _write_json(staging / MARKER, _as_json(recipe))
        _write_files(staging, recipe, workers, progress or (lambda done, total: None))
        _finish(staging, recipe)
    (staging / 'lock').unlink()
    if root.exists():
        root.rmdir()
    os.replace(str(staging), str(root))
    return root


def _as_json(recipe: Recipe) -> Dict[str, Any]:
    content = json.loads(json.dumps({'format': FORMAT, **asdict(recipe)}))
    if not recipe.without:  # worlds of former versions have all parts, and no such entry
        del content['without']
    return content


def _check_same(folder: Path, recipe: Recipe, what: str) -> None:
    marker = folder / MARKER
    if not marker.is_file():
        raise ValueError(f'{what} and is no synthetic world (it has no {MARKER}); name a new folder')
    everything: Dict[str, Any] = {'without': []}
    written = {**everything, **json.loads(marker.read_text(encoding='utf-8'))}
    wanted = {**everything, **_as_json(recipe)}
    other = [key for key in wanted if written.get(key) != wanted[key]]
    if other:
        told = ', '.join(f'{key} {_short(written.get(key))} (now {_short(wanted[key])})' for key in other)
        raise ValueError(f'{what} and was made with other arguments: {told}; name a new folder or remove it')


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f'{text[:50]} ...'


@contextlib.contextmanager
def only_one(lock: Path, folder: Path) -> Iterator[None]:
    """Hold ``lock`` while making ``folder``; the kernel frees it however the process ends."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    with open(lock, 'a+', encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f'another process is making {folder}; wait for it, or name another folder') from None
        except OSError:  # a file system without locks
            pass
        yield


def _write_json(path: Path, content: Any) -> None:
    with atomic_path(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        file.write(json.dumps(content))  # several times as fast as json.dump


def _part(staging: Path, index: int, frame: int) -> Path:
    return staging / 'parts' / f'{index:04d}-{frame:04d}.json'


def _write_files(staging: Path, recipe: Recipe, workers: int, progress: Progress) -> None:
    """Everything but the tables: keyframes that are not there yet, and all maps, which take little time."""
    shutil.rmtree(str(staging / 'maps'), ignore_errors=True)  # a killed process may have left half a map there
    maps = range(len(recipe.scenes))
    jobs = [(index, frame) for index in range(len(recipe.scenes)) for frame in range(recipe.frames)]
    open_jobs = [job for job in jobs if not _part(staging, *job).is_file()]
    done = len(jobs) - len(open_jobs)
    progress(done, len(jobs))
    if workers == 1:
        for job in open_jobs:
            _do(staging, recipe, *job)
            done += 1
            progress(done, len(jobs))
        for index in maps:
            _draw(staging, recipe, index)
        return
    # spawned, not forked: a fork of a process that has used OpenCV or torch may hang
    context = multiprocessing.get_context('spawn')
    with one_thread_each(), ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        pending: Set[Future[None]] = {pool.submit(_do, staging, recipe, *job) for job in open_jobs}
        drawn = {pool.submit(_draw, staging, recipe, index) for index in maps}
        pending |= drawn
        try:
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    if future not in drawn:
                        done += 1
                        progress(done, len(jobs))
        except BaseException:
            for future in pending:
                future.cancel()
            raise


def _end_with_parent() -> None:
    """Let a worker end when its parent has ended, however that was; the pool ends its workers only when it can."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Lets processes that are started meanwhile use one thread each, where a library would take all cores."""
    names = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, '1'))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _do(staging: Path, recipe: Recipe, index: int, frame: int) -> None:
    cv2.setNumThreads(1)
    _write_json(_part(staging, index, frame), write_keyframe(staging, recipe, index, frame))


def _draw(staging: Path, recipe: Recipe, index: int) -> None:
    path, expansion = staging / prior_path(recipe, index), staging / expansion_path(recipe, index)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(cv2.imencode('.png', draw_map(recipe, index))[1].tobytes())
    _write_json(expansion, build_expansion(recipe, index))


def _finish(staging: Path, recipe: Recipe) -> None:
    parts = [
        [json.loads(_part(staging, index, frame).read_text()) for frame in range(recipe.frames)]
        for index in range(len(recipe.scenes))
    ]
    tables = build_tables(recipe, parts)
    folder = staging / recipe.version
    shutil.rmtree(str(folder), ignore_errors=True)  # a killed process may have left half a table there
    folder.mkdir()
    for name, rows in tables.items():
        _write_json(folder / f'{name}.json', rows)
    (staging / 'sweeps').mkdir(exist_ok=True)
    shutil.rmtree(str(staging / 'parts'))


def draw_map(recipe: Recipe, index: int) -> np.ndarray:
    """A scene's carriageway from above, (rows, columns) uint8, 255 where one may drive; row 0 is the largest y."""
    scene = recipe.scene(index)
    world2global, extent = place_scene(recipe, index, scene)
    columns, rows = (int(np.ceil(length / MAP_RESOLUTION)) for length in extent)
    x = (np.arange(columns) + 0.5) * MAP_RESOLUTION
    y = (rows - np.arange(rows) - 0.5) * MAP_RESOLUTION
    global2world = np.linalg.inv(world2global)
    world_x = global2world[0, 0] * x[None] + global2world[0, 1] * y[:, None] + global2world[0, 3]
    world_y = global2world[1, 0] * x[None] + global2world[1, 1] * y[:, None] + global2world[1, 3]
    return np.where(np.abs(scene.road.lateral(world_x, world_y)) < scene.road.kerb, 255, 0).astype(np.uint8)


def summarise(root: Union[str, Path], version: str) -> Dict[str, Any]:
    """Counts of a finished world: scenes, keyframes, images, scans, and boxes with points by detection class."""
    folder = Path(root) / version

    def table(name: str) -> List[Dict[str, Any]]:
        rows: List[Dict[str, Any]] = json.loads((folder / f'{name}.json').read_text(encoding='utf-8'))
        return rows

    names = {row['token']: row['name'] for row in table('category')}
    classes = {category: detection for detection, category in DETECTION.items()}
    owners = {row['token']: classes[names[row['category_token']]] for row in table('instance')}
    boxes = dict.fromkeys(DETECTION, 0)
    for row in table('sample_annotation'):
        boxes[owners[row['instance_token']]] += row['num_lidar_pts'] > 0
    data = table('sample_data')
    return {
        'scenes': len(table('scene')),
        'keyframes': len(table('sample')),
        'images': sum(row['fileformat'] == 'jpg' for row in data),
        'scans': sum(row['fileformat'] == 'pcd' for row in data),
        'boxes': boxes,
    }
