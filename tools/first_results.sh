#!/usr/bin/env bash
# How long it takes from a bare Debian to a first useful result, for a shop, a researcher and an engineer. In a container:
#   docker run --rm -v "$PWD:/source:ro" debian:bookworm bash /source/tools/first_results.sh /source/dist/zerosum_ext-0.2.0.tar.gz
# or in a folder that debootstrap made. Each step prints "step | seconds | seconds of processor time"; the latter hardly
# depend on what else the machine does. TORCH is what pip installs, as for make. With a folder as second argument,
# "prepare" or "results" as third makes the steps up to torch, or those from there on.
set -euo pipefail
archive=$(realpath "$1")
work=$(realpath "${2:-$(mktemp -d)}")
TORCH=${TORCH:-torch==2.13.0}
export DEBIAN_FRONTEND=noninteractive
part=${3:-all}
begun=$(date +%s.%N)

since() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN { printf "%.0f", b - a }'; }
# Put the seconds of processor time of this shell, and of all that it ran and waited for, into spent.
processor() {
  times >"$work/times" # not in a pipe, which would be another shell
  spent=$(awk -F '[ms ]+' '{ s += 60 * ($1 + $3) + $2 + $4 } END { printf "%.1f", s }' "$work/times")
}
step() {
  local name=$1 begin before
  shift
  processor
  begin=$(date +%s.%N) before=$spent
  "$@" >"$work/log" 2>&1 || { cat "$work/log"; echo "FAILED: $name" >&2; exit 1; }
  processor
  echo "$name | $(since "$begin") | $(awk -v a="$before" -v b="$spent" 'BEGIN { printf "%.0f", b - a }')"
}
system() { apt-get update -q && apt-get install -q -y python3 python3-venv python3-dev g++ make; }
unpack() { mkdir -p "$work/zerosum_ext" && tar xzf "$archive" -C "$work/zerosum_ext" --strip-components 1; }
torch() {
  python3 -m venv "$work/venv"
  # shellcheck disable=SC2086  # TORCH may hold options of pip
  "$work/venv/bin/pip" install -q $TORCH && "$work/venv/bin/pip" install -q "setuptools>=77" ninja
}
package() { cd "$work/zerosum_ext" && "$work/venv/bin/pip" install -q --no-build-isolation .; }
sales() {
  "$work/venv/bin/python" - <<'PYTHON'
import csv
import random

random.seed(0)
with open("purchases.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["user", "item"])
    fame = [1 / (1 + item) for item in range(300)]
    for user in range(1000):
        taste = [f * (4 if item % 8 == user % 8 else 1) for item, f in enumerate(fame)]
        writer.writerows([f"customer{user}", f"article{item}"] for item in set(random.choices(range(300), taste, k=20)))
PYTHON
}
report() { zerosum-ext train purchases.csv --loss zerosum --weight 0.9 --output mine && test -s mine/report.html; }
recommend() { zerosum-ext recommend mine --user customer7 -k 10; }
row() {
  cd "$work/zerosum_ext"
  zerosum-ext reproduce --experiment benchmarks/paper/synthetic.toml --only "Zerosum w=.8" --seed 0 --output "$work/row"
  grep "Zerosum w=.8" "$work/row/REPORT.md"
  cd "$work/mine"
}
loop() {
  # The block of the README, on the file of purchases.
  sed -n '/^```python$/,/^```$/p' "$work/zerosum_ext/README.md" | sed '/^```/d' >loop.py
  python loop.py
}

if [ "$part" != results ]; then
  step "everybody: apt-get install of Python, a compiler and make" system
  step "everybody: unpack the sources" unpack
  step "everybody: a virtual environment with torch" torch
fi
if [ "$part" = prepare ]; then exit; fi
step "everybody: pip install of the package, which builds it" package
export PATH="$work/venv/bin:$PATH"
mkdir -p "$work/mine" && cd "$work/mine"
sales
step "a shop: from purchases.csv to report.html" report
step "a shop: ten recommendations for a customer" recommend
step "a researcher: one row of the paper's first table, beside what was published" row
step "an engineer: the README's loop with the loss, one epoch" loop
processor
echo "in all | $(since "$begun") | ${spent%.*}"
