#!/usr/bin/env bash
# What a GPU makes of GeoMIM, in about ten minutes: speed, memory and utilisation of pretraining, pooling, bf16 losses.
# Needs Python with torch >= 2.1 (and Triton for its kernel); no mm package and no installation of this repository.
#
#   benchmarks/gpu.sh --out FOLDER                       # FOLDER/gpu.json and FOLDER/gpu.md, rewritten after every figure
#   BEV_POOL_V2=path/to/mmdet3d/ops/bev_pool_v2 benchmarks/gpu.sh --out FOLDER   # with BEVDet's published kernel
#   benchmarks/gpu.sh --out FOLDER --device cpu --quick  # tries every part, at small size
#
# PYTHON names another interpreter; --help lists the options.
set -euo pipefail
benchmarks=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$benchmarks/../projects/GeoMIM${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$benchmarks/gpu.py" ${BEV_POOL_V2:+--bev-pool-v2 "$BEV_POOL_V2"} "$@"
