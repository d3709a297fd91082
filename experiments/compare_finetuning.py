"""What pretraining is worth to a detector: finetuning with and without pretrained encoders, over seeds.

    python experiments/compare_finetuning.py --world ROOT --encoders E0.pth E1.pth --seeds 0 1 2 --iterations 300 --out FOLDER

Every seed is run from scratch and from every encoder, or with --paired from the encoder of the same place; all else is
equal. Finished runs are kept: the same command goes on where it was. The table is rewritten after each run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

import finetuning
from runs import Data, say, side_by_side, write_json, write_text

SCRATCH = 'scratch'
SCORES = ('mAP', 'NDS')


class Job(NamedTuple):
    """One run to do: the name of its start, the encoder (None: random weights), the seed."""

    start: str
    encoder: Optional[Path]
    seed: int


def plan(encoders: Sequence[Path], seeds: Sequence[int], paired: bool = False) -> List[Job]:
    """All runs, seed by seed, so that an unfinished comparison is nearly balanced.

    Raises:
        ValueError: ``paired`` with another number of encoders than of seeds, or the same encoder or seed twice.
    """
    if paired and len(encoders) != len(seeds):
        raise ValueError(f'--paired needs one encoder a seed, got {len(encoders)} encoders and {len(seeds)} seeds')
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in encoders]
    if len(set(digests)) < len(digests) or len(set(seeds)) < len(seeds):
        raise ValueError(f'encoders and seeds must differ, got {[str(path) for path in encoders]} and {list(seeds)}')
    jobs = []
    for place, seed in enumerate(seeds):
        jobs.append(Job(SCRATCH, None, seed))
        chosen = [place] if paired else range(len(encoders))
        jobs += [Job(f'encoder {number}', encoders[number], seed) for number in chosen]
    return jobs


def summarise(runs: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
    """Figures of finished runs, each with 'start', 'seed', 'mAP' and 'NDS': by start, of all encoders, and differences.

    A difference is that of a run with an encoder to the run from scratch with the same seed.
    """
    starts = list(dict.fromkeys(run['start'] for run in runs))
    scratch = {run['seed']: run for run in runs if run['start'] == SCRATCH}
    pretrained = [run for run in runs if run['start'] != SCRATCH]
    groups = {start: [run for run in runs if run['start'] == start] for start in starts}
    if len(groups) > 2:
        groups['all encoders'] = pretrained
    summary = {
        name: {score: spread([run[score] for run in group]) for score in SCORES} for name, group in groups.items()
    }
    matched = [(run, scratch[run['seed']]) for run in pretrained if run['seed'] in scratch]
    if matched:
        gaps = {score: [run[score] - other[score] for run, other in matched] for score in SCORES}
        summary['encoder minus scratch'] = {score: spread(gaps[score]) for score in SCORES}
    return summary


def spread(values: Sequence[float]) -> Dict[str, Any]:
    """Number, mean, standard deviation over the runs (n - 1; None for one run), least and greatest value."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {
        'runs': len(values),
        'mean': statistics.fmean(values),
        'deviation': deviation,
        'least': min(values),
        'greatest': max(values),
    }


def markdown(settings: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], planned: int) -> str:
    """The runs, then means and spreads, as text with two tables."""
    lines = ['# Finetuning with and without pretraining', '']
    lines.append(
        f'`{settings["config"]}`, {settings["iterations"]} iterations a run, validation split of `{settings["world"]}`; '
        f'{len(runs)} of {planned} runs are finished.'
    )
    lines += ['', *(f'- {name}: `{path}`' for name, path in settings['encoders'].items())]
    lines += ['', '| start | seed | mAP | NDS |', '|---|---|---|---|']
    lines += [f'| {run["start"]} | {run["seed"]} | {run["mAP"]:.4f} | {run["NDS"]:.4f} |' for run in runs]
    lines += ['', 'Mean, standard deviation over the runs, and range:', '']
    lines += ['| start | runs | mAP | NDS |', '|---|---|---|---|']
    for name, scores in summarise(runs).items():
        cells = ' | '.join(describe(scores[score]) for score in SCORES)
        lines.append(f'| {name} | {scores["mAP"]["runs"]} | {cells} |')
    lines += ['', 'Runs that share an encoder or a seed are not independent of each other.']
    return '\n'.join(lines) + '\n'


