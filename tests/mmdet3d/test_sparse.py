"""Sparse convolution: right on a CPU with several threads, and its kernels read in either order."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Tuple

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip('mmdet3d')
spconv = pytest.importorskip('spconv.pytorch')

from mmdet3d.models.middle_encoders import SparseEncoder  # noqa: E402

from geomim.mmdet3d.lidar_encoder import BEVFusionLSparseEncoder  # noqa: E402
from geomim.mmdet3d.sparse import SparseOnCPUHook, share_indices  # noqa: E402
from geomim.teachers.sparse_kernels import (  # noqa: E402
    draw_weights,
    kernel_order,
    reorder_kernels,
    single_threaded,
    sparse_convolutions,
    turned,
)

SHAPE = (40, 36, 12)


@pytest.fixture
def two_threads():
    """The usual setting of a user with several cores, whatever machine or earlier test this runs after."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield torch.get_num_threads()
    torch.set_num_threads(before)


def voxels(seed: int, count: int = 3000, channels: int = 16) -> Tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(SHAPE[0] * SHAPE[1] * SHAPE[2], generator=generator)[:count]
    z, rest = cells % SHAPE[2], cells // SHAPE[2]
    indices = torch.stack([torch.zeros_like(z), rest // SHAPE[1], rest % SHAPE[1], z], dim=1).int()
    return torch.randn(count, channels, generator=generator), indices


@torch.no_grad()
@pytest.mark.parametrize('seed', range(4))
def test_strided_convolution_equals_the_dense_one_under_several_threads(two_threads, seed):
    features, indices = voxels(seed)
    layer = spconv.SparseConv3d(16, 24, 3, stride=2, padding=1, bias=False)
    sparse = spconv.SparseConvTensor(features, indices, list(SHAPE), 1)
    with single_threaded():
        result = layer(sparse).dense()
    assert torch.get_num_threads() == two_threads
    volume = torch.zeros(1, *SHAPE, 16)
    volume[tuple(indices.long().T)] = features
    kernel = layer.weight.permute(0, 4, 1, 2, 3)
    expected = nn.functional.conv3d(volume.permute(0, 4, 1, 2, 3), kernel, stride=2, padding=1)
    # Where no input voxel reaches an output, both are zero.
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=1e-5)


def test_the_guard_restores_the_threads_after_errors_and_nesting(two_threads):
    seen = []

    def work() -> None:
        with single_threaded():
            with single_threaded():
                seen.append(torch.get_num_threads())
            seen.append(torch.get_num_threads())
            raise RuntimeError('inside')

    with pytest.raises(RuntimeError, match='inside'):
        work()
    assert seen == [1, 1]
    assert torch.get_num_threads() == two_threads


def test_an_inactive_guard_changes_nothing(two_threads):
    with single_threaded(False):
        assert torch.get_num_threads() == two_threads


def test_the_guard_lets_one_thread_in_at_a_time(two_threads):
    inside, most = [], []

    def work() -> None:
        for _ in range(50):
            with single_threaded():
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert max(most) == 1
    assert torch.get_num_threads() == two_threads


def encoder() -> BEVFusionLSparseEncoder:
    return BEVFusionLSparseEncoder(
        in_channels=16,
        sparse_shape=SHAPE,
        base_channels=8,
        output_channels=12,
        encoder_channels=((8, 16), (16, 16)),
        encoder_paddings=((0, 1), (0, 0)),
        block_type='basicblock',
    ).eval()


@torch.no_grad()
def run(model: nn.Module) -> Tensor:
    features, indices = voxels(0)
    with single_threaded():
        return model(features, indices[:, [0, 3, 2, 1]], 1)


def in_order(state, model, order):
    """``state`` with its kernels stored in ``order``, as a plain dict, the way a filtered checkpoint comes."""
    kernels = {f'{name}.weight' for name in sparse_convolutions(model)}
    if order == 'spconv2':
        return dict(state)
    return {name: turned(value, 'spconv1') if name in kernels else value for name, value in state.items()}


@pytest.mark.parametrize('order', ['spconv1', 'spconv2'])
def test_kernels_of_both_orders_give_the_same_outputs(order):
    source, target = encoder(), encoder()
    draw_weights(source, seed=3)
    stored = in_order(source.state_dict(), source, order)
    tensors, found = reorder_kernels(stored, target, 'file')
    assert found == order
    state = target.state_dict()
    for name, value in tensors.items():
        state[name] = value
    target.load_state_dict(state)
    expected = run(source)
    assert expected.abs().max() > 1e-2
    assert torch.equal(run(target), expected)


def test_the_old_order_agrees_with_what_mmdet3d_makes_of_it():
    source, target = encoder(), encoder()
    draw_weights(source, seed=3)
    target.load_state_dict(in_order(source.state_dict(), source, 'spconv1'))  # mmdet3d takes a plain dict for spconv 1
    assert torch.equal(run(target), run(source))


def test_kernels_of_mixed_order_are_refused():
    model = encoder()
    new, old = dict(model.state_dict()), in_order(model.state_dict(), model, 'spconv1')
    new['conv_out.0.weight'] = old['conv_out.0.weight']
    with pytest.raises(ValueError, match=r'conv_out\.0\.weight is stored in the order of spconv 1'):
        reorder_kernels(new, model, 'file')


def test_kernels_that_fit_both_ways_need_a_default():
    kernel = torch.zeros(3, 3, 3, 3, 3)
    with pytest.raises(ValueError, match='name the checkpoint layout'):
        kernel_order({'a': (kernel, kernel)}, 'file')
    assert kernel_order({'a': (kernel, kernel)}, 'file', 'spconv1') == 'spconv1'
    assert kernel_order({}, 'a pillar file') == 'spconv2'


def test_shared_indices_change_no_number():
    plain = encoder()
    draw_weights(plain, seed=1)
    expected = run(plain)
    share_indices(plain)
    assert {conv.indice_key for conv in sparse_convolutions(plain.encoder_layers[0][0]).values()} == {'subm1'}
    assert torch.equal(run(plain), expected)


def test_drawn_weights_depend_on_the_seed_alone_and_keep_the_signal():
    one, two, other = encoder(), encoder(), encoder()
    torch.manual_seed(5)
    draw_weights(one, seed=0)
    torch.manual_seed(6)
    draw_weights(two, seed=0)
    draw_weights(other, seed=1)
    assert torch.equal(run(one), run(two))
    assert not torch.equal(run(one), run(other))
    assert 0.05 < run(one).std() < 20


def test_the_encoder_is_the_transpose_of_mmdet3ds():
    """The same weights with their axes turned give mmdet3d's map (Y, X) turned to (X, Y), channel for channel."""
    ours = encoder()
    draw_weights(ours, seed=2)
    theirs = SparseEncoder(
        16, list(SHAPE[::-1]), base_channels=8, output_channels=12, block_type='basicblock',
        encoder_channels=((8, 16), (16, 16)), encoder_paddings=((0, 1), (0, 0)),
    ).eval()  # fmt: skip
    state = theirs.state_dict()
    assert set(state) == set(ours.state_dict())
    for name, value in ours.state_dict().items():
        state[name] = value.permute(0, 3, 2, 1, 4) if value.dim() == 5 else value
    theirs.load_state_dict(state)
    torch.testing.assert_close(run(ours), run(theirs).transpose(2, 3), atol=1e-5, rtol=1e-5)


def test_a_sparse_shape_of_two_axes_is_refused():
    with pytest.raises(ValueError, match=r'sparse_shape must be cells along \(x, y, z\), got \(40, 36\)'):
        BEVFusionLSparseEncoder(in_channels=5, sparse_shape=(40, 36))


@pytest.mark.parametrize('stride', [1, 2])
def test_the_hook_makes_gradients_on_a_cpu_right(two_threads, monkeypatch, stride):
    from spconv.pytorch import ops

    if torch.cuda.is_available():
        pytest.skip('a CPU matter')
    monkeypatch.setattr(ops, 'get_current_stream', ops.get_current_stream)  # undone afterwards
    features, indices = voxels(3, channels=8)
    kind = spconv.SubMConv3d if stride == 1 else spconv.SparseConv3d
    layer = kind(8, 8, 3, stride=stride, padding=1, bias=False)
    runner = SimpleNamespace(model=layer, logger=logging.getLogger('test'))
    SparseOnCPUHook().before_run(runner)
    assert torch.get_num_threads() == 1

    sparse_input, dense_input = (features.clone().requires_grad_() for _ in range(2))
    result = layer(spconv.SparseConvTensor(sparse_input, indices, list(SHAPE), 1)).dense()
    volume = torch.zeros(1, *SHAPE, 8).index_put(tuple(indices.long().T), dense_input)
    kernel = layer.weight.detach().clone().requires_grad_()
    expected = nn.functional.conv3d(
        volume.permute(0, 4, 1, 2, 3), kernel.permute(0, 4, 1, 2, 3), stride=stride, padding=1
    )
    occupied = result.detach().abs().sum(dim=1, keepdim=True) > 0  # a submanifold convolution stays on its voxels
    weight = torch.rand(expected.shape, generator=torch.Generator().manual_seed(1)) * occupied
    (result * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(sparse_input.grad, dense_input.grad, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(layer.weight.grad, kernel.grad, atol=2e-3, rtol=1e-4)


def test_the_hook_leaves_models_without_sparse_convolutions_alone(two_threads):
    runner = SimpleNamespace(model=nn.Conv2d(1, 1, 1), logger=logging.getLogger('test'))
    SparseOnCPUHook().before_run(runner)
    assert torch.get_num_threads() == two_threads
