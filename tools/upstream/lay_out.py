"""Lays projects/GeoMIM, package, configs and README, into a checkout of mmdet3d 1.4, in that repository's own format.

The copy is formatted by the tools, in the versions, that the checkout's .pre-commit-config.yaml names; they live in an
environment below the user's cache folder (GEOMIM_CACHE, else $XDG_CACHE_HOME/geomim or ~/.cache/geomim). The folder
appears whole or not at all, and a folder that is not as this command left it is not touched.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Sequence

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bootstrap import cache_folder

ROOT = Path(__file__).resolve().parents[2]
PROJECT = 'projects/GeoMIM'
LEFT_OUT = ('__pycache__', '*.egg-info', '*.pyc', 'py.typed', '*.pth')
# hook of the checkout -> distribution that brings it
TOOLS = {
    'flake8': 'flake8',
    'isort': 'isort',
    'yapf': 'yapf',
    'codespell': 'codespell',
    'mdformat': 'mdformat',
    'docformatter': 'docformatter',
}
ROUNDS = 6


class UpstreamError(Exception):
    """A problem that the user can act on."""


def say(text: str) -> None:
    print(text, flush=True)


def check_checkout(checkout: Path) -> None:
    """Raise ``UpstreamError`` unless the folder is a checkout of mmdet3d 1.4."""
    version = checkout / 'mmdet3d' / 'version.py'
    needed = (version, checkout / 'setup.cfg', checkout / '.pre-commit-config.yaml', checkout / 'projects')
    absent = [str(path.relative_to(checkout)) for path in needed if not path.exists()]
    if absent:
        raise UpstreamError(
            f'{checkout} is no checkout of mmdet3d: it has no {", ".join(absent)}. Name the root of a clone of '
            'https://github.com/open-mmlab/mmdetection3d, tag v1.4.0: make upstream DEST=FOLDER'
        )
    found = re.search(r"__version__ = '([^']+)'", version.read_text(encoding='utf-8'))
    if found is None or not found.group(1).startswith('1.4.'):
        raise UpstreamError(f'{checkout} holds mmdet3d {found.group(1) if found else "of no version"}, not 1.4')


def fingerprint(folder: Path) -> Dict[str, str]:
    """Relative path -> checksum of every file but compiled ones."""
    files = [path for path in sorted(folder.rglob('*')) if path.is_file() and '__pycache__' not in path.parts]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def record_of(checkout: Path) -> Path:
    """Where the state in which a checkout was left is kept."""
    return cache_folder() / 'upstream' / f'{hashlib.sha256(str(checkout).encode()).hexdigest()[:16]}.json'


def check_untouched(checkout: Path) -> None:
    """Raise ``UpstreamError`` if the project is there and is not as this command left it."""
    target, record = checkout / PROJECT, record_of(checkout)
    if not target.exists():
        return
    left = json.loads(record.read_text(encoding='utf-8')) if record.is_file() else {}
    now = fingerprint(target)
    changed = sorted(name for name in {**left, **now} if left.get(name) != now.get(name))
    if changed:
        raise UpstreamError(
            f'{target} is not as this command left it: {len(changed)} files differ, first {changed[0]}. It is left alone; '
            'move it away to have it laid out anew'
        )


def hooks_of(checkout: Path) -> List[str]:
    """Requirements of the tools, in the versions that the checkout names."""
    config = yaml.safe_load((checkout / '.pre-commit-config.yaml').read_text(encoding='utf-8'))
    wanted = []
    for repo in config['repos']:
        for hook in repo['hooks']:
            if hook['id'] in TOOLS:
                wanted.append(f'{TOOLS[hook["id"]]}=={repo["rev"].lstrip("v")}')
                wanted += hook.get('additional_dependencies', [])
    absent = sorted(name for name in TOOLS.values() if not any(entry.startswith(f'{name}==') for entry in wanted))
    if absent:
        raise UpstreamError(f'{checkout}/.pre-commit-config.yaml names no {", ".join(absent)}')
    return [*wanted, 'setuptools<80']  # tools of that time import pkg_resources


def formatters(checkout: Path) -> Path:
    """The bin folder of an environment with the checkout's tools, made on first use."""
    wanted = hooks_of(checkout)
    name = hashlib.sha256('\n'.join([sys.version, *wanted]).encode()).hexdigest()[:12]
    folder = cache_folder() / f'upstream-tools-{name}'
    if not (folder / 'ready').is_file():
        say(f"- the checkout's formatters, once: {' '.join(wanted)}")
        shutil.rmtree(folder, ignore_errors=True)
        run([sys.executable, '-m', 'venv', str(folder)])
        run([str(folder / 'bin' / 'python'), '-m', 'pip', 'install', '--quiet', '--no-input', *wanted])
        (folder / 'ready').touch()
    return folder / 'bin'


