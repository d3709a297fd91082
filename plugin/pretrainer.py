"""GeoMIM pretraining as a detector of a BEVDet fork: student, teacher, losses, figures.

Shape legend: B samples, N cameras, n images of all frames, M points, H x W pixels.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import torch
from mmcv.runner import auto_fp16
from mmdet.models.detectors import BaseDetector
from torch import Tensor

from ..adapter.encoders import start_backbone, student_config
from ..adapter.measures import measure
from ..adapter.seeds import mask_generator
from ..adapter.step import PretrainBatch, pretrain_step
from ..checkpoints.loading import load_pretrained
from ..method.depth import check_cloud
from ..method.pretrainer import GeoMIM, PretrainOutput
from .host import DETECTORS, build_backbone, get_dist_info, open_source, run_logger
from .rig import STEP, read_img_inputs

EVALUATION_SEED = 0


@DETECTORS.register_module()
class GeoMIMPretrainer(BaseDetector):
    """GeoMIM pretraining (arXiv 2303.11325) on the data of a BEVDet pipeline.

    Args:
        student: the student's sizes and its encoder, see :func:`geomim.adapter.encoders.student_config`.
        teacher: config of a detector that turns point clouds into BEV maps, ``GeoMIMLidarTeacher``.
        init_from: MixMAE or pretraining checkpoint that starts the student; random weights if None.
        num_cams: N, as many as ``data_config.cams``.
        mask_seed: where ``GeoMIMSeedHook`` tells the iteration, the masks are a function of this seed, the iteration and, with
            ``masks_per_rank``, the rank; without the hook torch's own generator draws them.
        masks_per_rank: masks of each rank's own; all ranks share them otherwise, as in the published runs.
        init_cfg, pretrained, train_cfg, test_cfg: the fork's; not used.

    Raises:
        ValueError: sizes that do not fit each other, or a teacher whose grid is not the student's.
    """

    def __init__(
        self,
        student: Dict[str, Any],
        teacher: Dict[str, Any],
        init_from: Optional[str] = None,
        num_cams: int = 6,
        mask_seed: int = 0,
        masks_per_rank: bool = False,
        init_cfg: Optional[Dict[str, Any]] = None,
        pretrained: Optional[str] = None,
        train_cfg: Optional[Dict[str, Any]] = None,
        test_cfg: Optional[Dict[str, Any]] = None,
    ) -> None:
        super().__init__(init_cfg)
        config = student_config(student, build_backbone, with_weights=init_from is not None)
        self.student = GeoMIM(config)
        self.teacher = DETECTORS.build(teacher)
        self.teacher.record.check_student(config.view_transform.output_grid, config.target.channels)
        self.init_from, self.num_cams = init_from, num_cams
        self.mask_seed, self.masks_per_rank = mask_seed, masks_per_rank
        self.iteration: Optional[int] = None

    def init_weights(self) -> None:
        """Load ``init_from`` into the student, or the weights that a backbone's own config names, and report what was taken.

        The teacher loads its own checkpoint when built.
        """
        started = start_backbone(self.student, open_source)
        if started is not None:
            run_logger().info(f'GeoMIM: {started.describe()}')
        if self.init_from is None:
            run_logger().info('GeoMIM: no init_from, the student starts from random weights')
            return
        report = load_pretrained(self.student, open_source(self.init_from))
        run_logger().info(f'GeoMIM: {report.describe()}')

    @auto_fp16(apply_to=())
    def forward(self, return_loss: bool = True, **data: Any) -> Any:
        """A batch of the fork's loader: losses, or with ``return_loss=False`` figures of each sample.

        With the fork's ``fp16`` it runs under autocast; geometry and teacher stay in float32.
        """
        if return_loss:
            return self.forward_train(**data)
        # a test loader wraps each entry in a list, one item an augmentation
        unwrapped = {name: value[0] if _is_wrapped(name, value) else value for name, value in data.items()}
        return self.simple_test(**unwrapped)

    def forward_train(self, img_inputs: Sequence[Tensor], points: Any = None, **data: Any) -> Dict[str, Tensor]:
        """Losses by name.

        Args:
            img_inputs: see :func:`~.rig.read_img_inputs`.
            points: B clouds (M_b, F), augmented, in the teacher's frame, from the pipeline step ``GeoMIMLidarFrame``.
            data: ``lidar2key`` (B, 4, 4) and, if depth was projected before, ``gt_depth`` (B, N, H, W) in metres, 0 = none;
                other entries are not looked at.

        Raises:
            ValueError: entries that are absent or do not fit.
        """
        result = self.run_student(self._batch(img_inputs, points, data), self._mask_generator())
        return dict(loss_reconstruction=result.reconstruction_loss, loss_depth=result.depth_loss)

    def simple_test(self, img_inputs: Sequence[Tensor], points: Any = None, **data: Any) -> List[Dict[str, float]]:
        """Figures of each sample, see :func:`geomim.adapter.measures.measure`; arguments as :meth:`forward_train`."""
        batch = self._batch(img_inputs, points, data)
        result = self.run_student(batch, torch.Generator().manual_seed(EVALUATION_SEED))
        figures = measure(result)
        return [{name: float(values[index]) for name, values in figures.items()} for index in range(len(result.target))]

    def run_student(self, batch: PretrainBatch, generator: Optional[torch.Generator] = None) -> PretrainOutput:
        """One pass, with masks drawn from ``generator``."""
        return pretrain_step(batch, self.student, self.teacher, generator)

    def extract_feat(self, imgs: Tensor) -> Any:
        """Encoder maps of images (B, 3, H, W), without masks."""
        return self.student.encoder(imgs)

    def aug_test(self, imgs: Any, img_metas: Any, **data: Any) -> None:
        """There is no augmentation at test time."""
        raise NotImplementedError('GeoMIMPretrainer measures the images as they are; leave out test-time augmentation')

    def _mask_generator(self) -> Optional[torch.Generator]:
        if self.iteration is None:
            return None
        return mask_generator(self.mask_seed, self.iteration, get_dist_info()[0] if self.masks_per_rank else 0)

    def _batch(self, img_inputs: Sequence[Tensor], points: Any, data: Dict[str, Any]) -> PretrainBatch:
        if points is None:
            raise ValueError(
                'GeoMIMPretrainer: no points, from which the teacher makes the target: the pipeline needs LoadPointsFromFile and '
                f"dict(type='{STEP}'), and 'points' and 'lidar2key' among the keys of Collect3D"
            )
        images, rig = read_img_inputs(img_inputs, data.get('lidar2key'), self.num_cams)
        if len(points) != len(images):
            raise ValueError(f'GeoMIMPretrainer: {len(points)} point clouds for {len(images)} samples of images')
        for sample, cloud in enumerate(points):
            check_cloud(cloud, f'points of sample {sample}')
        return PretrainBatch(images, rig, points, data.get('gt_depth'))


def _is_wrapped(name: str, value: Any) -> bool:
    """Whether a test loader wrapped an entry: a list in a list, or a list of one tensor batch."""
    if not isinstance(value, (list, tuple)) or len(value) != 1:
        return False
    return isinstance(value[0], (list, tuple)) or name not in ('points', 'img_metas')
