#!/usr/bin/env bash
# Everything that needs a GPU, in one go and within ten minutes: builds the package with CUDA, runs the tests that are
# marked cuda, compute-sanitizer over the smaller of them (where it is installed), and the benchmarks.
#
#   benchmarks/gpu_run.sh NAME [PYTHON]
#
# NAME stands for the machine in the names of the results: benchmarks/results/gpu-NAME-DATE.{md,json}. PYTHON (default
# python3) has torch >= 2.11 built for the CUDA version of the nvcc at hand, setuptools, numpy, scipy and pytest. Nothing
# is fetched from a network. Only the architecture of the first GPU is compiled, unless TORCH_CUDA_ARCH_LIST is set.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?usage: benchmarks/gpu_run.sh NAME [PYTHON]}
python=${2:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
output="benchmarks/results/gpu-$name-$(date +%F)"

"$python" - <<'PY'
import torch
assert torch.cuda.is_available(), f"torch {torch.__version__} sees no GPU"
print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())
PY
if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  export TORCH_CUDA_ARCH_LIST
fi

echo "== build for $TORCH_CUDA_ARCH_LIST"
FORCE_CUDA=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} timeout 180 "$python" setup.py -q build_ext --inplace
"$python" -c 'import zerosum_ext as zx; i = zx.build_info(); print(i["cuda"]); assert i["cuda"]["loaded"]'

status=0
echo "== tests on the GPU"
timeout 120 "$python" -m pytest -q -m cuda tests || status=1
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    echo "== compute-sanitizer $tool"
    timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest -q -m cuda -k small tests ||
      status=1
  done
else
  echo "== compute-sanitizer is not installed: skipped"
fi

echo "== benchmarks"
timeout 180 "$python" benchmarks/bench_gpu.py --output "$output" || status=1
exit $status
