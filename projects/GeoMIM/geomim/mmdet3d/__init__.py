"""GeoMIM for mmdet3d 1.x (mmengine): import this module in a config's ``custom_imports``.

Everything registers under mmengine's root registries, where mmdet3d, mmdet and mmseg all look.
"""

from ..mmengine import (
    EncoderExportHook,
    EpochSeedHook,
    GeoMIMDataPreprocessor,
    GeoMIMEncoderExportHook,
    GeoMIMPretrainer,
    GeoMIMSeedHook,
    GeoMIMSwin,
    GeoMIMTeacherGuardHook,
    IterationSeedHook,
    ReconstructionMetric,
    ReconstructionPicturesHook,
    SkipNonFiniteAmpOptimWrapper,
    SkipNonFiniteOptimWrapper,
    TeacherGuardHook,
)
from .datasets import GeoMIMCBGSDataset
from .lidar_encoder import BEVFusionLSparseEncoder
from .loading import CheckPointCloud, LoadCameraRig, LoadSurroundImages, LoadSurroundPoints, LoadSurroundSweeps
from .nuscenes_dataset import PlainNuScenesDataset
from .nuscenes_metric import GeoMIMNuScenesMetric
from .sparse import SparseOnCPUHook
from .teacher import GeoMIMLidarTeacher, GivenBEVTeacher, LidarTeacher, TeacherRecord
from .transforms import BEVFlip, PackGeoMIMInputs, PointsToDepthMap, SurroundImageAug

__all__ = [
    'BEVFlip',
    'BEVFusionLSparseEncoder',
    'CheckPointCloud',
    'EncoderExportHook',
    'EpochSeedHook',
    'GeoMIMCBGSDataset',
    'GeoMIMDataPreprocessor',
    'GeoMIMEncoderExportHook',
    'GeoMIMLidarTeacher',
    'GeoMIMNuScenesMetric',
    'GeoMIMPretrainer',
    'GeoMIMSeedHook',
    'GeoMIMSwin',
    'GeoMIMTeacherGuardHook',
    'GivenBEVTeacher',
    'IterationSeedHook',
    'LidarTeacher',
    'LoadCameraRig',
    'LoadSurroundImages',
    'LoadSurroundPoints',
    'LoadSurroundSweeps',
    'PackGeoMIMInputs',
    'PlainNuScenesDataset',
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
