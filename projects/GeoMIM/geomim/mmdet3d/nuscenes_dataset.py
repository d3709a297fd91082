"""mmdet3d's nuScenes dataset over an info file that is read as plain data, its labels taken by their names."""

from __future__ import annotations

import logging
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import mmengine.fileio
from mmdet3d.datasets import NuScenesDataset
from mmdet3d.datasets.transforms import LoadPointsFromFile
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..adapter.bad_samples import BadSamples, check_policy
from ..checkpoints.info_files import read_infos

_BOX = 7  # numbers of bbox_3d


@DATASETS.register_module()
class PlainNuScenesDataset(NuScenesDataset):
    """mmdet3d's ``NuScenesDataset`` (same arguments) that trusts an info file as little as it can.

    The file is read without executing what it may hold. Its numbers of classes are those of its own ``categories``, where
    mmdet3d takes the order of ``NuScenesDataset`` for granted; so classes of other names need no dataset of their own.

    Args:
        metainfo: as mmdet3d's; without ``version``, the file's.
        on_bad_sample: 'raise' where a file of a sample cannot be read, or, in training, 'skip' it: each is named once in a
            warning, and another takes its place, which follows from the sample's number alone.
        max_bad_samples: how many samples may be skipped; one more ends the run. The workers of a loader count together.

    Raises:
        ValueError: a file that ``read_infos`` refuses or that has no sample, a class that is nowhere known, a label that the
            file has no class for, a sample without a LiDAR whose points the pipeline loads, or, with ``filter_empty_gt``, no
            annotation to train on.
    """

    def __init__(
        self,
        *args: Any,
        metainfo: Optional[Mapping[str, Any]] = None,
        on_bad_sample: str = 'raise',
        max_bad_samples: int = 10,
        **kwargs: Any,
    ) -> None:
        check_policy(on_bad_sample, max_bad_samples, training=not kwargs.get('test_mode'))
        self.max_bad_samples = max_bad_samples
        self.bad_samples: Optional[BadSamples] = None
        self._skips = on_bad_sample == 'skip'
        known = self.METAINFO['classes']
        self._version = (metainfo or {}).get('version')
        further = [name for name in (metainfo or {}).get('classes', ()) if name not in known]
        # mmdet3d looks names up here, before the file is read, which may know more
        self.METAINFO = dict(self.METAINFO, classes=(*known, *further))
        super().__init__(*args, metainfo=metainfo, **kwargs)

    def load_data_list(self) -> List[Dict[str, Any]]:
        file = read_infos(self.ann_file, mmengine.fileio.get(self.ann_file))
        if not file['data_list']:
            raise ValueError(
                f'{self.ann_file} has no sample: its data_list is empty. Are scenes of this split, by the names that '
                'nuScenes-devkit lists for it, in the tables that the file was made of?'
            )
        self._check_content(file['data_list'])
        self._take_metainfo(file['metainfo'])
        # one entry per sample, or a list of one per camera
        parsed = (self.parse_data_info(info) for info in file['data_list'])
        return [entry for one in parsed for entry in (one if isinstance(one, list) else [one])]

    def _check_content(self, data_list: Sequence[Mapping[str, Any]]) -> None:
        """What is absent is found out before a worker looks for it."""
        absent = [info.get('token') for info in data_list if not _has_lidar(info)]
        if absent and any(isinstance(step, LoadPointsFromFile) for step in self.pipeline.transforms):
            raise ValueError(
                f'{self.ann_file}: sample {absent[0]} has no LiDAR, of which LoadPointsFromFile in the pipeline reads; BEVDet and '
                'BEVDet4D need no points, pretraining and the depth labels of BEVDepth4D and BEVStereo4D do'
            )
        annotated = any(info.get('instances') or info.get('cam_instances') for info in data_list)
        if self.filter_empty_gt and not self.test_mode and not annotated:
            raise ValueError(
                f'{self.ann_file} has no annotation, as that of the test split, and filter_empty_gt leaves out samples without: '
                'there is nothing to train on'
            )

    def parse_data_info(self, info: Dict[str, Any]) -> Union[List[Dict[str, Any]], Dict[str, Any]]:
        """By mmdet3d, which asks for the file of a LiDAR even if there is none."""
        modality = self.modality
        try:
            self.modality = dict(modality, use_lidar=modality['use_lidar'] and _has_lidar(info))
            parsed: Union[List[Dict[str, Any]], Dict[str, Any]] = super().parse_data_info(info)
        finally:
            self.modality = modality
        return parsed

    def full_init(self) -> None:
        """By mmengine; what is counted is there before a loader's workers are."""
        super().full_init()
        if self._skips and self.bad_samples is None:
            self.bad_samples = BadSamples(self.max_bad_samples, len(self))

    def prepare_data(self, index: int) -> Optional[Dict[str, Any]]:
        """A sample, or another in the place of one that cannot be read and is skipped; None to draw another."""
        if self.bad_samples is None:
            return self._prepared(index)
        sample: Optional[Dict[str, Any]] = self.bad_samples.load(self._prepared, index % len(self), len(self))
        return sample

    def _prepared(self, index: int) -> Optional[Dict[str, Any]]:
        """As mmdet3d's ``prepare_data``, without its deep copy of a record that was made for this call."""
        if self.show_ins_var:  # looks at the record afterwards
            shown: Optional[Dict[str, Any]] = super().prepare_data(index)
            return shown
        info = self.get_data_info(index)
        info.update(box_type_3d=self.box_type_3d, box_mode_3d=self.box_mode_3d)
        annotated = self.filter_empty_gt and not self.test_mode
        if annotated and len(info['ann_info']['gt_labels_3d']) == 0:
            return None
        example: Optional[Dict[str, Any]] = self.pipeline(info)
        if annotated and (example is None or len(example['data_samples'].gt_instances_3d.labels_3d) == 0):
            return None
        return example

    def _take_metainfo(self, metainfo: Mapping[str, Any]) -> None:
        for key, value in metainfo.items():
            self._metainfo.setdefault(key, value)
        version = metainfo.get('version')
        if version and self._version is None:
            self._metainfo['version'] = version
        elif version and version != self._version:
            print_log(
                f'{self.ann_file} was made of {version}, but metainfo.version of the dataset is {self._version}, by which '
                'its scores are computed; leave it out, or give the info files of that version',
                'current',
                level=logging.WARNING,
            )
        self.label_mapping = self._labels(metainfo.get('categories'))

    def _labels(self, categories: Optional[Mapping[str, int]]) -> Dict[int, int]:
        """By the file's number of a class, its place among the dataset's, or -1."""
        classes, usual = list(self._metainfo['classes']), type(self).METAINFO['classes']
        numbers = {name: number for name, number in (categories or {}).items() if number >= 0}
        numbers = numbers or {name: number for number, name in enumerate(usual)}
        unknown = [name for name in classes if name not in numbers and name not in usual]
        if unknown:
            raise ValueError(
                f'metainfo.classes: {", ".join(map(repr, unknown))} is no class of {self.ann_file}, which has '
                f'{", ".join(numbers)}. Take one of these names; or, if the samples have such things under another number, '
                "name it in the file: infos['metainfo']['categories'] maps names to the numbers of bbox_label_3d"
            )
        labels = {-1: -1, **{number: classes.index(name) for name, number in numbers.items() if name in classes}}
        return {**dict.fromkeys(numbers.values(), -1), **labels}

    def parse_ann_info(self, info: Dict[str, Any]) -> Dict[str, Any]:
        """By mmdet3d; a sample without an entry for annotations has none, boxes and labels that cannot be are named."""
        info = {'instances': [], **info}
        for thing in info['instances']:
            if len(thing['bbox_3d']) != _BOX:
                raise ValueError(
                    f'{self.ann_file}: sample {info.get("token")} has a bbox_3d of {len(thing["bbox_3d"])} numbers, it needs '
                    f'{_BOX} (x, y, z, length, width, height, yaw): {thing["bbox_3d"]}'
                )
        try:
            parsed: Dict[str, Any] = super().parse_ann_info(info)
        except KeyError as error:
            label = error.args[0]
            if label in self.label_mapping or not any(label in thing.values() for thing in info['instances']):
                raise
            raise ValueError(
                f'{self.ann_file}: sample {info.get("token")} has a thing of class {label!r}, and the file has the classes '
                f"{sorted(self.label_mapping)}: name it in infos['metainfo']['categories'], or give it -1, a thing of no class"
            ) from error
        return parsed


def _has_lidar(info: Mapping[str, Any]) -> bool:
    return 'lidar_path' in (info.get('lidar_points') or {})
