"""Prepare a virtual environment for this project; the second call only checks that it is ready.

Environment variables:
  GEOMIM_TORCH   what to install as torch for mmdet3d, as on pip's command line: a requirement such as 'torch==2.8.0'
                 or a wheel's path (a CUDA build, say); default: the version in constraints/
  GEOMIM_SPCONV  the extra that names the spconv wheel, such as spconv-cu126; default: spconv (CPU)
  GEOMIM_CACHE   where built wheels are kept; default: $XDG_CACHE_HOME/geomim or ~/.cache/geomim
  MAX_JOBS       compilers run side by side while building mmcv

Exit status: 0 ready, 1 a step failed, 3 no suitable Python on this machine, 130 interrupted.
"""

import argparse
import contextlib
import csv
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
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, NoReturn, Optional, Sequence, Set, Tuple

VERSION = '1'
ROOT = Path(__file__).resolve().parents[1]
# pins that hold on every Python from 3.9 to 3.12; the other lines of the file exist for a host's first Python only
PORTABLE_PINS = (
    'mmcv', 'mmdet', 'mmdet3d', 'mmengine', 'mmsegmentation', 'nuscenes-devkit', 'numpy', 'opencv-python',
    'opencv-python-headless', 'spconv',
)  # fmt: skip
TORCH_PROBE = """
import json, platform, sys, sysconfig, torch
from pathlib import Path
print(json.dumps(dict(
    torch=torch.__version__, gpu=torch.cuda.is_available(), tag='cp%d%d' % sys.version_info[:2],
    platform=sysconfig.get_platform(), headers=(Path(sysconfig.get_paths()['include']) / 'Python.h').is_file())))
"""


class Host(NamedTuple):
    """What one host needs."""

    venv: str
    pythons: Tuple[str, ...]  # the one that the constraints were tried on first
    constraints: Tuple[str, ...]
    extras: Tuple[str, ...]
    imports: str
    torch: str = 'torch'  # torch and what must match it
    mmcv: str = ''  # the package to compile, if any
    setuptools: str = ''
    packages: Tuple[str, ...] = ()  # installed beside the extras
    on_gpu: bool = False  # torch may be exchanged and mmcv compiled with CUDA


HOSTS = {
    'mmdet3d': Host(
        venv='.venv',
        pythons=('3.11', '3.10', '3.12', '3.9'),
        constraints=('mmdet3d.txt', 'dev.txt'),
        extras=('mmdet3d', 'dev'),
        imports='mmcv.ops, mmdet3d, spconv.pytorch, geomim',
        mmcv='mmcv',
        setuptools='setuptools<81',
        on_gpu=True,
    ),
    'bevdet': Host(
        venv='.venv-bevdet',
        pythons=('3.8',),
        constraints=('bevdet.txt',),
        extras=('test',),
        imports='mmcv.ops, mmdet3d.apis, geomim',
        torch='torch torchvision',
        mmcv='mmcv-full',
        setuptools='setuptools<60',
        packages=('mmcv-full', 'mmdet', 'mmsegmentation', 'mmdet3d', 'nuscenes-devkit'),
    ),
    'core': Host(
        venv='.venv-core',
        pythons=('3.8',),
        constraints=('bevdet.txt',),
        extras=('test',),
        imports='torch, geomim',
    ),
}


HOST_HELP = 'bevdet: mmcv 1.x and mmdet3d 1.0.0rc4 on torch 1.10, for tests; core: the core alone, on torch 1.10'


