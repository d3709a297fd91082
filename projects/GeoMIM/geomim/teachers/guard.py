"""Proof that a frozen teacher stays frozen and unchanged while its student trains."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Mapping

import torch
from torch import Tensor, nn

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def whole_teacher(teacher: nn.Module) -> nn.Module:
    """The teacher with its ``detector`` as a child, which a teacher may hide from its parents' parameters and state."""
    whole = nn.ModuleDict({'teacher': teacher})
    detector = getattr(teacher, 'detector', None)
    if isinstance(detector, nn.Module) and all(module is not detector for module in teacher.modules()):
        whole['detector'] = detector
    return whole


def checksums(module: nn.Module) -> Dict[str, int]:
    """Exact integer sum of the bits of every parameter and buffer; one device synchronisation."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    sums = [words(tensor).sum(dtype=torch.int64) for tensor in tensors.values()]
    return dict(zip(tensors, torch.stack(sums).tolist())) if sums else {}


def words(tensor: Tensor) -> Tensor:
    """The bits of a tensor, read as integers of its element size."""
    flat = tensor.detach().flatten()
    return flat.view(_WORDS[flat.element_size()])


class TeacherGuard:
    """Compares a teacher with what it was when the guard was set up."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher
        self._before = checksums(whole_teacher(teacher))

    def check_mode(self) -> None:
        """Raise ``RuntimeError`` unless all of the teacher is in evaluation mode; names the first module that is not."""
        # The empty name is the dictionary around the teacher.
        modules = whole_teacher(self.teacher).named_modules()
        training = [name for name, module in modules if name and module.training]
        if training:
            raise RuntimeError(
                f'the teacher must be in evaluation mode, but {len(training)} of its modules are in training mode, '
                f'first {training[0]}: call teacher.eval() after every model.train()'
            )

    def check_frozen(self, param_groups: Iterable[Mapping[str, Any]]) -> None:
        """Raise ``RuntimeError`` if a parameter of the teacher requires a gradient or is in an optimizer's groups."""
        named = list(whole_teacher(self.teacher).named_parameters())
        thawed = [name for name, parameter in named if parameter.requires_grad]
        if thawed:
            raise RuntimeError(
                f'the teacher must be frozen, but {len(thawed)} of its parameters require a gradient, first {thawed[0]}: '
                'call teacher.requires_grad_(False)'
            )
        trained = {id(parameter) for group in param_groups for parameter in group['params']}
        listed = [name for name, parameter in named if id(parameter) in trained]
        if listed:
            raise RuntimeError(
                f'{len(listed)} parameters of the teacher are in the optimizer, first {listed[0]}: keep the teacher out '
                'of model.parameters(), or build the optimizer from the student alone'
            )

    def check_unchanged(self) -> None:
        """Raise ``RuntimeError`` if a bit of a weight or statistic is another than at the start; names the first tensor."""
        now = checksums(whole_teacher(self.teacher))
        changed = [name for name in {**self._before, **now} if now.get(name) != self._before.get(name)]
        if changed:
            raise RuntimeError(
                f'the teacher changed during training, first in {changed[0]} ({len(changed)} of {len(now)} tensors): '
                'it must stay as loaded. Look for a hook or an optimizer that reaches it, or a module that keeps '
                'statistics in evaluation mode'
            )
