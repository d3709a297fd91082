"""What pretraining is worth when labels are few: finetuning and probes from every start, over shares of labels and seeds.

    python experiments/transfer.py --data ROOT --out FOLDER                              # 5% of the labels, all arms, 3 seeds
    python experiments/transfer.py --data ROOT --out FOLDER --shares 0.05 0.1 1 --arms scratch geomim --measures probe

Labels are those of some scenes, drawn once for each share: the lists are nested, and the same for all seeds and arms. The
teacher learns from the same labels, pretraining sees all training frames without labels. Everything is a run of
mmengine's Runner. Finished runs are kept, interrupted ones go on from their last checkpoint: the same command again is
enough. FOLDER/transfer.md and .json, of all calls together, are rewritten after each figure. ROOT is a nuScenes folder, synthetic or real.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import finetuning
from runs import (
    CONFIGS,
    Data,
    data_options,
    evaluator_options,
    image_options,
    labelled_scenes,
    run,
    say,
    schedule_options,
    side_by_side,
    train,
    write_json,
    write_text,
)

TEACHER = CONFIGS / 'teacher' / 'centerpoint_pillar_tiny_synthetic.py'
STUDENT = CONFIGS / 'pretrain' / 'geomim_resnet_tiny_synthetic.py'
DETECTORS = {
    'bevdet': CONFIGS / 'finetune' / 'bevdet_resnet_tiny_synthetic.py',
    'bevdepth4d': CONFIGS / 'finetune' / 'bevdepth4d_resnet_tiny_synthetic.py',
    'map': CONFIGS / 'map_segmentation' / 'bevdet_map_resnet_tiny_synthetic.py',
}
PROBE = 'probe'
PREFIX = 'bevdet'  # of the info files
ALL = 1.0
WITHIN = (12, 20, 30)  # metres


class Arm(NamedTuple):
    """A start of finetuning: what it says, what it changes in pretraining (None: none), whose labels taught the teacher."""

    text: str
    options: Optional[Tuple[str, ...]] = ()
    full_teacher: bool = False


def _without(part: str) -> Tuple[str, ...]:
    return ('model.type=AblatedPretrainer', f'model.without={part}')


ARMS: Dict[str, Arm] = {
    'scratch': Arm('random weights', None),
    'geomim': Arm('GeoMIM'),
    'depth-only': Arm("the reconstruction's weight at 0", _without('reconstruction')),
    'no-cross-view': Arm(
        'GeoMIM without cross-view attention',
        ('model.student.decoder.cross_view_after=()', 'model.student.decoder.geometry_cross_view_after=()'),
    ),
    'no-geometry-branch': Arm(
        "GeoMIM, depth from the trunk's end",
        (
            'model.student.decoder.geometry_depth=0',
            'model.student.decoder.geometry_cross_view_after=()',
            'model.student.decoder.geometry_from=4',
        ),
    ),
    'no-camera': Arm('GeoMIM without camera awareness', _without('camera_awareness')),
    'no-masking': Arm('GeoMIM, all copies whole', _without('masking')),
    'no-normalisation': Arm('GeoMIM without target normalisation', _without('target_normalisation')),
    'full-teacher': Arm("GeoMIM with a teacher of all labels: not the same labels as finetuning's", (), True),
}
REFERENCES = {'scratch': 'less scratch', 'depth-only': 'less depth-only', 'geomim': 'less GeoMIM'}


class Row(NamedTuple):
    """One figure."""

    share: float
    arm: str
    seed: int
    measure: str
    value: float


# ---------------------------------------------------------------------------------------------------------------- labels


def write_labelled_infos(data: Data, share: float, folder: Path) -> Data:
    """Info files of a share of the training scenes, with all validation frames, and ``scenes.txt``; returns the data with them."""
    import mmengine

    from geomim.atomic import atomic_path
    from geomim.checkpoints.info_files import read_infos

    names = [f'{PREFIX}_infos_{split}.pkl' for split in ('train', 'val')]
    train_infos, val_infos = (read_infos(data.infos / name) for name in names)
    chosen = labelled_scenes((info['scene_name'] for info in train_infos['data_list']), share)
    kept = [info for info in train_infos['data_list'] if info['scene_name'] in set(chosen)]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / 'scenes.txt', '\n'.join(chosen) + '\n')
    for name, content in zip(names, (dict(train_infos, data_list=kept), val_infos)):
        if not (folder / name).is_file():
            with atomic_path(folder / name) as temporary:
                mmengine.dump(content, temporary, file_format='pkl')
    return data._replace(infos=folder)


# ------------------------------------------------------------------------------------------------------------- statistics


def interval(values: Sequence[float]) -> Tuple[float, float, float]:
    """Mean and 95% interval of the mean by Student's t; the interval of one value is (-inf, inf)."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def paired_differences(rows: Sequence[Row], share: float, measure: str, arm: str, reference: str) -> List[float]:
    """``arm`` less ``reference``, of the seeds that both have."""
    values: Dict[str, Dict[int, float]] = defaultdict(dict)
    for row in rows:
        if (row.share, row.measure) == (share, measure):
            values[row.arm][row.seed] = row.value
    return [values[arm][seed] - values[reference][seed] for seed in sorted(values[arm]) if seed in values[reference]]


