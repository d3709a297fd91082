"""What reading and augmenting an image costs, how sharp training images are, and how much damage reading notices.

    python benchmarks/image_augmentation.py IMAGE.jpg ... --repeats 20

One thread. Draws are those of pretraining: scales of 0.38 to 0.55, here in steps of 0.01, at which a 1600 x 900 image has
whole sizes, 5.4 degrees to each side, 256 x 704 pixels. Sharpness is the variance of the Laplacian of training images over
that of unturned ones of the same scales. Damage is bytes of a JPEG's second half, overwritten by chance.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List

import cv2
import numpy as np
from measuring import machine, spread, timed
from PIL import Image

from geomim.mmdet3d.images import read_image
from geomim.mmdet3d.transforms import ImageDraw, SurroundImageAug, warp_image

SIZE = (256, 704)
LINEAR, LANCZOS = cv2.INTER_LINEAR, cv2.INTER_LANCZOS4
Way = Callable[[np.ndarray, ImageDraw], np.ndarray]


def ours(image: np.ndarray, draw: ImageDraw) -> np.ndarray:
    return warp_image(image, draw.matrix(SIZE), SIZE)


def averaged_first(interpolation: int) -> Way:
    """An area average to the final resolution, then one interpolation."""

    def warp(image: np.ndarray, draw: ImageDraw) -> np.ndarray:
        height, width = image.shape[:2]
        small = round(width * draw.scale), round(height * draw.scale)
        half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        remaining = draw.matrix(SIZE) @ np.diag([width / small[0], height / small[1], 1.0])
        matrix = (np.linalg.inv(half) @ remaining @ half)[:2]
        return cv2.warpAffine(
            cv2.resize(image, small, interpolation=cv2.INTER_AREA), matrix, SIZE[::-1], flags=interpolation
        )

    return warp


def published(image: np.ndarray, draw: ImageDraw) -> np.ndarray:
    """Pillow's scaling, cropping, mirroring and rotating with its defaults, as published."""
    height, width = image.shape[:2]
    picture = Image.fromarray(image).resize((int(width * draw.scale), int(height * draw.scale)))
    picture = picture.crop((draw.left, draw.top, draw.left + SIZE[1], draw.top + SIZE[0]))
    if draw.mirror:
        picture = picture.transpose(Image.FLIP_LEFT_RIGHT)
    return np.asarray(picture.rotate(draw.angle))


WAYS: Dict[str, Way] = {
    'ours': ours,
    'area average, then linear': averaged_first(LINEAR),
    'area average, then Lanczos': averaged_first(LANCZOS),
    'published steps': published,
}


def edges(image: np.ndarray) -> float:
    """Variance of the Laplacian around the centre, about which draws turn and mirror, off what they leave black."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F)[48:-48, 140:-140].var())


def noticed(files: List[np.ndarray], count: int) -> str:
    """How many of the JPEG files are refused or warned of when ``count`` bytes in their middle are overwritten."""
    found, random = 0, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('error')
        for number, data in enumerate(files):
            at = int(random.integers(len(data) // 2, len(data) - count - 2))
            damaged = data.copy()
            damaged[at : at + count] = random.integers(0, 256, count)
            path = Path(folder) / f'{number}.jpg'
            damaged.tofile(path)
            try:
                read_image(str(path))
            except (ValueError, UserWarning):
                found += 1
    return f'{found} of {len(files)}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='+', help='files of 1600 x 900 pixels')
    parser.add_argument('--repeats', type=int, default=20, help='draws per image')
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    print(f'{machine("cpu")}, OpenCV {cv2.__version__}')
    paths = [path for path in arguments.images for _ in range(arguments.repeats)]
    files = [np.fromfile(path, np.uint8) for path in paths]
    calls = [
        (partial(cv2.imdecode, data, cv2.IMREAD_COLOR), partial(read_image, path)) for data, path in zip(files, paths)
    ]
    plain, checked = zip(*([timed(call, 'cpu') for call in taking_turns] for taking_turns in calls))
    print(f'{"decoding alone":28} {spread(plain, 1e3, 1)} ms')
    print(f'{"reading, with checks":28} {spread(checked, 1e3, 1)} ms')
    for count in (1, 16, 64, 512):
        print(f'{f"{count} bytes overwritten":28} noticed in {noticed(files, count)} files')
    np.random.seed(0)
    images = [read_image(path) for path in arguments.images]
    draws = [(image, SurroundImageAug(SIZE).draw(image.shape)) for image in images for _ in range(arguments.repeats)]
    draws = [(image, replace(draw, scale=round(draw.scale, 2))) for image, draw in draws]
    taking_turns = [[timed(partial(warp, image, draw), 'cpu') for warp in WAYS.values()] for image, draw in draws]
    for (name, warp), seconds in zip(WAYS.items(), zip(*taking_turns)):
        trained = sum(edges(warp(image, draw)) for image, draw in draws)
        tested = sum(edges(warp(image, replace(draw, mirror=False, angle=0.0))) for image, draw in draws)
        print(f'{name:28} {spread(seconds, 1e3, 1)} ms, sharpness {trained / tested:.2f}')


if __name__ == '__main__':
    main()
