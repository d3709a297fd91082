"""``python -m geomim env``: versions, devices, the host and what can be imported, as text to paste into an issue.

Packages are imported in processes of their own, since a broken one may end its process; that too becomes a row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Callable, Dict, Sequence, Tuple

import torch

PACKAGE: str = (__package__ or 'geomim.commands').rpartition('.')[0]
# shown name -> beginnings of names of distributions, of which one at most should be there
DISTRIBUTIONS = {
    'numpy': 'numpy', 'torch': 'torch', 'torchvision': 'torchvision', 'mmengine': 'mmengine', 'mmcv': 'mmcv mmcv-full',
    'mmdet': 'mmdet', 'mmdet3d': 'mmdet3d', 'mmseg': 'mmsegmentation', 'spconv': 'spconv spconv-cu*',
    'nuscenes-devkit': 'nuscenes-devkit', 'timm': 'timm', 'safetensors': 'safetensors',
    'onnxruntime': 'onnxruntime onnxruntime-*', 'triton': 'triton',
    'opencv': 'opencv-python opencv-python-headless opencv-contrib-python*', 'setuptools': 'setuptools',
}  # fmt: skip
# in the order in which they build on each other; names with a leading dot are rooms of this package
MODULES = (
    'numpy', 'cv2', 'mmengine', 'mmcv', 'mmcv.ops', 'mmdet', 'mmdet.models', 'mmdet3d', 'mmdet3d.models', 'mmseg', 'mmseg.models',
    'spconv.pytorch', 'nuscenes.nuscenes', 'timm', 'onnxruntime', '.mmengine', '.mmdet3d', '.bevdet', '.plugin', '.synthetic.world',
)  # fmt: skip
VARIABLES = (
    'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD',
    'OMP_NUM_THREADS',
    'MKL_NUM_THREADS',
    'CUDA_VISIBLE_DEVICES',
    'PYTHONPATH',
)
NOT_INSTALLED = 'not installed'
MARK = 'geomim-env '  # in front of a child's own lines, among whatever else an import prints
# MARK NAME...: a line per name on the standard output, past whatever an import makes of `sys.stdout`. It starts without torch,
# so that nothing is there which the imports themselves do not bring; they raise anything, SystemExit included.
CHILD = """
import importlib, importlib.util, json, os, sys
mark, *names = sys.argv[1:]
for name in names:
    try:
        if importlib.util.find_spec(name.partition('.')[0]) is None:
            found = 'not installed'
        else:
            version = getattr(importlib.import_module(name), '__version__', None)
            found = 'ok, %s' % version if version else 'ok'
    except BaseException as error:
        found = '%s: %s' % (type(error).__name__, ' '.join(str(error).split())[:300])
    os.write(1, ('\\n' + mark + json.dumps([name, found]) + '\\n').encode())
