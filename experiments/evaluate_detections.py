"""nuScenes' scores of a results file, at official ranges and within shorter ones.

    python experiments/evaluate_detections.py results_nusc.json --data ROOT --within 12 20 30

A detector that sees 30 m is compared with another one by what lies within 30 m. A class's range becomes the smaller one
of its official range and the given one; all else is the devkit's. Such scores cannot be compared with published ones.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, Dict, Mapping, Sequence

from runs import write_json

Scores = Dict[str, Any]


def evaluate(results: Path, data: Path, version: str, within: Sequence[float]) -> Dict[str, Scores]:
    """By ``official``, ``within_20m`` and so on: mAP, NDS, and by class the AP, mean over the distances of a match and by these.

    Args:
        results: in nuScenes' format, of every sample of the validation split.
        data: nuScenes folder.
        version: of its tables.
        within: metres.

    Raises:
        ValueError: ranges, tables or results that cannot be scored.
    """
    from nuscenes import NuScenes
    from nuscenes.eval.detection.config import config_factory

    from geomim.mmdet3d.nuscenes_metric import OFFICIAL, evaluate_within

    tables, config = NuScenes(version, str(data), verbose=False), config_factory('detection_cvpr_2019')
    with tempfile.TemporaryDirectory() as folder:
        try:
            summaries = evaluate_within(tables, str(results), within, config, folder)
        except (json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"{results} is no results file in nuScenes' format: {error}") from error
        except AssertionError as error:
            raise ValueError(f'{results}: {error} It needs every sample of the validation split.') from error
    return {'official' if name == OFFICIAL else name: scores_of(summary) for name, summary in summaries.items()}


def scores_of(summary: Mapping[str, Any]) -> Scores:
    """Of a summary of the devkit."""
    by_distance = {name: {str(key): ap for key, ap in found.items()} for name, found in summary['label_aps'].items()}
    precision = {name: float(ap) for name, ap in summary['mean_dist_aps'].items()}
    return {
        'mAP': summary['mean_ap'],
        'NDS': summary['nd_score'],
        'AP': precision,
        'AP_by_distance': by_distance,
    }


def table(scores: Mapping[str, Scores]) -> str:
    """A row per score, a column per range."""
    lines = ['| ' + ' | '.join(['', *scores]) + ' |', '|---' * (len(scores) + 1) + '|']
    for name in ('mAP', 'NDS'):
        lines.append('| ' + ' | '.join([name, *(f'{found[name]:.4f}' for found in scores.values())]) + ' |')
    for name in next(iter(scores.values()))['AP']:
        lines.append(
            '| ' + ' | '.join([f'{name} AP', *(f'{found["AP"][name]:.4f}' for found in scores.values())]) + ' |'
        )
    return '\n'.join(lines)


def main() -> None:
    from geomim.nuscenes.infos import find_version

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('results', type=Path, help='results_nusc.json, of every sample of the validation split')
    parser.add_argument('--data', type=Path, required=True, help='nuScenes folder')
    parser.add_argument('--version', help='of its tables; found by itself')
    parser.add_argument('--within', type=float, nargs='+', default=[12.0, 20.0, 30.0], metavar='METRES')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    arguments = parser.parse_args()
    if not arguments.results.is_file():
        parser.error(f'{arguments.results}: no such file')
    version = arguments.version or find_version(arguments.data)
    scores = evaluate(arguments.results, arguments.data, version, arguments.within)
    print(table(scores))
    if arguments.out:
        write_json(arguments.out, scores)


if __name__ == '__main__':
    try:
        main()
    except ValueError as error:
        raise SystemExit(str(error)) from error
