#!/bin/sh
# Speed on a CUDA machine: ours at r = 0, 8, 13, 16 against timm's unmerged DeiT-S at batch 256. Writes benchmarks/records/gpu_*.json.
# From the repository's root, with the machine otherwise idle:  sh benchmarks/gpu.sh
set -eu
python=${PYTHON:-.venv/bin/python}
for what in inference training; do
    for precision in fp32 bf16; do
        "$python" benchmarks/gpu_speed.py --what "$what" --precision "$precision" --record "benchmarks/records/gpu_${what}_${precision}.json"
    done
done
