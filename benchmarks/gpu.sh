#!/usr/bin/env bash
# Everything that wants a CUDA GPU, in one call and without a network:
#
#   benchmarks/gpu.sh [--logs FOLDER] [STEP ...]
#
#   build      the extension for this GPU, into build/gpu, which stays for later calls
#   test       every test on the GPU
#   sanitize   memcheck, racecheck and synccheck, each of which is a step, too, over a part of the tests
#   bench      the device's own time, into benchmarks/results; BENCH="surgery read ..." names other parts of run.py
#   plot       pictures of the results
#
# Without a STEP, all of them. Each step's output goes to FOLDER/STEP.log (default: build/gpu-logs), and new results and pictures are
# copied there. A step that fails stops none of the others; in the end the failed ones are named, and the exit status is 1. PYTHON
# names another interpreter. Wanted beside torch: nvcc of CUDA's major version of it, and per step what is missing is said.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

python=$(command -v "${PYTHON:-python3}") || { echo "gpu.sh: no Python was found; set PYTHON" >&2; exit 2; }
logs=build/gpu-logs
steps=()
while [ $# -gt 0 ]; do
  case "$1" in
    --logs) logs=${2:?"gpu.sh: --logs wants a folder"}; shift ;;
    build | test | memcheck | racecheck | synccheck | bench | plot) steps+=("$1") ;;
    sanitize) steps+=(memcheck racecheck synccheck) ;;
    *) echo "gpu.sh: expected build, test, sanitize, memcheck, racecheck, synccheck, bench or plot, found '$1'" >&2; exit 2 ;;
  esac
  shift
done
[ ${#steps[@]} -gt 0 ] || steps=(build test memcheck racecheck synccheck bench plot)
mkdir -p "$logs" || exit 2
logs=$(cd "$logs" && pwd)
site="$PWD/build/gpu"
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" GRADSURGERY_REQUIRE_CUDA=1

# Fails, and names all modules and programs of these that are not there.
wanted() {
  local missing=() each
  for each in "$@"; do
    case "$each" in
      nvcc | compute-sanitizer) command -v "$each" > /dev/null || missing+=("the program $each") ;;
      *) "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$each') is None)" || missing+=("the module $each") ;;
    esac
  done
  [ ${#missing[@]} -eq 0 ] || { printf 'missing: %s\n' "${missing[@]}"; return 1; }
}

# Not python -m pytest, which would import the checkout, where nothing is compiled.
on_gpu() { "$python" -c 'import sys, pytest; sys.path.remove(""); sys.exit(pytest.main(sys.argv[1:]))' "$@"; }

build() {
  wanted torch setuptools ninja pybind11 nvcc || return
  rm -rf "$site"
  GRADSURGERY_CUDA=1 "$python" -m pip install --no-index --no-build-isolation --no-deps --target "$site" . || return
  (cd / && "$python" -c 'import gradsurgery as gs; info = gs.build_info(); print(info); assert info["cpu"] and info["cuda"], info')
}

test_all() {
  wanted pytest hypothesis numpy && on_gpu tests -k "cuda and not emulat"
}

# A subset, as instrumented kernels are slow. Without torch's caching allocator every tensor is an allocation of its own, so that one
# step past its end is seen.
sanitized() {
  wanted pytest hypothesis numpy compute-sanitizer || return
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 1 --kernel-name kernel_substring=gradsurgery \
    "$python" -c 'import sys, pytest; sys.path.remove(""); sys.exit(pytest.main(sys.argv[1:]))' \
    tests/ops -k "cuda and not compile" -m "not slow"
}

bench() {
  # shellcheck disable=SC2086  # names of parts
  "$python" benchmarks/run.py --device cuda --only ${BENCH:-device}
}

plot() {
  wanted matplotlib && "$python" benchmarks/plot.py
}

run_step() {
  case "$1" in
    test) test_all ;;
    memcheck | racecheck | synccheck) sanitized "$1" ;;
    *) "$1" ;;
  esac
}

touch "$logs/.started"
failed=()
for step in "${steps[@]}"; do
  printf '=== %s: %s\n' "$step" "$logs/$step.log"
  begun=$SECONDS
  run_step "$step" 2>&1 | tee "$logs/$step.log"
  if [ "${PIPESTATUS[0]}" -eq 0 ]; then
    printf -- '--- %s passed in %s s\n' "$step" $((SECONDS - begun))
  else
    failed+=("$step")
    printf -- '--- %s FAILED after %s s\n' "$step" $((SECONDS - begun))
  fi
done
find benchmarks/results -type f -newer "$logs/.started" -exec cp {} "$logs" \;
rm "$logs/.started"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
