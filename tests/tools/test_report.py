"""The demonstration's page: well-formed, complete and self-contained, also where a run left little or nothing behind."""

from __future__ import annotations

import base64
import importlib
import json
import math
import random
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
import pytest

from geomim import atomic

from ..helpers import oriented_image

ROOT = Path(__file__).resolve().parents[2]
VOID = {'meta', 'link', 'img', 'br'}
PREFIX = 'NuScenes metric/pred_instances_3d_NuScenes/'


def _load(name: str, file: str) -> ModuleType:
    """A module as tools/demo/demo.py imports it. Its folders leave the path again, so that no other test meets its scripts there."""
    tools = ROOT / 'tools' / 'demo'
    folders = [str(tools), str(ROOT / 'experiments')]
    sys.path[:0] = folders
    try:
        module = importlib.import_module(name)
    finally:
        for folder in folders:
            sys.path.remove(folder)
    found = Path(str(module.__file__)).resolve()
    assert found == tools / file, f'another module has the name {name}: {found}'
    return module


report = _load('report', 'report/__init__.py')
run_folders = sys.modules['run_folders']


class Page(HTMLParser):
    """Elements, their attributes and the text of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: List[str] = []
        self.elements: List[Tuple[str, Dict[str, str]]] = []
        self.rows: List[List[str]] = []
        self.strong: List[str] = []
        self.text = ''
        self.feed(text)
        self.close()
        assert self.open == [], f'never closed: {self.open}'

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.elements.append((tag, {name: value or '' for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')

    def handle_startendtag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.elements.append((tag, {name: value or '' for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f'</{tag}> closes nothing'
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if 'style' not in self.open:
            self.text += data
        if self.open and self.open[-1] in ('td', 'th', 'code') and ('td' in self.open or 'th' in self.open):
            self.rows[-1][-1] += data

    def all(self, tag: str, **attributes: str) -> List[Dict[str, str]]:
        wanted = attributes.items()
        return [found for name, found in self.elements if name == tag and wanted <= found.items()]

    def pictures(self) -> List[np.ndarray]:
        """Each (H, W, 3) RGB."""
        data = [base64.b64decode(found['src'].partition(';base64,')[2]) for found in self.all('img')]
        return [cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for one in data]

    def row(self, first: str) -> List[str]:
        return next(row for row in self.rows if row[0] == first)


def page_of(*sections: Any, **story: Any) -> Page:
    text = report.render(report.Story('Demo', sections=sections, **story))
    assert_nothing_external(text)
    return Page(text)


def page_with(*items: Any) -> Page:
    return page_of(report.Section('Part', items=items))


def assert_nothing_external(text: str) -> None:
    assert not re.search(r'https?://|@import|url\(', text)
    for tag, attributes in Page(text).elements:
        assert tag not in ('script', 'iframe', 'object', 'embed')
        for name in {'src', 'href', 'srcset', 'poster', 'data'} & set(attributes):
            assert attributes[name].startswith(('data:', '#')), (tag, attributes)


def log(run: Path, stamp: str, lines: Sequence[Dict[str, Any]], torn: str = '') -> None:
    path = run / stamp / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines) + torn)


def training(step: int, **values: float) -> Dict[str, Any]:
    return {'lr': 1e-3, 'time': 0.5, 'iter': step, 'step': step, **values}


def picture(path: Path, level: int = 0, size: Tuple[int, int] = (4, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), level, np.uint8))
    return path


def metrics_by_class() -> Dict[str, float]:
    values = {PREFIX + 'mAP': 0.5312, PREFIX + 'NDS': 0.4876, PREFIX + 'mATE': 0.314}
    for index, name in enumerate(report.NUSCENES_CLASSES):
        for rank, distance in enumerate(report.AP_DISTANCES):
            values[f'{PREFIX}{name}_AP_dist_{distance}'] = 0.1 * rank + 0.01 * index + 0.005
    return values


def finetuned_runs(folder: Path) -> Dict[str, Any]:
    """Two finetunings, the one from GeoMIM ahead by 0.02 mAP and behind by 0.01 NDS."""
    runs = {}
    for start, lead in ((report.PRETRAINED, 1), (report.SCRATCH, 0)):
        run = folder / f'finetuning-{lead}'
        parts = {'task0.loss_xy': 1.0, 'task0.loss_z': 0.5, 'task1.loss_z': 0.25}
        lines = [training(step, loss=(9 - lead) / step, loss_depth=4.0 + lead, **parts) for step in (10, 20)]
        scores = {PREFIX + 'mAP': 0.1 + 0.02 * lead, PREFIX + 'NDS': 0.15 - 0.01 * lead, PREFIX + 'mATE': 0.9}
        for distance in report.AP_DISTANCES:
            scores[f'{PREFIX}car_AP_dist_{distance}'] = 0.4 + 0.1 * lead
        log(run, '20250101_000000', [*lines, {**scores, 'step': 20}])
        runs[start] = report.Run(run, run_folders.last_scores(run))
    return runs


def student_figures() -> Dict[str, Any]:
    depth = {'0-10 m': [0.9, 3000], '10-20 m': [0.6, 1000], '20-40 m': [0.4, 777], 'all': [0.757, 4777]}
    return {
        'frames': 20,
        'student': {'reconstruction_loss': 0.42, 'depth_within_one_bin': depth},
        'mean_target_loss': 0.7,
        'student_average_map_loss': 0.63,
        'constant_map_loss': 0.84,
        'zero_map_loss': 0.98,
    }


@pytest.fixture
def demonstration(tmp_path: Path) -> Any:
    """A story with every kind of part, from run folders as mmengine leaves them."""
    teacher, student = tmp_path / 'teacher', tmp_path / 'student'
    heatmap = 'task0.loss_heatmap'
    log(teacher, 'a', [training(s, loss=9 / s, loss_bbox=1 / s, **{heatmap: 8 / s}) for s in (1, 2)])
    log(student, 'a', [training(s, loss_reconstruction=1 / s, loss_depth=2 / s) for s in range(1, 200)])
    for step in (60, 120):
        picture(student / 'a' / 'vis_data' / 'vis_image' / f'reconstruction_0_{step}.png', step)
    world = {'scenes': 10, 'keyframes': 100, 'images': 600, 'scans': 910, 'boxes': {'car': 1234, 'bus': 18022}}
    shown = report.Figure(np.zeros((3, 5, 3), np.uint8), 'a keyframe')
    metrics, figures = metrics_by_class(), student_figures()
    return report.Story(
        'Demo',
        'From a world to an encoder.',
        facts=[('Seed', 7), ('Duration', '61 minutes')],
        sections=[
            report.world_section(world, [shown]),
            report.teacher_section(teacher, metrics),
            report.pretraining_section(student, figures),
        ],
        cards=report.headline_cards(metrics, figures, 20),
        command='python tools/demo/demo.py --out "a&b"',
    )


# ---- the page


def test_the_page_is_balanced_and_loads_nothing(demonstration: Any, tmp_path: Path) -> None:
    path = report.write_report(tmp_path / 'new' / 'page.html', demonstration)
    assert path == tmp_path / 'new' / 'page.html'
    text = path.read_text(encoding='utf-8')
    assert_nothing_external(text)
    assert text.startswith('<!DOCTYPE html>')
    page = Page(text)
    assert page.all('meta', name='viewport')
    assert len(page.all('section')) == 3
    targets = {found['id'] for found in page.all('section')}
    assert {found['href'][1:] for found in page.all('a')} == targets


def test_all_numbers_of_the_demonstration_appear(demonstration: Any) -> None:
    page = Page(report.render(demonstration))
    for text in ('61 minutes', '10 scenes', '100 keyframes', '600 camera images', '910 LiDAR', '--out "a&b"'):
        assert text in page.text
    assert page.row('car')[:2] == ['car', '1234']
    assert page.row('bus')[1] == '18\N{NARROW NO-BREAK SPACE}022'
    assert page.row('barrier') == ['barrier', '0.245', '0.095', '0.195', '0.295', '0.395']
    assert page.row('mean (mAP)') == ['mean (mAP)', '0.531', '0.050', '0.150', '0.250', '0.350']
    assert page.row('mATE')[2] == '0.314'
    assert page.row('NDS')[2] == '0.488'
    assert page.row('student')[1] == '0.420'
    assert page.row('mean target') == ['mean target', '0.700', '40.0 %']
    assert page.row('constant map') == ['constant map', '0.840', '50.0 %']
    assert page.row('zero map') == ['zero map', '0.980', '57.1 %']
    assert page.row('20-40 m') == ['20-40 m', '40.0 %', '777']
    assert ['all', '75.7 %', '4777'] in page.rows
    assert 'Iteration 60.' in page.text
    assert 'Iteration 120.' in page.text


def test_cards_weigh_the_ranges_by_their_cells_and_judge_only_against_a_baseline() -> None:
    cards = report.headline_cards(metrics_by_class(), student_figures(), 20)
    assert [(card.value, card.ok) for card in cards] == [('0.53', None), ('40 %', True), ('82 %', None)]
    assert cards[0].detail == 'NDS 0.49 on 20 validation keyframes'
    worse = {**student_figures(), 'mean_target_loss': 0.4}
    assert [(card.value, card.ok) for card in report.headline_cards({}, worse)][0] == ('-5 %', False)
    page = page_of(cards=[report.Card('A', '1', ok=True), report.Card('B', '2', ok=False), report.Card('C', '3')])
    looks = [found['class'] for found in page.all('div') if found['class'].startswith('card ')]
    assert looks == ['card good', 'card bad', 'card neutral']


def test_text_is_escaped_everywhere() -> None:
    evil = '<script>alert("&")</script>'
    points = [(0.0, 1.0), (1.0, 2.0)]
    items = [report.Note(evil), report.Table([evil], [[evil]], evil), report.Figure(Path(evil))]
    items.insert(2, report.Curves(evil, evil, evil, {evil: points}, {evil: 1.5}, caption=evil))
    items.insert(3, report.Figure(np.zeros((2, 2, 3), np.uint8), evil))
    section = report.Section(evil, [evil], items)
    story = report.Story(evil, evil, [(evil, evil)], [section, section], [report.Card(evil, evil, evil)], evil)
    text = report.render(story)
    page = Page(text)
    assert '<script' not in text
    assert page.all('script') == []
    assert page.text.count(evil) >= 20
    assert page.all('img')[0]['alt'] == evil
    assert page.row(evil) == [evil]


def test_backquotes_become_code_after_escaping() -> None:
    assert report.prose('a `<b>` c') == 'a <code>&lt;b&gt;</code> c'


def test_an_interrupted_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = report.write_report(tmp_path / 'page.html', report.Story('old'))
    before = path.read_bytes()

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, 'fsync', interrupted)
    with pytest.raises(KeyboardInterrupt):
        report.write_report(path, report.Story('new'))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_is_no_unicode_does_not_end_the_page(tmp_path: Path) -> None:
    path = report.write_report(tmp_path / 'page.html', report.Story('x', command='demo --out \udcff'))
    assert '\\udcff' in path.read_text(encoding='utf-8')


# ---- pictures


def test_pictures_of_the_world_show_stored_pixels(tmp_path: Path) -> None:
    """Boxes are drawn where the intrinsics have them, whatever orientation an image's metadata tell viewers."""
    pytest.importorskip('mmdet3d')
    pictures = _load('pictures', 'pictures.py')
    image = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    still = {'translation': [0.0, 0.0, 0.0], 'rotation': [1.0, 0.0, 0.0, 0.0]}
    drawn = []
    for orientation in (1, 6):
        path = tmp_path / f'{orientation}.jpg'
        path.write_bytes(oriented_image(image, orientation))
        tables = SimpleNamespace(
            get=lambda table, token: {'ego_pose_token': '', 'calibrated_sensor_token': ''} if token else still,
            get_sample_data=lambda token, path=path: (str(path), [], np.eye(3)),
        )
        drawn.append(pictures.cameras(tables, {'data': {'LIDAR_TOP': 'lidar', 'CAM_FRONT': 'camera'}}, []))
    np.testing.assert_array_equal(*drawn)


