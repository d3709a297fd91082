"""Each adapter refuses the other's host and says which one fits."""

from __future__ import annotations

import subprocess
import sys

import pytest


def message_of(code: str) -> str:
    """The last line that a process of its own writes to the error stream."""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


def test_the_plugin_of_the_other_host_is_refused() -> None:
    message = message_of('import geomim.plugin')
    assert message.startswith('ImportError: geomim.plugin is for BEVDet codebases (mmcv 1.x)')
    assert "custom_imports=dict(imports=['geomim.mmdet3d'])" in message


@pytest.mark.parametrize(
    'host', ["sys.modules['mmengine'] = None", "sys.modules['mmcv'] = types.SimpleNamespace(__version__='1.7.2')"]
)
def test_the_other_host_is_refused(host: str) -> None:
    message = message_of(f'import sys, types\n{host}\nimport geomim.mmdet3d')
    assert message.startswith('ImportError: geomim.mmdet3d is for mmdet3d 1.x')
    assert "custom_imports=dict(imports=['geomim.plugin'])" in message
