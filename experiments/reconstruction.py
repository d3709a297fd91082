"""What a pretraining of minutes learns, over seeds: reconstruction and depth of unseen frames beside what can be had without looking.

    python experiments/reconstruction.py CONFIG --out FOLDER --seeds 0 1 2 --iterations 1800 --cfg-options KEY=VALUE ...

The model, frames, losses and optimiser of a pretraining CONFIG without its runner, under a warm-up and a cosine: every
training frame is loaded, augmented and shown to the teacher once and kept, which on a CPU leaves the time to the student,
but lets long runs learn the frames by heart. One sample a step. A seed decides initial weights, order of frames and
masks. Finished seeds are kept; seeds may run side by side, each in a process of its own, on one thread each.
FOLDER/reconstruction.md has the table of all seeds that are there.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

import evaluate_pretraining
import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn
from tqdm import tqdm

from geomim.adapter.seeds import mask_generator
from geomim.checkpoints.files import atomic_path
from geomim.checkpoints.loading import save_atomically, write_encoders

FRAME_SEED = 0  # of the augmentation of the frames that are kept
FIGURES = 'figures_seed-{}.json'


class KeptTargets(nn.Module):
    """In the teacher's place: the map that the teacher made of the present sample."""

    record = None
    target: Tensor

    def forward(self, points: Any) -> Tensor:
        return self.target


def kept_frames(model: Any, dataset: Any) -> List[Dict[str, Any]]:
    """Each training frame as its pipeline gives it, with the teacher's map as 'target' and nearly no points."""
    random.seed(FRAME_SEED)
    np.random.seed(FRAME_SEED)
    frames = []
    with torch.no_grad():
        for number in tqdm(range(len(dataset)), desc='frames', mininterval=1):
            sample = dataset[number]
            inputs = model.data_preprocessor(pseudo_collate([sample]), False)['inputs']
            sample['target'] = model.teacher(inputs['points']).clone()
            sample['inputs']['points'] = sample['inputs']['points'][:1].clone()
            frames.append(sample)
    return frames


def endless(frames: Sequence[Any], seed: int) -> Iterator[Any]:
    """All frames in random order, again and again."""
    generator = random.Random(seed)
    while True:
        order = list(range(len(frames)))
        generator.shuffle(order)
        yield from (frames[number] for number in reversed(order))


def factor(iteration: int, iterations: int) -> float:
    """Of the learning rate: linear over a tenth of the run, under a cosine that ends at a thousandth."""
    rise = min(1.0, (iteration + 1) / max(1, iterations // 10))
    return rise * (0.5 * (1 + math.cos(math.pi * iteration / iterations)) + 1e-3)


def train(model: Any, frames: Sequence[Dict[str, Any]], config: Config, seed: int, iterations: int) -> None:
    """The student of ``model``, whose teacher is one of ``KeptTargets``."""
    options = dict(config.optim_wrapper.optimizer)
    if options.pop('type') != 'AdamW':
        raise SystemExit(f'optim_wrapper.optimizer is {config.optim_wrapper.optimizer.type}, only AdamW is known here')
    rate = options['lr']
    optimizer = torch.optim.AdamW(model.student.parameters(), **options)
    largest = config.optim_wrapper.get('clip_grad', {}).get('max_norm', math.inf)
    model.train()
    bar = tqdm(zip(range(iterations), endless(frames, seed)), total=iterations, desc=f'seed {seed}', mininterval=1)
    for iteration, sample in bar:
        for group in optimizer.param_groups:
            group['lr'] = rate * factor(iteration, iterations)
        content = dict(sample, inputs=dict(sample['inputs']))
        model.teacher.target = content.pop('target')
        inputs = model.data_preprocessor(pseudo_collate([content]), True)['inputs']
        result = model.run_student(inputs, mask_generator(seed, iteration, 0))
        optimizer.zero_grad()
        (result.reconstruction_loss + result.depth_loss).backward()
        nn.utils.clip_grad_norm_(model.student.parameters(), largest)
        optimizer.step()
        if iteration % 20 == 0:
            bar.set_postfix(reconstruction=f'{result.reconstruction_loss.item():.3f}')


def run(arguments: argparse.Namespace, config: Config, seed: int, frames: List[Dict[str, Any]]) -> None:
    """Pretrain with one seed and write checkpoint, encoders and figures; ``frames`` is filled by the first."""
    torch.manual_seed(seed)
    checkpoint = arguments.out / f'student_seed-{seed}.pth'
    model, train_set, val_set = evaluate_pretraining.build(config)
    if not frames:
        augmented = evaluate_pretraining.training_set(config, augmented=True)
        frames += kept_frames(model, augmented)
    teacher, model.teacher = model.teacher, KeptTargets()
    start = time.monotonic()
    train(model, frames, config, seed, arguments.iterations)
    seconds = time.monotonic() - start
    model.teacher = teacher
    save_atomically({'state_dict': model.state_dict()}, checkpoint)
    write_encoders(model.student, arguments.out / f'encoder_seed-{seed}.pth', ('bevdet',))
    with torch.no_grad():
        figures = evaluate_pretraining.evaluate(model.eval(), train_set, val_set, arguments.max_frames)
    content = {'seed': seed, 'iterations': arguments.iterations, 'seconds': seconds, **figures}
    with atomic_path(arguments.out / FIGURES.format(seed)) as temporary:
        Path(temporary).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


def table(runs: Sequence[Dict[str, Any]]) -> str:
    """A row a seed, then mean and standard deviation over the seeds."""
    ranges = list(runs[0]['prior_depth_within_one_bin'])
    head = [
        'seed',
        'iterations',
        'minutes',
        'reconstruction',
        'own average map',
        'mean target',
        'constant map',
        'margin',
    ]
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
    ]
    lines += [
        "Own average map: the loss of the mean of the student's maps, shown for every frame.",
        'Depth: share of labelled cells right within one bin, in brackets that of the most frequent bin.',
    ]
    return '\n'.join(lines) + '\n'


def margin(result: Dict[str, Any]) -> float:
    """By how much of the mean target's loss the student's is below it."""
    return 1 - float(result['student']['reconstruction_loss']) / float(result['mean_target_loss'])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path)
    parser.add_argument('--out', type=Path, required=True, help='where figures, checkpoints and encoders go')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--iterations', type=int, default=1800)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument(
        '--max-frames', type=int, default=100, help='of the training and validation set, in the evaluation'
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='as for tools/train.py')
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    config = Config.fromfile(arguments.config)
    if arguments.cfg_options:
        config.merge_from_dict(arguments.cfg_options)
    frames: List[Dict[str, Any]] = []
    for seed in arguments.seeds:
        if (arguments.out / FIGURES.format(seed)).is_file():
            print(f'seed {seed}: {arguments.out / FIGURES.format(seed)} is there')
        else:
            run(arguments, config, seed, frames)
    paths = sorted(arguments.out.glob(FIGURES.format('*')))
    runs = [json.loads(path.read_text(encoding='utf-8')) for path in paths]
    lengths = sorted({result['iterations'] for result in runs})
    if lengths != [arguments.iterations]:
        raise SystemExit(
            f'{arguments.out} has runs of {lengths} iterations, not {arguments.iterations}: give another --out'
        )
    text = table(runs)
    with atomic_path(arguments.out / 'reconstruction.md') as temporary:
        Path(temporary).write_text(text, encoding='utf-8')
    print(text)


if __name__ == '__main__':
    main()
