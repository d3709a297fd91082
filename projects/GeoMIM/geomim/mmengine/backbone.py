"""The GeoMIM Swin and the networks of timm as image backbones for finetuning, visible from mmdet3d, mmdet and mmseg."""

from __future__ import annotations

from mmengine.logging import print_log
from mmengine.registry import MODELS

from ..adapter.backbone import SwinBackbone
from ..adapter.timm_backbone import TimmBackbone
from .compat import open_source


@MODELS.register_module()
class GeoMIMSwin(SwinBackbone):
    """:class:`geomim.adapter.backbone.SwinBackbone`, which has the arguments, under mmengine."""

    def init_weights(self) -> None:
        """Load ``init_cfg['checkpoint']`` and report what was taken."""
        report = self.load_pretrained(open_source)
        if report is not None:
            print_log(f'GeoMIMSwin: {report.describe()}', logger='current')


@MODELS.register_module()
class GeoMIMTimm(TimmBackbone):
    """:class:`geomim.adapter.timm_backbone.TimmBackbone`, which has the arguments, under mmengine."""

    def init_weights(self) -> None:
        """Load the file of weights and report what was taken."""
        report = self.start(open_source)
        if report is not None:
            print_log(f'GeoMIMTimm: {report.describe()}', logger='current')
