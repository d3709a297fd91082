"""Finetuning of a camera network with or without a pretrained encoder, through mmdet3d's own scripts."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

from run_folders import last_scores
from runs import (
    CONFIGS,
    EVALUATORS,
    Data,
    data_options,
    evaluator_options,
    image_options,
    pipeline_steps,
    run,
    schedule_options,
    train,
)  # fmt: skip

DETECTOR = CONFIGS / 'finetune' / 'bevdepth4d_resnet_tiny_synthetic.py'
PREFIX = 'bevdet'  # of the info files


def with_bevdet_infos(data: Data, out: Path) -> Data:
    """The data with the BEVDet family's info files: the folder's own ones, else those in ``out``, made if need be."""
    from geomim.nuscenes.bevdet_infos import bevdet_info_names

    for folder in (data.root, out):
        if all((folder / name).is_file() for name in bevdet_info_names()):
            return data._replace(infos=folder)
    command = [sys.executable, '-m', 'geomim', 'infos', str(data.root), '--out', str(out)]
    run("Info files with the BEVDet family's additions", command)
    return data._replace(infos=out)


def finetune(
    data: Data,
    encoder: Optional[Path],
    folder: Path,
    iterations: int,
    seed: int,
    config: Path = DETECTOR,
    log: Optional[Path] = None,
    within: Sequence[float] = (),
) -> Dict[str, float]:
    """Train the network in ``folder``, or go on with it; returns the scores on the validation split.

    Args:
        data: with the info files of ``with_bevdet_infos``.
        encoder: what the image backbone starts from, a file of its own names as a pretraining exports it; None for random
            weights. Everything else about the two is equal, the random numbers of the other weights too.
        folder: of the run; detections come to lie in ``folder/results``.
        config: of a detector or a map segmentation, whose run is counted in iterations.
        log: where the output of the commands goes.
        within: metres; scores of a detector within each of these are added.

    Raises:
        ValueError: a configuration that counts epochs, or an encoder of another backbone.
        RuntimeError: a run without scores.
    """
    if encoder is not None:
        check_encoder(config, encoder)
    options = [*data_options(data, PREFIX), *detector_options(config, data, iterations, folder / 'results', within)]
    options += [*start_options(encoder), f'randomness.seed={seed}']
    title = f'{config.stem} {"from " + encoder.name if encoder else "from scratch"}, seed {seed}'
    train(title, config, folder, iterations, options, log)
    scores = last_scores(folder)
    if not scores:
        raise RuntimeError(f'{folder}: the run left no scores; remove the folder to train again')
    return scores


def check_encoder(config: Path, encoder: Path) -> None:
    """Raise ``ValueError`` unless the file fills the detector's backbone: of one of the host's classes, loading only warns."""
    from mmengine.config import Config
    from mmengine.registry import MODELS

    from geomim.checkpoints.files import some, tensors_of
    from geomim.checkpoints.reading import read_checkpoint

    backbone = Config.fromfile(config, import_custom_modules=False).model.img_backbone
    if backbone.type == 'GeoMIMSwin':  # which checks what it loads
        return
    own, given = MODELS.build({**backbone, 'init_cfg': None}).state_dict(), tensors_of(read_checkpoint(encoder))
    missing = tuple(sorted(name for name in own if name not in given))
    if missing:
        raise ValueError(
            f'{encoder} does not start the {backbone.type} of {config.name}: it lacks {len(missing)} of {len(own)} tensors: '
            f'{some(missing, 4)}; take the encoder that a pretraining of this backbone exports'
        )


def start_options(encoder: Optional[Path]) -> List[str]:
    """Options that set what the image backbone starts from."""
    if encoder is None:
        return ['model.img_backbone.init_cfg=None']
    return ['model.img_backbone.init_cfg.type=Pretrained', f'model.img_backbone.init_cfg.checkpoint={encoder}']


def detector_options(
    config: Path, data: Data, iterations: int, results: Path, within: Sequence[float] = ()
) -> List[str]:
    """Options of a configuration for the data's images, the run's length and the nuScenes metric, where it has that."""
    from mmengine.config import Config

    content = Config.fromfile(config, import_custom_modules=False)
    if 'max_iters' not in content.train_cfg:
        raise ValueError(f'{config}: its run is counted in epochs; one with an IterBasedTrainLoop is needed')
    options = schedule_options(iterations, iterations // 10)
    for number, hook in enumerate(content.get('custom_hooks', ())):
        if 'begin_iter' in hook:
            options.append(f'custom_hooks.{number}.begin_iter={iterations // 10}')
    if 'data_root' in content.val_evaluator:
        options += evaluator_options(data, results, PREFIX)
        if within:
            options += [
                f'{evaluator}.within=({",".join(f"{metres:g}" for metres in within)},)' for evaluator in EVALUATORS
            ]
    for place, step in pipeline_steps(content):
        if 'data_root' in step:  # the maps of LoadBEVMapLabels
            options.append(f'{place}.data_root={data.root}/')
    return options + image_options(content, data)


def headline(scores: Mapping[str, float], within: Sequence[float] = ()) -> Dict[str, float]:
    """The scores to compare runs by, with short names: mAP, also within each of the ranges, and NDS; or a map's mIoU."""
    ranges = {f'/within_{metres:g}m/mAP': f'mAP within {metres:g} m' for metres in within}
    official = {key: value for key, value in scores.items() if '/within_' not in key}
    found = {
        name: value for name in ('mAP', 'NDS', 'mIoU') for key, value in official.items() if key.endswith(f'/{name}')
    }
    found.update((text, scores[key]) for end, text in ranges.items() for key in scores if key.endswith(end))
    return found


def start_name(encoder: Optional[Path]) -> str:
    """A name for a start, by content."""
    return 'scratch' if encoder is None else f'encoder-{hashlib.sha256(encoder.read_bytes()).hexdigest()[:8]}'


def run_name(encoder: Optional[Path], seed: int, iterations: int) -> str:
    """A folder's name for a run: what it starts from, by content, its seed and its length."""
    return f'{start_name(encoder)}_seed-{seed}_iterations-{iterations}'
