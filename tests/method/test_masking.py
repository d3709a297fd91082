"""Complementary masks: groups partition the cells, resizing keeps cells whole, impossible sizes are refused."""

from __future__ import annotations

from typing import Tuple

import pytest
import torch

from geomim.method.masking import check_masks, complementary_masks, group_index, mask_grid_size, resize_masks


@pytest.mark.parametrize('size', [(64, 96), (256, 704), (32, 64), (96, 96), (32, 160)])
@pytest.mark.parametrize('copies', [2, 3, 4])
def test_copies_keep_disjoint_groups_of_equal_size(size: Tuple[int, int], copies: int) -> None:
    cells = (size[0] // 32) * (size[1] // 32)
    if cells < copies:
        with pytest.raises(ValueError, match=f'{cells} mask cells, fewer than {copies} copies'):
            complementary_masks(size, copies)
        return
    masks = complementary_masks(size, copies)
    assert masks.shape == (copies, size[0] // 32, size[1] // 32)
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    kept = 1 - masks
    assert kept.flatten(1).sum(1).tolist() == [cells // copies] * copies
    times_kept = kept.sum(0)
    assert int(times_kept.max()) == 1
    assert int((times_kept == 0).sum()) == cells % copies


def test_two_copies_of_an_even_number_of_cells_are_complements() -> None:
    masks = complementary_masks((256, 704))
    assert torch.equal(masks[0] + masks[1], torch.ones(8, 22))


def test_a_generator_decides_the_masks_and_every_cell_is_hidden_equally_often() -> None:
    first = complementary_masks((64, 96), generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, complementary_masks((64, 96), generator=torch.Generator().manual_seed(3)))
    generator = torch.Generator().manual_seed(0)
    mean = torch.stack([complementary_masks((64, 96), generator=generator)[0] for _ in range(400)]).mean(0)
    assert float((mean - 0.5).abs().max()) < 0.125  # five standard deviations


@pytest.mark.parametrize(
    'size, copies, message',
    [
        ((250, 704), 2, r'250 x 704 .* 256 x 704 would be'),
        ((256, 700), 2, r'256 x 700 .* 256 x 704 would be'),
        ((0, 64), 2, r'0 x 64'),
        ((10, 64), 2, r'10 x 64 .* 32 x 64 would be'),
        ((64, 64), 1, r'copies must be at least 2 .* got 1'),
        ((64, 64), 2.5, r'copies must be at least 2 and a whole number .* got 2\.5'),
        ((64, 64), 5, r'4 mask cells, fewer than 5 copies'),
    ],
)
def test_impossible_sizes_say_what_would_fit(size: Tuple[int, int], copies: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_grid_size(size, copies=copies)


def test_resizing_repeats_whole_cells() -> None:
    masks = complementary_masks((64, 96), 3)
    for factor in (1, 2, 4, 8):
        expected = masks.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        assert torch.equal(resize_masks(masks, (2 * factor, 3 * factor)), expected)


@pytest.mark.parametrize('copies', [2, 3, 4])
def test_group_index_is_the_sum_over_copies_of_keep_keep_transposed(copies: int) -> None:
    masks = complementary_masks((96, 160), copies)
    groups = group_index(masks).flatten()
    kept = (1 - masks).flatten(1)
    allowed = (kept[:, :, None] * kept[:, None, :]).sum(0)
    same = (groups[:, None] == groups[None]) & (groups >= 0)[:, None]
    assert torch.equal(same, allowed > 0.5)
    assert int((groups < 0).sum()) == 15 % copies


@pytest.mark.parametrize('shape', [(2, 3), (1, 2, 3), (2, 1, 2, 3)])
def test_masks_of_another_form_are_refused(shape: Tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r'masks must be \(K, h, w\)'):
        check_masks(torch.zeros(shape))
