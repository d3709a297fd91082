"""What batch norm of an encoder that learnt on masked images costs on whole ones, as in finetuning.

    python experiments/batch_statistics.py CONFIG CHECKPOINT --cfg-options KEY=VALUE ...

Depth and reconstruction of unseen frames three times: under masks, as in pretraining; on whole images with the running
statistics of masked ones; on whole images with statistics of whole training images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict

import torch
from ablations import hide_nothing
from evaluate_pretraining import build, datasets, evaluate, frames
from runs import add_config, read_config
from torch import Tensor, nn


def estimate_again(model: Any, dataset: Any, limit: int) -> int:
    """Running statistics of the encoder's batch norms over whole images of ``dataset``; how many layers there are."""
    norms = [
        module for module in model.student.encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
        norm.train()
    for inputs in frames(model, dataset, limit):
        model.student.encoder(inputs['images'].flatten(0, 1))
    for norm in norms:
        norm.eval()
    return len(norms)


def spread_of(model: Any) -> Dict[str, Tensor]:
    """Running variances by layer."""
    return {name: value.clone() for name, value in model.student.encoder.state_dict().items() if name.endswith('_var')}


def report(name: str, figures: Dict[str, Any]) -> None:
    depth = ', '.join(f'{key} {share:.3f}' for key, (share, _) in figures['student']['depth_within_one_bin'].items())
    print(f'{name:<48} reconstruction {figures["student"]["reconstruction_loss"]:.4f}  depth {depth}', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--max-frames', type=int, default=40, help='of the training and of the validation set')
    arguments = parser.parse_args()
    config = read_config(arguments)
    with torch.no_grad():
        model = build(config, arguments.checkpoint)
        train, val = datasets(config)
        report('masked images', evaluate(model, train, val, arguments.max_frames))
        hide_nothing(model.student)
        report('whole images, statistics of masked ones', evaluate(model, train, val, arguments.max_frames))
        before = spread_of(model)
        layers = estimate_again(model, train, arguments.max_frames)
        after = spread_of(model)
        ratios = torch.cat([(after[name] / before[name].clamp(min=1e-6)).flatten() for name in before])
        quarters = ratios.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        print(
            f'{layers} layers; variance of whole over masked images, quartiles: '
            + ', '.join(f'{q:.2f}' for q in quarters)
        )
        report('whole images, statistics of whole ones', evaluate(model, train, val, arguments.max_frames))


if __name__ == '__main__':
    main()
