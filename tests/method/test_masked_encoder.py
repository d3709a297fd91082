"""Encoders of every kind under masks: what a copy may see, how the copies are put together, which backbones are refused."""

from __future__ import annotations

import copy
from typing import Any, Callable, List, Tuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from geomim import CameraRig, GeoMIM, GeoMIMConfig, SwinConfig
from geomim.method.masked_encoder import BackboneSpec, EncoderSpec, MaskedPasses
from geomim.method.masking import complementary_masks, resize_masks


class Residual(nn.Module):
    """ResNet's outline: a stem of stride 4, stages in attributes, maps of the last three."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, outputs: Tuple[int, ...] = (1, 2, 3)) -> None:
        super().__init__()
        self.outputs = outputs
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, stride=2, padding=1), norm(8)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
        for index, width in enumerate((8, 12, 16, 24)):
            before = 8 if index == 0 else (8, 12, 16)[index - 1]
            first = nn.Conv2d(before, width, 3, stride=1 if index == 0 else 2, padding=1)
            self.add_module(
                f'layer{index + 1}', nn.Sequential(first, norm(width), nn.ReLU(), nn.Conv2d(width, width, 1))
            )

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        x = self.maxpool(self.relu(self.norm1(self.conv1(x))))
        maps: List[Tensor] = []
        for index in range(4):
            x = getattr(self, f'layer{index + 1}')(x)
            maps.append(x)
        return tuple(maps[index] for index in self.outputs)


class Patchwise(nn.Module):
    """ConvNeXt's outline: downsampling and stages in lists, 7 x 7 convolutions, norms of the outputs."""

    def __init__(self) -> None:
        super().__init__()
        widths = (4, 8, 12, 16)
        steps = [nn.Conv2d(3, 4, 4, stride=4)] + [nn.Conv2d(a, b, 2, stride=2) for a, b in zip(widths, widths[1:])]
        self.downsample_layers = nn.ModuleList(steps)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 7, padding=3, groups=width), nn.GELU()) for width in widths
        )

    def forward(self, x: Tensor) -> List[Tensor]:
        maps = []
        for step, stage in zip(self.downsample_layers, self.stages):
            x = step(x)
            x = x + stage(x)
            maps.append(x)
        return maps[2:]


