"""Compare pretraining, the finetuning backbone and the reading of checkpoints with a reference file.

The file's own configuration decides every size: any number of cameras, samples, channels and cells.
"""

from __future__ import annotations

from typing import Any, Dict, List

import torch
from torch import Tensor

from ..checkpoints.layouts import from_reference, to_reference
from ..checkpoints.loading import load_encoder, load_pretrained
from ..checkpoints.position_bias import resize_position_bias
from ..method.camera import CameraRig
from ..method.decoder import DecoderConfig
from ..method.depth import DepthBins, depth_maps
from ..method.grid import BEVGrid
from ..method.lift_splat import ViewTransformConfig
from ..method.pretrainer import GeoMIM, GeoMIMConfig, PretrainOutput
from ..method.swin import SwinConfig, SwinEncoder
from ..method.target import TargetConfig
from .reference_file import ReferenceFile, Row, compare_all

_ORDINALS = ('first', 'second', 'third', 'fourth', 'fifth', 'sixth', 'seventh', 'eighth')
# A reference file's group prefixes -> the prefixes of the published checkpoints.
_FILE_PREFIXES = (('encoder.', 'encoders.camera.backbone.'), ('vtransform.', 'encoders.camera.vtransform.'))


def _swin_config(entry: Dict) -> SwinConfig:
    known = ('embed_dims', 'depths', 'num_heads', 'window_size', 'mlp_ratio', 'out_indices', 'pretrain_img_size')
    return SwinConfig(**{name: _tuple(entry[name]) for name in known if name in entry})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _decoder_config(entry: Dict, fusion_window: int) -> DecoderConfig:
    return DecoderConfig(
        dim=entry['dim'],
        num_heads=entry['num_heads'],
        depth=entry['depth'],
        pos_embed_size=entry.get('pos_embed_size', 7),
        fusion_window=fusion_window,
    )


def _pretrain_config(config: Dict) -> GeoMIMConfig:
    view, target = config['view_transform'], config['target']
    x_bound, y_bound, z_bound = (tuple(view[name]) for name in ('xbound', 'ybound', 'zbound'))
    grid = BEVGrid(x_bound, y_bound, z_bound, config.get('axis_order', 'xy'))
    return GeoMIMConfig(
        encoder=_swin_config(config['encoder']),
        decoder=_decoder_config(config['decoder'], config['encoder'].get('fusion_window_size', 7)),
        view_transform=ViewTransformConfig(
            image_size=tuple(config['input_size']),
            grid=grid,
            depth_bins=DepthBins(*view['dbound']),
            channels=view['out_channels'],
            stride=view['stride'],
            downsample=view['downsample'],
        ),
        target=TargetConfig(target['channels'], target['patch_size'], target['eps']),
        copies=config['num_copies'],
        depth_loss_weight=view['depth_loss_weight'],
    )


def _published_names(state: Dict[str, Tensor], back: bool = False) -> Dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        for short, long in _FILE_PREFIXES:
            old, new = (long, short) if back else (short, long)
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        renamed[name] = value
    return renamed


def _rig(inputs: Dict[str, Tensor]) -> CameraRig:
    return CameraRig.create(
        inputs['camera_intrinsics'],
        inputs['camera2ego'],
        inputs['camera2lidar'],
        inputs['img_aug_matrix'],
        inputs['lidar_aug_matrix'],
    )


def _masks(inputs: Dict[str, Tensor], copies: int) -> Tensor:
    mask = inputs['mask'].float()
    if mask.dim() == 3:
        return mask
    if copies != 2:
        raise ValueError(f'in/mask is one mask of {tuple(mask.shape)}; {copies} copies need all of theirs')
    return torch.stack([mask, 1 - mask])


def _pretrain_outputs(result: PretrainOutput, semantic: Tensor, geometry: Tensor) -> Dict[str, Tensor]:
    named = {
        'semantic': semantic,
        'geometry': geometry,
        'target': result.target,
        'rec_loss': result.reconstruction_loss,
        'depth_loss': result.depth_loss,
    }
    for index, ordinal in zip(range(len(result.bev)), _ORDINALS):
        named[f'bev_{ordinal}'] = result.bev[index]
        named[f'pred_{ordinal}'] = result.predictions[index]
        named[f'depth_loss_{ordinal}'] = result.depth_losses[index]
    return named


