"""GeoMIM for mmdet3d 1.x (mmengine): import this module in a config's ``custom_imports``.

Everything registers under mmengine's root registries, where mmdet3d, mmdet and mmseg all look.
"""

from . import _host, compat  # noqa: F401 - the first refuses another host
from .backbone import GeoMIMSwin
from .encoders import BEVFusionLSparseEncoder
from .hooks import EncoderExportHook, ReconstructionPicturesHook, TeacherGuardHook
from .loading import CheckPointCloud, LoadCameraRig, LoadSurroundImages, LoadSurroundSweeps
from .metric import ReconstructionMetric
from .model import GeoMIMPretrainer
from .optim_wrappers import SkipNonFiniteAmpOptimWrapper, SkipNonFiniteOptimWrapper
from .preprocessor import GeoMIMDataPreprocessor
from .randomness import EpochSeedHook, IterationSeedHook
from .sparse import SparseOnCPUHook
from .teacher import GivenBEVTeacher, LidarTeacher, TeacherRecord
from .transforms import BEVFlip, PackGeoMIMInputs, PointsToDepthMap, SurroundImageAug

compat.apply()

__all__ = [
    'BEVFlip',
    'BEVFusionLSparseEncoder',
    'CheckPointCloud',
    'EncoderExportHook',
    'EpochSeedHook',
    'GeoMIMDataPreprocessor',
    'GeoMIMPretrainer',
    'GeoMIMSwin',
    'GivenBEVTeacher',
    'IterationSeedHook',
    'LidarTeacher',
    'LoadCameraRig',
    'LoadSurroundImages',
    'LoadSurroundSweeps',
    'PackGeoMIMInputs',
    'PointsToDepthMap',
    'ReconstructionMetric',
    'ReconstructionPicturesHook',
    'SkipNonFiniteAmpOptimWrapper',
    'SkipNonFiniteOptimWrapper',
    'SparseOnCPUHook',
    'SurroundImageAug',
    'TeacherGuardHook',
    'TeacherRecord',
]