class SetupError(Exception):
    """A problem that the user can act on; `status` is the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def say(text: str) -> None:
    sys.stdout.write(text + '\n')
    sys.stdout.flush()


# ---------------------------------------------------------------------------------------------------- running steps


class Steps:
    """Runs commands one after another: output to a log file, one line of progress on the terminal."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.log.write_bytes(b'')

    def run(self, title: str, command: Sequence[str], **env: str) -> None:
        """Run `command`; a failure raises with the log's last lines, an interruption ends its whole process group."""
        say(f'- {title}')
        start = time.monotonic()
        with open(self.log, 'ab') as log:
            log.write(f'\n$ {" ".join(map(shlex.quote, command))}\n'.encode())
            log.flush()
            process = subprocess.Popen(
                command, cwd=str(ROOT), env={**clean_environment(), **env}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                self._watch(process, start)
            except BaseException:
                end_group(process)
                raise
        if process.returncode:
            raise SetupError(f'"{title}" failed (exit status {process.returncode}). {self.tail()}')

    def tail(self) -> str:
        """The log's last 30 lines and its path."""
        lines = self.log.read_text(encoding='utf-8', errors='replace').splitlines()[-30:]
        return f'The last lines of {self.log}:\n  ' + '\n  '.join(lines)

    def _watch(self, process: 'subprocess.Popen[bytes]', start: float) -> None:
        terminal = sys.stdout.isatty()
        pause = 1 if terminal else 30
        while True:
            try:
                process.wait(timeout=pause)
                break
            except subprocess.TimeoutExpired:
                line = f'    {elapsed(start)}  {self._last_line()}'
                sys.stdout.write(f'\r\033[K{line}' if terminal else f'{line}\n')
                sys.stdout.flush()
        if terminal:
            sys.stdout.write('\r\033[K')
        say(f'    {elapsed(start)}  {"done" if process.returncode == 0 else "failed"}')

    def _last_line(self) -> str:
        with open(self.log, 'rb') as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 65536))
            text = log.read().decode(errors='replace')
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        # a compiler's warnings say less than how far it is
        wanted = [r'\[\d+/\d+\]', r'(?!WARNING)\w']
        last = next((line for form in wanted for line in reversed(lines) if re.match(form, line)), '')
        built = re.match(r'(\[\d+/\d+\]).*?([\w.-]+\.(?:cpp|cc|cu|c))\b', last)  # a compiler call is too long to show
        return f'{built.group(1)} {built.group(2)}' if built else last[:70]


def elapsed(start: float) -> str:
    return '{}:{:02d}'.format(*divmod(int(time.monotonic() - start), 60))


def end_group(process: 'subprocess.Popen[bytes]') -> None:
    """End a step with everything that it started (pip, ninja, compilers); SIGINT first lets pip tidy up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)


def clean_environment() -> Dict[str, str]:
    """The user's environment without what would let packages in from, or send them to, other places."""
    unwanted = ('PYTHONPATH', 'PYTHONHOME', 'PIP_USER', 'PIP_TARGET', 'PIP_PREFIX')
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    env.update(PYTHONUNBUFFERED='1', PYTHONNOUSERSITE='1', PIP_DISABLE_PIP_VERSION_CHECK='1', PIP_NO_INPUT='1')
    env.setdefault('PIP_PROGRESS_BAR', 'off')
    return env


