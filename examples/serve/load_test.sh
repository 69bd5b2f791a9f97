#!/usr/bin/env bash
# Load on the service, on this machine alone: bash examples/serve/load_test.sh model.safetensors NUM_USERS NUM_ITEMS
# Needs wrk (apt-get install wrk). Prints requests a second and percentiles of the latency, for users and for sessions.
set -euo pipefail
model=$1 users=$2 items=$3
here=$(cd "$(dirname "$0")" && pwd) port=${PORT:-8733} seconds=${SECONDS_EACH:-15} workers=${WORKERS:-1}
MODEL=$model python -m uvicorn --app-dir "$here" app:app --port "$port" --workers "$workers" --log-level error &
server=$!
trap 'kill $server' EXIT
for _ in $(seq 600); do
  curl -sf "http://127.0.0.1:$port/health" && break
  sleep 1
done
echo
for what in users sessions; do
  echo "== $what"
  WHAT=$what USERS=$users ITEMS=$items wrk -t1 -c"${CONNECTIONS:-8}" -d"${seconds}s" --latency \
    -s "$here/load.lua" "http://127.0.0.1:$port"
done
