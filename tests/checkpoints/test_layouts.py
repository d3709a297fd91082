"""Names of the same weights in every layout: round trips bit for bit, and the published full-size manifests."""

from __future__ import annotations

from typing import Any, Callable, Dict

import pytest
import torch
from torch import Tensor

from geomim import GeoMIM, GeoMIMConfig, SwinConfig
from geomim.checkpoints.layouts import (
    LAYOUTS,
    detect_layout,
    export_encoder,
    from_geomim,
    from_mixmae,
    from_reference,
    to_geomim,
    to_reference,
)
from geomim.checkpoints.loading import load_pretrained
from geomim.method.decoder import DecoderConfig
from geomim.method.swin import PatchMerging
from geomim.method.windows import relative_position_index

from ..helpers import assert_same_tensors

Make = Callable[..., Any]


def test_reference_round_trip_is_exact(make_config: Make, make_model: Make) -> None:
    config = make_config()
    state = make_model(config).state_dict()
    published = to_reference(dict(state), config.view_transform)
    assert all(name.startswith(('encoders.camera.', 'prediction_head.')) for name in published)
    assert_same_tensors(from_reference(published), dict(state))
    again = to_reference(from_reference(published), config.view_transform)
    assert_same_tensors(again, published)


@pytest.mark.parametrize('cross, geometry', [((1,), (1, 2)), ((1, 2, 4), (2,)), ((), (1,)), ((2, 3), ())])
def test_cross_view_blocks_of_any_number_are_told_apart(make_config: Make, cross: tuple, geometry: tuple) -> None:
    base = make_config()
    decoder = DecoderConfig(
        dim=16,
        num_heads=2,
        depth=4,
        cross_view_after=cross,
        geometry_from=2,
        geometry_cross_view_after=geometry,
        pos_embed_size=3,
        fusion_window=3,
    )
    config = GeoMIMConfig(base.encoder, decoder, base.view_transform, base.target)
    state = dict(GeoMIM(config).state_dict())
    published = to_reference(state, config.view_transform)
    assert_same_tensors(from_reference(published, trunk_cross_views=len(cross)), state)


def test_constants_of_reference_checkpoints(make_config: Make, make_model: Make) -> None:
    config = make_config()
    published = to_reference(dict(make_model(config).state_dict()), config.view_transform)
    prefix = 'encoders.camera.vtransform.'
    assert published[prefix + 'dx'].tolist() == pytest.approx([1.5, 1.5, 20.0])
    assert published[prefix + 'bx'].tolist() == pytest.approx([-11.25, -8.25, 0.0])
    assert published[prefix + 'nx'].tolist() == [16, 12, 1]
    frustum = published[prefix + 'frustum']
    assert frustum.shape == (12, 4, 6, 3)
    assert frustum[7, 2, 3].tolist() == pytest.approx([57.0, 42.0, 8.0])
    index = published['encoders.camera.backbone.stages.0.blocks.0.attn.w_msa.relative_position_index']
    assert torch.equal(index, relative_position_index(4))


def test_a_view_transformation_that_does_not_fit_the_weights_is_named(make_config: Make, make_model: Make) -> None:
    state = dict(make_model(make_config()).state_dict())
    with pytest.raises(ValueError, match='ends in 18 channels, but 118 depth bins and 80 context channels make 198'):
        to_reference(state)


def full_size(encoder: SwinConfig) -> GeoMIM:
    if hasattr(torch, 'set_default_device'):
        try:
            with torch.device('meta'):
                return GeoMIM(GeoMIMConfig(encoder=encoder))
        except (NotImplementedError, RuntimeError) as error:
            pytest.fail(f'the model cannot be built on the meta device: {error}')
    return GeoMIM(GeoMIMConfig(encoder=encoder))


@pytest.mark.parametrize('size', ['base', 'large'])
def test_full_size_names_and_shapes_are_the_published_ones(manifest: Any, size: str) -> None:
    expected = manifest(f'pretrain_{size}_50ep')
    if size == 'large' and not hasattr(torch, 'set_default_device'):
        pytest.skip(
            f'torch {torch.__version__} has no meta device context; the full model would take 2 GB and a minute'
        )
    model = full_size(getattr(SwinConfig, size)())
    published = to_reference(dict(model.state_dict()))
    assert {name: tuple(value.shape) for name, value in published.items()} == expected


