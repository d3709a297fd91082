"""Encoders of every kind under masks: what a copy may see, how the copies are put together, which backbones are refused."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Callable, List, Tuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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

    calls = 0

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        x = self.maxpool(self.relu(self.norm1(self.conv1(x))))
        maps: List[Tensor] = []
        for index in range(4):
            x = checkpoint(self._parts_of, getattr(self, f'layer{index + 1}'), x, **WITHOUT_REENTRANT)
            maps.append(x)
        return tuple(maps[index] for index in self.outputs)

    def _parts_of(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        self.calls += 1
        for part in stage:
            x = part(x)
        return x


class ChannelsLast(Residual):
    """Its stages give maps (M, h, w, C)."""

    def __init__(self) -> None:
        super().__init__(nn.Identity)
        for index in range(4):
            stage = getattr(self, f'layer{index + 1}')
            setattr(self, f'layer{index + 1}', nn.Sequential(stage, Permuted()))

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        x = self.maxpool(self.relu(self.norm1(self.conv1(x))))
        maps: List[Tensor] = []
        for index in range(4):
            x = getattr(self, f'layer{index + 1}')(x).permute(0, 3, 1, 2)
            maps.append(x)
        return tuple(maps[index] for index in self.outputs)


class Permuted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class Gated(Residual):
    """Scales its maps by what is pooled over the whole of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        return tuple(map_ * self.pool(map_) for map_ in super().forward(x))


WITHOUT_REENTRANT = dict(use_reentrant=False) if torch.__version__ >= '2' else {}
SWIN = SwinConfig(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=(4, 4, 3, 2))
SPECS = {
    'swin': SWIN,
    'channels last': BackboneSpec(ChannelsLast),
    'gated': BackboneSpec(Gated),
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
    learning = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in learning.items() if parameter.grad is None] == []


def test_stages_that_are_recomputed_are_the_same() -> None:
    """Maps and gradients, where a network calls the parts of a stage and not the stage, and again in the backward."""
    masks, images, found = complementary_masks((64, 96)), torch.randn(2, 3, 64, 96), []
    for kind in (Residual, Recomputing):
        torch.manual_seed(0)
        encoder: Any = MaskedPasses(kind(nn.Identity))
        encoder.backbone.calls = 0
        maps = encoder(images, masks)
        sum(map_.square().sum() for map_ in maps).backward()
        found.append([*maps, *(value.grad for name, value in encoder.named_parameters())])
    assert encoder.backbone.calls == 2 * 4
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


def test_stages_with_channels_last_are_blanked_where_the_others_are() -> None:
    masks, images, found = complementary_masks((64, 96)), torch.randn(2, 3, 64, 96), []
    for kind in (Residual, ChannelsLast):
        torch.manual_seed(0)
        encoder = MaskedPasses(kind(nn.Identity) if kind is Residual else kind())  # type: ignore[call-arg]
        found.append(encoder(images, masks))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


def test_what_is_pooled_is_no_map() -> None:
    """A vector has no cells; blanked where the first is hidden, it would blank a whole copy."""
    encoder = MaskedPasses(Gated()).eval()
    masks = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    fine, _ = encoder(torch.randn(1, 3, 64, 96), torch.cat([masks, 1 - masks]))
    for copy_ in copies_of(torch.cat([masks, 1 - masks]), (4, 6)):
        assert bool(fine[..., copy_].abs().amax() > 0)


def test_passes_that_wait_for_one_backward_keep_their_own_masks() -> None:
    """With other masks, and with none; each recomputes its stages as it went through them."""
    torch.manual_seed(3)
    drawn, images, found = [complementary_masks((64, 96)) for _ in range(2)], torch.randn(2, 3, 64, 96), []
    for kind in (Residual, Recomputing):
        torch.manual_seed(0)
        encoder = MaskedPasses(kind(nn.Identity))
        passes = [encoder(images, masks) for masks in (None, drawn[0], None, drawn[1])]
        sum(map_.square().sum() for maps in passes for map_ in maps).backward()
        found.append([value.grad for value in encoder.parameters()])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize('kind', sorted(set(SPECS) - {'swin'}))
