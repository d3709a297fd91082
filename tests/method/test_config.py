"""Records from nested dictionaries: defaults, changes, and refusals that name the place."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from geomim import GeoMIMConfig
from geomim.method.config import config_from_dict


def test_an_empty_dictionary_is_the_paper() -> None:
    assert config_from_dict({}) == GeoMIMConfig()


def test_every_entry_arrives() -> None:
    config = config_from_dict(
        {
            'encoder': {'size': 'tiny', 'window_size': [7, 7, 7, 7], 'drop_path_rate': 0.1},
            'decoder': {'dim': 64, 'num_heads': 4, 'depth': 4, 'cross_view_after': [2], 'geometry_from': 2},
            'view_transform': {
                'image_size': [64, 160],
                'x_bound': [-30, 30, 1],
                'y_bound': (-20, 20, 1),
                'axis_order': 'yx',
                'depth_bound': [2.0, 30.0, 1.0],
                'channels': 16,
            },
            'target': {'channels': 32, 'patch_size': 5},
            'copies': 4,
            'depth_loss_weight': 0.5,
            'activation_checkpointing': True,
        }
    )
    assert (config.encoder.embed_dims, config.encoder.window_size) == (96, (7, 7, 7, 7))
    assert config.encoder.drop_path_rate == 0.1
    assert (config.decoder.dim, config.decoder.cross_view_after, config.decoder.geometry_depth) == (64, (2,), 2)
    view = config.view_transform
    assert view.image_size == (64, 160)
    assert view.grid.shape == (40, 60)
    assert view.output_grid.shape == (20, 30)
    assert view.depth_bins.count == 28
    assert view.channels == 16
    assert (config.target.channels, config.target.patch_size, config.target.eps) == (32, 5, 1e-6)
    assert (config.copies, config.depth_loss_weight, config.activation_checkpointing) == (4, 0.5, True)
    hash(config)  # a frozen record of tuples, whatever the lists were


def test_what_a_checkpoint_leaves_out_starts_as_published() -> None:
    given: Dict[str, Any] = {'linear_init': 'xavier'}
    assert config_from_dict({}, with_weights=True).linear_init == 'torch'
    assert config_from_dict({}).linear_init == config_from_dict(given, with_weights=True).linear_init == 'xavier'
    with pytest.raises(ValueError, match="linear_init must be 'xavier' or 'torch', got 'zeros'"):
        config_from_dict({'linear_init': 'zeros'})


def test_the_given_dictionary_is_not_changed() -> None:
    entries: Dict[str, Any] = {'encoder': {'size': 'large'}, 'view_transform': {'x_bound': [-54, 54, 0.6]}}
    config_from_dict(entries)
    assert entries == {'encoder': {'size': 'large'}, 'view_transform': {'x_bound': [-54, 54, 0.6]}}


@pytest.mark.parametrize(
    'entries, message',
    [
        ({'encodr': {}}, r'student: unknown entries encodr; known are encoder'),
        ({'encoder': {'size': 'huge'}}, r"student.encoder: size 'huge' is unknown; known are tiny, base, large"),
        ({'encoder': {'shift': 2}}, r'student.encoder: unknown entries shift'),
        ({'decoder': {'heads': 2}}, r'student.decoder: unknown entries heads; known are dim, num_heads'),
        ({'view_transform': {'x_bound': [0, 1]}}, r'student.view_transform.x_bound must be \(lower, upper, step\)'),
        ({'view_transform': {'depth_bound': 3}}, r'student.view_transform.depth_bound must be .* got 3'),
        ({'view_transform': {'xbound': [0, 1, 1]}}, r'student.view_transform: unknown entries xbound'),
        ({'view_transform': {'axis_order': 'zy'}}, "got 'zy'"),
        ({'target': {'patch': 3}}, r'student.target: unknown entries patch'),
        ({'copies': 1}, 'copies must be at least 2'),
        ({'copies': 2.5}, r'student\.copies must be a whole number, got 2\.5'),
        ({'copies': None}, r'student\.copies must be'),
        ({'decoder': {'cross_view_after': [2, 5.5]}}, r'student\.decoder\.cross_view_after must be a whole number'),
        ({'encoder': {'size': 'tiny', 'embed_dims': '96'}}, r"student\.encoder\.embed_dims must be .* got '96'"),
        ({'encoder': {'drop_path_rate': float('nan')}}, r'student\.encoder\.drop_path_rate must be a finite number'),
        ({'depth_loss_weight': float('nan')}, r'student\.depth_loss_weight must be a finite number, got nan'),
        ({'depth_loss_weight': -0.01}, r'depth_loss_weight must be a finite number of at least 0, got -0\.01'),
    ],
)
def test_wrong_entries_are_named_with_their_place(entries: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_dict(entries)