class OneMap(Residual):
    """Stride 16 alone, as a tensor."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[1]


class Recomputing(Residual):
    """Calls the parts of its stages one by one and recomputes them in the backward."""

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        x = self.maxpool(self.relu(self.norm1(self.conv1(x))))
        maps: List[Tensor] = []
        for index in range(4):
            x = checkpoint_sequential(getattr(self, f'layer{index + 1}'), 1, x, **WITHOUT_REENTRANT)
            maps.append(x)
        return tuple(maps[index] for index in self.outputs)


WITHOUT_REENTRANT = dict(use_reentrant=False) if torch.__version__ >= '2.1' else {}
SWIN = SwinConfig(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=(4, 4, 3, 2))
SPECS = {
    'swin': SWIN,
    'residual': BackboneSpec(Residual),
    'patchwise': BackboneSpec(Patchwise),
    'one map': BackboneSpec(OneMap),
}


@pytest.fixture(params=sorted(SPECS))
def spec(request: Any) -> EncoderSpec:
    return SPECS[request.param]


def copies_of(masks: Tensor, size: Tuple[int, int]) -> Tensor:
    """(K, h, w) bool, where a copy keeps a position."""
    return resize_masks(masks, size) < 0.5


@pytest.mark.parametrize('copies', [2, 3])
@pytest.mark.parametrize('size', [(64, 96), (96, 160)], ids=['even', 'odd'])
def test_a_copy_sees_nothing_of_what_is_hidden_in_it(
    spec: EncoderSpec, copies: int, size: Tuple[int, int], randomise_parameters: Callable[[nn.Module], None]
) -> None:
    """To the bit, whatever the number of copies, with cells that are left over too; and the other copies do see it."""
    encoder = spec.build().eval()
    randomise_parameters(encoder)
    masks = complementary_masks(size, copies)
    images = torch.randn(5, 3, *size)
    with torch.no_grad():
        before = encoder(images, masks)
        for k in range(copies):
            hidden = resize_masks(masks, size)[k].bool()
            after = encoder(torch.where(hidden, torch.randn(5, 3, *size), images), masks)
            for old, new in zip(before, after):
                kept = copies_of(masks, (old.shape[2], old.shape[3]))
                assert torch.equal(old[..., kept[k]], new[..., kept[k]])
                assert not torch.equal(old[..., kept[(k + 1) % copies]], new[..., kept[(k + 1) % copies]])


def test_the_order_of_images_is_that_of_the_maps(spec: EncoderSpec) -> None:
    encoder, masks, images = spec.build().eval(), complementary_masks((64, 96)), torch.randn(4, 3, 64, 96)
    order = [2, 0, 3, 1]
    with torch.no_grad():
        for map_, reordered in zip(encoder(images, masks), encoder(images[order], masks)):
            torch.testing.assert_close(map_[order], reordered)


@pytest.mark.parametrize('backbone', [Residual, Patchwise])
def test_every_position_comes_from_the_copy_that_keeps_it(backbone: Callable[[], nn.Module]) -> None:
    """Against one pass per copy, its hidden cells painted over by hand and every stage's output blanked there."""
    encoder = MaskedPasses(backbone()).eval()
    nn.init.normal_(encoder.mask_colour)
    masks, images = complementary_masks((64, 96)), torch.randn(2, 3, 64, 96)

    def one_pass(k: int) -> List[Tensor]:
        blank = lambda x: x * copies_of(masks, tuple(x.shape[2:]))[k]  # noqa: E731
        net: Any = encoder.backbone
        x = torch.where(resize_masks(masks, (64, 96))[k].bool(), encoder.mask_colour, images)
        maps = []
        if isinstance(net, Residual):
            x = blank(net.maxpool(blank(net.relu(blank(net.norm1(blank(net.conv1(x))))))))
            for index in range(4):
                x = blank(getattr(net, f'layer{index + 1}')(x))
                maps.append(x)
        else:
            for step, stage in zip(net.downsample_layers, net.stages):
                x = blank(step(x))
                x = x + blank(stage(x))
                maps.append(x)
        return maps[2:]

    with torch.no_grad():
        by_hand = [one_pass(k) for k in range(2)]
        for index, map_ in enumerate(encoder(images, masks)):
            expected = sum(by_hand[k][index] * copies_of(masks, tuple(map_.shape[2:]))[k] for k in range(2))
            torch.testing.assert_close(map_, expected)


@pytest.mark.parametrize('kind', sorted(set(SPECS) - {'swin'}))
def test_a_backbone_gives_the_same_inside_and_outside(kind: str) -> None:
    """Whole images, as in finetuning, also after a step under masks; called directly, too."""
    encoder = SPECS[kind].build().eval()
    images = torch.randn(2, 3, 64, 96)
    encoder(images, complementary_masks((64, 96)))
    outside = copy.deepcopy(encoder.backbone)  # type: ignore[arg-type]
    with torch.no_grad():
        maps = outside(images)
        maps = [maps] if isinstance(maps, Tensor) else maps[-2:]
        for inside, map_ in zip(encoder(images), maps):
            assert torch.equal(inside, map_)
    names = {name[len('backbone.') :] for name in encoder.state_dict() if name.startswith('backbone.')}
    assert names == set(outside.state_dict())


