"""Which comparison a reference file asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, List

from .pretraining import verify_finetune_backbone, verify_mixmae, verify_position_bias, verify_pretrain
from .reference_file import ReferenceFile, Row


def verify_bevdet(file: ReferenceFile) -> List[Row]:
    """A detector of the BEVDet family from images to boxes and losses; needs mmdet3d."""
    try:
        from .bevdet import verify_bevdet as verify
    except ImportError as error:
        raise ValueError(f"{error}; detectors need mmdet3d: pip install 'geomim[mmdet3d]'") from error
    return verify(file)


VERIFIERS: Dict[str, Callable[[ReferenceFile], List[Row]]] = {
    'pretrain': verify_pretrain,
    'finetune_backbone': verify_finetune_backbone,
    'mixmae_initialisation': verify_mixmae,
    'position_bias_interpolation': verify_position_bias,
    'bevdet': verify_bevdet,
}


def verify_file(path: Path) -> List[Row]:
    """Rows for every reference tensor of a file.

    Raises:
        ValueError: a file that cannot be read, or of a kind that this version does not know.
    """
    file = ReferenceFile(path)
    kind = file.config.get('kind')
    if kind not in VERIFIERS:
        raise ValueError(
            f'{path}: reference files of kind {kind!r} are not supported; known are {", ".join(VERIFIERS)}'
        )
    try:
        return VERIFIERS[kind](file)
    except KeyError as error:
        raise ValueError(f'{path}: a reference file of kind {kind!r} needs the entry {error}') from error
