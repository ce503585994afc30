#!/bin/bash
# What a GPU does with kd: bare steps, stages, and several processes on one card. It ends within 25 minutes and writes
# outputs/benchmarks/gpu.md.   tests/benchmarks/gpu.sh            ARGS: --device cpu --seconds 0.2 to try it out
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD"
exec timeout 1500 "${PYTHON:-.venv/bin/python}" tests/benchmarks/gpu.py "$@"
