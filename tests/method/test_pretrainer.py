"""The whole step: any number of cameras, samples and copies; symmetries; precision; memory option; refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from geomim import (
    BEVGrid,
    CameraRig,
    GeoMIM,
    GeoMIMConfig,
    SwinConfig,
    ViewTransformConfig,
)
from geomim.method.depth import depth_labels, depth_loss
from geomim.method.masking import complementary_masks
from geomim.method.target import normalise_patches

from ..helpers import HALVES, assert_near_float32

Make = Callable[..., Any]
TORCH = tuple(int(part) for part in torch.__version__.split('+')[0].split('.')[:2])


def total(output: Any) -> Tensor:
    return output.reconstruction_loss + output.depth_loss


@pytest.mark.parametrize('cams', [1, 5, 6])
@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('copies', [2, 3, 4])
def test_any_number_of_cameras_samples_and_copies(
    make_rig: Make, make_config: Make, make_inputs: Make, make_model: Make, cams: int, batch: int, copies: int
) -> None:
    config = make_config(copies=copies)
    model, rig = make_model(config), make_rig(batch, cams, augmented=True)
    inputs = make_inputs(config, rig, copies)
    output = model(**inputs)
    view, images = config.view_transform, batch * cams
    assert len(output.predictions) == len(output.bev) == len(output.depth) == len(output.depth_losses) == copies
    assert tuple(output.masks.shape) == (copies, 2, 3)
    for prediction, bev, depth in zip(output.predictions, output.bev, output.depth):
        assert tuple(prediction.shape) == (batch, 5, 8, 6)
        assert tuple(bev.shape) == (batch, 6, 8, 6)
        assert tuple(depth.shape) == (images, 12, *view.feature_size)
    # the losses follow from the maps, copy by copy
    target = normalise_patches(inputs['target_bev'], 2)
    labels = depth_labels(inputs['depth_map'], view.depth_bins, 16).flatten(0, 1)
    reconstruction = sum(F.mse_loss(prediction, target) for prediction in output.predictions) / copies
    depth_part = sum(0.01 * depth_loss(depth, labels) for depth in output.depth) / copies
    torch.testing.assert_close(output.reconstruction_loss, reconstruction)
    torch.testing.assert_close(output.depth_loss, depth_part)
    assert float(depth_part.detach()) > 0
    gradients = torch.autograd.grad(total(output), list(model.parameters()), allow_unused=True)
    unused = [name for (name, _), g in zip(model.named_parameters(), gradients) if g is None]
    assert unused == []
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_samples_do_not_see_each_other_in_evaluation(
    make_rig: Make, make_config: Make, make_inputs: Make, make_model: Make
) -> None:
    config = make_config()
    model, rig = make_model(config), make_rig(2, 3, augmented=True)
    inputs = make_inputs(config, rig)
    together = model(**inputs)
    for b in range(2):
        matrices = {
            name: getattr(rig, name)[b : b + 1] for name in ('intrinsics', 'cam2ego', 'cam2bev', 'img_aug', 'bev_aug')
        }
        alone = model(
            inputs['images'][b : b + 1],
            CameraRig(**matrices),
            inputs['target_bev'][b : b + 1],
            inputs['depth_map'][b : b + 1],
            inputs['masks'],
        )
        for all_samples, one in zip(together.predictions, alone.predictions):
            torch.testing.assert_close(all_samples[b : b + 1], one)


def gradients_of(loss: Tensor, model: GeoMIM) -> List[Optional[Tensor]]:
    # torch.autograd.grad does not know the re-entrant checkpoints of torch < 2.0
    model.zero_grad()
    loss.backward()
    return [value.grad.clone() if value.grad is not None else None for value in model.parameters()]


@pytest.mark.parametrize('training, drop_path', [(False, 0.0), (True, 0.0), (True, 0.5)])
def test_recomputation_gives_the_same_losses_and_gradients(
    make_rig: Make, make_config: Make, make_inputs: Make, make_model: Make, training: bool, drop_path: float
) -> None:
    """With random paths too, which are drawn again as they were."""
    results, rig = [], make_rig(1, 3, augmented=True)
    for recompute in (False, True):
        base = make_config(activation_checkpointing=recompute)
        config = replace(base, encoder=replace(base.encoder, drop_path_rate=drop_path))
        model = make_model(config).train(training)
        torch.manual_seed(11)
        loss = total(model(**make_inputs(config, rig)))
        results.append((loss, gradients_of(loss, model)))
    torch.testing.assert_close(results[0][0], results[1][0])
    for plain, recomputed in zip(results[0][1], results[1][1]):
        assert (plain is None) == (recomputed is None)
        if plain is not None:
            torch.testing.assert_close(recomputed, plain)


@pytest.mark.skipif(
    TORCH < (2, 0), reason=f'torch {torch.__version__}: bfloat16 on a CPU lacks operations before torch 2.0'
)
@pytest.mark.parametrize('recompute', [False, True])
@pytest.mark.parametrize('dtype', HALVES)
def test_mixed_precision_is_finite_and_near_float32(
    make_rig: Make, make_config: Make, make_inputs: Make, make_model: Make, dtype: torch.dtype, recompute: bool
) -> None:
    config, rig = make_config(activation_checkpointing=recompute), make_rig(1, 3, augmented=True)
    # batch statistics of so small a model blow rounding up: compare in evaluation, look for finite values in training
    model, inputs = make_model(config), make_inputs(config, rig)

    def losses() -> Dict[str, Tensor]:
        output = model(**inputs)
        assert all(depth.dtype == torch.float32 for depth in output.depth)
        return {'reconstruction': output.reconstruction_loss, 'depth': output.depth_loss}

    assert_near_float32(losses, model, dtype)
    with torch.autocast('cpu', dtype):
        trained = total(model.train()(**inputs))
    assert bool(torch.isfinite(trained))
    assert all(bool(torch.isfinite(g).all()) for g in torch.autograd.grad(trained, list(model.parameters())))


@pytest.mark.parametrize(
    'image_size, windows, grid',
    [
        ((32, 64), (16, 16, 16, 8), BEVGrid((-6.0, 6.0, 1.5), (-6.0, 6.0, 1.5))),
        ((96, 96), (7, 7, 14, 7), BEVGrid((0.0, 12.0, 1.0), (-3.0, 3.0, 0.5), axis_order='yx')),
        ((128, 32), (5, 2, 3, 1), BEVGrid((-3.0, 9.0, 1.5), (-15.0, 3.0, 1.5))),
    ],
)
def test_other_windows_image_sizes_and_grids(
    make_rig: Make,
    make_config: Make,
    make_inputs: Make,
    make_model: Make,
    image_size: Tuple[int, int],
    windows: Tuple[int, ...],
    grid: BEVGrid,
) -> None:
    base = make_config()
    config = replace(
        base,
        encoder=replace(base.encoder, window_size=windows),
        view_transform=replace(base.view_transform, image_size=image_size, grid=grid),
    )
    rig = make_rig(1, 2, image_size=image_size)
    model = make_model(config).train()
    output = model(**make_inputs(config, rig))
    total(output).backward()
    assert tuple(output.predictions[0].shape[2:]) == grid.downsampled(2).shape
    for name, value in model.named_parameters():
        assert bool(torch.isfinite(value.grad).all()), name


def test_masks_are_drawn_when_not_given(make_rig: Make, make_config: Make, make_inputs: Make, make_model: Make) -> None:
    config, rig = make_config(copies=3), make_rig(1, 2)
    model, inputs = make_model(config), make_inputs(make_config(), rig)
    inputs['masks'] = None
    masks = [model(**inputs).masks for _ in range(4)]
    assert all(tuple(mask.shape) == (3, 2, 3) for mask in masks)
    assert any(not torch.equal(mask, masks[0]) for mask in masks[1:])
    generator = torch.Generator().manual_seed(4)
    expected = complementary_masks((64, 96), 3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(model.draw_masks(torch.device('cpu'), generator), expected)


def test_no_argument_is_changed(make_rig: Make, make_config: Make, make_inputs: Make, make_model: Make) -> None:
    config, rig = make_config(), make_rig(1, 3, augmented=True)
    inputs = make_inputs(config, rig)
    before = {name: value.clone() for name, value in inputs.items() if isinstance(value, Tensor)}
    matrices = {name: getattr(rig, name).clone() for name in ('intrinsics', 'cam2ego', 'cam2bev', 'img_aug', 'bev_aug')}
    total(make_model(config).train()(**inputs)).backward()
    assert all(torch.equal(inputs[name], value) for name, value in before.items())
    assert all(torch.equal(getattr(rig, name), value) for name, value in matrices.items())


def test_nothing_is_kept_between_calls(make_rig: Make, make_config: Make, make_inputs: Make, make_model: Make) -> None:
    config = make_config()
    model = make_model(config)
    inputs = make_inputs(config, make_rig(1, 3))
    first = model(**inputs)
    model(**make_inputs(config, make_rig(2, 5, augmented=True), seed=9))
    second = model(**inputs)
    assert torch.equal(first.reconstruction_loss, second.reconstruction_loss)
    assert torch.equal(first.depth_loss, second.depth_loss)


def test_without_depth_the_depth_loss_is_zero(
    make_rig: Make, make_config: Make, make_inputs: Make, make_model: Make
) -> None:
    config, rig = make_config(), make_rig(1, 2)
    inputs = make_inputs(config, rig)
    inputs['depth_map'] = torch.zeros_like(inputs['depth_map'])
    output = make_model(config).train()(**inputs)
    assert float(output.depth_loss.detach()) == 0
    total(output).backward()


def test_a_few_steps_on_one_sample_reduce_both_losses(make_rig: Make, make_config: Make, make_inputs: Make) -> None:
    config = make_config(depth_loss_weight=0.3)
    model, inputs = GeoMIM(config).train(), make_inputs(config, make_rig(1, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    history = []
    for _ in range(20):
        output = model(**inputs)
        optimizer.zero_grad()
        total(output).backward()
        optimizer.step()
        history.append((float(output.reconstruction_loss.detach()), float(output.depth_loss.detach())))
    assert history[-1][0] < 0.9 * history[0][0]
    assert history[-1][1] < 0.9 * history[0][1]


WRONG: List[Tuple[str, Callable[[Any], Any], str]] = [
    ('images', lambda value: value[:, :2], r'images have shape \(1, 2, 3, 64, 96\), expected \(1, 3, 3, 64, 96\)'),
    ('images', lambda value: value[..., :64], r'images have shape \(1, 3, 3, 64, 64\)'),
    ('images', lambda value: value[:, :, :1], r'images have shape \(1, 3, 1, 64, 96\)'),
    ('images', lambda value: value[0], r'images have shape \(3, 3, 64, 96\)'),
    (
        'depth_map',
        lambda value: value[..., ::2, ::2],
        r'depth maps have shape \(1, 3, 32, 48\), expected \(1, 3, 64, 96\)',
    ),
    ('masks', lambda value: value[0], r'masks must be \(K, h, w\) .* got shape \(2, 3\)'),
    ('masks', lambda value: value[:1], r'K >= 2'),
    ('masks', lambda value: value.transpose(1, 2), r'masks have \(3, 2\) cells, expected \(2, 3\)'),
    ('masks', lambda value: value.repeat_interleave(2, 1), r'masks have \(4, 3\) cells, expected \(2, 3\)'),
    ('target_bev', lambda value: value[:, :3], r'BEV map has shape \(1, 3, 8, 6\), expected \(1, 5, 8, 6\)'),
    (
        'target_bev',
        lambda value: value.transpose(2, 3),
        r'shape \(1, 5, 6, 8\), expected \(1, 5, 8, 6\): x \[-12, 12\] m in 3 m cells',
    ),
    ('target_bev', lambda value: value[..., :5], r'shape \(1, 5, 8, 5\), expected \(1, 5, 8, 6\)'),
    ('target_bev', lambda value: torch.cat([value, value]), r'shape \(2, 5, 8, 6\), expected \(1, 5, 8, 6\)'),
]


@pytest.mark.parametrize('name, change, message', WRONG)
def test_inputs_that_do_not_fit_are_named(
    make_rig: Make,
    make_config: Make,
    make_inputs: Make,
    make_model: Make,
    name: str,
    change: Callable[[Any], Any],
    message: str,
) -> None:
    config = make_config()
    inputs = make_inputs(config, make_rig(1, 3))
    inputs[name] = change(inputs[name])
    with pytest.raises(ValueError, match=message):
        make_model(config)(**inputs)


def test_configurations_that_do_not_fit_are_named(make_config: Make) -> None:
    base = make_config()
    with pytest.raises(ValueError, match=r'must end with \(2, 3\), got \(1, 2\)'):
        replace(base, encoder=replace(base.encoder, out_indices=(1, 2)))
    with pytest.raises(ValueError, match='6 mask cells, fewer than 7 copies'):
        replace(base, copies=7)
    with pytest.raises(ValueError, match='48 x 96 .* no multiple of the 32-pixel mask cell'):
        replace(base, view_transform=replace(base.view_transform, image_size=(48, 96)))


def test_defaults_are_the_papers() -> None:
    config = GeoMIMConfig()
    assert config.encoder == SwinConfig()
    assert config.view_transform == ViewTransformConfig()
    assert config.view_transform.output_grid.shape == (180, 180)
    assert (config.decoder.dim, config.decoder.num_heads, config.decoder.depth) == (512, 16, 8)
    assert (config.copies, config.depth_loss_weight, config.target.patch_size) == (2, 0.01, 18)


def published_start(name: str, value: Tensor, like: Tensor) -> bool:
    """Whether a tensor of linear layers and bias tables is what torch and the published code make of it at the start.

    Args:
        name, value: the tensor.
        like: the layer's weight, for its inputs.
    """
    if name.endswith('relative_position_bias_table'):
        return not value.any()
    if 'cross_view' in name and ('attn.proj' in name or 'mlp.fc2' in name):
        return not value.any()
    limit = like.shape[1] ** -0.5
    spread = float(value.detach().pow(2).mean().sqrt()) / (limit / 3**0.5)
    return bool(value.abs().max() <= limit) and 0.5 < spread < 1.5


@pytest.mark.parametrize('linear_init', ['torch', 'xavier'])
def test_linear_layers_start_as_published_where_a_checkpoint_is_given(make_config: Make, linear_init: str) -> None:
    config = make_config(linear_init=linear_init)
    model = GeoMIM(config).requires_grad_(False)  # torch 1.10 asks no parameter that learns for any()
    tables = {name: value for name, value in model.named_parameters() if name.endswith('position_bias_table')}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    weights = {f'{name}.weight': (layer.weight, layer.weight) for name, layer in layers.items()}
    biases = {f'{name}.bias': (layer.bias, layer.weight) for name, layer in layers.items() if layer.bias is not None}
    ofs = {**weights, **biases, **{name: (value, value) for name, value in tables.items()}}
    assert len(ofs) > 60
    odd = [name for name, (value, like) in ofs.items() if value.numel() >= 8 and not published_start(name, value, like)]
    assert bool(odd) == (linear_init == 'xavier'), odd
    if linear_init == 'xavier':
        assert not any(value.any() for value, _ in biases.values())
    # the rest, drawn as ever: norms at 1 and 0, embeddings, convolutions
    torch.manual_seed(0)
    one = GeoMIM(config).state_dict()
    torch.manual_seed(0)
    other = GeoMIM(replace(config, linear_init='xavier')).state_dict()
    assert [name for name in one if name not in ofs and not torch.equal(one[name], other[name])] == []