def describe(values: Sequence[float]) -> str:
    """0.1234 ± 0.0056 (3)."""
    spread = f' \N{PLUS-MINUS SIGN} {statistics.stdev(values):.4f}' if len(values) > 1 else ''
    return f'{statistics.fmean(values):.4f}{spread} ({len(values)})'


def describe_gain(values: Sequence[float]) -> str:
    """+0.0123 [+0.0050, +0.0196], in bold if the interval leaves out 0."""
    mean, lower, upper = interval(values)
    if not math.isfinite(lower):
        return f'{mean:+.4f}'
    text = f'{mean:+.4f} [{lower:+.4f}, {upper:+.4f}]'
    return f'**{text}**' if lower > 0 or upper < 0 else text


def markdown(settings: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """For each share a table of means, and one of paired differences."""
    lines = ['# Transfer', '', *(f'- {name}: `{value}`' for name, value in settings.items()), '']
    for share in sorted({row.share for row in rows}):
        ours = [row for row in rows if row.share == share]
        measures = list(dict.fromkeys(row.measure for row in ours))
        arms = [arm for arm in ARMS if any(row.arm == arm for row in ours)]
        lines += [f'## {share:.0%} of the labels', '', 'Mean, standard deviation, number of seeds:', '']
        lines += ['| start | ' + ' | '.join(measures) + ' |', '|---' * (len(measures) + 1) + '|']
        for arm in arms:
            found = ([row.value for row in ours if (row.arm, row.measure) == (arm, measure)] for measure in measures)
            cells = [describe(values) if values else '' for values in found]
            lines.append(f'| {arm} | ' + ' | '.join(cells) + ' |')
        lines += ['', 'Paired differences and their 95% intervals, in bold where these leave out 0:', '']
        lines += ['| | ' + ' | '.join(measures) + ' |', '|---' * (len(measures) + 1) + '|']
        for reference, text in REFERENCES.items():
            for arm in arms:
                if arm == reference or (reference, arm) == ('geomim', 'scratch') or reference not in arms:
                    continue
                if reference == 'depth-only' and arm != 'geomim':
                    continue
                gaps = [paired_differences(rows, share, measure, arm, reference) for measure in measures]
                lines.append(
                    f'| {arm} {text} | ' + ' | '.join(describe_gain(gap) if gap else '' for gap in gaps) + ' |'
                )
        lines.append('')
    lines += [*(f'- {name}: {arm.text}' for name, arm in ARMS.items() if any(row.arm == name for row in rows)), '']
    return '\n'.join(lines)


# ------------------------------------------------------------------------------------------------------------------ runs


class Study:
    """The runs of one folder, each made once."""

    def __init__(self, arguments: argparse.Namespace, data: Data) -> None:
        self.arguments, self.out = arguments, arguments.out
        self.data = data
        self._locks: Dict[Path, threading.Lock] = defaultdict(threading.Lock)
        self._guard = threading.Lock()

    def labelled(self, share: float) -> Data:
        folder = self.out / f'labels_{share:g}'
        with self._alone(folder):
            return write_labelled_infos(self.data, share, folder)

    def teacher(self, share: float) -> Path:
        """The LiDAR detector that learnt from a share of the labels."""
        folder, iterations = self.out / f'teacher_{share:g}', self.arguments.teacher_iterations
        data = self.labelled(share)
        options = [*data_options(data, PREFIX), *schedule_options(iterations, iterations // 12)]
        options += [*evaluator_options(data, folder / 'results', PREFIX), 'randomness.seed=0']
        with self._alone(folder):
            return train(f'Teacher, {share:.0%} of the labels', TEACHER, folder, iterations, options, _log(folder))

    def pretrain(self, arm: str, share: float, seed: int) -> Optional[Path]:
        """The encoder of an arm; None for random weights."""
        changes = ARMS[arm].options
        if changes is None:
            return None
        if ARMS[arm].full_teacher:
            arm, share = 'geomim', ALL
        # what the teacher says has no weight there: one pretraining for all shares
        name = arm if arm == 'depth-only' else f'{arm}_{share:g}'
        folder, iterations = self.out / f'pretraining_{name}', self.arguments.pretrain_iterations
        teacher = self.teacher(share)
        options = [*self.student_options(), f'model.teacher.checkpoint={teacher}', *changes]
        script = ['experiments/reconstruction.py', str(self.arguments.student), '--out', str(folder)]
        length = ['--seeds', str(seed), '--iterations', str(iterations), '--cfg-options', *options]
        with self._alone(folder / str(seed)):
            found = sorted(folder.glob(f'encoder_seed-{seed}_*.pth'))
            if not found or not (folder / f'figures_seed-{seed}.json').is_file():
                folder.mkdir(parents=True, exist_ok=True)
                title = f'Pretraining: {ARMS[arm].text}, teacher of {share:.0%} of the labels, seed {seed}'
                run(title, [sys.executable, *script, *length], _log(folder / f'seed-{seed}'))
                found = sorted(folder.glob(f'encoder_seed-{seed}_*.pth'))
        return found[0]

    def student_options(self) -> List[str]:
        from mmengine.config import Config

        content = Config.fromfile(self.arguments.student, import_custom_modules=False)
        return [*data_options(self.data, PREFIX), *image_options(content, self.data)]

    def probe(self, encoder: Optional[Path], arm: str, share: float, seed: int) -> Dict[str, float]:
        """Figures of the linear probe."""
        folder = self.out / f'probe_{arm}_{share:g}'
        folder.mkdir(parents=True, exist_ok=True)
        scenes = (self.labelled(share).infos / 'scenes.txt').read_text(encoding='utf-8').split()
        result = folder / f'seed-{seed}.json'
        script = ['experiments/linear_probe.py', str(self.arguments.student), '--out', str(result), '--seed', str(seed)]
        script += ['--scenes', *scenes, *(['--encoder', str(encoder)] if encoder else [])]
        if not result.is_file():
            title = f'Linear probe: {ARMS[arm].text}, {share:.0%} of the labels, seed {seed}'
            run(
                title,
                [sys.executable, *script, '--cfg-options', *self.student_options()],
                _log(folder / f'seed-{seed}'),
            )
        figures = json.loads(result.read_text(encoding='utf-8'))
        depth, classes = figures['depth']['probe'], figures['classes']['probe']
        return {
            'probe: depth within a bin': depth['within_one_bin']['all'][0],
            'probe: depth error, m': depth['mean_absolute_error'],
            'probe: class mAP': classes['mean_ap'],
        }

    def finetune(self, task: str, encoder: Optional[Path], arm: str, share: float, seed: int) -> Dict[str, float]:
        """Scores of a detector or a map."""
        folder = self.out / f'{task}_{arm}_{share:g}' / f'seed-{seed}'
        folder.parent.mkdir(parents=True, exist_ok=True)
        iterations, config = self.arguments.finetune_iterations, DETECTORS[task]
        data = self.labelled(share)
        scores = finetuning.finetune(data, encoder, folder, iterations, seed, config, _log(folder), WITHIN)
        return {f'{task}: {name}': value for name, value in finetuning.headline(scores, WITHIN).items()}

    def chain(self, share: float, arm: str, seed: int) -> List[Row]:
        """Everything of one start: pretraining, then its measures from cheap to dear."""
        encoder = self.pretrain(arm, share, seed)
        rows = []
        for measure in self.arguments.measures:
            if measure == PROBE:
                figures = self.probe(encoder, arm, share, seed)
            else:
                figures = self.finetune(measure, encoder, arm, share, seed)
            rows += [Row(share, arm, seed, name, value) for name, value in figures.items()]
        return rows

    def _alone(self, path: Path) -> threading.Lock:
        with self._guard:
            return self._locks[path]


def _log(folder: Path) -> Path:
    return folder.with_name(folder.name + '.log')


def prepare(arguments: argparse.Namespace) -> Data:
    """The data with the BEVDet family's info files."""
    from geomim.nuscenes.infos import find_version

    root = arguments.data
    return finetuning.with_bevdet_infos(Data(root, find_version(root), root, {}), arguments.out / 'infos')


def check_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """A folder of results belongs to one data folder and one length of each run.

    Raises:
        ValueError: other settings than those of the runs that are there.
    """
    path = out / 'settings.json'
    if path.is_file():
        found = json.loads(path.read_text(encoding='utf-8'))
        other = {name: (found.get(name), value) for name, value in settings.items() if found.get(name) != value}
        if other:
            told = '; '.join(f'{name} {old!r}, not {new!r}' for name, (old, new) in other.items())
            raise ValueError(f'{out} has runs of {told}: give another --out')
    write_json(path, dict(settings))


def read_rows(out: Path) -> List[Row]:
    """The figures of former calls."""
    path = out / 'transfer.json'
    content = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {'rows': []}
    return [Row(**row) for row in content['rows']]


def with_new(rows: Sequence[Row], found: Sequence[Row]) -> List[Row]:
    """``rows`` with those of ``found`` added or put in their place, in the order of shares, arms and seeds."""
    merged = {row[:-1]: row for row in (*rows, *found)}
    return sorted(merged.values(), key=lambda row: (row.share, list(ARMS).index(row.arm), row.seed))


def write_table(out: Path, settings: Mapping[str, Any], rows: Sequence[Row]) -> None:
    write_json(out / 'transfer.json', {**settings, 'rows': [row._asdict() for row in rows]})
    write_text(out / 'transfer.md', markdown(settings, rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, help='nuScenes root; its folder is left as it is')
    parser.add_argument('--out', type=Path, required=True, help='where runs, logs and tables go')
    parser.add_argument('--shares', type=float, nargs='+', default=[0.05], help='of the training scenes with labels')
    parser.add_argument('--arms', nargs='+', default=list(ARMS), choices=list(ARMS))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    measures = [PROBE, *DETECTORS]
    parser.add_argument('--measures', nargs='+', default=measures, choices=measures, help='in this order')
    parser.add_argument('--student', type=Path, default=STUDENT, help='a pretraining configuration')
    parser.add_argument('--teacher-iterations', type=int, default=600)
    parser.add_argument('--pretrain-iterations', type=int, default=1500)
    parser.add_argument('--finetune-iterations', type=int, default=600)
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
    arguments = parser.parse_args()
    for name in ('data', 'out', 'student'):
        setattr(arguments, name, getattr(arguments, name).expanduser().resolve())
    if not arguments.data.is_dir():
        parser.error(f'--data {arguments.data}: no such folder')
    return arguments


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = ('data', 'student', 'teacher_iterations', 'pretrain_iterations', 'finetune_iterations')
    values = {name: getattr(arguments, name) for name in names}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    check_settings(arguments.out, settings)
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // arguments.jobs)))
    study = Study(arguments, prepare(arguments))
    # seed by seed, so that an unfinished study is nearly balanced
    chains = [(share, arm, seed) for seed in arguments.seeds for share in arguments.shares for arm in arguments.arms]
    rows = read_rows(arguments.out)
    with side_by_side(arguments.jobs) as pool:
        for found in pool.map(lambda chain: study.chain(*chain), chains):
            rows = with_new(rows, found)
            write_table(arguments.out, settings, rows)
            say(
                '\n'.join(f'{row.share:.0%} {row.arm}, seed {row.seed}: {row.measure} {row.value:.4f}' for row in found)
            )
    say(f'\n{markdown(settings, rows)}\nwritten to {arguments.out}/transfer.json and .md')


if __name__ == '__main__':
    try:
        main()
    except (ValueError, RuntimeError) as error:
        raise SystemExit(str(error)) from error
    except subprocess.CalledProcessError as error:
        name = Path(error.cmd[1]).name
        raise SystemExit(
            f'{name} stopped with exit status {error.returncode}; the file named above says why'
        ) from error
    except KeyboardInterrupt:
        raise SystemExit('\nInterrupted; the same command goes on from the last finished run or checkpoint.') from None
