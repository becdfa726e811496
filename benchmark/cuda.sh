#!/usr/bin/env bash
# Test and time the scripts on a GPU. Install tests/requirements.txt first. The output goes to results/speed/cuda.txt.
cd "$(dirname "$0")/.." && {
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
  python -m pytest tests/test_cuda.py -v
  python benchmark/speed.py --cuda --compile
  python benchmark/speed.py
} 2>&1 | tee benchmark/results/speed/cuda.txt
