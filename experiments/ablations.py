"""The paper's ablations that no configuration key makes: the pretraining model with one of its parts taken out.

``model.type=AblatedPretrainer model.without=PART`` in the place of ``GeoMIMPretrainer``; parameters and checkpoints keep
their names.
"""

from __future__ import annotations

from typing import Any, Dict

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from geomim.method.masking import MASK_CELL, mask_grid_size
from geomim.method.pretrainer import GeoMIM
from geomim.method.target import at_least_float32
from geomim.mmengine.model import GeoMIMPretrainer


class NoGate(nn.Module):
    """The geometry branch's tokens as they are, whatever the camera."""

    def forward(self, tokens: Tensor, camera_vectors: Tensor) -> Tensor:
        return tokens


def hide_nothing(student: GeoMIM) -> None:
    """All copies keep all cells."""
    image_size, copies = student.config.view_transform.image_size, student.config.copies
    cells = mask_grid_size(image_size, MASK_CELL, copies)
    student.draw_masks = lambda device, generator=None: torch.zeros(copies, *cells, device=device)  # type: ignore[method-assign]


def without_camera(student: GeoMIM) -> None:
    student.decoder.gate = NoGate()  # type: ignore[assignment]


def without_normalisation(student: GeoMIM) -> None:
    student.normalise = at_least_float32  # type: ignore[method-assign]


CHANGES = {
    'masking': hide_nothing,
    'camera_awareness': without_camera,
    'target_normalisation': without_normalisation,
}
RECONSTRUCTION = 'reconstruction'


@MODELS.register_module()
class AblatedPretrainer(GeoMIMPretrainer):
    """``GeoMIMPretrainer`` without 'masking', 'camera_awareness', 'target_normalisation' or 'reconstruction' (its loss is 0 then)."""

    def __init__(self, *args: Any, without: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if without not in (*CHANGES, RECONSTRUCTION):
            raise ValueError(f'without={without!r} is unknown; known are {", ".join((*CHANGES, RECONSTRUCTION))}')
        self.weight = 0.0 if without == RECONSTRUCTION else 1.0
        CHANGES.get(without, lambda student: None)(self.student)

    def forward(self, inputs: Dict[str, Any], data_samples: Any = None, mode: str = 'tensor') -> Any:
        result = super().forward(inputs, data_samples, mode)
        if mode == 'loss':
            result['loss_reconstruction'] = result['loss_reconstruction'] * self.weight
        return result
