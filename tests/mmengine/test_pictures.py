"""Pictures show what they claim: orientation, colours, hidden cells, and depths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geomim import BEVGrid, CameraRig, DepthBins, PretrainOutput
from geomim.method.depth import depth_labels
from geomim.mmengine.pictures import (
    HIDDEN_GREY,
    NO_DEPTH_GREY,
    PanelConfig,
    bev_to_view,
    colour_basis,
    colour_components,
    colour_depth,
    colour_error,
    denormalise,
    expected_depth,
    hide_cells,
    label_depth,
    reconstruction_panel,
)

BINS = DepthBins(1.0, 9.0, 1.0)


def make_grid(axis_order: str) -> BEVGrid:
    return BEVGrid((-12.0, 12.0, 2.0), (-9.0, 9.0, 2.0), axis_order=axis_order)


def make_pass(cams: int = 3, batch: int = 2, copies: int = 2, size: tuple = (64, 96), axis_order: str = 'xy') -> tuple:
    """A pass of random tensors; maps in 'yx' are those in 'xy', transposed."""
    generator = torch.Generator().manual_seed(3)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    target, predictions = rand(batch, 5, 12, 9), [rand(batch, 5, 12, 9) for _ in range(copies)]
    if axis_order == 'yx':
        target, predictions = target.transpose(2, 3), [p.transpose(2, 3) for p in predictions]
    masks = torch.ones(copies, size[0] // 32, size[1] // 32)
    for index in range(masks[0].numel()):
        masks[index % copies].view(-1)[index] = 0
    depth = tuple(rand(batch * cams, BINS.count, size[0] // 16, size[1] // 16).softmax(1) for _ in range(copies))
    zero = torch.zeros(())
    labels = torch.randint(-1, BINS.count, (batch, cams, size[0] // 16, size[1] // 16), generator=generator)
    output = PretrainOutput(zero, zero, tuple(predictions), target, (), depth, masks, (zero,) * copies, labels)
    eye = torch.eye(4).expand(batch, cams, 4, 4)
    rig = CameraRig.create(eye[..., :3, :3], eye, eye, names=[f'CAM_{i}' for i in range(cams)])
    return output, rand(batch, cams, 3, *size), rig, PanelConfig(BINS, 16, make_grid(axis_order), width=600)


@pytest.mark.parametrize('axis_order', ['xy', 'yx'])
def test_front_left_is_at_the_top_left(axis_order: str) -> None:
    grid = make_grid(axis_order)
    bev = np.zeros(grid.shape, np.uint8)
    ix, iy = grid.num_x - 1, grid.num_y - 2  # far ahead, and one cell right of the leftmost
    bev[(ix, iy) if axis_order == 'xy' else (iy, ix)] = 1
    view = bev_to_view(bev, axis_order)
    assert view.shape == (grid.num_x, grid.num_y)
    assert np.argwhere(view).tolist() == [[0, 1]]


def test_both_axis_orders_give_the_same_picture() -> None:
    panels = [reconstruction_panel(*make_pass(axis_order=order)) for order in ('xy', 'yx')]
    assert np.array_equal(*panels)
    output, images, rig, _ = make_pass(axis_order='xy')
    mislabelled = PanelConfig(BINS, 16, make_grid('yx'), width=600)
    assert not np.array_equal(panels[0], reconstruction_panel(output, images, rig, mislabelled))


def test_unknown_axis_order_is_refused() -> None:
    with pytest.raises(ValueError, match="'zx'"):
        bev_to_view(np.zeros((2, 2)), 'zx')


def test_denormalise_inverts_the_normalisation() -> None:
    pixels = torch.randint(0, 256, (2, 3, 5, 7)).float()
    mean, std = (10.0, 120.0, 30.0), (50.0, 3.0, 70.0)
    images = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert np.array_equal(denormalise(images, mean, std), pixels.permute(0, 2, 3, 1).byte().numpy())


def test_hidden_cells_are_grey_and_kept_ones_untouched() -> None:
    pixels = np.random.default_rng(0).integers(0, 100, (2, 64, 96, 3), dtype=np.uint8)
    mask = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    shown = hide_cells(pixels, mask)
    for row in range(2):
        for col in range(3):
            cell = np.s_[:, row * 32 : row * 32 + 32, col * 32 : col * 32 + 32]
            expected = np.full_like(pixels[cell], HIDDEN_GREY) if mask[row, col] else pixels[cell]
            assert np.array_equal(shown[cell], expected)


def test_a_certain_prediction_and_its_label_have_the_same_colour() -> None:
    depth_map = torch.zeros(1, 32, 16)
    depth_map[0, 3, 5] = 4.2  # bin 3: 4 to 5 m
    depth_map[0, 4, 5] = 7.0  # farther in the same cell: the nearest counts
    probabilities = torch.zeros(1, BINS.count, 2, 1)
    probabilities[:, 3] = 1
    predicted, labels = expected_depth(probabilities, BINS), label_depth(depth_labels(depth_map, BINS, 16), BINS)
    assert predicted[0, 0, 0] == labels[0, 0, 0] == 4.5
    assert np.isnan(labels[0, 1, 0])
    colours, measured = colour_depth(predicted[0], BINS), colour_depth(labels[0], BINS)
    assert np.array_equal(colours[0, 0], measured[0, 0])
    assert (measured[1, 0] == NO_DEPTH_GREY).all()
    near, far = colour_depth(np.array([[1.5, 8.5]]), BINS)[0].astype(int)
    assert near[2] > near[0]
    assert far[0] > far[2]


def test_expected_depth_is_the_mean_of_the_bins() -> None:
    probabilities = torch.rand(2, BINS.count, 3, 4).softmax(1)
    slow = sum(probabilities[:, i] * (1.5 + i) for i in range(BINS.count))
    assert np.allclose(expected_depth(probabilities, BINS), slow.numpy(), atol=1e-5)


def test_colour_basis_finds_planted_directions_in_order_and_sign() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0][:, :3]
    scores = torch.randn(400, 3, generator=generator) * torch.tensor([9.0, 3.0, 1.0])
    cells = scores @ axes.T + 0.01 * torch.randn(400, 6, generator=generator) + 5
    target = cells.T.reshape(6, 20, 20)
    found = colour_basis(target).axes.float()
    assert torch.allclose((found * axes).sum(0).abs(), torch.ones(3), atol=0.02)
    assert (found.gather(0, found.abs().argmax(0, keepdim=True)) > 0).all()
    again = colour_basis(target.clone())
    assert torch.equal(again.axes, colour_basis(target).axes)


def test_an_equal_reconstruction_looks_like_the_target_and_has_no_error() -> None:
    target = torch.randn(7, 9, 6)
    basis = colour_basis(target)
    assert np.array_equal(colour_components(target, basis), colour_components(target.clone(), basis))
    assert not np.array_equal(colour_components(target, basis), colour_components(target.flip(1), basis))
    black = colour_error([target, target], target)[0]
    assert len(np.unique(black.reshape(-1, 3), axis=0)) == 1
    one_cell_off = target.clone()
    one_cell_off[:, 4, 2] += 10
    bright = colour_error([target, one_cell_off], target)[0].astype(int).sum(-1)
    assert np.unravel_index(bright.argmax(), bright.shape) == (4, 2)
    assert (bright == bright.max()).sum() == 1


@pytest.mark.parametrize('channels', [1, 2])
def test_few_channels_leave_the_other_colours_constant(channels: int) -> None:
    picture = colour_components(*(lambda t: (t, colour_basis(t)))(torch.randn(channels, 8, 8)))
    assert len(np.unique(picture[..., 0])) > 10
    assert len(np.unique(picture[..., channels:])) == 1


def test_an_object_in_a_flat_target_stays_visible() -> None:
    target = torch.zeros(4, 30, 30)
    target[:, 7, 9] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    picture = colour_components(target, colour_basis(target)).astype(int)
    differs = np.abs(picture - picture[0, 0]).sum(-1) > 0
    assert np.argwhere(differs).tolist() == [[7, 9]]


@pytest.mark.parametrize(
    ('cams', 'copies', 'size'), [(1, 2, (64, 96)), (6, 2, (32, 64)), (7, 3, (64, 96)), (5, 2, (416, 704))]
)
def test_any_rig_gives_a_panel_of_the_width(cams: int, copies: int, size: tuple) -> None:
    output, images, rig, config = make_pass(cams, 2, copies, size)
    panel = reconstruction_panel(output, images, rig, config, sample=1)
    assert panel.dtype == np.uint8
    assert panel.shape[1:] == (600, 3)
    assert panel.std() > 20
    assert not np.array_equal(panel, reconstruction_panel(output, images, rig, config, sample=0))


def test_each_camera_and_copy_reaches_the_panel() -> None:
    output, images, rig, config = make_pass(cams=7, copies=3)
    before = reconstruction_panel(output, images, rig, config)
    for cam in range(7):
        changed = images.clone()
        changed[0, cam] += 2
        assert not np.array_equal(before, reconstruction_panel(output, changed, rig, config))
    for copy in range(3):
        output.predictions[copy][0] += 1
        after = reconstruction_panel(output, images, rig, config)
        assert not np.array_equal(before, after)
        before = after


def test_inputs_are_left_alone_and_nan_does_not_stop_the_picture() -> None:
    output, images, rig, config = make_pass()
    output.predictions[0][0, 2, 3, 3] = float('nan')
    output.depth[0][0, :, 1, 1] = float('nan')
    images[0, 0, 0, 0, 0] = float('inf')
    copies = [t.clone() for t in (images, output.depth_labels, output.target, output.predictions[0], output.depth[0])]
    reconstruction_panel(output, images, rig, config)
    for value, copy in zip(
        (images, output.depth_labels, output.target, output.predictions[0], output.depth[0]), copies
    ):
        assert torch.equal(value.nan_to_num(), copy.nan_to_num())


def test_a_sample_outside_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match='sample 2 is not in a batch of 2'):
        reconstruction_panel(*make_pass(), sample=2)
