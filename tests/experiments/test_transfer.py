"""The study of few labels: which labels, which runs, what the tables say; and the ablations."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, Dict, List, Optional

import pytest

pytest.importorskip('mmdet3d')

NAMES = [f'scene-{number:04d}' for number in range(40)]


@pytest.fixture
def transfer(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script('experiments/transfer.py')


def test_shares_of_labels_are_nested_and_depend_on_names_alone(transfer: ModuleType) -> None:
    lists = [transfer.labelled_scenes(NAMES, share) for share in (0.01, 0.05, 0.1, 0.25, 1.0)]
    assert [len(names) for names in lists] == [1, 2, 4, 10, 40]
    for small, large in zip(lists, lists[1:]):
        assert large[: len(small)] == small
    assert transfer.labelled_scenes([*reversed(NAMES), *NAMES], 0.1) == lists[2]
    assert sorted(lists[-1]) == NAMES
    assert lists[3] != sorted(lists[3]), 'not the first scenes, which a converter wrote first'


@pytest.mark.parametrize('share', [0, -0.1, 5, math.nan])
def test_a_share_is_no_percentage(transfer: ModuleType, share: float) -> None:
    with pytest.raises(ValueError, match='above 0 and at most 1'):
        transfer.labelled_scenes(NAMES, share)


def test_labelled_infos_hold_whole_scenes_and_every_validation_frame(transfer: ModuleType, tmp_path: Path) -> None:
    import mmengine

    for split, names in (('train', NAMES), ('val', ['scene-9000'])):
        rows = [{'token': f'{name}-{frame}', 'scene_name': name} for name in names for frame in range(3)]
        mmengine.dump({'metainfo': {'version': 'x'}, 'data_list': rows}, tmp_path / f'bevdet_infos_{split}.pkl')
    data = transfer.Data(tmp_path, 'v1.0-trainval', tmp_path, {})
    labelled = transfer.write_labelled_infos(data, 0.1, tmp_path / 'labels')
    train, val = (mmengine.load(labelled.infos / f'bevdet_infos_{split}.pkl') for split in ('train', 'val'))
    chosen = (tmp_path / 'labels' / 'scenes.txt').read_text().split()
    assert chosen == transfer.labelled_scenes(NAMES, 0.1)
    wanted = {f'{name}-{frame}' for name in chosen for frame in range(3)}
    assert {row['token'] for row in train['data_list']} == wanted
    assert train['metainfo'] == {'version': 'x'}
    assert len(val['data_list']) == 3
    assert (labelled.root, labelled.version) == (data.root, data.version)


def test_interval_is_student_t(transfer: ModuleType) -> None:
    mean, lower, upper = transfer.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert upper - mean == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)  # t(0.975, 2), of a printed table
    assert mean - lower == pytest.approx(upper - mean)
    assert transfer.interval([1.0])[1:] == (-math.inf, math.inf)


def rows_of(transfer: ModuleType, **values: List[Optional[float]]) -> List[Any]:
    return [
        transfer.Row(0.05, arm, seed, 'probe: depth', value)
        for arm, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
        if value is not None
    ]


def test_differences_are_of_the_same_seed(transfer: ModuleType) -> None:
    rows = rows_of(transfer, scratch=[0.1, 0.5, 0.2], geomim=[0.2, None, 0.4])
    rows.append(transfer.Row(0.1, 'geomim', 1, 'probe: depth', 9.0))
    gaps = transfer.paired_differences(rows, 0.05, 'probe: depth', 'geomim', 'scratch')
    assert gaps == pytest.approx([0.1, 0.2])


def test_the_table_marks_what_is_sure(transfer: ModuleType) -> None:
    text = transfer.markdown({'data': '/w'}, rows_of(transfer, scratch=[0.1, 0.3, 0.2], geomim=[0.2, 0.41, 0.3]))
    assert '| geomim less scratch | **+0.1033 [+0.0890, +0.1177]** |' in text
    assert '| scratch | 0.2000 \N{PLUS-MINUS SIGN} 0.1000 (3) |' in text
    unsure = transfer.markdown({'data': '/w'}, rows_of(transfer, scratch=[0.1, 0.3, 0.2], geomim=[0.2, 0.2, 0.3]))
    assert '| geomim less scratch | +0.0333 [' in unsure
    assert '**' not in unsure
    alone = transfer.markdown({'data': '/w'}, rows_of(transfer, scratch=[0.1], geomim=[0.2]))
    assert '| geomim less scratch | +0.1000 |' in alone, 'one seed has no interval'


def test_a_folder_has_runs_of_one_length(transfer: ModuleType, tmp_path: Path) -> None:
    transfer.check_settings(tmp_path, {'data': '/w', 'finetune_iterations': 600})
    transfer.check_settings(tmp_path, {'data': '/w', 'finetune_iterations': 600})
    with pytest.raises(ValueError, match='finetune_iterations 600, not 60: give another --out'):
        transfer.check_settings(tmp_path, {'data': '/w', 'finetune_iterations': 60})


class Recorder:
    """In place of the commands: what was run, and the files that each leaves."""

    def __init__(self) -> None:
        self.titles: List[str] = []
        self.commands: Dict[str, List[str]] = {}

    def train(self, title: str, config: Path, folder: Path, *_: Any) -> Path:
        self.titles.append(title)
        return folder / 'last.pth'

    def run(self, title: str, command: List[str], log: Path) -> None:
        self.titles.append(title)
        self.commands[title] = command
        out = Path(command[command.index('--out') + 1])
        seed = command[command.index('--seeds') + 1]
        (out / f'encoder_seed-{seed}_resnet.pth').touch()
        (out / f'figures_seed-{seed}.json').touch()


@pytest.fixture
def study(transfer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    recorder = Recorder()
    monkeypatch.setattr(transfer, 'run', recorder.run)
    monkeypatch.setattr(transfer, 'train', recorder.train)
    arguments = SimpleNamespace(
        out=tmp_path, student=transfer.STUDENT, teacher_iterations=6, pretrain_iterations=4, finetune_iterations=2
    )
    made = transfer.Study(arguments, transfer.Data(tmp_path, 'v1.0-mini', tmp_path, {}))
    monkeypatch.setattr(made, 'labelled', lambda share: made.data)
    monkeypatch.setattr(made, 'student_options', list)
    made.recorder = recorder
    return made


def test_pretraining_is_done_once_with_the_teacher_of_its_labels(transfer: ModuleType, study: Any) -> None:
    assert study.pretrain('scratch', 0.05, 0) is None
    assert study.recorder.titles == [], 'random weights need no teacher'
    first = study.pretrain('geomim', 0.05, 0)
    assert study.pretrain('geomim', 0.05, 0) == first
    assert study.pretrain('geomim', 0.05, 1) != first
    pretrainings = [title for title in study.recorder.titles if title.startswith('Pretraining')]
    assert len(pretrainings) == 2
    assert f'model.teacher.checkpoint={study.out}/teacher_0.05/last.pth' in study.recorder.commands[pretrainings[0]]
    full = study.pretrain('full-teacher', 0.05, 0)
    assert study.pretrain('geomim', 1.0, 0) == full, 'with all labels the teacher is the same'
    depth = study.pretrain('depth-only', 0.05, 0)
    assert study.pretrain('depth-only', 0.1, 0) == depth, 'no teacher has a say'


def test_every_arm_is_a_student_that_can_be_built(
    transfer: ModuleType, load_script: Callable[[str], ModuleType]
) -> None:
    from mmengine.config import Config, DictAction
    from mmengine.registry import MODELS, init_default_scope

    import geomim.mmdet3d  # noqa: F401 - registers

    load_script('experiments/ablations.py')
    init_default_scope('mmdet3d')
    names: Dict[str, List[str]] = {}
    for arm, (_, options, _) in transfer.ARMS.items():
        config = Config.fromfile(transfer.STUDENT)
        changes = dict(option.split('=', 1) for option in options or ())
        config.merge_from_dict({key: DictAction._parse_iterable(value) for key, value in changes.items()})
        config.model.teacher = dict(type='GivenBEVTeacher', bev=abs, grid=config.model.teacher.grid, channels=64)
        names[arm] = sorted(MODELS.build(config.model).student.encoder.state_dict())
    assert all(keys == names['geomim'] for keys in names.values()), 'the encoder is the same in every arm'
