"""GeoMIM for hosts on mmengine that have no mmdet3d (mmdet, mmseg, mmpretrain): import this module in a config's ``custom_imports``.

Everything registers under mmengine's root registries, where all hosts look.
"""

from . import _host, compat  # noqa: F401 - the first refuses another host
from .backbone import GeoMIMSwin, GeoMIMTimm
from .checkpoint_hook import GeoMIMCheckpointHook
from .hooks import (
    EncoderExportHook,
    GeoMIMEncoderExportHook,
    GeoMIMTeacherGuardHook,
    ReconstructionPicturesHook,
    TeacherGuardHook,
)
from .metric import ReconstructionMetric
from .model import GeoMIMPretrainer
from .optim_wrappers import SkipNonFiniteAmpOptimWrapper, SkipNonFiniteOptimWrapper
from .preprocessor import GeoMIMDataPreprocessor
from .randomness import EpochSeedHook, GeoMIMSeedHook, IterationSeedHook
from .scalars import GeoMIMScalarsHook

compat.apply()

__all__ = [
    'EncoderExportHook',
    'EpochSeedHook',
    'GeoMIMCheckpointHook',
    'GeoMIMDataPreprocessor',
    'GeoMIMEncoderExportHook',
    'GeoMIMPretrainer',
    'GeoMIMScalarsHook',
    'GeoMIMSeedHook',
    'GeoMIMSwin',
    'GeoMIMTeacherGuardHook',
    'GeoMIMTimm',
    'IterationSeedHook',
    'ReconstructionMetric',
    'ReconstructionPicturesHook',
    'SkipNonFiniteAmpOptimWrapper',
    'SkipNonFiniteOptimWrapper',
    'TeacherGuardHook',
]