def test_pictures_come_back_from_the_page_pixel_by_pixel(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (7, 11, 3), np.uint8)
    file = tmp_path / 'file.png'
    cv2.imwrite(str(file), array[::-1, :, ::-1])
    photo = tmp_path / 'photo.jpg'
    cv2.imwrite(str(photo), array)
    page = page_with(report.Figure(array), report.Figure(file), report.Figure(photo))
    decoded = page.pictures()
    np.testing.assert_array_equal(decoded[0], array)
    np.testing.assert_array_equal(decoded[1], array[::-1])
    sources = page.all('img')
    assert sources[0]['src'].startswith('data:image/png;base64,')
    assert base64.b64decode(sources[2]['src'].partition('data:image/jpeg;base64,')[2]) == photo.read_bytes()
    assert (sources[0]['width'], sources[0]['height']) == ('11', '7')


def test_a_picture_that_cannot_be_read_is_named_in_its_place(tmp_path: Path) -> None:
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'\x89PNG and no more')
    (tmp_path / 'other.png').write_text('text')
    page = page_with(*(report.Figure(tmp_path / name) for name in ('absent.png', 'broken.png', 'other.png')))
    assert page.all('img') == []
    for name in ('absent.png', 'broken.png', 'other.png'):
        assert str(tmp_path / name) in page.text