def run(command: Sequence[str], cwd: Path = ROOT, statuses: Sequence[int] = (0,)) -> str:
    """Output of a command; another exit status than expected is an ``UpstreamError``."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode not in statuses:
        tail = '\n'.join((done.stdout + done.stderr).splitlines()[-20:])
        raise UpstreamError(f'{" ".join(command[:4])} ... failed with exit status {done.returncode}:\n{tail}')
    return done.stdout


def copy_project(target: Path) -> None:
    """Package, README and configs, with imports by the checkout's name."""
    ignore = shutil.ignore_patterns(*LEFT_OUT)
    shutil.copytree(ROOT / PROJECT, target, ignore=ignore)
    for room in ('mmdet3d', 'mmdet', 'mmseg'):
        if (ROOT / 'configs' / room).is_dir():
            shutil.copytree(ROOT / 'configs' / room, target / 'configs' / room, ignore=ignore)
    for path in target.rglob('*'):
        if path.suffix in ('.py', '.md'):
            text = path.read_text(encoding='utf-8')
            path.write_text(by_checkout_name(text, target / 'configs' in path.parents), encoding='utf-8')


def by_checkout_name(text: str, imports: bool) -> str:
    """Command lines, and on demand imports in configs, of the installed package as those of a checkout."""
    package = f'{PROJECT.replace("/", ".")}.geomim'
    if imports:
        text = re.sub(r"'geomim(\.\w+)", rf"'{package}\1", text)
    return re.sub(r'python -m geomim\b', f'python -m {package}', text)


def format_project(target: Path, checkout: Path, tools: Path) -> None:
    """Format until nothing changes; files with lines that no tool shortens, which are prose and messages, say so to flake8."""
    for _ in range(ROUNDS):
        before = fingerprint(target)
        format_once(target, checkout, tools)
        if fingerprint(target) == before:
            break
    allow_long_prose(target, checkout, tools)
    faults = flake8(target, checkout, tools)
    if faults:
        raise UpstreamError(f'{len(faults)} lines are not as flake8 wants them, first {faults[0]}')


def format_once(target: Path, checkout: Path, tools: Path) -> None:
    files = sorted(str(path) for path in target.rglob('*.py'))
    run([str(tools / 'isort'), '--quiet', *files], checkout)
    run([str(tools / 'docformatter'), '--in-place', '--wrap-descriptions', '79', *files], checkout, (0, 3))
    run([str(tools / 'yapf'), '--in-place', '--parallel', *files], checkout)
    run([str(tools / 'mdformat'), '--number', *map(str, target.rglob('*.md'))], checkout)


def flake8(target: Path, checkout: Path, tools: Path) -> List[str]:
    """Its findings, 'path:line:code'."""
    form = '%(path)s:%(row)d:%(code)s'
    return run([str(tools / 'flake8'), f'--format={form}', str(target)], checkout, (0, 1)).splitlines()


def allow_long_prose(target: Path, checkout: Path, tools: Path) -> None:
    """Put flake8's own mark for long lines at the head of the files that need it."""
    long = {fault.rsplit(':', 2)[0] for fault in flake8(target, checkout, tools) if fault.endswith(':E501')}
    for path in (checkout / name for name in long):
        path.write_text('# flake8: noqa: E501\n' + path.read_text(encoding='utf-8'), encoding='utf-8')


def lay_out(checkout: Path) -> Path:
    """Make or renew the project in a checkout.

    Returns:
        Its folder.
    """
    checkout = checkout.expanduser().resolve()
    check_checkout(checkout)
    check_untouched(checkout)
    tools, target = formatters(checkout), checkout / PROJECT
    with tempfile.TemporaryDirectory(prefix='.GeoMIM-', dir=checkout / 'projects') as scratch:
        made = Path(scratch) / 'GeoMIM'
        copy_project(made)
        say('- format')
        format_project(made, checkout, tools)
        if target.exists():
            target.rename(Path(scratch) / 'before')
        made.rename(target)
    record = record_of(checkout)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(fingerprint(target)), encoding='utf-8')
    return target


def main() -> int:
    parser = argparse.ArgumentParser(prog='make upstream', description=str(__doc__).splitlines()[0])
    parser.add_argument('checkout', type=Path, nargs='?', help='root of a clone of mmdetection3d, tag v1.4.0')
    arguments = parser.parse_args()
    if arguments.checkout is None:
        parser.error('name a checkout of mmdet3d 1.4: make upstream DEST=FOLDER')
    try:
        target = lay_out(arguments.checkout)
    except UpstreamError as error:
        say(f'upstream: {error}')
        return 1
    say(
        f'{target} is laid out. Train: cd {target.parents[2]} && PYTHONPATH=. python tools/train.py {PROJECT}/configs/...'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
