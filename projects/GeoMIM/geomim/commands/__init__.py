"""The command line: ``python -m geomim inspect | convert | verify | synthesize | infos | detect | env``."""
