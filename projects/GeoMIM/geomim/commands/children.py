"""Commands that are started as processes of their own and end with the process that started them."""

from __future__ import annotations

import os
import signal
import sys
from typing import List, Sequence

# Linux sends the signal when the parent is gone; the setting outlives exec. A parent that is gone already is asked for.
_PR_SET_PDEATHSIG = 1
_LAUNCHER = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGTERM)})
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def ends_with_parent(command: Sequence[str]) -> List[str]:
    """The command in a form that ends with the process that starts it, also with a killed one; on Linux, else as it is.

    The thread that starts it must live as long as the command runs.
    """
    if not sys.platform.startswith('linux'):
        return list(command)
    return [sys.executable, '-c', _LAUNCHER, str(os.getpid()), *command]
