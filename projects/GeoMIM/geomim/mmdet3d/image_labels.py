"""The former ``python -m geomim.mmdet3d.image_labels ROOT``, for scripts that call it: ``python -m geomim infos ROOT --for images``."""

import sys

from ..__main__ import main

if __name__ == '__main__':
    sys.exit(main(['infos', *sys.argv[1:], '--for', 'images']))
