"""Reading of image files: pixels as they are stored, and damage is named.

Intrinsics refer to stored pixels, so that an orientation in the metadata (EXIF), which tells viewers to turn the picture,
does not count here.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import warnings
from typing import Any, Dict, Iterator, List, Optional, Tuple

import cv2
import mmengine.fileio
import numpy as np

from ..adapter.bad_samples import UnreadableFile

_AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
_JPEG, _PNG = b'\xff\xd8', b'\x89PNG\r\n\x1a\n'
_START_OF_SCAN, _FILL = 0xDA, 0xFF
_START_OR_END = re.compile(b'\xff[\xd8\xd9]')  # of an image; a scan holds neither
_WITHOUT_LENGTH = (0x00, 0x01, *range(0xD0, 0xDA))  # markers that are not followed by the length of a segment
_COMPLAINTS = (b'Corrupt JPEG data', b'Premature end of JPEG', b'Inconsistent progression', b'Invalid SOS')
_STDERR = 2
_REDIRECTING = threading.RLock()
if hasattr(os, 'register_at_fork'):  # no process starts with a redirected output
    os.register_at_fork(
        before=_REDIRECTING.acquire, after_in_parent=_REDIRECTING.release, after_in_child=_REDIRECTING.release
    )


def read_image(path: str, backend_args: Optional[Dict[str, Any]] = None, where: str = '') -> np.ndarray:
    """(H, W, 3) uint8 BGR of a file of any format that OpenCV decodes to it, neither turned nor mirrored by metadata.

    Warns, once per process and file, where the decoder finds a JPEG damaged and decodes it nevertheless.

    Args:
        path: of the file.
        backend_args: of ``mmengine.fileio``, for a file that is not on a local disk.
        where: what messages begin with.

    Raises:
        UnreadableFile: a ``ValueError``; a file that is absent, empty, truncated or no image; names it.
    """
    name = f'{where}image {path}'
    try:
        data = mmengine.fileio.get(path, backend_args=backend_args)
    except OSError as error:
        raise UnreadableFile(f'{name} cannot be read: {error}') from error
    if not data:
        raise UnreadableFile(f'{name} is an empty file')
    if _cut_short(data):
        raise UnreadableFile(f'{name} is truncated: its end is missing after {len(data)} bytes')
    image, complaints = _decode(data)
    if image is None:
        raise UnreadableFile(f'{name} cannot be decoded ({len(data)} bytes starting with {data[:8]!r})')
    if complaints:
        warnings.warn(f'{name} is damaged, a part of the picture may be wrong or grey ({complaints})', stacklevel=2)
    return image


def _cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end; some versions of OpenCV decode such a file and fill up with grey.

    What lies behind the end does not count. A JPEG without a scan is left to the decoder, which refuses it.
    """
    if data.startswith(_JPEG):
        scan = _first_scan(data)
        if scan < 0:
            return False
        mark = _START_OR_END.search(data, scan)
        return mark is None or mark.group() == _JPEG  # a preview behind an image that has no end
    return data.startswith(_PNG) and not _has_last_chunk(data)


def _first_scan(data: bytes) -> int:
    """Where the first scan of a JPEG begins, -1 without one.

    Segments before it are stepped over by their lengths: an embedded thumbnail has scans and ends of its own. As in
    libjpeg, bytes between two segments do not count.
    """
    at = data.find(b'\xff', len(_JPEG))
    while 0 <= at < len(data) - 1:
        marker = data[at + 1]
        if marker == _START_OF_SCAN:
            return at
        if marker == _FILL:
            step = 1
        else:
            step = 2 if marker in _WITHOUT_LENGTH else 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
        at = data.find(b'\xff', at + step)
    return -1


def _has_last_chunk(data: bytes) -> bool:
    """Whether the chunks of a PNG lead to IEND: length, name of 4 bytes, content, check sum of 4 bytes."""
    at = len(_PNG)
    while at + 8 <= len(data):
        if data[at + 4 : at + 8] == b'IEND':
            return True
        at += 12 + int.from_bytes(data[at : at + 4], 'big')
    return False


def _decode(data: bytes) -> Tuple[Optional[np.ndarray], str]:
    """The image as ``read_image`` returns it, None if it cannot be decoded, and libjpeg's complaints about it."""
    with _standard_error() as lines:
        try:
            image: Optional[np.ndarray] = cv2.imdecode(np.frombuffer(data, np.uint8), _AS_STORED)
        except cv2.error:  # such as more pixels than OpenCV accepts
            image = None
    complaints = [line for line in lines if line.startswith(_COMPLAINTS)]
    others = b''.join(line for line in lines if line not in complaints)
    if others:
        os.write(_STDERR, others)
    return image, b'; '.join(complaints).decode(errors='replace').replace('\n', '')


@contextlib.contextmanager
def _standard_error() -> Iterator[List[bytes]]:
    """Lines that the process writes to its standard error output meanwhile; the list is filled at the end.

    OpenCV hands out no complaints of its decoders; libjpeg writes them there. Where there is no such output, or no room
    for a temporary file, the list stays empty.
    """
    lines: List[bytes] = []
    with _REDIRECTING, contextlib.ExitStack() as files:
        try:
            written = files.enter_context(tempfile.TemporaryFile())
            kept = os.dup(_STDERR)
        except OSError:
            yield lines
            return
        files.callback(os.close, kept)
        os.dup2(written.fileno(), _STDERR)
        try:
            yield lines
        finally:
            os.dup2(kept, _STDERR)
        written.seek(0)
        lines.extend(written)
