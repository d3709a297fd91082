"""Refuses a host other than mmdet3d 1.x with a message that names the adapter which fits."""

try:
    import mmcv
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'geomim.mmdet3d is for mmdet3d 1.x and cannot import its mmengine and mmcv ({error}): in a BEVDet codebase (mmcv 1.x) '
        "write custom_imports=dict(imports=['geomim.plugin']) instead"
    ) from error
if int(mmcv.__version__.split('.')[0]) < 2:
    raise ImportError(
        f'geomim.mmdet3d is for mmdet3d 1.x (mmcv 2.x), but this environment has mmcv {mmcv.__version__}: in a BEVDet codebase '
        "write custom_imports=dict(imports=['geomim.plugin']) instead"
    )
