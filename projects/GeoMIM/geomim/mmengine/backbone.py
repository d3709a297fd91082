"""The GeoMIM Swin as an image backbone for finetuning, visible from mmdet3d, mmdet and mmseg."""

from __future__ import annotations

from mmengine.logging import print_log
from mmengine.registry import MODELS

from ..adapter.backbone import SwinBackbone
from .compat import open_source


@MODELS.register_module()
class GeoMIMSwin(SwinBackbone):
    """:class:`geomim.adapter.backbone.SwinBackbone`, which has the arguments, under mmengine."""

    def init_weights(self) -> None:
        """Load ``init_cfg['checkpoint']`` and report what was taken."""
        report = self.load_pretrained(open_source)
        if report is not None:
            print_log(f'GeoMIMSwin: {report.describe()}', logger='current')
