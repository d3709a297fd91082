"""mmdet's Swin, windows shifted in every other block, with a window size a stage: the baseline without GeoMIM (METHOD 7)."""

from __future__ import annotations

from typing import Any, Dict, Sequence

from mmdet.models.backbones.swin import SwinTransformer, WindowMSA, swin_converter
from mmengine.logging import print_log
from mmengine.registry import MODELS

from ..checkpoints.files import some, weights_of
from ..checkpoints.layouts import strip_prefix
from ..checkpoints.position_bias import fit_tables
from ..mmengine.compat import open_source


@MODELS.register_module()
class ShiftedSwin(SwinTransformer):
    """mmdet's ``SwinTransformer`` with windows of its own for each stage, started from weights with windows of any size.

    Args:
        window_size: tokens along a window's side, a stage each.
        sizes: everything else of ``SwinTransformer``; the defaults are Swin-B's.

    Raises:
        ValueError: another number of windows than of stages.
    """

    def __init__(self, window_size: Sequence[int] = (16, 16, 16, 8), **sizes: Any) -> None:
        sizes = {'embed_dims': 128, 'depths': (2, 2, 18, 2), 'num_heads': (4, 8, 16, 32), **sizes}
        if len(window_size) != len(sizes['depths']):
            raise ValueError(
                f'ShiftedSwin: window_size needs one entry for each of the {len(sizes["depths"])} stages, got {window_size}'
            )
        super().__init__(window_size=window_size[0], **sizes)
        options = {
            'qkv_bias': sizes.get('qkv_bias', True),
            'qk_scale': sizes.get('qk_scale'),
            'attn_drop_rate': sizes.get('attn_drop_rate', 0.0),
            'proj_drop_rate': sizes.get('drop_rate', 0.0),
        }
        for stage, heads, window in zip(self.stages, sizes['num_heads'], window_size):
            for number, block in enumerate(stage.blocks):
                dims = block.attn.w_msa.embed_dims
                block.attn.window_size, block.attn.shift_size = window, window // 2 if number % 2 else 0
                block.attn.w_msa = WindowMSA(dims, heads, (window, window), **options)

    def init_weights(self) -> None:
        """Load ``init_cfg['checkpoint']``, Swin's own file with ``convert_weights``; without one, start from scratch.

        Raises:
            ValueError: a file of which nothing fits, or that lacks weights of the blocks.
        """
        if self.init_cfg is None:
            super().init_weights()
            return
        path = self.init_cfg['checkpoint']
        weights, origin = weights_of(open_source(path))
        state: Dict[str, Any] = weights
        if self.convert_weights:
            state = dict(swin_converter(state))
        state, _ = fit_tables(strip_prefix(state, 'backbone.'), self.state_dict())
        state = {name: value for name, value in state.items() if not name.endswith('relative_position_index')}
        missing, unused = self.load_state_dict(state, strict=False)
        absent = tuple(name for name in missing if not name.endswith('index') and not name.startswith('norm'))
        if absent:
            raise ValueError(f'{path} lacks {len(absent)} tensors that ShiftedSwin needs: {some(absent)}')
        print_log(
            f'ShiftedSwin: {path} ({origin.describe()}) taken, but for {some(tuple(unused)) or "nothing"}',
            logger='current',
        )
