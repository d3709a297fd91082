"""Networks of timm, unmodified, under masks and outside; skipped where timm is not installed."""

from __future__ import annotations

import json
import math
import struct
import sys
import warnings
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import torch

from geomim.adapter.encoders import student_config
from geomim.adapter.timm_backbone import TimmBackbone
from geomim.method.masked_encoder import BackboneSpec, MaskedEncoder, MaskedPasses, MaskedTokens
from geomim.method.masking import complementary_masks, resize_masks

from ..helpers import let_timm_import

let_timm_import()
timm = pytest.importorskip('timm', '1.0')

TRANSFORMERS = (
    'vit_tiny_patch16_224',
    'vit_small_patch16_dinov3',
    'vit_small_patch16_rope_mixed_224',
    'eva02_base_patch16_clip_224',
)
POOLING_FIRST = 'vit_medium_patch16_reg4_gap_256'  # its norm stands behind the pooling
OTHERS = ('resnet18', 'convnext_atto', 'regnety_002', 'ese_vovnet19b_slim', 'hgnetv2_b0', 'mobilenetv3_small_100')
NETWORKS = (*OTHERS, *TRANSFORMERS)
# a look at each; docs/your_backbone.md has the table
FURTHER = (
    'resnet18d', 'convnextv2_atto', 'efficientnet_b0', 'swin_tiny_patch4_window7_224', 'edgenext_xx_small', 'mobilevit_xxs',
    'pvt_v2_b0', 'naflexvit_base_patch16_gap', 'deit_tiny_distilled_patch16_224', POOLING_FIRST, 'flexivit_small',
)  # fmt: skip
SHALLOW = (
    *TRANSFORMERS,
    POOLING_FIRST,
    'naflexvit_base_patch16_gap',
    'deit_tiny_distilled_patch16_224',
    'flexivit_small',
)


def options_of(name: str) -> dict:
    return dict(depth=2) if name in SHALLOW else {}


def spec_of(name: str, **entries: Any) -> BackboneSpec:
    return student_config(dict(encoder=dict(type='timm', name=name, **options_of(name), **entries)), None).encoder


@pytest.fixture(scope='module', params=NETWORKS)
def encoder(request: Any) -> MaskedEncoder:
    return spec_of(request.param).build().eval()


def check_copies(encoder: MaskedEncoder, copies: int, size: Tuple[int, int] = (96, 160)) -> None:
    """To the bit, with 15 cells, of which one may be left over; and the other copies do see it."""
    masks, images = complementary_masks(size, copies), torch.randn(5, 3, *size)
    with torch.no_grad():
        before = encoder(images, masks)
        for k in range(copies):
            hidden = resize_masks(masks, size)[k].bool()
            after = encoder(torch.where(hidden, torch.randn_like(images), images), masks)
            for old, new in zip(before, after):
                kept = resize_masks(masks, (old.shape[2], old.shape[3])) < 0.5
                assert torch.equal(old[..., kept[k]], new[..., kept[k]])
                other = kept[(k + 1) % copies]
                assert not torch.equal(old[..., other], new[..., other])


@pytest.mark.parametrize('copies', [2, 3])
def test_a_copy_sees_nothing_of_what_is_hidden_in_it(encoder: MaskedEncoder, copies: int) -> None:
    check_copies(encoder, copies)


def test_the_order_of_images_is_that_of_the_maps(encoder: MaskedEncoder) -> None:
    masks, images, order = complementary_masks((64, 96)), torch.randn(5, 3, 64, 96), [2, 0, 3, 1, 4]
    with torch.no_grad():
        for map_, reordered in zip(encoder(images, masks), encoder(images[order], masks)):
            torch.testing.assert_close(map_[order], reordered, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', FURTHER)
def test_further_networks_build_and_keep_copies_apart(name: str) -> None:
    """Everything that learns is reached, so nothing is warned of."""
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'student.encoder')
        encoder = spec_of(name).build().eval()
    check_copies(encoder, 2)


def test_the_kind_of_masking_follows_from_the_network(encoder: MaskedEncoder) -> None:
    transformer = encoder.name in TRANSFORMERS
    assert type(encoder) is (MaskedTokens if transformer else MaskedPasses)
    assert encoder.strides == ((16,) if transformer else (16, 32))


