"""Filling in, the camera-aware gate, and the wiring of the two branches against the written-out sequence."""

from __future__ import annotations

from typing import Callable, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geomim import CameraRig, DecoderConfig, GeoMIM, GeoMIMConfig, SwinConfig
from geomim.method.decoder import CameraGate, Decoder, StageFusion
from geomim.method.masking import complementary_masks, resize_masks
from geomim.method.windows import WindowPlan

Randomise = Callable[[nn.Module], None]
PAPER_SHAPED = DecoderConfig(dim=16, num_heads=2, pos_embed_size=3)


@pytest.fixture
def decoder(randomise_parameters: Randomise) -> Decoder:
    layer = Decoder(PAPER_SHAPED).eval()
    randomise_parameters(layer)
    return layer


def test_filling_in_is_copy_major_and_puts_the_token_at_hidden_positions(decoder: Decoder) -> None:
    images, size = 4, (4, 6)
    tokens = torch.randn(images, *size, 16)
    masks = complementary_masks((64, 96), 3)
    filled = decoder.fill_in(tokens, masks)
    assert filled.shape == (3 * images, 24, 16)
    position = F.interpolate(decoder.pos_embed, size=size, mode='bicubic', align_corners=False)[0]
    for copy, mask in enumerate(resize_masks(masks, size)):
        for image in range(images):
            for row in range(size[0]):
                for col in range(size[1]):
                    token = decoder.mask_token[0, 0] if mask[row, col] == 1 else tokens[image, row, col]
                    torch.testing.assert_close(
                        filled[copy * images + image, row * size[1] + col], token + position[:, row, col]
                    )