@pytest.mark.parametrize(('shape', 'kind'), [((2, 2, 3), 'f4'), ((2, 2), 'u1'), ((2, 2, 4), 'u1'), ((0, 2, 3), 'u1')])
def test_an_array_that_is_no_picture_is_refused(shape: Tuple[int, ...], kind: str, tmp_path: Path) -> None:
    array = np.zeros(shape, kind)
    path = report.write_report(tmp_path / 'page.html', report.Story('old'))
    section = report.Section('Part', items=[report.Figure(array)])
    with pytest.raises(ValueError, match=re.escape(f'{array.dtype} of shape {array.shape}')):
        report.write_report(path, report.Story('new', sections=[section]))
    assert 'old' in path.read_text()


# ---- tables


def test_table_cells_alignment_and_emphasis() -> None:
    rows = [['a', 1, 0.5, '12.0 %'], ['b', 123456, math.nan, None], ['c', -3, 1.25e-7, '']]
    page = page_with(report.Table('wxyz', rows, 'Below', 2, -1))
    assert page.rows == [
        ['w', 'x', 'y', 'z'],
        ['a', '1', '0.500', '12.0 %'],
        ['b', '123\N{NARROW NO-BREAK SPACE}456', '\N{EN DASH}', '\N{EN DASH}'],
        ['c', '-3', '1.25e-07', '\N{EN DASH}'],
    ]
    cells = [found.get('class', '') for found in page.all('td')]
    assert cells == ['', 'right', 'right strong', 'right'] * 3
    assert [found.get('class') for found in page.all('tr')] == [None, None, None, 'strong']
    assert 'Below' in page.text