def test_whole_images_give_what_timm_gives(encoder: MaskedEncoder, tmp_path: Path) -> None:
    """The weights load into a network that timm itself makes, strictly, and its features are the encoder's last map."""
    transformer = encoder.name in TRANSFORMERS
    options = dict(dynamic_img_size=True) if transformer else {}
    outside = timm.create_model(encoder.name, num_classes=0, **options, **options_of(encoder.name)).eval()
    outside.load_state_dict(encoder.backbone.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features, own = outside.forward_features(images), encoder(images)[-1]
    if transformer:
        features = features[:, outside.num_prefix_tokens :].transpose(1, 2).reshape(own.shape)
    torch.testing.assert_close(own, features, rtol=1e-5, atol=1e-5)


def test_copies_of_a_transformer_are_what_each_sees_alone() -> None:
    """One pass with an attention mask against timm's own pass over the patches that a copy keeps."""
    vit = TimmBackbone('vit_tiny_patch16_224', depth=2).eval()
    encoder = MaskedTokens(vit).eval()
    images, masks = torch.randn(2, 3, 64, 96), complementary_masks((64, 96), 2)
    with torch.no_grad():
        (map_,) = encoder(images, masks)
        for k in range(2):
            kept = (resize_masks(masks, (4, 6))[k] < 0.5).flatten()
            tokens = vit.model._pos_embed(vit.model.patch_embed(images))
            tokens = torch.cat([tokens[:, :1], tokens[:, 1:][:, kept]], dim=1)
            for block in vit.model.blocks:
                tokens = block(tokens)
            alone = vit.model.norm(tokens)[:, 1:]
            torch.testing.assert_close(map_.flatten(2)[..., kept].transpose(1, 2), alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_that_learns_gets_a_gradient(encoder: MaskedEncoder) -> None:
    """As distributed training wants it."""
    encoder.train()
    sum(map_.square().sum() for map_ in encoder(torch.randn(2, 3, 64, 96), complementary_masks((64, 96)))).backward()
    unused = [name for name, value in encoder.named_parameters() if value.requires_grad and value.grad is None]
    encoder.zero_grad()
    encoder.eval()
    assert unused == []


@pytest.mark.parametrize('name', ['resnet18', 'convnext_atto', 'regnety_002', 'mobilenetv3_small_100', TRANSFORMERS[0]])
def test_recomputing_changes_nothing(name: str) -> None:
    """``with_cp``: the same maps and gradients, whichever way a network calls the parts that it recomputes."""
    masks, images = complementary_masks((64, 96)), torch.randn(2, 3, 64, 96)
    found = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        encoder = spec_of(name, with_cp=with_cp).build().train()
        maps = encoder(images, masks)
        sum(map_.square().sum() for map_ in maps).backward()
        found.append((maps, {key: value.grad for key, value in encoder.named_parameters() if value.requires_grad}))
    (maps, gradients), (again, recomputed) = found
    for one, other in zip(maps, again):
        torch.testing.assert_close(one, other)
    for key, gradient in gradients.items():
        torch.testing.assert_close(recomputed[key], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize('with_cp', [False, True])
def test_a_transformer_recomputes_its_blocks_if_told_so(with_cp: bool) -> None:
    encoder: Any = spec_of(TRANSFORMERS[0], with_cp=with_cp).build()
    assert encoder.activation_checkpointing == with_cp


@pytest.mark.parametrize('name', TRANSFORMERS)
def test_attention_without_the_fused_function_is_the_same(name: str) -> None:
    """As it is chosen by timm's settings and for torch before 2.0; its older versions add the mask to the scores."""
    encoder: Any = spec_of(name).build().eval()
    images, masks = torch.randn(2, 3, 64, 96), complementary_masks((64, 96))
    given: List[torch.Tensor] = []
    with torch.no_grad():
        (fused,) = encoder(images, masks)
        for block in encoder.backbone.model.blocks:
            block.attn.fused_attn = False
            block.attn.register_forward_pre_hook(lambda *a: given.append(a[2]['attn_mask']), with_kwargs=True)
        (plain,) = encoder(images, masks)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    assert all(mask.dtype == torch.float32 and set(mask.unique().tolist()) == {0.0, -math.inf} for mask in given)


def test_blocks_without_an_attention_mask_go_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of timm before 1.0.16."""
    from timm.models.vision_transformer import Block

    forward = Block.forward
    monkeypatch.setattr(Block, 'forward', lambda self, x: forward(self, x))
    encoder = spec_of(TRANSFORMERS[0]).build().eval()
    assert type(encoder) is MaskedPasses
    check_copies(encoder, 2)


@pytest.mark.parametrize('name', [POOLING_FIRST, 'vit_base_patch16_siglip_224', TRANSFORMERS[0]])
def test_timms_own_network_and_ours_take_each_others_weights_whole(name: str, tmp_path: Path) -> None:
    """Nothing is missing, and nothing but a classifier left over; the last norm is one that was trained."""
    donor = timm.create_model(name, depth=2)
    torch.save(donor.state_dict(), tmp_path / 'donor.pth')
    entries = dict(type='timm', name=name, depth=2, pretrained=str(tmp_path / 'donor.pth'))
    encoder: Any = student_config(dict(encoder=entries), None).encoder.build().eval()
    report = encoder.backbone.start()
    assert report.missing == ()
    assert all(entry.startswith('head.') for entry in report.unused)
    timm.create_model(name, depth=2, num_classes=0).load_state_dict(encoder.backbone.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        (map_,) = encoder(images)
        torch.testing.assert_close(encoder(images, torch.zeros(2, 2, 3))[0], map_, rtol=1e-4, atol=1e-4)
    assert abs(float(map_.mean())) < 0.01  # channels are normalised
    assert 0.9 < float(map_.std()) < 1.1


def test_the_pass_runs_on_the_meta_device(encoder: MaskedEncoder) -> None:
    spec = BackboneSpec(lambda: TimmBackbone(encoder.name, **options_of(encoder.name)), encoder.name)
    on_meta = spec.build(activation_checkpointing=True).to('meta')
    maps = on_meta(torch.empty(2, 3, 64, 96, device='meta'), torch.empty(2, 2, 3, device='meta'))
    sum(map_.sum() for map_ in maps).backward()
    assert all(map_.device.type == 'meta' for map_ in maps)


def test_a_local_file_starts_the_network_and_is_reported(tmp_path: Path) -> None:
    """Timm's own file, classifier and all; another architecture is refused by name."""
    donor = timm.create_model('resnet18')
    torch.save(donor.state_dict(), tmp_path / 'resnet18.pth')
    backbone = TimmBackbone('resnet18', pretrained=str(tmp_path / 'resnet18.pth'))
    report = backbone.start()
    assert report is not None
    assert report.unused == ('fc.bias', 'fc.weight')
    assert all(torch.equal(value, donor.state_dict()[name]) for name, value in backbone.state_dict().items())
    other = TimmBackbone('resnet50', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'resnet18.pth')))
    with pytest.raises(ValueError, match=r'resnet18.pth.* another architecture: .* layer1.0.conv1.weight'):
        other.start()
    with pytest.raises(ValueError, match=r'resnet18.pth.* holds no weights of timm vit_tiny'):
        TimmBackbone('vit_tiny_patch16_224', pretrained=str(tmp_path / 'resnet18.pth')).start()


def write_safetensors(state: Dict[str, torch.Tensor], path: Path) -> None:
    """The format by hand: the length of a header, the header, the values."""
    header, values = {}, b''
    for name, value in state.items():
        data = value.numpy().tobytes()
        dtype = {torch.float32: 'F32', torch.int64: 'I64'}[value.dtype]
        header[name] = dict(dtype=dtype, shape=list(value.shape), data_offsets=[len(values), len(values) + len(data)])
        values += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + values)


