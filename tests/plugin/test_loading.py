"""Both ways of loading the plugin, each in a process of its own: beside a checkout's own ``projects`` and its own plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest

NAMES = {
    'models': ['GeoMIMLidarTeacher', 'GeoMIMPretrainer', 'GeoMIMSwin'],
    'pipelines': ['GeoMIMLidarFrame'],
    'datasets': ['GeoMIMCBGSDataset'],
    'hooks': ['GeoMIMCheckpointHook', 'GeoMIMEncoderExportHook', 'GeoMIMSeedHook', 'GeoMIMTeacherGuardHook'],
    'optimizers': ['GeoMIMLayerDecayOptimizerConstructor'],
}

# What BEVFormer's and FlashOCC's tools/train.py do with a config: its folders become a module's name, which is imported.
TRAIN = """
import importlib, json, os, sys
from mmcv import Config
cfg = Config.fromfile(sys.argv[1])
if cfg.get('plugin'):
    importlib.import_module('.'.join(os.path.dirname(cfg.plugin_dir).split('/')))
from mmcv.runner.hooks import HOOKS
from mmcv.runner.optimizer.builder import OPTIMIZER_BUILDERS
from mmdet3d.datasets.builder import DATASETS, PIPELINES
from mmdet3d.models.builder import BACKBONES, DETECTORS, HEADS, LOSSES, NECKS
places = dict(models=BACKBONES, pipelines=PIPELINES, datasets=DATASETS, hooks=HOOKS, optimizers=OPTIMIZER_BUILDERS)
found = {name: sorted(n for n in place.module_dict if n.startswith('GeoMIM')) for name, place in places.items()}
found['own'] = 'OwnNeck' in NECKS.module_dict
found['projects'] = getattr(sys.modules.get('projects'), '__file__', None)
found['modules'] = [name for name in sys.modules if name.endswith('plugin') and name.startswith(('geomim', 'projects'))]
sys.stdout.write(json.dumps(found) + '\\n')
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a regular package ``projects`` that holds a plugin, as FlashOCC has it."""
    own = tmp_path / 'projects' / 'mmdet3d_plugin'
    own.mkdir(parents=True)
    (tmp_path / 'projects' / '__init__.py').write_text('')
    (own / '__init__.py').write_text(
        'from mmdet3d.models.builder import NECKS\n\n\n@NECKS.register_module()\nclass OwnNeck:\n    pass\n'
    )
    return tmp_path


def load(checkout: Path, config: str, code: str = TRAIN) -> subprocess.CompletedProcess[str]:
    (checkout / 'config.py').write_text(config)
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, 'config.py'],
        cwd=str(checkout),
        env={**os.environ, 'PYTHONPATH': str(checkout), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )


def registered(done: subprocess.CompletedProcess[str]) -> Dict[str, Any]:
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


OURS_BY_FOLDER = "plugin = True\nplugin_dir = 'geomim/plugin/'\n"
OURS_BY_IMPORT = "custom_imports = dict(imports=['geomim.plugin'], allow_failed_imports=False)\n"
THEIRS_BY_FOLDER = "plugin = True\nplugin_dir = 'projects/mmdet3d_plugin/'\n"
THEIRS_BY_IMPORT = "custom_imports = dict(imports=['projects.mmdet3d_plugin'], allow_failed_imports=False)\n"


@pytest.mark.parametrize(
    'config, beside',
    [
        (OURS_BY_FOLDER, False),
        (OURS_BY_IMPORT, False),
        (OURS_BY_IMPORT + THEIRS_BY_FOLDER, True),
        (OURS_BY_FOLDER + THEIRS_BY_IMPORT, True),
        (OURS_BY_FOLDER + OURS_BY_IMPORT, False),
    ],
)
def test_everything_registers_beside_what_a_checkout_has(checkout: Path, config: str, beside: bool) -> None:
    found = registered(load(checkout, config))
    assert {place: found[place] for place in NAMES} == NAMES
    assert found['own'] == beside
    assert (found['projects'] is not None) == beside
    assert sorted(found['modules']) == ['geomim.plugin', *(['projects.mmdet3d_plugin'] if beside else [])]


def test_without_the_lines_nothing_is_there(checkout: Path) -> None:
    found = registered(load(checkout, ''))
    assert not any(found[place] for place in NAMES)


def test_another_hosts_mmcv_is_refused(checkout: Path) -> None:
    """As a BEVDet user's config would be read with mmengine's mmcv in the environment."""
    code = (
        "import sys, types\nsys.modules['mmcv'] = types.SimpleNamespace(__version__='2.1.0')\n"
        'import importlib\nimportlib.import_module("geomim.plugin")\n'
    )
    done = load(checkout, '', code)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        'ImportError: geomim.plugin is for BEVDet codebases (mmcv 1.x), but this environment has mmcv 2.1.0'
    )
    assert "custom_imports=dict(imports=['geomim.mmdet3d'])" in last


@pytest.mark.parametrize('absent', ['mmcv', 'mmdet3d'])
def test_a_host_that_is_not_there_is_named(checkout: Path, absent: str) -> None:
    done = load(checkout, '', f'import sys\nsys.modules[{absent!r}] = None\nimport geomim\nimport geomim.plugin\n')
    assert done.returncode == 1
    assert f'cannot import their {absent}' in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    'config', [OURS_BY_IMPORT.replace('plugin', 'mmdet3d'), OURS_BY_FOLDER.replace('/plugin', '/mmdet3d')]
)
def test_the_other_adapter_is_refused_and_this_one_named(checkout: Path, config: str) -> None:
    done = load(checkout, config)
    assert done.returncode == 1
    assert 'geomim.mmdet3d is for mmdet3d 1.x' in done.stderr
    assert "custom_imports=dict(imports=['geomim.plugin'])" in done.stderr


def test_a_core_of_two_names_is_refused(checkout: Path, repository: Path) -> None:
    """The package dropped into the checkout, where the plugin has loaded the installed one."""
    (checkout / 'projects' / 'GeoMIM').symlink_to(repository / 'projects' / 'GeoMIM')
    done = load(checkout, OURS_BY_IMPORT.replace("['geomim.plugin'", "['geomim.plugin', 'projects.GeoMIM.geomim'"))
    assert done.returncode == 1
    assert "has loaded GeoMIM as 'geomim' already" in done.stderr


# A fork's own stereo detector asks our backbone for the feature of its oldest frame.
STEREO = """
import types
import torch
from mmdet.models import DETECTORS as OF_MMDET  # where BEVDet registers its own
detector = DETECTORS.get('BEVStereo4D') or OF_MMDET.get('BEVStereo4D')
swin = BACKBONES.get('GeoMIMSwin')
sizes = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=(4, 4, 4, 2))
backbone = swin(return_stereo_feat=True, **sizes).eval()
images = torch.randn(1, 2, 3, 64, 96)
asked = detector.extract_stereo_ref_feat(types.SimpleNamespace(img_backbone=backbone), images)
found['fork'] = detector.__module__
found['difference'] = float((asked - backbone(images[0])[0]).abs().max())
sys.stdout.write(json.dumps(found) + '\\n')
"""


@pytest.mark.parametrize(
    'variable, module, config',
    [
        ('GEOMIM_BEVDET_CHECKOUT', 'mmdet3d.models.detectors.bevdet', OURS_BY_IMPORT),
        (
            'GEOMIM_FLASHOCC_CHECKOUT',
            'projects.mmdet3d_plugin.models.detectors.bevstereo4d',
            OURS_BY_IMPORT + THEIRS_BY_FOLDER,
        ),
        (
            'GEOMIM_FLASHOCC_CHECKOUT',
            'projects.mmdet3d_plugin.models.detectors.bevstereo4d',
            OURS_BY_FOLDER + THEIRS_BY_IMPORT,
        ),
    ],
)
def test_loads_in_a_real_checkout_whose_stereo_detector_takes_the_backbone(
    tmp_path: Path, variable: str, module: str, config: str
) -> None:
    place = os.environ.get(variable)
    if not place:
        pytest.skip(f'set {variable} to a checkout')
    (tmp_path / 'config.py').write_text(config)
    (tmp_path / 'train.py').write_text(TRAIN + STEREO)
    launcher = Path(__file__).with_name('in_checkout.py')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', str(launcher), str(tmp_path / 'train.py'), str(tmp_path / 'config.py')],
        cwd=place,
        env={**os.environ, 'PYTHONPATH': place, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    found = registered(done)
    assert {name: found[name] for name in NAMES} == NAMES
    assert found['fork'] == module
    assert found['difference'] < 1e-6