def interrupt_on_signals() -> None:
    """Treat SIGTERM and a lost terminal like Ctrl-C, and SIGINT also where a shell started us with it ignored."""

    def interrupt(_number: int, _frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup asks to go on
        signal.signal(signal.SIGHUP, interrupt)


@contextlib.contextmanager
def only_one(lock: Path, task: str) -> Iterator[None]:
    """Hold `lock`; the kernel frees it when the process ends in whatever way, so that no stale lock can remain."""
    import fcntl

    with open(lock, 'a+', encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or 'unknown'
            raise SetupError(f'Process {owner} is already {task} ({lock}). Wait for it, then repeat.') from None
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


# -------------------------------------------------------------------------------------------- Python, venv and stamp


def answers(*command: str) -> Optional[str]:
    """What a short command prints, None if it does not run or fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode().strip() if done.returncode == 0 else None


def python_version(python: str) -> Optional[str]:
    """'3.11' if `python` runs and can create environments, else None (a version manager's shim may exist but fail)."""
    code = 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])'
    return answers(python, '-c', code)


def find_python(host: Host, wanted: Optional[str]) -> Tuple[str, str]:
    """(interpreter, version): `wanted` first, then the running one, then PATH, then pyenv's."""
    candidates = [wanted] if wanted else [sys.executable]
    if not wanted or wanted in [f'python{version}' for version in host.pythons]:
        pyenv = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv')) / 'versions'
        for version in host.pythons:
            folders = [folder for folder in os.environ.get('PATH', '').split(os.pathsep) if folder]
            candidates += [str(Path(folder) / f'python{version}') for folder in folders]
            candidates += [str(path) for path in sorted(pyenv.glob(f'{version}.*/bin/python'), reverse=True)]
    for candidate in candidates:
        if not os.path.isabs(candidate) or os.path.exists(candidate):
            found = python_version(candidate)
            if found in host.pythons:
                return candidate, found
    names = ', '.join(sorted(host.pythons, key=lambda v: int(v.split('.')[1])))
    raise SetupError(
        f'This needs Python {names} with its venv module; {wanted or "no such interpreter"} '
        f'{"is not that" if wanted else "was found"}. Install one (Debian and Ubuntu: python{host.pythons[0]}-venv '
        f'and python{host.pythons[0]}-dev) or name one with --python.',
        status=3,
    )


def fingerprint(name: str, python: Optional[str]) -> str:
    """A hash of everything that decides what gets installed."""
    host = HOSTS[name]
    running = '{}.{}'.format(*sys.version_info[:2])
    init = (ROOT / 'projects/GeoMIM/geomim/__init__.py').read_text(encoding='utf-8')
    files = ['setup.py', 'pyproject.toml', *(f'constraints/{file}' for file in host.constraints)]
    facts = [
        VERSION, name, str(ROOT), python or (running if running in host.pythons else 'any'),
        os.environ.get('GEOMIM_TORCH', ''), os.environ.get('GEOMIM_SPCONV', ''), *host.packages,
        ''.join(re.findall(r'^__version__.*$', init, re.MULTILINE)),
        str((ROOT / 'plugin/__init__.py').exists()),
        *((ROOT / file).read_text(encoding='utf-8') for file in files),
    ]  # fmt: skip
    return hashlib.sha256('\0'.join(facts).encode()).hexdigest()


def read_record(info: Path) -> Dict[str, int]:
    """File -> size as pip noted it when it installed the package of this .dist-info folder."""
    with open(info / 'RECORD', encoding='utf-8', newline='') as file:
        return {row[0]: int(row[2]) for row in csv.reader(file) if len(row) == 3 and row[2] and row[0][-4:] != '.pyc'}


def forget_broken(venv: Path) -> None:
    """Make pip forget packages that an interruption left incomplete; it takes a half-written one for installed."""
    records: Dict[Path, Dict[str, int]] = {}
    for info in venv.glob('lib/python*/site-packages/*.dist-info'):
        try:
            records[info] = read_record(info)
        except (OSError, ValueError):
            records[info] = {}
    sizes: Dict[str, Set[int]] = {}  # a set, since the two OpenCV packages overwrite each other's files
    for record in records.values():
        for name, size in record.items():
            sizes.setdefault(name, set()).add(size)
    for info, record in records.items():
        files = ((info.parent / name, sizes[name]) for name in record)
        if not record or not all(file.is_file() and file.stat().st_size in allowed for file, allowed in files):
            say(f'- {info.name[: -len(".dist-info")]} is incomplete: it will be installed again')
            shutil.rmtree(str(info))


def create_venv(steps: Steps, venv: Path, python: str, version: str) -> str:
    """Create the environment, or keep a whole one of the same Python; returns its interpreter."""
    inside, owned = venv / 'bin' / 'python', venv / '.geomim'
    if python_version(str(inside)) == version and answers(str(inside), '-m', 'pip', '--version') is not None:
        forget_broken(venv)
        return str(inside)
    # only a folder that this script made is ever cleared
    if venv.exists() and any(venv.iterdir()) and not owned.exists():
        raise SetupError(f'{venv} exists and is no Python {version} environment: move it or choose another --venv.')
    if venv.exists():
        shutil.rmtree(str(venv))
    venv.mkdir(parents=True)
    owned.touch()
    steps.run(f'virtual environment {venv.name} with Python {version}', [python, '-m', 'venv', str(venv)])
    return str(inside)


def other_torch(host: Host) -> List[str]:
    """What the user wants as torch instead of the pinned version."""
    return shlex.split(os.environ.get('GEOMIM_TORCH', '')) if host.on_gpu else []


def read_pins(host: Host) -> Dict[str, str]:
    """Package -> pinned line of the host's constraint files."""
    pins = {}
    for file in host.constraints:
        for line in (ROOT / 'constraints' / file).read_text(encoding='utf-8').split():
            pins[line.partition('==')[0].lower()] = line
    return pins


def write_constraints(host: Host, version: str, venv: Path) -> str:
    """The constraints that hold here: all pins on the Python they were tried on, the portable ones elsewhere."""
    pins = read_pins(host)
    if version != host.pythons[0]:
        pins = {name: line for name, line in pins.items() if name in PORTABLE_PINS}
        say(f'- Python {version}: only the pins of the mm packages apply; everything was tried on {host.pythons[0]}')
    if other_torch(host):
        pins.pop('torch', None)
    path = venv / 'geomim-constraints.txt'
    path.write_text('\n'.join([*pins.values(), host.setuptools]).rstrip() + '\n', encoding='utf-8')
    return str(path)


# ------------------------------------------------------------------------------------------------- wheels made here


def cache_folder() -> Path:
    base = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    return Path(os.environ.get('GEOMIM_CACHE') or os.path.join(base, 'geomim')).absolute()


def compilers() -> Dict[str, str]:
    """Environment that names the C++ compiler, empty if the default one (g++) is there."""
    named = os.environ.get('CXX')
    if named and shutil.which(shlex.split(named)[0]):
        return {}
    if shutil.which('g++'):
        return {'CXX': 'g++'} if named else {}
    if shutil.which('clang++'):
        return {'CXX': 'clang++', 'CC': 'clang'}
    raise SetupError('mmcv is built from source, but there is no C++ compiler: install g++ or clang++, or set CXX.')


def jobs() -> str:
    """One compiler a core, as far as memory goes: a file of mmcv takes up to 2 GB."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') if hasattr(os, 'sysconf') else 0
    return str(max(1, min(os.cpu_count() or 1, memory // 2**31 or 1)))


def kept_wheel(package: str, key: str, build: Callable[[Path], Path]) -> Path:
    """The wheel of `package` in the cache's folder `key`; the first time `build(folder)` makes it there."""
    folder = cache_folder() / key
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder / 'lock', f'building {package}'):
        wheel = next(iter(sorted(folder.glob(f'{package.replace("-", "_")}-*.whl'))), None)
        if wheel is None:
            return build(folder)
        say(f'- {package}: wheel built earlier, {wheel}')
        return wheel


