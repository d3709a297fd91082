"""GeoMIM for BEVDet codebases (mmcv 1.x): backbone, pretraining detector, teacher, hooks, dataset and pipeline steps.

Importing this module registers them, by either of ``custom_imports=dict(imports=['geomim.plugin'])`` and
``plugin=True, plugin_dir='geomim/plugin/'``.
"""

from . import host  # noqa: F401 - refuses another host before anything is registered
from .backbone import GeoMIMSwin
from .datasets import GeoMIMCBGSDataset
from .hooks import GeoMIMCheckpointHook, GeoMIMEncoderExportHook, GeoMIMTeacherGuardHook
from .layer_decay import GeoMIMLayerDecayOptimizerConstructor
from .pretrainer import GeoMIMPretrainer
from .randomness import GeoMIMSeedHook
from .teacher import GeoMIMLidarTeacher
from .transforms import GeoMIMLidarFrame

__all__ = [
    'GeoMIMCBGSDataset',
    'GeoMIMCheckpointHook',
    'GeoMIMEncoderExportHook',
    'GeoMIMLayerDecayOptimizerConstructor',
    'GeoMIMLidarFrame',
    'GeoMIMLidarTeacher',
    'GeoMIMPretrainer',
    'GeoMIMSeedHook',
    'GeoMIMSwin',
    'GeoMIMTeacherGuardHook',
]
