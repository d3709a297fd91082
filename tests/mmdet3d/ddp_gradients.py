"""Gradients of two samples: in one process their mean, under torchrun what DistributedDataParallel makes of a sample a rank.

Batch norms stand in evaluation mode, for their batch statistics would rightly differ. All ranks share the masks, as is the default.

    [torchrun --nproc-per-node=2] ddp_gradients.py DATA_ROOT OUTPUT_PREFIX
"""

from __future__ import annotations

import os
import sys

import torch
from micro import micro_config  # beside this script
from mmengine.dist import get_rank, get_world_size, init_dist
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import DATASETS, MODELS, init_default_scope


def main() -> None:
    data_root, prefix = sys.argv[1:]
    config = micro_config('/nowhere', data_root)
    init_default_scope('mmdet3d')
    if 'RANK' in os.environ:
        init_dist('pytorch', backend='nccl')  # the adapter turns it into gloo where there is no GPU
    dataset = DATASETS.build({**config.train_dataloader.dataset, 'pipeline': config.val_dataloader.dataset.pipeline})
    torch.manual_seed(0)
    model = MODELS.build(config.model).train()
    with torch.no_grad():  # the identity start of cross-view attention would leave gradients zero
        for value in model.student.parameters():
            value.add_(torch.randn_like(value) * 0.02)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    world, rank = get_world_size(), get_rank()
    wrapped = model
    if world > 1:
        wrapped = MMDistributedDataParallel(module=model, device_ids=None, broadcast_buffers=False)
    for index in range(rank, 2, world):
        sample = dataset[index]
        batch = dict(inputs={k: [v] for k, v in sample['inputs'].items()}, data_samples=[sample['data_samples']])
        batch = model.data_preprocessor(batch, True)
        result = wrapped(**batch, mode='loss')
        (sum(result.values()) * world / 2).backward()
    if rank == 0:
        gradients = {name: value.grad for name, value in model.student.named_parameters() if value.grad is not None}
        torch.save(gradients, f'{prefix}_{world}.pth')


if __name__ == '__main__':
    main()
