"""Group attention inside windows against loops over the tokens of each group, and what follows from the rule."""

from __future__ import annotations

from typing import Callable, List, Optional, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geomim import SwinConfig, SwinEncoder
from geomim.method.masking import complementary_masks, resize_masks
from geomim.method.swin import PatchMerging, SwinBlock
from geomim.method.windows import WindowPlan, relative_position_index

from ..helpers import assert_close_with_gradients

TINY = SwinConfig(
    embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=(4, 4, 3, 2), pretrain_img_size=32
)
Randomise = Callable[[nn.Module], None]


def bias_entry(table: Tensor, window: int, first: Tuple[int, int], second: Tuple[int, int], head: int) -> Tensor:
    """Swin's table: rows by the offset from ``second`` to ``first``."""
    row, col = first[0] - second[0] + window - 1, first[1] - second[1] + window - 1
    return table[row * (2 * window - 1) + col, head]


def attend(block: SwinBlock, members: List[Tuple[int, int]], features: Tensor, window: int) -> Tensor:
    """Attention among ``members`` (positions in a window) with ``features`` (len, C), before the projection."""
    layer = block.attn.w_msa
    heads, dim = layer.num_heads, features.shape[1]
    query, key, value = layer.qkv(features).split(dim, dim=1)
    size, outputs = dim // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        bias = torch.stack(
            [
                torch.stack([bias_entry(layer.relative_position_bias_table, window, i, j, head) for j in members])
                for i in members
            ]
        )
        scores = query[:, part] @ key[:, part].t() / size**0.5 + bias
        outputs.append(scores.softmax(1) @ value[:, part])
    return torch.cat(outputs, 1)


