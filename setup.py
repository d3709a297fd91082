"""Package metadata. It lives here and not in pyproject.toml because BEVDet users are pinned to setuptools < 60."""

import re
import sys
from pathlib import Path
from typing import Dict, List

import setuptools

ROOT = Path(__file__).resolve().parent
CORE = 'projects/GeoMIM/geomim'
# import name -> folder: one distribution is gathered from three rooms of the repository
PACKAGE_DIRS = {'geomim': CORE, 'geomim.plugin': 'plugin', 'geomim.configs': 'configs'}
# CUDA versions for which spconv publishes wheels; all of them import as `spconv`, so install exactly one
SPCONV_CUDA = ('114', '117', '118', '120', '121', '124', '126')
SPCONV_RANGE = '>=2.3.6,<2.4'
TEST = ['pytest>=7.4', 'pytest-xdist']
LINT = [f'{tool}; python_version >= "3.9"' for tool in ('ruff', 'mypy', 'codespell')]  # not among the pins for 3.8
MMSEG = ['mmsegmentation>=1.2,<1.3', 'ftfy', 'regex']  # mmseg imports the other two without asking for them


def read_version() -> str:
    """Version as written in the package, without importing it (torch may not be installed yet)."""
    text = (ROOT / CORE / '__init__.py').read_text(encoding='utf-8')
    found = re.search(r"^__version__ = '([^']+)'$", text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{CORE}/__init__.py: no line of the form __version__ = '1.2.3'")
    return found.group(1)


def find_packages() -> List[str]:
    """Every import package of the three rooms; a room that is absent contributes none."""
    names = []
    for name, folder in PACKAGE_DIRS.items():
        if (ROOT / folder / '__init__.py').is_file():
            names += [name, *(f'{name}.{child}' for child in setuptools.find_packages(str(ROOT / folder)))]
    if (ROOT / 'configs').is_dir():
        names.append('geomim.configs')
    return names


def package_data() -> Dict[str, List[str]]:
    """Configs are data, listed one by one because `**` needs setuptools >= 62.3."""
    configs = ROOT / 'configs'
    files = sorted(p.relative_to(configs) for p in configs.rglob('*') if p.is_file() and p.suffix in ('.py', '.md'))
    rigs = sorted(p.name for p in (ROOT / CORE / 'synthetic' / 'rigs').glob('*.json'))
    return {
        'geomim': ['py.typed'],
        'geomim.checkpoints.zoo': ['*.json', '*.pth'],
        'geomim.synthetic': [f'rigs/{name}' for name in rigs],
        'geomim.configs': [p.as_posix() for p in files],
    }


def extras() -> Dict[str, List[str]]:
    """Optional requirements by name."""
    table = {
        'mmdet3d': [
            'mmengine>=0.10.4,<0.11',
            'mmcv>=2.0.0rc4,<2.2',
            'mmdet>=3.0,<3.4',
            'mmdet3d>=1.4,<1.5',
            'nuscenes-devkit>=1.1.11',
            'numpy<2',
            'setuptools<81',  # mmengine imports pkg_resources at run time
            'tensorboard',
        ],
        'spconv': [f'spconv{SPCONV_RANGE}'],
        'mmseg': MMSEG,
        'timm': ['timm>=1.0', 'safetensors'],
        'test': TEST,
        'lint': LINT,
        'dev': [*TEST, *LINT, 'pre-commit', *MMSEG],
    }
    table.update({f'spconv-cu{cuda}': [f'spconv-cu{cuda}{SPCONV_RANGE}'] for cuda in SPCONV_CUDA})
    return table


def refuse_develop() -> None:
    """`setup.py develop` links one folder and would lose `geomim` and `geomim.plugin` without a word."""
    if 'develop' in sys.argv[1:]:
        raise SystemExit(
            'geomim: an editable install needs pip >= 21.3 and, with --no-build-isolation, setuptools >= 64 (this is '
            f'{setuptools.__version__}). Plain `pip install -e .` gets its own setuptools and leaves yours as it is; '
            '`pip install .` works with any version.'
        )


refuse_develop()
setuptools.setup(
    name='geomim',
    version=read_version(),
    description='GeoMIM: masked-image pretraining of multi-camera 3D networks with a LiDAR teacher',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8') if (ROOT / 'README.md').is_file() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.8',
    install_requires=['torch>=1.10', 'numpy'],
    extras_require=extras(),
    packages=find_packages(),
    package_dir=PACKAGE_DIRS,
    package_data=package_data(),
    zip_safe=False,
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.8',
        'Programming Language :: Python :: 3.11',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
