"""The story in one command: make a small world, train a LiDAR teacher on it, pretrain GeoMIM, finetune a camera detector with
and without what it learnt, write a report.

    python tools/demo/demo.py                                   # a synthetic world
    python tools/demo/demo.py --quick                           # shorter, only to see every step
    python tools/demo/demo.py --data /datasets/nuscenes         # the same on real data; its folder is left as it is

Each finished step is kept: an interrupted run goes on where it was, training from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Sequence

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'experiments'))
import finetuning
import pictures as demo_pictures
import report
from run_folders import last_scores
from runs import (
    CONFIGS,
    ROOT,
    Data,
    data_options,
    evaluator_options,
    image_options,
    run,
    say,
    schedule_options,
    side_by_side,
    train,
    write_text,
)

TEACHER = CONFIGS / 'teacher' / 'centerpoint_pillar_tiny_synthetic.py'
STUDENT = CONFIGS / 'pretrain' / 'geomim_resnet_tiny_synthetic.py'
QUICK = dict(scenes='12+3', finetune_iterations=40)


def prepare_data(arguments: argparse.Namespace) -> Data:
    """The world or the given data, with info files."""
    from geomim.nuscenes.infos import find_version, info_names
    from geomim.synthetic.world import summarise

    if arguments.data:
        root = Path(arguments.data).expanduser().resolve()
        if not root.is_dir():
            raise SystemExit(f'DATA={arguments.data}: no such folder')
        infos = root if all((root / name).is_file() for name in info_names()) else arguments.out / 'infos'
        check_owner(arguments.out, root)
    else:
        root = infos = arguments.out / 'world'
        command = [sys.executable, '-m', 'geomim', 'synthesize', str(root), '--scenes', arguments.scenes]
        command += ['--frames', str(arguments.frames), '--rig', arguments.rig]
        command += ['--seed', str(arguments.seed), '--no-infos']
        run('A small world in the nuScenes format', command)
    version = find_version(root)
    if not all((infos / name).is_file() for name in info_names()):
        command = [sys.executable, '-m', 'geomim', 'infos', str(root), '--for', 'mmdet3d', '--out', str(infos)]
        run("Info files by mmdet3d's converter", command)
    return Data(root, version, infos, {} if arguments.data else summarise(root, version))


def check_owner(out: Path, root: Path) -> None:
    """A folder of results belongs to one data folder."""
    owner = out / 'data.txt'
    if owner.is_file() and owner.read_text(encoding='utf-8') != str(root):
        raise SystemExit(f'{out} belongs to DATA={owner.read_text(encoding="utf-8")}, not {root}: give another OUT')
    write_text(owner, str(root))


def train_teacher(arguments: argparse.Namespace, data: Data) -> Path:
    folder = arguments.out / 'teacher'
    options = data_options(data) + schedule_options(arguments.teacher_iterations, arguments.teacher_iterations // 12)
    options += evaluator_options(data, folder / 'results')
    options.append(f'randomness.seed={arguments.seed}')
    return train('The teacher: a small LiDAR detector', TEACHER, folder, arguments.teacher_iterations, options)


def student_options(arguments: argparse.Namespace, data: Data, teacher: Path) -> List[str]:
    """Options of pretraining, without those of its length."""
    from mmengine.config import Config

    options = [*data_options(data), f'model.teacher.checkpoint={teacher}', f'randomness.seed={arguments.seed}']
    return options + image_options(Config.fromfile(STUDENT, import_custom_modules=False), data)


def evaluate(arguments: argparse.Namespace, options: List[str], checkpoint: Path) -> Dict[str, Any]:
    """Figures of the pretrained student on validation frames."""
    figures = arguments.out / 'figures.json'
    if not figures.is_file() or figures.stat().st_mtime < checkpoint.stat().st_mtime:
        script = ['experiments/evaluate_pretraining.py', str(STUDENT), str(checkpoint), '--out', str(figures)]
        run('Evaluation of the reconstruction', [sys.executable, *script, '--cfg-options', *options])
    content: Dict[str, Any] = json.loads(figures.read_text(encoding='utf-8'))
    return content


def finetune(arguments: argparse.Namespace, data: Data, student: Path) -> Dict[str, report.Run]:
    """The camera detector, started from the pretrained encoder and from scratch."""
    from geomim.checkpoints.files import save_atomically, tensors_of
    from geomim.checkpoints.layouts import export_encoder
    from geomim.checkpoints.reading import read_checkpoint

    data = finetuning.with_bevdet_infos(data, arguments.out / 'infos' if arguments.data else data.root)
    encoder, seed, iterations = student.parent / 'encoder_resnet.pth', arguments.seed, arguments.finetune_iterations
    if not encoder.is_file():  # the run ended between its last checkpoint and the encoder's
        save_atomically(export_encoder(tensors_of(read_checkpoint(student)), 'backbone'), encoder)
    starts = {report.PRETRAINED: encoder, report.SCRATCH: None}
    cores = 1 if torch.cuda.is_available() else os.cpu_count() or 1
    if cores > 1:  # side by side, with half the threads each
        os.environ.setdefault('OMP_NUM_THREADS', str(cores // 2))

    def run_from(name: str) -> report.Run:
        folder = arguments.out / 'finetuning' / finetuning.run_name(starts[name], seed, iterations)
        folder.parent.mkdir(exist_ok=True)
        log = folder.with_suffix('.log') if cores > 1 and name == report.SCRATCH else None
        return report.Run(folder, finetuning.finetune(data, starts[name], folder, iterations, seed, log=log))

    with side_by_side(min(cores, 2)) as pool:
        return dict(zip(starts, pool.map(run_from, starts)))


def tell(
    arguments: argparse.Namespace, data: Data, figures: Dict[str, Any], runs: Dict[str, report.Run], seconds: float
) -> Path:
    """Write the report."""
    out = arguments.out
    metrics = last_scores(out / 'teacher')
    pictures = demo_pictures.world_pictures(data.root, data.version)
    detections = demo_pictures.detection_pictures(data.root, data.version, out / 'teacher' / 'results')
    teacher = with_items(report.teacher_section(out / 'teacher', metrics), detections)
    what = 'real nuScenes data' if arguments.data else f'a synthetic world (seed {arguments.seed})'
    story = report.Story(
        title='GeoMIM in one command',
        lead=f'A LiDAR detector and a camera network on {what}: what was made, trained and measured.',
        facts=facts(arguments, data, seconds),
        cards=report.headline_cards(metrics, figures, figures.get('frames', 0), runs),
        sections=(
            report.world_section(data.summary, pictures),
            teacher,
            report.pretraining_section(out / 'run', figures),
            *([finetuned_section(data, runs)] if runs else []),
        ),
        command=shlex.join(['python', *sys.argv]),
    )
    return report.write_report(out / 'report.html', story)


def finetuned_section(data: Data, runs: Dict[str, report.Run]) -> report.Section:
    results = runs[report.PRETRAINED].folder / 'results'
    pictures = demo_pictures.detector_pictures(data.root, data.version, results)
    return with_items(report.finetuning_section(runs), pictures)


def with_items(section: report.Section, items: Sequence[Any]) -> report.Section:
    return replace(section, items=(*section.items, *items))


def facts(arguments: argparse.Namespace, data: Data, seconds: float) -> List[Any]:
    import platform

    from geomim import __version__

    gpu = 'GPU' if torch.cuda.is_available() else 'no GPU'
    return [
        ('Data', f'{data.root} ({data.version})'),
        ('Teacher', f'{arguments.teacher_iterations} iterations'),
        ('Pretraining', f'{arguments.iterations} iterations'),
        *([] if arguments.no_finetune else [('Finetuning', f'twice {arguments.finetune_iterations} iterations')]),
        ('This call', f'{seconds / 60:.1f} minutes'),
        ('Machine', f'{os.cpu_count()} cores, {gpu}, {platform.machine()}'),
        ('Versions', f'geomim {__version__}, torch {torch.__version__}, Python {platform.python_version()}'),
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    quick = ', '.join(f'--{name.replace("_", "-")} {value}' for name, value in QUICK.items())
    parser.add_argument(
        '--data', default='', help='nuScenes root (samples/, sweeps/, v1.0-*); default: a synthetic world'
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'demo', help='where the results go')
    parser.add_argument('--scenes', default='24+4', help='of the synthetic world, as for `python -m geomim synthesize`')
    parser.add_argument('--rig', default='nuscenes', help='likewise')
    parser.add_argument('--frames', type=int, default=5, help='keyframes a scene of the synthetic world')
    parser.add_argument('--teacher-iterations', type=int, default=400)
    parser.add_argument('--iterations', type=int, default=110, help='of pretraining')
    parser.add_argument('--finetune-iterations', type=int, default=1000, help='of each of the two finetunings')
    parser.add_argument(
        '--quick', action='store_true', help=f'every step once, too briefly to detect anything: {quick}'
    )
    parser.add_argument('--no-finetune', action='store_true', help='end after pretraining')
    parser.add_argument('--seed', type=int, default=0, help='of the world and of all trainings')
    if parser.parse_args().quick:
        parser.set_defaults(**QUICK)
    arguments = parser.parse_args()
    arguments.out = arguments.out.expanduser().resolve()
    return arguments


def main() -> None:
    start = time.monotonic()
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = prepare_data(arguments)
    teacher = train_teacher(arguments, data)
    options = student_options(arguments, data, teacher)
    length = schedule_options(arguments.iterations, arguments.iterations // 10)
    length.append(f'custom_hooks.2.interval={max(1, arguments.iterations // 3)}')
    student = train('GeoMIM pretraining', STUDENT, arguments.out / 'run', arguments.iterations, options + length)
    figures = evaluate(arguments, options, student)
    runs = {} if arguments.no_finetune else finetune(arguments, data, student)
    page = tell(arguments, data, figures, runs, time.monotonic() - start)
    say('\nDone.')
    for title, path in (
        ('report', page),
        ('teacher', teacher),
        ('student', student),
        *(('encoder for finetuning', path) for path in sorted((arguments.out / 'run').glob('encoder*.pth'))),
        *(
            (f'detector {name}', detector.folder / f'iter_{arguments.finetune_iterations}.pth')
            for name, detector in runs.items()
        ),
    ):
        say(f'  {title + ":":<24}{path}')


if __name__ == '__main__':
    try:
        main()
    except subprocess.CalledProcessError as error:
        name = Path(error.cmd[1]).name if error.cmd[1] != '-m' else error.cmd[2]
        raise SystemExit(
            f'{name} stopped with exit status {error.returncode}; see above, or OUT/finetuning/*.log'
        ) from error
    except KeyboardInterrupt:
        raise SystemExit('\nInterrupted; the same command goes on from the last finished step or checkpoint.') from None
