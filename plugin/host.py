"""The mmcv 1.x codebase that this process runs: its registries and helpers in one place, or an error that says what is missing."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import Any, Dict

from torch import nn


def _require(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'geomim.plugin is for BEVDet codebases and cannot import their {name} ({error}): it needs mmcv-full 1.x, mmdet 2.x '
            'and mmdet3d 0.x or 1.0. The core alone, import geomim, needs torch only'
        ) from error


def _refuse_mmengine() -> None:
    version = str(_require('mmcv').__version__)
    if int(version.split('.')[0]) >= 2:
        raise ImportError(
            f'geomim.plugin is for BEVDet codebases (mmcv 1.x), but this environment has mmcv {version}, which goes with mmengine: '
            "for mmdet3d 1.x write custom_imports=dict(imports=['geomim.mmdet3d']) instead"
        )


_refuse_mmengine()
_require('mmdet3d')

import numpy as np  # noqa: E402
from mmcv.parallel import is_module_wrapper  # noqa: E402
from mmcv.runner import HOOKS, OPTIMIZER_BUILDERS, get_dist_info  # noqa: E402
from mmcv.runner.checkpoint import CheckpointLoader  # noqa: E402
from mmcv.utils.logging import logger_initialized  # noqa: E402
from mmdet3d.datasets import build_dataset  # noqa: E402
from mmdet3d.datasets.dataset_wrappers import CBGSDataset  # noqa: E402
from mmdet3d.models.builder import BACKBONES, DETECTORS, build_backbone  # noqa: E402

from ..checkpoints import zoo  # noqa: E402
from ..checkpoints.files import loading_safely  # noqa: E402
from ..checkpoints.reading import Checkpoint, arrays_of, is_address, open_checkpoint  # noqa: E402

try:
    from mmdet3d.datasets.builder import DATASETS, PIPELINES
except ImportError:  # before mmdet3d 1.0
    from mmdet.datasets.builder import DATASETS, PIPELINES

__all__ = [
    'BACKBONES',
    'CBGSDataset',
    'DATASETS',
    'DETECTORS',
    'HOOKS',
    'OPTIMIZER_BUILDERS',
    'PIPELINES',
    'build_backbone',
    'build_dataset',
    'get_dist_info',
    'open_source',
    'run_logger',
    'unwrapped',
]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside however many parallel wrappers, or the model itself."""
    while is_module_wrapper(model):
        model = model.module
    return model


def run_logger() -> logging.Logger:
    """The logger that writes the run's log file, else the first that was set up, else mmcv's."""
    loggers = [logging.getLogger(name) for name in logger_initialized] or [logging.getLogger('mmcv')]
    to_file = (one for one in loggers if any(isinstance(handler, logging.FileHandler) for handler in one.handlers))
    return next(to_file, loggers[0])


def open_source(source: str) -> Checkpoint:
    """A checkpoint from a path, or from an address by mmcv's loader for it and through its cache."""
    if not is_address(source):
        return open_checkpoint(source)
    return Checkpoint(CheckpointLoader.load_checkpoint(source, map_location='cpu'), source)


@CheckpointLoader.register_scheme(prefixes=zoo.SCHEME, force=True)
def load_from_geomim(filename: str, map_location: Any = None) -> Dict[str, Any]:
    """A network that comes with the package."""
    return open_checkpoint(filename, map_location or 'cpu').content


# `load_from`, `--resume-from` and `init_cfg` of the host's own modules read without executing, too.
CheckpointLoader.load_checkpoint = loading_safely(
    CheckpointLoader.load_checkpoint.__func__, arrays_of(np), lambda sentence: run_logger().info(sentence)
)
