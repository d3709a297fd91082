"""What pretraining asks of an image encoder, and two ways to get it from a backbone that knows nothing of masks.

K copies of an image hide complementary cells. A :class:`MaskedEncoder` gives one map per stride in which every position
holds the features of the copy that keeps it, and nothing of a copy depends on pixels that are hidden in it. The Swin
(:mod:`.swin`) does so in one pass by its windows, plain vision transformers by an attention mask, every other network by
K passes over images whose hidden cells are a learned colour.

Shape legend: M images, K copies, H x W pixels, h' x w' mask cells, h x w positions of a map, C channels.
"""

from __future__ import annotations

import inspect
import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from .attention import run_checkpointed
from .masking import MASK_CELL, group_index, resize_masks

FUSED_STRIDES = (16, 32)  # pixels; the fusion joins the maps of these strides, or takes the first alone
PROBE_SIZE = (2 * MASK_CELL, 3 * MASK_CELL)


class MaskedEncoder(nn.Module):
    """The protocol: ``strides`` and ``channels`` of the maps, finest first; ``num_heads`` and ``mlp_ratio`` of the block that
    smooths their fusion; ``name``, how messages and files call it."""

    name: str
    strides: Tuple[int, ...]
    channels: Tuple[int, ...]
    num_heads: int
    mlp_ratio: float = 4.0

    def forward(self, images: Tensor, masks: Optional[Tensor] = None) -> Tuple[Tensor, ...]:
        """images (M, 3, H, W) -> maps (M, C, h, w), one per stride.

        Args:
            images: normalised.
            masks: (K, h', w') cells of 32 pixels, 1 = hidden; None shows all images whole. A position that is hidden in
                every copy holds anything finite.
        """
        raise NotImplementedError


class EncoderSpec:
    """What :class:`geomim.GeoMIMConfig` names its encoder by."""

    def build(self, activation_checkpointing: bool = False) -> MaskedEncoder:
        """The encoder, with random weights."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ``ValueError`` for sizes with which nothing can be pretrained."""


@dataclass(frozen=True)
class BackboneSpec(EncoderSpec):
    """A backbone of any codebase: a module that turns images (M, 3, H, W) into one map or several.

    Args:
        make: builds it.
        name: how messages and exported files call it.
    """

    make: Callable[[], nn.Module]
    name: str = 'backbone'

    def __deepcopy__(self, _: Any) -> BackboneSpec:
        """Itself: it never changes, and ``make`` may hold a host's whole registry."""
        return self

    def build(self, activation_checkpointing: bool = False) -> MaskedEncoder:
        """By an attention mask where the backbone is a plain vision transformer of timm, else in K passes.

        Raises:
            ValueError: no map of stride 16, or a network that mixes copies or images.
        """
        backbone = self.make()
        vit = plain_vit(backbone)
        if vit is not None and _takes_masks(vit):
            encoder: MaskedEncoder = MaskedTokens(backbone, self.name, activation_checkpointing)
        else:
            encoder = MaskedPasses(backbone, self.name)
        check_isolation(encoder, self.name)
        return encoder


def maps_of(output: Any) -> List[Tensor]:
    """The maps (M, C, h, w) of a backbone's output: one tensor, a sequence, or a dictionary."""
    if isinstance(output, Tensor):
        output = [output]
    elif isinstance(output, dict):
        output = list(output.values())
    return [entry for entry in output if isinstance(entry, Tensor) and entry.dim() == 4]


