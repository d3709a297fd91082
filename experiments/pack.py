"""Put a trained network into the package's zoo: weights in float16 beside a card with their hash.

    python experiments/pack.py work_dirs/geomim_resnet_tiny_synthetic/iter_6000.pth --card card.json \
        --out projects/GeoMIM/geomim/checkpoints/zoo

The card is a JSON file named as the network will be, with at least `kind` (student or teacher) and `text`; `sha256`, `bytes` and
`parameters` are filled in. Statistics of batch normalisation stay in float32.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Dict

import torch
from runs import write_json
from torch import Tensor

from geomim.checkpoints.files import check_finite, save_atomically, weights_of
from geomim.checkpoints.reading import open_checkpoint

KINDS = ('student', 'teacher')
STATISTICS = ('running_mean', 'running_var')
MOST_BYTES = 8_000_000


def halved(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The weights in float16, statistics and integers as they are.

    Raises:
        ValueError: a value that float16 has not.
    """
    small = {
        name: value.half() if value.is_floating_point() and not name.endswith(STATISTICS) else value.clone()
        for name, value in state.items()
    }
    check_finite(small, 'the weights in float16')
    return small


def pack(checkpoint: Path, card_path: Path, out: Path) -> Path:
    """Write ``NAME.pth`` and ``NAME.json`` into ``out``; returns the former.

    Raises:
        ValueError: a card without its kind or text, or a file of more than 8 MB.
    """
    card = json.loads(card_path.read_text(encoding='utf-8'))
    if card.get('kind') not in KINDS or not card.get('text'):
        raise ValueError(f'{card_path}: kind must be {" or ".join(KINDS)}, with a text, got {card}')
    state, _ = weights_of(open_checkpoint(checkpoint))
    path = out / f'{card_path.stem}.pth'
    save_atomically({'state_dict': halved(state)}, path)
    content = path.read_bytes()
    if len(content) > MOST_BYTES:
        path.unlink()
        raise ValueError(f'{checkpoint}: {len(content)} bytes in float16, at most {MOST_BYTES} go into the package')
    parameters = sum(value.numel() for value in state.values())
    digest = hashlib.sha256(content).hexdigest()
    write_json(out / card_path.name, {**card, 'parameters': parameters, 'bytes': len(content), 'sha256': digest})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--card', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True, help='folder')
    arguments = parser.parse_args()
    with torch.no_grad():
        print(pack(arguments.checkpoint, arguments.card, arguments.out))


if __name__ == '__main__':
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