def test_a_safetensors_file_starts_the_network(tmp_path: Path) -> None:
    """As timm's weights are published; truncated ones are refused."""
    pytest.importorskip('safetensors')
    donor = timm.create_model('resnet18').state_dict()
    write_safetensors(donor, tmp_path / 'model.safetensors')
    backbone = TimmBackbone('resnet18', pretrained=str(tmp_path / 'model.safetensors'))
    report = backbone.start()
    assert report is not None
    assert report.missing == ()
    assert all(torch.equal(value, donor[name]) for name, value in backbone.state_dict().items())
    (tmp_path / 'cut.safetensors').write_bytes((tmp_path / 'model.safetensors').read_bytes()[:-9])
    with pytest.raises(ValueError, match='cut.safetensors cannot be read'):
        TimmBackbone('resnet18', pretrained=str(tmp_path / 'cut.safetensors')).start()


def test_a_safetensors_file_asks_for_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'model.safetensors').write_bytes(b'1')
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(ImportError, match=r'model.safetensors.*pip install "geomim\[timm\]"'):
        TimmBackbone('resnet18', pretrained=str(tmp_path / 'model.safetensors')).start()


@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        (dict(name='convnexxt_tiny'), r"knows no network 'convnexxt_tiny'; similar are .*convnext_tiny"),
        (dict(), r"type='timm'\) needs the network's name"),
        (dict(name='vit_small_patch14_dinov2', depth=1), r'patches of 14 x 14 pixels .* 32-pixel mask cell'),
        (dict(name='resnet18', strides=(16, 64)), r'no map of stride 64; it has maps of strides \[2, 4, 8, 16, 32\]'),
        (dict(name='vit_tiny_patch16_224', depth=1, patch_drop_rate=0.5), r'patch_drop_rate must be 0'),
        (dict(name='vit_tiny_patch16_224', depth=1, dynamic_img_size=False), r'fails on an image of 64 x 96'),
        (dict(name='beit_base_patch16_224', depth=1), r'fails on an image of 64 x 96 .* match model \(224\)'),
        (dict(name='maxvit_rmlp_pico_rw_256'), r'fails on an image of 64 x 96 .* divisible by window'),
        (dict(name='resnet18', init_cfg=dict(type='Kaiming')), r"init_cfg must be dict\(type='Pretrained'"),
    ],
)
def test_bad_entries_are_named(entries: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        student_config(dict(encoder=dict(type='timm', **entries)), None).encoder.build()
