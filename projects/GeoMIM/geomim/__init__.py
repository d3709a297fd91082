"""GeoMIM: masked-image pretraining of camera bird's-eye-view networks against a LiDAR teacher (ICCV 2023, arXiv 2303.11325)."""

from . import _identity  # noqa: F401 - refuses a second copy of the package in the process
from .method.camera import CameraRig
from .method.decoder import DecoderConfig
from .method.depth import DepthBins
from .method.grid import BEVGrid
from .method.lift_splat import ViewTransform, ViewTransformConfig
from .method.pretrainer import GeoMIM, GeoMIMConfig, PretrainOutput
from .method.swin import SwinConfig, SwinEncoder
from .method.target import TargetConfig

__version__ = '0.1.0'

__all__ = [
    'BEVGrid',
    'CameraRig',
    'DecoderConfig',
    'DepthBins',
    'GeoMIM',
    'GeoMIMConfig',
    'PretrainOutput',
    'SwinConfig',
    'SwinEncoder',
    'TargetConfig',
    'ViewTransform',
    'ViewTransformConfig',
]
