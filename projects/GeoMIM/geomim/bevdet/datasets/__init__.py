"""Data of the BEVDet family: keyframes with their past, occupancy and map labels, augmentation, batches, scores."""

from ..boxes.metric import EgoNuScenesMetric
from ..map.labels import LoadBEVMapLabels
from ..map.metric import BEVMapIoU
from ..occupancy.labels import OCCUPANCY_CLASSES, GridToLidarEgo, LoadOccupancyLabels
from ..occupancy.metric import OccupancyMetric
from .dataset import BEVDET_CLASSES, BEVDetCBGSDataset, BEVDetNuScenesDataset
from .loading import BoxesToKeyEgo, LoadSurroundFrames
from .preprocessor import BEVDetDataPreprocessor
from .transforms import BEVDetBEVAug, KeyFrameDepthMaps, ObjectInViewFilter, PackBEVDetInputs, SurroundFramesAug

__all__ = [
    'BEVDET_CLASSES',
    'OCCUPANCY_CLASSES',
    'BEVDetBEVAug',
    'BEVDetCBGSDataset',
    'BEVDetDataPreprocessor',
    'BEVDetNuScenesDataset',
    'BEVMapIoU',
    'BoxesToKeyEgo',
    'EgoNuScenesMetric',
    'GridToLidarEgo',
    'KeyFrameDepthMaps',
    'LoadBEVMapLabels',
    'LoadOccupancyLabels',
    'LoadSurroundFrames',
    'ObjectInViewFilter',
    'OccupancyMetric',
    'PackBEVDetInputs',
    'SurroundFramesAug',
]
