#!/usr/bin/env bash
# Everything that needs a GPU, in one go and within ten minutes: builds the package with CUDA, runs the tests that are
# marked cuda, profiles the kernels, benchmarks, runs compute-sanitizer over the smaller tests and counts in six kernels by
# ncu (where these are installed). What answers most comes first, in each part too.
#
#   benchmarks/gpu_run.sh NAME [PYTHON]
#   SECONDS_AT_MOST=300 BUILD=0 RESULTS=DIR benchmarks/gpu_run.sh NAME      with libraries that were built elsewhere
#
# NAME stands for the machine in the names of the results: RESULTS/gpu-NAME-DATE.{log,md,json}, RESULTS being
# benchmarks/results where it is not set. PYTHON (default python3) has torch >= 2.11 built for the CUDA version of the
# nvcc at hand, setuptools, numpy and scipy, and for the tests pytest; without ninja the build is a serial one, of some
# minutes. Nothing is fetched from a network. Only the architecture of the first GPU is compiled, unless
# TORCH_CUDA_ARCH_LIST is set; BUILD=0 takes the libraries that are in zerosum_ext/, as does a build that fails.
#
# Each part has its time and does without what others need: what fails, hangs or takes the process with it does not keep
# the rest from running. The exit status tells, also of a tool of the sanitizer's that did not finish.
set -uo pipefail
SECONDS=0
most=${SECONDS_AT_MOST:-580} # for all of it
name=${1:?usage: benchmarks/gpu_run.sh NAME [PYTHON]}
python=$(command -v "${2:-python3}") || {
  echo "there is no ${2:-python3}"
  exit 1
}
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
results=${RESULTS:-benchmarks/results}
mkdir -p "$results"
output="$results/gpu-$name-$(date +%F)"
exec > >(tee "$output.log") 2>&1

# Where ninja is, if Python's environment is not the active one; and nvcc and the sanitizer, if nobody has said so.
PATH="$(dirname "$python"):$PATH"
for folder in "${CUDA_HOME:-/usr/local/cuda}" /usr/local/cuda-*; do
  if [ -d "$folder" ]; then PATH="$PATH:$folder/bin:$folder/compute-sanitizer"; fi
done
export PATH PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0

# Seconds until so many before the end, at least one: to timeout 0 is for ever.
left() {
  local n=$((most - SECONDS - ${1:-0}))
  echo $((n > 1 ? n : 1))
}
least() { echo $(($1 < $2 ? $1 : $2)); }

timeout 100 "$python" - <<'PY' || { echo "nothing can be measured here"; exit 1; }
import importlib.util
import shutil
import numpy, scipy, torch
print("torch", torch.__version__, "CUDA", torch.version.cuda, "numpy", numpy.__version__, "scipy", scipy.__version__)
print("pytest:", importlib.util.find_spec("pytest") is not None, *(f"{x}: {shutil.which(x)}" for x in ("nvcc", "ninja", "gcc")))
assert torch.cuda.is_available(), f"torch {torch.__version__} sees no GPU"
print(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0))
PY
if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ] && [ "${BUILD:-1}" != 0 ]; then
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  export TORCH_CUDA_ARCH_LIST
fi

