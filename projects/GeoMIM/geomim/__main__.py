"""``python -m geomim``."""

from __future__ import annotations

import argparse
import sys
from typing import List, Optional

from .commands import detect, env, files, infos, synthesize, verify, zoo


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m geomim', description='GeoMIM checkpoints, proofs and data.')
    commands = parser.add_subparsers(dest='command', metavar='command', required=True)
    for name, add_arguments, run, text in (
        ('inspect', files.add_inspect_arguments, files.run_inspect, 'say what a checkpoint holds'),
        ('convert', files.add_convert_arguments, files.run_convert, 'write a checkpoint in another layout'),
        ('verify', verify.add_arguments, verify.run, 'compare the installed code with reference tensors'),
        ('synthesize', synthesize.add_arguments, synthesize.run, 'make a small world in the nuScenes format'),
        ('infos', infos.add_arguments, infos.run, 'make the info files of a nuScenes folder'),
        ('detect', detect.add_arguments, detect.run, 'run a finetuned detector, write results and pictures'),
        ('zoo', zoo.add_arguments, zoo.run, 'list the small networks that come with the package'),
        ('env', env.add_arguments, env.run, 'say what is installed, for an issue'),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + '.')
        add_arguments(command)
        command.set_defaults(run=run)
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (ValueError, OSError) as error:
        print(f'geomim {arguments.command}: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
