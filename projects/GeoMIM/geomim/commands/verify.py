"""``python -m geomim verify``: compare the installed code with a reference file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Sequence

from ..proofs.files import verify_file
from ..proofs.reference_file import Row


def print_rows(rows: Sequence[Row], failures_only: bool) -> None:
    """One line per tensor, the largest errors last."""
    width = max((len(row.name) for row in rows), default=10)
    for row in sorted(rows, key=lambda row: row.error):
        if failures_only and row.passed:
            continue
        verdict = 'ok' if row.passed else 'FAILED'
        print(f'{row.name:<{width}}  {row.error:10.3e}  (at most {row.tolerance:g})  {verdict}  {row.remark}'.rstrip())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('files', nargs='+', type=Path, metavar='FILE.npz')
    parser.add_argument('--failures-only', action='store_true', help='print only the tensors that differ')


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0 if all tensors agree, 1 if some differ, 2 for a file that cannot be checked."""
    status = 0
    for path in arguments.files:
        try:
            rows = verify_file(path)
        except (ValueError, OSError) as error:  # the other files are still worth checking
            source = '' if str(path) in str(error) else f'{path}: '
            print(f'geomim verify: {source}{error}', file=sys.stderr)
            status = 2
            continue
        print(path)
        print_rows(rows, arguments.failures_only)
        failed = [row.name for row in rows if not row.passed]
        if not rows:
            print(f'{path}: no tensors to compare')
            status = 2
        elif failed:
            print(f'{path}: {len(failed)} of {len(rows)} tensors differ: {", ".join(failed)}')
            status = max(status, 1)
        else:
            worst = max(rows, key=lambda row: row.error / max(row.tolerance, 1e-30))
            print(f'{path}: all {len(rows)} tensors agree; the furthest is {worst.name} with {worst.error:.2e}')
    return status