@pytest.mark.parametrize('layout', ['bevdet', 'mmdet'])
def test_exported_encoders_come_back(make_config: Make, make_model: Make, layout: str) -> None:
    state = dict(make_model(make_config()).state_dict())
    encoder = {name: value for name, value in state.items() if name.startswith('encoder.')}
    exported = export_encoder(state, layout)
    assert_same_tensors(to_geomim(exported, layout), encoder)
    assert detect_layout(exported) == layout
    prefix = 'backbone.' if layout == 'mmdet' else ''
    assert all(name.startswith(prefix) for name in exported)
    assert not any('decoder' in name or 'fusion' in name for name in exported)
    index = exported[prefix + 'stages.2.blocks.1.attn.w_msa.relative_position_index']
    assert torch.equal(index, relative_position_index(3))


def test_mmdet_has_a_flat_position_embedding_in_row_order(make_config: Make, make_model: Make) -> None:
    state = dict(make_model(make_config()).state_dict())
    square = state['encoder.absolute_pos_embed']
    flat = export_encoder(state, 'mmdet')['backbone.absolute_pos_embed']
    assert flat.shape == (1, 64, 8)
    for row, col in ((0, 0), (2, 5), (7, 1)):
        assert torch.equal(flat[0, row * 8 + col], square[0, :, row, col])
    assert torch.equal(export_encoder(state, 'bevdet')['absolute_pos_embed'], square)


def test_a_student_inside_another_model_is_found(make_config: Make, make_model: Make) -> None:
    state = dict(make_model(make_config()).state_dict())
    wrapped = {'student.' + name: value for name, value in state.items()}
    wrapped['teacher.net.weight'] = torch.zeros(2)
    assert detect_layout(wrapped) == 'geomim'
    assert_same_tensors(to_geomim(wrapped, 'geomim'), state)
    assert_same_tensors(export_encoder(wrapped), export_encoder(state))


def test_constants_that_a_host_stores_too_are_left_out(make_config: Make, make_model: Make) -> None:
    """mmcv 1.x's runner writes every buffer, those too that torch leaves out of a state dict."""
    model = make_model(make_config())
    state = model.state_dict()
    everything = {**dict(model.named_buffers()), **state}
    assert len(everything) > len(state)
    stored = {f'student.{name}': value for name, value in everything.items()}
    assert_same_tensors(to_geomim(stored, 'geomim'), state)
    report = load_pretrained(make_model(make_config()), stored)
    assert report.unused == report.missing == ()


def test_bevdet_detectors_hold_the_encoder_under_img_backbone(make_config: Make, make_model: Make) -> None:
    state = dict(make_model(make_config()).state_dict())
    detector = {'img_backbone.' + name: value for name, value in export_encoder(state).items()}
    detector['img_neck.conv.weight'] = torch.zeros(1)
    detector['pts_bbox_head.norm2.weight'] = torch.zeros(1)
    assert detect_layout(detector) == 'bevdet'
    encoder = {name: value for name, value in state.items() if name.startswith('encoder.')}
    assert_same_tensors(to_geomim(detector, 'bevdet'), encoder)


