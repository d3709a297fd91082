"""Files and folders that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator, Sequence, Union

PathLike = Union[str, Path]
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def room_for(path: PathLike) -> Iterator[None]:
    """Let the system's error for a full disk, which names no file, name what is being written in the block."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[str]:
    """A temporary file beside ``path`` that takes its place when the block ends well, and vanishes when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix=path.suffix)
    os.close(handle)
    try:
        with room_for(path):
            yield temporary
            _flush(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _flush(path: PathLike) -> None:
    """Have a file's bytes on the disk before its name is."""
    with open(path, 'rb+') as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def files_beside(folder: PathLike) -> Iterator[Path]:
    """A folder inside ``folder`` whose files take their places in ``folder`` when the block ends well, and vanish otherwise.

    Links come last, after what they name. What a killed process has left there is removed first: a folder has one writer
    at a time.
    """
    scratch = Path(folder) / '.unfinished'
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        with room_for(folder):
            yield scratch
            for path in sorted(scratch.iterdir(), key=os.path.islink):
                if not path.is_symlink():
                    _flush(path)
                os.replace(path, Path(folder) / path.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_result_folder(path: Path, names: Sequence[str], force: bool) -> None:
    """Whether a folder may be made or replaced.

    Args:
        path: the folder.
        names: what such a folder holds; a folder with anything else is somebody else's and never replaced.
        force: replace a folder that is not empty.

    Raises:
        ValueError: a file, a folder that is not empty without ``force``, or one with anything beside ``names``.
    """
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise ValueError(f'{path} is a file; name a folder')
    there = sorted(entry.name for entry in path.iterdir())
    foreign = [name for name in there if name not in names]
    if foreign:
        raise ValueError(
            f'{path} holds {", ".join(foreign[:4])}, which is no result of this command; name another folder'
        )
    if there and not force:
        raise ValueError(f'{path} is not empty; name another folder, or --force to replace it')


@contextlib.contextmanager
def result_folder(path: Path, names: Sequence[str], force: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place when the block ends well, and vanishes when it does not.

    Args, raises: as :func:`check_result_folder`, which is asked before and after the block.
    """
    path = path.expanduser().resolve()
    check_result_folder(path, names, force)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f'.{path.name}.'))
    try:
        (scratch / 'new').mkdir()
        with room_for(path):
            yield scratch / 'new'
        check_result_folder(path, names, force)
        if path.is_dir():
            os.replace(path, scratch / 'old')
        os.replace(scratch / 'new', path)
    finally:
        if (scratch / 'old').is_dir() and not path.exists():  # interrupted between the two
            os.replace(scratch / 'old', path)
        shutil.rmtree(scratch, ignore_errors=True)