def heads_of(channels: int, width: int = 32) -> int:
    """As many attention heads of at least ``width`` channels as divide ``channels``."""
    return next(heads for heads in range(max(1, channels // width), 0, -1) if channels % heads == 0)


def _fused_maps(shapes: Sequence[torch.Size], size: Tuple[int, int], name: str) -> Dict[int, int]:
    """Stride -> index of the last map that has it, for the strides that the fusion takes.

    Raises:
        ValueError: none has stride 16.
    """
    strides = {}
    for index, shape in enumerate(shapes):
        for stride in FUSED_STRIDES:
            if tuple(shape[-2:]) == (size[0] // stride, size[1] // stride):
                strides[stride] = index
    if FUSED_STRIDES[0] not in strides:
        found = ', '.join(f'{shape[1]} x {shape[2]} x {shape[3]}' for shape in shapes) or 'none'
        raise ValueError(
            f'student.encoder {name}: pretraining needs a map of stride {FUSED_STRIDES[0]} and, if there is one, of '
            f'{FUSED_STRIDES[1]}; images of {size[0]} x {size[1]} pixels give maps (C x h x w) {found}. Choose the '
            f"backbone's outputs (out_indices, strides or the like) so that stride {FUSED_STRIDES[0]} is among them"
        )
    return strides


def _probe_images(module: nn.Module, images: int) -> Tensor:
    """Images (images, 3, 64, 96) that do not touch a random state, on the module's device."""
    device = next((parameter.device for parameter in module.parameters()), torch.device('cpu'))
    count = images * 3 * PROBE_SIZE[0] * PROBE_SIZE[1]
    return torch.arange(count, device=device, dtype=torch.float32).mul(12.9898).sin().view(images, 3, *PROBE_SIZE)


class _Evaluated:
    """Evaluation mode, with gradients or without; every module's mode is restored."""

    def __init__(self, module: nn.Module, gradients: bool = False) -> None:
        self.modes = [(part, part.training) for part in module.modules()]
        self.grad_mode = torch.enable_grad() if gradients else torch.no_grad()
        module.eval()

    def __enter__(self) -> None:
        self.grad_mode.__enter__()

    def __exit__(self, *reason: Any) -> None:
        self.grad_mode.__exit__(*reason)
        for part, training in self.modes:
            part.training = training


class _OfBackbone(MaskedEncoder):
    """An encoder around a backbone; ``backbone`` keeps its own parameter names.

    Parameters on which the maps do not depend (a stage behind them, a classifier) stop learning, and a warning names them:
    distributed training would wait for their gradients.
    """

    def __init__(self, backbone: nn.Module, name: str) -> None:
        super().__init__()
        self.backbone, self.name = backbone, name
        with _Evaluated(backbone, gradients=True):
            maps = self._trial(_probe_images(backbone, 1).requires_grad_())
            strides = _fused_maps([map_.shape for map_ in maps], PROBE_SIZE, name)
            self.strides = tuple(sorted(strides))
            self._indices = tuple(strides[stride] for stride in self.strides)
            self._freeze_unreached([maps[index] for index in self._indices])
        self.channels = tuple(maps[index].shape[1] for index in self._indices)
        self.num_heads = heads_of(self.channels[0])

    def _trial(self, images: Tensor) -> List[Tensor]:
        """The backbone's maps."""
        try:
            return maps_of(self.backbone(images.clone()))  # it may write into them
        except Exception as error:
            raise ValueError(
                f'student.encoder {self.name}: the backbone fails on an image of {PROBE_SIZE[0]} x {PROBE_SIZE[1]} pixels, a '
                f'multiple of the {MASK_CELL}-pixel mask cell. {type(error).__name__}: {error}'
            ) from error

    def _freeze_unreached(self, maps: Sequence[Tensor]) -> None:
        learning = {key: value for key, value in self.backbone.named_parameters() if value.requires_grad}
        before = {key: value.grad for key, value in learning.items()}
        for value in learning.values():
            value.grad = None
        torch.stack(
            [map_.sum() for map_ in maps]
        ).sum().backward()  # autograd.grad cannot recompute in each of torch's ways
        unreached = [key for key, value in learning.items() if value.grad is None]
        for key, value in learning.items():
            value.grad = before[key]
        for key in unreached:
            learning[key].requires_grad_(False)
        if unreached:
            strides = ' and '.join(map(str, self.strides))
            warnings.warn(
                f'student.encoder {self.name}: {len(unreached)} parameters do not reach the maps of stride {strides} and are not '
                f'trained: {", ".join(unreached[:4])}{", ..." if len(unreached) > 4 else ""}',
                stacklevel=4,
            )

    def whole(self, images: Tensor) -> Tuple[Tensor, ...]:
        """The maps of images (M, 3, H, W) without masks."""
        maps = maps_of(self.backbone(images))
        return tuple(maps[index] for index in self._indices)


class MaskedPasses(_OfBackbone):
    """Any backbone, by K passes: hidden cells are a learned colour in the image and zero behind every stage.

    ResNet, RegNet, VoVNet, ConvNeXt and whatever else gives maps of stride 16, or of 16 and 32. The K copies go through
    side by side, as one batch of K * M images. Setting hidden cells to zero again is SparK's way (arXiv 2301.03580) to keep
    visible features from being blurred by what a convolution makes of hidden ones. Stages that give tokens or several maps
    pass them on as they are.

    Args:
        backbone: images (M, 3, H, W) -> one map (M, C, h, w) or several.
        name: how messages call it.

    Raises:
        ValueError: a backbone without a map of stride 16, or that fails on small images.
    """

    def __init__(self, backbone: nn.Module, name: str = 'backbone') -> None:
        super().__init__(backbone, name)
        self.mask_colour = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self._hooks: List[Any] = []  # on the stages, during a pass and its backward alone

    def _trial(self, images: Tensor) -> List[Tensor]:
        """The maps; notes which modules are stages on the way."""
        found: Dict[nn.Module, Tuple[int, torch.Size]] = {}

        def note(module: nn.Module, _: Any, output: Any) -> None:
            axis = _map_axis(output)
            if axis:
                found[module] = axis, output.shape[axis : axis + 2]

        tops = [(top, list(top.children())) for top in _unwrapped(self.backbone).children()]
        ends = {_last_called(module) for top, parts in tops for module in (top, *parts)}
        handles = [end.register_forward_hook(note) for end in ends]
        try:
            maps = super()._trial(images)
        finally:
            for handle in handles:
                handle.remove()
        stages: List[nn.Module] = []
        for top, parts in tops:
            inner = [end for end in map(_last_called, parts) if end in found]
            # a container of stages is looked into, one of blocks of a single resolution is a stage
            contains_stages = isinstance(top, (nn.ModuleList, nn.ModuleDict, nn.Sequential))
            if contains_stages and (_last_called(top) not in found or len({found[end][1] for end in inner}) > 1):
                stages += inner
            elif _last_called(top) in found:
                stages.append(_last_called(top))
        names = {module: name for name, module in self.backbone.named_modules()}
        # by name, since hosts replace modules (batch norms by those of several processes)
        self._stages = {names[stage]: found[stage][0] for stage in stages}
        return maps

    def _hide(self, masks: Optional[Tensor], *_: Any) -> None:
        """From now on hidden cells are zero behind every stage; with None no longer."""
        while self._hooks:
            self._hooks.pop().remove()
        if masks is not None:
            hidden = _Hidden(masks)
            for name, axis in self._stages.items():
                hook = partial(_hide_again, hidden, axis)
                self._hooks.append(self.backbone.get_submodule(name).register_forward_hook(hook))

    def _hide_in_backward(self, masks: Optional[Tensor], _: Tensor) -> None:
        """The same for stages that the backward, which comes to a pass here, recomputes."""
        self._hide(masks)
        torch.autograd.Variable._execution_engine.queue_callback(partial(self._hide, None))

    def forward(self, images: Tensor, masks: Optional[Tensor] = None) -> Tuple[Tensor, ...]:
        """See :meth:`MaskedEncoder.forward`."""
        self._hide(masks)
        try:
            maps = self.whole(images) if masks is None else self._composed(images, _Hidden(masks))
        finally:
            self._hide(None)
        for map_ in maps:
            if map_.requires_grad:
                map_.register_hook(partial(self._hide_in_backward, masks))
        return maps

    def _composed(self, images: Tensor, hidden: _Hidden) -> Tuple[Tensor, ...]:
        """Every position from the copy that keeps it; the others are zero there."""
        copies = torch.where(hidden.at(images.shape[-2:]), self.mask_colour.to(images.dtype), images)
        return tuple(hidden.blank(map_, 2).sum(0) for map_ in self.whole(copies.flatten(0, 1)))


class _Hidden:
    """Where each of K copies hides cells, on maps of any size.

    Args:
        masks: (K, h', w').
    """

    def __init__(self, masks: Tensor) -> None:
        self.masks = masks
        self._at: Dict[Tuple[int, int], Tensor] = {}

    def at(self, size: Sequence[int]) -> Tensor:
        """(K, 1, 1, h, w) bool."""
        key = (size[0], size[1])
        if key not in self._at:
            self._at[key] = resize_masks(self.masks, key)[:, None, None] > 0.5
        return self._at[key]

    def blank(self, stacked: Tensor, axis: int) -> Tensor:
        """Maps (K * M, ...) whose sides begin at ``axis`` -> (K, M, ...), zero at hidden cells."""
        hidden = self.at(stacked.shape[axis : axis + 2])
        if axis == 1:
            hidden = hidden.movedim(2, -1)
        return stacked.view(len(self.masks), -1, *stacked.shape[1:]).masked_fill(hidden, 0.0)


def _hide_again(hidden: _Hidden, axis: int, _: nn.Module, __: Any, output: Any) -> Any:
    """For ``register_forward_hook``: a stage's output (K * M, ...) with hidden cells set to zero."""
    return hidden.blank(output, axis).flatten(0, 1)


def _map_axis(output: Any) -> int:
    """The axis at which the sides of a map of the probe begin: 2, 1 where channels are last, 0 for whatever is no map."""
    if not isinstance(output, Tensor) or output.dim() != 4:
        return 0
    sizes = [
        (PROBE_SIZE[0] >> halved, PROBE_SIZE[1] >> halved) for halved in range(6)
    ]  # strides 1 to that of a mask cell
    return next((axis for axis in (2, 1) if tuple(output.shape[axis : axis + 2]) in sizes), 0)


def _last_called(stage: nn.Module) -> nn.Module:
    """The module that gives a stage's output even where its network calls the parts of a container one by one."""
    return _last_called(stage[-1]) if isinstance(stage, nn.Sequential) and len(stage) else stage


def _unwrapped(backbone: nn.Module) -> nn.Module:
    """The network inside a wrapper that holds nothing else."""
    inner = list(backbone.children())
    return _unwrapped(inner[0]) if len(inner) == 1 and not isinstance(backbone, nn.Sequential) else backbone


def plain_vit(backbone: nn.Module) -> Optional[nn.Module]:
    """The plain vision transformer of timm in a backbone (``VisionTransformer``, ``Eva``), or None.

    One that embeds patches by a network of its own is not plain.
    """
    parts = ('patch_embed', 'blocks', 'norm', '_pos_embed', 'num_prefix_tokens')
    candidates = [vit for vit in (backbone, getattr(backbone, 'model', None)) if vit is not None]
    plain = (vit for vit in candidates if all(hasattr(vit, part) for part in parts))
    return next((vit for vit in plain if not hasattr(vit.patch_embed, 'backbone')), None)


def last_norm(vit: Any) -> nn.Module:
    """A transformer's norm of its last tokens: before pooling, or of those that timm pools first the one behind it."""
    behind = getattr(vit, 'fc_norm', None)
    return behind if isinstance(vit.norm, nn.Identity) and isinstance(behind, nn.Module) else vit.norm


def _takes_masks(vit: Any) -> bool:
    """Whether the blocks take an attention mask, as those of timm do from 1.0.16 on."""
    return 'attn_mask' in inspect.signature(vit.blocks[0].forward).parameters


class MaskedTokens(_OfBackbone):
    """A plain vision transformer of timm, by one pass over the whole image: a patch attends to patches of its own copy.

    ``vit_*_patch16_*``, DINOv3 and EVA-02 with patches of 16 pixels. Class and register tokens enter once per copy, so
    that they carry nothing from one to another. Its only map is that of stride 16.

    Args:
        backbone: the transformer, or a wrapper that holds it as ``model``.
        name: how messages call it.
        activation_checkpointing: recompute each block in the backward.

    Raises:
        ValueError: another patch size, or patches dropped at random.
    """

    def __init__(self, backbone: nn.Module, name: str = 'backbone', activation_checkpointing: bool = False) -> None:
        vit: Any = plain_vit(backbone)
        patch = tuple(vit.patch_embed.patch_size)
        if patch != (FUSED_STRIDES[0],) * 2:
            raise ValueError(
                f'student.encoder {name}: patches of {patch[0]} x {patch[1]} pixels do not divide the {MASK_CELL}-pixel mask '
                f'cell into maps of stride {FUSED_STRIDES[0]}; take a transformer with patches of {FUSED_STRIDES[0]} pixels'
            )
        dropped = getattr(vit, 'patch_drop', None)
        if dropped is not None and not isinstance(dropped, nn.Identity):
            raise ValueError(f'student.encoder {name}: patch_drop_rate must be 0, for the masks already hide patches')
        super().__init__(backbone, name)
        self.activation_checkpointing = activation_checkpointing or bool(getattr(vit, 'grad_checkpointing', False))

    def forward(self, images: Tensor, masks: Optional[Tensor] = None) -> Tuple[Tensor, ...]:
        """See :meth:`MaskedEncoder.forward`."""
        if masks is None:
            return self.whole(images)
        vit: Any = plain_vit(self.backbone)
        copies, prefix = masks.shape[0], vit.num_prefix_tokens
        grid = images.shape[-2] // FUSED_STRIDES[0], images.shape[-1] // FUSED_STRIDES[0]
        # tokens with their positions; class and register tokens stand in front
        embedded = vit._pos_embed(vit.patch_embed(images))
        tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        tokens = vit.norm_pre(tokens)
        tokens = torch.cat([tokens[:, :prefix].repeat(1, copies, 1), tokens[:, prefix:]], dim=1)
        # attention inside a copy; a patch that is hidden everywhere has itself alone
        patches = group_index(resize_masks(masks, grid)).flatten()
        groups = torch.cat([torch.arange(copies, device=masks.device).repeat_interleave(prefix), patches])
        allowed = (groups[:, None] == groups[None]) & (groups >= 0)[:, None]
        allowed = allowed | torch.eye(len(groups), dtype=torch.bool, device=masks.device)
        if not getattr(vit.blocks[0].attn, 'fused_attn', True):  # timm before 1.0.25 adds whatever it gets there
            allowed = torch.zeros_like(allowed, dtype=tokens.dtype).masked_fill(~allowed, -math.inf)
        if rope is not None and copies * prefix > prefix:
            rope = _rope_with_unrotated(rope, (copies - 1) * prefix)
        for index, block in enumerate(vit.blocks):
            options: Dict[str, Any] = {'attn_mask': allowed}
            if rope is not None:
                options['rope'] = rope[index] if getattr(vit, 'rope_mixed', False) else rope
            tokens = run_checkpointed(self.activation_checkpointing, partial(block, **options), tokens)
        tokens = last_norm(vit)(tokens)[:, copies * prefix :]
        return (tokens.transpose(1, 2).reshape(len(images), -1, *grid),)


def _rope_with_unrotated(rope: Tensor, tokens: int) -> Tensor:
    """Sines and cosines (..., L, 2 d) of L patches with those of ``tokens`` that are not rotated in front."""
    half = rope.shape[-1] // 2
    still = rope.new_zeros(*rope.shape[:-2], tokens, rope.shape[-1])
    still[..., half:] = 1.0
    return torch.cat([still, rope], dim=-2)


def check_isolation(encoder: MaskedEncoder, name: str) -> None:
    """Try on small images, in evaluation mode, that copies and images do not see each other.

    Raises:
        ValueError: the features of a copy depend on pixels that are hidden in it, or those of an image on another image.
    """
    images = _probe_images(encoder, 2)
    if images.device.type == 'meta':  # nothing is computed there
        return
    cells = (PROBE_SIZE[0] // MASK_CELL, PROBE_SIZE[1] // MASK_CELL)
    checker = (torch.arange(math.prod(cells), device=images.device) % 2).view(1, *cells).float()
    masks = torch.cat([checker, 1 - checker])
    hidden = resize_masks(masks, PROBE_SIZE)[0].bool()  # of copy 0
    other_cells = torch.where(hidden, images.flip(-1) + 1, images)
    other_image = torch.stack([images[0], images[1].flip(-1) + 1])
    with _Evaluated(encoder):
        before, cells_changed, image_changed = (encoder(probe, masks) for probe in (images, other_cells, other_image))
    for stride, *maps in zip(encoder.strides, before, cells_changed, image_changed):
        kept = ~resize_masks(masks, (maps[0].shape[-2], maps[0].shape[-1]))[0].bool()
        if not torch.equal(maps[0][..., kept], maps[1][..., kept]):
            what = 'the features of a copy depend on pixels that are hidden in it: the backbone mixes copies'
        elif not torch.equal(maps[0][0], maps[2][0]):
            what = 'the features of an image depend on the other images of the batch'
        else:
            continue
        raise ValueError(
            f'student.encoder {name}, map of stride {stride}: {what}, so that it could not be pretrained by masking. Take '
            'a backbone whose images go through it one by one'
        )