def test_strides_and_channels_are_found(spec: EncoderSpec) -> None:
    encoder = spec.build()
    maps = encoder(torch.randn(1, 3, 64, 96), complementary_masks((64, 96)))
    assert [(64 // stride, channels) for stride, channels in zip(encoder.strides, encoder.channels)] == [
        (map_.shape[2], map_.shape[1]) for map_ in maps
    ]
    assert encoder.strides[0] == 16
    assert encoder.channels[0] % encoder.num_heads == 0


def test_pretraining_trains_every_parameter(
    spec: EncoderSpec,
    make_config: Callable[..., GeoMIMConfig],
    make_rig: Callable[..., CameraRig],
    make_inputs: Callable[..., dict],
) -> None:
    """One step of the whole student on five cameras, three copies."""
    config = make_config(encoder=spec, copies=3)
    student = GeoMIM(config)
    result = student(**make_inputs(config, make_rig(cams=5), copies=3))
    (result.reconstruction_loss + result.depth_loss).backward()
    unused = [name for name, parameter in student.named_parameters() if parameter.grad is None]
    # the stage behind stride 16 and the first map's are there, and not asked for
    assert [name for name in unused if 'layer4' not in name] == []


@pytest.mark.skipif(torch.__version__ < '2.1', reason='older ones recompute by another way')
def test_stages_that_are_recomputed_are_the_same() -> None:
    """Maps and gradients, where a network calls the parts of a stage and not the stage, and again in the backward."""
    masks, images, found = complementary_masks((64, 96)), torch.randn(2, 3, 64, 96), []
    for kind in (Residual, Recomputing):
        torch.manual_seed(0)
        encoder = MaskedPasses(kind(nn.Identity))
        maps = encoder(images, masks)
        sum(map_.square().sum() for map_ in maps).backward()
        found.append([*maps, *(value.grad for name, value in encoder.named_parameters())])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


def test_building_leaves_random_state_and_modes_alone() -> None:
    backbone = Residual()
    backbone.layer1.eval()
    before = torch.get_rng_state()
    statistics = copy.deepcopy(backbone.norm1.state_dict())
    encoder = MaskedPasses(backbone)
    assert torch.equal(before, torch.get_rng_state())
    assert backbone.training
    assert not backbone.layer1.training
    assert all(torch.equal(value, statistics[name]) for name, value in backbone.norm1.state_dict().items())
    assert encoder.training


class BatchWide(Residual):
    """Normalises by the batch, in evaluation too."""

    def __init__(self) -> None:
        super().__init__(lambda width: nn.BatchNorm2d(width, track_running_stats=False))


class Attending(Residual):
    """Lets the images of a batch look at each other."""

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        return tuple(map_ + map_.mean(0, keepdim=True) for map_ in super().forward(x))


class Failing(Residual):
    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        raise RuntimeError('images of 224 x 224 alone')


@pytest.mark.parametrize(
    ('backbone', 'message'),
    [
        (
            lambda: Residual(outputs=(1, 3)),
            r'needs a map of stride 16 .* give maps \(C x h x w\) 12 x 8 x 12, 24 x 2 x 3',
        ),
        (lambda: nn.Flatten(), r'needs a map of stride 16 .* maps \(C x h x w\) none'),
        (BatchWide, r'student.encoder net, map of stride 16: the features of .* depend on'),
        (Attending, r'student.encoder net, map of stride 16: the features of .* depend on'),
        (Failing, r'fails on an image of 64 x 96 .* RuntimeError: images of 224 x 224 alone'),
    ],
)
def test_backbones_that_cannot_be_pretrained_are_refused(backbone: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BackboneSpec(backbone, 'net').build()


def test_the_pass_runs_on_the_meta_device(spec: EncoderSpec) -> None:
    """No operation on a constant of the host, no value read back."""
    if torch.__version__ < '2.1':
        pytest.skip('older ones lack operations on the meta device')
    encoder = spec.build().to('meta')
    masks = torch.empty(2, 2, 3, device='meta')
    maps = encoder(torch.empty(4, 3, 64, 96, device='meta'), masks)
    sum(map_.sum() for map_ in maps).backward()
    assert all(map_.device.type == 'meta' for map_ in maps)
