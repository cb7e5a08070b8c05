#!/usr/bin/env bash
# All that is measured on one GPU, in less than 9 minutes: torch, timm, triton and safetensors are enough. Writes
# gpu-DATE.json to $OUT, else to benchmarks/records. A script that fails or takes too long stops no other; then
# the exit code is 1. Options: those of run_all.py, such as --peer dtem=PATH, --only NAME, --trial (tiny, on a CPU).
# A trial tries our kernels in Triton's interpreter.
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
[[ " $* " == *" --trial "* ]] && export TRITON_INTERPRET=1
exec "${PYTHON:-python3}" benchmarks/run_all.py --gpu "$@"
