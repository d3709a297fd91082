"""nuScenes' scores at shorter ranges: the devkit's own, of the boxes that are within them and of no other."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, List, Tuple

import pytest

pytest.importorskip('mmdet3d')

from mmdet3d.evaluation.metrics import NuScenesMetric
from mmengine.fileio import dump
from mmengine.registry import METRICS
from nuscenes import NuScenes
from nuscenes.eval.common.loaders import add_center_dist, load_gt
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionConfig
from nuscenes.eval.detection.evaluate import DetectionEval

import geomim.mmdet3d  # noqa: F401
from geomim.mmdet3d.nuscenes_metric import OFFICIAL, evaluate_within

PREFIX = 'pred_instances_3d_NuScenes'
CONFIG = config_factory('detection_cvpr_2019')
CLASSES = list(CONFIG.class_range)
Results = Dict[str, List[Dict[str, Any]]]


@pytest.fixture(scope='module')
def tables(small_world: Path) -> NuScenes:
    return NuScenes('v1.0-trainval', str(small_world), verbose=False)


def guesses(tables: NuScenes, seed: int) -> Tuple[Results, Dict[int, float]]:
    """Of every annotation a box somewhere near, and as many of any class anywhere; by its identity, each one's distance, metres."""
    draw = random.Random(seed)
    truth = add_center_dist(tables, load_gt(tables, 'val', DetectionBox))
    found: Results = {}
    distances = {}
    for token in truth.sample_tokens:
        found[token] = []
        for box in truth[token]:
            ego = [box.translation[axis] - box.ego_translation[axis] for axis in range(3)]
            near = [value + draw.gauss(0, 0.7) for value in box.translation]
            angle, radius = draw.uniform(0, 2 * math.pi), draw.uniform(2, 60)
            anywhere = [ego[0] + radius * math.cos(angle), ego[1] + radius * math.sin(angle), box.translation[2]]
            for place, name in ((near, box.detection_name), (anywhere, draw.choice(CLASSES))):
                row = {**box.serialize(), 'translation': place, 'detection_name': name}
                row.update(detection_score=draw.random(), attribute_name='', velocity=[0.0, 0.0])
                found[token].append({key: row[key] for key in row if key not in ('num_pts', 'ego_translation')})
                distances[id(found[token][-1])] = math.hypot(place[0] - ego[0], place[1] - ego[1])
    return found, distances


def write(found: Results, folder: Path) -> str:
    path = folder / 'results_nusc.json'
    folder.mkdir(parents=True, exist_ok=True)
    dump({'meta': {'use_camera': True}, 'results': found}, path)
    return str(path)


def plain(summary: Any) -> str:
    """What a summary says of the boxes, without clock and settings; as text, for some of the devkit's values are no numbers."""
    keys = ('label_aps', 'mean_ap', 'label_tp_errors', 'tp_errors', 'nd_score')
    return json.dumps({key: summary[key] for key in keys}, sort_keys=True)


def scores_of(kind: Any, world: Path, results: str, **options: Any) -> Dict[str, float]:
    metric = kind(str(world), str(world / 'nuscenes_infos_val.pkl'), **options)
    metric.version = 'v1.0-trainval'
    return metric._evaluate_single(results, CLASSES)


def test_official_scores_are_mmdet3ds_and_those_within_a_larger_range_are_the_same(
    tables: NuScenes, small_world: Path, tmp_path: Path
) -> None:
    results = write(guesses(tables, 0)[0], tmp_path)
    official = scores_of(NuScenesMetric, small_world, results)
    assert 0.1 < official[f'{PREFIX}/mAP'] < 0.9
    kind = METRICS.get('GeoMIMNuScenesMetric')
    assert scores_of(kind, small_world, results) == pytest.approx(official, abs=0, nan_ok=True)
    found = scores_of(kind, small_world, results, within=(50, 99.5))
    assert {key: found[key] for key in official} == pytest.approx(official, abs=0, nan_ok=True)
    for place in ('within_50m', 'within_99.5m'):
        names = [f'{name}_AP_dist_{distance}' for name in CLASSES for distance in CONFIG.dist_ths]
        for name in ('mAP', 'NDS', *names):
            assert found.pop(f'{PREFIX}/{place}/{name}') == official[f'{PREFIX}/{name}']
    assert found.keys() == official.keys()


