#!/usr/bin/env bash
# The first ten minutes on a GPU: is it right, does it wait, what does it do out of memory, how fast is it. One call, at
# most 8 minutes; lines are written as they come, and a step that fails or hangs ends only itself.
# usage: tests/benchmarks/gpu_first.sh [--small]     --small: all of it on a CPU, with a tiny shape
#   OUT: the folder for gpu_first.txt (.)   WHEELS: a folder of wheels (pyarrow, safetensors, tokenizers, pydantic) for a
#   machine without network, which are then put into a folder of their own
set -uo pipefail
cd "$(dirname "$0")/../.."
small="${1:-}"
documents=1024 patience=1
[ -z "$small" ] || documents=64 patience=5  # no limit matters on a CPU that others use, too
out="${OUT:-.}"
python="${PYTHON:-python3}"
mkdir -p "$out"
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --target "$out/.wheels" "$WHEELS"/*.whl
  export PYTHONPATH="$out/.wheels${PYTHONPATH:+:$PYTHONPATH}"
fi
step() {  # seconds, command
  echo "== ${*:2}"
  timeout --kill-after 5 $(($1 * patience)) "${@:2}"
  code=$?
  [ $code = 0 ] || echo "== ended with $code"
}
{
  date -u
  for one in versions answers waits; do step 60 "$python" -m tests.benchmarks.gpu_first "$one" $small; done
  step 60 "$python" -m tests.benchmarks.gpu_first compiled $small
  step 30 "$python" -m tests.benchmarks.gpu_first memory $small
  step 150 "$python" -m tests.benchmarks.gpu --rounds 3 --documents "$documents" $small
  step 30 "$python" -m tests.benchmarks.gpu_first kernels $small
  step 60 "$python" -m tests.benchmarks.gpu_first shard $small
} 2>&1 | tee "$out/gpu_first.txt"