def mixmae_state(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Our weights as MixMAE stores them, written from METHOD 6 with loops."""
    renamed: Dict[str, Tensor] = {}
    for name, value in state.items():
        if name == 'encoder.absolute_pos_embed':
            renamed['absolute_pos_embed'] = value.flatten(2).transpose(1, 2)
        elif name == 'decoder.pos_embed':
            renamed['decoder_pos_embed'] = value.flatten(2).transpose(1, 2)
        elif name == 'decoder.mask_token':
            renamed['mask_token'] = value
        elif name.startswith('decoder.trunk_norm.'):
            renamed[name.replace('decoder.trunk_norm.', 'decoder_norm.')] = value
        elif name.startswith('decoder.trunk.'):
            renamed[name.replace('decoder.trunk.', 'decoder_blocks.')] = value
        elif name.startswith('encoder.patch_embed.'):
            renamed[name.replace('encoder.', '').replace('projection', 'proj')] = value
        elif name.startswith('encoder.stages.'):
            new = name.replace('encoder.stages.', 'layers.').replace('attn.w_msa.', 'attn.')
            new = new.replace('ffn.layers.0.0.', 'mlp.fc1.').replace('ffn.layers.1.', 'mlp.fc2.')
            if '.downsample.' in name:
                value = corner_order(value)
            renamed[new] = value
    renamed['norm.weight'] = torch.ones(64)
    renamed['decoder_embed.weight'] = torch.ones(16, 64)
    renamed['decoder_pred.bias'] = torch.ones(3)
    return renamed


def corner_order(weight: Tensor) -> Tensor:
    """(..., 4 C) channel-major with corners (tl, tr, bl, br) inside -> corner-major in the order tl, bl, tr, br."""
    channels = weight.shape[-1] // 4
    columns = [4 * c + unfolded for unfolded in (0, 2, 1, 3) for c in range(channels)]
    return weight[..., columns]


def test_mixmae_names_and_orders_come_back(make_config: Make, make_model: Make) -> None:
    state = dict(make_model(make_config()).state_dict())
    stored = mixmae_state(state)
    assert detect_layout(stored) == 'mixmae'
    ours = from_mixmae(stored)
    assert 'decoder.trunk.3.mlp.fc2.weight' in ours
    assert not any(name.startswith(('norm.', 'decoder_embed', 'decoder_pred')) for name in ours)
    for name, value in ours.items():
        assert torch.equal(value, state[name]), name
    covered = [name for name in state if name.startswith(('encoder.stages', 'encoder.patch', 'decoder.trunk'))]
    assert set(covered) <= set(ours)


def test_mixmae_merging_computes_the_same_as_original_swin_merging() -> None:
    """The original concatenates x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]."""
    merging = PatchMerging(3)
    stored = {
        'layers.0.downsample.reduction.weight': torch.randn(6, 12),
        'layers.0.downsample.norm.weight': torch.randn(12),
        'layers.0.downsample.norm.bias': torch.randn(12),
    }
    ours = from_mixmae(stored)
    merging.load_state_dict({name.split('downsample.')[1]: value for name, value in ours.items()})
    x = torch.randn(2, 4, 6, 3)
    corners = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    weight, bias = stored['layers.0.downsample.norm.weight'], stored['layers.0.downsample.norm.bias']
    normed = torch.nn.functional.layer_norm(corners, (12,), weight, bias)
    expected = normed @ stored['layers.0.downsample.reduction.weight'].t()
    torch.testing.assert_close(merging(x), expected)


def test_unknown_names_and_layouts() -> None:
    assert detect_layout({'conv1.weight': torch.zeros(1)}) is None
    assert detect_layout({}) is None
    with pytest.raises(ValueError, match=r"unknown checkpoint layout 'timm'; known are geomim, reference"):
        to_geomim({}, 'timm')
    with pytest.raises(ValueError, match=r"no encoder.\* tensors to export; the names start with \['head.weight'\]"):
        export_encoder({'head.weight': torch.zeros(1)})
    with pytest.raises(ValueError, match="'bevdet' or 'mmdet', not 'timm'"):
        export_encoder({'encoder.x': torch.zeros(1)}, 'timm')
    with pytest.raises(ValueError, match="not 'mixmae'"):
        from_geomim({'encoder.absolute_pos_embed': torch.zeros(1, 1, 1, 1)}, 'mixmae')
    assert set(LAYOUTS) == {'geomim', 'reference', 'mixmae', 'bevdet', 'mmdet'}


def test_a_position_embedding_that_is_no_square_is_named() -> None:
    with pytest.raises(ValueError, match=r'must be \(1, side \* side, C\), got \(1, 15, 4\)'):
        from_mixmae({'absolute_pos_embed': torch.zeros(1, 15, 4)})


def test_the_lidar_encoder_of_reference_checkpoints_is_left_out() -> None:
    state = {'encoders.lidar.backbone.conv.weight': torch.zeros(1), 'prediction_head.weight': torch.ones(1)}
    assert list(from_reference(state)) == ['head.weight']