def test_numbers_read_alike() -> None:
    values = [0, 0.0, 0.12345, 12.0, 9999, 10000, -54321, np.float32(0.25), np.int64(3), math.inf, None, 1e6]
    assert [report.number(value).replace('\N{NARROW NO-BREAK SPACE}', '_') for value in values] == [
        *('0', '0.000', '0.123', '12.000', '9999', '10_000', '-54_321', '0.250', '3'),
        *('\N{EN DASH}', '\N{EN DASH}', '1e+06'),
    ]


# ---- curves


def noisy(count: int) -> List[Tuple[float, float]]:
    generator = random.Random(1)
    return [(10.0 * i, 5 * math.exp(-i / 500) + generator.random()) for i in range(count)]


def chart(*arguments: Any, **options: Any) -> Page:
    return page_with(report.Curves(*arguments, **options))


def heights(page: Page) -> List[float]:
    """Where the marks of the points lie, from the top, in their order."""
    return [float(found['y']) for found in page.all('use') if 'fill: var(--c' in found.get('style', '')]


@pytest.mark.parametrize('log_y', [False, True])
def test_long_lines_are_smoothed_beside_what_was_logged(log_y: bool) -> None:
    lines = {'noisy': noisy(3000), 'rare': [(100.0, 0.2), (29000.0, 7.0), (29500.0, math.nan)]}
    page = chart('Loss', 'iteration', 'loss', lines, {'baseline': 4.0}, log_y)
    (drawing,) = page.all('svg', role='img')
    assert drawing['aria-label'] == 'Loss: loss over iteration'
    assert 'moving average over 61 points' in page.text
    assert ('loss (log)' in page.text) == log_y
    assert 'rare, iteration 29000: 7.000' in page.text
    assert 'nan' not in page.text


