"""The former ``python -m geomim.mmdet3d.infos ROOT``, for scripts that call it: ``python -m geomim infos ROOT --for mmdet3d``."""

import sys

from ..__main__ import main

if __name__ == '__main__':
    sys.exit(main(['infos', *sys.argv[1:], '--for', 'mmdet3d']))