"""
SECONDS = 300  # that one child may take


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--json', action='store_true', help='for machines')


def run(arguments: argparse.Namespace) -> int:
    """Print the report; whatever is broken is a row of it, never an error."""
    report = make_report()
    print(json.dumps(report, indent=2) if arguments.json else describe(report))
    return 0


def make_report() -> Dict[str, Dict[str, str]]:
    """Section -> name -> value."""
    imports = guarded('imports', lambda: try_imports(MODULES))
    versions = guarded('versions', find_versions)
    return {
        'geomim': guarded('geomim', find_installation),
        'versions': versions,
        'host': {'found': find_host(versions, imports)},
        'devices': {**guarded('cuda', find_gpus), **guarded('cpu', find_cpu)},
        'imports': imports,
        'threads': guarded('threads', find_threads),
        'environment': find_variables(),
    }


def describe(report: Dict[str, Dict[str, str]]) -> str:
    """The report as text, a row per fact."""
    lines = []
    for section, rows in report.items():
        lines.append(section)
        width = max(map(len, rows), default=0)
        lines += [f'  {name:<{width}}  {value}' for name, value in rows.items()] or ['  none set']
    return '\n'.join(lines)


def guarded(name: str, find: Callable[[], Dict[str, str]]) -> Dict[str, str]:
    """What ``find`` finds, or the reason why it cannot, as a row."""
    try:
        return find()
    except Exception as error:  # a report about broken environments must not break on one
        return {name: f'cannot tell: {one_line(error)}'}


def one_line(error: BaseException) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'


# ------------------------------------------------------------------------------------------------------------ versions


def find_installation() -> Dict[str, str]:
    """Which copy of this package runs, and how it came there."""
    folder = Path(__file__).resolve().parents[1]
    found = {'version': str(sys.modules[PACKAGE].__version__), 'imported as': PACKAGE, 'path': str(folder)}
    checkout = folder.parents[2]
    if (checkout / '.git').exists():
        command = ['git', '-C', str(checkout), 'rev-parse', '--short', 'HEAD']
        head = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        found['checkout'] = f'{checkout} at {head.stdout.decode().strip() or "an unknown commit"}'
    try:
        distribution = metadata.distribution('geomim')
    except metadata.PackageNotFoundError:
        found['installed'] = 'no'
    else:
        origin = json.loads(distribution.read_text('direct_url.json') or '{}')
        editable = origin.get('dir_info', {}).get('editable', False)
        found['installed'] = f'{distribution.version}, {"editable" if editable else "a copy"}'
    return found


def find_versions() -> Dict[str, str]:
    """Versions by the metadata of installed distributions, which needs no import."""
    installed: Dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata['Name']
        if name:
            installed.setdefault(name.lower().replace('_', '-'), distribution.version)
    found = {'python': f'{platform.python_version()} on {platform.platform()}'}
    for shown, patterns in DISTRIBUTIONS.items():
        own = [name for name in sorted(installed) if any(matches(name, one) for one in patterns.split())]
        rows = [installed[name] if name == shown else f'{installed[name]} ({name})' for name in own]
        found[shown] = ', '.join(rows) or NOT_INSTALLED
    return found


def matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith('*') else name == pattern


def find_host(versions: Dict[str, str], imports: Dict[str, str]) -> str:
    """The codebase that an adapter can serve here."""
    usable = {name for name, what in imports.items() if what.startswith('ok')}
    if f'{PACKAGE}.bevdet' in usable:
        return f'mmdet3d {versions.get("mmdet3d")} on mmengine: custom_imports of {PACKAGE}.mmdet3d or {PACKAGE}.bevdet'
    if f'{PACKAGE}.mmengine' in usable:
        return f'mmengine without a working mmdet3d 1.x: custom_imports of {PACKAGE}.mmengine, for mmdet and mmseg'
    if f'{PACKAGE}.plugin' in usable:
        return f'mmcv {versions.get("mmcv")}: custom_imports of {PACKAGE}.plugin, for BEVDet codebases'
    return 'none: plain PyTorch'


# ------------------------------------------------------------------------------------------------------------- devices


def find_gpus() -> Dict[str, str]:
    """Every GPU with memory, capability and what its driver supports."""
    build = f'CUDA {torch.version.cuda}' if torch.version.cuda else f'ROCm {getattr(torch.version, "hip", None)}'
    if not torch.cuda.is_available():
        none = build.endswith('None')
        return {'gpu': 'none: torch is built for the CPU' if none else f'none that torch can use (built for {build})'}
    found = {'gpu runtime': f'{build}, cuDNN {torch.backends.cudnn.version()}, driver for {driver_version()}'}
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = facts.total_memory / 2**30
        found[f'gpu {index}'] = f'{facts.name}, {memory:.1f} GiB, capability {facts.major}.{facts.minor}'
    return found


def driver_version() -> str:
    """The newest CUDA that the driver supports, if this torch tells."""
    ask = getattr(getattr(torch, '_C', None), '_cuda_getDriverVersion', None)
    number = int(ask()) if ask else 0
    return f'CUDA {number // 1000}.{number % 1000 // 10}' if number else 'an unknown CUDA'


def find_cpu() -> Dict[str, str]:
    """Model, cores that this process may use, memory."""
    return {'cpu': cpu_model(), 'cores': f'{usable_cores()} of {os.cpu_count()}', 'memory': memory_size()}


def cpu_model() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):  # not Linux, or a processor that has no such line
        return platform.processor() or platform.machine()


def usable_cores() -> int:
    affinity = getattr(os, 'sched_getaffinity', None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def memory_size() -> str:
    try:
        return f'{os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30:.1f} GiB'
    except (AttributeError, OSError, ValueError):  # Windows; a system without these names
        return 'unknown'


def find_threads() -> Dict[str, str]:
    return {'torch': f'{torch.get_num_threads()} within an operation, {torch.get_num_interop_threads()} between them'}


def find_variables() -> Dict[str, str]:
    return {name: os.environ[name] for name in sorted(os.environ) if name in VARIABLES or name.startswith('GEOMIM_')}


# ------------------------------------------------------------------------------------------------------------- imports


def try_imports(modules: Sequence[str]) -> Dict[str, str]:
    """Module -> 'ok' with the module's version, or one line that says why not.

    A child that dies is followed by one for the modules after it.
    """
    names = [PACKAGE + module if module.startswith('.') else module for module in modules]
    found: Dict[str, str] = {}
    while len(found) < len(names):
        left = names[len(found) :]
        rows, ending = run_child(left)
        found.update(rows)
        if len(rows) < len(left):
            found[left[len(rows)]] = ending
    return found


def run_child(names: Sequence[str]) -> Tuple[Dict[str, str], str]:
    """What a child found out about the first of ``names``, all of them if it lived; how it ended."""
    command = [sys.executable, '-W', 'ignore', '-c', CHILD, MARK, *names]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=SECONDS)
        output, ending = done.stdout, how_it_ended(done.returncode, done.stderr)
    except subprocess.TimeoutExpired as error:
        output, ending = error.stdout or b'', f'no answer within {SECONDS} s'
    lines = output.decode(errors='replace').splitlines()
    rows = dict(json.loads(line[len(MARK) :]) for line in lines if line.startswith(MARK))
    return rows, ending


def how_it_ended(status: int, errors: bytes) -> str:
    last = (errors.decode(errors='replace').strip().splitlines() or ['nothing on stderr'])[-1][:300]
    if status < 0:
        return f'the import killed its process: {signal.strsignal(-status)}; {last}'
    return f'the import ended its process with status {status}; {last}'
