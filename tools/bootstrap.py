"""Prepare a virtual environment for this project; the second call only checks that it is ready.

Environment variables:
  GEOMIM_TORCH   what to install as torch, as on pip's command line: a requirement such as 'torch==2.8.0' or a wheel's
                 path (a CUDA build, say); default: the version in constraints/
  GEOMIM_SPCONV  the extra that names the spconv wheel, such as spconv-cu126; default: spconv (CPU)
  GEOMIM_CACHE   where built wheels are kept; default: $XDG_CACHE_HOME/geomim or ~/.cache/geomim
  MAX_JOBS       compilers run side by side while building mmcv

Exit status: 0 ready, 1 a step failed, 3 no suitable Python on this machine, 130 interrupted.
"""

import argparse
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
# every pin was tried on the first Python of its files; on 3.9, 3.10 and 3.12 only these hold
CONSTRAINTS = {'3.8': ('bevdet.txt',), '3.11': ('mmdet3d.txt', 'dev.txt')}
PORTABLE_PINS = (
    'mmcv', 'mmdet', 'mmdet3d', 'mmengine', 'mmsegmentation', 'nuscenes-devkit', 'numpy', 'opencv-python',
    'opencv-python-headless', 'spconv', 'ruff', 'codespell',
)  # fmt: skip
TORCH_PROBE = """
import json, sys, sysconfig, torch
from pathlib import Path
print(json.dumps(dict(
    torch=torch.__version__, cuda=torch.version.cuda, gpu=torch.cuda.is_available(),
    tag='cp%d%d' % sys.version_info[:2], platform=sysconfig.get_platform(),
    headers=(Path(sysconfig.get_paths()['include']) / 'Python.h').is_file())))
"""
# of every mmcv operator; torch/extension.h would bring <math.h>, with which `cos(angle)` means another function
HEADERS = ('pytorch_cpp_helper.hpp', 'pytorch_device_registry.hpp')
# OpenMMLab's ready wheels of mmcv 2.1; there are none for a later torch
READY = 'https://download.openmmlab.com/mmcv/dist/{}/torch2.1/index.html'
READY_FLAVOURS = ('cu118', 'cu121', 'cpu')


class Host(NamedTuple):
    """What one host needs."""

    venv: str
    pythons: Tuple[str, ...]  # the preferred one first
    extras: Tuple[str, ...]
    imports: str
    torch: str = 'torch'  # torch and what must match it
    mmcv: str = ''  # the package to compile, if any
    packages: Tuple[str, ...] = ()  # installed beside the extras


MODERN = ('3.11', '3.10', '3.12', '3.9')
HOSTS = {
    'mmdet3d': Host('.venv', MODERN, ('mmdet3d', 'dev'), 'mmcv.ops, mmdet3d, spconv.pytorch, geomim', mmcv='mmcv'),
    'bevdet': Host(
        '.venv-bevdet', ('3.8',), ('test',), 'mmcv.ops, mmdet3d.apis, geomim', 'torch torchvision', 'mmcv-full',
        ('mmcv-full', 'mmdet', 'mmsegmentation', 'mmdet3d', 'nuscenes-devkit'),
    ),
    'check': Host('.venv-check', (*MODERN, '3.8'), ('lint', 'test'), 'torch, geomim'),
}  # fmt: skip
HOST_HELP = (
    'mmdet3d: everything; check: torch and the checkers, for the core alone; bevdet: mmcv 1.x and mmdet3d 1.0.0rc4 on '
    'torch 1.10, for tests. Python 3.8 means torch 1.10.'
)


class SetupError(Exception):
    """A problem that the user can act on; `status` is the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


say = functools.partial(print, flush=True)


class Steps:
    """Runs commands one after another: output to a log file, one line of progress on the terminal."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.log.write_bytes(b'')

    def run(self, title: str, command: Sequence[str], **env: str) -> None:
        """Run `command`; a failure raises with the log's last lines, an interruption ends its whole process group."""
        say(f'- {title} ... ', end='')
        start = time.monotonic()
        with open(self.log, 'ab') as log:
            log.write(f'\n$ {" ".join(map(shlex.quote, command))}\n'.encode())
            log.flush()
            process = subprocess.Popen(
                command, cwd=str(ROOT), env={**clean_environment(), **env}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                process.wait()
            except BaseException:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):  # SIGINT first lets pip tidy up
                    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                        os.killpg(process.pid, number)
                        process.wait(timeout=5)
                raise
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        say(f'{"failed" if process.returncode else "done"} {minutes}:{seconds:02d}')
        if process.returncode:
            lines = self.log.read_text(encoding='utf-8', errors='replace').splitlines()[-30:]
            raise SetupError(f'"{title}" failed. The last lines of {self.log}:\n  ' + '\n  '.join(lines))


