"""Steps whose losses, gradients or batch statistics are not finite are left out, within limits, whichever optimizer wrapper makes them.

Any of the host's wrappers does so whose config says ``skip_nonfinite=True``; ``type`` stays the host's name, which its ``--amp`` knows.
A step is left out as a whole, on all ranks together, as if its batch had never been drawn: no weight, momentum or
running statistic of a normalisation layer changes. (The published code multiplies such a loss by 0, which stays NaN.)
"""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Type

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank
from mmengine.logging import MessageHub, print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, Registry, build_from_cfg
from torch import Tensor, nn

COUNT_KEY = 'skipped_steps'  # in the message hub's runtime information, which checkpoints hold
_STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')
_MAX_NAMED = 4


class _Window:
    """What is known of the micro-batches since the last optimizer step."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # A frozen teacher is in evaluation mode and keeps its statistics anyway.
        modules = [module for module in model.modules() if module.training]
        buffers = [module._buffers.get(name) for module in modules for name in _STATISTICS]
        self.statistics: List[Tensor] = [buffer for buffer in buffers if buffer is not None]
        self.before = [buffer.clone() for buffer in self.statistics]
        self.totals: List[Tensor] = []
        self.losses: List[Dict[str, Tensor]] = []
        self.samples: List[str] = []

    def restore(self) -> None:
        for buffer, value in zip(self.statistics, self.before):
            buffer.copy_(value)


def _finite(tensors: Sequence[Tensor]) -> Optional[Tensor]:
    """Whether all values are finite, as a 0-d tensor on the device; None for no tensor.

    A tensor's norm stands for its values, for it is fast; a norm beyond float32 counts as not finite.
    """
    values = [t.detach() for t in tensors if t.is_floating_point()]
    norms = [torch.linalg.vector_norm(value, dtype=torch.float) if value.dim() else value.float() for value in values]
    return torch.isfinite(torch.stack([norm.to(norms[0].device) for norm in norms])).all() if norms else None


def _scalars(losses: Any) -> Dict[str, Tensor]:
    """A model's dict of losses (tensors or lists of tensors) -> detached scalars, without reading them back."""
    if not isinstance(losses, dict):
        return {}
    scalars = {}
    for name, value in losses.items():
        parts = [part for part in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(part, Tensor)]
        if parts:
            scalars[name] = torch.stack([part.detach().float().mean() for part in parts]).sum()
    return scalars


def _sample_names(data_samples: Any) -> List[str]:
    names = []
    for sample in data_samples if isinstance(data_samples, (list, tuple)) else []:
        meta = getattr(sample, 'metainfo', {})
        name = next((meta[key] for key in ('token', 'sample_idx', 'lidar_path') if meta.get(key) is not None), None)
        if name is not None:
            names.append(str(name))
    return names