def test_gate_equals_its_formula_and_lies_between_zero_and_one(randomise_parameters: Randomise) -> None:
    gate = CameraGate(8).eval()
    randomise_parameters(gate)
    gate.norm.running_mean.normal_()
    gate.norm.running_var.uniform_(0.5, 2)
    vectors = torch.randn(5, 22)
    norm = gate.norm
    hidden = (vectors - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    hidden = F.gelu(hidden @ gate.mlp.fc1.weight.t() + gate.mlp.fc1.bias) @ gate.mlp.fc2.weight.t() + gate.mlp.fc2.bias
    hidden = (hidden @ gate.reduce.weight.t() + gate.reduce.bias).clamp(min=0)
    scale = 1 / (1 + torch.exp(-(hidden @ gate.expand.weight.t() + gate.expand.bias)))
    tokens = torch.randn(5, 7, 8)
    torch.testing.assert_close(gate(tokens, vectors), tokens * scale[:, None])
    scaled = gate(torch.ones(5, 7, 8), vectors).detach()
    assert float(scaled.min()) > 0
    assert float(scaled.max()) < 1


def written_out(
    decoder: Decoder, x: Tensor, vectors: Tensor, cams: int, size: Tuple[int, int]
) -> Tuple[Tensor, Tensor]:
    """The published sequence with all its block numbers spelled out (8 trunk blocks, 4 geometry blocks)."""
    trunk, geometry = decoder.trunk, decoder.geometry
    x = trunk[1](trunk[0](x))
    x = decoder.cross_view[0](x, cams, size)
    x = trunk[3](trunk[2](x))
    g = decoder.gate(x, vectors)
    x = trunk[5](trunk[4](x))
    x = decoder.cross_view[1](x, cams, size)
    x = trunk[7](trunk[6](x))
    g = geometry[1](geometry[0](g))
    g = decoder.geometry_cross_view[0](g, cams, size)
    g = geometry[3](geometry[2](g))
    maps = [decoder.trunk_norm(x), decoder.geometry_norm(g)]
    semantic, geometric = (value.transpose(1, 2).reshape(len(x), -1, *size) for value in maps)
    return semantic, geometric


@pytest.mark.parametrize('copies', [2, 3])
def test_branches_leave_and_cross_where_the_method_says(
    decoder: Decoder, make_rig: Callable[..., CameraRig], copies: int
) -> None:
    rig, size = make_rig(batch=2, cams=3, augmented=True), (4, 6)
    masks = complementary_masks((64, 96), copies)
    tokens = torch.randn(6, *size, 16)
    with torch.no_grad():
        vectors = rig.camera_vector().flatten(0, 1)
        stacked = torch.cat([vectors] * copies)
        expected = written_out(decoder, decoder.fill_in(tokens, masks), stacked, 3, size)
        result = decoder(tokens, rig, masks)
    for ours, theirs in zip(result, expected):
        assert ours.shape == (copies * 6, 16, *size)
        torch.testing.assert_close(ours, theirs)


def test_copies_do_not_see_each_other(decoder: Decoder, make_rig: Callable[..., CameraRig]) -> None:
    rig, masks = make_rig(cams=3), complementary_masks((64, 96))
    tokens = torch.randn(3, 4, 6, 16)
    hidden_in_first = resize_masks(masks, (4, 6))[0] > 0.5
    disturbed = torch.where(hidden_in_first[None, :, :, None], torch.randn_like(tokens), tokens)
    with torch.no_grad():
        for old, new in zip(decoder(tokens, rig, masks), decoder(disturbed, rig, masks)):
            assert torch.equal(old[:3], new[:3])
            assert not torch.allclose(old[3:], new[3:])


def test_calibration_reaches_the_geometry_branch_alone(decoder: Decoder, make_rig: Callable[..., CameraRig]) -> None:
    masks, tokens = complementary_masks((64, 96)), torch.randn(3, 4, 6, 16)
    with torch.no_grad():
        semantic, geometry = decoder(tokens, make_rig(cams=3), masks)
        other_semantic, other_geometry = decoder(tokens, make_rig(cams=3, augmented=True), masks)
    assert torch.equal(semantic, other_semantic)
    assert not torch.allclose(geometry, other_geometry)


def test_the_position_embedding_is_no_parameter_but_is_stored() -> None:
    decoder = Decoder(PAPER_SHAPED)
    assert 'pos_embed' in decoder.state_dict()
    assert 'pos_embed' not in dict(decoder.named_parameters())


def test_zero_start_of_cross_view_attention_survives_construction(make_config: Callable[..., GeoMIMConfig]) -> None:
    model = GeoMIM(make_config())
    for block in [*model.decoder.cross_view, *model.decoder.geometry_cross_view]:
        for value in (*block.attn.proj.parameters(), *block.mlp.fc2.parameters()):
            assert torch.equal(value, torch.zeros_like(value))
        assert float(block.attn.qkv.weight.detach().abs().max()) > 0


@pytest.mark.parametrize('size', [(4, 6), (2, 2), (6, 10)])
def test_fusion_equals_its_written_out_form(size: Tuple[int, int], randomise_parameters: Randomise) -> None:
    encoder = SwinConfig(embed_dims=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=(4, 4, 4, 2))
    fusion = StageFusion(encoder.build(), DecoderConfig(dim=12, num_heads=2, fusion_window=3)).eval()
    randomise_parameters(fusion)
    masks = complementary_masks((size[0] * 16, size[1] * 16), 2) if size != (2, 2) else None
    fine, coarse = torch.randn(2, *size, 16), torch.randn(2, size[0] // 2, size[1] // 2, 32)
    raised = fusion.reduce(coarse).repeat_interleave(2, 1).repeat_interleave(2, 2)
    expected = fusion.embed(fusion.norm(fusion.smooth(fine + raised, WindowPlan.build(size, 3, masks))))
    maps = [fine.permute(0, 3, 1, 2), coarse.permute(0, 3, 1, 2)]
    torch.testing.assert_close(fusion(maps, masks), expected)
    assert fusion.smooth.attn.w_msa.num_heads == 2


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'geometry_from': 9}, r'geometry_from must lie in 1..8 .* got 9'),
        ({'geometry_from': 0}, r'geometry_from must lie in 1..8 .* got 0'),
        ({'cross_view_after': (2, 9)}, r'cross_view_after \(2, 9\) must lie in 1..8'),
        ({'geometry_cross_view_after': (5,)}, r'geometry_cross_view_after \(5,\) must lie in 1..4'),
        ({'depth': 2, 'geometry_from': 1}, r'cross_view_after \(2, 6\) must lie in 1..2'),
    ],
)
def test_blocks_that_do_not_exist_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**changes)


def test_geometry_depth_is_half_of_the_trunk_unless_given() -> None:
    assert DecoderConfig().geometry_depth == 4
    assert len(Decoder(DecoderConfig(dim=8, num_heads=2, geometry_depth=3)).geometry) == 3
