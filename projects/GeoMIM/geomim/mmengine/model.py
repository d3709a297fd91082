"""The pretraining model as mmengine's Runner wants it: student, teacher, losses, predictions.

Shape legend: B samples, N cameras, K copies, C channels, X x Y BEV cells.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Union

import torch
from mmengine.dist import is_distributed
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..adapter.encoders import start_backbone, student_config
from ..adapter.measures import measure
from ..adapter.step import PretrainBatch, pretrain_step
from ..checkpoints.loading import load_pretrained
from ..method.pretrainer import GeoMIM, PretrainOutput
from .compat import open_source
from .randomness import current_mask_generator

EVALUATION_SEED = 0


@MODELS.register_module()
class GeoMIMPretrainer(BaseModel):
    """GeoMIM pretraining (arXiv 2303.11325) under mmengine.

    Args:
        student: the student's sizes and its encoder, see :func:`geomim.adapter.encoders.student_config`.
        teacher: config of a module that turns point clouds into BEV maps (``GeoMIMLidarTeacher``, ``GivenBEVTeacher``).
        init_from: MixMAE or pretraining checkpoint, a path or an address, that starts the student; random weights if None.
        mask_seed: the masks are a function of this seed, the iteration and, with ``masks_per_rank``, the rank.
        masks_per_rank: masks of each rank's own; all ranks share them otherwise, as in the published runs.
        sync_bn: batch statistics of the view transformation over all GPUs, as in the reference; needs CUDA and several ranks.
        data_preprocessor: config of the data preprocessor.
        init_cfg: mmengine's; left to the hosts.

    Raises:
        ValueError: sizes that do not fit each other, or a teacher whose grid is not the student's.
    """

    def __init__(
        self,
        student: Dict[str, Any],
        teacher: Dict[str, Any],
        init_from: Optional[str] = None,
        mask_seed: int = 0,
        masks_per_rank: bool = False,
        sync_bn: bool = True,
        data_preprocessor: Optional[Dict[str, Any]] = None,
        init_cfg: Optional[Dict[str, Any]] = None,
    ) -> None:
        super().__init__(data_preprocessor or dict(type='GeoMIMDataPreprocessor'), init_cfg)
        config = student_config(student, MODELS.build, with_weights=init_from is not None)
        self.student = GeoMIM(config)
        self.teacher = MODELS.build(teacher)
        record = getattr(self.teacher, 'record', None)
        if record is not None:
            record.check_student(config.view_transform.output_grid, config.target.channels)
        self.init_from = init_from
        self.mask_seed = mask_seed
        self.masks_per_rank = masks_per_rank
        if sync_bn and torch.cuda.is_available() and is_distributed():
            self.student.view_transform = nn.SyncBatchNorm.convert_sync_batchnorm(self.student.view_transform)

    def init_weights(self) -> None:
        """Load ``init_from`` into the student, or the weights that a backbone's own config names, and report what was taken.

        The teacher loads its own checkpoint when built.
        """
        started = start_backbone(self.student, open_source)
        if started is not None:
            print_log(f'GeoMIM: {started.describe()}', logger='current')
        if self.init_from is None:
            print_log('GeoMIM: no init_from, the student starts from random weights', logger='current')
            return
        report = load_pretrained(self.student, open_source(self.init_from))
        print_log(f'GeoMIM: {report.describe()}', logger='current')

    def forward(
        self,
        inputs: Dict[str, Any],
        data_samples: Optional[Sequence[BaseDataElement]] = None,
        mode: str = 'tensor',
    ) -> Union[Dict[str, Tensor], List[BaseDataElement], PretrainOutput]:
        """Args: ``inputs`` of the preprocessor: images (B, N, 3, H, W), points, rig, and depth_map (B, N, H, W) or none.

        Returns: losses (``mode='loss'``), data samples with their figures (``'predict'``), or a PretrainOutput (``'tensor'``).
        """
        if mode == 'loss':
            result = self.run_student(inputs, current_mask_generator(self.mask_seed, self.masks_per_rank))
            return dict(loss_reconstruction=result.reconstruction_loss, loss_depth=result.depth_loss)
        result = self.run_student(inputs, torch.Generator().manual_seed(EVALUATION_SEED))
        if mode == 'tensor':
            return result
        if mode == 'predict':
            return self._measured_samples(result, data_samples)
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")

    def run_student(self, inputs: Dict[str, Any], generator: Optional[torch.Generator] = None) -> PretrainOutput:
        """One pass over a preprocessed batch, with masks drawn from ``generator``."""
        return pretrain_step(PretrainBatch(**inputs), self.student, self.teacher, generator)

    def _measured_samples(
        self, result: PretrainOutput, data_samples: Optional[Sequence[BaseDataElement]]
    ) -> List[BaseDataElement]:
        batch = len(result.target)
        samples = list(data_samples) if data_samples is not None else [BaseDataElement() for _ in range(batch)]
        figures = measure(result, self.student.config.view_transform.depth_bins)
        for index, sample in enumerate(samples):
            sample.set_metainfo({'geomim': {name: values[index] for name, values in figures.items()}})
        return samples