def _first(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_NAMED
    return ', '.join(names[:_MAX_NAMED]) + (f' and {rest} more' if rest > 0 else '')


class SkipNonFiniteMixin:
    """Adds to an mmengine ``OptimWrapper``: steps that are not finite are left out, counted, and limited.

    The decision takes one small all_reduce and one device synchronisation an optimizer step. The backward always runs,
    on every rank, so that distributed training cannot hang; with gradient accumulation one bad micro-batch drops the
    whole accumulated step. Schedulers go on as if the step had been made. The count is kept in the message hub
    (``skipped_steps``), survives a resume, and shows in the logs.

    Where a loss scaler is at work (float16), overflowing gradients of a finite loss are its business, and not counted,
    until its scale has come down to 1: from there on the scale is not to blame. A loss that is not finite is counted
    and leaves the scale alone.

    Args:
        limit: consecutive steps that may be left out.
        total_limit: steps that may be left out in the whole run, None for any number.

    Raises:
        RuntimeError: a further step would be left out.
        ValueError: a limit below 0.
    """

    message_hub: MessageHub

    def __init__(self, *args: Any, limit: int = 10, total_limit: Optional[int] = 1000, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, value in (('limit', limit), ('total_limit', total_limit)):
            if value is not None and value < 0:
                raise ValueError(f'optim_wrapper: {name} must be at least 0 steps, got {value}')
        self.limit, self.total_limit = limit, total_limit
        self._window: Optional[_Window] = None

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """As mmengine's; also remembers the statistics before, and the losses of, the forward inside."""
        window = self._window = self._window or _Window(model)

        def remember(_: nn.Module, __: tuple, kwargs: dict, losses: Any) -> None:
            window.losses.append(_scalars(losses))
            window.samples.extend(_sample_names(kwargs.get('data_samples')))

        handle = model.register_forward_hook(remember, with_kwargs=True)
        try:
            with super().optim_context(model):  # type: ignore[misc]
                yield
        finally:
            handle.remove()

    def update_params(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """As mmengine's, and notes whether the loss is finite."""
        if self._window is None:
            self._window = _Window(nn.Module())  # called without optim_context: nothing is known of the model
        self._window.totals.append(loss.detach())
        super().update_params(loss, *args, **kwargs)  # type: ignore[misc]

    def step(self, **kwargs: Any) -> None:
        """As mmengine's, unless something is not finite on any rank."""
        window, self._window = self._window or _Window(nn.Module()), None
        loss_ok, gradient_ok, statistics_ok = self._all_ranks_finite(window)
        if loss_ok and statistics_ok and (gradient_ok or self._scaler_handles_gradients()):
            if gradient_ok:
                self._count(consecutive=0)
            super().step(**kwargs)  # type: ignore[misc]
            return
        window.restore()
        what = [('loss', loss_ok), ('gradient', gradient_ok), ('batch statistics', statistics_ok)]
        self._skip(window, [name for name, ok in what if not ok])

    def _all_ranks_finite(self, window: _Window) -> Tuple[bool, bool, bool]:
        groups = self.optimizer.param_groups  # type: ignore[attr-defined]
        gradients = [p.grad for group in groups for p in group['params'] if p.grad is not None]
        checks = [_finite(window.totals), _finite(gradients), _finite(window.statistics)]
        device = next((check.device for check in checks if check is not None), torch.device('cpu'))
        flags = torch.stack([torch.ones((), device=device) if c is None else c.to(device).float() for c in checks])
        all_reduce(flags, 'min')
        loss_ok, gradient_ok, statistics_ok = flags.tolist()
        return bool(loss_ok), bool(gradient_ok), bool(statistics_ok)

    def _scaler_handles_gradients(self) -> bool:
        """Whether a loss scaler will leave the step out by itself, in search of its scale."""
        scaler = getattr(self, 'loss_scaler', None)
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1.0

    def _counts(self) -> Dict[str, int]:
        return dict(self.message_hub.runtime_info.get(COUNT_KEY, {'total': 0, 'consecutive': 0}))

    def _count(self, consecutive: int, total: Optional[int] = None) -> None:
        counts = self._counts()
        if total is None and counts['consecutive'] == consecutive:
            return
        counts = {'total': counts['total'] if total is None else total, 'consecutive': consecutive}
        self.message_hub.update_info(COUNT_KEY, counts)
        self.message_hub.update_scalar(f'train/{COUNT_KEY}', counts['total'])

    def _skip(self, window: _Window, what: List[str]) -> None:
        counts = self._counts()
        total, consecutive = counts['total'] + 1, counts['consecutive'] + 1
        self._count(consecutive, total)
        # Every rank comes here or none, for the flags were reduced over all.
        reports = [report for report in all_gather_object(self._report(window, 'loss' in what)) if report]
        message = (
            f'step of iteration {self._iteration()} left out: {", ".join(what)} not finite'
            f'{" (" + "; ".join(reports) + ")" if reports else ""}. '
            f'{consecutive} in a row, {total} in total.'
        )
        print_log(message, logger='current', level=logging.WARNING)
        if consecutive > self.limit or (self.total_limit is not None and total > self.total_limit):
            raise RuntimeError(
                f'{message} More than the limit (limit={self.limit} in a row, total_limit={self.total_limit}). Look at '
                'the named samples (images, points, calibration), at the learning rate, its warm-up and clip_grad, and '
                'try float32 or bfloat16 in place of float16; torch.autograd.set_detect_anomaly(True) names the '
                'operation that made a gradient non-finite.'
            )

    def _iteration(self) -> int:
        """Counted from 1, as the log does; without a Runner the wrapper's own count."""
        done = self.message_hub.runtime_info.get('iter')
        return self._inner_count if done is None else int(done) + 1  # type: ignore[attr-defined]

    @staticmethod
    def _report(window: _Window, by_loss: bool) -> str:
        """This rank's losses (or gradients and statistics, with finite losses) that are not finite, and its samples."""
        values = [(name, float(value)) for losses in window.losses for name, value in losses.items()]
        bad = [f'{name} = {value}' for name, value in values if not math.isfinite(value)]
        if not by_loss:
            named = [(f'gradient of {name}', p.grad) for name, p in window.model.named_parameters()]
            named += [item for item in window.model.named_buffers() if item[0].endswith(_STATISTICS)]
            bad = [name for name, tensor in named if tensor is not None and not torch.isfinite(tensor).all()]
        if not bad:
            return ''
        samples = f', samples {_first(window.samples)}' if window.samples else ''
        return f'rank {get_rank()}: {_first(bad)}{samples}'


@OPTIM_WRAPPERS.register_module()
class SkipNonFiniteOptimWrapper(SkipNonFiniteMixin, OptimWrapper):
    """mmengine's ``OptimWrapper`` with :class:`SkipNonFiniteMixin`, and the arguments of both."""


@OPTIM_WRAPPERS.register_module()
class SkipNonFiniteAmpOptimWrapper(SkipNonFiniteMixin, AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper`` with :class:`SkipNonFiniteMixin`, and the arguments of both."""


def _skipping(kind: Type[OptimWrapper]) -> Type[OptimWrapper]:
    """The class of wrappers itself, if it leaves steps out, or one that is derived from it and does."""
    if issubclass(kind, SkipNonFiniteMixin):
        return kind
    return type(f'SkipNonFinite{kind.__name__}', (SkipNonFiniteMixin, kind), {})


def build_wrapper(
    cfg: Dict[str, Any], registry: Registry, default_args: Optional[Dict[str, Any]] = None
) -> OptimWrapper:
    """mmengine's ``build_from_cfg`` with one more key, for its registry of optimizer wrappers.

    Args:
        cfg: with ``skip_nonfinite=True``, ``type`` names any wrapper, and ``limit`` and ``total_limit`` of :class:`SkipNonFiniteMixin`
            may be there too. With ``skip_nonfinite=False`` the limits are passed over. Without the key nothing is different.
        registry, default_args: as of ``build_from_cfg``.

    Raises:
        ValueError: ``skip_nonfinite=False`` for a wrapper that leaves steps out by itself.
    """
    if 'skip_nonfinite' not in cfg:
        return build_from_cfg(cfg, registry, default_args)
    cfg = dict(cfg)
    skips, kind = cfg.pop('skip_nonfinite'), cfg['type']
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(cfg.get('_scope_')) as scoped:
            kind = scoped.get(kind)
    if kind is None:
        return build_from_cfg(cfg, registry, default_args)  # the host says what it does not know
    if skips:
        return build_from_cfg({**cfg, 'type': _skipping(kind)}, registry, default_args)
    if issubclass(kind, SkipNonFiniteMixin):
        raise ValueError(
            f"optim_wrapper: skip_nonfinite=False and type='{kind.__name__}' contradict each other; take 'OptimWrapper' or "
            "'AmpOptimWrapper', which take every step then"
        )
    for name in ('limit', 'total_limit'):
        cfg.pop(name, None)
    return build_from_cfg(cfg, registry, default_args)


OPTIM_WRAPPERS.build_func = build_wrapper