def build_wheel(
    steps: Steps,
    python: str,
    pin: str,
    folder: Path,
    title: str,
    prepare: Callable[[Path], None] = lambda source: None,
    **env: str,
) -> Path:
    """Turn the source of `pin` ('mmcv==2.1.0') into a wheel in `folder`.

    The source tree, which `prepare` may change, stays there until the wheel is made, so that a build can be taken up
    again. pip's own cache of wheels is left out: it knows neither the change nor which torch a wheel belongs to.
    """
    # torch looks for ninja on PATH, and compiles file by file without it
    env['PATH'] = os.pathsep.join([str(Path(python).parent), os.environ.get('PATH', os.defpath)])
    common = ['--no-deps', '--no-build-isolation', '--no-cache-dir']
    pip = [python, '-m', 'pip']
    package = pin.partition('==')[0]
    source = folder / pin.replace('==', '-')
    with tempfile.TemporaryDirectory(dir=str(folder)) as scratch:
        if not source.is_dir():
            command = [*pip, 'download', *common, '--no-binary', package, '-d', scratch, pin]
            steps.run(f'source of {pin}', command, **env)
            archive = next(Path(scratch).glob('*.tar.gz'))
            shutil.unpack_archive(str(archive), scratch)
            tree = archive.with_name(archive.name[: -len('.tar.gz')])
            prepare(tree)
            os.replace(str(tree), str(source))
        steps.run(title, [*pip, '-v', 'wheel', *common, '-w', scratch, str(source)], **env)
        built = next(Path(scratch).glob('*.whl'))
        os.replace(str(built), str(folder / built.name))
    shutil.rmtree(str(source), ignore_errors=True)
    return folder / built.name


