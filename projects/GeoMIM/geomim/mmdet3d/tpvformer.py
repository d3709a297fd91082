"""TPVFormer for a config's ``custom_imports``: imports mmdet3d's project and installs the cures that it needs.

To have the project as it is, name ``projects.TPVFormer.tpvformer`` there instead.
"""

from __future__ import annotations

from .tpvformer_cures import apply, import_project

import_project()
apply()
