"""The step from a batch to its outputs, with depth maps from a host or of the points, and batches cut to their first samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable, Dict, List

import pytest
import torch
from torch import Tensor

from geomim import GeoMIM
from geomim.adapter.measures import RunningMeans, measure
from geomim.adapter.step import PretrainBatch, pretrain_step
from geomim.method.depth import DepthBins, depth_labels, depth_maps

from ..helpers import plain_depth_figures

Make = Callable[..., Any]


@pytest.fixture
def model(make_config: Make, make_model: Make) -> GeoMIM:
    return make_model(make_config()).eval()


@pytest.fixture
def batch(make_config: Make, make_rig: Make, make_inputs: Make) -> PretrainBatch:
    inputs: Dict[str, Any] = make_inputs(make_config(), make_rig(batch=3, cams=4, augmented=True))
    points = [torch.randn(count, 5, generator=torch.Generator().manual_seed(count)) * 6 for count in (900, 700, 800)]
    return PretrainBatch(inputs['images'], inputs['rig'], points)


def run(batch: PretrainBatch, model: GeoMIM) -> Any:
    grid = model.config.view_transform.output_grid

    def teacher(points: List[Tensor]) -> Tensor:
        heights = torch.stack([cloud[:, 2].mean() for cloud in points])
        cells = torch.linspace(0, 1, grid.shape[0] * grid.shape[1]).view(1, 1, *grid.shape)
        return heights.view(-1, 1, 1, 1) * cells.sin().repeat(1, model.config.target.channels, 1, 1)

    with torch.no_grad():
        return pretrain_step(batch, model, teacher, torch.Generator().manual_seed(3))


def test_a_hosts_depth_map_and_the_points_give_the_same_labels_and_losses(batch: PretrainBatch, model: GeoMIM) -> None:
    size = tuple(batch.images.shape[-2:])
    host = torch.cat([depth_maps([cloud], only(batch, index).rig, size) for index, cloud in enumerate(batch.points)])
    given = PretrainBatch(batch.images, batch.rig, batch.points, host)
    ours, theirs = run(batch, model), run(given, model)
    assert torch.equal(ours.depth_labels, theirs.depth_labels)
    assert torch.equal(ours.depth_loss, theirs.depth_loss)
    assert int((ours.depth_labels >= 0).sum()) > 10
    view = model.config.view_transform
    assert torch.equal(ours.depth_labels, depth_labels(host, view.depth_bins, view.stride))
    empty = run(PretrainBatch(batch.images, batch.rig, batch.points, torch.zeros_like(host)), model)
    assert int((empty.depth_labels >= 0).sum()) == 0  # what the host gives counts


def only(batch: PretrainBatch, index: int) -> PretrainBatch:
    """One sample of a batch."""
    rig = batch.rig
    matrices = {name: getattr(rig, name)[index:] for name in ('intrinsics', 'cam2ego', 'cam2bev', 'img_aug', 'bev_aug')}
    rest = PretrainBatch(batch.images[index:], type(rig)(**matrices, names=rig.names), batch.points[index:])
    return rest.first(1)


def test_the_first_samples_are_those_of_the_whole_batch(batch: PretrainBatch, model: GeoMIM) -> None:
    part = batch.first(2)
    assert (len(part.images), part.rig.batch_size, len(part.points), part.depth_map) == (2, 2, 2, None)
    whole, cut = run(batch, model), run(part, model)
    torch.testing.assert_close(cut.predictions[0], whole.predictions[0][:2])
    assert torch.equal(cut.depth_labels, whole.depth_labels[:2])
    assert torch.equal(batch.first(9).images, batch.images)
    given = PretrainBatch(batch.images, batch.rig, batch.points, batch.measured_depth()).first(1)
    assert torch.equal(given.measured_depth(), part.measured_depth()[:1])


def test_figures_of_a_pass_count_its_labels(batch: PretrainBatch, model: GeoMIM) -> None:
    result = run(batch, model)
    figures = measure(result)
    assert figures['labelled_cells'].tolist() == [int((labels >= 0).sum()) for labels in result.depth_labels]
    guess = result.depth[0].argmax(1).view_as(result.depth_labels)
    near = ((guess - result.depth_labels).abs() <= 1) & (result.depth_labels >= 0)
    other = ((result.depth[1].argmax(1).view_as(guess) - result.depth_labels).abs() <= 1) & (result.depth_labels >= 0)
    expected = (near.flatten(1).sum(1) + other.flatten(1).sum(1)) / 2 / figures['labelled_cells']
    torch.testing.assert_close(figures['depth_within_one_bin'], expected)
    torch.testing.assert_close(figures['reconstruction_loss'].mean(), result.reconstruction_loss)


def test_figures_are_of_the_cells_that_the_loss_counts(batch: PretrainBatch, model: GeoMIM) -> None:
    result = run(batch, model)
    cells = torch.rand(result.target[:, 0].shape) < 0.3
    figures = measure(replace(result, cells=cells))
    for sample, target in enumerate(result.target):
        counted = target[:, cells[sample]]
        errors = [(prediction[sample][:, cells[sample]] - counted).square().mean() for prediction in result.predictions]
        torch.testing.assert_close(figures['reconstruction_loss'][sample], sum(errors) / len(errors))
        torch.testing.assert_close(figures['target_power'][sample], counted.square().mean())
        torch.testing.assert_close(figures['constant_map_loss'][sample], counted.var(dim=1, unbiased=False).mean())


def guessing(result: Any, bins: DepthBins) -> Any:
    """The pass with labels over all distances but the last, and guesses a few bins away from them."""
    labels = torch.randint(-1, bins.count - 20, result.depth_labels.shape)
    near = labels.flatten(0, 1).clamp(min=0) + torch.randint(0, 5, (2, *labels.flatten(0, 1).shape))
    depth = torch.nn.functional.one_hot(near, bins.count).permute(0, 1, 4, 2, 3).float()
    return replace(result, depth=tuple(depth), depth_labels=labels)


def test_depth_figures_by_distance_are_those_of_a_plain_loop(batch: PretrainBatch, model: GeoMIM) -> None:
    """Batches of 3 and of 1 samples weigh as their cells do; a sample that is not finite does not count."""
    bins, means = DepthBins(1.0, 49.0, 0.5), RunningMeans()
    whole = guessing(run(batch, model), bins)
    one = guessing(run(batch.first(1), model), bins)
    for result in (whole, one):
        means.add(measure(result, bins))
    found = means.take()
    expected = plain_depth_figures([whole, one], bins)
    assert len(expected) == 6
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    everywhere = sum(int((result.depth_labels >= 0).sum()) for result in (whole, one))
    assert found['labelled_cells'] == pytest.approx(everywhere / 4)
    assert means.take() == {}
    for result in (whole, replace(whole, target=whole.target * float('nan'))):
        means.add(measure(result, bins))
    again = means.take()
    assert again['reconstruction_loss'] == pytest.approx(float(whole.reconstruction_loss))
    assert again['depth_error_0_10m'] == pytest.approx(plain_depth_figures([whole], bins)['depth_error_0_10m'])


@pytest.mark.skipif(not hasattr(torch, 'get_default_device'), reason='older ones lack operations on the meta device')
def test_no_figure_is_read_back_before_it_is_taken(batch: PretrainBatch, model: GeoMIM) -> None:
    """On the meta device, where there is nothing to read."""
    result = run(batch, model)
    fields = {name: value.to('meta') for name, value in vars(result).items() if isinstance(value, Tensor)}
    maps = {name: tuple(part.to('meta') for part in getattr(result, name)) for name in ('predictions', 'bev', 'depth')}
    means = RunningMeans()
    for _ in range(2):
        means.add(measure(replace(result, **fields, **maps), DepthBins(1.0, 49.0, 0.5)))
    with pytest.raises((RuntimeError, NotImplementedError)):
        means.take()