def slow_block(block: SwinBlock, x: Tensor, window: int, masks: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
    """A block by loops over images, windows and copies; also (H, W) bool, the tokens that some copy keeps."""
    images, height, width, dim = x.shape
    normed = block.norm1(x)
    attended = torch.zeros_like(x)
    defined = torch.zeros(height, width, dtype=torch.bool)
    for top in range(0, height, window):
        for left in range(0, width, window):
            cells = [(r, c) for r in range(top, top + window) for c in range(left, left + window)]
            if masks is None:
                groups = [cells]  # padding takes part
            else:
                real = [(r, c) for r, c in cells if r < height and c < width]
                groups = [[(r, c) for r, c in real if mask[r, c] == 0] for mask in masks]
            for group in groups:
                if not group:
                    continue
                inside = [(r - top, c - left) for r, c in group]
                for image in range(images):
                    features = torch.stack(
                        [normed[image, r, c] if r < height and c < width else x.new_zeros(dim) for r, c in group]
                    )
                    for (r, c), value in zip(group, attend(block, inside, features, window)):
                        if r < height and c < width:
                            attended[image, r, c] = value
                            defined[r, c] = True
    x = x + block.attn.w_msa.proj(attended)
    hidden = block.norm2(x)
    for layer in block.ffn.layers:
        hidden = layer(hidden)
    return x + hidden, defined


CASES = [
    # height, width, window, copies (None: no masks)
    (8, 12, 4, 2),
    (8, 12, 4, 3),
    (6, 10, 4, 2),
    (4, 6, 7, 2),
    (4, 6, 7, 4),
    (6, 6, 3, 2),
    (8, 12, 4, None),
    (5, 7, 4, None),
    (3, 2, 5, None),
]


@pytest.mark.parametrize('height, width, window, copies', CASES)
def test_block_equals_loops_over_windows_and_groups(
    height: int, width: int, window: int, copies: Optional[int], randomise_parameters: Randomise
) -> None:
    block = SwinBlock(8, 2, window)
    randomise_parameters(block)
    block.double()
    x = torch.randn(2, height, width, 8, dtype=torch.float64, requires_grad=True)
    masks = None
    if copies is not None:
        masks = complementary_masks((height // 2 * 32, width // 2 * 32), copies)  # one cell is 2 x 2 tokens
    ours = block(x, WindowPlan.build((height, width), window, masks))
    theirs, defined = slow_block(block, x, window, None if masks is None else resize_masks(masks, (height, width)))
    weight = torch.randn_like(ours) * defined[None, :, :, None]
    assert_close_with_gradients(ours, theirs, [x, *block.parameters()], weight)


def test_relative_position_index_equals_a_loop() -> None:
    window = 3
    index = relative_position_index(window)
    for i in range(9):
        for j in range(9):
            row, col = i // 3 - j // 3 + 2, i % 3 - j % 3 + 2
            assert int(index[i, j]) == row * 5 + col


@pytest.mark.parametrize('size, window', [((8, 8), 4), ((5, 7), 4), ((3, 3), 8), ((4, 9), 3)])
def test_splitting_and_merging_windows_is_the_identity(size: Tuple[int, int], window: int) -> None:
    plan = WindowPlan.build(size, window)
    x = torch.randn(2, *size, 6)
    qkv = plan.pad(torch.cat([x, 2 * x, 3 * x], -1))
    assert qkv.shape[1] % window == 0
    assert qkv.shape[2] % window == 0
    for factor, part in enumerate(plan.split_heads(qkv, 2), start=1):
        assert torch.equal(plan.merge_heads(part), factor * x)


def test_a_window_needs_a_token() -> None:
    with pytest.raises(ValueError, match='at least 1 token, got 0'):
        WindowPlan.build((4, 4), 0)


def hidden_pixels(mask: Tensor) -> Tensor:
    return mask.repeat_interleave(32, 0).repeat_interleave(32, 1) > 0.5


@pytest.mark.parametrize('copies', [2, 3])
def test_a_copy_never_sees_its_hidden_pixels(copies: int, randomise_parameters: Randomise) -> None:
    encoder = SwinEncoder(TINY).eval()
    randomise_parameters(encoder)
    images = torch.randn(2, 3, 96, 160)
    masks = complementary_masks((96, 160), copies)
    before = encoder(images, masks)
    for mask in masks:
        disturbed = torch.where(hidden_pixels(mask), torch.randn_like(images) * 5, images)
        for old, new in zip(before, encoder(disturbed, masks)):
            kept = F.interpolate(mask[None, None], size=old.shape[2:])[0, 0] < 0.5
            torch.testing.assert_close(new[:, :, kept], old[:, :, kept])
            assert not torch.allclose(new[:, :, ~kept], old[:, :, ~kept])


def test_a_copy_sees_further_than_its_own_cell(randomise_parameters: Randomise) -> None:
    encoder = SwinEncoder(TINY).eval()
    randomise_parameters(encoder)
    images = torch.randn(1, 3, 64, 64)
    masks = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    disturbed = images.clone()
    disturbed[..., :32, :32] += 1  # the first cell of copy 0
    old, new = encoder(images, masks)[-1], encoder(disturbed, masks)[-1]
    changed = (old != new).any(1)[0]
    assert changed.tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_a_bias_that_forbids_stays_finite_in_every_precision(dtype: torch.dtype) -> None:
    plan = WindowPlan.build((5, 7), 4, complementary_masks((160, 224), 2))
    bias = plan.masked_bias(torch.randn(2, 16, 16).to(dtype))
    assert bias.dtype == dtype
    assert bool(torch.isfinite(bias).all())
    weights = bias.float().softmax(-1)
    assert bool(torch.isfinite(weights).all())
    allowed = plan.allowed.expand_as(weights)
    has_peer = allowed.any(-1, keepdim=True).expand_as(weights)
    assert float(weights[has_peer & ~allowed].max()) == 0.0
    # scores of a half-precision product come on top
    assert bool(torch.isfinite(bias.float() - 3e4).all())


def test_tokens_with_nothing_to_attend_to_give_no_nan_forward_or_backward(randomise_parameters: Randomise) -> None:
    encoder = SwinEncoder(TINY)
    randomise_parameters(encoder)
    masks = complementary_masks((96, 96), 2)  # nine cells: one is hidden in both copies
    assert int((masks.sum(0) == 2).sum()) == 1
    images = torch.randn(2, 3, 96, 96, requires_grad=True)
    outputs = encoder(images, masks)
    sum(output.square().sum() for output in outputs).backward()
    assert all(bool(torch.isfinite(output).all()) for output in outputs)
    assert bool(torch.isfinite(images.grad).all())
    for name, value in encoder.named_parameters():
        assert bool(torch.isfinite(value.grad).all()), name


def test_patch_merging_equals_unfold() -> None:
    merging = PatchMerging(3)
    nn.init.normal_(merging.norm.weight)
    x = torch.randn(2, 5, 7, 3)
    padded = F.pad(x.permute(0, 3, 1, 2), (0, 1, 0, 1))
    unfolded = F.unfold(padded, 2, stride=2).transpose(1, 2)
    expected = merging.reduction(merging.norm(unfolded)).view(2, 3, 4, 6)
    torch.testing.assert_close(merging(x), expected)


def test_every_image_size_gives_maps_of_the_strides() -> None:
    encoder = SwinEncoder(SwinConfig(**{**TINY.__dict__, 'out_indices': (0, 1, 2, 3)})).eval()
    with torch.no_grad():
        for height, width in ((64, 96), (70, 33), (32, 32), (4, 100)):
            sizes, maps = (-(-height // 4), -(-width // 4)), encoder(torch.randn(1, 3, height, width))
            for stage, output in enumerate(maps):
                assert tuple(output.shape) == (1, 8 * 2**stage, *sizes)
                assert bool(torch.isfinite(output).all())
                sizes = (-(-sizes[0] // 2), -(-sizes[1] // 2))


def test_position_embedding_is_resized_to_the_token_grid() -> None:
    encoder = SwinEncoder(TINY)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        encoder.absolute_pos_embed.zero_()
        without = encoder.embed(images)
        encoder.absolute_pos_embed.normal_()
    expected = F.interpolate(encoder.absolute_pos_embed, size=(16, 24), mode='bicubic', align_corners=False)
    torch.testing.assert_close(encoder.embed(images) - without, expected.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-5)


def test_images_are_independent_of_their_batch(randomise_parameters: Randomise) -> None:
    encoder = SwinEncoder(TINY).eval()
    randomise_parameters(encoder)
    images, masks = torch.randn(3, 3, 64, 96), complementary_masks((64, 96))
    together = encoder(images, masks)
    for index in range(3):
        for all_maps, one in zip(together, encoder(images[index : index + 1], masks)):
            torch.testing.assert_close(all_maps[index : index + 1], one)


def test_drop_path_grows_linearly_and_rests_in_evaluation() -> None:
    encoder = SwinEncoder(SwinConfig(**{**TINY.__dict__, 'drop_path_rate': 0.4}))
    rates = [block.drop_path.rate for stage in encoder.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    images = torch.randn(2, 3, 64, 96)
    first, second = encoder(images)[-1], encoder(images)[-1]
    assert not torch.equal(first, second)
    encoder.eval()
    assert torch.equal(encoder(images)[-1], encoder(images)[-1])


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'depths': (1, 1, 1)}, "'depths': 3, 'num_heads': 4"),
        ({'num_heads': (3, 2, 2, 4)}, 'stage 0: 8 channels cannot be split into 3 heads'),
        ({'out_indices': (2, 4)}, r'out_indices \(2, 4\) must lie in 0..3'),
        ({'pretrain_img_size': 3}, 'got 3'),
    ],
)
def test_configurations_that_do_not_fit_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwinConfig(**{**TINY.__dict__, **changes})


def test_sizes_of_the_paper() -> None:
    base, large, tiny = SwinConfig.base(), SwinConfig.large(), SwinConfig.tiny(window_size=(7, 7, 7, 7))
    assert base.stage_dims == (128, 256, 512, 1024)
    assert base.depths == large.depths == (2, 2, 18, 2)
    assert large.stage_dims == (192, 384, 768, 1536)
    assert large.num_heads == (6, 12, 24, 48)
    assert (tiny.embed_dims, tiny.depths, tiny.window_size) == (96, (2, 2, 6, 2), (7, 7, 7, 7))


@pytest.mark.parametrize('shape', [(1, 4, 64, 64), (3, 64, 64), (1, 2, 3, 64, 64)])
def test_images_of_another_form_are_refused(shape: Tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r'images must be \(B, 3, H, W\), got'):
        SwinEncoder(TINY)(torch.zeros(shape))
