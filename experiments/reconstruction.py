"""What a pretraining of minutes learns, over seeds: reconstruction and depth of unseen frames beside what can be had without looking.

    python experiments/reconstruction.py CONFIG --out FOLDER --seeds 0 1 2 --iterations 1800 --cfg-options KEY=VALUE ...

Trains a pretraining CONFIG with mmengine's Runner, one sample a step, augmented anew each time. A seed decides initial
weights, order and augmentation of frames, and masks. An interrupted seed goes on from its last checkpoint and finished
ones are kept; seeds may run side by side, each in a process of its own, on one thread each. FOLDER/reconstruction.md has
the table of all seeds that are there.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any, Dict, Sequence

import ablations  # noqa: F401 - its model is registered
import evaluate_pretraining
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from run_folders import read_scalars, series
from runs import add_config, read_config, schedule, without_validation, write_json, write_text

from geomim.checkpoints.loading import save_atomically, write_encoders

FIGURES = 'figures_seed-{}.json'


def run_config(config: Config, folder: Path, seed: int, iterations: int) -> Config:
    """``config`` for one seed in ``folder``: one sample a step, no validation, no pictures."""
    config = copy.deepcopy(config)
    config.merge_from_dict(
        {**schedule(iterations, iterations // 10), 'work_dir': str(folder), 'model.mask_seed': seed, 'resume': True}
    )
    config.randomness = dict(seed=seed)
    config.visualizer.name = f'seed-{seed}'  # mmengine keeps one by its name, which logs to the first run's folder
    logger = config.default_hooks.logger
    logger.interval = min(logger.get('interval', 10), iterations)  # the minutes of the table come from the log
    loader = config.train_dataloader
    loader.update(batch_size=1, num_workers=0, persistent_workers=False)
    config.custom_hooks = [hook for hook in config.custom_hooks if hook.type != 'ReconstructionPicturesHook']
    without_validation(config)
    return config


def run(arguments: argparse.Namespace, config: Config, seed: int) -> None:
    """Pretrain with one seed, or go on with it, and write checkpoint, encoders and figures."""
    out, folder = arguments.out, arguments.out / f'seed-{seed}'
    runner = Runner.from_cfg(run_config(config, folder, seed, arguments.iterations))
    runner.train()
    model = runner.model.eval()
    save_atomically({'state_dict': model.state_dict()}, out / f'student_seed-{seed}.pth')
    write_encoders(model.student, out / f'encoder_seed-{seed}.pth', ('bevdet',))
    with torch.no_grad():
        figures = evaluate_pretraining.evaluate(model, *evaluate_pretraining.datasets(config), arguments.max_frames)
    # of all calls that the training took
    seconds = arguments.iterations * statistics.fmean(time for _, time in series(read_scalars(folder), 'time'))
    content = {'seed': seed, 'iterations': arguments.iterations, 'seconds': seconds, **figures}
    write_json(out / FIGURES.format(seed), content)


def table(runs: Sequence[Dict[str, Any]]) -> str:
    """A row a seed, then mean and standard deviation over the seeds."""
    ranges = list(runs[0]['prior_depth_within_one_bin'])
    head = ['seed', 'iterations', 'minutes', 'reconstruction']
    head += ['own average map', 'mean target', 'constant map', 'margin']
    lines = ['| ' + ' | '.join([*head, *(f'depth {name}' for name in ranges)]) + ' |']
    lines.append('|---' * (len(head) + len(ranges)) + '|')
    for result in runs:
        depth = result['student']['depth_within_one_bin']
        shares = [f'{depth[name][0]:.3f} ({result["prior_depth_within_one_bin"][name][0]:.3f})' for name in ranges]
        cells = [str(result['seed']), str(result['iterations']), f'{result["seconds"] / 60:.0f}']
        baselines = [result[f'{name}_loss'] for name in ('student_average_map', 'mean_target', 'constant_map')]
        losses = (result['student']['reconstruction_loss'], *baselines)
        cells += [*(f'{value:.4f}' for value in losses), f'{margin(result):.1%}']
        lines.append('| ' + ' | '.join([*cells, *shares]) + ' |')
    margins = [margin(result) for result in runs]
    spread = f' \N{PLUS-MINUS SIGN} {statistics.stdev(margins):.1%}' if len(margins) > 1 else ''
    lines += [
        '',
        f'Margin, by which the loss is below that of the mean target: {statistics.fmean(margins):.1%}{spread}.',
        "Own average map: the loss of the mean of the student's maps, shown for every frame.",
        'Depth: share of labelled cells right within one bin, in brackets that of the most frequent bin.',
    ]
    return '\n'.join(lines) + '\n'


def margin(result: Dict[str, Any]) -> float:
    """By how much of the mean target's loss the student's is below it."""
    return 1 - float(result['student']['reconstruction_loss']) / float(result['mean_target_loss'])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    parser.add_argument('--out', type=Path, required=True, help='where figures, checkpoints and encoders go')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--iterations', type=int, default=1800)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--max-frames', type=int, default=100, help='of each set, in the evaluation')
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    config = read_config(arguments)
    for seed in arguments.seeds:
        if (arguments.out / FIGURES.format(seed)).is_file():
            print(f'seed {seed}: {arguments.out / FIGURES.format(seed)} is there')
        else:
            run(arguments, config, seed)
    paths = sorted(arguments.out.glob(FIGURES.format('*')))
    runs = [json.loads(path.read_text(encoding='utf-8')) for path in paths]
    lengths = sorted({result['iterations'] for result in runs})
    if lengths != [arguments.iterations]:
        raise SystemExit(
            f'{arguments.out} has runs of {lengths} iterations, not {arguments.iterations}: give another --out'
        )
    text = table(runs)
    write_text(arguments.out / 'reconstruction.md', text)
    print(text)


if __name__ == '__main__':
    main()
