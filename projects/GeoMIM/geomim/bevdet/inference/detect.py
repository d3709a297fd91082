"""A detector over a split of a nuScenes folder: results in nuScenes' format, and pictures of them."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Sequence

import torch
from mmdet3d.structures import Det3DDataSample
from mmdet3d.utils import register_all_modules
from mmengine.config import Config, DictAction
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.structures import InstanceData
from torch.utils.data import DataLoader

from ...atomic import check_result_folder, result_folder
from ...checkpoints.detector_loading import load_detector
from ...nuscenes.infos import TEST, find_version
from ..boxes.metric import CAMERAS_ONLY
from ..datasets import BEVDetNuScenesDataset
from .frame_pictures import draw_frame, save_jpeg

RESULTS, PICTURES = 'results_nusc.json', 'pictures'
NAMES = (RESULTS, PICTURES)
SPLITS = ('val', 'train', 'test')
_BUILD_ERRORS = (KeyError, TypeError, AttributeError, AssertionError)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DetectionRequest:
    """What to detect, with what, and where the results go.

    Args:
        config: configuration of a detector of the BEVDet family, of whose test settings dataset and pipeline are used.
        checkpoint: of ``geomim.bevdet`` or of BEVDet.
        data: nuScenes folder.
        out: folder to make, with results_nusc.json and pictures/.
        split: 'val', 'train', or 'test', that of v1.0-test, without annotations; None takes val, or test where ``data`` has
            no other tables.
        ann_file: info file, in ``data`` unless it exists as it is; None takes that of the split.
        max_frames: the first ones in the order of the dataset; None takes all.
        score_threshold: of the boxes in pictures and counts; the results file has all that the head hands out.
        device: as torch names it; None takes the first GPU, else the CPU.
        options: changes of the configuration, such as 'test_dataloader.batch_size=2'.
        pictures: draw them.
        force: replace a folder of earlier results.

    Raises:
        ValueError: a value out of range.
    """

    config: Path
    checkpoint: Path
    data: Path
    out: Path
    split: Optional[str] = None
    ann_file: Optional[Path] = None
    max_frames: Optional[int] = None
    score_threshold: float = 0.3
    device: Optional[str] = None
    options: Sequence[str] = ()
    pictures: bool = True
    force: bool = False

    def __post_init__(self) -> None:
        if self.split is not None and self.split not in SPLITS:
            raise ValueError(f'split must be one of {", ".join(SPLITS)}, got {self.split!r}')
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f'max_frames must be at least 1, got {self.max_frames}')
        if not 0 <= self.score_threshold <= 1:
            raise ValueError(f'score_threshold must lie in [0, 1], got {self.score_threshold}')


@dataclass(frozen=True)
class DetectionSummary:
    """What a run has found: frames done of those in the split, boxes in the file, boxes above the threshold by class."""

    folder: Path
    model: str
    frames: int
    frames_of_split: int
    boxes: int
    shown: Dict[str, int]


def detect(request: DetectionRequest, progress: Optional[Progress] = None) -> DetectionSummary:
    """Run a detector and write what it finds; ``request.out`` appears when everything is there.

    Args:
        request: what to do.
        progress: called with the frames done and all frames.

    Raises:
        FileNotFoundError: no such configuration, checkpoint or image.
        ValueError: anything else that does not fit; says what would.
    """
    out = request.out.expanduser().resolve()
    check_result_folder(out, NAMES, request.force)
    if not request.checkpoint.is_file():
        raise FileNotFoundError(f'checkpoint {request.checkpoint} does not exist')
    device = find_device(request.device)
    config = read_config(request)
    dataset = build_dataset(config, request)
    of_split = len(dataset)
    if request.max_frames is not None and request.max_frames < of_split:
        dataset.get_subset_(request.max_frames)
    _check_images(dataset, request.data)
    with _readable_build_errors(request.config):
        model = MODELS.build(config.model)
    description = load_detector(model, request.checkpoint)
    model.to(device).eval()
    with result_folder(out, NAMES, request.force) as folder:
        found = Findings(_metric(config, dataset, folder), dict.fromkeys(dataset.metainfo['classes'], 0))
        for sample in predictions(model, dataset, config.test_dataloader):
            sure = found.add(sample, request.score_threshold)
            if request.pictures:
                picture = draw_frame(dataset.get_data_info(sample.sample_idx), sample, sure, list(found.shown))
                save_jpeg(folder / PICTURES / f'{sample.sample_idx:05d}_{sample.token}.jpg', picture)
            if progress is not None:
                progress(found.frames, len(dataset))
        boxes = found.write(folder)
    return DetectionSummary(out, description, found.frames, of_split, boxes, found.shown)


@dataclass
class Findings:
    """What has been found so far: ``metric`` collects boxes for the results file, the others count.

    Args:
        metric: an mmdet3d nuScenes metric with ``format_only``.
        shown: boxes above the score threshold by class, the classes in the order of the labels.
        frames: taken in.
    """

    metric: Any
    shown: Dict[str, int]
    frames: int = 0

    def add(self, sample: Det3DDataSample, threshold: float) -> InstanceData:
        """Take in a sample; returns its boxes with a score of at least ``threshold``."""
        found = sample.pred_instances_3d
        sure = found[found.scores_3d >= threshold]
        classes = list(self.shown)
        for label in sure.labels_3d.tolist():
            self.shown[classes[label]] += 1
        self.frames += 1
        self.metric.process({}, [sample.to_dict()])
        return sure

    def write(self, folder: Path) -> int:
        """results_nusc.json; returns the number of its boxes, those outside the devkit's range of their class left out."""
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(logging.WARNING)  # mmdet3d would name a folder that is gone by then
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self.metric.evaluate(self.frames)
        finally:
            logger.setLevel(level)
        written = folder / 'pred_instances_3d' / RESULTS
        os.replace(written, folder / RESULTS)
        written.parent.rmdir()
        return (folder / RESULTS).read_bytes().count(b'"detection_score"')


