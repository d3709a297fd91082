"""Learning rate and weight decay of every parameter, against the published groups and on Swins of other depths."""

from __future__ import annotations

import json
from typing import Any, Dict, Tuple

import pytest
import torch
from torch import nn

from geomim.adapter.backbone import SwinBackbone
from geomim.adapter.layer_decay import LayerDecay, convnext_layer, describe_groups, swin_layer, vit_layer

LR, DECAY = 2e-4, 0.05


def settings(model: nn.Module, **options: Any) -> Dict[str, Tuple[float, float]]:
    """(factor of the learning rate, weight decay) of every parameter in the groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: Dict[str, Tuple[float, float]] = {}
    for group in LayerDecay(**options).groups(model, LR, DECAY):
        for parameter in group['params']:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group['lr'] / LR, group['weight_decay'])
    return found


def plant(root: nn.Module, name: str, shape: Tuple[int, ...]) -> None:
    """A parameter under a dotted name, with modules on the way."""
    *path, last = name.split('.')
    for part in path:
        if part not in dict(root.named_children()):
            root.add_module(part, nn.Module())
        root = dict(root.named_children())[part]
    root.register_parameter(last, nn.Parameter(torch.zeros(shape)))


class Detector(nn.Module):
    """A Swin with an output norm, a neck and a head."""

    def __init__(self, depths: Tuple[int, ...] = (1, 2, 1)) -> None:
        super().__init__()
        sizes: Dict[str, Any] = dict(num_heads=(1,) * len(depths), window_size=(4,) * len(depths))
        outputs = (len(depths) - 1,)
        self.img_backbone = SwinBackbone(
            embed_dims=8, depths=depths, **sizes, out_indices=outputs, pretrain_img_size=32
        )
        self.img_neck = nn.Conv2d(32, 4, 1)
        self.pts_bbox_head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


def test_groups_of_the_published_stereo_run(reference_folder: Any, manifest: Any) -> None:
    published = json.loads((reference_folder / 'layer_decay_swinb_stereo.json').read_text())
    shapes = manifest(published['config'])
    model = nn.Module()
    model.img_backbone = SwinBackbone(embed_dims=16, num_heads=(1, 2, 4, 8))  # Swin-B, but narrow
    for name in published['params']:
        if not name.startswith('img_backbone.'):
            plant(model, name, tuple(1 for _ in shapes[name]))
    found = settings(model, decay_rate=0.85)
    assert sorted(found) == sorted(published['params'])
    for name, (scale, decay) in published['params'].items():
        assert found[name] == (pytest.approx(scale, rel=1e-9), decay), name
    assert settings(model, decay_rate=0.85, num_layers=24) == found


def test_every_block_is_a_layer_of_its_own() -> None:
    depths = (2, 3, 1)
    blocks = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    layers = [swin_layer(f'stages.{stage}.blocks.{block}.norm1.weight', depths) for stage, block in blocks]
    assert layers == [1, 2, 3, 4, 5, 6]
    assert swin_layer('norm2.bias', depths) is None


def test_layers_of_any_depths() -> None:
    found = settings(Detector((1, 2, 1)), decay_rate=0.5)
    assert found['pts_bbox_head.0.weight'] == found['img_neck.weight'] == (1.0, DECAY)
    assert found['img_backbone.norm2.weight'] == (1.0, 0.0)
    assert found['pts_bbox_head.1.weight'] == found['pts_bbox_head.0.bias'] == (1.0, 0.0)
    last_block = 'img_backbone.stages.2.blocks.0.attn.w_msa.'
    assert found[last_block + 'relative_position_bias_table'] == (0.5, DECAY)
    assert found[last_block + 'qkv.bias'] == (0.5, 0.0)
    assert found['img_backbone.stages.1.downsample.reduction.weight'] == (0.5, DECAY)
    assert found['img_backbone.stages.1.blocks.1.ffn.layers.1.weight'] == (0.5**2, DECAY)
    assert found['img_backbone.stages.1.blocks.0.ffn.layers.1.weight'] == (0.5**3, DECAY)
    assert found['img_backbone.stages.0.downsample.norm.weight'] == (0.5**3, 0.0)
    assert found['img_backbone.stages.0.blocks.0.norm1.weight'] == (0.5**4, 0.0)
    assert found['img_backbone.absolute_pos_embed'] == found['img_backbone.patch_embed.projection.weight']
    assert found['img_backbone.absolute_pos_embed'] == (0.5**5, DECAY)


def test_the_optimizers_own_weight_decay_is_left_alone() -> None:
    groups = LayerDecay(0.5).groups(Detector(), LR, None)
    assert {group.get('weight_decay') for group in groups} == {None, 0.0}


def test_the_first_group_has_the_full_learning_rate() -> None:
    groups = LayerDecay(0.5).groups(Detector(), LR, DECAY)
    rates = [group['lr'] for group in groups]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == LR
    assert describe_groups(groups) == '12 groups, learning rates 0.0002 down to 6.25e-06'


def test_an_optimizer_without_lr_is_refused() -> None:
    with pytest.raises(ValueError, match='must name its lr'):
        LayerDecay(0.5).groups(Detector(), None, DECAY)


@pytest.mark.parametrize(
    ('name', 'layer'),
    [
        ('stem.0.weight', 0),
        ('downsample_layers.0.0.weight', 0),
        ('stages.0.blocks.2.gamma', 1),
        ('stages.1.1.gamma', 2),
        ('stages.1.downsample.1.weight', 2),
        ('downsample_layers.2.1.weight', 3),
        ('stages.2.blocks.2.norm.weight', 3),
        ('stages.2.3.norm.weight', 4),
        ('stages.2.blocks.26.norm.weight', 11),
        ('stages.3.downsample.1.weight', 12),
        ('stages.3.2.gamma', 12),
        ('norm3.weight', None),
        ('head.norm.weight', None),
    ],
)
def test_layers_of_a_convnext_are_those_of_its_own_finetuning(name: str, layer: Any) -> None:
    """12 layers for depths (3, 3, 27, 3), under the names of timm and of the hosts."""
    assert convnext_layer(name, (3, 3, 27, 3)) == layer


@pytest.mark.parametrize(
    ('name', 'layer'),
    [('cls_token', 0), ('patch_embed.proj.weight', 0), ('reg_token', 0), ('blocks.0.norm1.weight', 1)]
    + [('blocks.11.attn.qkv.weight', 12), ('layers.11.ln1.weight', 12), ('norm.weight', None), ('ln1.weight', None)],
)
def test_layers_of_a_plain_transformer(name: str, layer: Any) -> None:
    assert vit_layer(name) == layer


def test_every_family_shares_out_its_rates() -> None:
    """A transformer of two blocks in timm's wrapper: 0.5 to the third for the embedding, the full rate behind the blocks."""
    transformer = nn.Module()
    transformer.patch_embed = nn.Linear(2, 2)
    transformer.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    transformer.norm = nn.LayerNorm(2)
    model = nn.Module()
    model.img_backbone = nn.Module()
    model.img_backbone.model = transformer
    found = settings(model, decay_rate=0.5)
    inside = 'img_backbone.model.'
    assert found[inside + 'patch_embed.weight'] == (0.125, DECAY)
    assert found[inside + 'blocks.1.weight'] == (0.5, DECAY)
    assert found[inside + 'norm.weight'] == (1.0, 0.0)


def test_stages_of_timms_swin_are_no_blocks() -> None:
    """They are called ``layers``, as the blocks of some transformers; a patch merging stands in front of its stage."""
    swin = nn.Module()
    swin.patch_embed = nn.Linear(2, 2)
    stages = [nn.Module() for _ in range(2)]
    stages[1].downsample = nn.Linear(2, 2)
    for stage in stages:
        stage.blocks = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    swin.layers = nn.Sequential(*stages)
    model = nn.Module()
    model.backbone = swin
    found = settings(model, decay_rate=0.5)
    names = ['layers.1.blocks.1', 'layers.1.blocks.0', 'layers.0.blocks.1', 'layers.0.blocks.0', 'patch_embed']
    assert [found[f'backbone.{name}.weight'][0] for name in names] == [0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert found['backbone.layers.1.downsample.weight'][0] == 0.25


def test_a_backbone_without_known_layers_is_named() -> None:
    model = nn.Module()
    model.backbone = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match='no Swin, plain vision transformer or ConvNeXt .* its backbone is a Conv2d'):
        LayerDecay(0.8).groups(model, LR, DECAY)