def test_nothing_stays_on_a_backbone(kind: str) -> None:
    """So that it can be copied, saved, trained alone and recomputed; neither after a pass, its backward, nor a fault."""
    encoder: Any = SPECS[kind].build()
    images, masks = torch.randn(2, 3, 64, 96), complementary_masks((64, 96))
    hooks = lambda: [name for name, part in encoder.named_modules() if part._forward_hooks]  # noqa: E731
    maps = encoder(images, masks)
    assert hooks() == []
    sum(map_.sum() for map_ in maps).backward()
    assert hooks() == []
    with pytest.raises((RuntimeError, ValueError)):
        encoder(torch.randn(2, 5, 64, 96), masks)
    assert hooks() == []


def test_replaced_modules_are_blanked_too() -> None:
    """Hosts put other batch norms in the place of those that an encoder was built with."""
    encoder = MaskedPasses(Residual()).eval()
    nn.init.normal_(encoder.mask_colour)
    images, masks = torch.randn(2, 3, 64, 96), complementary_masks((64, 96))
    with torch.no_grad():
        before = encoder(images, masks)
        for index in range(4):  # whose last part gives the stage's output
            stage = getattr(encoder.backbone, f'layer{index + 1}')
            other = nn.Conv2d(stage[3].in_channels, stage[3].out_channels, 1)
            other.load_state_dict(stage[3].state_dict())
            stage[3] = other
        for one, after in zip(before, encoder(images, masks)):
            assert torch.equal(one, after)


def test_a_copy_of_an_encoder_is_one_of_its_own(spec: EncoderSpec) -> None:
    """As hooks that average weights make it, between a pass and its backward too."""
    encoder = spec.build()
    images, masks = torch.randn(2, 3, 64, 96), complementary_masks((64, 96))
    encoder(images, masks)
    averaged = copy.deepcopy(encoder).eval()
    encoder.eval()
    with torch.no_grad():
        before = averaged(images, masks)
        for one, other in zip(before, encoder(images, masks)):
            assert torch.equal(one, other)
        for value in encoder.parameters():
            value.add_(1.0)
        for one, other in zip(before, averaged(images, masks)):
            assert torch.equal(one, other)


def test_a_configuration_is_copied_without_what_builds_its_backbone(make_config: Callable[..., GeoMIMConfig]) -> None:
    """It may be bound to a host's registry."""

    class Registry:
        def __deepcopy__(self, _: Any) -> None:
            raise AssertionError('the registry was copied')

        def build(self) -> nn.Module:
            return Residual()

    student = GeoMIM(make_config(encoder=BackboneSpec(Registry().build)))
    copy.deepcopy(student)


@pytest.mark.parametrize('layout', ['usual', 'channels last'])
def test_low_precision_and_memory_layout_keep_copies_apart(spec: EncoderSpec, layout: str) -> None:
    if torch.__version__ < '2.1':
        pytest.skip('older ones lack operations in bfloat16 on a CPU')
    encoder = spec.build().eval()
    if layout == 'channels last':
        encoder = encoder.to(memory_format=torch.channels_last)
    images, masks = torch.randn(2, 3, 64, 96), complementary_masks((64, 96))
    hidden = resize_masks(masks, (64, 96))[0].bool()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        before = encoder(images, masks)
        after = encoder(torch.where(hidden, torch.randn_like(images), images), masks)
    for old, new in zip(before, after):
        assert bool(old.isfinite().all())
        kept = copies_of(masks, (old.shape[2], old.shape[3]))[0]
        assert torch.equal(old[..., kept], new[..., kept])


class Overreaching(Residual):
    """Has a stage behind the maps, and a classifier."""

    def __init__(self) -> None:
        super().__init__(outputs=(2,))
        self.fc = nn.Linear(24, 10)


def test_what_the_maps_do_not_depend_on_stops_learning() -> None:
    """Distributed training waits for the gradient of every parameter that learns."""
    backbone = Overreaching()
    backbone.layer1.requires_grad_(False)
    kept = torch.ones_like(backbone.conv1.weight)
    backbone.conv1.weight.grad = kept
    with pytest.warns(
        UserWarning, match=r'encoder net: 8 parameters do not reach the maps of stride 16 .* layer4.0.weight'
    ):
        encoder = MaskedPasses(backbone, 'net')
    frozen = {name.partition('.')[0] for name, value in backbone.named_parameters() if not value.requires_grad}
    assert frozen == {'layer1', 'layer4', 'fc'}
    assert backbone.conv1.weight.grad is kept
    assert all(value.grad is None for value in (backbone.conv1.bias, encoder.mask_colour))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        MaskedPasses(Residual(outputs=(2, 3)))


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
