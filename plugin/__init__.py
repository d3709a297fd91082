"""GeoMIM for BEVDet codebases (mmcv 1.x), imported as ``geomim.plugin``.

The adapter itself is not part of this version: nothing is registered here yet. What works in a BEVDet fork today is the core (``geomim``,
Python >= 3.8 and torch >= 1.10) and the checkpoints that ``python -m geomim convert --to bevdet`` writes.
"""
