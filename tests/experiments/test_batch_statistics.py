"""Statistics of batch norms over whole images: what is shown, and what is estimated."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any, Callable

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip('mmdet3d')

from geomim import GeoMIM, GeoMIMConfig
from geomim.method.masked_encoder import BackboneSpec


class Strided(nn.Module):
    """One convolution of stride 16 and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 16, stride=16), nn.BatchNorm2d(8)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images))


def test_whole_images_give_the_statistics(
    load_script: Callable[[str], ModuleType],
    make_config: Callable[..., GeoMIMConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = load_script('experiments/batch_statistics.py')
    model = SimpleNamespace(student=GeoMIM(make_config(encoder=BackboneSpec(Strided))).eval())
    module.hide_nothing(model.student)
    assert not model.student.draw_masks(torch.device('cpu')).any()
    images = torch.randn(3, 1, 6, 3, 64, 96)
    monkeypatch.setattr(module, 'frames', lambda *_: ({'images': frame} for frame in images))
    with torch.no_grad():
        assert module.estimate_again(model, None, 3) == 1
        backbone: Any = model.student.encoder.backbone
        maps = [backbone.conv(frame.flatten(0, 1)) for frame in images]
    mean = torch.stack([map_.mean(dim=(0, 2, 3)) for map_ in maps]).mean(0)
    torch.testing.assert_close(backbone.norm.running_mean, mean)
    assert not backbone.norm.training