def find_device(name: Optional[str]) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: no such device here.
    """
    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'device {name!r} cannot be used: {reason}; cpu always can') from error
    return device


def read_config(request: DetectionRequest) -> Config:
    """The configuration with the request's changes, its parts registered.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read, or without a detector's model and test settings.
    """
    if not request.config.is_file():
        raise FileNotFoundError(f'configuration {request.config} does not exist')
    try:
        changes = {}
        for option in request.options:
            key, equals, value = option.partition('=')
            if not equals:
                raise ValueError(f'options are KEY=VALUE, got {option!r}')
            changes[key] = DictAction._parse_iterable(value)
        register_all_modules(init_default_scope=True)
        config = Config.fromfile(request.config)
        config.merge_from_dict(changes)
    except (SyntaxError, NameError, ImportError, *_BUILD_ERRORS) as error:
        raise ValueError(f'{request.config} cannot be read: {type(error).__name__}: {error}') from error
    absent = [key for key in ('model', 'test_dataloader', 'test_evaluator') if not config.get(key)]
    if absent:
        raise ValueError(f'{request.config} has no {", ".join(absent)}; take one of configs/mmdet3d/finetune')
    if not config.model.get('pts_bbox_head'):
        raise ValueError(f'{request.config}: a {config.model.get("type")} without pts_bbox_head has no boxes to detect')
    return config


def build_dataset(config: Config, request: DetectionRequest) -> BEVDetNuScenesDataset:
    """The test dataset over the requested folder and info file.

    Raises:
        ValueError: a folder that is no nuScenes root, an info file that is absent, or another kind of dataset.
    """
    root = request.data.expanduser().resolve()
    version = TEST if request.split == 'test' else find_version(root)
    split = request.split or ('test' if version == TEST else 'val')
    name = request.ann_file or Path(f'bevdet_infos_{split}.pkl')
    ann_file = name.resolve() if name.is_file() and request.ann_file else root / name
    if not ann_file.is_file():
        option = f' --version {TEST}' if split == 'test' else ''
        raise ValueError(f'info file {ann_file} does not exist; python -m geomim infos {request.data}{option} makes it')
    settings = copy.deepcopy(config.test_dataloader.dataset)
    metainfo = dict(settings.get('metainfo') or {}, version=version)
    settings.update(data_root=f'{root}/', ann_file=str(ann_file), metainfo=metainfo, test_mode=True)
    with _readable_build_errors(request.config):
        dataset = DATASETS.build(settings)
    if not isinstance(dataset, BEVDetNuScenesDataset):
        raise ValueError(
            f'{request.config}: the test dataset must be a BEVDetNuScenesDataset, got {type(dataset).__name__}'
        )
    if not len(dataset):
        raise ValueError(f'{ann_file} holds no frame')
    return dataset


def predictions(
    model: BaseModel, dataset: BEVDetNuScenesDataset, loader: Mapping[str, Any]
) -> Iterator[Det3DDataSample]:
    """The dataset's samples, in its order, with ``pred_instances_3d`` on the CPU; workers and batches as configured."""
    workers = min(loader.get('num_workers', 0), os.cpu_count() or 1, len(dataset))
    batches = DataLoader(dataset, loader.get('batch_size', 1), num_workers=workers, collate_fn=pseudo_collate)
    for batch in batches:
        with torch.no_grad():
            samples = model.test_step(batch)
        yield from (sample.cpu() for sample in samples)


def _check_images(dataset: BEVDetNuScenesDataset, data: Path) -> None:
    """Find out at once that an info file belongs to another folder."""
    for index in (0, len(dataset) - 1):
        info = dataset.get_data_info(index)
        for name, camera in info['images'].items():
            if not os.path.isfile(camera['img_path']):
                raise ValueError(
                    f'{dataset.ann_file} names images that are not in {data}: {camera["img_path"]} ({name}) does not '
                    'exist; give the folder that the info file was made of, or make the file anew with '
                    f'python -m geomim infos {data} --force'
                )


def _metric(config: Config, dataset: BEVDetNuScenesDataset, folder: Path) -> Any:
    if not isinstance(config.test_evaluator, dict):
        raise ValueError(f'test_evaluator must be one metric, got {config.test_evaluator!r}')
    settings = copy.deepcopy(config.test_evaluator)
    settings.update(data_root=dataset.data_root, ann_file=dataset.ann_file, format_only=True)
    settings.update(jsonfile_prefix=str(folder), modality=dict(CAMERAS_ONLY))
    metric = METRICS.build(settings)
    metric.dataset_meta = dataset.metainfo
    return metric


@contextlib.contextmanager
def _readable_build_errors(config: Path) -> Iterator[None]:
    try:
        yield
    except _BUILD_ERRORS as error:
        raise ValueError(f'{config} cannot be built: {type(error).__name__}: {error}') from error
