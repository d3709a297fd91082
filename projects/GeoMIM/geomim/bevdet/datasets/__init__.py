"""Data of the BEVDet family: keyframes with their past, augmentation, batches, scores."""

from .dataset import BEVDET_CLASSES, BEVDetCBGSDataset, BEVDetNuScenesDataset
from .loading import BoxesToKeyEgo, LoadSurroundFrames
from .metric import EgoNuScenesMetric
from .preprocessor import BEVDetDataPreprocessor
from .transforms import BEVDetBEVAug, KeyFrameDepthMaps, PackBEVDetInputs, SurroundFramesAug

__all__ = [
    'BEVDET_CLASSES',
    'BEVDetBEVAug',
    'BEVDetCBGSDataset',
    'BEVDetDataPreprocessor',
    'BEVDetNuScenesDataset',
    'BoxesToKeyEgo',
    'EgoNuScenesMetric',
    'KeyFrameDepthMaps',
    'LoadSurroundFrames',
    'PackBEVDetInputs',
    'SurroundFramesAug',
]