def verify_pretrain(file: ReferenceFile) -> List[Row]:
    """The whole pretraining step: outputs and losses in evaluation mode, then losses and every gradient in training mode.

    The training step is made in float64: rounding may turn a ReLU whose input is next to zero, and with it gradients by a percent.
    """
    config = _pretrain_config(file.config)
    inputs = file.group('in/')
    model = GeoMIM(config)
    load_pretrained(model, from_reference(_published_names(file.group('param/'))), layout='geomim')
    rig, masks = _rig(inputs), _masks(inputs, config.copies)
    points = [inputs[f'points_{sample}'] for sample in range(rig.batch_size)]
    maps = depth_maps(points, rig, config.view_transform.image_size)
    arguments = (inputs['img'], rig, inputs['teacher_bev'], maps, masks)
    model.eval()
    with torch.no_grad():
        evaluated = model(*arguments)
        semantic, geometry = model.decode(model.encode(inputs['img'].flatten(0, 1), masks), rig, masks)
    ours = _pretrain_outputs(evaluated, semantic, geometry)
    model.double().train()
    trained = model(*(value.to(torch.float64) for value in arguments))
    (trained.reconstruction_loss + trained.depth_loss).backward()
    ours['train_rec_loss'], ours['train_depth_loss'] = trained.reconstruction_loss.float(), trained.depth_loss.float()
    gradients = {name: value.grad.float() for name, value in model.named_parameters() if value.grad is not None}
    gradients = _published_names(to_reference(gradients, config.view_transform), back=True)
    rows = compare_all(ours, file.group('out/'), 'out/')
    return rows + compare_all(gradients, file.group('grad/'), 'grad/', gradient=True)


def verify_finetune_backbone(file: ReferenceFile) -> List[Row]:
    """The finetuning encoder, its weights taken from a pretraining file beside this one."""
    params = file.group('param/')
    if not params:
        params = ReferenceFile(file.path.parent / str(file.config['weights']).split()[0]).group('param/')
    encoder = SwinEncoder(_swin_config(file.config)).eval()
    encoder_state = {name[len('encoder.') :]: value for name, value in params.items() if name.startswith('encoder.')}
    load_encoder(encoder, encoder_state or params)
    images = file.group('in/')['img']
    with torch.no_grad():
        stages = encoder.stage_outputs(images)
        outputs = encoder(images)
    ours = {f'stage{index}': output for index, output in zip(encoder.config.out_indices, outputs)}
    ours['stereo_stride4'] = stages[0].permute(0, 3, 1, 2)
    ours.update({f'loaded/{name}': value for name, value in encoder.state_dict().items()})
    return compare_all(ours, file.group('out/'), 'out/')


def verify_mixmae(file: ReferenceFile) -> List[Row]:
    """The pretraining model's tensors after starting from a MixMAE checkpoint."""
    config = file.config
    image = 32 * 2
    model = GeoMIM(
        GeoMIMConfig(
            encoder=_swin_config(config),
            decoder=_decoder_config(config['decoder'], 7),
            view_transform=ViewTransformConfig(image_size=(image, image)),
        )
    )
    load_pretrained(model, file.group('in/'), layout='mixmae')
    ours = to_reference(dict(model.state_dict()), model.config.view_transform)
    backbone = 'encoders.camera.backbone.'
    ours = {name[len(backbone) :]: value for name, value in ours.items() if name.startswith(backbone)}
    return compare_all(ours, file.group('out/'), 'out/')


def verify_position_bias(file: ReferenceFile) -> List[Row]:
    """Bias tables of one window size resized to another: ``in/14_to_16`` -> ``out/14_to_16``."""
    inputs = file.group('in/')
    ours = {name: resize_position_bias(table, int(name.split('_to_')[1])) for name, table in inputs.items()}
    return compare_all(ours, file.group('out/'), 'out/')