@pytest.mark.parametrize('seed', [1, 2, 3])
def test_shorter_ranges_are_as_if_the_devkit_had_been_given_them(tables: NuScenes, seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    within = (12.0, 30.0, draw.uniform(5, 60))
    results = write(guesses(tables, seed)[0], tmp_path)
    found = evaluate_within(tables, results, within, CONFIG, str(tmp_path))
    assert list(found) == [OFFICIAL, 'within_12m', 'within_30m', f'within_{within[2]:g}m']
    for metres, summary in zip((1e3, *within), found.values()):
        ranges = {name: min(limit, metres) for name, limit in CONFIG.class_range.items()}
        config = DetectionConfig.deserialize({**CONFIG.serialize(), 'class_range': ranges})
        alone = DetectionEval(tables, config, results, 'val', str(tmp_path), verbose=False)
        assert plain(summary) == plain(alone.evaluate()[0].serialize())
    assert config_factory('detection_cvpr_2019') == CONFIG, 'the official ranges stay'


@pytest.mark.parametrize('seed', [4, 5])
def test_a_box_beyond_a_range_does_not_count_in_it(tables: NuScenes, seed: int, tmp_path: Path) -> None:
    found, distances = guesses(tables, seed)
    near = {token: [box for box in boxes if distances[id(box)] < 20] for token, boxes in found.items()}
    assert 0 < sum(map(len, near.values())) < sum(map(len, found.values()))
    every, some = (
        evaluate_within(tables, write(boxes, tmp_path / name), (20,), CONFIG, str(tmp_path))
        for name, boxes in (('every', found), ('some', near))
    )
    assert plain(every['within_20m']) == plain(some['within_20m'])
    assert every[OFFICIAL]['mean_ap'] > some[OFFICIAL]['mean_ap']


def test_a_range_without_a_box_scores_0(tables: NuScenes, small_world: Path, tmp_path: Path) -> None:
    found, distances = guesses(tables, 6)
    far = {token: [box for box in boxes if distances[id(box)] > 15] for token, boxes in found.items()}
    summaries = evaluate_within(tables, write(far, tmp_path / 'far'), (12,), CONFIG, str(tmp_path))
    assert summaries['within_12m']['mean_ap'] == 0 < summaries[OFFICIAL]['mean_ap']
    none = write({token: [] for token in found}, tmp_path / 'none')
    kind = METRICS.get('GeoMIMNuScenesMetric')
    scores = scores_of(kind, small_world, none, within=(12, 30))
    places = ('', 'within_12m/', 'within_30m/')
    assert scores == {f'{PREFIX}/{place}{score}': 0.0 for place in places for score in ('mAP', 'NDS')}
    with pytest.raises(ValueError, match='no box in any sample'):
        evaluate_within(tables, none, (12,), CONFIG, str(tmp_path))


@pytest.mark.parametrize('within', [(0,), (12, -3), (float('nan'),), (float('inf'),)])
def test_a_range_is_a_positive_number(within: Tuple[float, ...], small_world: Path) -> None:
    with pytest.raises(ValueError, match=r'within: ranges are metres above 0, such as \(12, 20, 30\)'):
        METRICS.get('GeoMIMNuScenesMetric')(str(small_world), 'a.pkl', within=within)


def test_a_file_of_results_is_scored_by_a_script(
    load_script: Callable[[str], ModuleType], tables: NuScenes, small_world: Path, tmp_path: Path
) -> None:
    script = load_script('experiments/evaluate_detections.py')
    found = guesses(tables, 7)[0]
    results = write(found, tmp_path)
    scores = script.evaluate(Path(results), small_world, 'v1.0-trainval', (20,))
    summaries = evaluate_within(tables, results, (20,), CONFIG, str(tmp_path / 'other'))
    for name, summary in zip(('official', 'within_20m'), summaries.values()):
        assert (scores[name]['mAP'], scores[name]['NDS']) == (summary['mean_ap'], summary['nd_score'])
        assert scores[name]['AP_by_distance']['car']['2.0'] == summary['label_aps']['car'][2.0]
    assert f'| mAP | {scores["official"]["mAP"]:.4f} | {scores["within_20m"]["mAP"]:.4f} |' in script.table(scores)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['other', 'results_nusc.json'], 'nothing beside the file'
    found.popitem()
    with pytest.raises(ValueError, match='needs every sample of the validation split'):
        script.evaluate(Path(write(found, tmp_path)), small_world, 'v1.0-trainval', (20,))
    for text in ('{"results": ', '{"meta": {}}'):
        (tmp_path / 'cut.json').write_text(text)
        with pytest.raises(ValueError, match=r'cut\.json is no results file'):
            script.evaluate(tmp_path / 'cut.json', small_world, 'v1.0-trainval', (20,))
