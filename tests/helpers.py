"""What tests of several rooms do alike, beside the fixtures: programs in processes of their own, worlds by links, equal tensors."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor


def run_quietly(
    arguments: Sequence[Any], cwd: Optional[Path] = None, status: int = 0, **environment: str
) -> subprocess.CompletedProcess:
    """A Python program on one thread; what it says is shown if it ends otherwise than with ``status``."""
    variables = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore', **environment}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=cwd)
    assert done.returncode == status, done.stderr[-4000:]
    return done


class Attack:
    """Calls ``function(*arguments)`` when it is unpickled the ordinary way."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def let_timm_import() -> None:
    """Bring in timm where the set-up put it, with the torchvision that it imports.

    torchvision's operators are compiled for CUDA and fail beside a CPU build of torch; timm needs none of them.
    """
    sys.path.append(str(Path(sys.prefix) / 'timm'))
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        sys.modules['torchvision._meta_registrations'] = ModuleType('torchvision._meta_registrations')


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Until it holds; an assertion fails if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs_still(pid: int) -> bool:
    """Whether a process is there and no zombie; asks Linux."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def linked_version(world: Path, root: Path, version: str) -> Path:
    """A world of v1.0-trainval by links, with a folder for tables of another version, which is returned; without lidarseg."""
    tables = root / version
    tables.mkdir(parents=True)
    for entry in world.iterdir():
        if entry.is_dir() and entry.name not in ('v1.0-trainval', 'lidarseg'):
            (root / entry.name).symlink_to(entry)
    return tables


def linked_world(world: Path, root: Path) -> Path:
    """A world by links, to which files may be added."""
    root.mkdir(parents=True)
    for entry in world.iterdir():
        (root / entry.name).symlink_to(entry)
    return root


def oriented_image(image: np.ndarray, orientation: int, kind: str = 'JPEG') -> bytes:
    """A file of (H, W, 3) uint8 BGR pixels whose metadata (EXIF, 1 to 8) tell viewers how to turn and mirror it."""
    from PIL import Image

    exif, file = Image.Exif(), io.BytesIO()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(file, kind, exif=exif)
    return file.getvalue()


def assert_same_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """The same names, types and bits."""
    assert sorted(ours) == sorted(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


def assert_close_with_gradients(
    ours: Tensor, theirs: Tensor, wanted: Sequence[Tensor], weight: Optional[Tensor] = None
) -> None:
    """Two computations give the same, and pass the same gradients to ``wanted``, all outputs weighted by chance or as given."""
    weight = torch.randn_like(ours) if weight is None else weight
    torch.testing.assert_close(ours * (weight != 0), theirs * (weight != 0))
    graphs = ((value * weight).sum() for value in (ours, theirs))
    for a, b in zip(*(torch.autograd.grad(graph, wanted, retain_graph=True) for graph in graphs)):
        torch.testing.assert_close(a, b)


# float16 on a CPU came later than bfloat16
HALVES = (torch.bfloat16, torch.float16)[: 2 if hasattr(getattr(torch, 'amp', None), 'is_autocast_available') else 1]


def assert_near_float32(
    losses_of: Callable[[], Mapping[str, Any]], model: Any, dtype: torch.dtype, loss: float = 0.02, cosine: float = 0.99
) -> None:
    """Losses under autocast are float32 and within ``loss`` of those without it, relative to them; the gradient's size is within five
    times that, and its direction has this cosine or more."""
    parameters = [value for value in model.parameters() if value.requires_grad]

    def run(autocast: bool) -> Tuple[Dict[str, Any], Any]:
        with torch.autocast('cpu', dtype, enabled=autocast):
            losses = dict(losses_of())
        model.zero_grad()
        sum(losses.values()).backward()  # torch.autograd.grad does not know the re-entrant checkpoints of torch < 2.0
        assert all(value.grad is not None for value in parameters)
        return losses, torch.cat([value.grad.flatten() for value in parameters])

    (exact, exact_gradient), (rough, rough_gradient) = run(False), run(True)
    assert {name: value.dtype for name, value in rough.items()} == dict.fromkeys(exact, torch.float32)
    errors = {name: abs(float(value.detach() / exact[name].detach()) - 1) for name, value in rough.items()}
    assert max(errors.values()) <= loss, errors
    size = float(rough_gradient.norm() / exact_gradient.norm())
    assert abs(size - 1) <= 5 * loss, size
    found = float(torch.nn.functional.cosine_similarity(rough_gradient, exact_gradient, dim=0))
    assert found >= cosine, found


def plain_depth_figures(results: Sequence[Any], bins: Any) -> Dict[str, float]:
    """Means of depth figures over the labelled cells of pretraining passes, by distance: a cell at a time, in Python's numbers."""
    found: Dict[str, float] = {}
    for lower, upper in ((0, 10), (10, 20), (20, 40)):
        near, metres, cells = 0.0, 0.0, 0
        for result in results:
            labels = result.depth_labels.flatten(0, 1)
            for image, row, column in (labels >= 0).nonzero().tolist():
                label = int(labels[image, row, column])
                if not lower <= bins.lower + (label + 0.5) * bins.step < upper:
                    continue
                cells += 1
                for depth in result.depth:
                    distribution = depth[image, :, row, column].tolist()
                    away = abs(distribution.index(max(distribution)) - label)
                    near += (away <= 1) / len(result.depth)
                    metres += away * bins.step / len(result.depth)
        if cells:
            found[f'depth_within_one_bin_{lower}_{upper}m'] = near / cells
            found[f'depth_error_{lower}_{upper}m'] = metres / cells
    return found