def test_places_are_proportional_to_the_values() -> None:
    y0, y1, y2 = heights(chart('t', 'x', 'y', {'a': [(0, 0.0), (5, 5.0), (10, 10.0)]}))
    assert y0 > y1 > y2
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    y0, y1, y2 = heights(chart('t', 'x', 'y', {'a': [(0, 1.0), (5, 10.0), (10, 100.0)]}, log_y=True))
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)


def test_tooltips_and_legend_name_series_and_values() -> None:
    page = chart('Validation', 'epoch', 'mAP', {'mAP': [(1, 0.25), (2, 0.5)]}, {'before': 0.125})
    assert 'mAP, epoch 2: 0.500' in page.text
    assert page.text.count('before: 0.125') == 2


def test_charts_follow_the_colours_of_the_page() -> None:
    lines = {f'series {index}': [(0.0, index), (1.0, index + 1)] for index in range(7)}
    page = chart('t', 'x', 'y', lines, {'base': 3.0})
    styles = [found['style'] for found in page.all('path') if 'stroke: var(--c' in found.get('style', '')]
    looks = {(re.search(r'var\(--c\d', style)[0], 'dasharray' in style, style.count(',')) for style in styles}
    assert len(looks) == 8
    drawn = ' '.join(found.get('style', '') for tag, found in page.elements if tag in ('path', 'text', 'use', 'g'))
    assert '#' not in drawn, 'a colour of its own would be unreadable on one of the grounds'


@pytest.mark.parametrize(
    'points', [[(7.0, 3.0)], [(0.0, 0.0), (1.0, 0.0)], [(1.0, -2.0), (2.0, -2.0)], [(3.0, 1.0), (3.0, 2.0)]]
)
def test_flat_and_single_points_are_drawn(points: List[Tuple[float, float]]) -> None:
    page = page_with(report.Curves('t', 'x', 'y', {'a': points}))
    assert len(heights(page)) == len(points)
    assert all(math.isfinite(y) for y in heights(page))


def test_curves_without_a_point_leave_no_trace() -> None:
    page = page_with(
        report.Curves('Empty title', 'x', 'y', {'a': [], 'b': [(1, math.nan)]}),
        report.Curves('Empty title', 'x', 'y', {'a': [(1, -1.0)]}, log_y=True),
    )
    assert page.all('svg') == []
    assert 'Empty title' not in page.text


def test_smoothing_keeps_short_lines_and_averages_long_ones() -> None:
    short = [y for _, y in noisy(60)]
    assert report.smoothed(short).tolist() == short
    values = [y for _, y in noisy(1000)]
    smooth = report.smoothed(values)
    assert smooth[500] == pytest.approx(np.mean(values[490:511]))
    assert smooth[-1] == pytest.approx(np.mean(values[-11:]))


# ---- readers


