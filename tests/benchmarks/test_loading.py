"""The benchmark of loading: every step of every pipeline has a share, and files that are read are the bound."""

import json
from pathlib import Path

import pytest

from ..helpers import run_quietly

STEPS = dict(
    pretraining=['LoadCameraRig', 'LoadSurroundImages', 'LoadSurroundSweeps', 'PackGeoMIMInputs'],
    bevdepth4d=['LoadSurroundFrames', 'SurroundFramesAug', 'LoadSurroundPoints', 'PackBEVDetInputs'],
    bevstereo4d=['LoadSurroundFrames', 'SurroundFramesAug', 'LoadSurroundPoints', 'PackBEVDetInputs'],
)
# by hand: six images a moment, the key cloud, and in pretraining the sweeps, which a first keyframe of the world lacks
FILES = dict(bevdepth4d=2 * 6 + 1, bevstereo4d=3 * 6 + 1)


def test_every_step_has_its_share(repository: Path, small_world: Path, tmp_path: Path) -> None:
    """In a folder without BEVDet's info file, too, where the key frame stands in for its past."""
    out = tmp_path / 'out.json'
    script = repository / 'benchmarks' / 'loading.py'
    said = run_quietly([script, '--data', small_world, '--samples', '2', '--json', out]).stdout
    found = json.loads(out.read_text())['pipelines']
    assert sorted(found) == sorted(STEPS)
    for name, row in found.items():
        steps = [step.split('. ')[-1] for step in row['steps_ms']]
        assert steps[0] == 'record'
        assert [step for step in steps if step in STEPS[name]] == STEPS[name]
        assert all(value >= 0 for value in row['steps_ms'].values())
        assert sum(row['steps_ms'].values()) == pytest.approx(row['total_ms'], rel=0.5)
        assert row['files'] == FILES.get(name, row['files'])
        assert row['bound_ms']['reading'] + row['bound_ms']['decoding'] > 0
        assert f'{name} (' in said