def describe(figures: Mapping[str, Any]) -> str:
    """One cell: 0.1234 +- 0.0056 (0.1178 to 0.1290)."""
    if figures['deviation'] is None:
        return f'{figures["mean"]:.4f}'
    middle = f'{figures["mean"]:.4f} \N{PLUS-MINUS SIGN} {figures["deviation"]:.4f}'
    return f'{middle} ({figures["least"]:.4f} to {figures["greatest"]:.4f})'


def write_table(out: Path, settings: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], planned: int) -> None:
    """comparison.json and comparison.md."""
    content = {**settings, 'planned': planned, 'runs': list(runs), 'summary': summarise(runs)}
    write_json(out / 'comparison.json', content)
    write_text(out / 'comparison.md', markdown(settings, runs, planned))


def check_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """A folder of results belongs to one world, configuration and length."""
    path = out / 'settings.json'
    wanted = {key: settings[key] for key in ('world', 'config', 'iterations')}
    if path.is_file():
        found = json.loads(path.read_text(encoding='utf-8'))
        if found != wanted:
            raise SystemExit(f'{out} belongs to {found}, not to {wanted}: give another --out')
    write_json(path, wanted)


def compare(arguments: argparse.Namespace, jobs: Sequence[Job], settings: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """Do the runs that are not done yet; the table is written after each."""
    from geomim.nuscenes.infos import find_version

    world = Path(settings['world'])
    data = finetuning.with_bevdet_infos(Data(world, find_version(world), world, {}), arguments.out / 'infos')
    done: Dict[Job, Dict[str, Any]] = {}

    def finish(job: Job) -> None:
        folder = arguments.out / finetuning.run_name(job.encoder, job.seed, arguments.iterations)
        log = folder.with_suffix('.log')
        scores = finetuning.finetune(data, job.encoder, folder, arguments.iterations, job.seed, arguments.config, log)
        figures = {
            name.partition('_NuScenes/')[2] or name.rpartition('/')[2]: value  # within_20m/mAP stays apart from mAP
            for name, value in scores.items()
            if '/' in name
        }
        done[job] = {'start': job.start, 'seed': job.seed, 'folder': folder.name, **figures}
        say(f'{job.start}, seed {job.seed}: mAP {figures["mAP"]:.4f}, NDS {figures["NDS"]:.4f}')

    with side_by_side(arguments.jobs) as pool:
        for _ in pool.map(finish, jobs):
            write_table(arguments.out, settings, [done[job] for job in jobs if job in done], len(jobs))
    return [done[job] for job in jobs]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--world', type=Path, required=True, help='nuScenes root; its folder is left as it is')
    parser.add_argument('--encoders', type=Path, nargs='+', required=True, help='exported encoders')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--iterations', type=int, default=300, help='of each run')
    parser.add_argument('--out', type=Path, required=True, help='where runs, logs and tables go')
    parser.add_argument('--config', type=Path, default=finetuning.DETECTOR, help='of a detector on GeoMIMSwin')
    parser.add_argument('--paired', action='store_true', help='seed i from encoder i only, not from every encoder')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
    arguments = parser.parse_args()
    for name in ('world', 'out', 'config'):
        setattr(arguments, name, getattr(arguments, name).expanduser().resolve())
    arguments.encoders = [path.expanduser().resolve() for path in arguments.encoders]
    for path in (arguments.world, arguments.config, *arguments.encoders):
        if not path.exists():
            parser.error(f'{path}: no such file or folder')
    return arguments


def main() -> None:
    arguments = parse_arguments()
    jobs = plan(arguments.encoders, arguments.seeds, arguments.paired)
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = {
        'world': str(arguments.world),
        'config': str(arguments.config),
        'iterations': arguments.iterations,
        'encoders': {f'encoder {number}': str(path) for number, path in enumerate(arguments.encoders)},
    }
    check_settings(arguments.out, settings)
    runs = compare(arguments, jobs, settings)
    say('\n' + markdown(settings, runs, len(jobs)) + f'\nwritten to {arguments.out}/comparison.json and .md')


if __name__ == '__main__':
    try:
        main()
    except (ValueError, RuntimeError) as error:
        raise SystemExit(str(error)) from error
    except subprocess.CalledProcessError as error:
        name = Path(error.cmd[1]).name
        raise SystemExit(f'{name} stopped with exit status {error.returncode}; see the .log files in --out') from error
    except KeyboardInterrupt:
        raise SystemExit('\nInterrupted; the same command goes on from the last finished run or checkpoint.') from None