def test_a_resumed_run_is_one_run(tmp_path: Path) -> None:
    log(tmp_path, '20250101_000000', [training(step, loss=1.0) for step in (10, 20, 30, 40)])
    log(tmp_path, '20250101_010000', [training(step, loss=2.0) for step in (25, 30)], torn='{"loss": 3.0, "st')
    rows = run_folders.read_scalars(tmp_path)
    assert run_folders.series(rows, 'loss') == [(10, 1.0), (20, 1.0), (25, 2.0), (30, 2.0)]


def test_lines_of_one_step_are_merged_and_odd_lines_skipped(tmp_path: Path) -> None:
    lines = [{'a': 1.0, 'step': 5}, {'b': 2.0, 'step': 5}, {'c': 1.0}, {'d': 'text', 'e': None, 'f': True, 'step': 6}]
    log(tmp_path, '20250101_000000', lines, torn='[1, 2]\nnull\n\x00\xff\n{"a": 4, "step": 7}')
    assert run_folders.read_scalars(tmp_path) == [{'a': 1.0, 'b': 2.0, 'step': 5}, {'step': 6}, {'a': 4, 'step': 7}]


def test_validations_of_an_iteration_based_run_are_not_all_at_step_0(tmp_path: Path) -> None:
    first = [training(10, loss=1.0), {'geomim/x': 1.0, 'step': 0}, training(20, loss=1.0), {'geomim/x': 2.0, 'step': 0}]
    log(tmp_path, '20250101_000000', first)
    log(tmp_path, '20250101_010000', [{'geomim/x': 9.0, 'step': 30}])
    assert run_folders.series(run_folders.read_scalars(tmp_path), 'geomim/x') == [(10, 1.0), (20, 2.0), (30, 9.0)]


def test_a_series_holds_finite_numbers_only(tmp_path: Path) -> None:
    log(tmp_path, 'a', [training(step, loss=value) for step, value in enumerate((1.0, math.nan, math.inf, 2.0), 1)])
    assert run_folders.series(run_folders.read_scalars(tmp_path), 'loss') == [(1, 1.0), (4, 2.0)]


def test_the_first_and_the_last_picture_are_so_by_number(tmp_path: Path) -> None:
    for stamp, steps in (('a', (5, 60, 120)), ('b', (120, 1000))):
        for step in steps:
            picture(tmp_path / stamp / 'vis_data' / 'vis_image' / f'reconstruction_0_{step}.png')
    picture(tmp_path / 'a' / 'vis_data' / 'vis_image' / 'boxes_7.png')
    names = [f'{path.parts[-4]}/{path.name}' for path in run_folders.first_and_last_picture(tmp_path)]
    assert names == ['a/reconstruction_0_5.png', 'b/reconstruction_0_1000.png']
    for step in (5, 60):
        (tmp_path / 'a' / 'vis_data' / 'vis_image' / f'reconstruction_0_{step}.png').unlink()
    assert run_folders.first_and_last_picture(tmp_path)[0].parts[-4] == 'b', 'what a resumed run drew again counts'
    (tmp_path / 'b' / 'vis_data' / 'vis_image' / 'reconstruction_0_1000.png').unlink()
    picture(tmp_path / 'b' / 'vis_data' / 'vis_image' / 'reconstruction_0_120.png')
    (tmp_path / 'a' / 'vis_data' / 'vis_image' / 'boxes_7.png').unlink()
    assert [path.name for path in run_folders.first_and_last_picture(tmp_path)] == ['reconstruction_0_120.png']


def test_absent_run_folders_are_empty(tmp_path: Path) -> None:
    absent = tmp_path / 'absent'
    assert run_folders.read_scalars(absent) == []
    assert run_folders.first_and_last_picture(absent) == []
    page = page_of(
        report.world_section({}, []),
        report.teacher_section(absent, {}),
        report.pretraining_section(absent, {}),
        report.finetuning_section({report.PRETRAINED: report.Run(absent, {}), report.SCRATCH: report.Run(absent, {})}),
        cards=report.headline_cards({}, {}),
    )
    assert len(page.all('section')) == 4
    assert run_folders.last_scores(absent) == {}
    assert page.all('svg') == page.all('img') == page.all('table') == []
    assert 'Real nuScenes data was given' in page.text


