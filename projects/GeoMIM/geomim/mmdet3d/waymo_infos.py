"""The former ``python -m geomim.mmdet3d.waymo_infos ROOT``, for scripts that call it: ``python -m geomim infos ROOT --for waymo``."""

import sys

from ..__main__ import main

if __name__ == '__main__':
    sys.exit(main(['infos', *sys.argv[1:], '--for', 'waymo']))
