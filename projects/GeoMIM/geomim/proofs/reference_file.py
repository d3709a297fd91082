"""Reference files: tensors of another implementation, and how far ours are from them."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional

import numpy as np
import torch
from torch import Tensor

OUTPUT_TOLERANCE, OUTPUT_FLOOR = 2e-4, 1e-3
GRADIENT_TOLERANCE, GRADIENT_FLOOR = 1e-3, 2e-5
# A batch norm takes the constants of these biases out again: their gradient is zero but for rounding, which grows with the file's sizes.
NORMALISED_AWAY = ('vtransform.depthnet.0.bias', 'vtransform.depthnet.3.bias')
NORMALISED_AWAY_FLOOR = 1e-4


class ReferenceFile:
    """An ``.npz`` with ``meta/config`` (JSON) and tensors under ``param/``, ``in/``, ``out/`` and ``grad/``.

    Raises:
        ValueError: no such file, no archive, or no ``meta/config``.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f'reference file {self.path} does not exist')
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                self._arrays = {name: archive[name] for name in archive.files}
        except (
            ValueError,
            OSError,
            EOFError,
            KeyError,
            AttributeError,
            TypeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise ValueError(f'{self.path} is no readable .npz archive: {error}') from error
        if 'meta/config' not in self._arrays:
            raise ValueError(f'{self.path} has no meta/config; it holds {sorted(self._arrays)[:5]}')
        try:
            self.config: Dict = dict(json.loads(str(self._arrays['meta/config'])))
        except (ValueError, TypeError) as error:
            raise ValueError(f'{self.path}: meta/config is no JSON object: {error}') from error

    def group(self, prefix: str) -> Dict[str, Tensor]:
        """Tensors under ``prefix``, without it."""
        return {
            name[len(prefix) :]: torch.from_numpy(np.array(value))
            for name, value in self._arrays.items()
            if name.startswith(prefix)
        }


@dataclass(frozen=True)
class Row:
    """One compared tensor; ``error`` is max |ours - reference| / max(max |reference|, floor), infinite if it cannot be compared."""

    name: str
    error: float
    tolerance: float
    remark: str = ''

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


def compare(name: str, ours: Optional[Tensor], reference: Tensor, gradient: bool = False) -> Row:
    """Compare one tensor: integers exactly, outputs and gradients within their tolerance."""
    tolerance, floor = (GRADIENT_TOLERANCE, GRADIENT_FLOOR) if gradient else (OUTPUT_TOLERANCE, OUTPUT_FLOOR)
    if gradient and name.endswith(NORMALISED_AWAY):
        floor = NORMALISED_AWAY_FLOOR
    if ours is None:
        return Row(name, float('inf'), tolerance, 'not computed by this version')
    if tuple(ours.shape) != tuple(reference.shape):
        return Row(name, float('inf'), tolerance, f'shape {tuple(ours.shape)}, reference {tuple(reference.shape)}')
    if not reference.is_floating_point():
        differing = int((ours.cpu() != reference).sum())
        return Row(name, float(differing), 0.0, f'{differing} integers differ' if differing else '')
    if reference.numel() == 0:
        return Row(name, 0.0, tolerance)
    ours64, reference64 = ours.detach().cpu().double(), reference.double()
    difference = float((ours64 - reference64).abs().max())
    scale = float(reference64.abs().max())
    return Row(name, difference / max(scale, floor), tolerance)


def compare_all(
    ours: Mapping[str, Tensor], reference: Mapping[str, Tensor], prefix: str, gradient: bool = False
) -> List[Row]:
    """A row for each reference tensor."""
    return [compare(prefix + name, ours.get(name), value, gradient) for name, value in reference.items()]