def clean_environment() -> Dict[str, str]:
    """The user's environment without what would let packages in from, or send them to, other places."""
    unwanted = ('PYTHONPATH', 'PYTHONHOME', 'PIP_USER', 'PIP_TARGET', 'PIP_PREFIX')
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    env.update(PYTHONUNBUFFERED='1', PYTHONNOUSERSITE='1', PIP_DISABLE_PIP_VERSION_CHECK='1', PIP_NO_INPUT='1')
    return {'PIP_PROGRESS_BAR': 'off', **env}


@contextlib.contextmanager
def only_one(lock: Path, task: str) -> Iterator[None]:
    """Hold `lock`; the kernel frees it when the process ends in whatever way, so that no stale lock can remain."""
    with open(lock, 'a', encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(f'Another process is already {task} ({lock}). Wait for it, then repeat.') from None
        except OSError:  # a file system without locks
            pass
        yield


def python_version(python: str) -> Optional[str]:
    """'3.11' if `python` runs and can create environments, else None (a version manager's shim may exist but fail)."""
    code = 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])'
    try:
        done = subprocess.run([python, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode().strip() if done.returncode == 0 else None


def find_python(host: Host, wanted: Optional[str]) -> Tuple[str, str]:
    """(interpreter, version): `wanted` alone, else the running one, then PATH and pyenv's in the order of preference."""
    candidates = [wanted or sys.executable]
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv')) / 'versions'
    for version in host.pythons:
        if wanted in (None, f'python{version}'):
            candidates += [os.path.join(folder, f'python{version}') for folder in os.get_exec_path() if folder]
            candidates += [str(path) for path in sorted(pyenv.glob(f'{version}.*/bin/python'), reverse=True)]
    for candidate in candidates:
        found = python_version(candidate)
        if found in host.pythons:
            return candidate, found
    raise SetupError(
        f'This needs Python {", ".join(host.pythons)} with its venv module; {wanted or "no such interpreter"} '
        f'{"is not that" if wanted else "was found"}. Install one (Debian and Ubuntu: python{host.pythons[0]}-venv '
        f'and python{host.pythons[0]}-dev) or name one with --python.',
        status=3,
    )


def fingerprint(name: str, python: Optional[str]) -> str:
    """A hash of everything that decides what gets installed."""
    running = '{}.{}'.format(*sys.version_info[:2])
    files = ['setup.py', 'pyproject.toml', 'projects/GeoMIM/geomim/__init__.py', 'tools/bootstrap.py']
    files += [f'constraints/{file}' for pins in CONSTRAINTS.values() for file in pins]
    facts = [
        name, str(ROOT), python or (running if running in HOSTS[name].pythons else 'any'),
        os.environ.get('GEOMIM_TORCH', ''), os.environ.get('GEOMIM_SPCONV', ''), str((ROOT / 'plugin/__init__.py').exists()),
    ]  # fmt: skip
    return hashlib.sha256(
        b'\0'.join([*map(os.fsencode, facts), *((ROOT / file).read_bytes() for file in files)])
    ).hexdigest()


def create_venv(steps: Steps, venv: Path, python: str, version: str) -> str:
    """Create the environment, or keep one of the same Python that no install was cut short in; returns its python."""
    inside, state = str(venv / 'bin' / 'python'), venv / '.geomim'
    if state.is_file() and state.read_text() == 'whole' and python_version(inside) == version:
        return inside
    # only a folder that this script made is ever cleared
    if venv.exists() and any(venv.iterdir()) and not state.exists():
        raise SetupError(f'{venv} exists and was not made by this command: move it or choose another --venv.')
    if venv.exists():
        shutil.rmtree(str(venv))
    venv.mkdir(parents=True)
    state.touch()
    steps.run(f'virtual environment with Python {version}', [python, '-m', 'venv', str(venv)])
    state.write_text('whole')
    return inside


def read_pins(version: str) -> Dict[str, str]:
    """Package -> pinned line for this Python."""
    files = CONSTRAINTS.get(version, CONSTRAINTS['3.11'])
    lines = [line for file in files for line in (ROOT / 'constraints' / file).read_text(encoding='utf-8').split()]
    pins = {line.partition('==')[0].lower(): line for line in lines}
    return pins if version in CONSTRAINTS else {name: line for name, line in pins.items() if name in PORTABLE_PINS}


def cache_folder() -> Path:
    base = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    return Path(os.environ.get('GEOMIM_CACHE') or os.path.join(base, 'geomim')).absolute()


def compiler() -> str:
    """The C++ compiler to use; raises if there is none."""
    named = os.environ.get('CXX') or next(filter(shutil.which, ('g++', 'clang++')), 'c++')
    if not shutil.which(shlex.split(named)[0]):
        raise SetupError('mmcv is built from source, but there is no C++ compiler: install g++ or clang++, or set CXX.')
    return named


class Package(NamedTuple):
    """A pinned package ('mmcv==2.1.0') whose wheel is made for an environment's `python` and kept in `folder`."""

    steps: Steps
    python: str
    pin: str
    folder: Path

    @classmethod
    @contextlib.contextmanager
    def locked(cls, steps: Steps, python: str, pin: str, *key: str) -> Iterator[Tuple['Package', Optional[Path]]]:
        """The package in the cache's folder of the `key`, locked, and its wheel if one was made before."""
        folder = cache_folder() / '-'.join((pin, *key)).replace('==', '-')
        folder.mkdir(parents=True, exist_ok=True)
        name = pin.partition('==')[0]
        with only_one(folder / 'lock', f'building {name}'):
            yield cls(steps, python, pin, folder), next(folder.glob(f'{name.replace("-", "_")}-*.whl'), None)

    @property
    def source(self) -> Path:
        return self.folder / self.pin.replace('==', '-')

    def fetch(self, title: str, kind: str, pattern: str, *arguments: str, **env: str) -> Path:
        """`pip download` or `pip wheel`, without dependencies; the one file that it leaves comes to the folder whole."""
        with tempfile.TemporaryDirectory(dir=str(self.folder)) as scratch:
            # pip's own cache of wheels knows neither a changed source nor which torch a wheel belongs to
            plain = ['-v', kind, '--no-deps', '--no-cache-dir', '-d' if kind == 'download' else '-w', scratch]
            self.steps.run(title, [self.python, '-m', 'pip', *plain, *arguments], **env)
            found = next(Path(scratch).glob(pattern))
            return found.replace(self.folder / found.name)

    def build(self, title: str, prepare: Optional[Callable[[Path], None]] = None, **env: str) -> Path:
        """Turn the source, as `prepare` changes it, into a wheel.

        The source tree stays until the wheel is made, so that an interrupted build goes on where it was.
        """
        # torch looks for ninja on PATH, and compiles file by file without it
        env['PATH'] = os.pathsep.join([str(Path(self.python).parent), os.environ.get('PATH', os.defpath)])
        if not self.source.is_dir():
            arguments = ('--no-build-isolation', '--no-binary', self.pin.partition('==')[0], self.pin)
            archive = self.fetch(f'source of {self.pin}', 'download', '*.tar.gz', *arguments, **env)
            with tempfile.TemporaryDirectory(dir=str(self.folder)) as scratch:
                shutil.unpack_archive(str(archive), scratch)
                tree = next(Path(scratch).iterdir())
                if prepare is not None:
                    prepare(tree)
                os.replace(str(tree), str(self.source))
            archive.unlink()
        wheel = self.fetch(title, 'wheel', '*.whl', '--no-build-isolation', str(self.source), **env)
        shutil.rmtree(str(self.source), ignore_errors=True)
        return wheel


def unite_sources(tree: Path) -> None:
    """Let mmcv's setup.py, which compiles every *.cpp, find two of them: one for dispatch, one for the CPU operators.

    Each includes the unchanged files of its folder, now named *.cpp.hpp, so that torch's headers are parsed twice and
    not 77 times. Four CPU operators define helpers of the same names; they get a suffix once the headers are in.
    """
    pytorch = tree / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    for folder in (pytorch, pytorch / 'cpu'):
        unit = [f'#include <{header}>' for header in HEADERS]
        for file in sorted(folder.glob('*.cpp')):
            clash = 'void bilinear_interpolate_gradient(' in file.read_text(encoding='utf-8')
            names = ('PreCalc', 'bilinear_interpolate_gradient', 'add') if clash else ()
            unit += [f'#define {name} {name}_{file.stem}' for name in names]
            unit += [f'#include "{file.name}.hpp"', *(f'#undef {name}' for name in (*names, 'min', 'max'))]
            file.rename(f'{file}.hpp')
        (folder / 'unit.cpp').write_text('\n'.join([*unit, '']), encoding='utf-8')


def mmcv_wheel(steps: Steps, python: str, pin: str) -> Path:
    """mmcv with its operators for exactly this torch and Python: kept, else a ready wheel that fits, else compiled."""
    probe = subprocess.run([python, '-c', TORCH_PROBE], stdout=subprocess.PIPE, env=clean_environment(), check=True)
    facts = json.loads(probe.stdout.decode())
    cuda = pin.startswith('mmcv==') and facts['gpu'] and shutil.which('nvcc') is not None
    key = ('torch', facts['torch'], facts['tag'], facts['platform'], *(['cuda'] if cuda else []))
    with Package.locked(steps, python, pin, *key) as (mmcv, kept):
        return kept or ready_wheel(mmcv, facts) or compiled(mmcv, facts, cuda)


def ready_wheel(mmcv: Package, facts: Dict[str, Any]) -> Optional[Path]:
    """OpenMMLab's own wheel, None where there is none."""
    flavour = 'cu' + facts['cuda'].replace('.', '') if facts['cuda'] else 'cpu'
    if not mmcv.pin.startswith('mmcv==') or not facts['torch'].startswith('2.1.') or flavour not in READY_FLAVOURS:
        return None
    title = f'ready wheel of {mmcv.pin} for torch 2.1 and {flavour}, from OpenMMLab (else it is compiled)'
    arguments = ['--no-index', '--only-binary', ':all:', '--retries', '0', '--timeout', '10']
    with contextlib.suppress(SetupError):
        return mmcv.fetch(title, 'download', '*.whl', *arguments, '--find-links', READY.format(flavour), mmcv.pin)
    return None


def compiled(mmcv: Package, facts: Dict[str, Any], cuda: bool) -> Path:
    """mmcv's operators for CUDA, else those for the CPU in two units, else file by file."""
    if not facts['headers']:
        raise SetupError('mmcv is built from source, but Python.h is missing (Debian and Ubuntu: python3-dev).')
    # one compiler a core, as far as memory goes: a file of mmcv takes up to 2 GB
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    jobs = os.environ.get('MAX_JOBS') or str(max(1, min(os.cpu_count() or 1, memory // 2**31)))
    env = {'MMCV_WITH_OPS': '1', 'FORCE_CUDA': str(int(cuda)), 'MAX_JOBS': jobs, 'CXX': compiler()}
    title = f'compile {mmcv.pin} {{}}, once; the wheel is kept in {mmcv.folder}'
    if cuda:
        return mmcv.build(title.format('with CUDA'), **env)
    if facts['gpu']:
        say(f'- {mmcv.pin} gets its CPU operators only' + (': a GPU but no nvcc' if 'full' not in mmcv.pin else ''))
    env['CUDA_VISIBLE_DEVICES'] = ''
    try:
        # CPPFLAGS come last among the compiler's flags; without debug information it takes half the time
        return mmcv.build(title.format('in two units'), unite_sources, CPPFLAGS='-g0', **env)
    except SetupError as error:
        say(
            f'  {error}\n- {mmcv.pin} does not build in two units here: now file by file, which takes ten times as long'
        )
        shutil.rmtree(str(mmcv.source), ignore_errors=True)
        return mmcv.build(title.format('file by file'), **env)


def lift_bounds(source: Path) -> None:
    """mmdet3d 1.0.0rc4 refuses the last mmcv 1.x, and asks for a numba and others that no numpy of these pins suits."""
    init, requirements = source / 'mmdet3d' / '__init__.py', source / 'requirements' / 'runtime.txt'
    text, bound = init.read_text(), "mmcv_maximum_version = '1.7.0'"
    if bound not in text:
        raise SetupError(f'{init} has no line "{bound}": constraints/bevdet.txt must name mmdet3d 1.0.0rc4.')
    init.write_text(text.replace(bound, "mmcv_maximum_version = '1.7.2'"))
    requirements.write_text(re.sub(r'(?m)^(networkx|numba|trimesh)\b.*$', r'\1', requirements.read_text()))


def mmdet3d_wheel(steps: Steps, python: str, pin: str, mmcv: str) -> Path:
    """mmdet3d 1.0.0rc4, pure Python, that accepts the pinned mmcv."""
    with Package.locked(steps, python, pin, mmcv) as (mmdet3d, kept):
        return kept or mmdet3d.build(f'wheel of {pin}', lift_bounds, CUDA_VISIBLE_DEVICES='')


def install(host: Host, venv: Path, wanted: Optional[str]) -> None:
    """All steps for one host; every one of them may be repeated."""
    python, version = find_python(host, wanted)
    pins = read_pins(version)
    torch = shlex.split(os.environ.get('GEOMIM_TORCH', '')) if version != '3.8' else []
    if host.mmcv and not torch and not any(cache_folder().glob(f'{pins[host.mmcv].replace("==", "-")}-torch-*/*.whl')):
        compiler()  # rather now than after the downloads
    if version not in CONSTRAINTS:
        say(f'- Python {version}: only the pins of the mm packages apply; everything was tried on 3.11')
    steps = Steps(venv.with_name(venv.name + '.log'))
    inside = create_venv(steps, venv, python, version)
    setuptools = 'setuptools<60' if version == '3.8' else 'setuptools<81'
    constraints = venv / 'geomim-constraints.txt'
    lines = [line for name, line in pins.items() if not (torch and name == 'torch')]
    constraints.write_text('\n'.join([*lines, setuptools, '']), encoding='utf-8')

    def pip(title: str, *requirements: str) -> None:
        """Install; whatever cuts this short leaves the environment marked as not whole."""
        (venv / '.geomim').write_text('pip at work')
        steps.run(title, [inside, '-m', 'pip', 'install', '-c', str(constraints), *requirements])
        (venv / '.geomim').write_text('whole')

    torch = torch or [pins.get(name, 'torch>=2.1,<2.14') for name in host.torch.split()]
    tools = ['pip>=21.3', pins['numpy'], *([setuptools, 'wheel', 'ninja'] if host.mmcv else [])]
    pip(f'{" ".join(torch)} and build tools', *torch, *tools)
    if host.mmcv:
        wheels = [mmcv_wheel(steps, inside, pins[host.mmcv])]
        if 'mmdet3d' in host.packages:
            wheels.append(mmdet3d_wheel(steps, inside, pins['mmdet3d'], pins[host.mmcv]))
        names = ' and '.join(wheel.name.partition('-')[0] for wheel in wheels)
        pip(f'{names} from {wheels[0].parent.parent}', '--no-deps', '--force-reinstall', *map(str, wheels))
    extras = [*host.extras, *([os.environ.get('GEOMIM_SPCONV') or 'spconv'] if 'spconv' in host.imports else [])]
    pip(f'geomim with {", ".join([*extras, *host.packages])}', '-e', f'{ROOT}[{",".join(extras)}]', *host.packages)
    if 'timm' in pins and host.mmcv == 'mmcv':
        # beside the environment: PyPI's torchvision, which timm imports, fails in it where torch has no CUDA, and so would
        # everything that looks for torchvision; tests/helpers.py brings the two in
        aside = ['--no-deps', '--upgrade', '--target', str(venv / 'timm')]
        aside += [pins[name] for name in ('timm', 'torchvision', 'safetensors')]
        steps.run('timm, for tests', [inside, '-m', 'pip', 'install', *aside])
    steps.run('check', [inside, '-c', f'import {host.imports}'])


def prepare(args: argparse.Namespace) -> None:
    """Leave at once if the stamp says that everything is installed, else install and write the stamp last."""
    venv = (args.venv or ROOT / HOSTS[args.host].venv).absolute()
    stamp, wanted = venv / '.geomim-ready', fingerprint(args.host, args.python)
    ready = stamp.is_file() and stamp.read_text(encoding='utf-8') == wanted and (venv / 'bin' / 'python').exists()
    if not ready or args.force:
        venv.parent.mkdir(parents=True, exist_ok=True)
        with only_one(venv.with_name(venv.name + '.lock'), 'setting up this environment'):
            say(f'Setting up {venv} for {args.host}; log: {venv}.log')
            if stamp.exists():
                stamp.unlink()
            install(HOSTS[args.host], venv, args.python)
            stamp.write_text(wanted, encoding='utf-8')
    say(f'Environment {venv} is ready.')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--host', choices=sorted(HOSTS), default='mmdet3d', help=HOST_HELP)
    parser.add_argument('--venv', type=Path, help='folder; default: .venv, .venv-bevdet or .venv-check')
    parser.add_argument('--python', help='interpreter to build on; default: the running one if it suits, else a search')
    parser.add_argument('--force', action='store_true', help='go through all steps even if everything looks ready')
    # a shell may have started us with SIGINT ignored; nohup asks to go on without a terminal
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        prepare(parser.parse_args())
    except KeyboardInterrupt:
        say('\nInterrupted. What is finished is kept; run the same command again to go on.')
        return 130
    except SetupError as error:
        say(f'\nSet-up stopped: {error}')
        return error.status
    return 0


if __name__ == '__main__':
    sys.exit(main())
