"""Weights are found in every usual nesting; averages are preferred, and what was taken and passed over is told."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
import torch
from torch import Tensor

from geomim.checkpoints.files import Origin, weights_of
from geomim.checkpoints.reading import Checkpoint

RAW: Dict[str, Tensor] = {'a.weight': torch.zeros(2), 'b.module.bias': torch.zeros(1), 'n': torch.tensor(3)}
MEAN: Dict[str, Tensor] = {name: value + 1 for name, value in RAW.items()}


def taken(content: Dict[str, Any]) -> Any:
    weights, origin = weights_of(Checkpoint(content, 'file.pth'))
    assert sorted(weights) == sorted(RAW)
    return ('mean' if float(weights['a.weight'][0]) else 'raw'), origin


def prefixed(prefix: str, state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def averager(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    return {'n_averaged': torch.tensor(9), **prefixed('module.', state)}


AVERAGED = ['state_dict_ema', 'model_ema', 'ema', 'ema_model', 'ema_state_dict', 'model_ema_state_dict', 'swa_model']
WRAPPERS: Dict[str, Callable[[Dict[str, Tensor]], Dict[str, Any]]] = {
    'plain': dict,
    'module.': lambda state: prefixed('module.', state),
    '_orig_mod.': lambda state: prefixed('_orig_mod.', state),
    'module._orig_mod.': lambda state: prefixed('module._orig_mod.', state),
    '_orig_mod.module.': lambda state: prefixed('_orig_mod.module.', state),
    'module.module.': lambda state: prefixed('module.module.', state),
    'averager': averager,
    'compiled averager': lambda state: averager(prefixed('_orig_mod.', state)),
    'averager of a parallel model': lambda state: averager(prefixed('module.', state)),
    'inner entry': lambda state: {'state_dict': prefixed('module.', state), 'decay': 0.999},
    'inner inner entry': lambda state: {'module': {'model': dict(state)}, 'updates': 3},
}


MMENGINES = ('ema_state_dict', 'state_dict', 'module.')  # whose averages are the state_dict: below


@pytest.mark.parametrize(
    ('averaged', 'trained', 'wrapper'),
    [
        layout
        for layout in itertools.product(AVERAGED, ('state_dict', 'model', 'module', 'top level'), WRAPPERS)
        if layout != MMENGINES
    ],
)
def test_averages_are_preferred_in_every_layout(averaged: str, trained: str, wrapper: str) -> None:
    raw = RAW if trained == 'top level' else {trained: RAW}
    which, origin = taken({**raw, averaged: WRAPPERS[wrapper](MEAN), 'epoch': 3})
    assert which == 'mean'
    assert origin.entry.split('.')[0] == averaged
    assert origin.passed_over == (trained,)
    assert f'entry {averaged}' in origin.describe()
    assert f'not taken: {trained}' in origin.describe()


@pytest.mark.parametrize('outer, inner', itertools.product(['state_dict', 'model', 'module'], WRAPPERS))
def test_wrappers_are_removed_in_any_nesting(outer: str, inner: str) -> None:
    which, origin = taken({outer: WRAPPERS[inner](RAW)})
    assert which == 'raw'
    assert origin.entry.startswith(outer)
    for part in ('module.', '_orig_mod.'):
        assert inner.count(part) == origin.prefix.count(part) or 'a' in inner[:1] or ' ' in inner
    assert (f'prefix {origin.prefix} removed' in origin.describe()) == bool(origin.prefix)
    assert ('averaged weights (n_averaged' in origin.describe()) == ('averager' in inner)


def test_compiled_parts_lose_their_wrapper_too() -> None:
    assert taken({'model': {'a._orig_mod.weight': RAW['a.weight'], **{name: RAW[name] for name in list(RAW)[1:]}}})


def test_mmengines_averages_are_its_state_dict() -> None:
    """Its hook swaps them: ``ema_state_dict`` holds the trained weights, to resume with."""
    hook = {'steps': torch.tensor(7), **prefixed('module.', RAW)}
    which, origin = taken({'state_dict': MEAN, 'ema_state_dict': hook, 'meta': {}})
    assert (which, origin.entry, origin.passed_over) == ('mean', 'state_dict', ('ema_state_dict',))
    assert 'averaged weights (ema_state_dict beside them)' in origin.describe()


def test_bevdets_averages_are_told() -> None:
    which, origin = taken({'state_dict': MEAN, 'updates': 12345, 'epoch': 19})
    assert (which, origin.averaged) == ('mean', 'updates beside them')


def test_averages_alone_are_taken() -> None:
    which, origin = taken({'model_ema': MEAN, 'epoch': 1})
    assert (which, origin.entry, origin.passed_over) == ('mean', 'model_ema', ())


@pytest.mark.parametrize('lost', ['a weight', 'a shape', 'all'])
def test_averages_that_cannot_stand_for_all_weights_are_named_and_not_taken(lost: str) -> None:
    mean = dict(MEAN)
    if lost == 'a weight':
        del mean['a.weight']
    elif lost == 'a shape':
        mean['a.weight'] = torch.ones(3)
    which, origin = taken({'model': RAW, 'model_ema': {'decay': 0.9} if lost == 'all' else mean})
    assert (which, origin.entry) == ('raw', 'model')
    assert origin.passed_over == (() if lost == 'all' else ('model_ema',))


def test_counters_need_not_be_averaged() -> None:
    mean = {name: value for name, value in MEAN.items() if value.is_floating_point()}
    weights, origin = weights_of(Checkpoint({'model': RAW, 'model_ema': mean}, 'file.pth'))
    assert (sorted(weights), origin.entry) == (sorted(mean), 'model_ema')


@pytest.mark.parametrize('name', ['emaModel', 'EMAModel', 'modelEMA', 'EMA'])
def test_averages_by_names_of_other_spellings(name: str) -> None:
    assert taken({'model': RAW, name: MEAN})[0] == 'mean'


@pytest.mark.parametrize('inner', ['shadow', 'params', 'state'])
def test_averages_below_a_name_of_their_own(inner: str) -> None:
    which, origin = taken({'model': RAW, 'ema': {'decay': 0.99, inner: MEAN}})
    assert (which, origin.entry, origin.passed_over) == ('mean', f'ema.{inner}', ('model',))


def test_words_that_merely_contain_ema_are_no_averages() -> None:
    which, origin = taken({'model': RAW, 'schema': MEAN, 'remark': MEAN, 'reMAke': MEAN, 'SCHEMA': MEAN})
    assert (which, origin) == ('raw', Origin('model'))


def test_a_file_that_holds_itself_is_named() -> None:
    content: Dict[str, Any] = {}
    content['model'] = content
    with pytest.raises(ValueError, match='file.pth holds no tensors'):
        weights_of(Checkpoint(content, 'file.pth'))


def test_convert_and_inspect_say_what_was_taken(tmp_path: Path, make_config: Any, make_model: Any, capsys: Any) -> None:
    from geomim.__main__ import main
    from geomim.checkpoints.loading import read_checkpoint

    state = dict(make_model(make_config()).state_dict())
    mean = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    source, target = tmp_path / 'both.pth', tmp_path / 'encoder.pth'
    torch.save({'model': state, 'model_ema': prefixed('module.', mean)}, str(source))
    for command in (['inspect', str(source)], ['convert', str(source), str(target), '--to', 'bevdet']):
        assert main(command) == 0
        out = capsys.readouterr().out
        assert (
            'weights: entry model_ema, averaged weights (as the name says), not taken: model, prefix module. removed'
            in out
        )
    name = 'patch_embed.projection.weight'
    assert torch.equal(read_checkpoint(target)['state_dict'][name], mean[f'encoder.{name}'])