# Builds in a copy without pyproject.toml, which setuptools before 77 does not understand. What was compiled before a
# failure is kept by ninja for the next try.
build() {
  local seconds jobs=$1
  seconds=$(least 300 "$(left 200)")
  if mkdir "$work/tree" 2> /dev/null; then
    cp -r setup.py csrc zerosum_ext "$work/tree"
    rm -f "$work"/tree/zerosum_ext/*.so
  fi
  (cd "$work/tree" && FORCE_CUDA=1 MAX_JOBS=$jobs timeout -k 5 "$seconds" "$python" setup.py -q build_ext --inplace)
}
if [ "${BUILD:-1}" != 0 ]; then
  echo "== $SECONDS s: build for $TORCH_CUDA_ARCH_LIST"
  memory=$(awk '/MemAvailable/ { print int($2 / 3000000) + 1 }' /proc/meminfo) # a compiler takes up to 3 GB
  jobs=${MAX_JOBS:-$(least "$(nproc)" "${memory:-2}")}
  if ! build "$jobs" && { [ "$SECONDS" -gt 150 ] || ! build 2; }; then
    echo "the build failed"
    status=1
  fi
  for library in "$work"/tree/zerosum_ext/*.so; do
    if [ -e "$library" ]; then mv -f "$library" zerosum_ext/; fi
  done
fi
timeout 60 "$python" -c 'import zerosum_ext as zx; i = zx.build_info()["cuda"]; print(i)
assert i["loaded"] and not zx._ops.gpu_obstacle(None)' || {
  echo "without the kernels there is nothing to measure"
  exit 1
}

# Tests and benchmarks note what they begin, so that after a crash, a hang or an error that costs the process its GPU
# another process goes on with the rest.
echo "== $SECONDS s: tests on the GPU"
if "$python" -c 'import pytest'; then
  end=$((SECONDS + $(least $((most / 4)) "$(left 150)")))
  for _ in 1 2 3 4 5 6 7 8; do
    if [ "$SECONDS" -ge "$end" ]; then break; fi
    result=0
    TESTS_BEGUN="$work/tests" TESTS_SECONDS=60 timeout -k 5 $((end - SECONDS)) \
      "$python" -m pytest -v -m cuda --durations=5 tests/test_devices.py tests/test_step_graph.py || result=$?
    case $result in
      0 | 5) break ;; # 5: none is left
      1) status=1 && break ;;
      124) status=1 && echo "tests: out of time" ;;
      *) status=1 && echo "tests: the process ended with $result; the rest in another one" ;;
    esac
  done
else
  echo "tests: skipped, there is no pytest"
  status=1
fi

# The kernels one by one, which tells more than any time of a call.
echo "== $SECONDS s: kernels"
timeout -k 5 "$(least 75 "$(left 60)")" "$python" benchmarks/bench_kernels.py --seconds 50 \
  --output "$results/kernels-$name-$(date +%F)" || status=1

# A third of the time that is left, at most three minutes, is kept for what looks for faults.
kept=0
if command -v compute-sanitizer > /dev/null || command -v ncu > /dev/null; then kept=$(least 180 $(($(left) / 3))); fi
echo "== $SECONDS s: benchmarks"
end=$((SECONDS + $(left $((10 + kept)))))
third=$(((end - SECONDS) / 3))
begun=$((end - $(least 60 $((third > 20 ? third : 20))))) # no section begins later
limit=$(least 120 $(((end - SECONDS) / 2)))               # of a section
for try in 1 2 3 4; do
  if [ "$SECONDS" -ge "$begun" ]; then break; fi
  result=0
  timeout -k 5 $((end - SECONDS)) "$python" benchmarks/bench_gpu.py --begun "$work/sections" --limit "$limit" \
    --output "$output$([ "$try" = 1 ] || echo "-$try")" --seconds $((begun - SECONDS)) || result=$?
  if [ "$result" = 0 ]; then break; fi
  status=1
  if [ "$result" = 1 ] || [ "$result" = 124 ]; then break; fi # told, or out of time
  echo "benchmarks: the process ended with $result; the rest in another one"
done

# compute-sanitizer TOOL for so many seconds. Each allocation of torch's is one of CUDA's then: within the segments that
# torch else keeps, memcheck would see no overrun.
unfinished=""
sanitize() {
  local seconds=$2 options=(--error-exitcode 9 --report-api-errors no) help result=0
  help=$(compute-sanitizer --help 2>&1 || true)
  # Our kernels alone: those of torch would take the time.
  if [[ $help == *--kernel-name* ]]; then options+=(--kernel-name kns=zx); fi
  if [ "$seconds" -lt 20 ]; then
    echo "compute-sanitizer $1: NOT RUN, no time is left"
    unfinished+=" $1"
    return 1
  fi
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 5 "$seconds" compute-sanitizer --tool "$1" "${options[@]}" \
    "$python" -m pytest -v -x -m cuda -k small tests/test_devices.py || result=$?
  if [ "$result" = 124 ] || [ "$result" = 137 ]; then
    echo "compute-sanitizer $1: NOT FINISHED in $seconds s, what it found so far is above"
    unfinished+=" $1"
  fi
  return "$result"
}

# At most three minutes: racecheck, the slower one, has half of them, and memcheck what that leaves.
if command -v compute-sanitizer > /dev/null; then
  end=$((SECONDS + $(least 180 "$(left 10)")))
  echo "== $SECONDS s: compute-sanitizer racecheck"
  sanitize racecheck $(((end - SECONDS) / 2)) || status=1
  echo "== $SECONDS s: compute-sanitizer memcheck"
  sanitize memcheck $((end - SECONDS)) || status=1
else
  echo "== compute-sanitizer is not installed: skipped"
fi

# What the six kernels wait for that matter most, if ncu is here. Many machines do not let it count: no failure of ours.
kernels='^(flat_loss|softmax_loss|step_users|step_items|rank|negatives)_kernel'
if command -v ncu > /dev/null && [ "$(left 10)" -ge 30 ]; then
  echo "== $SECONDS s: ncu"
  timeout -k 5 "$(least 75 "$(left 10)")" ncu --target-processes all --kernel-name "regex:$kernels" --launch-count 40 \
    --section SpeedOfLight --section Occupancy --section WarpStateStats --section MemoryWorkloadAnalysis \
    --log-file "$results/ncu-$name-$(date +%F).txt" \
    "$python" benchmarks/bench_kernels.py --plain --seconds 60 ||
    echo "ncu: not finished, or it may not count; what it has is in $results/ncu-$name-$(date +%F).txt"
else
  echo "== ncu is not installed, or there is no time: skipped"
fi

echo "== $SECONDS s: done, status $status${unfinished:+, NOT FINISHED:$unfinished}; $(ls "$output"* 2> /dev/null | tr '\n' ' ')"
exit $status
