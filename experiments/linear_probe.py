"""What a linear layer reads from a frozen encoder: depth bin and object class of every cell, in minutes.

    python experiments/linear_probe.py CONFIG --encoder encoder_resnet.pth --share 0.25 --out probe.json

CONFIG is that of the pretraining, for data, image size, depth bins and encoder; without --encoder its weights are random,
by --seed. Whole images of labelled training frames go through the encoder once, without augmentation and masks. Features
of stride 16, with those of stride 32 beside them, are fitted to two labellings: the depth bin of cells with a LiDAR
point, as in pretraining, and the class of the nearest annotated box at a cell's centre, or background. The strength of
the penalty is chosen on a fifth of the labelled scenes. Figures are of validation frames, beside what can be had without
looking: the most frequent bin, and the frequencies of classes, at each camera's cells. A command whose result is there
does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from evaluate_pretraining import RANGES, count_near, datasets, shares
from frozen_encoder import Frame, digest_of, frozen_encoder, observe
from linear_fit import LinearMap, Standard, fit_chosen, sorting_figures
from runs import add_config, labelled_scenes, read_config, write_json
from torch import Tensor
from torch.nn.functional import one_hot

from geomim.checkpoints.files import some

BACKGROUND = 'background'
HELD_OUT = 5  # one of so many labelled scenes


class Labelled(NamedTuple):
    """M cells of the labelled frames: features (M, C), depth bins, classes and numbers of their frames (M,); and how often each
    camera's cells have a bin (N, h, w, D) and a class (N, h, w, K)."""

    features: Tensor
    bins: Tensor
    classes: Tensor
    frames: Tensor
    bin_counts: Tensor
    class_counts: Tensor


def scenes_of(dataset: Any) -> List[str]:
    """The name of each frame's scene, by nuScenes' tables.

    Raises:
        ValueError: tables of other samples.
    """
    from geomim.nuscenes.infos import read_table

    tables = Path(dataset.data_root) / dataset.metainfo['version']
    tokens = [dataset.get_data_info(number)['token'] for number in range(len(dataset))]
    names = {row['token']: row['name'] for row in read_table(tables / 'scene.json')}
    scenes = {row['token']: names[row['scene_token']] for row in read_table(tables / 'sample.json')}
    strange = [token for token in tokens if token not in scenes]
    if strange:
        raise ValueError(
            f'{dataset.ann_file}: sample {strange[0]} is not in {tables}; give the info files of these tables'
        )
    return [scenes[token] for token in tokens]


def chosen_scenes(available: Sequence[str], names: Sequence[str], share: float) -> List[str]:
    """The named scenes, or a share of all.

    Raises:
        ValueError: a name that is not available, or no such share.
    """
    unknown = sorted(set(names) - set(available))
    if unknown:
        existing = tuple(sorted(set(available)))
        raise ValueError(f'--scenes: {some(tuple(unknown))} not in the training split, which has {some(existing)}')
    return sorted(set(names) or labelled_scenes(available, share))


