"""The BEVDet family for mmdet3d 1.x (mmengine): import this module in a config's ``custom_imports``.

Everything registers under mmengine's root registries, where mmdet3d, mmdet and mmseg all look.
"""

from .. import mmdet3d  # noqa: F401  (the GeoMIM Swin, hooks, and the cures of the host)
from .backbones import CustomResNet, CustomResNet3D, StereoShiftedSwin
from .boxes.head import BEVDetCenterHead
from .datasets import (
    BEVDET_CLASSES,
    OCCUPANCY_CLASSES,
    BEVDetBEVAug,
    BEVDetCBGSDataset,
    BEVDetDataPreprocessor,
    BEVDetNuScenesDataset,
    BEVMapIoU,
    BoxesToKeyEgo,
    EgoNuScenesMetric,
    GridToLidarEgo,
    KeyFrameDepthMaps,
    LoadBEVMapLabels,
    LoadOccupancyLabels,
    LoadSurroundFrames,
    ObjectInViewFilter,
    OccupancyMetric,
    PackBEVDetInputs,
    SurroundFramesAug,
)
from .detectors import BEVDepth4D, BEVDet, BEVDet4D, BEVStereo4D
from .map.head import BEVMapSegHead
from .map.spec import MAP_CLASSES
from .necks import FPN_LSS, LSSFPN3D, CustomFPN
from .occupancy.detector import BEVStereo4DOCC
from .shifted_swin import ShiftedSwin
from .training import LayerDecayOptimWrapperConstructor, RampedEMA, SequentialControlHook, SyncBNControlHook
from .view.frames import SurroundFrames
from .view.view_transformer import LSSViewTransformer, LSSViewTransformerBEVDepth, LSSViewTransformerBEVStereo

__all__ = [
    'BEVDET_CLASSES',
    'FPN_LSS',
    'MAP_CLASSES',
    'OCCUPANCY_CLASSES',
    'BEVDepth4D',
    'BEVDet',
    'BEVDet4D',
    'BEVDetBEVAug',
    'BEVDetCBGSDataset',
    'BEVDetCenterHead',
    'BEVDetDataPreprocessor',
    'BEVDetNuScenesDataset',
    'BEVMapIoU',
    'BEVMapSegHead',
    'BEVStereo4D',
    'BEVStereo4DOCC',
    'BoxesToKeyEgo',
    'CustomFPN',
    'CustomResNet',
    'CustomResNet3D',
    'EgoNuScenesMetric',
    'GridToLidarEgo',
    'KeyFrameDepthMaps',
    'LSSFPN3D',
    'LSSViewTransformer',
    'LSSViewTransformerBEVDepth',
    'LSSViewTransformerBEVStereo',
    'LayerDecayOptimWrapperConstructor',
    'LoadBEVMapLabels',
    'LoadOccupancyLabels',
    'LoadSurroundFrames',
    'ObjectInViewFilter',
    'OccupancyMetric',
    'PackBEVDetInputs',
    'RampedEMA',
    'SequentialControlHook',
    'ShiftedSwin',
    'StereoShiftedSwin',
    'SurroundFrames',
    'SurroundFramesAug',
    'SyncBNControlHook',
]
