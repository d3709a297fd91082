"""Steps that are not finite leave no trace, are counted and limited; all others are exactly mmengine's own."""

from __future__ import annotations

import copy
import functools
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Optional, Sequence

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn

NAN = float('nan')
BATCHES = [torch.randn(4, 3, generator=torch.Generator().manual_seed(i)) for i in range(8)]


class Net(BaseModel):
    """Two losses over batch-normalised features; its batch decides whether something is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
        self.frozen = nn.BatchNorm1d(3)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'loss') -> Dict[str, Any]:
        self.frozen.eval()
        features = self.inner(self.frozen(inputs))
        return {
            'loss_a': features.square().mean(),
            'loss_b': [features.abs().mean(), features.mean()],
            'size': features,
        }


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: List[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if 'left out' in record.getMessage():
            self.texts.append(record.getMessage())


@pytest.fixture(autouse=True)
def messages() -> List[str]:
    """What is logged of skipped steps; each test starts with a logger and a message hub of its own."""
    MessageHub._instance_dict.clear()
    MMLogger._instance_dict.clear()
    handler = Messages()
    MMLogger.get_instance('test').addHandler(handler)
    return handler.texts


def build(net: nn.Module, kind: str = 'SkipNonFiniteOptimWrapper', **kwargs: Any) -> OptimWrapper:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    return OPTIM_WRAPPERS.build({'type': kind, 'optimizer': optimizer, 'clip_grad': {'max_norm': 1.0}, **kwargs})


def new_net() -> Net:
    torch.manual_seed(0)
    return Net().train()


def bad(batch: Tensor, value: float = NAN) -> Tensor:
    batch = batch.clone()
    batch[1, 2] = value
    return batch


def step(net: Net, wrapper: OptimWrapper, batch: Tensor, token: str = 'tok') -> None:
    data = {'inputs': batch, 'data_samples': [SimpleNamespace(metainfo={'token': token})]}
    net.train_step(data, wrapper)


def trace(net: nn.Module, wrapper: OptimWrapper) -> List[Tensor]:
    moments = [v for state in wrapper.optimizer.state.values() for v in state.values()]
    return [t.clone() for t in (*net.state_dict().values(), *moments)]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second))


def counts(wrapper: OptimWrapper) -> Dict[str, int]:
    return wrapper.message_hub.get_info('skipped_steps')


@OPTIM_WRAPPERS.register_module()
class UsersOwnWrapper(OptimWrapper):
    pass


@pytest.mark.parametrize('value', [NAN, float('inf')])
@pytest.mark.parametrize(
    'kind', ['SkipNonFiniteOptimWrapper', 'OptimWrapper', 'AmpOptimWrapper', 'UsersOwnWrapper', UsersOwnWrapper]
)
def test_a_bad_batch_leaves_no_trace(kind: Any, value: float, messages: List[str]) -> None:
    net = new_net()
    wrapper = build(net, kind) if kind == 'SkipNonFiniteOptimWrapper' else build(net, kind, skip_nonfinite=True)
    assert isinstance(wrapper, OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind)
    step(net, wrapper, BATCHES[0])
    before = trace(net, wrapper)
    step(net, wrapper, bad(BATCHES[1], value), 'sample-seven')
    assert same(before, trace(net, wrapper))
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())
    assert counts(wrapper) == {'total': 1, 'consecutive': 1}
    (message,) = messages
    assert 'iteration 2' in message
    assert 'loss_a = nan' in message
    assert 'sample-seven' in message
    step(net, wrapper, BATCHES[2])
    assert counts(wrapper) == {'total': 1, 'consecutive': 0}


def test_a_run_continues_as_if_the_bad_batch_had_not_been_drawn() -> None:
    results = []
    for batches in (BATCHES[:4], [BATCHES[0], bad(BATCHES[5]), *BATCHES[1:3], bad(BATCHES[6]), BATCHES[3]]):
        net = new_net()
        wrapper = build(net)
        for batch in batches:
            step(net, wrapper, batch)
        results.append(trace(net, wrapper))
    assert same(*results)


@pytest.mark.parametrize('accumulation', [1, 3])
def test_finite_steps_are_those_of_mmengine(accumulation: int) -> None:
    results = []
    for kind in ('OptimWrapper', 'SkipNonFiniteOptimWrapper'):
        net = new_net()
        wrapper = build(net, kind, accumulative_counts=accumulation)
        for batch in BATCHES:
            step(net, wrapper, batch)
        results.append(trace(net, wrapper))
    assert same(*results)


@pytest.mark.parametrize('place', [0, 1, 2])
def test_one_bad_micro_batch_drops_its_whole_step_and_no_other(place: int) -> None:
    net = new_net()
    wrapper = build(net, accumulative_counts=3)
    for batch in BATCHES[:3]:
        step(net, wrapper, batch)
    before = trace(net, wrapper)
    for index, batch in enumerate(BATCHES[3:6]):
        step(net, wrapper, bad(batch) if index == place else batch)
    assert same(before, trace(net, wrapper))
    assert counts(wrapper)['total'] == 1
    for batch in BATCHES[3:6]:
        step(net, wrapper, batch)
    assert not same(before, trace(net, wrapper))
    assert all(bool(t.isfinite().all()) for t in trace(net, wrapper))


def test_a_finite_loss_with_a_bad_gradient_is_left_out_and_the_parameter_named(messages: List[str]) -> None:
    net = new_net()
    wrapper = build(net)
    step(net, wrapper, BATCHES[0])
    before = trace(net, wrapper)
    handle = net.inner[0].weight.register_hook(lambda grad: grad * NAN)
    step(net, wrapper, BATCHES[1])
    handle.remove()
    assert same(before, trace(net, wrapper))
    (message,) = messages
    assert 'gradient of inner.0.weight' in message
    assert 'gradient of inner.2' not in message


def test_infinite_statistics_of_a_finite_loss_are_undone() -> None:
    net = new_net()
    wrapper = build(net)
    step(net, wrapper, BATCHES[0])
    before = trace(net, wrapper)

    def overflow(module: nn.Module, *_: Any) -> None:
        module.running_var.data.fill_(float('inf'))

    handle = net.inner[1].register_forward_hook(overflow)
    step(net, wrapper, BATCHES[1])
    handle.remove()
    assert same(before, trace(net, wrapper))
    assert counts(wrapper)['total'] == 1


@pytest.mark.parametrize(
    'options', [{}, dict(skip_nonfinite=False), dict(skip_nonfinite=False, limit=3, total_limit=9)]
)
def test_the_hosts_wrappers_take_every_step_unless_told(options: Dict[str, Any]) -> None:
    net = new_net()
    wrapper = build(net, 'OptimWrapper', **options)
    assert type(wrapper) is OptimWrapper
    step(net, wrapper, bad(BATCHES[0]))
    assert not all(bool(p.isfinite().all()) for p in net.parameters())


def test_the_former_names_and_limits_go_on_over_a_config_that_says_skip_nonfinite() -> None:
    net = new_net()
    for kind in ('SkipNonFiniteOptimWrapper', 'SkipNonFiniteAmpOptimWrapper', 'OptimWrapper'):
        wrapper = build(net, kind, skip_nonfinite=True, limit=3, total_limit=None)
        assert (wrapper.limit, wrapper.total_limit) == (3, None)
    with pytest.raises(ValueError, match="skip_nonfinite=False and type='SkipNonFiniteOptimWrapper' contradict"):
        build(net, skip_nonfinite=False)
    with pytest.raises(KeyError, match='NoSuchWrapper is not in'):
        build(net, 'NoSuchWrapper', skip_nonfinite=True)


@pytest.mark.parametrize('dtype', [None, 'bfloat16', torch.bfloat16])
def test_mixed_precision_trains_on_a_cpu(dtype: Any) -> None:
    net = new_net()
    wrapper = build(net, 'AmpOptimWrapper', skip_nonfinite=True, loss_scale='dynamic', dtype=dtype)
    before, seen = trace(net, wrapper), []
    net.inner[2].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    step(net, wrapper, BATCHES[0])
    assert seen == [torch.bfloat16]
    assert not same(before, trace(net, wrapper))
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_another_type_on_a_cpu_is_refused_before_the_first_step() -> None:
    with pytest.raises(ValueError, match=r"dtype=torch.float16 needs a GPU.*dtype='bfloat16'"):
        build(new_net(), 'AmpOptimWrapper', dtype='float16')


def test_more_skips_in_a_row_than_the_limit_stop_the_run() -> None:
    net = new_net()
    wrapper = build(net, limit=2, total_limit=None)
    for _ in range(3):  # good steps in between start the row anew
        for batch in (bad(BATCHES[0]), bad(BATCHES[1]), BATCHES[2]):
            step(net, wrapper, batch)
    step(net, wrapper, bad(BATCHES[0]))
    step(net, wrapper, bad(BATCHES[0]))
    before = trace(net, wrapper)
    with pytest.raises(RuntimeError, match=r'3 in a row, 9 in total.*limit=2.*learning rate'):
        step(net, wrapper, bad(BATCHES[0]))
    assert same(before, trace(net, wrapper))


def test_more_skips_in_total_than_the_limit_stop_the_run() -> None:
    net = new_net()
    wrapper = build(net, total_limit=1)
    step(net, wrapper, bad(BATCHES[0]))
    step(net, wrapper, BATCHES[0])
    with pytest.raises(RuntimeError, match='2 in total.*total_limit=1'):
        step(net, wrapper, bad(BATCHES[0]))


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match='limit must be at least 0 steps, got -1'):
        build(new_net(), limit=-1)


def test_no_forward_hook_stays_behind() -> None:
    net = new_net()
    wrapper = build(net)
    with pytest.raises(RuntimeError), wrapper.optim_context(net):
        raise RuntimeError('in the forward')
    step(net, wrapper, BATCHES[0])
    assert not net._forward_hooks


def test_works_without_optim_context() -> None:
    net = new_net()
    wrapper = build(net)
    before = [p.clone() for p in net.parameters()]
    wrapper.update_params(net.inner(bad(BATCHES[0])).mean())
    assert same(before, list(net.parameters()))
    assert counts(wrapper)['total'] == 1


def run(work_dir: Path, iterations: int, bad_at: Sequence[int], resume: bool = False, **wrapper: Any) -> Runner:
    class Data(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> Dict[str, Tensor]:
            return {'inputs': bad(BATCHES[index])[1] if index in bad_at else BATCHES[index][1]}

    runner = Runner(
        model=new_net(),
        work_dir=str(work_dir),
        train_dataloader={
            'batch_size': 2,
            'num_workers': 0,
            'dataset': Data(),
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'collate_fn': {'type': 'default_collate'},
        },
        train_cfg={'by_epoch': False, 'max_iters': iterations},
        optim_wrapper={
            'type': 'SkipNonFiniteOptimWrapper',
            'optimizer': {'type': 'AdamW', 'lr': 0.01},
            'clip_grad': {'max_norm': 35, 'norm_type': 2},
            **wrapper,
        },
        default_hooks={'checkpoint': {'type': 'CheckpointHook', 'interval': 2, 'by_epoch': False}},
        resume=resume,
        experiment_name=f'{work_dir.name}_{resume}',
    )
    runner.train()
    return runner


def test_the_count_survives_a_resume_of_a_real_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    first = run(tmp_path / 'a', 2, bad_at=[2, 4])
    assert first.message_hub.get_info('skipped_steps') == {'total': 1, 'consecutive': 1}
    assert all(bool(t.isfinite().all()) for t in first.model.state_dict().values())
    second = run(tmp_path / 'a', 4, bad_at=[2, 4], resume=True)
    assert second.iter == 4
    assert second.message_hub.get_info('skipped_steps') == {'total': 2, 'consecutive': 0}
    with pytest.raises(RuntimeError, match='3 in total'):
        run(tmp_path / 'a', 6, bad_at=[2, 4], resume=True, total_limit=2)


def amp_wrapper(net: nn.Module, monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> OptimWrapper:
    """With the loss scaler of a CPU; the host's is CUDA's, and idle without one."""
    from mmengine.optim.optimizer import amp_optimizer_wrapper as module

    if not hasattr(torch.amp, 'GradScaler'):
        pytest.skip('this torch has no loss scaler for a CPU')
    monkeypatch.setattr(module, 'GradScaler', functools.partial(torch.amp.GradScaler, 'cpu'))
    return build(net, 'SkipNonFiniteAmpOptimWrapper', dtype='bfloat16', **kwargs)


def test_amp_counts_bad_losses_and_leaves_the_scale_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    net = new_net()
    wrapper = amp_wrapper(net, monkeypatch, loss_scale={'init_scale': 8.0})
    step(net, wrapper, BATCHES[0])
    before = trace(net, wrapper)
    step(net, wrapper, bad(BATCHES[1]))
    assert same(before, trace(net, wrapper))
    assert counts(wrapper) == {'total': 1, 'consecutive': 1}
    assert wrapper.loss_scaler.get_scale() == 8.0
    step(net, wrapper, BATCHES[2])
    assert not same(before, trace(net, wrapper))


def test_amp_counts_bad_gradients_only_once_the_scale_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    net = new_net()
    wrapper = amp_wrapper(net, monkeypatch, loss_scale={'init_scale': 4.0})
    before = trace(net, wrapper)[: len(net.state_dict())]
    weights = [p.clone() for p in net.parameters()]
    net.inner[0].bias.register_hook(lambda grad: grad * float('inf'))
    scales: List[float] = []
    totals: List[Optional[int]] = []
    for batch in BATCHES[:4]:
        step(net, wrapper, batch)
        scales.append(wrapper.loss_scaler.get_scale())
        totals.append((wrapper.message_hub.runtime_info.get('skipped_steps') or {}).get('total', 0))
    assert scales == [2.0, 1.0, 1.0, 1.0]
    assert totals == [0, 0, 1, 2]
    assert same(weights, list(net.parameters()))
    assert len(before) == len(net.state_dict())


def test_a_deep_copied_wrapper_state_loads_into_mmengines_own() -> None:
    net = new_net()
    wrapper = build(net)
    step(net, wrapper, BATCHES[0])
    build(net, 'OptimWrapper').load_state_dict(copy.deepcopy(wrapper.state_dict()))


TWO_RANKS = """
    import os
    import sys
    import torch
    import torch.distributed as dist
    from mmengine.logging import MMLogger
    from mmengine.model import BaseModel, MMDistributedDataParallel
    from mmengine.registry import OPTIM_WRAPPERS
    from torch import nn

    import geomim.mmengine

    class Net(BaseModel):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
            self.constant = False

        def forward(self, inputs, mode='loss'):
            # A constant that is NaN leaves the gradient finite: only the loss tells, and only on its own rank.
            constant = inputs[0, 0].detach() * 0 if self.constant else 0
            return {'loss_a': self.inner(inputs.nan_to_num() if self.constant else inputs).square().mean() + constant}

    def main(rank, store, accumulation):
        torch.set_num_threads(1)
        dist.init_process_group('gloo', init_method='file://' + store, rank=rank, world_size=2)
        logger = MMLogger.get_instance('two')
        torch.manual_seed(0)
        model = MMDistributedDataParallel(Net(), device_ids=None, broadcast_buffers=False)
        wrapper = OPTIM_WRAPPERS.build(dict(type='SkipNonFiniteOptimWrapper', clip_grad=dict(max_norm=1.0),
            accumulative_counts=accumulation, optimizer=torch.optim.AdamW(model.parameters(), lr=0.1)))
        for step in range(5):
            model.module.constant = step == 3
            before = {k: v.clone() for k, v in model.state_dict().items()}
            for micro in range(accumulation):
                inputs = torch.randn(4, 3)
                if rank == 1 and step in (1, 3) and micro == 0:
                    inputs[0, 0] = float('nan')
                model.train_step({'inputs': inputs}, wrapper)
            moved = any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
            assert moved == (step not in (1, 3)), (rank, step, moved)
        assert wrapper.message_hub.get_info('skipped_steps') == {'total': 2, 'consecutive': 0}
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert weights.isfinite().all()
        both = [torch.empty_like(weights) for _ in range(2)]
        dist.all_gather(both, weights)
        assert torch.equal(*both)
        open(store + '.done' + str(rank), 'w').close()
        dist.barrier()
        os._exit(0)  # tearing down a gloo group sometimes hangs in torch itself

    if __name__ == '__main__':
        torch.multiprocessing.spawn(main, (sys.argv[1], int(sys.argv[2])), nprocs=2)
"""


@pytest.mark.parametrize('accumulation', [1, 2])
def test_two_ranks_skip_together_when_one_meets_a_nan(tmp_path: Path, accumulation: int) -> None:
    script = tmp_path / 'two_ranks.py'
    script.write_text(textwrap.dedent(TWO_RANKS))
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(script), str(tmp_path / 'store'), str(accumulation)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.glob('*.done*')) == ['store.done0', 'store.done1']
    assert (done.stderr + done.stdout).count('(rank 1: loss_a = nan)') == 2
