"""Patch normalisation and the reconstruction loss against loops."""

from __future__ import annotations

from typing import List

import pytest
import torch
from torch import Tensor

from geomim.method.target import normalise_patches, reconstruction_loss


def looped(bev: Tensor, side: int, eps: float) -> Tensor:
    output = torch.empty_like(bev)
    for b in range(bev.shape[0]):
        for top in range(0, bev.shape[2], side):
            for left in range(0, bev.shape[3], side):
                patch = bev[b, :, top : top + side, left : left + side]
                count = patch.numel()
                mean = patch.sum() / count
                var = (patch - mean).square().sum() / (count - 1)
                output[b, :, top : top + side, left : left + side] = (patch - mean) / (var + eps) ** 0.5
    return output


@pytest.mark.parametrize('side', [1, 2, 3, 6])
def test_normalisation_equals_a_loop(side: int) -> None:
    bev = torch.randn(2, 5, 12, 6, dtype=torch.float64) * 3 + 1
    torch.testing.assert_close(normalise_patches(bev, side, 1e-6), looped(bev, side, 1e-6))


def test_each_patch_has_zero_mean_and_unit_variance_over_cells_and_channels() -> None:
    patches = normalise_patches(torch.randn(1, 4, 36, 36) * 7 - 2).view(4, 2, 18, 2, 18).permute(1, 3, 0, 2, 4)
    patches = patches.reshape(4, -1)
    torch.testing.assert_close(patches.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.var(1), torch.ones(4), atol=1e-4, rtol=0)


def test_an_empty_patch_becomes_zero_not_nan() -> None:
    assert torch.equal(normalise_patches(torch.full((1, 3, 4, 4), 2.0), 2), torch.zeros(1, 3, 4, 4))


def layouts_of(bev: Tensor) -> List[Tensor]:
    """The same values in other strides: a teacher that transposes, crops or stores channels last."""
    padded = torch.randn(bev.shape[0], bev.shape[1] + 1, bev.shape[2] + 2, 2 * bev.shape[3]).to(bev)
    padded[:, :-1, 1:-1, ::2] = bev
    return [
        bev.transpose(2, 3).contiguous().transpose(2, 3),
        bev.contiguous(memory_format=torch.channels_last),
        padded[:, :-1, 1:-1, ::2],
    ]


def test_strides_do_not_matter() -> None:
    bev = torch.randn(2, 3, 6, 4)
    for other in layouts_of(bev):
        assert torch.equal(other, bev)
        torch.testing.assert_close(normalise_patches(other, 2), normalise_patches(bev, 2))
    same = torch.randn(1, 3, 6, 4).expand(2, 3, 6, 4)
    torch.testing.assert_close(normalise_patches(same, 2), normalise_patches(same.clone(), 2))


def test_the_target_is_not_changed() -> None:
    bev = torch.randn(1, 2, 4, 4)
    before = bev.clone()
    normalise_patches(bev, 2)
    assert torch.equal(bev, before)


def test_patches_that_do_not_fit_are_named_with_those_that_do() -> None:
    with pytest.raises(
        ValueError, match=r'12 x 8 cells cannot be cut into 18-cell patches; sides that fit: \[1, 2, 4\]'
    ):
        normalise_patches(torch.zeros(1, 1, 12, 8))
    with pytest.raises(ValueError, match=r'must be \(B, C, X, Y\), got shape \(4, 4\)'):
        normalise_patches(torch.zeros(4, 4), 2)


@pytest.mark.parametrize('copies', [1, 2, 3])
def test_loss_is_the_mean_over_copies_of_the_mean_squared_error(copies: int) -> None:
    target = torch.randn(2, 3, 4, 5)
    predictions = [torch.randn(2, 3, 4, 5) for _ in range(copies)]
    expected = sum(
        sum((a - b) ** 2 for a, b in zip(p.flatten().tolist(), target.flatten().tolist())) / target.numel()
        for p in predictions
    )
    assert float(reconstruction_loss(predictions, target)) == pytest.approx(expected / copies, rel=1e-5)


def test_a_normalised_target_costs_about_one_when_zero_is_predicted() -> None:
    target = normalise_patches(torch.randn(1, 8, 36, 36) * 4)
    assert float(reconstruction_loss([torch.zeros_like(target)], target)) == pytest.approx(1, abs=1e-3)


def test_predictions_of_another_shape_are_named() -> None:
    with pytest.raises(ValueError, match=r'\(1, 3, 5, 4\) and the target \(1, 3, 4, 5\) differ'):
        reconstruction_loss([torch.zeros(1, 3, 4, 5), torch.zeros(1, 3, 5, 4)], torch.zeros(1, 3, 4, 5))
