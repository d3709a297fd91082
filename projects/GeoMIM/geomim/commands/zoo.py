"""``python -m geomim zoo``: the small networks that come with the package, and how each was made."""

from __future__ import annotations

import argparse
import json

from ..checkpoints import zoo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('name', nargs='?', help='print its card and check its file; default: list all')


def run(arguments: argparse.Namespace) -> int:
    """Print the list, or one card, once the files agree with their hashes."""
    if arguments.name is None:
        for name in zoo.names():
            size = zoo.path_of(name).stat().st_size
            print(f'{zoo.SCHEME}{name:<36} {zoo.card(name)["kind"]:<8} {size / 1e6:4.1f} MB  {zoo.card(name)["text"]}')
        return 0
    name = arguments.name[len(zoo.SCHEME) :] if zoo.is_shipped(arguments.name) else arguments.name
    path, card = zoo.path_of(name), zoo.card(name)
    print(f'{path}\n{json.dumps(card, indent=2)}')
    return 0