def mmcv_wheel(steps: Steps, python: str, host: Host, pin: str) -> Path:
    """A compiled mmcv for exactly this torch and Python."""
    probe = subprocess.run([python, '-c', TORCH_PROBE], stdout=subprocess.PIPE, env=clean_environment(), check=True)
    facts = json.loads(probe.stdout.decode())
    cuda = host.on_gpu and facts['gpu'] and shutil.which('nvcc') is not None
    if facts['gpu'] and not cuda:
        say(f'- {host.mmcv} gets its CPU operators only' + (': a GPU but no nvcc' if host.on_gpu else ''))

    def build(folder: Path) -> Path:
        if not facts['headers']:
            raise SetupError('mmcv is built from source, but Python.h is missing (Debian and Ubuntu: python3-dev).')
        say(f'  {pin} is compiled once: about 8 minutes on 2 cores. The wheel is kept in {folder}')
        side_by_side = os.environ.get('MAX_JOBS') or jobs()
        env = {'MMCV_WITH_OPS': '1', 'FORCE_CUDA': '1' if cuda else '0', 'MAX_JOBS': side_by_side}
        env.update(compilers(), **({} if cuda else {'CUDA_VISIBLE_DEVICES': ''}))
        title = f'compile {pin} ({side_by_side} jobs; interrupt and repeat as you like)'
        return build_wheel(steps, python, pin, folder, title, **env)

    name = pin.replace('==', '-')
    key = f'{name}-torch-{facts["torch"]}-{facts["tag"]}-{facts["platform"]}' + ('-cuda' if cuda else '')
    return kept_wheel(host.mmcv, key, build)


def lift_bounds(source: Path) -> None:
    """mmdet3d 1.0.0rc4 refuses the last mmcv 1.x, and asks for a numba and others that no numpy of these pins suits."""
    init, requirements = source / 'mmdet3d' / '__init__.py', source / 'requirements' / 'runtime.txt'
    text, bound = init.read_text(), "mmcv_maximum_version = '1.7.0'"
    if bound not in text:
        raise SetupError(f'{init} has no line "{bound}": constraints/bevdet.txt must name mmdet3d 1.0.0rc4.')
    init.write_text(text.replace(bound, "mmcv_maximum_version = '1.7.2'"))
    requirements.write_text(re.sub(r'(?m)^(networkx|numba|trimesh)\b.*$', r'\1', requirements.read_text()))


def mmdet3d_wheel(steps: Steps, python: str, pin: str, mmcv_pin: str) -> Path:
    """mmdet3d 1.0.0rc4, pure Python, that accepts the pinned mmcv."""

    def build(folder: Path) -> Path:
        return build_wheel(steps, python, pin, folder, f'wheel of {pin}', lift_bounds, CUDA_VISIBLE_DEVICES='')

    return kept_wheel('mmdet3d', f'{pin}-{mmcv_pin}'.replace('==', '-'), build)


