"""Data of the BEVDet family: keyframes with their past, occupancy and map labels, augmentation, batches, scores."""

from .dataset import BEVDET_CLASSES, BEVDetCBGSDataset, BEVDetNuScenesDataset
from .loading import BoxesToKeyEgo, LoadSurroundFrames
from .map_labels import LoadBEVMapLabels
from .map_metric import BEVMapIoU
from .metric import EgoNuScenesMetric
from .occupancy import OCCUPANCY_CLASSES, GridToLidarEgo, LoadOccupancyLabels
from .occupancy_metric import OccupancyMetric
from .preprocessor import BEVDetDataPreprocessor
from .transforms import BEVDetBEVAug, KeyFrameDepthMaps, PackBEVDetInputs, SurroundFramesAug

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
    'OccupancyMetric',
    'PackBEVDetInputs',
    'SurroundFramesAug',
]
