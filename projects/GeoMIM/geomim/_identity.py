"""One name a process: importing this module a second time under another package name is refused.

The package may be installed (``geomim``) or lie in an mmdet3d checkout (``projects.GeoMIM.geomim``). Loaded under both
names, every class would exist twice and be registered twice.
"""

import sys

_PACKAGE = __name__.rpartition('.')[0]
_claimed = sys.__dict__.setdefault('_geomim_loaded_as', _PACKAGE)
if _claimed != _PACKAGE and _claimed in sys.modules:
    raise ImportError(
        f'this process has loaded GeoMIM as {_claimed!r} already and cannot load it again as {_PACKAGE!r}: use one of the two names in all '
        "custom_imports ('geomim.mmdet3d' for the installed package, 'projects.GeoMIM.geomim.mmdet3d' in a checkout)"
    )
sys.__dict__['_geomim_loaded_as'] = _PACKAGE