def spread(numbers: Sequence[int], limit: int) -> List[int]:
    """At most ``limit`` of the numbers, evenly."""
    count = min(limit, len(numbers))
    return [numbers[place * len(numbers) // count] for place in range(count)]


def gather(seen: Iterator[Frame], cells_a_frame: int, bins: int, classes: int, seed: int) -> Labelled:
    """Cells of labelled frames, as many a frame as given, drawn by ``seed``; all of them are counted."""
    generator = torch.Generator().manual_seed(seed)
    chosen: List[Tuple[Tensor, ...]] = []
    bin_counts: Any = 0
    class_counts: Any = 0
    for number, frame in enumerate(seen):
        bin_counts = bin_counts + one_hot(frame.bins + 1, bins + 1)[..., 1:]
        class_counts = class_counts + one_hot(frame.classes, classes)
        places = torch.randperm(frame.bins.numel(), generator=generator)[:cells_a_frame]
        rows = (frame.features.flatten(0, 2)[places], frame.bins.flatten()[places], frame.classes.flatten()[places])
        chosen.append((*rows, torch.full_like(places, number)))
    return Labelled(*(torch.cat(part) for part in zip(*chosen)), bin_counts, class_counts)


def frequent_bins(counts: Tensor) -> Tensor:
    """(N, h, w) the most frequent bin of each cell, by counts (N, h, w, D); of the whole images in case of a tie, or of none."""
    return (counts + counts.sum(dim=(0, 1, 2)) / (counts.sum() + 1)).argmax(dim=-1)


class DepthTally:
    """How good guessed bins are: hits within one bin by range, and the mean distance."""

    def __init__(self, step: float) -> None:
        self.step, self.near, self.apart = step, [[0, 0] for _ in RANGES], 0

    def add(self, guess: Tensor, frame: Frame) -> None:
        count_near(self.near, guess, frame.bins, frame.metres)
        self.apart += int((guess - frame.bins).abs()[frame.bins >= 0].sum())

    def figures(self) -> Dict[str, Any]:
        """``mean_absolute_error`` in metres."""
        error = self.apart * self.step / max(1, self.near[-1][1])
        return {'within_one_bin': shares(self.near), 'mean_absolute_error': error}


def held_out(scenes: Sequence[str], seed: int) -> List[str]:
    """A fifth of the scenes, at least one, drawn by ``seed``; none of a single one."""
    if len(scenes) < 2:
        return []
    return sorted(random.Random(seed).sample(sorted(scenes), max(1, round(len(scenes) / HELD_OUT))))


def probe(
    config: Any,
    encoder: Optional[Path],
    seed: int = 0,
    names: Sequence[str] = (),
    share: float = 1.0,
    max_frames: int = 1000,
    max_cells: int = 50_000,
) -> Dict[str, Any]:
    """Figures of one encoder, see the top of the file.

    Args:
        config: of a pretraining.
        encoder: exported file, None for random weights.
        seed: of random weights, held-out scenes and, where there are more than ``max_cells``, cells.
        names: labelled scenes; none takes ``share`` of all.
        max_frames: of the labelled and of the validation frames.
        max_cells: to fit.

    Raises:
        ValueError: another encoder, unknown scenes, labels that are not there.
    """
    start = time.monotonic()
    frozen = frozen_encoder(config, encoder, seed)
    train, val = datasets(config)
    of_frames = scenes_of(train)
    scenes = chosen_scenes(of_frames, names, share)
    numbers = spread([number for number, scene in enumerate(of_frames) if scene in set(scenes)], max_frames)
    bins = frozen.student.config.view_transform.depth_bins
    classes = [*train.metainfo['classes'], BACKGROUND]
    with torch.no_grad():
        seen = observe(frozen, train, numbers, 'labelled frames')
        cells = gather(seen, max(1, max_cells // len(numbers)), bins.count, len(classes), seed)
        check_labels(cells, train.ann_file)
        held = held_out(scenes, seed)
        standard, maps, choices = fit_both(cells, [of_frames[number] in held for number in numbers], len(classes))
        val_numbers = spread(range(len(val)), max_frames)
        figures = evaluate(
            observe(frozen, val, val_numbers, 'validation frames'), cells, standard, maps, classes, bins.step
        )
    for task, choice in choices.items():
        figures[task].update(choice)
    return {
        'encoder_digest': digest_of(frozen.student.encoder),
        'channels': cells.features.shape[1],
        'labelled_scenes': scenes,
        'held_out_scenes': held,
        'labelled_frames': len(numbers),
        'validation_frames': len(val_numbers),
        'bin_metres': bins.step,
        **figures,
        'seconds': time.monotonic() - start,
    }


def check_labels(cells: Labelled, ann_file: str) -> None:
    """Raise ``ValueError`` where there is nothing to fit."""
    if not bool((cells.bins >= 0).any()):
        raise ValueError(
            'no cell of the labelled frames has a LiDAR point within the depth bins of student.view_transform'
        )
    if not bool(cells.class_counts[..., :-1].any()):
        raise ValueError(f'{ann_file}: no cell of the labelled frames shows an annotated object; label other scenes')


def fit_both(
    cells: Labelled, frame_is_held: Sequence[bool], classes: int
) -> Tuple[Standard, Dict[str, LinearMap], Dict[str, Dict[str, Any]]]:
    """Standardisation, maps to depth bins and to classes, and how their penalties were chosen."""
    standard = Standard.of(cells.features)
    features, held = standard.apply(cells.features), torch.tensor(frame_is_held)[cells.frames]
    maps, choices = {}, {}
    for task, labels, count in (
        ('depth', cells.bins, cells.bin_counts.shape[-1]),
        ('classes', cells.classes, classes),
    ):
        rows = labels >= 0
        maps[task], choices[task] = fit_chosen(features[rows], labels[rows], held[rows], count, task)
        choices[task]['fitted_cells'] = int(rows.sum())
    return standard, maps, choices


def evaluate(
    seen: Iterator[Frame],
    cells: Labelled,
    standard: Standard,
    maps: Mapping[str, LinearMap],
    classes: List[str],
    step: float,
) -> Dict[str, Dict[str, Any]]:
    """Figures of both tasks on frames, of the probe and of what needs no look."""
    frequent, prior = frequent_bins(cells.bin_counts), cells.class_counts.float() / cells.class_counts.sum(-1, True)
    by_probe, by_place = DepthTally(step), DepthTally(step)
    scores, labels = [], []
    for frame in seen:
        features = standard.apply(frame.features.flatten(0, 2))
        by_probe.add(maps['depth'].logits(features).argmax(dim=1).view_as(frame.bins), frame)
        by_place.add(frequent, frame)
        scores.append(maps['classes'].logits(features).softmax(dim=1))
        labels.append(frame.classes.flatten())
    there = torch.cat(labels)
    everywhere = prior.flatten(0, 2).repeat(len(labels), 1)
    counts = torch.bincount(there, minlength=len(classes)).tolist()
    return {
        'depth': {'probe': by_probe.figures(), 'most_frequent_bin': by_place.figures()},
        'classes': {
            'probe': sorting_figures(torch.cat(scores), there, classes),
            'class_frequency': sorting_figures(everywhere, there, classes),
            'validation_cells': dict(zip(classes, counts)),
        },
    }


def table(figures: Mapping[str, Any]) -> str:
    """The figures in two lines a task."""
    lines = []
    for title, kind in (('linear probe', 'probe'), ('most frequent bin', 'most_frequent_bin')):
        found = figures['depth'][kind]
        near = ', '.join(f'{name} {share:.3f}' for name, (share, _) in found['within_one_bin'].items())
        lines.append(f'depth within a bin, {title:<18} {near}; error {found["mean_absolute_error"]:.2f} m')
    for title, kind in (('linear probe', 'probe'), ('class frequency', 'class_frequency')):
        found = figures['classes'][kind]
        lines.append(f'classes of cells, {title:<20} mAP {found["mean_ap"]:.4f}, F1 {found["macro_f1"]:.4f}')
    return '\n'.join(lines)


def settings_of(arguments: argparse.Namespace, config: Any) -> Dict[str, Any]:
    """What decides the figures; files by their content."""
    parts = {'model': {**config.model, 'teacher': None}}
    parts.update({loader: config[loader].dataset for loader in ('train_dataloader', 'val_dataloader')})
    encoder = arguments.encoder
    return {
        'config': arguments.config.name,
        'config_digest': hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest(),
        'encoder': None if encoder is None else hashlib.sha256(encoder.read_bytes()).hexdigest(),
        'seed': arguments.seed,
        'scenes': sorted(set(arguments.scenes)),
        'share': arguments.share,
        'max_frames': arguments.max_frames,
        'max_cells': arguments.max_cells,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    parser.add_argument('--encoder', type=Path, help='exported encoder; without one, random weights')
    parser.add_argument('--seed', type=int, default=0, help='of random weights and of the held-out scenes')
    labelled = parser.add_mutually_exclusive_group()
    labelled.add_argument(
        '--scenes', nargs='+', default=[], metavar='NAME', help='labelled scenes of the training split'
    )
    labelled.add_argument('--share', type=float, default=1.0, help='of the training scenes, in place of their names')
    parser.add_argument('--max-frames', type=int, default=1000, help='of the labelled and of the validation frames')
    parser.add_argument('--max-cells', type=int, default=50_000, help='to fit; bounds memory and time')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', type=Path, required=True, help='JSON file')
    arguments = parser.parse_args()
    if arguments.encoder is not None and not arguments.encoder.is_file():
        parser.error(f'--encoder {arguments.encoder}: no such file')
    if min(arguments.max_frames, arguments.max_cells) < 1:
        parser.error('--max-frames and --max-cells must be at least 1')
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    config = read_config(arguments)
    settings = settings_of(arguments, config)
    if arguments.out.is_file():
        figures = json.loads(arguments.out.read_text(encoding='utf-8'))
        if figures['settings'] != settings:
            raise SystemExit(
                f'{arguments.out} is a result of other settings: {figures["settings"]}; give another --out'
            )
        print(f'{arguments.out} is there')
    else:
        found = probe(
            config,
            arguments.encoder,
            arguments.seed,
            arguments.scenes,
            arguments.share,
            arguments.max_frames,
            arguments.max_cells,
        )
        figures = {'settings': settings, **found}
        write_json(arguments.out, figures)
    print(table(figures))


if __name__ == '__main__':
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