# ---- the demonstration's sections


def drop_each(values: Dict[str, Any]) -> List[Dict[str, Any]]:
    return [{name: value for name, value in values.items() if name != gone} for gone in values]


def test_any_missing_key_gives_a_shorter_page(tmp_path: Path) -> None:
    world = {'scenes': 10, 'keyframes': 100, 'images': 600, 'scans': 910, 'boxes': {'car': 3}}
    figures = student_figures()
    partial = [*drop_each(figures), *({**figures, 'student': student} for student in drop_each(figures['student']))]
    partial += [
        {**figures, 'student': None},
        {**figures, 'mean_target_loss': 0.0},
        {**figures, 'zero_map_loss': math.nan},
    ]
    partial.append({**figures, 'student': {'depth_within_one_bin': {'all': [math.nan, 0], '0-10 m': [0.5]}}})
    partial.append({**figures, 'student': {'reconstruction_loss': 0.5, 'depth_within_one_bin': 0.7}})
    whole = len(page_of(report.pretraining_section(tmp_path, figures)).text)
    for fewer in partial:
        page = page_of(report.pretraining_section(tmp_path, fewer), cards=report.headline_cards({}, fewer))
        assert 'nan' not in page.text.split()
        assert len(page_of(report.pretraining_section(tmp_path, fewer)).text) < whole
    for fewer in drop_each(world):
        page_of(report.world_section(fewer, []))
    for fewer in drop_each(metrics_by_class()):
        page_of(report.teacher_section(tmp_path, fewer), cards=report.headline_cards(fewer, {}))


def test_each_baseline_is_explained_where_it_is_given(tmp_path: Path) -> None:
    page = page_of(report.pretraining_section(tmp_path, student_figures()))
    for words in ('cell by cell', 'everything except what is in front of the cameras', 'the mean of its predictions'):
        assert words in page.text
    assert 'one best value a channel' in page.text
    assert 'predicts 0' in page.text
    figures = student_figures()
    del figures['constant_map_loss']
    assert 'one best value' not in page_of(report.pretraining_section(tmp_path, figures)).text


def test_the_teacher_section_falls_back_on_what_the_run_logged(tmp_path: Path) -> None:
    lines = [training(1, loss=3.0), {PREFIX + 'mAP': 0.2, 'step': 1}]
    lines += [training(2, loss=2.0), {PREFIX + 'mAP': 0.4321, 'step': 2}]
    log(tmp_path, 'a', lines)
    page = page_of(report.teacher_section(tmp_path, {}))
    assert page.row('mean (mAP)')[1] == '0.432'
    assert len(page.all('svg', role='img')) == 2


def test_losses_of_several_tasks_are_summed(tmp_path: Path) -> None:
    parts = {'task0.loss_heatmap': 1.0, 'task1.loss_heatmap': 2.0, 'task0.loss_bbox': 0.5, 'task1.loss_bbox': 0.25}
    log(tmp_path, 'a', [training(step, loss=3.75, **parts) for step in (1, 2)])
    curves = next(item for item in report.teacher_section(tmp_path, {}).items if isinstance(item, report.Curves))
    sums = {'total': 3.75, 'loss_heatmap': 3.0, 'loss_bbox': 0.75}
    assert curves.series == {name: [(1, value), (2, value)] for name, value in sums.items()}


def test_reconstruction_curves_stand_beside_their_baselines(tmp_path: Path) -> None:
    lines = [training(step, loss_reconstruction=0.5, loss_depth=2.0) for step in (10, 20)]
    log(tmp_path, 'a', [*lines, {'geomim/reconstruction_loss': 0.625, 'step': 20}])
    section = report.pretraining_section(tmp_path, student_figures())
    first, second = (item for item in section.items if isinstance(item, report.Curves))
    assert first.series == {'training batches': [(10, 0.5), (20, 0.5)], 'validation': [(20, 0.625)]}
    baselines = {'mean target': 0.7, "student's average map": 0.63, 'constant map': 0.84, 'zero map': 0.98}
    assert first.baselines == baselines
    assert second.series == {'training batches': [(10, 2.0), (20, 2.0)]}


