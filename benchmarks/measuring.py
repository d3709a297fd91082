"""What the benchmarks share: a clock, peak memory, a process per measurement, precisions, and a rig of cameras."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from typing import Any, Callable, ContextManager, Dict, Optional, Sequence

import torch

from geomim import CameraRig


def timed(run: Callable[[], Any], device: str) -> float:
    """Seconds of one call, the device's work included."""
    synchronise = torch.cuda.synchronize if torch.device(device).type == 'cuda' else lambda: None
    synchronise()
    start = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - start


def spread(seconds: Sequence[float], scale: float = 1.0, digits: int = 3) -> str:
    """Median and range, times ``scale``."""
    low, middle, high = (scale * pick(seconds) for pick in (min, statistics.median, max))
    return f'{middle:9.{digits}f} ({low:.{digits}f} to {high:.{digits}f})'


def peak_mib(device: str) -> float:
    """Largest memory of this process so far, or of the device if that is a GPU."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def forget_peak(device: str) -> None:
    """Frees what is no longer used, and a GPU's :func:`peak_mib` starts anew; that of a process cannot."""
    gc.collect()
    if torch.device(device).type == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def precision_context(precision: str, device: str) -> ContextManager[Any]:
    """For ``fp32``, ``tf32`` or ``bf16``; sets whether a GPU rounds float32 to TF32, until the next call."""
    kind = torch.device(device).type
    if kind == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == 'tf32'
    return torch.autocast(kind, torch.bfloat16) if precision == 'bf16' else contextlib.nullcontext()


def product_tflops(precision: str, device: str) -> float:
    """Speed of a large matrix product, TFLOP/s, for the speed of a step to stand beside."""
    side = 8192 if torch.device(device).type == 'cuda' else 512
    kind = torch.bfloat16 if precision == 'bf16' else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    with precision_context(precision, device):
        fastest = min(timed(lambda: left @ right, device) for _ in range(5))
    return 2 * side**3 / fastest / 1e12


def machine(device: str) -> str:
    """One line, to stand above the figures."""
    on_gpu = torch.device(device).type == 'cuda'
    name = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    return (
        f'torch {torch.__version__}, Python {platform.python_version()}, {name}, {os.cpu_count()} cores, '
        f'{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} at the start'
    )


def apart(*arguments: str, command: Optional[Sequence[str]] = None) -> Dict[str, Any]:
    """The JSON line that this script with further arguments, or another command, ends with in a process of its own."""
    line = command or [sys.executable, *sys.argv, *arguments]
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    row: Dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def surround_rig(cams: int = 6, batch: int = 1) -> CameraRig:
    """Cameras evenly around the vehicle, 70 degrees wide."""
    cam2bev = torch.zeros(batch, cams, 4, 4)
    angles = torch.arange(cams) * (2 * torch.pi / cams)
    cam2bev[:, :, 0, 0], cam2bev[:, :, 0, 2] = angles.sin(), angles.cos()
    cam2bev[:, :, 1, 0], cam2bev[:, :, 1, 2] = -angles.cos(), angles.sin()
    cam2bev[:, :, 2, 1] = -1
    cam2bev[:, :, 3, 3] = 1
    intrinsics = torch.tensor([[1266.0, 0, 816], [0, 1266, 491], [0, 0, 1]]).expand(batch, cams, 3, 3)
    img_aug = torch.eye(4).repeat(batch, cams, 1, 1)
    img_aug[..., 0, 0] = img_aug[..., 1, 1] = 0.48
    img_aug[..., 0, 3], img_aug[..., 1, 3] = -32.0, -176.0
    return CameraRig.create(intrinsics, cam2bev, cam2bev, img_aug)
