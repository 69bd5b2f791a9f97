#!/usr/bin/env bash
# Everything that needs a GPU, in one go and within ten minutes: builds the package with CUDA, runs the tests that are
# marked cuda, the benchmarks, and compute-sanitizer over the smaller tests (where it is installed).
#
#   benchmarks/gpu_run.sh NAME [PYTHON]
#
# NAME stands for the machine in the names of the results: benchmarks/results/gpu-NAME-DATE.{md,json}. PYTHON (default
# python3) has torch >= 2.11 built for the CUDA version of the nvcc at hand, setuptools >= 77, numpy, scipy and pytest;
# without ninja the build is a serial one, and takes longer than the time that it has. Nothing is fetched from a network.
# Only the architecture of the first GPU is compiled, unless TORCH_CUDA_ARCH_LIST is set. What fails does not keep the
# rest from running; the exit status tells.
set -euo pipefail
SECONDS=0
most=580 # seconds for all of it
cd "$(dirname "$0")/.."
name=${1:?usage: benchmarks/gpu_run.sh NAME [PYTHON]}
python=$(command -v "${2:-python3}")
export PATH="$(dirname "$python"):$PATH" # where ninja is, if Python's environment is not the active one
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
output="benchmarks/results/gpu-$name-$(date +%F)"
mkdir -p benchmarks/results

"$python" - <<'PY'
import shutil
import numpy, pytest, scipy, setuptools, torch
assert int(setuptools.__version__.split(".")[0]) >= 77, f"setuptools {setuptools.__version__}: expected 77 or newer"
assert torch.cuda.is_available(), f"torch {torch.__version__} sees no GPU"
print("torch", torch.__version__, torch.cuda.get_device_name(), "ninja:", shutil.which("ninja"))
PY
if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  export TORCH_CUDA_ARCH_LIST
fi

echo "== build for $TORCH_CUDA_ARCH_LIST"
FORCE_CUDA=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} timeout 240 "$python" setup.py -q build_ext --inplace
"$python" -c 'import zerosum_ext as zx; i = zx.build_info()["cuda"]; print(i); assert i["loaded"]'

status=0
echo "== $SECONDS s: tests on the GPU"
timeout 120 "$python" -m pytest -q -m cuda tests/test_devices.py || status=1

echo "== $SECONDS s: benchmarks"
left=$((most - SECONDS))
timeout "$left" "$python" benchmarks/bench_gpu.py --output "$output" --seconds $((left / 2)) || status=1

sanitize() {
  local left=$((most - SECONDS)) options=(--error-exitcode 9 --report-api-errors no) help result=0
  help=$(compute-sanitizer --help 2>&1 || true)
  # Our kernels alone: those of torch would take the time.
  if [[ $help == *--kernel-name* ]]; then options+=(--kernel-name kns=zx); fi
  if [ "$left" -lt 30 ]; then
    echo "compute-sanitizer $1: no time is left"
    return 0
  fi
  timeout "$left" compute-sanitizer --tool "$1" "${options[@]}" \
    "$python" -m pytest -q -x -m cuda -k small tests/test_devices.py || result=$?
  if [ "$result" = 124 ]; then
    echo "compute-sanitizer $1: out of time, nothing found so far"
    return 0
  fi
  return "$result"
}

if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    echo "== $SECONDS s: compute-sanitizer $tool"
    sanitize "$tool" || status=1
  done
else
  echo "== compute-sanitizer is not installed: skipped"
fi
echo "== $SECONDS s: done, status $status; $output.md"
exit $status