def test_the_two_finetunings_stand_side_by_side(tmp_path: Path) -> None:
    runs = finetuned_runs(tmp_path)
    section = report.finetuning_section(runs)
    page = page_of(section)
    assert ['Metric', 'Of', 'From GeoMIM', 'From scratch'] in page.rows
    assert page.row('mAP')[2:] == ['0.120', '0.100']
    assert page.row('NDS')[2:] == ['0.140', '0.150']
    assert page.row('mATE')[2:] == ['0.900', '0.900']
    assert page.row('car') == ['car', '0.500', '0.400']
    assert page.row('mean (mAP)') == ['mean (mAP)', '0.120', '0.100']
    total, depth, boxes = (item for item in section.items if isinstance(item, report.Curves))
    assert total.series == {'from GeoMIM': [(10, 0.8), (20, 0.4)], 'from scratch': [(10, 0.9), (20, 0.45)]}
    assert depth.series == {'from GeoMIM': [(10, 5.0), (20, 5.0)], 'from scratch': [(10, 4.0), (20, 4.0)]}
    assert boxes.series == dict.fromkeys(runs, [(10, 1.75), (20, 1.75)])
    card = report.headline_cards({}, {}, 20, runs)[0]
    assert [card.value, card.ok] == ['0.120', None]
    assert card.detail == 'from GeoMIM; from scratch 0.100; one seed on 20 validation keyframes'


def test_the_page_says_who_is_ahead_whoever_it_is(tmp_path: Path) -> None:
    runs = finetuned_runs(tmp_path)
    text = page_of(report.finetuning_section(runs)).text
    assert (
        'mAP is 0.020 higher (0.120 against 0.100), NDS is 0.010 lower (0.140 against 0.150). This is one seed.' in text
    )
    turned = {report.PRETRAINED: runs[report.SCRATCH], report.SCRATCH: runs[report.PRETRAINED]}
    text = page_of(report.finetuning_section(turned)).text
    assert 'mAP is 0.020 lower (0.100 against 0.120), NDS is 0.010 higher' in text
    same = dict.fromkeys(runs, runs[report.SCRATCH])
    assert 'mAP is the same (0.100 against 0.100)' in page_of(report.finetuning_section(same)).text


def test_half_a_comparison_claims_no_winner(tmp_path: Path) -> None:
    runs = finetuned_runs(tmp_path)
    for start in runs:
        one = {start: runs[start]}
        page = page_of(report.finetuning_section(one), cards=report.headline_cards({}, {}, 0, one))
        assert 'against' not in page.text
        assert len(page.row('mAP')) == 3


def test_scores_come_from_a_test_where_no_validation_was_logged(tmp_path: Path) -> None:
    for stamp, score in (('20250101_000000', 0.1), ('20250102_000000', 0.2)):
        log(tmp_path, stamp, [training(10, loss=1.0)])
        (tmp_path / stamp / f'{stamp}.json').write_text(json.dumps({PREFIX + 'mAP': score}))
    assert run_folders.last_scores(tmp_path) == {PREFIX + 'mAP': 0.2}
    log(tmp_path, '20250103_000000', [{PREFIX + 'mAP': 0.3, 'step': 10}])
    assert run_folders.last_scores(tmp_path)[PREFIX + 'mAP'] == 0.3


def test_a_further_section_is_one_more_section(demonstration: Any) -> None:
    finetuning = report.Section('Finetuning', ['mAP `0.3`.'])
    page = Page(report.render(replace(demonstration, sections=[*demonstration.sections, finetuning])))
    assert [found['id'] for found in page.all('section')] == ['step-1', 'step-2', 'step-3', 'step-4']
    assert '4. Finetuning' in page.text