# --------------------------------------------------------------------------------------------------------------- main


def install(name: str, venv: Path, wanted: Optional[str]) -> None:
    """All steps for one host; every one of them may be repeated."""
    host = HOSTS[name]
    python, version = find_python(host, wanted)
    pins = read_pins(host)
    if host.mmcv and not any(cache_folder().glob(f'{pins[host.mmcv].replace("==", "-")}-torch-*/*.whl')):
        compilers()  # rather now than after the downloads
    steps = Steps(venv.with_name(venv.name + '.log'))
    inside = create_venv(steps, venv, python, version)
    constraints = write_constraints(host, version, venv)
    pip = [inside, '-m', 'pip', 'install', '-c', constraints]
    pinned = [pins[name] for name in host.torch.split()] if version == host.pythons[0] else ['torch>=2.1,<2.14']
    torch = other_torch(host) or pinned
    steps.run(f'torch ({" ".join(torch)})', [*pip, *torch])
    if not host.mmcv:
        steps.run('build tools', [*pip, 'pip>=21.3', pins['numpy']])
    else:
        steps.run('build tools', [*pip, 'pip>=21.3', host.setuptools, 'wheel', 'ninja', 'numpy'])
        wheels = [mmcv_wheel(steps, inside, host, pins[host.mmcv])]
        if 'mmdet3d' in host.packages:
            wheels.append(mmdet3d_wheel(steps, inside, pins['mmdet3d'], pins[host.mmcv]))
        names = ' and '.join(wheel.name.partition('-')[0] for wheel in wheels)
        steps.run(names, [*pip, '--no-deps', '--force-reinstall', *map(str, wheels)])
    extras = [*host.extras, *([os.environ.get('GEOMIM_SPCONV') or 'spconv'] if 'spconv' in host.imports else [])]
    title = f'geomim with {", ".join([*extras, *host.packages])}'
    steps.run(title, [*pip, '-e', f'{ROOT}[{",".join(extras)}]', *host.packages])
    steps.run('check', [inside, '-c', f'import {host.imports}'])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--host', choices=sorted(HOSTS), default='mmdet3d', help=HOST_HELP)
    parser.add_argument('--venv', type=Path, help='folder; default: .venv, .venv-bevdet or .venv-core')
    parser.add_argument('--python', help='interpreter to build on; default: the running one if it suits, else a search')
    parser.add_argument('--force', action='store_true', help='go through all steps even if everything looks ready')
    return parser.parse_args()


def prepare(args: argparse.Namespace) -> None:
    """Leave at once if the stamp says that everything is installed, else install and write the stamp last."""
    venv = (args.venv or ROOT / HOSTS[args.host].venv).absolute()
    stamp, wanted = venv / '.geomim-ready', fingerprint(args.host, args.python)
    ready = stamp.is_file() and stamp.read_text(encoding='utf-8') == wanted and (venv / 'bin' / 'python').exists()
    if ready and not args.force:
        say(f'Environment {venv} is ready.')
        return
    venv.parent.mkdir(parents=True, exist_ok=True)
    with only_one(venv.with_name(venv.name + '.lock'), 'setting up this environment'):
        say(f'Setting up {venv} for {args.host}; log: {venv}.log')
        if stamp.exists():
            stamp.unlink()
        install(args.host, venv, args.python)
        scratch = stamp.with_name(stamp.name + '.new')
        scratch.write_text(wanted, encoding='utf-8')
        os.replace(str(scratch), str(stamp))
        say(f'Environment {venv} is ready.')


def main() -> int:
    interrupt_on_signals()
    try:
        prepare(parse_arguments())
    except KeyboardInterrupt:
        say('\nInterrupted. What is finished is kept; run the same command again to go on.')
        return 130
    except SetupError as error:
        say(f'\nSet-up stopped: {error}')
        return error.status
    return 0


if __name__ == '__main__':
    sys.exit(main())
