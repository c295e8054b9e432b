#!/usr/bin/env bash
# For a machine with a CUDA GPU: builds, tests, looks for bad memory accesses and races, and runs the whole benchmark.
# Wants in the environment: torch, nvcc and compute-sanitizer of a toolkit that fits it, the build requirements of pyproject.toml,
# and what the extras "test" and "benchmark" list.  PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-python}")
pytest="$(dirname "$python")/pytest" # not python -m pytest, which would import the checkout, where nothing is compiled

GRADSURGERY_CUDA=1 "$python" -m pip install --no-build-isolation --no-deps .
(cd / && "$python" -c 'import gradsurgery as gs; info = gs.build_info(); print(info); assert info["cpu"] and info["cuda"], info')

export GRADSURGERY_REQUIRE_CUDA=1
"$pytest" tests -k cuda

# A subset, as instrumented kernels are slow. Without torch's caching allocator every tensor is an allocation of its own, so that one
# step past its end is seen.
for tool in memcheck racecheck; do
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
    --kernel-name kernel_substring=gradsurgery "$pytest" tests/ops -k "cuda and not compile" -m "not slow"
done

"$python" benchmarks/run.py --device cuda
"$python" benchmarks/plot.py
