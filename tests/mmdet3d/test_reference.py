"""The pretraining step through mmengine's interfaces gives the published code's losses and gradients, and the core's."""

from __future__ import annotations

import copy
from typing import Any, Dict, Iterator

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

from mmdet3d.structures import Det3DDataSample
from mmengine.registry import MODELS

import geomim.mmdet3d  # noqa: F401
from geomim.checkpoints.layouts import from_reference, to_reference
from geomim.checkpoints.loading import load_pretrained
from geomim.method.depth import depth_maps
from geomim.proofs import pretraining as verify
from geomim.proofs.reference_file import ReferenceFile, compare_all


def packed(inputs: Dict[str, Any]) -> Dict[str, Any]:
    """One sample of the file as the packing transform would give it."""
    sample = Det3DDataSample()
    names = dict(
        cam2img='camera_intrinsics', cam2ego='camera2ego', img_aug_matrix='img_aug_matrix',
        bev_aug_matrix='lidar_aug_matrix',
    )  # fmt: skip
    meta = {key: inputs[name][0].numpy() for key, name in names.items()}
    # in float64, so that camera-to-LiDAR comes back bit for bit: a point on the border of a cell must not change sides
    meta['lidar2cam'] = np.linalg.inv(inputs['camera2lidar'][0].numpy().astype(np.float64))
    sample.set_metainfo({**meta, 'cam_names': [f'CAM_{index}' for index in range(inputs['img'].shape[1])]})
    return {'inputs': {'img': [inputs['img'][0]], 'points': [inputs['points_0']]}, 'data_samples': [sample]}


@pytest.fixture
def _same_rounding() -> Iterator[None]:
    """oneDNN's rounding hangs on where a tensor lies in memory, sums on the threads: a ReLU next to zero may turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.backends.mkldnn.flags(enabled=False):
        yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures('_same_rounding')
def test_losses_and_gradients_are_those_of_the_published_code(reference_folder: Any, as_entries: Any) -> None:
    file = ReferenceFile(reference_folder / 'pretrain_tiny.npz')
    inputs, config = file.group('in/'), verify._pretrain_config(file.config)
    teacher = dict(type='GivenBEVTeacher', bev=inputs['teacher_bev'], grid=config.view_transform.output_grid)
    as_they_are = dict(type='GeoMIMDataPreprocessor', mean=(0, 0, 0), std=(1, 1, 1), bgr_to_rgb=False)
    model = MODELS.build(
        dict(type='GeoMIMPretrainer', student=as_entries(config), teacher=teacher, data_preprocessor=as_they_are)
    )
    load_pretrained(model.student, from_reference(verify._published_names(file.group('param/'))), layout='geomim')
    masks = verify._masks(inputs, config.copies)
    model.student.draw_masks = lambda *_: masks  # the file's own
    rig = verify._rig(inputs)
    core = copy.deepcopy(model.student).train()
    maps = depth_maps([inputs['points_0']], rig, config.view_transform.image_size)
    direct = core(inputs['img'], rig, inputs['teacher_bev'], maps, masks)
    (direct.reconstruction_loss + direct.depth_loss).backward()
    model.train()
    losses = model(**model.data_preprocessor(packed(inputs), True), mode='loss')
    sum(losses.values()).backward()
    ours = {'train_rec_loss': losses['loss_reconstruction'], 'train_depth_loss': losses['loss_depth']}
    wanted = {name: value for name, value in file.group('out/').items() if name in ours}
    assert set(wanted) == set(ours)
    found = {name: value.grad for name, value in model.student.named_parameters() if value.grad is not None}
    gradients = verify._published_names(to_reference(found, config.view_transform), back=True)
    rows = compare_all(ours, wanted, 'out/') + compare_all(gradients, file.group('grad/'), 'grad/', gradient=True)
    assert len(rows) > 100
    assert [row for row in rows if not row.passed] == []
    assert torch.equal(losses['loss_reconstruction'], direct.reconstruction_loss)
    assert torch.equal(losses['loss_depth'], direct.depth_loss)
    for name, value in core.named_parameters():
        if value.grad is not None:
            assert torch.equal(found[name], value.grad), name
